import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meqsum_lightning.data.sources import load_rows
from meqsum_lightning.data.splits import question_word as stratum
from meqsum_lightning.metrics.beyond import (
    LENGTH_BINS,
    MEASURES,
    QUESTION_WORDS,
    focus,
    length_bin,
    measure,
    question_word,
    summarize_measures,
)
from meqsum_lightning.metrics.words import STOP_WORDS, analyse, stem
from tests.data.conftest import make_config

# Letters of several scripts, marks, digits, punctuation, the measures' own words.
PIECES = st.sampled_from(
    ["no", "non-drug", "isn't", "free", "gluten-free", "5mg", "1,000", ".5", "٣", "type 2", "what",
     "Is", "pain", "İ", "ß", "Ménière’s", "糖尿病", "\u200b", "\ud800", "\x00", "½", "?", "\n", "_", "(s)"]
)  # fmt: skip
TEXTS = st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=15).map(" ".join))


@pytest.mark.parametrize(
    ("question", "prediction", "expected"),
    [
        ("I have shingles pain", "What are the treatments for shingles pain?", 0.0),
        # shingles, treatments, migraine: one of three is new; treatments ask.
        ("I have shingles pain", "What are the treatments for shingles and migraines?", 1 / 3),
        ("I have shingles", "Lupus lupus LUPUS or shingles?", 1 / 2),  # words count once
        ("treating my headaches", "headache treatment", 0.0),  # stems
        ("Ménière’s disease", "What is Meniere's disease?", 0.0),
        ("my son, 5 years", "What is it for 12?", None),  # no content word
        ("shingles", "", None),
        ("shingles", "?! …", None),
        ("", "Is it lupus?", 1.0),
        ("vitamin b", "vitamin d", 1 / 2),  # a single letter may matter
        ("I don't know, I'd say my doctor's lost", "Isn't it lost?", 0.0),
        ("糖尿病", "糖尿病 心臓", 1 / 2),
    ],
)
def test_novelty(question, prediction, expected):
    assert measure(question, "", prediction)["novelty"] == expected


@pytest.mark.parametrize(
    ("question", "reference", "expected"),
    [
        ("SUBJECT: muscular dystrophy\nhelp", "What is the cure for muscular dystrophy?",
         "muscular dystrophy"),
        # The longest stretch that the question has, whatever surrounds it.
        ("my mother has type 2 diabetes", "How is juvenile type 2 diabetes with gout treated?",
         "type 2 diabetes"),
        # Of equally long ones the last.
        ("ibuprofen with lisinopril", "Can ibuprofen affect lisinopril?", "lisinopril"),
        # In the question, but not side by side.
        ("lung and other cancer", "What are treatments for lung cancer?", "cancer"),
        # Not in the question at all: the last run.
        ("I itch everywhere", "What creams help atopic dermatitis?", "atopic dermatitis"),
        # Punctuation and function words cut; apostrophes and hyphens don't.
        ("foo", "What are Crohn's disease, non-drug care, IgA-nephropathy?", "IgA nephropathy"),
        ("gout, chest pain", "Is chest, pain related to gout?", "gout"),
        # A number alone is no term.
        ("12 34 fever", "Is 12 34 a fever?", "fever"),
        ("12", "What is 12?", ""),
        ("x", "What are the treatments and causes?", ""),
        ("", "", ""),
    ],
)  # fmt: skip
def test_focus(question, reference, expected):
    assert focus(question, reference) == tuple(stem(word) for word in expected.lower().split())


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("Is there a cure for Duchenne Muscular Dystrophies?", 1.0),
        ("What is dystrophy?", 0.0),
        ("What is dystrophy muscular?", 0.0),
        ("What is neuromuscular dystrophy?", 0.0),  # words, not characters
        ("", 0.0),
    ],
)
def test_focus_copied(prediction, expected):
    question, reference = "muscular dystrophy", "What is the cure for muscular dystrophy?"
    assert measure(question, reference, prediction)["focus_copied"] == expected
    assert measure(question, "What are the treatments?", prediction)["focus_copied"] is None


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("What drugs do not contain soy?", 1),
        ("Why doesn't it and why don’t they? DONT", 3),
        ("Is it cannot or can't, never or none?", 4),
        ("What are non-drug treatments without surgery?", 2),
        ("Is it gluten free?", 1),
        ("Is it gluten and dairy-free food, free of sulfites", 2),
        ("What is free trisomy 13 in a free clinic?", 0),
        ("No. 5 is no answer", 1),
        ("What is known of notes, nonsense, Nora and want?", 0),
        ("", 0),
    ],
)
def test_negations_are_found(text, count):
    assert analyse(text).negations == count


