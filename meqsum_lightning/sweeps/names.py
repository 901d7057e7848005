"""Folder names of jobs: short, readable, unique, one level deep.

A name holds what differs (`r-8_target-modules-q+v`), and only characters that need no quoting
anywhere: no `=`, no `/`, no blanks.
"""

import re
from collections.abc import Collection, Mapping, Sequence

# File systems allow 255 bytes; a name stays readable in a table well below that.
LONGEST = 96
HASH_DIGITS = 8
# What lies beside the jobs in a sweep's root.
RESERVED = ("logs", "failed", "sweep.json")


def job_name(values: Mapping[str, str], labels: Mapping[str, str], otherwise: str) -> str:
    """A readable name from what differs; not yet unique, perhaps too long.

    Args:
        values: Text of the value by key, of the keys that differ.
        labels: Short form of each key.
        otherwise: Name of a job that nothing sets apart.
    """
    parts = [f"{labels[key]}-{_plain(value)}" for key, value in values.items()]
    return "_".join(parts) or _plain(otherwise) or "job"


def short_labels(keys: Sequence[str]) -> dict[str, str]:
    """Last parts of dotted keys; the whole key where two end alike."""
    leaves = [key.replace("/", ".").rpartition(".")[2] for key in keys]
    return {
        key: _plain(leaf if leaves.count(leaf) == 1 else key).replace("_", "-")
        for key, leaf in zip(keys, leaves, strict=True)
    }


def unique_name(name: str, config_hash: str, taken: Collection[str]) -> str:
    """The name, marked by the hash where it is too long or taken.

    Names that differ by case alone count as equal: some file systems do not tell them apart.

    Args:
        name: From `job_name`.
        config_hash: `VERSION-HEX` of the job.
        taken: Names in use.
    """
    used = {other.casefold() for other in (*taken, *RESERVED)}
    if len(name) <= LONGEST and name.casefold() not in used:
        return name
    digits = config_hash.rpartition("-")[2]
    short = name[: LONGEST - HASH_DIGITS - 1].rstrip("-_.+")
    marked = f"{short}-{digits[:HASH_DIGITS]}"
    return marked if marked.casefold() not in used else f"{short}-{digits}"


def _plain(text: str) -> str:
    """ASCII letters, digits and `._+-` alone; lists join by `+`, paths keep their last part."""
    text = text.strip().strip("\"'")
    if text.startswith("[") and text.endswith("]"):
        items = [item.strip().strip("\"'") for item in text[1:-1].split(",")]
        return "+".join(filter(None, map(_plain, items)))
    if "/" in text or "\\" in text:
        text = re.split(r"[/\\]", text.rstrip("/\\"))[-1]
    plain = re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-")
    # A leading dot would hide a folder.
    return plain.lstrip(".")
