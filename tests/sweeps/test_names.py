"""Folder names of jobs: readable, unique, fit for every file system and shell."""

import re

from hypothesis import given
from hypothesis import strategies as st

from meqsum_lightning.sweeps.names import job_name, short_labels, unique_name


def name_of(otherwise="train", **values):
    values = {key.replace("__", "."): value for key, value in values.items()}
    return job_name(values, short_labels(list(values)), otherwise)


def test_what_differs_in_short():
    assert name_of(adapter__r="4", adapter__target_modules="[q,v]") == "r-4_target-modules-q+v"
    assert name_of(data__path="'/some/where/my questions.csv'") == "path-my-questions.csv"
    assert name_of(adapter__layers="null") == "layers-null"
    assert name_of() == "train"


def test_keys_that_end_alike_are_told_apart():
    name = name_of(adapter__dropout="0.1", model__dropout="0.0")
    assert name == "adapter.dropout-0.1_model.dropout-0.0"


@given(st.lists(st.text(max_size=300), min_size=1, max_size=40))
def test_any_texts_give_unique_plain_names(texts):
    taken: set[str] = set()
    for number, text in enumerate(texts):
        name = unique_name(name_of(data__prompt=text), f"1-{number:016x}", taken)
        assert re.fullmatch(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]*", name)
        assert len(name.encode()) <= 255
        assert name.casefold() not in {other.casefold() for other in taken}
        taken.add(name)


def test_names_of_the_sweep_itself_are_not_taken():
    assert unique_name("logs", "1-0123456789abcdef", ()) == "logs-01234567"
    assert unique_name("Failed", "1-0123456789abcdef", ()) == "Failed-01234567"
