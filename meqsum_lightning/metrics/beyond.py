"""Measures beyond ROUGE, per example, from the texts alone: terms, negations, numbers, form.

Rules on words, offline and deterministic. None of them is a clinical judgement: a summary may pass
all and be wrong. Word lists and normalisation are in `words.py`.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TypedDict

from meqsum_lightning.config.question_words import OTHER, YES_NO, first_question_word
from meqsum_lightning.config.question_words import QUESTION_WORDS as _FIRST_WORDS
from meqsum_lightning.metrics.words import Text, analyse, names_something, padded

MEASURES = {
    "novelty": "share of the summary's content words that stand neither in the question nor among "
    "the words that ask: lower is better",
    "focus_copied": "whether the reference's main term stands in the summary",
    "negations_kept": "share of the reference's negations that the summary has",
    "numbers_kept": "share of the reference's numbers, with their units, that the summary has",
    "question_word_match": "whether the summary asks as the reference does",
    "length_ratio": "words of the summary per word of the reference: 1 is best",
    "exact_match": "whether the summary is the reference, but for case, accents and punctuation",
}
"""What `measure` returns, each with one line for readers of a report."""

QUESTION_WORDS = (*(word for word in _FIRST_WORDS if word not in (*YES_NO, OTHER)), "yes/no", OTHER)
"""What `question_word` returns, in the order of a report."""

_LENGTHS = ((30, "up to 30"), (50, "31-50"), (80, "51-80"))
_LONGEST = "over 80"
_LONGEST_FOCUS = 10  # words
LENGTH_BINS = (*(name for _, name in _LENGTHS), _LONGEST)
"""What `length_bin` returns: words, near the quartiles of MeQSum's questions (30, 48, 77)."""


class MeasureMean(TypedDict):
    """Mean of a measure, None where it is defined for no row, and for how many rows it is."""

    mean: float | None
    rows: int


def measure(question: str, reference: str, prediction: str) -> dict[str, float | None]:
    """All of `MEASURES` for one example; None where a measure is undefined.

    Words are lower-case, without accents and contracted endings ('s, 't, …), compared by the Porter
    stems that ROUGE uses. Content words are neither function words nor plain numbers.

    `novelty`
        |P - Q - F| / |P| with P the distinct content words of the prediction, Q the question's
        words, F the question frame (`words.QUESTION_FRAME`: treatments, causes, information, …).
        In [0, 1]; None without content words. Limits: a synonym, a spelling corrected or an
        abbreviation spelt out counts as invented; a wrong word of the question does not.
    `focus_copied`
        1 if the focus (see `focus`) stands in the prediction word by word, else 0; None if the
        reference has none. Limits: no parser finds the focus; a rephrased one ("cancer of the lung"
        for "lung cancer") counts as lost, and one in a wrong role as kept.
    `negations_kept`
        min(1, n_P / n_R) with the numbers of negations (no, not, n't, never, without, non-, none,
        nor, neither, -free, …) in prediction and reference; in [0, 1]; None if the reference has
        none. Limits: what is negated is not compared; "lack of" and "nonsteroidal" are not seen,
        "free" of charge is; negations of the question that the reference leaves out don't count.
    `numbers_kept`
        |N_P & N_R| / |N_R| with the distinct pairs (value, unit); 5mg, 5 mg and 5.0 milligrams are
        one, 1,000 is 1000; in [0, 1]; None if the reference has none. Limits: units are not
        converted, numbers in words ("two") and inside names (B12, 46XY) are not seen.
    `question_word_match`
        1 if both ask by the same `question_word`, else 0; None if the reference's is "other".
        Limits: "What is the cause of …" and "Why …" differ.
    `length_ratio`
        Words of the prediction / words of the reference, from 0; None if the reference has none.
    `exact_match`
        1 if both have the same words, else 0; None if the reference has none. Limit: "treatment"
        and "treatments" differ.

    Args:
        question: The consumer's question.
        reference: The summary by an expert; blank: only `novelty` is defined.
        prediction: The summary to measure; a blank one keeps nothing, and its novelty is undefined.

    Returns:
        Values by name, in the order of `MEASURES`.
    """
    asked, wanted, given = analyse(question), analyse(reference), analyse(prediction)
    main = focus(question, reference)
    kind = question_word(reference)
    return {
        "novelty": _novelty(asked, given),
        "focus_copied": float(padded(main) in given.padded) if main else None,
        "negations_kept": (
            min(1.0, given.negations / wanted.negations) if wanted.negations else None
        ),
        "numbers_kept": (
            len(given.numbers & wanted.numbers) / len(wanted.numbers) if wanted.numbers else None
        ),
        "question_word_match": float(question_word(prediction) == kind) if kind != OTHER else None,
        "length_ratio": len(given.words) / len(wanted.words) if wanted.words else None,
        "exact_match": float(given.words == wanted.words) if wanted.words else None,
    }


def summarize_measures(rows: Iterable[Mapping[str, float | None]]) -> dict[str, MeasureMean]:
    """Means over the rows for which a measure is defined.

    Args:
        rows: What `measure` returned, one per example.

    Returns:
        Mean and number of defined rows by name; for all of `MEASURES`, whatever is defined.
    """
    defined: dict[str, list[float]] = {name: [] for name in MEASURES}
    for row in rows:
        for name, values in defined.items():
            value = row[name]
            if value is not None:
                values.append(value)
    return {
        name: {"mean": sum(values) / len(values) if values else None, "rows": len(values)}
        for name, values in defined.items()
    }


@lru_cache(maxsize=1 << 14)
def focus(question: str, reference: str) -> tuple[str, ...]:
    """Stems of the reference's main term, at most ten, by a rule that stands in for a parser.

    Runs are successive words of the reference that are neither function words nor question frame
    (numbers may stand among them: type 2 diabetes), cut at punctuation. The focus is the longest
    stretch of a run that stands in the question word by word; of equally long ones the last, since
    English questions tend to end with what they are about. If no word of a run is in the question,
    it is the last run.

    Args:
        question: The consumer's question.
        reference: The summary by an expert.

    Returns:
        Stems in order; empty if the reference has no run.
    """
    runs = analyse(reference).runs
    asked = analyse(question).padded
    best: tuple[str, ...] = ()
    for run in runs:
        start = 0
        # Of a stretch that is found all parts are: the window only moves on.
        for end in range(1, len(run) + 1):
            start = max(start, end - _LONGEST_FOCUS)
            while start < end and padded(run[start:end]) not in asked:
                start += 1
            stretch = run[start:end]
            if len(stretch) >= max(1, len(best)) and names_something(stretch):
                best = stretch
    return best or (runs[-1][-_LONGEST_FOCUS:] if runs else ())


@lru_cache(maxsize=1 << 14)
def question_word(text: str) -> str:
    """How a summary asks, by its first word: one of `QUESTION_WORDS`.

    Questions for yes or no (is, are, do, can, should, has, …) are one kind. Limits: a question that
    opens otherwise ("For diabetes, what …") and a misspelt word ("Whare") are "other".
    """
    word = first_question_word(text)
    return "yes/no" if word in YES_NO else word


def length_bin(question: str) -> str:
    """The length of a question in words, as one of `LENGTH_BINS`."""
    count = len(analyse(question).words)
    return next((name for most, name in _LENGTHS if count <= most), _LONGEST)


def _novelty(asked: Text, given: Text) -> float | None:
    if not given.content:
        return None
    return len(given.novel.difference(asked.stems)) / len(given.content)
