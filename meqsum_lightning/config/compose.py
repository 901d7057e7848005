"""Composing a configuration with Hydra: overrides in, plain dictionary out.

How overrides are written is `overrides.py`, what keys mean is `validate.py`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from meqsum_lightning.config.groups import conf_dir
from meqsum_lightning.config.overrides import ParsedOverride, parse_overrides
from meqsum_lightning.config.schema import Section
from meqsum_lightning.config.validate import validate
from meqsum_lightning.errors import UserError

RUN_FILE = "config.yaml"
# What evaluation and prediction take over from a run.
RUN_SECTIONS = ("seed", "data", "model", "adapter", "generation", "metrics")


def build_config(
    command: str, overrides: Sequence[str] = (), config_dirs: Sequence[str] = ()
) -> Section:
    """Composes and validates the configuration of a command.

    Args:
        command: `train`, `plan`, `evaluate`, `predict` or `data`.
        overrides: As on the command line (`adapter.r=8`, `data=meqsum`).
        config_dirs: Further folders of config groups.

    Returns:
        The typed configuration.

    Raises:
        UserError: With one line per mistake.
    """
    raw, mistakes = compose(command, overrides, config_dirs)
    return validate(raw, command, mistakes)


def compose(
    command: str, overrides: Sequence[str] = (), config_dirs: Sequence[str] = ()
) -> tuple[dict[str, Any], list[str]]:
    """Composes a configuration without checking its values.

    A `resume`, `rerun` or `run` override that names a run directory takes that run's configuration
    as the start, under the other overrides.

    Returns:
        The plain dictionary, and the mistakes found in the overrides themselves (unknown groups or
        choices, syntax), which `validate` tells together with those of the values.
    """
    parsed, mistakes = parse_overrides(command, overrides, config_dirs)
    fresh = _compose(command, parsed, config_dirs)
    start = next((item for item in parsed if item.key in ("resume", "rerun", "run")), None)
    if start is not None and start.text_value not in ("null", ""):
        stored = stored_config(start.key, start.text_value)
        if stored is not None:
            mistakes += _fixed_adapter(command, parsed)
            try:
                _take_stored(fresh, stored, command, parsed)
            except (OmegaConfBaseException, ValueError, TypeError):
                raise UserError(
                    f"{start.key}={start.text_value}: its {RUN_FILE} is no run's configuration; "
                    "expected the file that the run wrote"
                ) from None
    raw = _plain(fresh)
    for group in ("logger", "callbacks"):
        # `logger=[]` leaves nothing at all; only training has loggers.
        if command in ("train", "plan"):
            raw.setdefault(group, {})
    _drop_unused_adapter_keys(raw, {item.key for item in parsed})
    _replace_components(raw, parsed)
    return raw, mistakes


def sweeper_params(
    command: str, experiment: str, config_dirs: Sequence[str] = ()
) -> dict[str, str]:
    """The grid that an experiment brings in `hydra.sweeper.params`, as texts by key.

    Raises:
        UserError: The experiment can't be composed.
    """
    parsed, mistakes = parse_overrides(command, [f"experiment={experiment}"], config_dirs)
    if mistakes:
        raise UserError(mistakes)
    params = _compose(command, parsed, config_dirs, hydra_config=True).hydra.sweeper.params
    return {str(key): str(value) for key, value in (params or {}).items()}


def stored_config(key: str, folder: str) -> dict[str, Any] | None:
    """The configuration that a run directory holds.

    Args:
        key: The override that named the folder, for messages.
        folder: A run directory. With `run=`, other kinds of folder give None.

    Raises:
        UserError: The folder is missing, or holds no readable configuration.
    """
    path = Path(folder).expanduser()
    what = "a run directory or PEFT folder" if key == "run" else "a run directory"
    if not path.is_dir():
        raise UserError(f"{key}={folder}: no such folder; expected {what}")
    file = path / RUN_FILE
    if not file.is_file():
        if key == "run" and (path / "adapter_config.json").is_file():
            return None
        raise UserError(f"{key}={folder}: holds no {RUN_FILE}; expected {what}")
    try:
        stored = OmegaConf.to_container(OmegaConf.load(file))
    except (OmegaConfBaseException, OSError, ValueError, YAMLError) as error:
        raise UserError(f"{file}: cannot be read ({type(error).__name__}); expected yaml") from None
    if not isinstance(stored, dict) or not set(RUN_SECTIONS) <= set(stored):
        raise UserError(f"{file}: no run's configuration; expected the file that the run wrote")
    return {str(name): value for name, value in stored.items()}


def _compose(
    command: str,
    parsed: Sequence[ParsedOverride],
    config_dirs: Sequence[str],
    hydra_config: bool = False,
) -> Any:
    from hydra import compose as hydra_compose
    from hydra.errors import HydraException

    words = [*search_path(config_dirs), *(item.hydra for item in parsed)]
    with initialized():
        try:
            return hydra_compose(command, words, return_hydra_config=hydra_config)
        except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
            raise UserError(f"{_guilty(parsed, str(error))}{str(error).splitlines()[0]}") from None


def search_path(config_dirs: Sequence[str]) -> list[str]:
    """The override that adds folders to Hydra's search path, after our own.

    Raises:
        UserError: A folder does not exist.
    """
    for folder in config_dirs:
        if not Path(folder).is_dir():
            raise UserError(
                f"--config-dir={folder}: no such folder; expected a folder of config groups"
            )
    if not config_dirs:
        return []
    places = ",".join(f'"file://{Path(folder).resolve()}"' for folder in config_dirs)
    return [f"hydra.searchpath=[{places}]"]


@contextmanager
def initialized() -> Iterator[None]:
    """Hydra on our folder for the duration; its global state is restored afterwards."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.singleton import Singleton

    before = Singleton.get_state()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            yield
    finally:
        Singleton.set_state(before)


