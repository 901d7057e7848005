"""From the overrides of `-m` to one list of overrides per job: every combination, in typed order.

Values are not checked here (`config.validate` does), and nothing is loaded.
"""

import fnmatch
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from meqsum_lightning.config.compose import sweeper_params
from meqsum_lightning.config.groups import config_groups
from meqsum_lightning.config.overrides import parse_overrides
from meqsum_lightning.errors import UserError

# A key of a sweep as a whole cannot differ from job to job.
WHOLE = ("sweep.", "hydra.", "hydra/")
# Where a job or a sweep is written is asked for in one way.
REPLACED = {
    "hydra.sweep.dir": "sweep.dir=DIR",
    "hydra.sweep.subdir": "sweep.dir=DIR; jobs are named by what differs",
    "hydra.run.dir": "output_dir=DIR for one run, sweep.dir=DIR for a sweep",
    "output_dir": "sweep.dir=DIR; each job has a directory of its own in it",
    "resume": "sweep.dir=DIR or sweep.resume=last to go on with a sweep",
}


@dataclass(frozen=True)
class Combination:
    """One job as overrides.

    Attributes:
        overrides: All of them, one value each.
        values: Text of the value by key, for the keys that have several in the sweep.
    """

    overrides: tuple[str, ...]
    values: dict[str, str]


def expand(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> list[Combination]:
    """Every combination of the values that a sweep asks for.

    Lists (`adapter.r=4,8`), `choice(…)`, `range(…)`, and for config groups `glob(…)` have several
    values. An experiment may bring more in `hydra.sweeper.params`; a key that is typed replaces
    what the experiment says of it.

    Args:
        overrides: As typed after `meqsum train -m`.
        config_dirs: Further folders of config groups.

    Returns:
        Combinations; the last key moves fastest.

    Raises:
        UserError: An override can't be read, or is not for a sweep.
    """
    typed, mistakes = _values(overrides, config_dirs)
    mistakes += [
        f"{key}={values[0]}: not in a sweep; expected {REPLACED[key]}"
        for key, values in typed.items()
        if key in REPLACED
    ]
    if mistakes:
        raise UserError(mistakes)
    found = []
    experiments = typed.get("experiment", [None])
    for experiment in experiments:
        grid: dict[str, list[str]] = {}
        if experiment is not None:
            params = sweeper_params("train", experiment, config_dirs)
            words = [f"{key}={value}" for key, value in params.items() if key not in typed]
            grid, mistakes = _values(words, config_dirs)
            if mistakes:
                raise UserError([f"experiment={experiment}: {line}" for line in mistakes])
        grid |= typed if experiment is None else typed | {"experiment": [experiment]}
        several = {key for key, values in grid.items() if len(values) > 1}
        if len(experiments) > 1:
            several.add("experiment")
        found += [
            Combination(
                tuple(f"{key}={value}" for key, value in zip(grid, values, strict=True)),
                {key: value for key, value in zip(grid, values, strict=True) if key in several},
            )
            for values in itertools.product(*grid.values())
        ]
    return found


def _values(
    overrides: Iterable[str], config_dirs: Sequence[str]
) -> tuple[dict[str, list[str]], list[str]]:
    """Values by key, each as a text that an override takes; and the mistakes found."""
    parsed, mistakes = parse_overrides("train", list(overrides), config_dirs, sweep=True)
    groups = config_groups("train", config_dirs)
    grid: dict[str, list[str]] = {}
    for item in parsed:
        try:
            values = _single_values(item.hydra, item.key, groups.get(item.key, []))
        except UserError as error:
            mistakes += error.lines
            continue
        if len(values) > 1 and item.key.startswith(WHOLE):
            mistakes.append(
                f"{item.key}={item.text_value}: holds for a whole sweep; expected one value"
            )
            continue
        # Typed twice, the last one holds, as everywhere.
        grid.pop(item.key, None)
        grid[item.key] = values
    return grid, mistakes


def _single_values(override: str, key: str, options: Sequence[str]) -> list[str]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Glob

    item = OverridesParser.create().parse_override(override)
    text = override.partition("=")[2]
    if not item.is_sweep_override():
        return [text]
    value: Any = item.value()
    if isinstance(value, Glob):
        names = [name for name in options if _matches(name, value)]
        if not names:
            expected = f"a pattern for {', '.join(options)}" if options else "a list of values"
            raise UserError(f"{key}={text}: matches nothing; expected {expected}")
        return names
    if not item.is_discrete_sweep():
        raise UserError(
            f"{key}={text}: an interval has no end of values; expected a list such as "
            f"{key}=1,2 or {key}=range(1,5)"
        )
    values = list(item.sweep_string_iterator())
    if not values:
        raise UserError(f"{key}={text}: no values; expected at least one")
    return list(dict.fromkeys(values))


def _matches(name: str, pattern: Any) -> bool:
    return any(fnmatch.fnmatchcase(name, p) for p in pattern.include) and not any(
        fnmatch.fnmatchcase(name, p) for p in pattern.exclude
    )
