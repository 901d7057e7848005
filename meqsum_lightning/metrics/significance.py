"""Is a difference between systems real: intervals over questions and seeds, paired tests, Holm.

Pure arithmetic on scores that others collected; intervals of one run are in `intervals.py`.

A system's scores are an array (seeds, questions), or (questions,) for a single seed. Systems that
are compared cover the same questions in the same order; their numbers of seeds may differ.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from meqsum_lightning.metrics.intervals import (
    Interval,
    check_settings,
    draw_rows,
    percentile_ends,
)

# Up to this many questions all assignments of signs are enumerated: the p-value is then exact.
EXACT_QUESTIONS = 14

# Differences of scores up to this size are rounding errors: ties.
TIE = 1e-9

_ELEMENTS_PER_CHUNK = 1 << 20
# Streams of random numbers beside the draws of questions. None is 0: numpy pads seeds with zeros.
_BASELINE_SEEDS, _SYSTEM_SEEDS, _SIGNS = 1, 2, 3


@dataclass(frozen=True)
class PairedBootstrap:
    """Mean difference of two systems over the same questions.

    Attributes:
        effect: Mean of the first minus mean of the second.
        low: Lower end of the interval of the effect.
        high: Upper end.
        p: Two-sided p-value of "no difference", in (0, 1].
    """

    effect: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Comparison:
    """One system against the baseline.

    Attributes:
        system: Name of the system.
        baseline: Name of the baseline.
        questions: How many questions both were scored on.
        effect: Mean of the system minus mean of the baseline.
        low: Lower end of the effect's bootstrap interval, over questions and seeds.
        high: Upper end.
        p_randomisation: Two-sided p-value of the sign-flip test, not corrected.
        p_bootstrap: Two-sided p-value of the paired bootstrap, not corrected.
        p_holm: `p_randomisation`, corrected over the comparisons of the table.
        minimum_detectable_effect: Smallest true difference that a test corrected for the table
            shows with the wanted power on this many questions; inf with one question.
        wins: Questions where the system's mean over seeds is higher.
        ties: Questions where they are equal, up to `TIE`.
        losses: Questions where it is lower.
    """

    system: str
    baseline: str
    questions: int
    effect: float
    low: float
    high: float
    p_randomisation: float
    p_bootstrap: float
    p_holm: float
    minimum_detectable_effect: float
    wins: int
    ties: int
    losses: int


def bootstrap_interval(
    scores: np.ndarray, resamples: int = 10_000, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Percentile interval of a mean over questions and seeds, both of which are resampled.

    Questions and seeds are drawn with replacement, independently of each other; a resampled mean is
    that of the drawn block (the pigeonhole bootstrap: Owen, "The pigeonhole bootstrap", Annals of
    Applied Statistics 1, 2007). The interval says how much the mean would move with other questions
    and with other training seeds. With one seed it is the bootstrap over questions of
    `intervals.bootstrap_interval`, on the same draws.

    Limits: with n seeds the variance between seeds is underestimated by (n - 1) / n, so that few
    seeds give too narrow intervals where seeds matter much; one seed says nothing about seeds. The
    noise peculiar to one question in one seed is counted up to three times, which makes intervals a
    little wide.

    Args:
        scores: (seeds, questions) or (questions,).
        resamples: How many times questions and seeds are drawn.
        confidence: Coverage, in (0, 1).
        seed: Seed of the draws.

    Returns:
        The mean of all scores and the ends of its interval.

    Raises:
        ValueError: Scores that are empty, not finite or of another shape, fewer than one resample,
            or a confidence outside (0, 1).
    """
    return bootstrap_intervals({"": scores}, resamples, confidence, seed)[""]


