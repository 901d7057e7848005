"""Plots made of cells: heat maps of two keys, and wins, ties and losses of all against all.

They take plain data and know no runs.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from meqsum_lightning.report.plots_style import (
    FONT,
    INK,
    ONE_COLUMN,
    TWO_COLUMNS,
    clean,
    ink_on,
    new_figure,
    note_empty,
    number,
    settle,
    short_names,
    shorten,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Cells in mm: with a number of three decimals inside, without, with three lines inside.
_CELL, _BARE_CELL = (9.0, 5.5), (2.7, 2.9)
_OUTCOME_CELL = (8.5, 9.5)
# Room of one letter of 7 pt, in mm.
_LETTER = 1.55
# Cells of few columns stop growing here, in mm.
_WIDEST_CELL = 16.0


@styled()
def heat_maps(
    panels: Mapping[str, Mapping[tuple[Any, Any], Any]],
    *,
    rows: str,
    columns: str,
    score: str,
    decimals: int = 3,
) -> "Figure":
    """A score by two keys, one panel per title, all on one colour scale.

    Cells without a score are hatched. Numbers stand in the cells as long as these are large enough.

    Args:
        panels: For each title the scores by (value of the row key, value of the column key);
            None and NaN are missing.
        rows: Label of the row key.
        columns: Label of the column key.
        score: Label of the colour scale.
        decimals: Digits after the point in the cells.

    Returns:
        The figure: 85 mm wide if the cells fit, else as wide as they need.
    """
    keys = [key for cells in panels.values() for key in cells]
    row_values, column_values = _ordered([key[0] for key in keys]), _ordered([k[1] for k in keys])
    tables = {
        title: np.array(
            [[number(cells.get((r, c))) for c in column_values] for r in row_values], dtype=float
        ).reshape(len(row_values), len(column_values))
        for title, cells in panels.items()
    }
    row_names, column_names = short_names(row_values, 18), short_names(column_values, 18)
    label_room = 7.0 + _LETTER * max((len(name) for name in row_names), default=1)
    cell = _CELL
    if label_room + len(column_values) * cell[0] > TWO_COLUMNS:
        cell = _BARE_CELL
    panel_width = label_room + len(column_values) * cell[0]
    across = max(1, min(len(panels), int(ONE_COLUMN // panel_width)))
    down = max(1, math.ceil(len(panels) / across))
    across = max(1, math.ceil(len(panels) / down))
    upright = cell is _CELL and max((len(n) for n in column_names), default=1) * _LETTER <= cell[0]
    column_room = 4.0 if upright else 3.0 + _LETTER * max((len(n) for n in column_names), default=1)
    height = down * (max(len(row_values), 1) * cell[1] + 10.0 + column_room) + 13.0
    figure = new_figure(max(ONE_COLUMN, across * panel_width), height)
    axes = figure.subplots(down, across, squeeze=False).ravel()
    finite = np.concatenate([t[np.isfinite(t)] for t in tables.values()] or [np.empty(0)])
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if low == high:
        low, high = low - 0.5 * 10.0**-decimals, high + 0.5 * 10.0**-decimals
    mesh = None
    for panel, (title, table) in zip(axes, tables.items(), strict=False):
        panel.set_title(shorten(title, 50 // across), fontweight="bold", loc="left", pad=3.0)
        if not table.size:
            note_empty(panel)
            continue
        mesh = _cells(panel, table, "cividis", low, high)
        _name_sides(panel, row_names, column_names, upright)
        _limit_cells(panel, (ONE_COLUMN / across - label_room) / table.shape[1], cell[1])
        panel.set_xlabel(clean(columns))
        panel.set_ylabel(clean(rows))
        for r, c in zip(*np.nonzero(~np.isfinite(table)), strict=True):
            _hatch(panel, int(r), int(c))
        if cell is _CELL:
            for r, c in zip(*np.nonzero(np.isfinite(table)), strict=True):
                _write(panel, mesh, int(r), int(c), table[r, c], f"{table[r, c]:.{decimals}f}")
    for panel in axes[len(tables) :]:
        panel.set_axis_off()
    if mesh is not None and finite.size:
        bar = figure.colorbar(
            mesh,
            ax=list(axes),
            location="bottom",
            aspect=40,
            shrink=0.8,
            pad=0.02,
            label=clean(score),
        )
        bar.outline.set_visible(False)
        bar.solids.set_edgecolor("face")  # type: ignore[union-attr]
        from matplotlib.ticker import MaxNLocator

        if finite.min() == finite.max():
            bar.set_ticks([float(finite[0])], labels=[f"{finite[0]:.{decimals}f}"])
        else:
            bar.locator = MaxNLocator(4)
            bar.update_ticks()
    return settle(figure)


@styled()
def win_tie_loss(
    names: Sequence[str], outcomes: np.ndarray | Sequence[Any], *, score: str
) -> "Figure":
    """How often each system is above, level with and below each other one, by question.

    A cell's colour is (wins − losses) / questions of the row's system against the column's; its
    numbers are `+wins`, `=ties` and `−losses`, left out where many systems make the cells small.
    Columns carry the numbers of the rows.

    Args:
        names: Names of the systems.
        outcomes: Counts of wins, ties and losses, (systems, systems, 3).
        score: Name of the score that decides.

    Raises:
        ValueError: The shapes disagree.
    """
    counts = np.asarray(outcomes, dtype=float)
    if counts.shape != (len(names), len(names), 3):
        raise ValueError(f"expected outcomes of {len(names)} systems, got {np.shape(outcomes)}")
    labels = [f"{name}  {at}" for at, name in enumerate(short_names(names, 22), start=1)]
    room = 4.0 + _LETTER * max((len(label) for label in labels), default=1)
    cell = _OUTCOME_CELL
    if room + len(names) * cell[0] > TWO_COLUMNS:
        cell = _BARE_CELL
    # A lone system or a pair would stretch over the column: the cells set the size.
    width = max(ONE_COLUMN, room + len(names) * cell[0] + 2.0)
    figure = new_figure(width, max(len(names), 1) * cell[1] + 29.0)
    axes = figure.subplots()
    if not names:
        note_empty(axes)
        return settle(figure)
    total = counts.sum(axis=2)
    net = np.where(total > 0, (counts[..., 0] - counts[..., 2]) / np.maximum(total, 1), np.nan)
    np.fill_diagonal(net, np.nan)
    # PuOr differs in lightness and hue for every kind of colour vision; white is level.
    mesh = _cells(axes, net, "PuOr_r", -1.0, 1.0)
    _name_sides(axes, labels, [str(at) for at in range(1, len(names) + 1)], True)
    _limit_cells(axes, (width - room) / len(names), cell[1])
    for at in range(len(names)):
        axes.add_patch(_rectangle(at, at, facecolor="#E6E6E6", edgecolor="none"))
    for r, c in zip(*np.nonzero(np.isfinite(net)), strict=True):
        if cell is _OUTCOME_CELL:
            wins, ties, losses = (int(value) for value in counts[r, c])
            _write(axes, mesh, int(r), int(c), net[r, c], f"+{wins}\n={ties}\n\u2212{losses}")
    for r, c in zip(*np.nonzero(total == 0), strict=True):
        if r != c:
            _hatch(axes, int(r), int(c))
    axes.xaxis.tick_top()
    if cell is _BARE_CELL:
        axes.set_xticks([at + 0.5 for at in range(4, len(names), 5)])
        axes.set_xticklabels([str(at + 1) for at in range(4, len(names), 5)])
    bar = figure.colorbar(mesh, ax=axes, location="bottom", aspect=40, shrink=0.8, pad=0.03)
    bar.set_label(f"(wins \u2212 losses) / questions\nrow against column, {clean(score)}")
    bar.outline.set_visible(False)
    bar.solids.set_edgecolor("face")  # type: ignore[union-attr]
    bar.set_ticks([-1, -0.5, 0, 0.5, 1])
    return settle(figure)


def _ordered(values: Sequence[Any]) -> list[Any]:
    """Distinct values: numbers by size, then the others in the order in which they came."""
    distinct = list(dict.fromkeys(values))
    numbers = [v for v in distinct if isinstance(v, int | float) and not isinstance(v, bool)]
    return sorted(numbers) + [value for value in distinct if value not in numbers]


def _cells(axes: "Axes", table: np.ndarray, colours: str, low: float, high: float) -> Any:
    """Draws the table with its first row on top, cells of a unit's size."""
    # Edges of the cells' own colour close the seams that viewers of SVG show between them.
    mesh = axes.pcolormesh(
        np.ma.masked_invalid(table),
        cmap=colours,
        vmin=low,
        vmax=high,
        edgecolors="white",
        linewidth=0.4,
    )
    axes.set_xlim(0, table.shape[1])
    axes.set_ylim(table.shape[0], 0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)
    return mesh


def _name_sides(axes: "Axes", rows: Sequence[str], columns: Sequence[str], upright: bool) -> None:
    axes.set_yticks(np.arange(len(rows)) + 0.5, labels=rows)
    axes.set_xticks(np.arange(len(columns)) + 0.5, labels=columns)
    if not upright:
        axes.tick_params(axis="x", labelrotation=90)


def _limit_cells(axes: "Axes", width: float, height: float) -> None:
    """Keeps cells of few columns from stretching over the whole width."""
    if width > _WIDEST_CELL:
        axes.set_aspect(height / _WIDEST_CELL)


def _write(axes: "Axes", mesh: Any, row: int, column: int, value: float, text: str) -> None:
    axes.text(
        column + 0.5,
        row + 0.5,
        text,
        ha="center",
        va="center",
        fontsize=FONT,
        linespacing=1.05,
        color=ink_on(mesh.cmap(mesh.norm(value))),
    )


def _hatch(axes: "Axes", row: int, column: int) -> None:
    patch = _rectangle(row, column, facecolor="white", edgecolor=INK, linewidth=0.0)
    patch.set_hatch("////")
    axes.add_patch(patch)


def _rectangle(row: int, column: int, **look: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column, row), 1, 1, **look)
