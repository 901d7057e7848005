"""Plots of points with intervals: score against trainable parameters, differences to a baseline.

They take plain data and know no runs.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from meqsum_lightning.report.plots_labels import place_labels
from meqsum_lightning.report.plots_style import (
    COLOURS,
    GREY,
    INK,
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

Interval = tuple[Any, Any] | None
# Points beyond the front that get a name, while there is room.
_NAMED = 6


def pareto_front(parameters: Sequence[Any], scores: Sequence[Any]) -> list[int]:
    """Positions of the points that no other one beats at the same or a smaller size.

    Args:
        parameters: Trainable parameters.
        scores: Scores, the higher the better; points with a missing value are never on the front.

    Returns:
        Positions by increasing size; of equal points the first.
    """
    points = [
        (size, -score, at)
        for at, (size, score) in enumerate(
            zip(map(number, parameters), map(number, scores), strict=True)
        )
        if math.isfinite(size) and math.isfinite(score)
    ]
    front: list[int] = []
    best = -math.inf
    for _, negative, at in sorted(points):
        if -negative > best:
            best = -negative
            front.append(at)
    return front


@styled()
def score_against_parameters(
    names: Sequence[str],
    parameters: Sequence[Any],
    scores: Sequence[Any],
    intervals: Sequence[Interval] | None = None,
    *,
    score: str,
    groups: Sequence[str] | None = None,
) -> "Figure":
    """Quality against size, with intervals and the Pareto front.

    Names stand beside the points of the front and then beside others, highest score first, where
    they overlap neither each other nor a point; without such a place a name is left out.

    Args:
        names: One per system.
        parameters: Trainable parameters; systems with 0 stand left of the logarithmic axis.
        scores: Scores, the higher the better.
        intervals: (low, high) of each score, None where unknown.
        score: Label of the scores.
        groups: A group per system, told apart by colour and marker.

    Returns:
        The figure, 85 mm wide; systems without a size or a score are left out.
    """
    sizes, values = [number(p) for p in parameters], [number(s) for s in scores]
    kept = [
        at
        for at in range(len(names))
        if math.isfinite(sizes[at]) and sizes[at] >= 0 and math.isfinite(values[at])
    ]
    members = [clean(group) for group in groups] if groups else [""] * len(names)
    kinds = list(dict.fromkeys(members[at] for at in kept))
    figure = new_figure(ONE_COLUMN, 66.0 + 3.2 * math.ceil(len(kinds) / 3) * bool(groups))
    axes = figure.subplots()
    axes.set_xlabel("trainable parameters")
    axes.set_ylabel(clean(score))
    if not kept:
        note_empty(axes)
        return settle(figure)
    zero = _size_axis(axes, [sizes[at] for at in kept])
    xs = {at: sizes[at] or zero for at in kept}
    ends = {at: _ends(intervals[at] if intervals else None) for at in kept}
    axes.set_ylim(*padded([v for at in kept for v in (values[at], *ends[at])], 0.1))
    for at in kept:
        axes.plot([xs[at]] * 2, ends[at], color=GREY, linewidth=0.8, zorder=1, gid=f"interval-{at}")
    front = pareto_front([xs.get(at) for at in range(len(names))], values)
    if len(front) > 1:
        axes.step(
            [xs[at] for at in front] + [axes.get_xlim()[1]],
            [values[at] for at in front] + [values[front[-1]]],
            where="post",
            color=INK,
            linewidth=0.8,
            linestyle=(0, (3, 1.5)),
            zorder=2,
            label="Pareto front",
            gid="front",
        )
    shown_kinds = short_names(kinds, 24)
    for place, kind in enumerate(kinds):
        chosen = [at for at in kept if members[at] == kind]
        axes.plot(
            [xs[at] for at in chosen],
            [values[at] for at in chosen],
            linestyle="none",
            marker=MARKERS[place % len(MARKERS)],
            markeredgecolor="white",
            markeredgewidth=0.4,
            markersize=5.0,
            color=COLOURS[place % len(COLOURS)],
            zorder=3,
            label=shown_kinds[place] or None,
            gid=f"points-{place}",
        )
    entries = ["Pareto front"] * (len(front) > 1) + [kind for kind in shown_kinds if kind]
    if entries:
        figure.legend(loc="outside upper center", ncols=legend_columns(entries))
    settle(figure)
    others = sorted(set(kept) - set(front), key=lambda at: -values[at])[:_NAMED]
    shown = short_names(names, 22)
    place_labels(
        axes,
        [(xs[at], values[at], shown[at]) for at in [*reversed(front), *others]],
        [(xs[at], values[at]) for at in kept],
    )
    return figure


@styled()
def forest(
    names: Sequence[str],
    effects: Sequence[Any],
    intervals: Sequence[Interval],
    significant: Sequence[bool | None],
    *,
    baseline: str,
    score: str,
    detectable: float | Sequence[Any] | None = None,
) -> "Figure":
    """Differences to the baseline with their intervals, one row per system.

    A filled diamond is a significant difference, a hollow circle one that is not. The grey band
    holds the differences that are smaller than the minimum detectable effect.

    Args:
        names: One per system.
        effects: Score of the system minus that of the baseline.
        intervals: (low, high) of each effect, None where unknown.
        significant: Whether the corrected test calls the difference real; None: not tested.
        baseline: Name of the baseline.
        score: Name of the score.
        detectable: Minimum detectable effect, one or one per system; without end or None: no band.

    Returns:
        The figure, 85 mm wide, as tall as the rows need; effects are written at the right.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch, Rectangle

    count = len(names)
    values = [number(effect) for effect in effects]
    ends = [_ends(interval) for interval in intervals]
    bands = detectable if isinstance(detectable, Sequence) else [detectable] * count
    widths = [number(width) for width in bands]
    figure = new_figure(ONE_COLUMN, 3.6 * max(count, 1) + 24.0)
    axes = figure.subplots()
    axes.set_xlabel(f"difference in {clean(score)} to {short_names([baseline], 30)[0]}")
    drawn = [v for at in range(count) for v in (values[at], *ends[at])]
    drawn += [v for width in widths for v in (-width, width)]
    if not any(map(math.isfinite, values)):
        note_empty(axes)
    axes.set_xlim(*padded([0.0, *drawn]))
    axes.set_ylim(max(count, 1) - 0.5, -0.5)
    for at, width in enumerate(widths):
        if math.isfinite(width):
            band = Rectangle((-width, at - 0.5), 2 * width, 1, facecolor="#E8E8E8", zorder=0)
            band.set_gid(f"band-{at}")
            axes.add_patch(band)
    axes.axvline(0.0, color=INK, linewidth=0.6, zorder=1)
    for at in range(count):
        real = bool(significant[at])
        axes.plot(ends[at], [at, at], color=COLOURS[0], linewidth=1.1, gid=f"interval-{at}")
        axes.plot(
            [values[at]],
            [at],
            marker="D" if real else "o",
            markersize=4.2,
            color=COLOURS[0],
            markerfacecolor=COLOURS[0] if real else "white",
            linestyle="none",
            zorder=3,
            gid=f"effect-{at}",
        )
    axes.set_yticks(range(count), labels=short_names(names, 22))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    right = axes.secondary_yaxis("right")
    right.set_yticks(range(count), labels=[_signed(value) for value in values])
    right.tick_params(length=0)
    right.spines["right"].set_visible(False)
    look: dict[str, Any] = {"color": COLOURS[0], "markersize": 4.2, "linewidth": 1.1}
    keys: list[Any] = [
        Line2D([], [], marker="D", label="significant", **look),
        Line2D([], [], marker="o", markerfacecolor="white", label="not significant", **look),
    ]
    if any(map(math.isfinite, widths)):
        keys.append(Patch(facecolor="#E8E8E8", label="not detectable"))
    figure.legend(handles=keys, loc="outside upper center", ncols=3)
    return settle(figure)


