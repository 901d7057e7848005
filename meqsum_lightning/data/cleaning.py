"""The cleaning steps of `data.clean`: the same for training and for prediction.

Nothing is cleaned unless asked for; reading files is `tables.py`.
"""

import re
from collections.abc import Sequence
from typing import Literal

Step = Literal["markers", "escapes", "blanks"]
ALL_STEPS: tuple[Step, ...] = ("escapes", "markers", "blanks")

# [^\S\n] is any blank but the line feed: `^` knows no other line end.
_MARKERS = re.compile(r"^(?:[^\S\n]*\b(?:SUBJECT|MESSAGE)[^\S\n]*:)+[^\S\n]*", re.I | re.M)
_ESCAPE = re.compile(r"_x([0-9A-Fa-f]{4})_")
_SURROGATE = re.compile("[\ud800-\udfff]")


def clean_text(text: str, steps: Sequence[str]) -> str:
    """Apply cleaning steps, always in the order escapes, markers, blanks; twice changes nothing.

    Args:
        text: Any text.
        steps: Any of `escapes` (`_x000D_` and the like, left by spreadsheet files that were read
            by something that doesn't know them, become what they stand for), `markers` (a line's
            leading `SUBJECT:` and `MESSAGE:` go, what follows stays) and `blanks` (runs of blanks
            become one space, runs of line breaks one line break, none at either end).

    Returns:
        The cleaned text; without steps the text itself.
    """
    if "escapes" in steps:
        text = decode_escapes(text, repeat=True)
    if "markers" in steps:
        text = _MARKERS.sub("", text)
    if "blanks" in steps:
        text = re.sub(r"[^\S\n]+", " ", text)
        text = re.sub(r" ?\n[ \n]*", "\n", text).strip(" \n")
    return text


def decode_escapes(text: str, *, repeat: bool = False) -> str:
    r"""Decode `_xHHHH_`, the way in which xlsx stores characters that XML can't hold.

    Args:
        text: Any text. Carriage returns that appear become line feeds, other control characters
            go: neither means anything inside a cell.
        repeat: Decode until nothing is left, so that `_x005F_x000D_` ends as a line feed too.

    Returns:
        The text without escapes.

    Example:
        >>> decode_escapes("a_x000D_\nb")
        'a\nb'
    """
    if "_x" not in text:
        return text
    while (decoded := _ESCAPE.sub(lambda match: _character(int(match[1], 16)), text)) != text:
        text = decoded.replace("\r\n", "\n").replace("\r", "\n")
        if not repeat:
            break
    return text


def repair_surrogates(text: str) -> str:
    """Put U+FFFD for lone surrogates, which JSON can spell but which are no text."""
    return _SURROGATE.sub("\ufffd", text)


def is_blank(text: str) -> bool:
    """Whether nothing in a text can be seen (blanks, control and zero-width characters alone)."""
    return not any(char.isprintable() and not char.isspace() for char in text)


def _character(code: int) -> str:
    if code < 0x20 and code not in (0x09, 0x0A, 0x0D):
        return ""
    return repair_surrogates(chr(code))
