"""Splits: exact where groups allow, whole groups, moved by content and seed alone."""

import json
import random
from collections import Counter
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from meqsum_lightning.data.rows import Row, RowSet
from meqsum_lightning.data.similarity import duplicate_groups, near_duplicate_pairs
from meqsum_lightning.data.sources import load_rows
from meqsum_lightning.data.splits import SPLITS, Split, make_split, plain_split, question_word
from meqsum_lightning.errors import UserError
from tests.data.conftest import OFFICIAL, distinct_rows, make_config, make_rows, needs_official

SCHEMES: list[Any] = [[0.8, 0.1, 0.1], [6, 2, 2], "folds"]


def sizes(split: Split) -> tuple[int, int, int]:
    return len(split.train), len(split.val), len(split.test)


def grouped_rows(group_sizes: list[int]) -> RowSet:
    """Rows of which each group shares its summary and nothing else."""
    pairs = []
    for group, size in enumerate(group_sizes):
        word = ("What", "How", "Is")[group % 3]
        pairs += [
            (f"q{group}x{n} a{group}x{n} b{group}x{n}", f"{word} is s{group}?") for n in range(size)
        ]
    return make_rows(pairs)


def homes(split: Split) -> dict[str, str]:
    return {i: name for name in SPLITS for i in split.ids(name)}


GROUP_SIZES = st.lists(st.integers(1, 4), min_size=10, max_size=20)


@settings(max_examples=80, deadline=None)
@given(GROUP_SIZES, st.sampled_from(SCHEMES), st.integers(0, 5), st.randoms(use_true_random=False))
def test_order_and_ids_move_nothing(
    group_sizes: list[int], scheme: Any, seed: int, chance: random.Random
):
    rows = grouped_rows(group_sizes)
    data = make_config(split=scheme, split_seed=seed, folds=3)
    shuffled = list(rows.rows)
    chance.shuffle(shuffled)
    split = make_split(rows, data)
    assert make_split(RowSet(tuple(shuffled), (), "", ""), data) == split
    renamed = RowSet(
        tuple(Row(f"new {row.id}", row.question, row.summary) for row in shuffled), (), "", ""
    )
    moved = homes(make_split(renamed, data))
    assert {i.removeprefix("new "): name for i, name in moved.items()} == homes(split)


@settings(max_examples=80, deadline=None)
@given(GROUP_SIZES, st.sampled_from(SCHEMES), st.integers(0, 5))
def test_groups_stay_together_and_every_row_has_one_home(
    group_sizes: list[int], scheme: Any, seed: int
):
    rows = grouped_rows(group_sizes)
    split = make_split(rows, make_config(split=scheme, split_seed=seed, folds=3))
    home = homes(split)
    assert sum(sizes(split)) == len(home)
    if scheme != [6, 2, 2]:
        assert set(home) == {row.id for row in rows.rows}
    for group in duplicate_groups(rows.rows, 0.5):
        assert len({home.get(rows.rows[place].id) for place in group}) == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=3, max_size=7), st.data())
def test_counts_are_exact_where_groups_allow(group_sizes: list[int], data: st.DataObject):
    total = sum(group_sizes)
    test = data.draw(st.integers(1, total - 2))
    val = data.draw(st.integers(1, total - test - 1))
    wanted = (total - test - val, val, test)
    possible = any(
        tuple(
            sum(s for s, part in zip(group_sizes, choice, strict=True) if part == p)
            for p in range(3)
        )
        == wanted
        for choice in product(range(3), repeat=len(group_sizes))
    )
    assume(possible)
    split = make_split(grouped_rows(group_sizes), make_config(split=list(wanted)))
    assert sizes(split) == wanted


@settings(max_examples=25, deadline=None)
@given(GROUP_SIZES, st.integers(2, 5), st.integers(0, 3))
def test_folds_test_every_row_once(group_sizes: list[int], folds: int, seed: int):
    rows = grouped_rows(group_sizes)
    splits = [
        make_split(rows, make_config(split="folds", folds=folds, fold=f, split_seed=seed))
        for f in range(folds)
    ]
    tested = Counter(i for split in splits for i in split.test)
    assert tested == Counter(row.id for row in rows.rows)


def test_folds_are_even_and_val_is_a_share_of_the_rest():
    rows = distinct_rows(103)
    for fold in range(5):
        split = make_split(rows, make_config(split="folds", fold=fold, val_fraction=0.25))
        assert len(split.test) in (20, 21)
        assert len(split.val) == round(0.25 * (103 - len(split.test)))


