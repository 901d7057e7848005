"""The state of a training: what is best, when to stop, and that all of it survives a save."""

import io
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from meqsum_lightning.config.compose import build_config
from meqsum_lightning.data.batching import Cursor
from meqsum_lightning.engine.job import BestTracker, EarlyStopper, TrainingJob

VALUES = st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=30)


@given(VALUES, st.sampled_from(["max", "min"]))
def test_the_best_is_the_best_finite_value(values, mode):
    tracker = BestTracker(mode)
    for epoch, value in enumerate(values):
        tracker.update(value, epoch, {"val/loss": value})
    finite = [value for value in values if math.isfinite(value)]
    assert tracker.value == ((max if mode == "max" else min)(finite) if finite else None)
    if finite:
        # The first of equals.
        assert tracker.epoch == values.index(tracker.value)


def test_nan_is_never_best_and_counts_as_no_improvement():
    tracker, stopper = BestTracker("max"), EarlyStopper(patience=2)
    for epoch, value in enumerate([0.5, math.nan, math.nan]):
        stopper.update(tracker.update(value, epoch, {}))
    assert tracker.value == 0.5 and tracker.epoch == 0
    assert stopper.should_stop


def test_a_small_gain_is_no_improvement():
    tracker = BestTracker("min", min_delta=0.1)
    assert [tracker.update(value, 0, {}) for value in (1.0, 0.95, 0.85)] == [True, False, True]


def test_without_patience_nothing_stops():
    stopper = EarlyStopper(None)
    for _ in range(100):
        stopper.update(False)
    assert not stopper.should_stop


@pytest.fixture
def make_job():
    def make(*overrides: str) -> TrainingJob:
        torch.manual_seed(0)
        cfg = build_config("train", overrides)
        return TrainingJob(nn.Linear(3, 2), cfg.optim, cfg.checkpoint, 10, Cursor(), seed=0)

    return make


@pytest.mark.parametrize("optim", ["adamw", "adafactor"])
def test_a_saved_job_goes_on_as_if_it_had_not_been_saved(optim, make_job):
    def step(job: TrainingJob, number: int) -> None:
        torch.manual_seed(number)
        job.model(torch.randn(4, 3)).pow(2).sum().backward()
        job.optimizer.step()
        job.optimizer.zero_grad()
        job.step_taken(steps_in_epoch=4)

    whole = make_job(f"optim={optim}")
    for number in range(9):
        step(whole, number)
    first = make_job(f"optim={optim}")
    for number in range(5):
        step(first, number)
    first.report_validation({"val/rougeL": 0.25, "val/loss": 1.0}, epoch=0)
    stream = io.BytesIO()
    torch.save(first.state_dict(), stream)
    stream.seek(0)
    second = make_job(f"optim={optim}")
    second.load_state_dict(torch.load(stream, weights_only=True))
    assert second.best.value == 0.25 and second.cursor == Cursor(1, 1, 5)
    for number in range(5, 9):
        step(second, number)
    assert second.cursor == whole.cursor and second.learning_rate == whole.learning_rate
    for name, parameter in whole.parameters.items():
        assert torch.equal(second.parameters[name], parameter), name
