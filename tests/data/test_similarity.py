"""Near-duplicates: exact against all pairs, short texts, and groups."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meqsum_lightning.data.rows import Row
from meqsum_lightning.data.similarity import (
    duplicate_groups,
    equal_groups,
    jaccard,
    near_duplicate_pairs,
    normalised,
)
from tests.data.conftest import make_rows

QUESTIONS = st.lists(
    st.lists(st.sampled_from("abcd"), max_size=9).map(" ".join) | st.sampled_from(["?", "!!", " "]),
    max_size=12,
)


def test_jaccard_by_hand():
    # Trigrams: abc bcd cde against abc bcd cdx: 2 shared of 4.
    assert jaccard("a b c d e", "A, b c! d x") == 0.5


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [("flu", "Flu?", 1.0), ("flu", "cold", 0.0), ("the flu", "flu", 0.0), ("???", "!!!", 0.0)],
)
def test_texts_shorter_than_an_ngram(first: str, second: str, expected: float):
    assert jaccard(first, second) == expected


@settings(max_examples=150, deadline=None)
@given(QUESTIONS, st.sampled_from([0.1, 1 / 3, 0.5, 2 / 3, 0.75, 1.0]))
def test_pairs_are_those_of_comparing_all(questions: list[str], threshold: float):
    expected = [
        (i, j)
        for (i, a), (j, b) in combinations(enumerate(questions), 2)
        if a.strip() and b.strip() and jaccard(a, b) >= threshold - 1e-9
    ]
    found = near_duplicate_pairs(questions, threshold)
    assert [(pair.first, pair.second) for pair in found] == expected
    for pair in found:
        assert pair.similarity == pytest.approx(
            jaccard(questions[pair.first], questions[pair.second])
        )


def test_normalised_folds_case_punctuation_and_blanks():
    assert normalised(" What  is\nthe FLU?! ") == "what is the flu"
    assert normalised("???") == "???"


def test_equal_groups_leave_out_nothing_and_none():
    assert equal_groups(["A?", None, "a", "", "", "b"]) == [[0, 2]]


def test_groups_join_questions_and_summaries_in_chains():
    rows = make_rows(
        [
            ("one two three four", "What is flu?"),
            ("something else entirely here", "what is FLU"),
            ("Something else, entirely here!", "How to treat it?"),
            ("nothing like the others at all", "Why?"),
        ]
    ).rows
    assert duplicate_groups(rows, 0.5) == [(0, 1, 2), (3,)]


@given(st.lists(st.tuples(st.sampled_from("ab?"), st.sampled_from("xy!")), max_size=8))
def test_each_row_stands_in_exactly_one_group(pairs: list[tuple[str, str]]):
    rows = [Row(str(at), *pair) for at, pair in enumerate(pairs)]
    groups = duplicate_groups(rows, 0.5)
    assert sorted(place for group in groups for place in group) == list(range(len(rows)))


def test_many_equal_questions_are_grouped_fast():
    rows = make_rows([("the same question again", f"What is {n}?") for n in range(20_000)]).rows
    assert len(duplicate_groups(rows, 0.5)) == 1