def test_negations_kept():
    reference = "What drugs do not contain soy and no gluten?"
    kept = [
        measure("", reference, prediction)["negations_kept"]
        for prediction in ("Which have soy?", "Which have no soy?", "not, no, never?", "")
    ]
    assert kept == [0.0, 0.5, 1.0, 0.0]
    assert (
        measure("I do not know", "What is lupus?", "What is not lupus?")["negations_kept"] is None
    )


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("5mg, 5 mg, 5-MG and 5.0 milligrams", {("5", "mg")}),
        ("1,000 mcg or 1000µg or 1000 μg", {("1000", "mcg")}),
        ("1,000,000 1,00", {("1000000", ""), ("1", ""), ("0", "")}),
        (".25 mg and 0.250mg", {("0.25", "mg")}),
        ("a 33 year-old, 33 years", {("33", "year")}),
        ("a 1-week-old", {("1", "week")}),
        ("63% or 63 percent", {("63", "%")}),
        ("stage 3/4, T-6, 5'7\"", {("3", ""), ("4", ""), ("6", ""), ("5", ""), ("7", "")}),
        ("in the 1870s", {("1870", "")}),
        ("vitamin B12, 46XY, G6PD, 5p, alfa-2B", set()),
        ("5 mgx", {("5", "")}),
        ("٣ mg and ５ ml", {("3", "mg"), ("5", "ml")}),
        ("007", {("7", "")}),
        ("two", set()),
    ],
)
def test_numbers_are_found(text, numbers):
    assert analyse(text).numbers == numbers


def test_numbers_kept():
    reference = "Is 5 mg of Warfarin right for type 2 diabetes?"
    kept = [
        measure("", reference, prediction)["numbers_kept"]
        for prediction in ("5mg, type 2?", "5 ml, type 2?", "5 and 2 weeks?", "")
    ]
    assert kept == [1.0, 0.5, 0.0, 0.0]
    assert measure("5 mg", "Is it right?", "Is 5 mg right?")["numbers_kept"] is None


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("What's the flu?", "what"),
        ("  WHOSE is it?", "who"),
        ("Is it?", "yes/no"),
        ("Can I?", "yes/no"),
        ("Does it?", "yes/no"),
        ("Should I?", "yes/no"),
        ("Has it?", "yes/no"),
        ("For flu, what", "other"),
        ("Whare", "other"),
        ("?", "other"),
        ("", "other"),
    ],
)
def test_question_words(text, word):
    assert question_word(text) == word
    assert word in QUESTION_WORDS
    # One definition: splits only tell the kinds of yes and no apart.
    assert (stratum(text) == word) == (word != "yes/no")


def test_question_word_match():
    def match(reference, prediction):
        return measure("", reference, prediction)["question_word_match"]

    assert match("Is it safe?", "Does it harm?") == 1.0
    assert match("What is it?", "Where is it?") == 0.0
    assert match("What is it?", "") == 0.0
    assert match("For flu, what helps?", "For flu, what helps?") is None


def test_length_ratio_and_exact_match():
    reference = "What is Ménière’s disease?"

    def both(reference, prediction):
        result = measure("", reference, prediction)
        return result["length_ratio"], result["exact_match"]

    assert both(reference, " what is\nMENIERE'S disease") == (1.0, 1.0)
    assert both(reference, "What are Ménière’s diseases?") == (1.0, 0.0)
    assert both(reference, "What is the treatment for Ménière’s disease?") == (7 / 4, 0.0)
    assert both(reference, "") == (0.0, 0.0)
    assert both("?!", "?!") == (None, None)


