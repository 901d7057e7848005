"""What all plots share: sizes, fonts, colours, short names and the making of a figure.

It knows no kind of plot; those stand in the modules beside it, saving in `plots`.
"""

import math
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Column widths of common templates, in mm.
ONE_COLUMN, TWO_COLUMNS = 85.0, 178.0
DPI = 200
# Points; nothing is set smaller.
FONT = 7.0
TITLE_FONT = 7.5
# Okabe and Ito, "Color universal design" (2008), without its yellow, which is faint on white; the
# last is a grey that differs from the others in lightness.
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#777777",
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[Any, ...] = (
    "-",
    (0, (4, 1.5)),
    (0, (1, 1)),
    (0, (4, 1, 1, 1)),
    (0, (6, 1.5)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (2, 2)),
    (0, (7, 1, 2, 1)),
)
GREY = "#BBBBBB"
INK = "#222222"
# Tried after the main font, for letters that it lacks; only those installed are named.
FALLBACK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans",
    "Arial Unicode MS",
    "Microsoft YaHei",
    "PingFang SC",
)

_STYLE: dict[str, Any] = {
    "font.size": FONT,
    "axes.titlesize": TITLE_FONT,
    "axes.labelsize": FONT,
    "xtick.labelsize": FONT,
    "ytick.labelsize": FONT,
    "legend.fontsize": FONT,
    "figure.titlesize": TITLE_FONT,
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 1.5,
    "xtick.minor.width": 0.4,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "lines.linewidth": 1.0,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "legend.columnspacing": 1.0,
    "legend.labelspacing": 0.3,
    "hatch.linewidth": 0.4,
    "hatch.color": "#999999",
    # Names hold dollar signs that are no formulas.
    "text.parse_math": False,
    "axes.unicode_minus": True,
    # Same input, same bytes; letters as outlines look the same without the font.
    "svg.hashsalt": "meqsum-lightning",
    "svg.fonttype": "path",
}


@contextmanager
def styled() -> Iterator[None]:
    """Sets fonts, sizes and colours for the block, whatever the user's own settings are.

    Serves as a decorator too: `@styled()`.
    """
    from matplotlib import font_manager, style

    present = {font.name for font in font_manager.fontManager.ttflist}
    family = ["DejaVu Sans", *(name for name in FALLBACK_FONTS if name in present)]
    with style.context(["default", {**_STYLE, "font.family": family}]), warnings.catch_warnings():
        # A letter that no font has is drawn as a box; the plot still stands.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        warnings.filterwarnings("ignore", message="constrained_layout not applied")
        yield


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure on the Agg canvas, without pyplot.

    Args:
        width: Width in mm.
        height: Height in mm.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 25.4, height / 25.4), layout="constrained")
    FigureCanvasAgg(figure)
    engine: Any = figure.get_layout_engine()
    engine.set(w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.03)
    return figure


def settle(figure: "Figure") -> "Figure":
    """Lays the figure out once and for all: what is measured now is what gets printed."""
    # How many ticks fit is asked of the settings at every drawing, unless the axes know the size.
    for axes in figure.axes:
        axes.tick_params(labelsize=FONT)
    # Ticks come up while drawing and change the room that labels need: the second pass knows them.
    figure.draw_without_rendering()
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def clean(text: object) -> str:
    """A name on one line, with nothing in it that can't be drawn or written."""
    letters = str(text).encode("utf-8", "replace").decode("utf-8")
    visible = (
        " " if unicodedata.category(letter) in {"Cc", "Zl", "Zp"} else letter for letter in letters
    )
    return " ".join("".join(visible).split())


def shorten(text: object, width: int) -> str:
    """A cleaned name of at most `width` columns; what is left out in the middle shows as `…`.

    Both ends are kept, since names of sweeps share their beginnings. East Asian letters take two
    columns.
    """
    name = clean(text)
    if columns_of(name) <= width:
        return name
    front, back = math.ceil((width - 1) / 2), (width - 1) // 2
    start, end = "", ""
    for letter in name:
        if columns_of(start + letter) > front:
            break
        start += letter
    for letter in reversed(name):
        if columns_of(letter + end) > back:
            break
        end = letter + end
    return f"{start}…{end}"


def short_names(names: Sequence[object], width: int) -> list[str]:
    """Shortened names; those that became equal are numbered, so that they stay apart.

    Where a name is too long, first goes what all names begin and end with.
    """
    texts = [clean(name) for name in names]
    if any(columns_of(text) > width for text in texts):
        texts = _without_shared(texts)
    shown = [shorten(text, width) for text in texts]
    seen: dict[str, int] = {}
    for at, name in enumerate(shown):
        if shown.count(name) > 1 or name in seen:
            seen[name] = seen.get(name, 0) + 1
            number = f" ({seen[name]})"
            shown[at] = shorten(texts[at], width - len(number)) + number
    return shown


def number(value: Any) -> float:
    """A float; NaN for what is missing: None, an empty string, text that is no number, inf."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return math.nan
    return found if math.isfinite(found) else math.nan


def padded(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    """Ends of an axis over the finite values, with room at both ends, never of zero length."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    room = (high - low) * share or max(abs(high), 1.0) * 0.02
    return low - room, high + room


def ink_on(colour: Sequence[float]) -> str:
    """Black or white, whichever stands out more on a colour.

    The contrast is that of WCAG 2.2: (L1 + 0.05) / (L2 + 0.05) of relative luminances.

    Args:
        colour: Red, green and blue in [0, 1].
    """
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else "#FFFFFF"


def note_empty(axes: "Axes") -> None:
    """Says in the middle of the axes that there is nothing to draw."""
    axes.text(0.5, 0.5, "no values", transform=axes.transAxes, ha="center", va="center")


def legend_columns(labels: Sequence[str], most: int = 3) -> int:
    """How many legend columns of 7 pt fit into a column of text."""
    widest = max((columns_of(label) for label in labels), default=1)
    # A letter is 1.45 mm wide on average, a line sample with its gaps 9 mm.
    fitting = int((ONE_COLUMN - 2.0) / (widest * 1.45 + 9.0))
    return max(1, min(most, fitting, len(labels)))


def columns_of(text: str) -> int:
    """Width of a text in columns: East Asian letters take two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _without_shared(names: Sequence[str]) -> list[str]:
    """Names without the parts that all begin or end with, `…` in their place."""
    if len(set(names)) < 2:
        return list(names)
    front = _common_start(names)
    # Cut where a part ends, so that `r=` stays before 16.
    start = max(front.rfind(mark) for mark in ",;. /") + 1
    rests = [name[start:] for name in names]
    back = _common_start([rest[::-1] for rest in rests])[::-1]
    found = [at for at in (back.find(mark) for mark in ",; /") if at >= 0]
    end = len(back) - min(found) if found else 0
    return [
        f"{'…' if start else ''}{rest[: len(rest) - end]}{'…' if end else ''}" for rest in rests
    ]


def _common_start(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)
    pairs = enumerate(zip(first, last, strict=False))
    return first[: next((at for at, (a, b) in pairs if a != b), min(len(first), len(last)))]
