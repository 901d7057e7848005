"""Scores of some systems by groups of questions: by question word, length or similarity.

Which question belongs to which group, and the intervals, are worked out elsewhere.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from meqsum_lightning.report.plots_style import (
    COLOURS,
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

# Systems in colour; more would not stand side by side in a group of a column's width.
COLOURED = 5


@styled()
def scores_by_group(panels: Sequence[Mapping[str, Any]], *, score: str) -> "Figure":
    """Dots with intervals by groups of questions, one panel per grouping.

    Args:
        panels: For each grouping a mapping of
            `title`: what the questions are grouped by, with its unit, the label of the x axis;
            `groups`: names of the groups, in order;
            `counts`: questions in each group;
            `systems`: for each system's name a list with one (score, low, high) per group; None or
            NaN where something is missing.
        score: Label of the score.

    Returns:
        The figure, 85 mm wide, panels below each other on one scale. The first five systems are
        coloured and stand side by side; the others are grey dots at the right of their group.
    """
    names = list(dict.fromkeys(name for panel in panels for name in panel["systems"]))
    labels = short_names(names[:COLOURED], 44)
    columns = legend_columns(labels)
    rows = math.ceil(min(len(names), COLOURED + 1) / columns)
    figure = new_figure(ONE_COLUMN, 42.0 * max(len(panels), 1) + 3.6 * rows + 1.0)
    all_axes = figure.subplots(max(len(panels), 1), 1, squeeze=False, sharey=True).ravel()
    values = [
        number(value)
        for panel in panels
        for points in panel["systems"].values()
        for point in points
        for value in point or ()
    ]
    if not panels:
        note_empty(all_axes[0])
    for axes, panel in zip(all_axes, panels, strict=False):
        _panel(axes, panel, names)
        axes.set_ylabel(clean(score))
        axes.set_ylim(*padded(values))
    _legend(figure, labels, len(names) - len(labels), columns)
    return settle(figure)


def _panel(axes: "Axes", panel: Mapping[str, Any], names: Sequence[str]) -> None:
    groups, counts = panel["groups"], panel["counts"]
    axes.set_xlabel(clean(panel["title"]))
    # One line of a name and below it the count; long names get what the width allows.
    room = max(4, int(46 / max(len(groups), 1)))
    axes.set_xticks(
        range(len(groups)),
        labels=[
            f"{name}\n{'n=' if not at else ''}{count:,}"
            for at, (name, count) in enumerate(zip(short_names(groups, room), counts, strict=True))
        ],
    )
    axes.set_xlim(-0.55, max(len(groups), 1) - 0.45)
    axes.tick_params(axis="x", length=0)
    for border in range(1, len(groups)):
        axes.axvline(border - 0.5, color="#E3E3E3", linewidth=0.5, zorder=0)
    # The grey dots of all others share one place at the right.
    slots = min(len(names), COLOURED + 1)
    drawn = False
    for place, name in enumerate(names):
        points = [_three(point) for point in panel["systems"].get(name, [])]
        offset = (min(place, COLOURED) - (slots - 1) / 2) * min(0.16, 0.75 / slots)
        xs = [at + offset for at in range(len(points))]
        drawn = drawn or any(math.isfinite(point[0]) for point in points)
        _dots(axes, xs, points, place)
    if not drawn:
        note_empty(axes)


def _dots(
    axes: "Axes", xs: Sequence[float], points: Sequence[tuple[float, ...]], place: int
) -> None:
    grey = place >= COLOURED
    if not grey:
        lows, highs = [point[1] for point in points], [point[2] for point in points]
        bars = axes.vlines(xs, lows, highs, color=COLOURS[place], linewidth=0.9, zorder=2)
        bars.set_gid(f"intervals-{place}")
    axes.plot(
        xs,
        [point[0] for point in points],
        linestyle="none",
        marker="." if grey else MARKERS[place],
        color=GREY if grey else COLOURS[place],
        markersize=2.5 if grey else 4.2,
        markeredgecolor=GREY if grey else "white",
        markeredgewidth=0.3,
        zorder=1 if grey else 3,
        gid=f"scores-{place}",
    )


def _legend(figure: "Figure", labels: Sequence[str], others: int, columns: int) -> None:
    from matplotlib.lines import Line2D

    entries: dict[str, Any] = {}
    for place, label in enumerate(labels):
        entries[label] = Line2D(
            [], [], color=COLOURS[place], marker=MARKERS[place], markersize=4.2, linewidth=0.9
        )
    if others:
        entries[f"{others} others"] = Line2D([], [], color=GREY, marker=".", linestyle="none")
    if len(entries) > 1:
        figure.legend(
            list(entries.values()), list(entries), loc="outside upper center", ncols=columns
        )


def _three(point: Sequence[Any] | None) -> tuple[float, float, float]:
    if not point:
        return (math.nan,) * 3
    score, low, high = point
    return number(score), number(low), number(high)
