"""Runs of one configuration as one system: seeds give mean and spread, folds pool by question.

Also says what sets configurations apart. Reading run directories is `collect.py`.
"""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from meqsum_lightning.runs.collect import PREDICTION_FILES, ROUGE_KEYS, Run

# Repetitions of one configuration differ in these.
REPEATED = ("seed", "data.fold")
# What a run is called decides nothing.
LABELS = ("name",)
# Where `model.name` tells the models apart, these say the same again.
MODEL_IDENTITY = ("model.backbone", "model.revision", "model.shape", "model.tokenizer")
# Without a low-rank adapter these are null.
LOW_RANK = (
    "adapter.r",
    "adapter.alpha",
    "adapter.dropout",
    "adapter.target_modules",
    "adapter.scope",
    "adapter.layers",
)


@dataclass(frozen=True)
class Pooled:
    """A metric of a group of runs.

    Attributes:
        values: Value by seed, in the order of the seeds.
        questions: Distinct questions behind all values; 0 where no table of predictions tells.
    """

    values: dict[int, float]
    questions: int

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return math.fsum(self.values.values()) / len(self.values)

    @property
    def sd(self) -> float | None:
        """Sample standard deviation over seeds (n - 1 in the denominator); None with one seed."""
        values = list(self.values.values())
        return statistics.stdev(values) if len(values) > 1 else None


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ in seed and fold alone.

    Attributes:
        settings: What they share: the configuration without seed, fold and name.
        runs: One for each pair of seed and fold, in that order.
        duplicates: Older runs of a pair that `runs` already has.
    """

    settings: dict[str, Any]
    runs: list[Run]
    duplicates: list[Run]

    @property
    def seeds(self) -> list[int]:
        """All seeds, ascending."""
        return sorted({run.seed for run in self.runs})

    @property
    def folds(self) -> list[int]:
        """All folds, ascending; [0] without folds."""
        return sorted({run.fold for run in self.runs})

    @property
    def complete(self) -> bool:
        """Whether each seed has every fold, so that seeds are compared on the same questions."""
        return len(self.runs) == len(self.seeds) * len(self.folds)

    def score(self, metric: str) -> Pooled | None:
        """A metric over all runs.

        Within a seed with one fold it is what `metrics.json` says. With several folds a ROUGE score
        is the mean over all rows of the folds' predictions: every question of the test counts once;
        one that validates several folds counts once for each. A loss is the mean of the folds'
        losses with equal weights, since the numbers of target tokens are not on record.

        Args:
            metric: Such as `test/rougeL`, `val/loss`, `test_base/rouge1`.

        Returns:
            The values; None when a run does not have the metric.

        Raises:
            UserError: A table of predictions that is needed is missing or damaged.
        """
        if any(metric not in run.metrics for run in self.runs):
            return None
        prefix, _, name = metric.partition("/")
        file = PREDICTION_FILES.get(prefix)
        values = {}
        for seed in self.seeds:
            runs = [run for run in self.runs if run.seed == seed]
            if len(runs) > 1 and name in ROUGE_KEYS and file is not None:
                tables = [run.read_predictions(file).scores[name] for run in runs]
                values[seed] = pooled_mean(tables)
            else:
                values[seed] = pooled_mean([[run.metrics[metric] for run in runs]])
        questions = {
            row
            for run in self.runs
            if file is not None and run.has_predictions(file)
            for row in run.read_predictions(file).ids
        }
        return Pooled(values, len(questions))


def pooled_mean(tables: Iterable[Sequence[float]]) -> float:
    """Mean over all rows of all tables, whatever their order.

    Args:
        tables: Scores by row, one sequence for each fold; at least one row in all.
    """
    rows = [score for table in tables for score in table]
    return math.fsum(rows) / len(rows)


def group(runs: Sequence[Run]) -> list[Group]:
    """Joins runs that agree in everything but seed and fold.

    Everything is the settings, the rows, the split (folds of one division share it), the ROUGE
    protocol and the backbone. What a run is called does not count. Of runs with the same seed and
    fold the newest stays.

    Args:
        runs: Completed runs, in any order.

    Returns:
        Groups, ordered by what differs among them; the order of `runs` has no influence.
    """
    alike: dict[str, list[Run]] = {}
    for run in runs:
        alike.setdefault(_text([shared_settings(run), run.fingerprints]), []).append(run)
    keys = differing(runs)
    # The text of everything settles what these keys leave open.
    ordered = sorted(
        alike.items(),
        key=lambda item: ([_rank(item[1][0].settings.get(key)) for key in keys], item[0]),
    )
    return [_group(members) for _, members in ordered]


def differing(runs: Sequence[Run]) -> list[str]:
    """Dotted keys that have several values among runs, in the order of the configuration.

    Seed and fold are left out, and what merely follows: the run's name; alpha where it is one
    multiple of r throughout; what identifies a backbone that `model.name` tells apart; and the keys
    of low-rank adapters where they differ from null alone.
    """
    # A canonical order, so that keys that few runs have take the same place.
    canonical = sorted(runs, key=lambda run: (-len(run.settings), str(run.folder)))
    keys = dict.fromkeys(key for run in canonical for key in run.settings)
    low_rank = [run for run in runs if run.settings.get("adapter.r") is not None]
    found = []
    for key in keys:
        if key in (*REPEATED, *LABELS):
            continue
        if len(_values(low_rank if key in LOW_RANK and low_rank else runs, key)) > 1:
            found.append(key)
    if "adapter.r" in found and _one_multiple(low_rank):
        found = [key for key in found if key != "adapter.alpha"]
    if "model.name" in found:
        found = [key for key in found if key not in MODEL_IDENTITY or not _follows(runs, key)]
    return found


def shared_settings(run: Run) -> dict[str, Any]:
    """The settings that repetitions of a run share."""
    return {key: value for key, value in run.settings.items() if key not in (*REPEATED, *LABELS)}


def _group(members: Sequence[Run]) -> Group:
    kept: dict[tuple[int, int], Run] = {}
    duplicates = []
    # By name first: among runs that ended together the first name stays.
    ordered = sorted(members, key=lambda run: str(run.folder))
    for run in sorted(ordered, key=lambda run: str(run.record.get("ended")), reverse=True):
        if (run.seed, run.fold) in kept:
            duplicates.append(run)
        else:
            kept[run.seed, run.fold] = run
    runs = [kept[pair] for pair in sorted(kept)]
    return Group(shared_settings(runs[0]), runs, duplicates)


def _one_multiple(runs: Sequence[Run]) -> bool:
    """Whether alpha / r is the same in all runs."""
    alphas = [run.settings.get("adapter.alpha") for run in runs]
    if None in alphas:
        return False
    ratios = [a / run.settings["adapter.r"] for a, run in zip(alphas, runs, strict=True)]
    return all(math.isclose(ratio, ratios[0], rel_tol=1e-9) for ratio in ratios)


def _follows(runs: Sequence[Run], key: str) -> bool:
    """Whether runs with one `model.name` have one value of a key."""
    names: dict[str, list[Run]] = {}
    for run in runs:
        names.setdefault(_text(run.settings.get("model.name")), []).append(run)
    return all(len(_values(members, key)) == 1 for members in names.values())


def _values(runs: Iterable[Run], key: str) -> set[str]:
    """Values as texts; a key that an older version did not have counts as null."""
    return {_text(run.settings.get(key)) for run in runs}


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _rank(value: Any) -> tuple[int, float, str]:
    """Order of values: null, numbers by size, then texts."""
    if value is None:
        return 0, 0.0, ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return 1, float(value), ""
    return 2, 0.0, value if isinstance(value, str) else _text(value)
