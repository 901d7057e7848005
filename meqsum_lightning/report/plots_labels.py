"""Names beside points, placed so that no name covers another one or a point."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from meqsum_lightning.report.plots_style import FONT, GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Directions in the order of preference, and distances in points.
_DIRECTIONS = (90, 270, 45, 135, 315, 225, 0, 180)
_DISTANCES = (4.0, 9.0, 15.0, 22.0, 30.0)
_MARKER = 3.0


def place_labels(
    axes: "Axes",
    labels: Sequence[tuple[float, float, str]],
    points: Sequence[tuple[float, float]],
) -> list[Any]:
    """Writes names near their points, in order of importance.

    A name goes to the first of several places around its point where it lies inside the axes and
    touches no other name and no point; a name far from its point gets a thin line to it. A name
    without such a place is left out.

    Args:
        axes: Axes of a figure whose layout is settled.
        labels: (x, y, name) in data coordinates.
        points: Everything that names must not cover, in data coordinates.

    Returns:
        The annotations that found a place.
    """
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    pixels = axes.get_figure(root=True).dpi / 72.0  # type: ignore[union-attr]
    frame = axes.get_window_extent()
    half = _MARKER * pixels
    taken = [
        Bbox.from_extents(x - half, y - half, x + half, y + half)
        for x, y in axes.transData.transform(list(points))
    ]
    placed = []
    for x, y, name in labels:
        note = axes.annotate(
            name, (x, y), xytext=(0, 0), textcoords="offset points", fontsize=FONT, zorder=4
        )
        # Lines end before the letters; the halo doesn't count as part of the name's box.
        note.set_path_effects([withStroke(linewidth=1.5, foreground="white")])
        note.set_in_layout(False)
        if _settle(note, taken, frame):
            taken.append(note.get_window_extent().padded(0.8 * pixels))
            placed.append(note)
        else:
            note.remove()
    return placed


def _settle(note: Any, taken: Sequence[Any], frame: Any) -> bool:
    """Moves the name to its first free place; False if there is none."""
    for distance in _DISTANCES:
        for angle in _DIRECTIONS:
            across, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            note.set_position((across * distance, up * distance))
            note.set_horizontalalignment(_side(across, "left", "right", "center"))
            note.set_verticalalignment(_side(up, "bottom", "top", "center"))
            # Text alone: the box of an annotation with an arrow holds the arrow too.
            box = note.get_window_extent()
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1
            inside = inside and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                if distance > _DISTANCES[1]:
                    _tie(note)
                return True
    return False


def _tie(note: Any) -> None:
    """Draws a thin line from the point to the name."""
    end = note.get_position()
    scale = 0.92
    note.axes.annotate(
        "",
        note.xy,
        xytext=(end[0] * scale, end[1] * scale),
        textcoords="offset points",
        arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.5, "shrinkB": 2.5},
        zorder=2,
    ).set_in_layout(False)


def _side(part: float, positive: str, negative: str, level: str) -> str:
    if abs(part) < 0.3:
        return level
    return positive if part > 0 else negative