def test_the_seed_moves_rows_and_fingerprints():
    rows = distinct_rows(60)
    one, two = (make_split(rows, make_config(split_seed=seed)) for seed in (0, 1))
    assert set(one.test) != set(two.test)
    assert one.fingerprint != two.fingerprint
    assert one == make_split(rows, make_config())


def test_cleaning_moves_nothing():
    texts = [f"SUBJECT: topic{n}\nMESSAGE:  what_x000D_ about a{n} b{n}" for n in range(40)]
    raw = make_rows([(text, f"What is a{n}?") for n, text in enumerate(texts)])
    from meqsum_lightning.data.cleaning import ALL_STEPS, clean_text

    cleaned = make_rows([(clean_text(r.question, ALL_STEPS), r.summary) for r in raw.rows])
    assert make_split(raw, make_config()) == make_split(cleaned, make_config())


def test_each_split_has_its_share_of_question_words():
    rows = distinct_rows(200)  # five words, 40 rows each
    split = make_split(rows, make_config(split=[0.8, 0.1, 0.1]))
    word = {row.id: question_word(row.summary) for row in rows.rows}
    for name, each in [("train", 32), ("val", 4), ("test", 4)]:
        assert set(Counter(word[i] for i in split.ids(name)).values()) == {each}


@pytest.mark.parametrize(
    ("summary", "word"),
    [
        ("What's the flu?", "what"), ("  WHO makes it?", "who"), ("Are there", "is/are"),
        ("Could I", "can"), ("Does it", "do/does"), ("For flu, what", "other"), ("?", "other"),
        (None, "other"),
    ],
)  # fmt: skip
def test_question_words(summary: str | None, word: str):
    assert question_word(summary) == word


def test_large_groups_do_not_gather_in_one_split():
    rows = grouped_rows([4] * 10 + [1] * 60)
    together = [{row.id for row in rows.rows[at : at + 4]} for at in range(0, 40, 4)]
    in_test = 0
    for seed in range(20):
        split = make_split(rows, make_config(split=[80, 10, 10], split_seed=seed))
        assert sizes(split) == (80, 10, 10)
        in_test += sum(group <= set(split.test) for group in together)
    assert 5 <= in_test <= 40  # 20 expected


def test_counts_below_the_total_leave_rows_out():
    assert sizes(make_split(distinct_rows(30), make_config(split=[5, 6, 7]))) == (5, 6, 7)


def test_fractions_are_rounded_to_the_total():
    assert sizes(make_split(distinct_rows(33), make_config(split=[0.8, 0.1, 0.1]))) == (27, 3, 3)


def test_null_is_given_for_three_files_and_fractions_else():
    rows = distinct_rows(30)
    assert sizes(make_split(rows, make_config(split=None))) == (24, 3, 3)
    named = make_rows([("a", "A?"), ("b", "B?"), ("c", "C?")], ["test", "train", "val"])
    split = make_split(named, make_config(split=None, train_path="x", val_path="y", test_path="z"))
    assert (split.train, split.val, split.test) == (("r1",), ("r2",), ("r0",))


# -- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "changes", "reason"),
    [
        (999, {"split": "800_100_100"}, "asks for 1,000 rows and there are 999 usable"),
        (10, {"split": [8, 2, 1]}, "asks for 11 rows and there are 10"),
        (30, {"split": [0.8, 0.1, 0.2]}, "the fractions sum to 1.1; expected 1"),
        (30, {"split": [0.9, 0.1]}, "has 2 numbers; expected three"),
        (30, {"split": [20, 10, 0]}, "leaves a split empty"),
        (30, {"split": [1.5, -0.25, -0.25]}, "leaves a split empty"),
        (3, {"split": [0.8, 0.1, 0.1]}, r"3 usable rows are too few.*expected at least \d"),
        (6, {"split": "folds", "folds": 5}, "6 usable rows are too few; expected at least 7"),
        (30, {"split": "folds", "folds": 5, "fold": 5}, "there are 5 folds; expected 0 to 4"),
        (30, {"split": "800_100_10"}, "neither a scheme nor a file; expected given, 800_100_100"),
        (30, {"split": "given"}, "30 of 30 rows of test rows say no split"),
    ],
)
def test_mistakes_are_one_line(count: int, changes: dict[str, Any], reason: str):
    with pytest.raises(UserError, match=reason) as error:
        make_split(distinct_rows(count), make_config(**changes))
    assert len(error.value.lines) == 1
    assert error.value.lines[0].startswith("data.")


def test_the_least_number_of_rows_is_enough():
    data = make_config(split=[0.8, 0.1, 0.1])
    with pytest.raises(UserError, match="expected at least 7"):
        make_split(distinct_rows(6), data)
    assert sizes(make_split(distinct_rows(7), data)) == (5, 1, 1)


