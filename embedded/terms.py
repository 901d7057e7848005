"""The medical terms: one disjoint part for every use, and invented terms for pretraining.

Which part a term belongs to follows from a hash of its longest word's stem, so that
"fluoxetine" and "fluoxetine hydrochloride" stay together. The templates are not read here.
"""

import csv
import hashlib
import random
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

LEXICON = Path(__file__).parent / "lexicon"
KINDS = ("condition", "drug", "procedure", "part")
PARTS = {"pretrain": 62, "dev": 4, "train": 18, "val": 6, "test": 10}  # percent
STEM = 6
ONSETS = [
    "b", "br", "c", "ch", "cl", "d", "dr", "f", "fl", "g", "gl", "gr", "h", "k", "l", "m", "n",
    "p", "ph", "pl", "pr", "qu", "r", "s", "st", "t", "th", "tr", "v", "x", "z",
]  # fmt: skip
VOWELS = ["a", "e", "i", "o", "u", "y", "ae", "ia", "io", "ou"]
CODAS = ["", "", "", "l", "m", "n", "r", "s", "x", "nd", "st", "rt"]
ENDINGS = {
    "condition": ["itis", "osis", "emia", "pathy", "oma", "algia", "plegia", "trophy", "uria"],
    "drug": ["in", "ol", "ine", "ide", "mab", "pril", "statin", "ate", "azole", "cillin", "am"],
    "procedure": ["ectomy", "oscopy", "plasty", "otomy", "graphy", "desis", "ostomy", "pexy"],
    "part": ["al gland", "us", "ine nerve", "al artery", "ium", "oid bone", "ary vein", "um"],
}
LEADS = {
    "condition": ["acute", "chronic", "type 2", "juvenile", "familial", "stage 3", "idiopathic"],
    "drug": ["generic", "20 mg", "liquid", "extended", "nasal", "oral"],
    "procedure": ["partial", "laser", "open", "total", "second", "outpatient"],
    "part": ["left", "right", "upper", "lower", "inner", "outer"],
}
TAILS = {
    "condition": ["syndrome", "disease", "deficiency", "disorder", "type b"],
    "drug": ["sodium", "xr", "cream", "drops", "acetate"],
    "procedure": ["repair", "surgery", "graft", "biopsy"],
    "part": ["tissue", "joint", "muscle", "wall"],
}

Terms = dict[str, list[str]]  # kind -> terms


@cache
def partition(common: frozenset[str] = frozenset()) -> dict[str, Terms]:
    """Returns part -> kind -> terms; no term contains a term of another part.

    Args:
        common: words that templates use; a term made of them alone is left out.
    """
    with (LEXICON / "terms.tsv").open(encoding="utf-8") as file:
        rows = [(row["term"], row["kind"]) for row in csv.DictReader(file, delimiter="\t")]
    owner = {t: _part(t) for t, _ in rows if not common.issuperset(_words(t))}
    by_words = {" ".join(_words(term)): part for term, part in owner.items()}
    inner = Finder(list(owner))
    parts: dict[str, Terms] = {part: {kind: [] for kind in KINDS} for part in PARTS}
    for term, kind in rows:
        if term in owner and {by_words[words] for words in inner(term)} == {owner[term]}:
            parts[owner[term]][kind].append(term)
    return parts


class Finder:
    """Finds which of the given terms occur in a text as whole words (or with a plural s)."""

    def __init__(self, terms: list[str]) -> None:
        self._by_first: dict[str, list[tuple[str, ...]]] = defaultdict(list)
        for term in terms:
            words = tuple(_words(term))
            self._by_first[words[0]].append(words)

    def __call__(self, text: str) -> set[str]:
        """Returns the terms found, their words joined by spaces."""
        words = _words(text)
        found = set()
        for i, word in enumerate(words):
            for first in {word, word.removesuffix("s")}:
                for term in self._by_first.get(first, ()):
                    span = words[i : i + len(term)]
                    if tuple(span) == term or _singular(span) == term or _singular(term) == span:
                        found.add(" ".join(term))
        return found


def glosses(part: str, common: frozenset[str] = frozenset()) -> list[str]:
    """Returns the WordNet glosses for "pretrain" or "dev", none of which holds a demo term."""
    parts = partition(common)
    banned = Finder([t for p in PARTS if p != "pretrain" for ts in parts[p].values() for t in ts])
    lines = (LEXICON / "glosses.txt").read_text(encoding="utf-8").splitlines()
    dev = part == "dev"
    return [line for line in lines if (_digest(line) % 50 == 0) == dev and not banned(line)]


def invent(rng: random.Random, kind: str) -> str:
    """Returns a term that does not exist, such as "acute trovaplexitis"."""
    stem = "".join(
        rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS)
        for _ in range(rng.choice((1, 1, 2, 2, 3)))
    )
    word = stem + (rng.choice(ENDINGS[kind]) if rng.random() < 0.8 else "")
    if rng.random() < 0.25:
        word = f"{rng.choice(LEADS[kind])} {word}"
    if rng.random() < 0.2:
        word = f"{word} {rng.choice(TAILS[kind])}"
    return word


def _part(term: str) -> str:
    stem = max(_words(term), key=lambda word: (len(word), word))[:STEM]
    position = _digest(stem) % 100
    for part, share in PARTS.items():
        if position < share:
            return part
        position -= share
    raise AssertionError("the shares add up to 100")


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _singular(words: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    return (*words[:-1], words[-1].removesuffix("s")) if words else ()


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