def _ends(interval: Interval) -> tuple[float, float]:
    return (number(interval[0]), number(interval[1])) if interval else (math.nan, math.nan)


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "\u2212") if math.isfinite(value) else "–"


def _size_axis(axes: "Axes", sizes: Sequence[float]) -> float:
    """Makes the logarithmic axis, with a place for zero left of it, and returns that place."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    positive = [size for size in sizes if size > 0] or [1.0]
    low, high = min(positive), max(positive)
    span = max(math.log10(high / low), 0.5)
    left, right = low / 10 ** (0.08 * span), high * 10 ** (0.08 * span)
    zero = low / 10 ** (0.22 * span)
    axes.set_xscale("log")
    if 0 in sizes:
        axes.axvline(low / 10 ** (0.12 * span), color=GREY, linewidth=0.6, linestyle=(0, (1, 1.5)))
        left = zero / 10 ** (0.08 * span)
    axes.set_xlim(left, right)
    ticks = [tick for tick in _log_ticks(low, high, span) if left <= tick <= right]
    ticks = [zero, *ticks] if 0 in sizes else ticks
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda x, _: "0" if 0 in sizes and x <= zero else short_count(x))
    )
    axes.xaxis.set_minor_formatter(NullFormatter())
    if 0 in sizes or span < 1:
        axes.set_xticks([], minor=True)
    return zero


def _log_ticks(low: float, high: float, span: float) -> list[float]:
    """Ticks at 1, (2,) (5) × 10^n, as few decades as a column has room for."""
    parts = (1, 2, 5) if span <= 2.3 else (1,)
    first, last = math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1
    step = max(1, math.ceil((last - first) / 9))
    ticks = [part * 10.0**power for power in range(first, last + 1, step) for part in parts]
    inside = [tick for tick in ticks if low * 0.9 <= tick <= high * 1.1]
    return inside if len(inside) > 1 else sorted({low, high})


def short_count(value: float) -> str:
    """A count as 950, 1.5k, 20M or 3B."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        # 999,999 rounds to 1M, not to 1000k.
        if value >= unit * 0.9995:
            return f"{value / unit:.3g}{name}"
    return f"{value:.3g}"