def test_blank_reference_leaves_novelty_alone():
    result = measure("I have shingles", " \n", "What is lupus?")
    assert {name for name, value in result.items() if value is not None} == {"novelty"}


def test_long_words_and_texts_do_no_harm():
    # Porter's rules recurse over y's; these would need minutes if anything were quadratic.
    assert stem("y" * 5000) == "y" * 5000
    for text in ("." * 30_000 + "x", "111," * 8_000 + "x", "free " * 8_000, "y" * 30_000):
        measure(text, text, text)


def test_means_are_over_defined_rows():
    rows = [
        measure("gout", "What is gout?", "What is gout?"),
        measure("gout", "Is 5 mg safe?", "Is gout safe?"),
        measure("gout", "", ""),
    ]
    summary = summarize_measures(iter(rows))
    assert list(summary) == list(MEASURES)
    assert summary["exact_match"] == {"mean": 0.5, "rows": 2}
    assert summary["numbers_kept"] == {"mean": 0.0, "rows": 1}
    assert summary["negations_kept"] == {"mean": None, "rows": 0}
    assert summarize_measures([])["novelty"] == {"mean": None, "rows": 0}


@pytest.mark.parametrize(
    ("words", "name"), [(0, "up to 30"), (30, "up to 30"), (31, "31-50"), (50, "31-50"),
                        (51, "51-80"), (80, "51-80"), (81, "over 80")]
)  # fmt: skip
def test_length_bins(words, name):
    assert length_bin("word, " * words) == name
    assert name in LENGTH_BINS


@settings(max_examples=150, deadline=None)
@given(TEXTS, TEXTS, TEXTS)
def test_any_text_gives_values_in_range(question, reference, prediction):
    result = measure(question, reference, prediction)
    assert list(result) == list(MEASURES)
    for name, value in result.items():
        if value is not None:
            assert math.isfinite(value) and value >= 0
            assert value <= 1 or name == "length_ratio"
    assert question_word(prediction) in QUESTION_WORDS
    assert length_bin(question) in LENGTH_BINS


@settings(max_examples=150, deadline=None)
@given(TEXTS, TEXTS)
def test_the_reference_keeps_all_of_itself(question, reference):
    result = measure(question, reference, reference)
    assert {value for name, value in result.items() if name != "novelty"} <= {None, 1.0}
    assert measure(reference, reference, reference)["novelty"] in (None, 0.0)


@settings(max_examples=100, deadline=None)
@given(TEXTS, TEXTS)
def test_the_focus_stands_in_its_reference(question, reference):
    found = " ".join(focus(question, reference))
    assert found in " ".join(analyse(reference).stems)
    assert not set(found.split()) & STOP_WORDS or not found.isascii()


def test_real_references_keep_all_of_themselves(real_meqsum: Path):
    rows = load_rows(make_config(path=str(real_meqsum))).rows
    own = summarize_measures(measure(row.question, row.summary, row.summary) for row in rows)
    for name in set(MEASURES) - {"novelty"}:
        assert own[name]["mean"] == 1.0, name
    # Nearly all summaries have a focus and a question word; few hold numbers or negations.
    assert min(own[name]["rows"] for name in ("focus_copied", "question_word_match")) > 980
    assert 30 <= own["negations_kept"]["rows"] <= 40
    assert 40 <= own["numbers_kept"]["rows"] <= 60
    # Experts add and correct some words; another question's summary is mostly foreign.
    assert 0.1 < own["novelty"]["mean"] < 0.3
    others = [*rows[500:], *rows[:500]]
    foreign = summarize_measures(
        measure(row.question, row.summary, other.summary)
        for row, other in zip(rows, others, strict=True)
    )
    assert foreign["novelty"]["mean"] > 0.6
    assert foreign["focus_copied"]["mean"] < 0.05
    counts = [sum(length_bin(row.question) == name for row in rows) for name in LENGTH_BINS]
    assert all(200 <= count <= 300 for count in counts)