def test_no_split_is_empty_while_another_can_spare_a_group():
    rows = grouped_rows([5, 5, 5])
    assert sorted(sizes(make_split(rows, make_config(split=[0.8, 0.1, 0.1])))) == [5, 5, 5]


def test_one_group_of_all_rows():
    rows = make_rows([("the same question", f"What is {n}?") for n in range(30)])
    with pytest.raises(UserError, match="the largest group has 30 of 30 rows"):
        make_split(rows, make_config())
    with pytest.raises(UserError, match="near-duplicates stay together"):
        make_split(rows, make_config(split="folds"))


def test_given_without_test_rows():
    rows = make_rows([("a", "A?"), ("b", "B?")], ["train", "val"])
    with pytest.raises(UserError, match="has no usable test row"):
        make_split(rows, make_config(split="given"))


# -- files ----------------------------------------------------------------------------------------


def test_file_round_trip(tmp_path: Path):
    rows = distinct_rows(30)
    split = make_split(rows, make_config(split_seed=3))
    file = tmp_path / "splits.json"
    file.write_text(json.dumps(split.to_json()))
    assert set(split.to_json()) == {"train", "val", "test", "fingerprint"}
    assert make_split(rows, make_config(split=str(file))) == split
    assert Split.from_json(split.to_json()) == split


def test_fingerprint_is_of_ids_by_split():
    assert Split.of(["a", "b"], ["c"], ["d"]) != Split.of(["b", "a"], ["c"], ["d"])
    fingerprints = {
        Split.of(*parts).fingerprint
        for parts in [
            (["a", "b"], ["c"], ["d"]), (["b", "a"], ["c"], ["d"]), (["a"], ["b", "c"], ["d"]),
        ]
    }  # fmt: skip
    assert len(fingerprints) == 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is not readable JSON"),
        ("[]", "'train' is no list of ids"),
        ('{"train": ["r0"], "val": [], "test": ["r1"]}', "'val' is no list of ids"),
        ('{"train": [1], "val": ["r2"], "test": ["r1"]}', "'train' is no list of ids"),
        ('{"train": ["r0"], "val": ["r0"], "test": ["r1"]}', "'r0', …. expected each once|once"),
        ('{"train": ["r0"], "val": ["zz"], "test": ["r1"]}', "'zz', …. are no rows of test rows"),
        (
            '{"train": ["r0"], "val": ["r2"], "test": ["r1"], "fingerprint": "0"}',
            "the file was changed",
        ),
    ],
)
def test_hostile_files(tmp_path: Path, content: str, reason: str):
    file = tmp_path / "ids.json"
    file.write_text(content)
    with pytest.raises(UserError, match=reason) as error:
        make_split(distinct_rows(5), make_config(split=str(file)))
    assert error.value.lines[0].startswith("data.split=")


def test_plain_splits_have_the_same_counts():
    rows = distinct_rows(30)
    split = make_split(rows, make_config())
    ids = [row.id for row in rows.rows]
    ordered, shuffled = plain_split(ids, split, None), plain_split(ids, split, 1)
    assert sizes(ordered) == sizes(shuffled) == sizes(split)
    assert list(ordered.train + ordered.val + ordered.test) == ids
    assert sorted(shuffled.train + shuffled.val + shuffled.test) == sorted(ids)


# -- the official file ----------------------------------------------------------------------------


@needs_official
def test_official_splits():
    data = make_config("meqsum", path=str(OFFICIAL))
    rows = load_rows(data)
    near = [
        (rows.rows[p.first].id, rows.rows[p.second].id)
        for p in near_duplicate_pairs([row.question for row in rows.rows], 0.3)
    ]
    assert len(near) == 2
    same = [
        pair
        for group in duplicate_groups(rows.rows, 0.5)
        for pair in combinations([rows.rows[place].id for place in group], 2)
    ]
    for scheme, wanted in [
        ("800_100_100", (800, 100, 100)),
        ("400_100_500", (400, 100, 500)),
        ("folds", (720, 80, 200)),
    ]:
        split = make_split(rows, make_config("meqsum", path=str(OFFICIAL), split=scheme))
        assert sizes(split) == wanted
        home = homes(split)
        assert all(home[a] == home[b] for a, b in near + same)


def test_groups_that_fit_no_fold_go_to_the_smallest():
    rows = grouped_rows([4] * 5)  # folds of 7, 7 and 6 rows can't be had
    tested = [
        make_split(rows, make_config(split="folds", folds=3, fold=fold)).test for fold in range(3)
    ]
    assert sorted(map(len, tested)) == [4, 8, 8]
    assert len({i for ids in tested for i in ids}) == 20