def bootstrap_intervals(
    systems: Mapping[str, np.ndarray],
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """`bootstrap_interval` of many systems on shared draws: far faster than one after the other.

    Args:
        systems: Scores by name; all on the same number of questions.
        resamples: As there.
        confidence: As there.
        seed: As there; a system's interval does not depend on which others are given.

    Returns:
        Intervals by name, in the order given.

    Raises:
        ValueError: As there, or systems with different numbers of questions.
    """
    check_settings(resamples, confidence)
    tables = _tables(systems)
    if not tables:
        return {}
    arrays = list(tables.values())
    low, high = percentile_ends(
        _resampled_means(arrays, [_SYSTEM_SEEDS] * len(arrays), resamples, seed), confidence
    )
    intervals = {}
    for at, (name, scores) in enumerate(tables.items()):
        first = float(scores[0, 0])
        if (scores == first).all():
            # Summing equal numbers may miss them by a rounding error.
            intervals[name] = Interval(first, first, first)
        else:
            intervals[name] = Interval(float(scores.mean()), float(low[at]), float(high[at]))
    return intervals


def paired_bootstrap(
    a: np.ndarray,
    b: np.ndarray,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> PairedBootstrap:
    """Interval and p-value of a mean difference, questions paired and seeds resampled within each.

    Each resample draws questions once for both systems (Koehn, "Statistical significance tests for
    machine translation evaluation", EMNLP 2004) and seeds for each on its own. The interval is the
    percentile interval of the resampled differences d*. The p-value centres them at zero, since the
    null hypothesis is "no difference" (Berg-Kirkpatrick, Burkett and Klein, "An empirical
    investigation of statistical significance in NLP", EMNLP 2012), two-sided and with the observed
    difference d counted as one resample:

        p = (1 + #{|d* - d| >= |d|}) / (1 + resamples)

    Bias: a resample's variance is (n - 1) / n of the true one and its tails are those of a normal,
    not of a t distribution. Below some 30 questions, and with few seeds (2 seeds: half the
    variance between seeds is missed), p-values are too small and intervals too narrow. The
    sign-flip test of `approximate_randomisation` has no such bias over questions.

    Args:
        a: Scores of the first system, (seeds, questions) or (questions,).
        b: Scores of the second on the same questions.
        resamples: How many times questions and seeds are drawn.
        confidence: Coverage of the interval, in (0, 1).
        seed: Seed of the draws.

    Returns:
        The effect a - b, its interval and p-value.

    Raises:
        ValueError: As `bootstrap_interval`, or different numbers of questions.
    """
    check_settings(resamples, confidence)
    tables = _tables({"b": b, "a": a})
    return _paired_bootstraps(list(tables.values()), resamples, confidence, seed)[0]


def approximate_randomisation(
    a: np.ndarray, b: np.ndarray, resamples: int = 10_000, seed: int = 0
) -> float:
    """Two-sided p-value of a paired sign-flip test on the mean difference.

    If the systems don't differ, a question's difference (of the means over seeds) is as likely to
    have the other sign. Signs are flipped at random (Noreen, "Computer-intensive methods for
    testing hypotheses", 1989), and the observed assignment counts as one of them, without which
    p-values would be too small (Phipson and Smyth, "Permutation p-values should never be zero",
    2010):

        p = (1 + #{|mean of flipped| >= |mean|}) / (1 + resamples)

    With at most `EXACT_QUESTIONS` questions all assignments are enumerated and p is exact.

    The test speaks about the trained systems on other questions, not about other training seeds: an
    effect of luck in training is a difference to it. Averaging several seeds makes it small; the
    interval of `paired_bootstrap` includes it.

    Args:
        a: Scores of the first system, (seeds, questions) or (questions,).
        b: Scores of the second on the same questions.
        resamples: How many assignments of signs are drawn.
        seed: Seed of the draws.

    Returns:
        p in (0, 1]; 1 for systems with equal scores.

    Raises:
        ValueError: As `paired_bootstrap`.
    """
    check_settings(resamples, 0.5)
    tables = _tables({"a": a, "b": b})
    differences = tables["a"].mean(axis=0) - tables["b"].mean(axis=0)
    return float(sign_flip_p(differences[:, None], resamples, seed)[0])


def sign_flip_p(differences: np.ndarray, resamples: int = 10_000, seed: int = 0) -> np.ndarray:
    """The p-values of `approximate_randomisation` for many comparisons that share their signs.

    Args:
        differences: Paired differences, one column per comparison: (questions, comparisons).
        resamples: As there.
        seed: As there.

    Returns:
        (comparisons,), each as if its column had been tested alone.
    """
    questions = len(differences)
    observed = np.abs(differences.sum(axis=0))
    # Sums of the same numbers in another order differ by rounding; such a tie counts.
    least = observed - TIE * np.maximum(1.0, np.abs(differences).sum(axis=0))
    exact = questions <= EXACT_QUESTIONS
    count, total = np.zeros(differences.shape[1]), 0
    drawn = _drawn_signs(resamples, seed, differences.shape)
    for signs in _all_signs(questions) if exact else drawn:
        count += (np.abs(signs @ differences) >= least).sum(axis=0)
        total += len(signs)
    return count / total if exact else (1 + count) / (1 + total)


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's step-down correction, which holds whatever the dependence between the tests.

    The i-th smallest of m p-values becomes the largest of (m - j + 1) p_j over j <= i, at most 1
    (Holm, "A simple sequentially rejective multiple test procedure", 1979).

    Args:
        p_values: p-values in [0, 1]: (m,).

    Returns:
        Adjusted p-values in the order given: (m,). Rejecting where they are at most alpha keeps
        the probability of any false rejection at or below alpha.

    Raises:
        ValueError: A value outside [0, 1] or not a number.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0.0) & (p <= 1.0)).all():
        raise ValueError("expected p-values in [0, 1]")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def minimum_detectable_effect(
    differences: np.ndarray, alpha: float = 0.05, power: float = 0.8, comparisons: int = 1
) -> float:
    """Smallest true mean difference that a two-sided paired test would show with a given power.

        (t[1 - alpha / (2 comparisons), n - 1] + t[power, n - 1]) * sd / sqrt(n)

    with n questions, sd their paired differences' standard deviation and t[q, df] the quantile of
    the t distribution (Cohen, "Statistical power analysis for the behavioral sciences", 1988,
    chapter 2, in its usual approximation by central t; Card et al., "With little power comes great
    responsibility", EMNLP 2020, for why it belongs beside a table). It judges the size of the test
    set, not the observed effect. Dividing alpha by the number of comparisons is Holm's first step:
    for the later ones it is cautious. With sd = 0.2, 100 questions show 0.057 and 1,000 show 0.018.

    Args:
        differences: Paired differences, one per question (of means over seeds): (questions,).
        alpha: Two-sided level of the test, in (0, 1).
        power: Probability with which the effect is to be shown, in [0.5, 1).
        comparisons: Tests among which alpha is divided.

    Returns:
        The effect in the unit of the scores; 0 if all differences are equal, inf for one question,
        from which no spread can be told.

    Raises:
        ValueError: No finite differences, or settings outside their range.
    """
    from scipy.stats import t

    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise ValueError("expected finite differences of at least one question")
    if not 0.0 < alpha < 1.0 or not 0.5 <= power < 1.0 or comparisons < 1:
        raise ValueError(
            "expected 0 < alpha < 1, 0.5 <= power < 1 and comparisons >= 1, "
            f"got alpha={alpha}, power={power}, comparisons={comparisons}"
        )
    n = len(values)
    if n == 1:
        return math.inf
    quantiles = t.ppf([1.0 - alpha / (2.0 * comparisons), power], n - 1).sum()
    return float(quantiles * values.std(ddof=1) / math.sqrt(n))


