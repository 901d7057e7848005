"""Makes the text of an SVG file fit to stand in an HTML page among others.

Only drawing is kept: no scripts, no event handlers, no references to other files.
"""

import re
from xml.etree import ElementTree

_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_DROPPED = {"metadata", "script", "style", "foreignObject", "title"}
_LINK = re.compile(r"url\(\s*['\"]?#([^)'\"]+)['\"]?\s*\)")
_OUTSIDE = re.compile(r"url\(\s*['\"]?(?!#)", re.IGNORECASE)


def inline_svg(text: str, prefix: str, label: str) -> str:
    """An `<svg>` element for HTML.

    Ids get a prefix, since those of two figures are often equal and would then meet. Style sheets
    are dropped, since they would hold for the whole page; the page's own gives the few rules that
    matplotlib's figures need.

    Args:
        text: Text of an SVG file.
        prefix: Put before every id; one per figure on a page.
        label: What the figure shows, for screen readers.

    Raises:
        ValueError: The text is no SVG.
    """
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"no SVG: {error}") from None
    if root.tag != f"{_SVG}svg":
        raise ValueError(f"no SVG: the root is {root.tag}")
    _clean(root, prefix)
    # The page sets the width; the ratio comes from viewBox.
    width = root.attrib.pop("width", "")
    root.attrib.pop("height", None)
    root.attrib.pop("version", None)
    root.set("role", "img")
    root.set("aria-label", label)
    if re.fullmatch(r"[\d.]+pt", width):
        # Smaller on screen than 4/3 px a point would be hard to read.
        root.set("style", f"width:{float(width[:-2]) * 2.0:.0f}px")
    return ElementTree.tostring(root, encoding="unicode")


def _clean(element: ElementTree.Element, prefix: str) -> None:
    element.tag = element.tag.removeprefix(_SVG)
    for name, value in list(element.attrib.items()):
        del element.attrib[name]
        if name == "id":
            element.set("id", f"{prefix}-{value}")
        elif name in {"href", _HREF}:
            if value.startswith("#"):
                element.set("href", f"#{prefix}-{value[1:]}")
            elif value.startswith("data:image/png;base64,"):
                element.set("href", value)
        elif not name.startswith(("{", "on")) and not _OUTSIDE.search(value):
            element.set(name, _LINK.sub(rf"url(#{prefix}-\1)", value))
    for child in list(element):
        # Comments have a function for a tag.
        local = child.tag.removeprefix(_SVG) if isinstance(child.tag, str) else ""
        if not local or local.startswith("{") or local in _DROPPED:
            element.remove(child)
        else:
            _clean(child, prefix)
