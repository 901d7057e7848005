import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from meqsum_lightning.metrics import intervals
from meqsum_lightning.metrics.intervals import bootstrap_interval, score_summary


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize("rows", [2, 37, 400])
def test_equals_scipy(rows, confidence):
    values = np.random.default_rng(rows).beta(2, 3, rows)
    ours = bootstrap_interval(values, 1000, confidence, seed=5)
    theirs = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=1000,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(5),
    ).confidence_interval
    assert ours.mean == pytest.approx(values.mean(), rel=1e-12)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-12)


def test_width_is_near_the_normal_approximation():
    values = np.random.default_rng(0).beta(2, 3, 500)
    low, high = bootstrap_interval(values, 5000, 0.95, seed=0)[1:]
    expected = 2 * 1.96 * values.std(ddof=1) / np.sqrt(500)
    assert high - low == pytest.approx(expected, rel=0.05)


def test_chunks_do_not_change_the_draws(monkeypatch):
    values = np.random.default_rng(0).random(50)
    whole = bootstrap_interval(values, 300, 0.9, seed=1)
    monkeypatch.setattr(intervals, "_ELEMENTS_PER_CHUNK", 7 * 50)
    assert bootstrap_interval(values, 300, 0.9, seed=1) == whole
    monkeypatch.setattr(intervals, "_ELEMENTS_PER_CHUNK", 1)
    assert bootstrap_interval(values, 300, 0.9, seed=1) == whole
    assert bootstrap_interval(values, 300, 0.9, seed=2) != whole


@pytest.mark.parametrize("values", [[0.3], [0.1] * 7, [0.0, 0.0]])
def test_one_row_and_constant_input(values):
    assert bootstrap_interval(np.array(values), 100, 0.95, 0) == (values[0],) * 3


@settings(max_examples=30)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_ends_are_ordered_and_within_the_values(values):
    mean, low, high = bootstrap_interval(np.array(values), 200, 0.95, 0)
    assert min(values) - 1e-12 <= low <= high <= max(values) + 1e-12
    assert min(values) - 1e-12 <= mean <= max(values) + 1e-12


@pytest.mark.parametrize(
    ("values", "resamples", "confidence"),
    [
        ([], 100, 0.95),
        ([[0.1]], 100, 0.95),
        ([0.1, float("nan")], 100, 0.95),
        ([0.1], 0, 0.95),
        ([0.1], 100, 1.0),
        ([0.1], 100, 0.0),
    ],
)
def test_undefined_input_is_refused(values, resamples, confidence):
    with pytest.raises(ValueError, match=r"expected|finite"):
        bootstrap_interval(np.array(values), resamples, confidence, 0)


def test_summary_has_flat_keys_and_ignores_row_order():
    rows = {7: {"rouge1": 0.2, "rouge2": 0.1}, 3: {"rouge1": 0.9, "rouge2": 0.4}}
    rows[5] = {"rouge2": 0.0, "rouge1": 0.4}
    summary = score_summary(rows, "test", 500, 0.95, 0)
    assert list(summary) == [
        f"test/{key}{end}" for key in ("rouge1", "rouge2") for end in ("", "_low", "_high")
    ]
    assert summary["test/rouge1"] == pytest.approx(0.5)
    alone = bootstrap_interval(np.array([0.9, 0.4, 0.2]), 500, 0.95, 0)
    assert summary["test/rouge1_low"] == alone.low
    assert summary["test/rouge1_high"] == alone.high
    assert all(type(value) is float for value in summary.values())
    assert score_summary(dict(sorted(rows.items())), "test", 500, 0.95, 0) == summary


def test_summary_refuses_nothing_and_uneven_rows():
    with pytest.raises(ValueError, match="no row"):
        score_summary({}, "test", 100, 0.95, 0)
    with pytest.raises(ValueError, match="same names"):
        score_summary({0: {"rouge1": 0.1}, 1: {"rouge2": 0.1}}, "test", 100, 0.95, 0)
