"""Cleaning: what each step does, that twice is once, and that words never depend on it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meqsum_lightning.data.cleaning import ALL_STEPS, clean_text, decode_escapes, is_blank
from meqsum_lightning.data.similarity import normalised

PIECES = [
    "SUBJECT:", "MESSAGE :", "subject: ", "MESSAGE", ":", "_x000D_", "_x005F_", "x000D_", "_x00",
    "0D_", "_xD800_", "_x0041_", "\n", "\r\n", "\r", "\t", "  ", "\u00a0", "\u2028", "\x0b",
    "pain", "A", "_x0009_",
]  # fmt: skip
TEXTS = st.one_of(
    st.text(), st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12).map("".join)
)
STEPS = st.sets(st.sampled_from(ALL_STEPS)).map(sorted)


def test_no_steps_keep_the_text():
    text = "SUBJECT: a\r\nMESSAGE:  b_x000D_ \n"
    assert clean_text(text, []) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SUBJECT: flu\nMESSAGE: how long?", "flu\nhow long?"),
        ("MESSAGE: SUBJECT: twice", "twice"),
        ("  message : lower", "lower"),
        ("the subject: stays, MESSAGE: too", "the subject: stays, MESSAGE: too"),
        ("SUBJECTS: no marker", "SUBJECTS: no marker"),
    ],
)
def test_markers(text: str, expected: str):
    assert clean_text(text, ["markers"]) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_x000D_\nb", "a\nb"),
        ("a_x000D_b", "a\nb"),
        ("a_x005F_x000D_b", "a\nb"),
        ("tab_x0009_x", "tab\tx"),
        ("bell_x0007_", "bell"),
        ("half_xD800_", "half\ufffd"),
        ("snake_xylo_case", "snake_xylo_case"),
    ],
)
def test_escapes(text: str, expected: str):
    assert clean_text(text, ["escapes"]) == expected


def test_escapes_of_a_file_are_decoded_once():
    assert decode_escapes("_x005F_x000D_") == "_x000D_"


def test_blanks():
    assert clean_text("  a \t b\u00a0c \n\n \n d  ", ["blanks"]) == "a b c\nd"


@given(TEXTS, STEPS)
def test_cleaning_twice_changes_nothing(text: str, steps: list[str]):
    once = clean_text(text, steps)
    assert clean_text(once, steps) == once


@given(TEXTS, STEPS)
def test_compared_words_do_not_depend_on_cleaning(text: str, steps: list[str]):
    assert normalised(clean_text(text, steps)) == normalised(text)


@pytest.mark.parametrize("text", ["", " \n\t", "\u200b\ufeff", "\x00\x07", "\u00a0"])
def test_blank(text: str):
    assert is_blank(text)


@pytest.mark.parametrize("text", ["?", "NA", "0", "é"])
def test_not_blank(text: str):
    assert not is_blank(text)
