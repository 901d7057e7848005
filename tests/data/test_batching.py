"""Steps: every row once per epoch, the same rows for any number of processes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from meqsum_lightning.data.batching import (
    Cursor,
    pad_width,
    plan_epoch,
    plan_evaluation,
)

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=200)


def plan(lengths: list[int], **changes: int) -> list:
    settings = {"seed": 3, "epoch": 1, "global_batch_size": 8, "micro_batch_size": 3} | changes
    return plan_epoch(lengths, [n % 7 + 1 for n in lengths], **settings)


def rows_of(step: object) -> list[int]:
    return [row for micro in step.micro_batches for row in micro]


@given(LENGTHS, st.integers(1, 40), st.integers(1, 10), st.integers(0, 5))
def test_every_row_is_in_exactly_one_step(lengths, batch, micro, epoch):
    steps = plan(lengths, global_batch_size=batch, micro_batch_size=micro, epoch=epoch)
    assert sorted(row for step in steps for row in rows_of(step)) == list(range(len(lengths)))
    assert len(steps) == -(-len(lengths) // batch)
    assert all(len(m) <= micro for step in steps for m in step.micro_batches)
    assert sum(step.rows for step in steps) == len(lengths)


@given(LENGTHS, st.integers(1, 4))
def test_processes_share_the_steps_of_one(lengths, world):
    alone = plan(lengths)
    shares = [plan(lengths, rank=rank, world_size=world) for rank in range(world)]
    for index, step in enumerate(alone):
        together = [row for share in shares for row in rows_of(share[index])]
        assert sorted(together) == sorted(rows_of(step))
        assert {share[index].target_tokens for share in shares} == {step.target_tokens}


def test_micro_batches_do_not_move_rows_between_steps():
    lengths = list(range(1, 101))
    coarse, fine = plan(lengths, micro_batch_size=8), plan(lengths, micro_batch_size=1)
    assert [rows_of(step) for step in coarse] == [rows_of(step) for step in fine]


def test_order_follows_seed_and_epoch_alone():
    lengths = list(np.random.default_rng(0).integers(1, 200, 100))
    assert plan(lengths) == plan(lengths)
    orders = {
        tuple(map(tuple, map(rows_of, plan(lengths, seed=seed, epoch=epoch))))
        for seed in (0, 1)
        for epoch in (0, 1, 2)
    }
    assert len(orders) == 6


def test_rows_meet_other_rows_in_the_next_epoch():
    lengths = [10] * 64
    first = {frozenset(rows_of(step)) for step in plan(lengths, epoch=0)}
    second = {frozenset(rows_of(step)) for step in plan(lengths, epoch=1)}
    assert not first & second


def test_buckets_waste_little_padding():
    lengths = list(np.random.default_rng(0).integers(10, 300, 800))
    steps = plan(lengths, global_batch_size=16, micro_batch_size=16)
    padded = sum(16 * pad_width([lengths[row] for row in rows_of(step)]) for step in steps)
    shuffled = np.random.default_rng(1).permutation(lengths).reshape(-1, 16)
    plain = sum(16 * pad_width(list(batch)) for batch in shuffled)
    assert padded < 1.1 * sum(lengths) < plain


@given(LENGTHS, st.integers(1, 20), st.integers(1, 5))
def test_evaluation_takes_each_row_once_over_all_processes(lengths, batch, world):
    seen = [
        row
        for rank in range(world)
        for rows in plan_evaluation(lengths, batch, rank, world)
        for row in rows
    ]
    assert sorted(seen) == list(range(len(lengths)))


def test_evaluation_begins_with_the_longest_rows():
    assert plan_evaluation([3, 9, 5], 2) == [(1, 2), (0,)]


def test_cursor_goes_on_to_the_next_epoch():
    cursor = Cursor()
    for _ in range(5):
        cursor.advance(3)
    assert (cursor.epoch, cursor.step, cursor.global_step) == (1, 2, 5)


def test_width_is_a_multiple_of_eight():
    assert [pad_width([n]) for n in (1, 8, 9)] == [8, 8, 16]
