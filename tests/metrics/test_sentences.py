import pytest
from hypothesis import given
from hypothesis import strategies as st

from meqsum_lightning.metrics.sentences import split_sentences


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", []),
        (" \n\t\n", []),
        ("One line", ["One line"]),
        ("does it help. what dose is safe.", ["does it help.", "what dose is safe."]),
        ("Why? Because! Ok", ["Why?", "Because!", "Ok"]),
        ("first line\nsecond line.\r\n\nthird", ["first line", "second line.", "third"]),
        ("I saw Dr. Smith. He helped.", ["I saw Dr. Smith.", "He helped."]),
        ("Pain killers, e.g. Aspirin, help.", ["Pain killers, e.g. Aspirin, help."]),
        ("I take 5 mg. daily since May.", ["I take 5 mg. daily since May."]),
        ("I take 5 mg. Is it safe?", ["I take 5 mg.", "Is it safe?"]),
        ("Is No. 5 better? No. It is not.", ["Is No. 5 better?", "No.", "It is not."]),
        ("A dose of 0.5 mg at 8.30 a.m. is fine.", ["A dose of 0.5 mg at 8.30 a.m. is fine."]),
        ("See www.nih.gov for more.", ["See www.nih.gov for more."]),
        ("I lack vitamin D. What helps?", ["I lack vitamin D.", "What helps?"]),
        ("It hurts ... sometimes... Why?", ["It hurts ... sometimes...", "Why?"]),
        ("1. What is it? 2. Is it safe?", ["1. What is it?", "2. Is it safe?"]),
        ("I am 45. What now?", ["I am 45.", "What now?"]),
        ('She asked "why?" Then left.', ['She asked "why?"', "Then left."]),
        ("It is mild (see Fig. 2). Is it?", ["It is mild (see Fig. 2).", "Is it?"]),
        ("Is St. John's wort safe (vs. SSRIs)?", ["Is St. John's wort safe (vs. SSRIs)?"]),
    ],
)
def test_rules(text, sentences):
    assert split_sentences(text) == sentences


@given(st.text(alphabet=st.sampled_from("aB1.?! \n\"')e…mgDr"), max_size=80) | st.text())
def test_nothing_is_lost_and_sentences_are_stable(text):
    sentences = split_sentences(text)
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert all(item and item == item.strip() for item in sentences)
    assert not any("\n" in item for item in sentences)


def test_a_long_hostile_line_is_fast():
    assert len(split_sentences("a. " * 20_000)) == 20_000
    assert len(split_sentences("mg. a " * 20_000)) == 1
    assert len(split_sentences("." * 200_000)) == 1
    assert len(split_sentences('."' * 100_000)) == 1
