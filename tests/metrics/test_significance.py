import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from meqsum_lightning.metrics import intervals, significance
from meqsum_lightning.metrics.significance import (
    approximate_randomisation,
    bootstrap_interval,
    bootstrap_intervals,
    compare_to_baseline,
    holm,
    minimum_detectable_effect,
    paired_bootstrap,
    pairwise_outcomes,
    sign_flip_p,
)

P_VALUES = st.lists(st.floats(0, 1), max_size=12)
# Not sums of tenths: ties of flipped sums are then decided by rounding in scipy.
SCORES = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=25)


def made_scores(rng, systems=2, questions=100, seeds=1, effects=None, seed_sd=0.0):
    """Scores like ROUGE-1: questions differ more than systems do; (systems, seeds, questions)."""
    difficulty = rng.normal(0.45, 0.18, questions)
    own = rng.normal(0, 0.1, (systems, 1, questions))
    noise = rng.normal(0, 0.08, (systems, seeds, questions))
    luck = rng.normal(0, seed_sd, (systems, seeds, 1)) if seed_sd else 0.0
    shift = np.zeros(systems) if effects is None else np.asarray(effects)
    return np.clip(difficulty + own + noise + luck + shift[:, None, None], 0, 1)


# ------------------------------------------------------------------------------------- bootstrap


@pytest.mark.parametrize("questions", [1, 2, 37, 400])
def test_one_seed_is_the_bootstrap_over_questions(questions):
    scores = np.random.default_rng(questions).beta(2, 3, questions)
    expected = intervals.bootstrap_interval(scores, 1000, 0.9, seed=5)
    assert bootstrap_interval(scores, 1000, 0.9, 5) == pytest.approx(expected, rel=1e-12)
    assert bootstrap_interval(scores[None], 1000, 0.9, 5) == pytest.approx(expected, rel=1e-12)


def test_two_way_bootstrap_equals_a_plain_loop():
    scores = made_scores(np.random.default_rng(0), 1, 30, 4)[0]
    low, high = bootstrap_interval(scores, 200, 0.9, 3)[1:]
    questions = np.concatenate([drawn for _, drawn in intervals.draw_rows(30, 200, 3)])
    seeds = np.random.default_rng([3, significance._SYSTEM_SEEDS, 4]).integers(0, 4, (200, 4))
    means = [scores[np.ix_(s, q)].mean() for s, q in zip(seeds, questions, strict=True)]
    assert (low, high) == pytest.approx(np.quantile(means, [0.05, 0.95]), rel=1e-12)


def test_seeds_that_differ_widen_the_interval():
    flat = np.tile(np.random.default_rng(0).beta(2, 3, 80), (5, 1))
    one = bootstrap_interval(flat[0], 2000)
    assert bootstrap_interval(flat, 2000) == pytest.approx(one, abs=1e-12)
    spread = flat + np.linspace(-0.2, 0.2, 5)[:, None]
    low, high = bootstrap_interval(spread, 4000)[1:]
    # Independent sources of variance add up; of that between seeds 4/5 is seen.
    expected = math.sqrt(flat[0].var() / 80 + spread.mean(axis=1).var() / 5) * 2 * 1.96
    assert high - low == pytest.approx(expected, rel=0.06)


def test_covers_the_true_mean_over_questions():
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(500):
        low, high = bootstrap_interval(rng.beta(2, 3, 100), 500, 0.95, trial)[1:]
        covered += low <= 0.4 <= high
    assert stats.binom.ppf(0.0005, 500, 0.94) <= covered <= stats.binom.ppf(0.9995, 500, 0.955)


def test_covers_the_true_mean_over_questions_and_seeds():
    rng = np.random.default_rng(2)
    two_way = one_way = 0
    for trial in range(300):
        scores = 0.4 + rng.normal(0, 0.2, (1, 100)) + rng.normal(0, 0.03, (8, 1))
        scores = scores + rng.normal(0, 0.05, (8, 100))
        low, high = bootstrap_interval(scores, 400, 0.95, trial)[1:]
        two_way += low <= 0.4 <= high
        low, high = bootstrap_interval(scores[:1], 400, 0.95, trial)[1:]
        one_way += low <= 0.4 <= high
    assert two_way >= stats.binom.ppf(0.0005, 300, 0.93)
    # A single seed can't know about seeds.
    assert one_way < 0.85 * 300


def test_many_systems_share_draws_and_change_nothing():
    rng = np.random.default_rng(0)
    systems = {
        "a": made_scores(rng, 1, 40, 3)[0],
        "b": made_scores(rng, 1, 40, 1)[0],
        "c": rng.random(40),
    }
    together = bootstrap_intervals(systems, 500, 0.95, 7)
    assert list(together) == ["a", "b", "c"]
    for name, scores in systems.items():
        assert together[name] == pytest.approx(bootstrap_interval(scores, 500, 0.95, 7), rel=1e-12)
    assert bootstrap_intervals({}) == {}


