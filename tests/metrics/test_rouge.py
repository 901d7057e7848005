import doctest
import pickle
import re
import socket
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from meqsum_lightning.metrics import rouge
from meqsum_lightning.metrics.rouge import ROUGE_KEYS, RougeMetric, RougeProtocol, score_pair
from tests.metrics.gathering import gather

STEMMED, PLAIN = RougeProtocol(stemmer=True), RougeProtocol(stemmer=False)
WORDS = st.lists(
    st.sampled_from(["what", "is", "the", "dose", "of", "aspirin", "doses", "treating", "it"])
)
TEXTS = st.lists(WORDS.map(" ".join), max_size=3).map(". ".join)
ONE_LINE = "does ibuprofen help. what dose is safe."
C21 = "does ibuprofen help.\nwhat dose is safe.", "what dose is safe.\ndoes ibuprofen help."
C21B = "what are treatments for headaches", "what is the treatment for headache"
PAIRS = [C21, C21B, ("aspirin", "aspirin"), ("", "what is it"), ("is it safe", "what is it")]


def test_c21_lsum_is_split_offline(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", refuse)
    prediction, reference = C21
    assert score_pair(prediction, reference, STEMMED)["rougeLsum"] == 1.0
    # Our splitter finds the same sentences without line breaks ...
    assert score_pair(ONE_LINE, reference, STEMMED)["rougeLsum"] == 1.0
    # ... which unsplit text does not.
    unsplit = RougeScorer(["rougeLsum"], use_stemmer=True).score(
        "what dose is safe. does ibuprofen help.", ONE_LINE
    )
    assert unsplit["rougeLsum"].fmeasure == pytest.approx(0.571429, abs=1e-6)


@pytest.mark.parametrize(
    ("protocol", "rouge1", "rouge2"), [(STEMMED, 0.727273, 0.444444), (PLAIN, 0.363636, 0.0)]
)
def test_c21b_stemming(protocol, rouge1, rouge2):
    scores = score_pair(*C21B, protocol)
    assert scores["rouge1"] == pytest.approx(rouge1, abs=1e-6)
    assert scores["rouge2"] == pytest.approx(rouge2, abs=1e-6)


@pytest.mark.parametrize("protocol", [STEMMED, PLAIN])
@pytest.mark.parametrize(("prediction", "reference"), PAIRS)
def test_equals_rouge_score(protocol, prediction, reference):
    expected = RougeScorer(list(ROUGE_KEYS), use_stemmer=protocol.stemmer).score(
        target=reference, prediction=prediction
    )
    assert score_pair(prediction, reference, protocol) == {
        key: expected[key].fmeasure for key in ROUGE_KEYS
    }


@given(TEXTS, TEXTS)
def test_range_and_symmetry(prediction, reference):
    scores = score_pair(prediction, reference, STEMMED)
    assert all(0.0 <= value <= 1.0 for value in scores.values())
    # F1 of n-grams and of the LCS treats both sides alike.
    swapped = score_pair(reference, prediction, STEMMED)
    for key in ("rouge1", "rouge2", "rougeL"):
        assert scores[key] == pytest.approx(swapped[key])


@given(TEXTS.filter(lambda text: len(re.findall(r"\w+", text)) > 1))
def test_identity_is_one(text):
    assert score_pair(text, text, STEMMED) == pytest.approx(dict.fromkeys(ROUGE_KEYS, 1.0))


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        ("", "what is it"),
        ("what is it", ""),
        ("", ""),
        ("…?!", "what"),
        ("头痛", "头痛"),
        (" \n", "a"),
    ],
)
def test_sides_without_tokens_score_zero(prediction, reference):
    assert score_pair(prediction, reference, STEMMED) == dict.fromkeys(ROUGE_KEYS, 0.0)


def test_one_token_has_no_bigram():
    scores = score_pair("aspirin", "aspirin", STEMMED)
    assert scores == {"rouge1": 1.0, "rouge2": 0.0, "rougeL": 1.0, "rougeLsum": 1.0}


def test_fingerprint_depends_on_everything(monkeypatch):
    assert STEMMED.fingerprint == RougeProtocol(stemmer=True).fingerprint
    assert len(STEMMED.fingerprint) == 12
    seen = {STEMMED.fingerprint, PLAIN.fingerprint}
    monkeypatch.setattr(rouge, "SPLITTER_VERSION", "rules-99")
    seen.add(STEMMED.fingerprint)
    monkeypatch.setattr(rouge.importlib.metadata, "version", lambda _name: "99")
    seen.add(STEMMED.fingerprint)
    assert len(seen) == 4
    assert STEMMED.describe()["stemmer"] is True


