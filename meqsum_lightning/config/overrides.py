"""Reading overrides as they are typed: syntax, groups, choices; what values mean is `validate`."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from meqsum_lightning.config.groups import config_groups
from meqsum_lightning.errors import UserError

# Groups that may be left empty.
OPTIONAL_GROUPS = ("experiment", "debug")
# `800_100_100` is a name here; Hydra would read a number.
_NAMES_OF_DIGITS = re.compile(r"(?<![\w\"'./])\d+(?:_\d+)+(?![\w\"'./])")


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
    parsed, mistakes = [], []
    groups = config_groups(command, config_dirs)
    for text in overrides:
        try:
            parsed.append(_parse(text, groups, sweep))
        except UserError as error:
            mistakes += error.lines
    return parsed, mistakes


def _parse(text: str, groups: dict[str, list[str]], sweep: bool) -> ParsedOverride:
    if text.startswith("--"):
        raise UserError(f"{text}: no such option; expected key=value (without dashes)")
    if text.startswith("~"):
        raise UserError(f"{text}: keys cannot be removed; expected key=null")
    name, equals, text_value = text.partition("=")
    if not equals or not name.strip("+"):
        raise UserError(f"{text}: not an override; expected key=value")
    text_value = _NAMES_OF_DIGITS.sub(r'"\g<0>"', text_value)
    item, text_value = _read(name, text_value)
    key = item.key_or_group
    if item.is_sweep_override() and not sweep:
        raise UserError(f"{text}: several values; expected one, or -m for a sweep")
    value: Any = None if item.is_sweep_override() else item.value()
    if key in groups and not isinstance(value, dict):
        if mistakes := _wrong_choices(key, item, groups[key]):
            raise UserError(mistakes)
        return ParsedOverride(key, True, f"{key}={text_value}", text_value, value)
    # Forced, so that Hydra lets unknown keys through to the validator, which knows better.
    forced = f"{name}={text_value}" if key.startswith("hydra.") else f"++{key}={text_value}"
    shown = value if isinstance(value, str) else text_value
    return ParsedOverride(key, False, forced, shown, value)


def _read(name: str, value: str) -> tuple[Any, str]:
    """Hydra's reading of an override, and its value as Hydra can read it.

    A value that Hydra's grammar refuses (a path with `~` or brackets, an emoji) can only be a text.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    quoted = '"' + re.sub(r'(\\*)"', r'\1\1\\"', value) + '"'
    for attempt in (value, quoted):
        try:
            return parser.parse_override(f"{name}={attempt}"), attempt
        except HydraException:
            continue
    raise UserError(f"{name}={value}: cannot be read; expected key=value")


def _wrong_choices(key: str, item: Any, options: list[str]) -> list[str]:
    from hydra.core.override_parser.types import Glob

    # Which choices a glob takes is found when the sweep is expanded.
    if not options or isinstance(item.value(), Glob):
        return []
    if not item.is_sweep_override() and item.value() is None and key not in OPTIONAL_GROUPS:
        none = "; to have none: none" if "none" in options else ""
        return [f"{key}=null: no such choice; expected {', '.join(options)}{none}"]
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