def test_chunks_do_not_change_results(monkeypatch):
    a, b = made_scores(np.random.default_rng(0), 2, 50, 3, effects=[0.03, 0])
    whole = paired_bootstrap(a, b, 300), approximate_randomisation(a, b, 300)
    for elements in (7 * 50, 1):
        monkeypatch.setattr(intervals, "_ELEMENTS_PER_CHUNK", elements)
        monkeypatch.setattr(significance, "_ELEMENTS_PER_CHUNK", elements)
        bootstrap, p = paired_bootstrap(a, b, 300), approximate_randomisation(a, b, 300)
        assert vars(bootstrap) == pytest.approx(vars(whole[0]), rel=1e-10)
        assert p == whole[1]


# ---------------------------------------------------------------------------------- paired tests


@pytest.mark.parametrize("questions", [20, 150])
def test_paired_bootstrap_equals_scipy(questions):
    a, b = made_scores(np.random.default_rng(questions), 2, questions, effects=[0.02, 0])[:, 0]
    ours = paired_bootstrap(a, b, 1000, 0.9, seed=4)
    theirs = stats.bootstrap(
        (a, b),
        lambda x, y, axis: x.mean(axis=axis) - y.mean(axis=axis),
        n_resamples=1000,
        confidence_level=0.9,
        method="percentile",
        paired=True,
        rng=np.random.default_rng(4),
    )
    ends = theirs.confidence_interval
    assert ours.effect == pytest.approx((a - b).mean(), rel=1e-12)
    assert (ours.low, ours.high) == pytest.approx((ends.low, ends.high), rel=1e-9)
    d = (a - b).mean()
    extreme = (np.abs(theirs.bootstrap_distribution - d) >= abs(d)).sum()
    assert ours.p == pytest.approx((1 + extreme) / 1001, rel=1e-12)


def test_paired_bootstrap_resamples_the_seeds_of_each_system():
    base = np.random.default_rng(0).random(60)
    a, b = base + np.array([[0.1], [0.3]]), base + np.array([[-0.1], [0.1], [0.0]])
    result = paired_bootstrap(a, b, 4000)
    assert result.effect == pytest.approx(0.2)
    # Questions cancel out. Means of two seeds and of three, drawn again: from 0.0 to 0.4.
    assert 0.0 - 1e-9 <= result.low < 0.1 < 0.3 < result.high <= 0.4 + 1e-9


def test_equally_many_seeds_are_drawn_for_each_system_alone():
    base = np.random.default_rng(0).random(60)
    a, b = base + np.array([[0.1], [0.3]]), base + np.array([[-0.1], [0.1]])
    result = paired_bootstrap(a, b, 2000)
    assert (result.low, result.high) == pytest.approx((0.0, 0.4), abs=1e-9)


@pytest.mark.parametrize("questions", [2, 6, 14])
def test_randomisation_is_exact_for_few_questions(questions):
    a, b = made_scores(np.random.default_rng(questions), 2, questions, effects=[0.05, 0])[:, 0]
    theirs = stats.permutation_test(
        (a, b), lambda x, y: (x - y).mean(), permutation_type="samples", n_resamples=np.inf
    )
    assert approximate_randomisation(a, b, 10) == pytest.approx(theirs.pvalue, abs=1e-12)


def test_randomisation_agrees_with_scipy_for_many_questions():
    a, b = made_scores(np.random.default_rng(3), 2, 60, effects=[0.03, 0])[:, 0]
    theirs = stats.permutation_test(
        (a, b),
        lambda x, y, axis: (x - y).mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=10_000,
        rng=np.random.default_rng(0),
    )
    assert 0.01 < theirs.pvalue < 0.5
    noise = 4 * math.sqrt(2 * theirs.pvalue * (1 - theirs.pvalue) / 10_000)
    assert approximate_randomisation(a, b) == pytest.approx(theirs.pvalue, abs=noise)


def test_randomisation_counts_the_observed_assignment():
    a = np.full(40, 0.9) + np.random.default_rng(0).normal(0, 0.01, 40)
    assert approximate_randomisation(a, a - 0.5, 99) == 1 / 100


def test_ties_by_rounding_count():
    # 0.1 + 0.2 - 0.3 is 5.6e-17: the flipped sums equal the observed one but for rounding.
    a, b = np.array([0.3, 0.2, 0.1]), np.zeros(3)
    assert approximate_randomisation(a, b) == 2 / 8
    assert approximate_randomisation(a - 0.1, b) == pytest.approx(4 / 8)


