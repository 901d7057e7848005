"""The jobs of a sweep as validated configurations, all checked before the first one starts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from meqsum_lightning.config.compose import build_config
from meqsum_lightning.config.schema import TrainConfig
from meqsum_lightning.errors import UserError
from meqsum_lightning.signals import importing
from meqsum_lightning.sweeps.grid import Combination
from meqsum_lightning.sweeps.names import job_name, short_labels, unique_name
from meqsum_lightning.sweeps.record import JobEntry

if TYPE_CHECKING:
    from meqsum_lightning.engine.parts import Data


Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Point:
    """One job, checked.

    Attributes:
        overrides: What was typed, one value each.
        values: Those of the keys that have several values in the sweep.
        cfg: Its configuration.
        facts: Fingerprints and hash, as `engine.train.describe` gives them.
        split: Ids by split.
    """

    overrides: tuple[str, ...]
    values: dict[str, str]
    cfg: TrainConfig
    facts: dict[str, Any] = field(default_factory=dict)
    split: dict[str, Any] = field(default_factory=dict)

    @property
    def config_hash(self) -> str:
        """By which the job is recognised."""
        return str(self.facts["config_hash"])


def compose_points(combinations: Sequence[Combination], config_dirs: Sequence[str]) -> list[Point]:
    """Composes and validates every job; loads nothing.

    Raises:
        UserError: With every mistake of every job.
    """
    configs = all_or_error(
        combinations, lambda job: build_config("train", job.overrides, config_dirs)
    )
    return [
        Point(job.overrides, job.values, cast(TrainConfig, cfg))
        for job, cfg in zip(combinations, configs, strict=True)
    ]


def check_points(points: Sequence[Point]) -> tuple[list[Point], int]:
    """Checks every job against backbones, devices and rows, and tells jobs that are the same.

    Args:
        points: From `compose_points`.

    Returns:
        The distinct jobs with their facts, and how many were asked for twice (as `alpha=2r` and
        `alpha=16` are at rank 8).

    Raises:
        UserError: With every mistake of every job.
    """
    with importing():
        from meqsum_lightning.engine.parts import load_data
        from meqsum_lightning.engine.train import check_model, describe
        from meqsum_lightning.models.budget import resolve_rank

    loaded: dict[str, Data] = {}

    def checked(point: Point) -> Point:
        cfg = resolve_rank(point.cfg)
        check_model(cfg)
        key = f"{cfg.data.model_dump_json()} {cfg.model.model_dump_json()}"
        if key not in loaded:
            loaded[key] = load_data(cfg)
        data = loaded[key]
        return Point(
            point.overrides,
            point.values,
            cfg,
            describe(cfg, data),
            data.split.to_json(),
        )

    return distinct(all_or_error(points, checked))


def distinct(points: Sequence[Point]) -> tuple[list[Point], int]:
    """Each job once, and how many were asked for twice."""
    found: dict[str, Point] = {}
    for point in points:
        found.setdefault(point.config_hash, point)
    return list(found.values()), len(points) - len(found)


def enter(points: Sequence[Point], jobs: Mapping[str, JobEntry]) -> list[JobEntry]:
    """Entries of `sweep.json` for the points: those that it has, recognised by hash, and new ones.

    Args:
        points: Distinct jobs.
        jobs: Entries by name, from commands before this one; they keep their names.

    Returns:
        One entry per point, in their order.
    """
    known = {job.config_hash: job for job in jobs.values()}
    taken = set(jobs)
    keys = differing_keys(points)
    labels = short_labels(keys)
    entries = []
    for point in points:
        entry = known.get(point.config_hash)
        if entry is None:
            values = {key: point.values[key] for key in keys if key in point.values}
            name = unique_name(job_name(values, labels, point.cfg.name), point.config_hash, taken)
            taken.add(name)
            entry = JobEntry(name, list(point.overrides), point.config_hash, cwd=str(Path.cwd()))
        entries.append(entry)
    return entries


def differing_keys(points: Sequence[Point]) -> list[str]:
    """Keys that do not have one and the same value in all points, in typed order."""
    keys = dict.fromkeys(key for point in points for key in point.values)
    return [key for key in keys if len({point.values.get(key) for point in points}) > 1]


def all_or_error(items: Sequence[Item], function: Callable[[Item], Result]) -> list[Result]:
    """Results for all items, or one error with every mistake found, each told once."""
    results, lines = [], []
    for item in items:
        try:
            results.append(function(item))
        except UserError as error:
            lines += error.lines
    if lines:
        raise UserError(list(dict.fromkeys(lines)))
    return results
