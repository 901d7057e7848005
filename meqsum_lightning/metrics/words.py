"""Words of short English health questions: normalised texts, stems, word lists, numbers, negations.

Lists and rules only; what is measured with them is in `beyond.py`.
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

# Function words: articles, pronouns, prepositions, conjunctions, auxiliaries, and what apostrophes
# and the brackets of `physician(s)` leave behind. `not` is here too: negations are measured on
# their own.
_STOP_WORDS = """
    a about above after again against ago all almost along already also although always am among an
    and any anybody anyone anything are aren around as at away be became because become been before
    behind being below besides between both but by can cannot cant could couldn did didn didnt do
    does doesn doesnt doing don done dont down due during each either else enough etc even ever
    every everyone everything few for from further got had hadn has hasn have haven having he hello
    her here hers herself hi him himself his how however i if in into is isn isnt it its itself
    just least less like ll many may maybe me might mine more most much must my myself near neither
    no nobody non none nor not nothing now of off often on once one only onto or other others
    otherwise our ours ourselves out over own per please quite rather re really s same several
    shall she should shouldn since so some somebody someone something sometimes soon still such
    than thank thanks that the their theirs them themselves then there these they thing things this
    those though through thus to together too toward towards under until up upon us ve very via was
    wasn we well were weren what whatever when whenever where wherever whether which while who
    whoever whom whose why will with within without won wont would wouldn yes yet you your yours
    yourself
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())

# What may be asked of any condition, drug or test, and the phrases that ask it ("Where can I find
# information on", "physicians who specialize in"): the words that summaries of MeQSum add most
# often. They ask; they name nothing medical of their own.
_QUESTION_FRAME = """
    advice affect answer associated available best better cause caused causes causing complication
    complications consequences cost cure cured detect diagnose diagnosed diagnosing diagnosis
    difference differences different doctor doctors effect effective effects explanation find get
    guideline guidelines happen happens help hospital hospitals include including info information
    ingredient ingredients inheritance inherited know latest learn long manage management mean new
    obtain option options outcome outcomes outlook physician physicians possible prevent prevented
    prevention prognosis question recommended related relation relationship research resource
    resources risk risks side sign signs specialist specialists specialize specializes specializing
    specific symptom symptoms take taken taking treat treated treating treatment treatments use
    used using
"""
QUESTION_FRAME = frozenset(_QUESTION_FRAME.split())

_UNITS = {
    "mg": "mg milligram milligrams",
    "mcg": "mcg ug μg microgram micrograms",
    "g": "g gm gms gram grams",
    "kg": "kg kgs kilogram kilograms",
    "ml": "ml milliliter milliliters millilitre millilitres cc",
    "l": "l liter liters litre litres",
    "dl": "dl",
    "mm": "mm",
    "cm": "cm",
    "inch": "inch inches",
    "foot": "ft foot feet",
    "lb": "lb lbs pound pounds",
    "oz": "oz ounce ounces",
    "unit": "iu unit units",
    "%": "% percent",
    "minute": "min mins minute minutes",
    "hour": "h hr hrs hour hours",
    "day": "day days",
    "week": "wk wks week weeks",
    "month": "mo mos month months",
    "year": "yr yrs year years yo",
}
_UNIT_OF = {word: unit for unit, words in _UNITS.items() for word in words.split()}

_WORD = re.compile(r"[^\W_]+")
# A word, or punctuation that ends a phrase: points and commas inside of numbers don't.
_PIECE = re.compile(r"[^\W_]+|[,;:.?!)\]\"](?=\s|$)|[(\[\"]")
# Not left as words: the D of vitamins and the T of cells have a meaning.
_CONTRACTED = re.compile(r"(?<=[^\W_])'(?:s|d|m|t|re|ve|ll)(?![^\W_])")
_MARKS = str.maketrans({"™": " ", "®": " ", "©": " ", "’": "'", "‘": "'", "ʼ": "'", "＇": "'"})
_NUMBER = re.compile(
    r"(?<![^\W_])(?P<value>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
    # Letters behind a number are a unit, a plural (`1870s`) or make it a name (`46xy`, `5p`).
    rf"(?:s(?![^\W_])|[ \t]?-?(?P<unit>{'|'.join(sorted(_UNIT_OF, key=len, reverse=True))})"
    r"(?![^\W_])|(?![^\W_]))"
)
_NEGATION = re.compile(
    r"\bno\b(?!\.\s*\d)|n't\b"
    r"|\b(?:not|never|without|non|none|nor|neither|nothing|nobody|nowhere|cannot)\b"
    r"|\b(?:ca|do|does|did|is|are|was|were|has|have|had|wo|would|should|could)nt\b"
    # `gluten-free`, `gluten free?`, `free of sulfites`, but not `free trisomy 13`.
    r"|(?<=\w-)free\b|\bfree\b(?=\s*(?:$|[.,;:?!)]|(?:of|from|and|or)\b))"
)
# Porter's rules call themselves once for each letter of `yyyy…`; no word is longer than this.
_LONGEST_STEMMED = 40


