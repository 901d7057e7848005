"""Sentence splitting for ROUGE-Lsum: rules alone, no download and no state.

It knows the punctuation of health questions, not language in general; scoring is in `rouge.py`.
"""

import re

SPLITTER_VERSION = "rules-1"
"""Part of the ROUGE protocol's fingerprint: raise it whenever a rule changes."""

# A terminator, closing quotes or brackets, and the space that makes it a boundary: the points of
# `0.5` and `example.com` have no space behind them and are never candidates. Starting at the first
# terminator only, and without backtracking, the search is linear in the line.
_CANDIDATE = re.compile(r"(?<![.!?…])[.!?…]++[\"')\]”’]*+\s++")
_WORD_BEFORE = re.compile(r"[^\s(\[\"'“‘]+$")
_ABBREVIATIONS = {
    # Followed by what they introduce: `Dr. Smith`, `St. John's wort`, `e.g. aspirin`.
    "introducing": """
        dr drs mr mrs ms prof st mt vs e.g eg i.e ie cf viz approx esp incl rev gen sen rep ph
    """,
    # Abbreviations in front of a number alone: `No. 5`, but "No. It is not."
    "numbered": "no nos fig figs vol pp p nr",
    # May also end a sentence; a capital letter behind them decides: `5 mg. daily`, `5 mg. Is it`.
    "trailing": """
        mg mcg ug kg gm gms ml dl cc oz lb lbs tsp tbsp cm mm ft hr hrs min mins sec wk wks mo mos
        yr yrs etc al a.m p.m pm jr sr inc ltd co dept hosp univ avg max jan feb apr jun jul aug
        sept sep oct nov dec b.i.d t.i.d q.i.d p.r.n u.s u.k
    """,
}
_KIND = {word: kind for kind, words in _ABBREVIATIONS.items() for word in words.split()}


def split_sentences(text: str) -> list[str]:
    """Splits a text into sentences, offline.

    Line breaks are boundaries. So are `.`, `!`, `?` and `…` before a space, also when a lower-case
    letter follows (patients write that way), unless the point belongs to an abbreviation
    (`Dr.`, `e.g.`, `5 mg. daily`, `No. 5`), to an ellipsis inside a sentence, or to a list number
    that opens a sentence (`1. What ...`).

    Args:
        text: Any text.

    Returns:
        Sentences without surrounding blanks, none of them empty; all characters of `text` but
        blanks are kept, in order. A blank text has no sentence.
    """
    return [sentence for line in text.splitlines() for sentence in _split_line(line)]


def _split_line(line: str) -> list[str]:
    """Sentences of one line."""
    sentences = []
    start = 0
    for candidate in _CANDIDATE.finditer(line):
        # Slices of bounded length: a line without boundaries stays linear.
        before = line[max(start, candidate.start() - 32) : candidate.start()]
        after = line[candidate.end() : candidate.end() + 1]
        if _is_boundary(before, candidate.group().rstrip(), after):
            sentences.append(line[start : candidate.end()].strip())
            start = candidate.end()
    sentences.append(line[start:].strip())
    return [sentence for sentence in sentences if sentence]


def _is_boundary(before: str, terminator: str, after: str) -> bool:
    """Whether a sentence ends here.

    Args:
        before: The end of the sentence so far, without the terminator.
        terminator: Punctuation, with the quotes or brackets that close behind it.
        after: The next character that is not blank; empty at the end of the line.
    """
    if "!" in terminator or "?" in terminator:
        return True
    if terminator.startswith(("..", "…")):
        return not after.islower()
    found = _WORD_BEFORE.search(before)
    word = found.group().casefold() if found else ""
    match _KIND.get(word):
        case "introducing":
            return False
        case "numbered":
            return not after.isdigit()
        case "trailing":
            return after.isupper()
    return not (word.isdigit() and word == before.strip())