@settings(max_examples=40)
@given(SCORES, st.integers(1, 3))
def test_equal_systems_give_p_1(scores, seeds):
    a = np.tile(scores, (seeds, 1))
    assert approximate_randomisation(a, np.array(scores), 50) == 1.0
    result = paired_bootstrap(a, np.array(scores), 50)
    assert result.p == 1.0
    assert (result.effect, result.low, result.high) == pytest.approx((0, 0, 0), abs=1e-12)


@settings(max_examples=40)
@given(SCORES, st.randoms(use_true_random=False))
def test_swapping_the_systems_flips_the_effect_alone(scores, random):
    a = np.array(scores)
    b = np.array([random.random() for _ in scores])
    assert approximate_randomisation(a, b, 50) == approximate_randomisation(b, a, 50)
    ours, theirs = paired_bootstrap(a, b, 50), paired_bootstrap(b, a, 50)
    assert ours.p == theirs.p
    assert (ours.low, ours.high) == pytest.approx((-theirs.high, -theirs.low), abs=1e-12)
    assert 0 < ours.p <= 1


def test_columns_are_tested_as_if_alone():
    differences = np.random.default_rng(0).normal(0.01, 0.1, (50, 5))
    together = sign_flip_p(differences, 500, 1)
    alone = [sign_flip_p(differences[:, [at]], 500, 1)[0] for at in range(5)]
    assert together.tolist() == alone
    assert sign_flip_p(np.zeros((50, 0)), 500).shape == (0,)


# ------------------------------------------------------------------------------------------ Holm


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([], []),
        ([0.03], [0.03]),
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.02, 0.02, 0.02], [0.06, 0.06, 0.06]),
        ([0.01, 0.02, 0.022], [0.03, 0.04, 0.04]),  # 0.022 * 1 is raised to the one before
        ([0.9, 0.5], [1.0, 1.0]),
        ([0.0, 1.0], [0.0, 1.0]),
    ],
)
def test_holm_by_hand(p_values, adjusted):
    assert holm(p_values).tolist() == pytest.approx(adjusted)


@given(P_VALUES)
def test_holm_is_monotone_and_lies_between_p_and_bonferroni(p_values):
    p, adjusted = np.array(p_values), holm(p_values)
    assert (adjusted >= p).all()
    assert (adjusted <= np.minimum(1, len(p) * p)).all()
    order = np.argsort(p)
    assert (np.diff(adjusted[order]) >= 0).all()


@given(P_VALUES, st.randoms(use_true_random=False))
def test_holm_keeps_the_order_given(p_values, random):
    order = list(range(len(p_values)))
    random.shuffle(order)
    assert holm([p_values[at] for at in order]).tolist() == holm(p_values)[order].tolist()


@pytest.mark.parametrize("p_values", [[1.1], [-0.1], [float("nan")], [[0.5]]])
def test_holm_refuses_what_is_no_p_value(p_values):
    with pytest.raises(ValueError, match="p-values"):
        holm(p_values)


# -------------------------------------------------------------------- minimum detectable effect


def test_detectable_effect_has_the_known_size():
    unit = np.tile([-1.0, 1.0], 500)
    for n, expected in [(100, 0.056), (1000, 0.018)]:
        values = unit[:n] / unit[:n].std(ddof=1) * 0.2
        assert minimum_detectable_effect(values) == pytest.approx(expected, rel=0.02)


def test_detectable_effect_by_hand():
    # sd 0.1 * sqrt(20 / 12), t with 3 degrees of freedom: 3.1824 and 0.9785 from tables.
    values = np.array([0.1, 0.2, 0.3, 0.4])
    expected = (3.1824 + 0.9785) * 0.1 * math.sqrt(20 / 12) / 2
    assert minimum_detectable_effect(values) == pytest.approx(expected, rel=1e-4)


def test_detectable_effect_is_detected_with_its_power():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.2, (100, 2000))
    effect = minimum_detectable_effect(noise[:, 0] / noise[:, 0].std(ddof=1) * 0.2)
    found = (sign_flip_p(noise + effect, 999) <= 0.05).mean()
    assert found == pytest.approx(0.8, abs=0.03)


def test_detectable_effect_of_a_table_is_larger_and_edges_are_defined():
    values = np.random.default_rng(0).normal(0, 0.1, 50)
    assert minimum_detectable_effect(values, comparisons=10) > minimum_detectable_effect(values)
    assert minimum_detectable_effect(values + 5) == pytest.approx(minimum_detectable_effect(values))
    assert minimum_detectable_effect(np.zeros(5)) == 0.0
    assert minimum_detectable_effect(np.array([0.1])) == math.inf


