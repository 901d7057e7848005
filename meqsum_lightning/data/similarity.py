"""Which questions and summaries say the same: near-duplicate pairs, and groups of rows.

Exact (no hashing of signatures) and fast for thousands of rows; it knows nothing about splits.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from meqsum_lightning.data.cleaning import ALL_STEPS, clean_text, is_blank
from meqsum_lightning.data.rows import Row

# Words per n-gram. On MeQSum three words part copies from strangers best: its two copied pairs
# reach a Jaccard similarity of 0.94 and 0.72, the next pair 0.27 (two words: 0.33; single words:
# 0.44, and 3,315 pairs above 0.2 that merely share common words).
NGRAM = 3

_WORD = re.compile(r"\w+")
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Pair:
    """Two rows, by position (`first < second`), and the Jaccard similarity of their questions."""

    first: int
    second: int
    similarity: float


def words(text: str) -> list[str]:
    """Words of a text, lower-case, whatever `data.clean` did to it before."""
    return _WORD.findall(clean_text(text, ALL_STEPS).lower())


def normalised(text: str) -> str:
    """Lower-case, without punctuation, blanks folded; a text without any word stays as it is."""
    return " ".join(words(text)) or clean_text(text, ALL_STEPS)


def jaccard(first: str, second: str) -> float:
    """Jaccard similarity of two questions' sets of word n-grams, |A and B| / |A or B|, 0 to 1."""
    a, b = _grams(first), _grams(second)
    return len(a & b) / len(a | b)


def near_duplicate_pairs(questions: Sequence[str], threshold: float) -> list[Pair]:
    """All pairs of questions whose Jaccard similarity reaches a threshold.

    Args:
        questions: Texts; empty ones are near nothing.
        threshold: Smallest similarity, above 0 and at most 1.

    Returns:
        The pairs, ordered by position.
    """
    classes = _equal_classes(questions)
    members = list(classes.values())
    pairs = [
        Pair(min(i, j), max(i, j), similarity)
        for a, b, similarity in _join(list(classes), threshold)
        for i in members[a]
        for j in members[b]
    ]
    for same in members:
        pairs += [Pair(i, j, 1.0) for at, i in enumerate(same) for j in same[at + 1 :]]
    return sorted(pairs, key=lambda pair: (pair.first, pair.second))


def equal_groups(texts: Iterable[str | None]) -> list[list[int]]:
    """Positions of texts that are equal once normalised, for each that stands at least twice."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, text in enumerate(texts):
        if text is not None and not is_blank(text):
            places[normalised(text)].append(place)
    return [same for same in places.values() if len(same) > 1]


def duplicate_groups(rows: Sequence[Row], threshold: float) -> list[tuple[int, ...]]:
    """Rows that must not be parted: near-duplicate questions or equal normalised summaries.

    Args:
        rows: Any rows.
        threshold: Jaccard similarity from which two questions are near-duplicates.

    Returns:
        Connected components as positions in `rows`: each row stands in exactly one, alone if
        nothing resembles it. Ordered by their first row.
    """
    classes = _equal_classes([row.question for row in rows])
    members = list(classes.values())
    parent = list(range(len(rows)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    links = [(members[a][0], members[b][0]) for a, b, _ in _join(list(classes), threshold)]
    for same in [*members, *equal_groups(row.summary for row in rows)]:
        links += [(same[0], other) for other in same[1:]]
    for a, b in links:
        a, b = root(a), root(b)
        parent[max(a, b)] = min(a, b)
    groups: dict[int, list[int]] = defaultdict(list)
    for place in range(len(rows)):
        groups[root(place)].append(place)
    return [tuple(group) for group in groups.values()]


Grams = frozenset[tuple[str, ...]]


def _grams(text: str) -> Grams:
    """Word n-grams; a text of fewer words is one gram of all of them, and one without words
    (or of another kind of sign) is one gram of its characters.
    """
    tokens = words(text) or [clean_text(text, ALL_STEPS)]
    if len(tokens) < NGRAM:
        return frozenset([tuple(tokens)])
    return frozenset(tuple(tokens[at : at + NGRAM]) for at in range(len(tokens) - NGRAM + 1))


def _equal_classes(questions: Sequence[str]) -> dict[Grams, list[int]]:
    """Positions by set of grams: a question that stands 1,000 times is compared once."""
    classes: dict[Grams, list[int]] = defaultdict(list)
    for place, text in enumerate(questions):
        if not is_blank(text):
            classes[_grams(text)].append(place)
    return classes


def _join(sets: Sequence[Grams], threshold: float) -> list[tuple[int, int, float]]:
    """Pairs of distinct sets with a Jaccard similarity of at least `threshold`.

    Prefix filtering (Bayardo, Ma and Srikant, "Scaling Up All Pairs Similarity Search", WWW 2007):
    with grams ordered from rare to common, two similar sets share one among the first
    `size - ceil(threshold * size) + 1` of each. Only those are indexed, so common phrases cost
    nothing; each candidate is then checked exactly.
    """
    frequency: dict[tuple[str, ...], int] = defaultdict(int)
    for grams in sets:
        for gram in grams:
            frequency[gram] += 1
    index: dict[tuple[str, ...], list[int]] = defaultdict(list)
    found = []
    for place in sorted(range(len(sets)), key=lambda at: len(sets[at])):
        grams, size = sets[place], len(sets[place])
        least = math.ceil(threshold * size - _ROUNDING)
        ordered = sorted(grams, key=lambda gram: (frequency[gram], gram))
        candidates: set[int] = set()
        for gram in ordered[: size - least + 1]:
            if frequency[gram] > 1:
                candidates.update(at for at in index[gram] if len(sets[at]) >= least)
                index[gram].append(place)
        for other in candidates:
            shared = len(grams & sets[other])
            similarity = shared / (size + len(sets[other]) - shared)
            if similarity >= threshold - _ROUNDING:
                found.append((place, other, similarity))
    return found