def compare_to_baseline(
    systems: Mapping[str, np.ndarray],
    baseline: str,
    resamples: int = 10_000,
    confidence: float = 0.95,
    alpha: float = 0.05,
    power: float = 0.8,
    seed: int = 0,
) -> list[Comparison]:
    """Every other system against one that was named before anybody looked at these scores.

    The baseline must not be chosen by these scores: the best of many on the test questions is best
    by luck too, and comparing with it finds differences where there are none.

    All comparisons share their draws of questions and signs, so each result is what
    `paired_bootstrap` and `approximate_randomisation` give for the pair alone. Holm's correction
    runs over the comparisons that are returned.

    Args:
        systems: Scores by name.
        baseline: Name of the one to compare with.
        resamples: Draws of questions and seeds, and of signs.
        confidence: Coverage of the effects' intervals, in (0, 1); not corrected for the table.
        alpha: Level of the whole table, for the minimum detectable effect.
        power: Power for the minimum detectable effect.
        seed: Seed of the draws.

    Returns:
        One comparison per system but the baseline, in the order given.

    Raises:
        ValueError: An unknown baseline, or scores and settings as in `paired_bootstrap`.
    """
    check_settings(resamples, confidence)
    tables = _tables(systems)
    if baseline not in tables:
        raise ValueError(f"baseline {baseline!r} is none of the systems: {', '.join(tables)}")
    names = [name for name in tables if name != baseline]
    if not names:
        return []
    base = tables[baseline]
    bootstraps = _paired_bootstraps(
        [base, *(tables[name] for name in names)], resamples, confidence, seed
    )
    differences = np.stack(
        [tables[name].mean(axis=0) - base.mean(axis=0) for name in names], axis=1
    )
    p_values = sign_flip_p(differences, resamples, seed)
    corrected = holm(p_values)
    comparisons = []
    for at, (name, bootstrap) in enumerate(zip(names, bootstraps, strict=True)):
        column = differences[:, at]
        wins, losses = int((column > TIE).sum()), int((column < -TIE).sum())
        comparisons.append(
            Comparison(
                system=name,
                baseline=baseline,
                questions=len(column),
                effect=bootstrap.effect,
                low=bootstrap.low,
                high=bootstrap.high,
                p_randomisation=float(p_values[at]),
                p_bootstrap=bootstrap.p,
                p_holm=float(corrected[at]),
                minimum_detectable_effect=minimum_detectable_effect(
                    column, alpha, power, len(names)
                ),
                wins=wins,
                ties=len(column) - wins - losses,
                losses=losses,
            )
        )
    return comparisons


