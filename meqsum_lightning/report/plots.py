"""The plots of a report by name, and saving them as PNG and SVG.

What is drawn stands in the modules named below; none of them knows runs, none trains.
"""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meqsum_lightning.files import atomic_path
from meqsum_lightning.report.plots_curves import curve, learning_curves
from meqsum_lightning.report.plots_grid import heat_maps, win_tie_loss
from meqsum_lightning.report.plots_groups import scores_by_group
from meqsum_lightning.report.plots_points import forest, pareto_front, score_against_parameters
from meqsum_lightning.report.plots_style import DPI, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "curve",
    "forest",
    "heat_maps",
    "learning_curves",
    "pareto_front",
    "save",
    "score_against_parameters",
    "scores_by_group",
    "svg_text",
    "win_tie_loss",
]

# Dates and versions would make equal figures differ.
_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None, "Format": None, "Type": None},
}


@styled()
def save(figure: "Figure", folder: Path, name: str) -> tuple[Path, Path]:
    """Writes a figure as PNG (200 dpi) and SVG, both atomically; the same input, the same bytes.

    Args:
        figure: What one of the functions here returned.
        folder: Made if it is not there.
        name: File name without its ending.

    Returns:
        The paths of the PNG and of the SVG.
    """
    paths = folder / f"{name}.png", folder / f"{name}.svg"
    for path in paths:
        with atomic_path(path) as temporary:
            temporary.write_bytes(_render(figure, path.suffix.removeprefix(".")))
    return paths


@styled()
def svg_text(figure: "Figure") -> str:
    """A figure as the text of an SVG file, the same as `save` writes."""
    return _render(figure, "svg").decode("utf-8")


def _render(figure: "Figure", kind: str) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=DPI, metadata=_METADATA[kind])
    return buffer.getvalue()
