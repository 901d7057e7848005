"""Which rows make which optimizer step: length-bucketed, random over epochs, a pure function of
(seed, epoch). Knows lengths and positions of rows, not their text.

The rows of a step never depend on the number of processes or on the size of a micro-batch, so that
accumulation, several processes and a resumed run follow the same steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Rows are sorted by length inside pools of so many steps: padding shrinks to a few per cent while
# a batch still meets different neighbours in each epoch.
POOL_STEPS = 16
PAD_MULTIPLE = 8
IGNORED_LABEL = -100


@dataclass(frozen=True, slots=True)
class Step:
    """What one process does in one optimizer step.

    Attributes:
        micro_batches: Positions of rows, one tuple per forward pass; empty when a last step has
            fewer rows than there are processes.
        target_tokens: Target tokens of the step over all processes and micro-batches: what the
            summed loss is divided by.
        rows: Rows of the step over all processes.
    """

    micro_batches: tuple[tuple[int, ...], ...]
    target_tokens: int
    rows: int


@dataclass(slots=True)
class Cursor:
    """Where training stands: the next step to take.

    Attributes:
        epoch: Epoch, from 0.
        step: Step inside the epoch, from 0.
        global_step: Optimizer steps taken since the start.
    """

    epoch: int = 0
    step: int = 0
    global_step: int = 0

    def advance(self, steps_in_epoch: int) -> None:
        """Moves past one step; after the last one of an epoch, to the next epoch."""
        self.global_step += 1
        self.step += 1
        if self.step >= steps_in_epoch:
            self.epoch, self.step = self.epoch + 1, 0


def plan_epoch(
    source_lengths: Sequence[int],
    target_lengths: Sequence[int],
    *,
    seed: int,
    epoch: int,
    global_batch_size: int,
    micro_batch_size: int,
    rank: int = 0,
    world_size: int = 1,
) -> list[Step]:
    """Plans the steps of one epoch for one process; every row is in exactly one step.

    Args:
        source_lengths: Tokens of each row's question.
        target_lengths: Tokens of each row's summary.
        seed: Seed of the data order.
        epoch: Epoch, from 0.
        global_batch_size: Rows per step over all processes.
        micro_batch_size: Rows per forward pass of one process.
        rank: This process.
        world_size: Number of processes.

    Returns:
        `ceil(rows / global_batch_size)` steps; one of them may have fewer rows.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(source_lengths))
    lengths = np.asarray(source_lengths)
    pool = global_batch_size * POOL_STEPS
    batches: list[np.ndarray] = []
    for start in range(0, len(order), pool):
        rows = order[start : start + pool]
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        batches += [
            rows[at : at + global_batch_size] for at in range(0, len(rows), global_batch_size)
        ]
    steps = []
    for index in generator.permutation(len(batches)):
        batch = batches[index].tolist()
        # Sorted rows dealt out in turn give processes equal work.
        mine = batch[rank::world_size]
        micro = tuple(
            tuple(mine[at : at + micro_batch_size]) for at in range(0, len(mine), micro_batch_size)
        )
        tokens = sum(target_lengths[row] for row in batch)
        steps.append(Step(micro, tokens, len(batch)))
    return steps


def plan_evaluation(
    source_lengths: Sequence[int], batch_size: int, rank: int = 0, world_size: int = 1
) -> list[tuple[int, ...]]:
    """Batches of rows of similar length, longest first, each row once over all processes.

    Args:
        source_lengths: Tokens of each row's question.
        batch_size: Rows per batch.
        rank: This process.
        world_size: Number of processes.

    Returns:
        Positions of rows, one tuple per batch. Longest first: memory that suffices for the first
        batch suffices for all.
    """
    order = sorted(range(len(source_lengths)), key=lambda row: (-source_lengths[row], row))
    mine = order[rank::world_size]
    return [tuple(mine[at : at + batch_size]) for at in range(0, len(mine), batch_size)]


def pad_width(lengths: Sequence[int]) -> int:
    """Width of a padded batch: the longest row, rounded up to a multiple of 8 (tensor cores)."""
    return -(-max(lengths) // PAD_MULTIPLE) * PAD_MULTIPLE
