"""Extracts the term lists and glosses from a WordNet 3.0 database folder.

Needed only to make `terms.tsv` and `glosses.txt` anew; they are committed, so a build does
not need WordNet. On Debian the database is the package `wordnet-base`; with it installed, run
`python -m embedded.lexicon.extract /usr/share/wordnet`.
"""

import argparse
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent

# kind -> synset offsets in data.noun whose hyponyms make the kind, the first match wins
ROOTS = {
    "condition": (14061805, 14299637, 14285662),  # illness, symptom, injury
    "drug": (3740161, 15089258),  # medicine, vitamin
    "procedure": (1024392, 671351, 657604),  # medical and surgical procedure, medical care
    "part": (5220461,),  # body part
}
SKIPPED = {"plant disease", "animal disease"}  # synsets left out with all their hyponyms
ROUGH_GLOSS = re.compile(
    r"obscene|slang|street name|vulgar|informal|offensive|disparag|sexual|euphemis|genital|"
    r"anus|buttock|nickname|hallucin|narcotic|illicit|smok|contracepti|abort|insect|fish|bird|"
    r"plants? |trademark|animals|sheep|cattle|horse|livestock|poultry|dogs|castrat|steriliz",
    re.IGNORECASE,
)
ROUGH_WORD = re.compile(
    r"\b(sex|fuck|shit|ass|arse|tit|tits|cock|dick|cunt|pussy|balls?|bum|butt|crack|speed|dope|"
    r"clap|pox|crud|whore|penis|vagina|rape|suicide|murder|slave|negro|nigger|gay|pot|grass|"
    r"weed|acid|ecstasy|roach|dose|drug|drugs|medicine|disease|disorder|illness|sickness|injury|"
    r"symptom|syndrome|operation|procedure|treatment|surgery|therapy|test|cure|remedy|part|fixing|altering|"
    r"complication|specific|panacea|placebo|medicament|preparation|restorative|corn|powder|"
    r"female circumcision|circumcision|clitoridectomy|pump|small|system|fold|valve)\b"
)
TERM = re.compile(r"[a-z]+(?:[- ][a-z]+){0,3}")


@dataclass
class Synset:
    """One noun synset: its lemmas, hyponym offsets and gloss."""

    lemmas: list[str]
    hyponyms: list[int]
    gloss: str


def extract(wordnet: Path, glosses: int = 9000) -> tuple[list[tuple[str, str]], list[str]]:
    """Returns (term, kind) pairs and a sample of glosses and example sentences.

    Args:
        wordnet: the folder with `data.noun` and its siblings.
        glosses: how many general definitions and examples to keep, chosen by hash.
    """
    nouns = dict(_synsets(wordnet / "data.noun"))
    terms: dict[str, str] = {}
    medical: list[str] = []
    for kind, roots in ROOTS.items():
        for offset in _descendants(nouns, roots):
            synset = nouns[offset]
            if ROUGH_GLOSS.search(synset.gloss):
                continue
            medical.append(synset.gloss)
            for lemma in synset.lemmas:
                if _usable(lemma):
                    terms.setdefault(lemma, kind)
    general = {
        synset.gloss
        for name in ("noun", "verb", "adj")
        for _, synset in _synsets(wordnet / f"data.{name}")
        if 25 <= len(synset.gloss) <= 160 and not ROUGH_GLOSS.search(synset.gloss)
    }
    chosen = sorted(general - set(medical), key=_digest)[:glosses]
    return sorted(terms.items()), sorted({*chosen, *(g for g in medical if len(g) >= 20)})


def _synsets(path: Path) -> Iterator[tuple[int, Synset]]:
    for line in path.read_text(encoding="latin-1").splitlines():
        if line.startswith("  "):  # the licence at the top
            continue
        data, gloss = line.split(" | ", 1)
        fields = data.split()
        count = int(fields[3], 16)
        lemmas = [fields[4 + 2 * i].replace("_", " ") for i in range(count)]
        pointers = fields[5 + 2 * count :]
        hyponyms = [
            int(pointers[i + 1]) for i, f in enumerate(pointers) if f in ("~", "~i") and i % 4 == 0
        ]
        yield int(fields[0]), Synset(lemmas, hyponyms, _clean(gloss))


def _descendants(nouns: dict[int, Synset], roots: tuple[int, ...]) -> list[int]:
    seen: dict[int, None] = {}  # keeps the order
    stack = [child for root in reversed(roots) for child in reversed(nouns[root].hyponyms)]
    while stack:
        offset = stack.pop()
        if offset not in seen and nouns[offset].lemmas[0] not in SKIPPED:
            seen[offset] = None
            stack.extend(reversed(nouns[offset].hyponyms))
    return list(seen)


def _usable(lemma: str) -> bool:
    return (
        4 <= len(lemma) <= 26
        and TERM.fullmatch(lemma) is not None
        and ROUGH_WORD.search(lemma) is None
    )


def _clean(gloss: str) -> str:
    text = re.sub(r"[^\x20-\x7e]|[\"`]", "", gloss)
    return re.sub(r"\s+", " ", text).strip()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def main() -> None:
    """Writes `terms.tsv` and `glosses.txt` next to this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wordnet", type=Path, nargs="?", default=Path("/usr/share/wordnet"))
    terms, glosses = extract(parser.parse_args().wordnet)
    rows = "".join(f"{term}\t{kind}\n" for term, kind in terms)
    (FOLDER / "terms.tsv").write_text("term\tkind\n" + rows, encoding="utf-8")
    (FOLDER / "glosses.txt").write_text("\n".join(glosses) + "\n", encoding="utf-8")
    print(f"{len(terms)} terms, {len(glosses)} glosses")


if __name__ == "__main__":
    main()
