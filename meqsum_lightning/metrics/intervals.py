"""Bootstrap intervals of mean scores, and the flat dictionary that `metrics.json` holds.

The rows are what is resampled; scoring them is in `rouge.py`, seeds and comparisons of runs are in
`significance.py`.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

_ELEMENTS_PER_CHUNK = 1 << 20


class Interval(NamedTuple):
    """A mean and the ends of its confidence interval."""

    mean: float
    low: float
    high: float


def bootstrap_interval(
    values: np.ndarray, resamples: int, confidence: float, seed: int
) -> Interval:
    """Percentile bootstrap of a mean (Efron and Tibshirani 1993, chapter 13).

    Rows are drawn with replacement; the interval runs between the `(1 - confidence) / 2` quantiles
    of the resampled means. It says how much the mean would move with other rows of the same kind,
    not with another training seed. With one row, or with all values equal, it is that value.

    Args:
        values: Scores, one per row: (rows,).
        resamples: How many times the rows are drawn.
        confidence: Coverage, in (0, 1).
        seed: Seed of the draws; the same seed and number of rows draw the same rows.

    Returns:
        The mean of `values` and the ends of its interval.

    Raises:
        ValueError: No values, values that are not finite or not one-dimensional, fewer than one
            resample, or a confidence outside (0, 1).
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"expected scores of at least one row, got shape {values.shape}")
    return _intervals(values[:, None], resamples, confidence, seed)[0]


def score_summary(
    per_row: Mapping[Any, Mapping[str, float]],
    prefix: str,
    resamples: int,
    confidence: float,
    seed: int,
) -> dict[str, float]:
    """Means and interval ends of all scores, as flat keys.

    All scores share the same draws of rows. The order in which rows were scored has no influence.

    Args:
        per_row: Scores by row, the same names in each row.
        prefix: What stands before the slash: `val`, `test`, `test_base`.
        resamples: Bootstrap resamples.
        confidence: Coverage of the intervals, in (0, 1).
        seed: Seed of the draws.

    Returns:
        `{"test/rouge1": mean, "test/rouge1_low": ..., "test/rouge1_high": ..., ...}`.

    Raises:
        ValueError: There are no rows, or rows with different names of scores.
    """
    if not per_row:
        raise ValueError("no row was scored: the mean of nothing is undefined")
    rows = [per_row[index] for index in sorted(per_row)]
    names = list(rows[0])
    if any(row.keys() != rows[0].keys() for row in rows):
        raise ValueError("rows must have the same names of scores")
    table = np.array([[row[name] for name in names] for row in rows], dtype=np.float64)
    summary = {}
    intervals = _intervals(table, resamples, confidence, seed)
    for name, interval in zip(names, intervals, strict=True):
        summary[f"{prefix}/{name}"] = interval.mean
        summary[f"{prefix}/{name}_low"] = interval.low
        summary[f"{prefix}/{name}_high"] = interval.high
    return summary


def draw_rows(
    rows: int, resamples: int, seed: int, width: int = 1
) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows drawn with replacement, chunk by chunk: memory is bounded, the draws stay the same.

    Args:
        rows: How many rows there are to draw from, and how many are drawn each time.
        resamples: How many times the rows are drawn.
        seed: Seed of the draws.
        width: Numbers that the caller keeps per drawn row; larger ones make chunks smaller.

    Yields:
        Which resamples a chunk holds, and their rows: (resamples of the chunk, rows).
    """
    rng = np.random.default_rng(seed)
    chunk = max(1, _ELEMENTS_PER_CHUNK // (rows * width))
    for start in range(0, resamples, chunk):
        stop = min(start + chunk, resamples)
        yield slice(start, stop), rng.integers(0, rows, (stop - start, rows))


def percentile_ends(means: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Ends of percentile intervals, one per column of resampled means: (resamples, columns)."""
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail], axis=0)
    return low, high


def check_settings(resamples: int, confidence: float) -> None:
    """Raises ValueError for fewer than one resample or a confidence outside (0, 1)."""
    if resamples < 1 or not 0.0 < confidence < 1.0:
        raise ValueError(
            "expected resamples >= 1 and 0 < confidence < 1, "
            f"got resamples={resamples}, confidence={confidence}"
        )


def _intervals(table: np.ndarray, resamples: int, confidence: float, seed: int) -> list[Interval]:
    """One interval per column of a table: (rows, columns)."""
    check_settings(resamples, confidence)
    if not np.isfinite(table).all():
        raise ValueError("scores must be finite")
    low, high = percentile_ends(_resampled_means(table, resamples, seed), confidence)
    intervals = []
    for column in range(table.shape[1]):
        first = float(table[0, column])
        if (table[:, column] == first).all():
            # Summing equal numbers may miss them by a rounding error.
            intervals.append(Interval(first, first, first))
        else:
            mean = float(table[:, column].mean())
            intervals.append(Interval(mean, float(low[column]), float(high[column])))
    return intervals


def _resampled_means(table: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Means of resampled rows: (resamples, columns)."""
    rows, columns = table.shape
    means = np.empty((resamples, columns))
    for chunk, drawn in draw_rows(rows, resamples, seed, width=columns):
        means[chunk] = table[drawn].mean(axis=1)
    return means