def _guilty(parsed: Sequence[ParsedOverride], message: str) -> str:
    """The override that an error of Hydra's speaks of, as a prefix."""
    for item in parsed:
        if item.key in message:
            return f"{item.key}={item.text_value}: "
    return ""


def _take_stored(
    fresh: Any, stored: dict[str, Any], command: str, parsed: Sequence[ParsedOverride]
) -> None:
    """Puts a run's configuration under the overrides; keys new since then keep their defaults."""
    replaced = {item.key for item in parsed if item.is_group}
    for item in parsed:
        if item.is_group and item.key in ("experiment", "debug"):
            raise UserError(
                f"{item.key}={item.text_value}: cannot be joined with a run's configuration; "
                "expected single keys"
            )
    OmegaConf.set_struct(fresh, False)
    for name, value in stored.items():
        if name not in fresh or name in replaced:
            continue
        # Another command has its own keys (split, name), and may run on another machine.
        if command not in ("train", "plan") and name not in RUN_SECTIONS:
            continue
        if isinstance(value, dict) and name not in ("logger", "callbacks"):
            fresh[name] = OmegaConf.merge(fresh[name], value)
        else:
            fresh[name] = value
    for item in parsed:
        if not item.is_group and not item.key.startswith("hydra."):
            OmegaConf.update(fresh, item.key, item.value, merge=True, force_add=True)


def _fixed_adapter(command: str, parsed: Sequence[ParsedOverride]) -> list[str]:
    """Mistakes of asking a finished run for another adapter than it has, or than none."""
    if command not in ("evaluate", "predict"):
        return []
    return [
        f"{item.key}={item.text_value}: the run has its own adapter; "
        "expected adapter=none (its backbone alone) or no adapter key"
        for item in parsed
        if item.key.split(".")[0] == "adapter" and item.value != "none"
    ]


def _replace_components(raw: dict[str, Any], parsed: Sequence[ParsedOverride]) -> None:
    """A `_target_` that was typed brings its own arguments: those of the class before it go."""
    given = {item.key: item.value for item in parsed if not item.is_group}
    node = raw.get("optim", {}).get("optimizer") if isinstance(raw.get("optim"), dict) else None
    whole = given.get("optim.optimizer")
    if isinstance(whole, dict) and "_target_" in whole:
        raw["optim"]["optimizer"] = dict(whole)
    elif isinstance(node, dict) and "optim.optimizer._target_" in given:
        raw["optim"]["optimizer"] = {
            name: value for name, value in node.items() if f"optim.optimizer.{name}" in given
        }


def _drop_unused_adapter_keys(raw: dict[str, Any], given: set[str]) -> None:
    """Lets `experiment=demo adapter=full` work: the rank is the experiment's, nobody asked for it.

    In the same way a rank gives way to `adapter.budget=…`. A key that was typed stays, and is
    refused by the checks.
    """
    adapter = raw.get("adapter")
    if not isinstance(adapter, dict):
        return
    if adapter.get("method") in ("full", "none"):
        for key in adapter:
            if key != "method" and f"adapter.{key}" not in given:
                adapter[key] = None
    elif adapter.get("budget") is not None and "adapter.r" not in given:
        adapter["r"] = None


def _plain(composed: Any) -> dict[str, Any]:
    try:
        plain = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(str(error).splitlines()[0]) from None
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if key != "hydra"}
