"""The page is one piece of sound HTML, and nothing that goes in gets out unescaped."""

import shutil
import subprocess
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meqsum_lightning.report.page import (
    Example,
    Examples,
    Plot,
    Section,
    Table,
    Text,
    marked,
    render_page,
    sort_value,
)
from meqsum_lightning.report.page_svg import inline_svg

VOID = {"meta", "br", "img", "link", "input", "hr"}
HOSTILE = [
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "{{ 7 * 7 }} {% include 'page.css' %}",
    "</table></main><!-- -->",
    "]]></style></script>&lt;&amp;",
    "\x00\ud800 \u202e日本語 ☤",
    '=HYPERLINK("http://evil")',
]
SVG = (
    '<?xml version="1.0"?><!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" '
    '"http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd">'
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    'width="241pt" height="120pt" viewBox="0 0 241 120" onload="alert(1)">'
    "<style>* {fill: red}</style><script>alert(2)</script><!-- note -->"
    '<defs><clipPath id="c1"><rect width="9" height="9"/></clipPath><path id="m1" d="M 0 0"/></defs>'
    '<g clip-path="url(#c1)" style="fill: url(http://evil/x)"><use xlink:href="#m1"/>'
    '<use href="http://evil/y"/><text>a&lt;b</text></g></svg>'
)


class Reader(HTMLParser):
    """Checks that elements close in order and keeps what tests ask for."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self.feed(page)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, (tag, self.open)
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open:
            self.text.setdefault(self.open[-1], []).append(data)

    def count(self, tag: str) -> int:
        return sum(found == tag for found, _ in self.tags)


def everything(text: str) -> list[Section]:
    """A section with every kind of block, and the text at every place that takes one."""
    return [
        Section(
            text,
            [
                Text(f"{text}\n\nSecond paragraph."),
                Text(text, warning=True),
                Table(
                    [text, "n"], [[text, 1], [text, "0.5 ± 0.1"]], text, [text], frozenset({(0, 1)})
                ),
                Plot(SVG, text),
                Plot(caption=text, png=b"\x89PNG"),
                Examples(text, text, [Example(text, text, text, text, text)], text),
            ],
        )
    ]


def test_a_page_has_its_parts_in_order():
    page = render_page("Ablation", [*everything("plain"), Section("Second", [Text("end")])], "made")
    reader = Reader(page)
    assert page.startswith("<!DOCTYPE html>")
    assert [t.strip() for t in reader.text["h2"]] == ["plain", "Second"]
    links = [a["href"] for tag, a in reader.tags if tag == "a"]
    sections = [a["id"] for tag, a in reader.tags if tag == "section"]
    assert links == [f"#{name}" for name in sections] == ["#section-1", "#section-2"]
    assert "".join(reader.text["footer"]) == "made"
    assert [t for t in reader.text["td"] if t.strip()] == ["plain", "plain", "0.5 ± 0.1"]
    assert reader.text["strong"] == ["1"]
    assert [a.get("data-sort") for tag, a in reader.tags if tag == "td"] == [
        None,
        "1.0",
        None,
        "0.5",
    ]
    warnings = [a for tag, a in reader.tags if a.get("class") == "warning"]
    assert len(warnings) == 1 and warnings[0]["role"] == "note"


def test_a_page_without_sections_stands():
    reader = Reader(render_page("Nothing", []))
    assert reader.count("section") == reader.count("nav") == 0


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_come_out_as_text(text: str):
    plain, reader = (
        Reader(render_page("x", everything("x"), "x")),
        Reader(render_page(text, everything(text), text)),
    )
    # Same elements as with a harmless text, whatever was put in (marks depend on its words).
    assert [t for t, _ in reader.tags if t != "mark"] == [t for t, _ in plain.tags if t != "mark"]
    shown = text.replace("\x00", "\ufffd").replace("\ud800", "\ufffd")
    assert "".join(reader.text["title"]) == shown == "".join(reader.text["h2"])
    for _, attributes in reader.tags:
        assert not any(name.startswith("on") for name in attributes)
    render_page(text, everything(text), text).encode("utf-8")


@settings(max_examples=25, deadline=None)
@given(st.text(alphabet=st.characters(), max_size=60))
def test_no_text_opens_an_element(text: str):
    plain, reader = (
        Reader(render_page("x", everything("x"))),
        Reader(render_page("x", everything(text))),
    )
    drop = {"mark", "p"}  # an empty text has no paragraph
    kept = [t for t, a in reader.tags if t not in drop and a.get("class") != "caption"]
    wanted = [t for t, a in plain.tags if t not in drop and a.get("class") != "caption"]
    optional = {"caption", "figcaption", "h3"}
    assert [t for t in kept if t not in optional] == [t for t in wanted if t not in optional]


def test_a_very_long_text_is_kept_whole():
    text = "<b>" + "x" * 100_000
    reader = Reader(render_page("long", everything(text)))
    assert "".join(reader.text["td"]).count("x") == 200_000
    assert reader.count("b") == 0


def test_the_page_asks_for_nothing():
    page = render_page("x", everything("http://example.org/a"))
    reader = Reader(page)
    for tag, attributes in reader.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base"}
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png"))
        assert "http" not in (attributes.get("style") or "")
    for kind in ("style", "script"):
        code = "".join(reader.text[kind])
        assert "http" not in code and "@import" not in code and "url(" not in code
    policy = [a["content"] for t, a in reader.tags if t == "meta" and "http-equiv" in a]
    assert policy and policy[0].startswith("default-src 'none'")


def test_two_figures_never_share_an_id():
    plots = [Plot(SVG, "one"), Plot(SVG, "two")]
    reader = Reader(render_page("x", [Section("a", plots), Section("b", plots)]))
    ids = [a["id"] for _, a in reader.tags if "id" in a]
    assert len(ids) == len(set(ids)) == 2 + 4 * 2
    for tag, attributes in reader.tags:
        if tag == "use" and "href" in attributes:
            assert attributes["href"].removeprefix("#") in ids


def test_inlined_figures_keep_their_drawing_only():
    text = inline_svg(SVG, "p", 'a "label" <b>')
    reader = Reader(text)
    assert [t for t, _ in reader.tags] == [
        "svg",
        "defs",
        "clippath",
        "rect",
        "path",
        "g",
        "use",
        "use",
        "text",
    ]
    svg, group, use, outside = (reader.tags[at][1] for at in (0, 5, 6, 7))
    assert svg["viewbox"] == "0 0 241 120" and svg["aria-label"] == 'a "label" <b>'
    assert svg["style"] == "width:482px" and "onload" not in svg and "height" not in svg
    assert group == {"clip-path": "url(#p-c1)"}
    assert use == {"href": "#p-m1"} and outside == {}
    assert reader.text["text"] == ["a<b"]


@pytest.mark.parametrize("text", ["", "<svg", "<html/>", "plain"])
def test_what_is_no_svg_is_refused(text: str):
    with pytest.raises(ValueError, match="no SVG"):
        inline_svg(text, "p", "label")


def test_a_ragged_table_is_refused():
    with pytest.raises(ValueError, match="row 1 of table 'scores' has 1 cells; expected 2"):
        render_page("x", [Section("a", [Table(["a", "b"], [[1, 2], [3]], "scores")])])


def test_words_of_the_question_are_marked():
    html = marked("What helps Gout & <pain>?", "my GOUT: what pain")
    assert html == ("<mark>What</mark> helps <mark>Gout</mark> &amp; &lt;<mark>pain</mark>&gt;?")
    assert marked("art", "party") == "art"
    assert marked("", "") == ""


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("0.312 ± 0.004", "0.312"),
        ("\u22121.5", "-1.5"),
        ("1,024", "1024.0"),
        ("2.5M", "2500000.0"),
        (".5", "0.5"),
        (7, "7.0"),
        ("1e-3", "0.001"),
        ("+0.020 *", "0.02"),
        ("qv", ""),
        ("–", ""),
        ("", ""),
        ("5 Meter", "5.0"),
    ],
)
def test_cells_sort_by_the_number_they_begin_with(cell: object, value: str):
    assert sort_value(cell) == value


NODE_SORT = """
class Cell { constructor(t, n) { this.textContent = t; this.n = n; this.attr = {}; this.kids = [t]; }
  getAttribute(k) { return k === "data-sort" ? this.n : (this.attr[k] ?? null); }
  setAttribute(k, v) { this.attr[k] = v; } removeAttribute(k) { delete this.attr[k]; }
  get firstChild() { return this.kids[0]; } appendChild(c) {
    if (c.parent) c.parent.kids.splice(c.parent.kids.indexOf(c), 1); this.kids.push(c); c.parent = this; } }
