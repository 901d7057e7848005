"""The hash by which a run is recognised: what was computed, not where, when or by how many."""

import hashlib
import json
from typing import Any

HASH_VERSION = 1

# Keys that change how a run is carried out or shown, not what comes out.
VOLATILE = (
    "output_dir",
    "resume",
    "rerun",
    "sweep",
    "packed",
    "logger",
    "data.workers",
    "data.cache",
    "data.path",
    "data.train_path",
    "data.val_path",
    "data.test_path",
    "checkpoint.prune",
    "checkpoint.every_n_steps",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.threads",
    "trainer.progress",
    "trainer.log_every_n_steps",
    "trainer.profiler",
)


def config_hash(config: dict[str, Any], data_fingerprint: str) -> str:
    """Hash of a resolved configuration.

    Args:
        config: The configuration as plain containers.
        data_fingerprint: Fingerprint of the rows; stands for the paths they came from.

    Returns:
        `VERSION-HEX`, the version being that of the list of keys left out.
    """
    content = json.dumps([stable_part(config), data_fingerprint], sort_keys=True)
    return f"{HASH_VERSION}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def stable_part(config: dict[str, Any]) -> dict[str, Any]:
    """Flat `{dotted key: value}` of the keys that decide the result."""
    return {
        key: value
        for key, value in flatten(config).items()
        if not any(key == name or key.startswith(name + ".") for name in VOLATILE)
    }


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping of dotted keys; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