def filled(rows, protocol=STEMMED):
    """A metric that saw rows `rows` of PAIRS, one update for each."""
    metric = RougeMetric(protocol)
    for row in rows:
        metric.update([row], [PAIRS[row][0]], [PAIRS[row][1]])
    return metric


def values(metric):
    return {key: value.item() for key, value in metric.compute().items()}


def test_mean_over_rows_and_per_row():
    metric = filled(range(len(PAIRS)))
    per_row = metric.per_row()
    assert list(per_row) == list(range(len(PAIRS)))
    assert per_row[1] == score_pair(*PAIRS[1], STEMMED)
    for key in ROUGE_KEYS:
        mean = sum(row[key] for row in per_row.values()) / len(PAIRS)
        assert values(metric)[key] == pytest.approx(mean, rel=1e-12)


@settings(max_examples=20, deadline=None)
@given(
    st.permutations(range(len(PAIRS))),
    st.lists(st.sampled_from(range(len(PAIRS))), max_size=3),
    st.integers(0, 5),
)
def test_order_batches_and_repeats_do_not_matter(order, repeated, cut):
    rows = order + repeated
    metric = RougeMetric(STEMMED)
    for part in (rows[:cut], rows[cut:]):
        metric.update(part, [PAIRS[row][0] for row in part], [PAIRS[row][1] for row in part])
    assert values(metric) == pytest.approx(values(filled(range(len(PAIRS)))), rel=1e-12)
    assert len(metric.per_row()) == len(PAIRS)


def test_the_first_score_of_a_row_is_kept():
    metric = RougeMetric(STEMMED)
    metric.update([3, 3], ["what is it", "no"], ["what is it", "yes"])
    assert values(metric)["rouge1"] == 1.0


@pytest.mark.parametrize("arguments", [([0], ["a", "b"], ["a"]), ([0], [], []), ([], ["a"], ["a"])])
def test_unequal_counts_are_refused(arguments):
    metric = RougeMetric(STEMMED)
    with pytest.raises(ValueError, match="equal lengths"):
        metric.update(*arguments)


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
def test_nothing_has_no_mean():
    metric = RougeMetric(STEMMED)
    assert metric.per_row() == {}
    with pytest.raises(ValueError, match="no row"):
        metric.compute()
    metric.update([], [], [])
    with pytest.raises(ValueError, match="no row"):
        metric.compute()


def test_reset_state_and_merge():
    whole, first, second = filled(range(5)), filled([0, 1, 2]), filled([2, 3, 4])
    first.merge_state(second)
    assert values(first) == pytest.approx(values(whole), rel=1e-12)
    assert first.per_row() == whole.per_row()

    copied = pickle.loads(pickle.dumps(whole))
    assert copied.per_row() == whole.per_row()
    assert copied.protocol == STEMMED

    whole.persistent(True)
    restored = RougeMetric(STEMMED)
    restored.persistent(True)
    restored.load_state_dict(whole.state_dict())
    assert restored.per_row() == whole.per_row()

    whole.reset()
    assert whole.per_row() == {}
    whole.update([1], [PAIRS[1][0]], [PAIRS[1][1]])
    assert list(whole.per_row()) == [1]


def test_calling_the_metric_returns_the_batch_and_accumulates():
    metric = RougeMetric(STEMMED)
    metric([0], [PAIRS[0][0]], [PAIRS[0][1]])
    batch = metric([1], [PAIRS[1][0]], [PAIRS[1][1]])
    assert batch["rouge1"].item() == pytest.approx(0.727273, abs=1e-6)
    assert len(metric.per_row()) == 2


def test_two_processes_gather_every_row_once(tmp_path):
    whole = filled(range(1, 5))
    context = get_context("forkserver")
    # Both processes start from one that has imported torch.
    context.set_forkserver_preload(["meqsum_lightning.metrics.rouge"])
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        # A padded sampler repeats row 1; then one process has no rows at all.
        for number, split in enumerate([[[1, 3], [2, 4, 1]], [[], [1, 2, 3, 4]]]):
            store = tmp_path / f"store{number}"
            pairs = [[(row, *PAIRS[row]) for row in rows] for rows in split]
            jobs = [pool.submit(gather, rank, pairs, (0, *PAIRS[0]), store) for rank in range(2)]
            for job in jobs:
                means, per_row, with_one_more = job.result(timeout=60)
                assert means == pytest.approx(values(whole), rel=1e-12)
                assert per_row == whole.per_row()
                assert with_one_more == 5


def test_docstring_example():
    assert doctest.testmod(rouge).failed == 0
    assert doctest.testmod(rouge).attempted > 0