class Node2 extends Cell { addEventListener(_, f) { this.click = f; }
  appendChild(c) { head.kids.shift(); this.kids.push(c); } }
const head = new Cell("score", null);
let button;
const rows = [["0.2", "0.2"], ["\\u2013", null], ["0.9", "0.9"], ["-1", "-1"], ["word", null]]
  .map(([t, n]) => ({ cells: [new Cell(t, n)] }));
const body = { rows, appendChild(r) { rows.splice(rows.indexOf(r), 1); rows.push(r); } };
globalThis.document = { querySelectorAll: () => [{ tBodies: [body], tHead: { rows: [{ cells: [head] }] } }],
  createElement: () => (button = new Node2("", null)) };
SCRIPT
const seen = () => rows.map((r) => r.cells[0].textContent).join(" ");
button.click(); console.log(head.attr["aria-sort"], seen());
button.click(); console.log(head.attr["aria-sort"], seen());
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_a_click_sorts(tmp_path: Path):
    script = files("meqsum_lightning.report").joinpath("templates/page.js").read_text("utf-8")
    path = tmp_path / "sort.js"
    path.write_text(NODE_SORT.replace("SCRIPT", script.replace('"use strict";', "")), "utf-8")
    done = subprocess.run(
        ["node", str(path)], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.stdout.splitlines() == [
        "descending word 0.9 0.2 -1 –",
        "ascending -1 0.2 0.9 word –",
    ], done.stderr


@pytest.mark.browser
def test_chromium_draws_the_page(tmp_path: Path):
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next((found for found in map(shutil.which, names) if found), None)
    if browser is None:
        pytest.skip("no Chromium here")
    page, picture = tmp_path / "page.html", tmp_path / "page.png"
    page.write_text(render_page("Ablation", everything("plain")), "utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--screenshot={picture}"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=900,1200", page.as_uri()]
    subprocess.run(command, capture_output=True, timeout=60, check=True)
    assert picture.stat().st_size > 5_000
