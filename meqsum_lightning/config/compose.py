"""Composing a configuration with Hydra: overrides in, plain dictionary out.

Knows where `conf/` lies and how overrides are written; what keys mean is `validate.py`.
"""

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from meqsum_lightning.config.schema import Section
from meqsum_lightning.config.validate import validate
from meqsum_lightning.errors import UserError

# Building blocks of other files, not choices of their own.
HIDDEN_OPTIONS = ("base",)
RUN_FILE = "config.yaml"
# What evaluation and prediction take over from a run.
RUN_SECTIONS = ("seed", "data", "model", "adapter", "generation", "metrics")


def conf_dir() -> Path:
    """The folder of configuration files: inside an installed package, or beside a checkout's."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


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
            _take_stored(fresh, stored, command, parsed)
    raw = _plain(fresh)
    _drop_unused_adapter_keys(raw, {item.key for item in parsed})
    return raw, mistakes


@dataclass(frozen=True)
class ParsedOverride:
    """One override: its key, whether it picks a config group, and the form that Hydra is given."""

    key: str
    is_group: bool
    hydra: str
    text_value: str
    value: Any


def parse_overrides(
    command: str, overrides: Sequence[str], config_dirs: Sequence[str] = (), sweep: bool = False
) -> tuple[list[ParsedOverride], list[str]]:
    """Reads overrides and checks their form and the names of groups and choices.

    Args:
        command: The command whose root file is composed.
        overrides: Texts as typed.
        config_dirs: Further folders of config groups.
        sweep: Whether several values per key are allowed (`-m`).

    Returns:
        The usable overrides, and one line per mistake.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    parsed, mistakes = [], []
    groups = config_groups(command, config_dirs)
    for text in overrides:
        if text.startswith("--"):
            mistakes.append(f"{text}: no such option; expected key=value (without dashes)")
            continue
        if "=" not in text and not text.startswith("~"):
            mistakes.append(f"{text}: not an override; expected key=value")
            continue
        try:
            item = parser.parse_override(text)
        except HydraException:
            key, _, given = text.partition("=")
            mistakes.append(
                f"{text}: cannot be read; expected key=value, "
                f"with quotes around special characters: '{key}=\"{given}\"'"
            )
            continue
        key = item.key_or_group
        if item.is_delete():
            mistakes.append(f"{text}: keys cannot be removed; expected key=null")
            continue
        if item.is_sweep_override() and not sweep:
            mistakes.append(f"{text}: several values; expected one, or -m for a sweep")
            continue
        value: Any = None if item.is_sweep_override() else item.value()
        is_group = key in groups and not isinstance(value, dict)
        text_value: str = text.partition("=")[2]
        if is_group:
            wrong = _wrong_choices(key, item, groups[key])
            mistakes.extend(wrong)
            if not wrong:
                parsed.append(ParsedOverride(key, True, f"{key}={text_value}", text_value, value))
            continue
        if not key.startswith("hydra."):
            # Forced, so that Hydra lets unknown keys through to the validator, which knows better.
            text = f"++{key}={text_value}"
        shown = value if isinstance(value, str) else text_value
        parsed.append(ParsedOverride(key, False, text, shown, value))
    return parsed, mistakes


def config_groups(command: str, config_dirs: Sequence[str] = ()) -> dict[str, list[str]]:
    """The config groups of a command and the choices of each."""
    groups: dict[str, list[str]] = {"hydra/launcher": [], "hydra/sweeper": []}
    defaults = _default_groups(command)
    for root in (conf_dir(), *map(Path, config_dirs)):
        for name in defaults:
            found = sorted(path.stem for path in (root / name).glob("*.yaml"))
            options = groups.setdefault(name, [])
            options.extend(o for o in found if o not in options and o not in HIDDEN_OPTIONS)
    return groups


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
    if not isinstance(stored, dict):
        raise UserError(f"{file}: not a configuration; expected a run directory's own file")
    return {str(name): value for name, value in stored.items()}


def _default_groups(command: str) -> list[str]:
    groups: list[str] = []
    file: str | None = command
    while file is not None:
        document = OmegaConf.to_container(OmegaConf.load(conf_dir() / f"{file}.yaml"))
        assert isinstance(document, dict)
        file = None
        for entry in document.get("defaults", []):
            if isinstance(entry, dict):
                groups.extend(name for name in map(str, entry) if not name.startswith("override"))
            elif entry != "_self_":
                file = str(entry)
    return groups


def _wrong_choices(key: str, item: Any, options: list[str]) -> list[str]:
    if not options:
        return []
    values = (
        [str(v) for v in item.sweep_string_iterator()]
        if item.is_sweep_override()
        else item.value()
        if isinstance(item.value(), list)
        else [item.value()]
    )
    lines = []
    for value in values:
        name = str(value).removesuffix(".yaml")
        if value is None or name in options or name.startswith("["):
            continue
        close = difflib.get_close_matches(name, options, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        lines.append(f"{key}={value}: no such choice; expected {', '.join(options)}{hint}")
    return lines


def _compose(command: str, parsed: Sequence[ParsedOverride], config_dirs: Sequence[str]) -> Any:
    from hydra import compose as hydra_compose
    from hydra.errors import HydraException

    words = [*search_path(config_dirs), *(item.hydra for item in parsed)]
    with initialized():
        try:
            return hydra_compose(command, words)
        except (HydraException, OmegaConfBaseException) as error:
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


def _drop_unused_adapter_keys(raw: dict[str, Any], given: set[str]) -> None:
    """Lets `experiment=demo adapter=full` work: the rank is the experiment's, nobody asked for it.

    A key that was typed stays, and is refused by the checks.
    """
    adapter = raw.get("adapter")
    if isinstance(adapter, dict) and adapter.get("method") in ("full", "none"):
        for key in adapter:
            if key != "method" and f"adapter.{key}" not in given:
                adapter[key] = None


def _plain(composed: Any) -> dict[str, Any]:
    try:
        plain = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(str(error).splitlines()[0]) from None
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if key != "hydra"}