def pairwise_outcomes(systems: Mapping[str, np.ndarray]) -> np.ndarray:
    """Wins, ties and losses of every system against every other, by question.

    Args:
        systems: Scores by name, on the same questions; means over seeds are compared.

    Returns:
        Counts of questions, (systems, systems, 3): `[i, j]` holds how often system i is above,
        level with (up to `TIE`) and below system j, in the order given.

    Raises:
        ValueError: As `bootstrap_intervals`.
    """
    tables = _tables(systems)
    means = [scores.mean(axis=0) for scores in tables.values()]
    outcomes = np.zeros((len(means), len(means), 3), dtype=np.int64)
    if not means:
        return outcomes
    stacked = np.stack(means)
    for at, scores in enumerate(stacked):
        wins = (scores - stacked > TIE).sum(axis=1)
        losses = (scores - stacked < -TIE).sum(axis=1)
        outcomes[at] = np.stack([wins, stacked.shape[1] - wins - losses, losses], axis=1)
    return outcomes


def _tables(systems: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Scores as checked arrays (seeds, questions) on the same number of questions."""
    tables = {}
    for name, scores in systems.items():
        table = np.atleast_2d(np.asarray(scores, dtype=np.float64))
        if table.ndim != 2 or table.size == 0:
            raise ValueError(f"expected scores (seeds, questions), got shape {np.shape(scores)}")
        if not np.isfinite(table).all():
            raise ValueError("scores must be finite")
        tables[name] = table
    questions = {name: table.shape[1] for name, table in tables.items()}
    if len(set(questions.values())) > 1:
        counts = ", ".join(f"{name}: {count}" for name, count in questions.items())
        raise ValueError(f"systems must be scored on the same questions, got {counts}")
    return tables


def _paired_bootstraps(
    arrays: Sequence[np.ndarray], resamples: int, confidence: float, seed: int
) -> list[PairedBootstrap]:
    """All but the first array against the first."""
    streams = [_BASELINE_SEEDS] + [_SYSTEM_SEEDS] * (len(arrays) - 1)
    means = _resampled_means(arrays, streams, resamples, seed)
    drawn = means[:, 1:] - means[:, :1]  # (resamples, comparisons)
    effects = np.array([scores.mean() - arrays[0].mean() for scores in arrays[1:]])
    low, high = percentile_ends(drawn, confidence)
    # The tolerance counts resamples as extreme that only rounding keeps below the effect.
    extreme = (np.abs(drawn - effects) >= np.abs(effects) - TIE).sum(axis=0)
    p_values = (1 + extreme) / (1 + resamples)
    columns = zip(effects.tolist(), low.tolist(), high.tolist(), p_values.tolist(), strict=True)
    return [PairedBootstrap(*column) for column in columns]


def _resampled_means(
    arrays: Sequence[np.ndarray], streams: Sequence[int], resamples: int, seed: int
) -> np.ndarray:
    """Means of resampled questions and seeds: (resamples, systems).

    All systems share the draws of questions; systems of one stream and with as many seeds share
    the draws of seeds.
    """
    questions = arrays[0].shape[1]
    table = np.concatenate(arrays).T  # (questions, seeds of all systems)
    first = np.cumsum([0, *(len(scores) for scores in arrays[:-1])])
    weights = {}  # by stream and number of seeds: how often each seed was drawn
    for key in {(stream, len(scores)) for stream, scores in zip(streams, arrays, strict=True)}:
        stream, seeds = key
        rng = np.random.default_rng([seed, stream, seeds])
        drawn = rng.integers(0, seeds, (resamples, seeds))
        weights[key] = _counts(drawn, seeds) / seeds
    means = np.empty((resamples, len(arrays)))
    width = max(1, table.shape[1] // questions)
    for chunk, drawn in draw_rows(questions, resamples, seed, width):
        by_seed = _counts(drawn, questions) @ table / questions
        for at, (stream, scores) in enumerate(zip(streams, arrays, strict=True)):
            seeds = len(scores)
            block = by_seed[:, first[at] : first[at] + seeds]
            means[chunk, at] = (block * weights[stream, seeds][chunk]).sum(axis=1)
    return means


def _counts(drawn: np.ndarray, size: int) -> np.ndarray:
    """How often each of `size` things was drawn: (resamples, draws) to (resamples, size)."""
    resamples = len(drawn)
    places = drawn + size * np.arange(resamples)[:, None]
    return np.bincount(places.ravel(), minlength=resamples * size).reshape(resamples, size) * 1.0


def _drawn_signs(resamples: int, seed: int, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Random signs, 1.0 or -1.0, in chunks: (resamples of the chunk, questions).

    The chunks suit differences of a shape (questions, comparisons).
    """
    questions = shape[0]
    rng = np.random.default_rng([seed, _SIGNS])
    bits = rng.integers(0, 256, (resamples, -(-questions // 8)), dtype=np.uint8)
    chunk = max(1, _ELEMENTS_PER_CHUNK // max(shape))
    for start in range(0, resamples, chunk):
        yield np.unpackbits(bits[start : start + chunk], axis=1, count=questions) * 2.0 - 1.0


def _all_signs(questions: int) -> Iterator[np.ndarray]:
    """All assignments of signs up to a flip of all, which leaves the size of a sum as it is."""
    codes = np.arange(2 ** (questions - 1))
    bits = codes[:, None] >> np.arange(questions) & 1
    yield bits * 2.0 - 1.0
