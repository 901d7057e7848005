"""One self-contained HTML page from texts, tables, plots and examples.

It knows nothing about runs and asks for nothing from the network; the looks stand in `templates/`.
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from meqsum_lightning.report.page_svg import inline_svg

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

# What a cell begins with when it holds a number: "0.312 ± 0.004", "−1.5", "1,024".
_NUMBER = re.compile(
    r"\s*([+\-\u2212]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][+\-]?\d+)?)\s*([kMB](?!\w))?"
)
_UNITS = {None: 1.0, "k": 1e3, "M": 1e6, "B": 1e9}
_WORD = re.compile(r"\w+(?:['\u2019-]\w+)*")
# XML and HTML have no place for these characters.
_UNWRITABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Text:
    """Paragraphs.

    Attributes:
        text: The text; empty lines part paragraphs.
        warning: Whether it stands out.
    """

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Table:
    """A table that a click on a column's head sorts.

    Attributes:
        header: Names of the columns.
        rows: Cells, as many in each row as there are columns.
        caption: What the table shows.
        notes: Lines below it.
        bold: Positions (row, column) of cells in bold.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""
    notes: Sequence[str] = ()
    bold: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True)
class Plot:
    """A figure.

    Attributes:
        svg: Text of an SVG file; drawn by a program, not taken from data.
        caption: What the figure shows; read to those who can't see it.
        png: Bytes of a PNG file, used where `svg` is empty.
    """

    svg: str = ""
    caption: str = ""
    png: bytes = b""


@dataclass(frozen=True)
class Example:
    """A question with what two systems made of it.

    Attributes:
        question: The question.
        reference: The reference summary.
        first: Summary of the first system.
        second: Summary of the second system.
        title: A line above, such as the row's id and both scores.
    """

    question: str
    reference: str
    first: str
    second: str
    title: str = ""


@dataclass(frozen=True)
class Examples:
    """Examples side by side; in every summary the words that stand in the question are marked.

    Attributes:
        first: Name of the first system.
        second: Name of the second system.
        examples: The examples, in order.
        caption: Why these were chosen.
    """

    first: str
    second: str
    examples: Sequence[Example]
    caption: str = ""


Block = Text | Table | Plot | Examples


@dataclass(frozen=True)
class Section:
    """A part of the page with an entry in the table of contents.

    Attributes:
        title: Its heading.
        blocks: What stands in it, in order.
    """

    title: str
    blocks: Sequence[Block]


def render_page(title: str, sections: Sequence[Section], footer: str = "") -> str:
    """The page as HTML text; every text that goes in comes out escaped.

    Args:
        title: Heading and window title.
        sections: The parts of the page, in order.
        footer: A line at the end.

    Returns:
        A page that opens without a server and without network, prints, and works without
        JavaScript except for sorting.

    Raises:
        ValueError: A row of a table has other than its header's number of cells, or a plot's SVG
            is none.
    """
    page = _environment().get_template("page.html.j2")
    plots = {
        (at, place): _picture(block, f"s{at}b{place}")
        for at, section in enumerate(sections)
        for place, block in enumerate(section.blocks)
        if isinstance(block, Plot)
    }
    for section in sections:
        for block in section.blocks:
            if isinstance(block, Table):
                _check(block)
    return page.render(title=title, sections=sections, footer=footer, plots=plots)


def marked(summary: str, question: str) -> "Markup":
    """A summary as HTML with the words that stand in the question, in any case, in `<mark>`."""
    from markupsafe import Markup, escape

    known = {word.casefold() for word in _WORD.findall(question)}
    pieces, end = [], 0
    for found in _WORD.finditer(summary):
        pieces.append(escape(writable(summary[end : found.start()])))
        word = escape(writable(found.group()))
        if found.group().casefold() in known:
            word = Markup("<mark>") + word + Markup("</mark>")
        pieces.append(word)
        end = found.end()
    return Markup("").join([*pieces, escape(writable(summary[end:]))])


def sort_value(cell: object) -> str:
    """The number that a cell begins with, for sorting; empty if it begins with none."""
    found = _NUMBER.match(str(cell))
    if not found:
        return ""
    digits = found.group(1).replace(",", "").replace("\u2212", "-")
    return repr(float(digits) * _UNITS[found.group(2)])


def writable(text: object) -> str:
    """Text without characters that a page can't hold; each leaves a replacement character."""
    return _UNWRITABLE.sub("\ufffd", str(text))


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("meqsum_lightning.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"sort_value": sort_value, "paragraphs": _paragraphs}
    environment.globals |= {"marked": marked, "kind": lambda block: type(block).__name__}
    return environment


def _finalize(value: object) -> object:
    """Leaves finished HTML alone; all else becomes writable text, which is then escaped."""
    from markupsafe import Markup

    return value if isinstance(value, Markup) else writable(value)


def _picture(plot: Plot, prefix: str) -> "Markup":
    from markupsafe import Markup, escape

    if plot.svg:
        return Markup(inline_svg(plot.svg, prefix, writable(plot.caption)))
    data = base64.b64encode(plot.png).decode("ascii")
    return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(
        escape(writable(plot.caption)), data
    )


def _check(table: Table) -> None:
    for at, row in enumerate(table.rows):
        if len(row) != len(table.header):
            raise ValueError(
                f"row {at} of table {table.caption!r} has {len(row)} cells; "
                f"expected {len(table.header)}"
            )


def _paragraphs(text: str) -> list[str]:
    return [part for part in re.split(r"\n\s*\n", text.strip()) if part]