@dataclass(frozen=True)
class Text:
    """What the measures need of a text.

    Attributes:
        words: Normalised words, in order.
        stems: Their stems, in order.
        padded: The stems joined and surrounded by blanks: a phrase is looked for as a part.
        content: Stems of the words that are neither function words nor numbers.
        novel: Those of `content` that are no question frame either.
        runs: Stems of successive words (at least one of `novel`, else numbers), cut by all other
            words and by punctuation.
        negations: How many negations there are.
        numbers: Numbers as (value, unit), the unit empty if there is none.
    """

    words: tuple[str, ...]
    stems: tuple[str, ...]
    padded: str
    content: frozenset[str]
    novel: frozenset[str]
    runs: tuple[tuple[str, ...], ...]
    negations: int
    numbers: frozenset[tuple[str, str]]


# Questions and references come back with every run; predictions often do.
@lru_cache(maxsize=1 << 14)
def analyse(text: str) -> Text:
    """Words, numbers and negations of any text; blank texts have none."""
    plain = normalise(text)
    pieces = _PIECE.findall(_CONTRACTED.sub("", plain))
    words = tuple(piece for piece in pieces if _WORD.match(piece))
    stems = tuple(map(stem, words))
    content = frozenset(stem(word) for word in words if _is_content(word))
    return Text(
        words=words,
        stems=stems,
        padded=padded(stems),
        content=content,
        novel=content - _frame_stems(),
        runs=tuple(_runs(pieces)),
        negations=len(_NEGATION.findall(plain)),
        numbers=frozenset(_numbers(plain)),
    )


def normalise(text: str) -> str:
    """Lower-case text without accents, trademark signs and invisible characters."""
    if text.isascii():
        return text.lower()
    folded = unicodedata.normalize("NFKD", text.translate(_MARKS)).casefold()
    return "".join(
        char
        for char in unicodedata.normalize("NFKD", folded)
        if unicodedata.category(char) not in ("Mn", "Cf")
    )


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """Porter stem of a lower-case word, as ROUGE takes it: words of up to 3 letters stay."""
    if not word.isascii() or len(word) > _LONGEST_STEMMED:
        return word
    stems = _tokenizer().tokenize(word)
    return str(stems[0]) if stems else word


def padded(stems: tuple[str, ...]) -> str:
    """Stems joined by blanks, with one at either end."""
    return f" {' '.join(stems)} "


def names_something(stems: tuple[str, ...]) -> bool:
    """Whether there is a word that is no number."""
    return not all(word.isdecimal() for word in stems)


def _is_content(word: str) -> bool:
    return word not in STOP_WORDS and not word.isdecimal()


def _runs(pieces: list[str]) -> list[tuple[str, ...]]:
    """Runs of successive naming words and numbers, without the runs of numbers alone."""
    runs: list[tuple[str, ...]] = []
    run: list[str] = []
    for piece in [*pieces, "."]:
        word = stem(piece)
        if _WORD.match(piece) and piece not in STOP_WORDS and word not in _frame_stems():
            run.append(word)
        else:
            if run and names_something(tuple(run)):
                runs.append(tuple(run))
            run = []
    return runs


def _numbers(plain: str) -> list[tuple[str, str]]:
    """Numbers of a normalised text, without thousands separators and needless zeros."""
    numbers = []
    for found in _NUMBER.finditer(plain):
        digits = "".join(
            str(unicodedata.decimal(char)) if char.isdecimal() else char
            for char in found["value"].replace(",", "")
        )
        whole, _, fraction = digits.partition(".")
        fraction = fraction.rstrip("0")
        value = (whole.lstrip("0") or "0") + (f".{fraction}" if fraction else "")
        numbers.append((value, _UNIT_OF.get(found["unit"] or "", "")))
    return numbers


@lru_cache(maxsize=1)
def _frame_stems() -> frozenset[str]:
    return frozenset(map(stem, QUESTION_FRAME))


@lru_cache(maxsize=1)
def _tokenizer():  # type: ignore[no-untyped-def]  # rouge_score has no types
    """The stemmer of ROUGE; importing it loads nltk."""
    from rouge_score.tokenizers import DefaultTokenizer

    return DefaultTokenizer(use_stemmer=True)
