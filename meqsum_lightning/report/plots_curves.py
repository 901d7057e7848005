"""Learning curves: training loss and validation score of many runs, and the reading of their rows.

The rows are those of a run's `logs/metrics.csv`; which runs there are is told from outside.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from meqsum_lightning.report.plots_style import (
    COLOURS,
    DASHES,
    GREY,
    MARKERS,
    ONE_COLUMN,
    clean,
    legend_columns,
    new_figure,
    note_empty,
    number,
    padded,
    settle,
    short_names,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]
# As many as a reader can tell apart.
HIGHLIGHTED = 8


def curve(rows: Rows, name: str, by: Literal["epochs", "steps"]) -> list[tuple[float, float]]:
    """One logged value over training.

    Args:
        rows: Rows with `epoch` (from 0), `step` (from 0) and values; missing ones are empty.
        name: Column of the value.
        by: Unit of x: optimizer steps taken, or epochs gone through, which go on within an epoch.

    Returns:
        (x, value) where the value is there, by increasing x.
    """
    per_epoch = _steps_per_epoch(rows) if by == "epochs" else 1.0
    points = (((number(row.get("step")) + 1.0) / per_epoch, number(row.get(name))) for row in rows)
    return sorted(point for point in points if all(map(math.isfinite, point)))


@styled()
def learning_curves(
    runs: Mapping[str, Rows],
    *,
    score: str = "val/rougeL",
    label: str | None = None,
    by: Literal["epochs", "steps"] = "epochs",
    highlighted: Sequence[str] | None = None,
) -> "Figure":
    """Training loss above, validation score below, one line per run.

    Args:
        runs: Rows of `logs/metrics.csv` by the run's name.
        score: Column of the validation score, the higher the better.
        label: Label of the score; its column otherwise.
        by: Unit of the shared x axis.
        highlighted: Runs in colour, at most eight; otherwise the eight that reach the highest
            score. The others are grey.

    Returns:
        The figure, 85 mm wide. A run without a value in a panel has no line there.
    """
    losses = {name: curve(rows, "train/loss", by) for name, rows in runs.items()}
    scores = {name: curve(rows, score, by) for name, rows in runs.items()}
    best = {name: max((value for _, value in scores[name]), default=-math.inf) for name in runs}
    if highlighted is None:
        highlighted = sorted(runs, key=lambda name: -best[name])
    chosen = [name for name in highlighted if name in runs][:HIGHLIGHTED]
    labels = dict(zip(chosen, short_names(chosen, 44), strict=True))
    columns = legend_columns(list(labels.values()))
    figure = new_figure(ONE_COLUMN, 82.0 + 3.4 * math.ceil((len(chosen) + 1) / columns))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[1, 1.15])
    for axes, curves, with_marks in ((upper, losses, False), (lower, scores, True)):
        for name in runs:
            if name not in labels:
                _draw(axes, curves[name], None, "", name, False)
        for place, name in enumerate(chosen):
            _draw(axes, curves[name], place, labels[name], name, with_marks)
        values = [value for points in curves.values() for _, value in points]
        if not values:
            note_empty(axes)
        axes.set_ylim(*padded(values))
    upper.set_ylabel("training loss\n(nats per token)")
    lower.set_ylabel(clean(label or score))
    lower.set_xlabel("epochs" if by == "epochs" else "optimizer steps")
    xs = [x for curves in (losses, scores) for points in curves.values() for x, _ in points]
    lower.set_xlim(0.0, max(xs, default=1.0) * 1.02)
    _legend(figure, upper, lower, len(runs) - len(chosen), columns)
    figure.align_ylabels([upper, lower])
    return settle(figure)


def _steps_per_epoch(rows: Rows) -> float:
    """From the last validation, which ends an epoch; without one from the last row."""
    counted = [row for row in rows if all(_counts(row))]
    ends = [
        row
        for row in counted
        if any(k.startswith("val/") and v not in ("", None) for k, v in row.items())
    ]
    if not counted:
        return 1.0
    epoch, step = _counts((ends or counted)[-1])
    return step / epoch


def _counts(row: Mapping[str, Any]) -> tuple[float, float]:
    """Epochs and steps that are over at a row; zeros where they aren't told."""
    epoch, step = number(row.get("epoch")) + 1.0, number(row.get("step")) + 1.0
    return (epoch, step) if math.isfinite(epoch) and math.isfinite(step) else (0.0, 0.0)


def _draw(
    axes: "Axes",
    points: Sequence[tuple[float, float]],
    place: int | None,
    label: str,
    name: str,
    with_marks: bool,
) -> None:
    """Draws one run: grey without a place among the highlighted ones."""
    if not points:
        return
    look: dict[str, Any] = {"color": GREY, "linewidth": 0.5, "zorder": 1}
    if place is not None:
        look = {
            "color": COLOURS[place % len(COLOURS)],
            "linestyle": DASHES[place % len(DASHES)],
            "linewidth": 1.0,
            "label": label,
            # The first is the best and lies on top.
            "zorder": 3 + HIGHLIGHTED - place,
        }
    # A line of a single point shows by its marker alone.
    if with_marks or len(points) == 1:
        look["marker"] = MARKERS[place % len(MARKERS)] if place is not None else "."
        look["markevery"] = max(1, len(points) // 10)
    axes.plot([x for x, _ in points], [y for _, y in points], gid=f"run:{clean(name)}", **look)


def _legend(figure: "Figure", upper: "Axes", lower: "Axes", others: int, columns: int) -> None:
    """Every highlighted run once, wherever it is drawn, and how many are grey."""
    from matplotlib.lines import Line2D

    entries: dict[str, Any] = {}
    for axes in (lower, upper):
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if others:
        entries[f"{others} others"] = Line2D([], [], color=GREY, linewidth=0.8)
    if entries:
        figure.legend(
            list(entries.values()), list(entries), loc="outside lower center", ncols=columns
        )