@pytest.mark.parametrize(
    "setting", [{"alpha": 0.0}, {"alpha": 1.0}, {"power": 1.0}, {"power": 0.4}, {"comparisons": 0}]
)
def test_detectable_effect_refuses_settings(setting):
    with pytest.raises(ValueError, match="expected"):
        minimum_detectable_effect(np.array([0.1, 0.2]), **setting)


# ---------------------------------------------------------------------------------------- tables


def test_table_holds_what_pairs_give_alone():
    rng = np.random.default_rng(5)
    base, good, same = made_scores(rng, 3, 80, 3, effects=[0, 0.08, 0])
    systems = {"good": good, "base": base, "same": same[:2], "copy": base}
    table = compare_to_baseline(systems, "base", resamples=800, seed=3)
    assert [row.system for row in table] == ["good", "same", "copy"]
    for row in table:
        pair = paired_bootstrap(systems[row.system], base, 800, seed=3)
        assert (row.effect, row.low, row.high, row.p_bootstrap) == pytest.approx(
            (pair.effect, pair.low, pair.high, pair.p), rel=1e-9
        )
        p = approximate_randomisation(systems[row.system], base, 800, seed=3)
        assert (row.baseline, row.p_randomisation) == ("base", p)
        assert row.wins + row.ties + row.losses == row.questions == 80
        assert row.minimum_detectable_effect == minimum_detectable_effect(
            systems[row.system].mean(axis=0) - base.mean(axis=0), comparisons=3
        )
    assert [row.p_holm for row in table] == holm([row.p_randomisation for row in table]).tolist()
    good_row, _, copy_row = table
    assert good_row.p_holm < 0.01 < good_row.low
    assert (copy_row.p_randomisation, copy_row.p_bootstrap, copy_row.ties) == (1.0, 1.0, 80)
    assert copy_row.minimum_detectable_effect == 0.0
    assert all(type(value) in (str, int, float) for row in table for value in vars(row).values())


def test_family_wise_error_stays_below_five_percent_under_the_null():
    rng = np.random.default_rng(0)
    wrong = uncorrected = 0
    for table in range(1000):
        scores = made_scores(rng, systems=6, questions=100)
        systems = {str(at): scores[at] for at in range(6)}
        rows = compare_to_baseline(systems, "0", resamples=299, seed=table)
        wrong += any(row.p_holm <= 0.05 for row in rows)
        uncorrected += any(row.p_randomisation <= 0.05 for row in rows)
    assert wrong <= stats.binom.ppf(0.99, 1000, 0.05)
    # The simulation can tell: without correction the table errs far more often.
    assert uncorrected > 100


def test_one_question_and_one_system():
    row = compare_to_baseline({"a": np.array([0.5]), "b": np.array([0.4])}, "b", 100)[0]
    assert (row.p_randomisation, row.wins) == (1.0, 1)
    assert row.minimum_detectable_effect == math.inf
    assert compare_to_baseline({"a": np.array([0.5])}, "a", 100) == []


def test_outcomes_mirror_each_other():
    a = np.array([[0.1, 0.5, 0.3], [0.3, 0.5, 0.3]])  # means 0.2, 0.5, 0.3
    outcomes = pairwise_outcomes({"a": a, "b": np.array([0.2, 0.4, 0.9])})
    assert outcomes.tolist() == [[[0, 3, 0], [1, 1, 1]], [[1, 1, 1], [0, 3, 0]]]
    assert pairwise_outcomes({}).shape == (0, 0, 3)


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        ([0.1, 0.2], [0.1], "same questions, got a: 2, b: 1"),
        ([], [], "shape"),
        ([[[0.1]]], [0.1], "shape"),
        ([0.1, float("nan")], [0.1, 0.2], "finite"),
    ],
)
def test_scores_that_cannot_be_compared_are_refused(a, b, reason):
    with pytest.raises(ValueError, match=reason):
        compare_to_baseline({"a": np.array(a), "b": np.array(b)}, "a", 10)
    with pytest.raises(ValueError, match=r"same questions|shape|finite"):
        paired_bootstrap(np.array(a), np.array(b), 10)


def test_unknown_baseline_and_settings_are_refused():
    systems = {"a": np.array([0.1, 0.2])}
    with pytest.raises(ValueError, match="baseline 'b' is none of the systems: a"):
        compare_to_baseline(systems, "b")
    for resamples, confidence in [(0, 0.95), (10, 1.0)]:
        with pytest.raises(ValueError, match="resamples"):
            compare_to_baseline(systems, "a", resamples, confidence)
        with pytest.raises(ValueError, match="resamples"):
            bootstrap_interval(systems["a"], resamples, confidence)
