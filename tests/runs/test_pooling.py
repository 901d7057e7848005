"""Seeds give mean and spread, folds pool by question, and only repetitions share a group."""

import csv
import itertools
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meqsum_lightning.errors import UserError
from meqsum_lightning.runs.collect import Predictions, Run, read_run
from meqsum_lightning.runs.pooling import differing, group, pooled_mean

KEYS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
FILES = {"test": "predictions.csv", "val": "predictions_val.csv"}


def made(name="run", *, settings=(), metrics=(), test=(), val=(), **record):
    """A run in memory: scores by question for test and validation."""
    tables = {"test": dict(test), "val": dict(val)}
    read = {
        FILES[prefix]: Predictions(
            tuple(rows), {key: tuple(float(row) for row in rows.values()) for key in KEYS}
        )
        for prefix, rows in tables.items()
    }
    found = {
        f"{prefix}/{key}": math.fsum(rows.values()) / len(rows)
        for prefix, rows in tables.items()
        for key in KEYS
        if rows
    }
    facts = {
        "data": {"fingerprint": "d"},
        "split": {"fingerprint": "s"},
        "rouge": {"fingerprint": "p"},
        "base_revision": "b",
        "ended": "2026-01-01T00:00:00+00:00",
    }
    base = {"seed": 0, "data.split": "folds", "data.fold": 0, "adapter.method": "lora"}
    return Run(Path(name), facts | record, base | dict(settings), found | dict(metrics), read)


def at(seed=0, fold=0, **more):
    return {"seed": seed, "data.fold": fold} | {
        key.replace("__", "."): value for key, value in more.items()
    }


@pytest.fixture
def folds(finished_run, tmp_path):
    """Real run directories: two seeds, three folds of 2 questions (validation: of 3)."""
    rows = {}
    for file in FILES.values():
        with (finished_run / file).open(newline="", encoding="utf-8") as opened:
            rows[file] = list(csv.DictReader(opened))
    left_out = shutil.ignore_patterns("adapter", "checkpoints", "logs")
    for seed, fold in itertools.product((0, 1), (0, 1, 2)):
        folder = tmp_path / f"s{seed}-f{fold}"
        shutil.copytree(finished_run, folder, ignore=left_out)
        config = (folder / "config.yaml").read_text()
        config = config.replace("seed: 0", f"seed: {seed}", 1)
        config = config.replace("  fold: 0", f"  fold: {fold}").replace(
            "  split:\n  - 24\n  - 8\n  - 8\n", "  split: folds\n"
        )
        (folder / "config.yaml").write_text(config)
        record = json.loads((folder / "run.json").read_text())
        record["split"]["fingerprint"] = f"fold {fold}"
        (folder / "run.json").write_text(json.dumps(record))
        metrics = json.loads((folder / "metrics.json").read_text())
        for file, size in (("predictions.csv", 2), ("predictions_val.csv", 3)):
            part = [dict(row) for row in rows[file][fold * 2 : fold * 2 + size]]
            for number, row in enumerate(part):
                row |= {key: f"{(seed + 1) * (fold + number) / 20:.6f}" for key in KEYS}
            with (folder / file).open("w", newline="", encoding="utf-8") as opened:
                writer = csv.DictWriter(opened, list(part[0]))
                writer.writeheader()
                writer.writerows(part)
        metrics["val/loss"] = 1.0 + fold + seed
        (folder / "metrics.json").write_text(json.dumps(metrics))
    return [read_run(path) for path in sorted(tmp_path.iterdir())]


def test_folds_pool_by_question_within_a_seed(folds):
    (only,) = group(folds)
    assert only.seeds == [0, 1] and only.folds == [0, 1, 2] and only.complete
    assert only.settings["data.split"] == "folds" and "seed" not in only.settings
    test = only.score("test/rougeL")
    # Scores of seed 0: fold 0 has 0, .05; fold 1 has .05, .1; fold 2 has .1, .15.
    assert test.values == pytest.approx({0: 0.075, 1: 0.15})
    assert test.questions == 6
    assert test.mean == pytest.approx(0.1125) and test.sd == pytest.approx(0.075 / math.sqrt(2))


def test_validation_takes_pairs_of_fold_and_question(folds):
    (only,) = group(folds)
    val = only.score("val/rouge1")
    # Neighbouring folds share a validation question: 9 pairs, 7 questions.
    assert val.questions == 7
    assert val.values[0] == pytest.approx((0 + 1 + 2 + 1 + 2 + 3 + 2 + 3 + 4) / 9 / 20)


def test_losses_of_folds_weigh_the_same(folds):
    (only,) = group(folds)
    assert only.score("val/loss").values == {0: 2.0, 1: 3.0}


def test_one_fold_is_what_the_metrics_say(finished_run):
    run = read_run(finished_run)
    (only,) = group([run])
    for metric in ("test/rougeL", "val/rouge1", "test_base/rouge2", "val/loss"):
        pooled = only.score(metric)
        assert pooled.values == {0: run.metrics[metric]} and pooled.sd is None
        assert pooled.mean == run.metrics[metric] and pooled.questions == 8


def test_a_metric_that_a_run_lacks_is_no_score():
    (only,) = group([made("a", test={"q": 1}), made("b", settings=at(seed=1))])
    assert only.score("test/rougeL") is None and only.score("nonsense") is None


def test_missing_predictions_of_a_fold_are_an_error(folds):
    (folds[2].folder / "predictions.csv").unlink()
    (only,) = group(folds)
    with pytest.raises(UserError, match=r"predictions\.csv: no such file"):
        only.score("test/rougeL")
    assert only.score("val/rougeL") is not None


SCORE = st.floats(0, 1).map(lambda score: round(score, 6))
TABLES = st.lists(st.lists(SCORE, min_size=1, max_size=6), min_size=2, max_size=5)


@given(TABLES)
def test_pooling_by_question_is_the_mean_over_all_rows(tables):
    rows = [score for table in tables for score in table]
    assert pooled_mean(tables) == pytest.approx(np.mean(rows), abs=1e-12)
    runs = [
        made(
            f"f{fold}",
            settings=at(fold=fold),
            test={f"{fold}-{number}": score for number, score in enumerate(table)},
        )
        for fold, table in enumerate(tables)
    ]
    (only,) = group(runs)
    pooled = only.score("test/rougeL")
    assert pooled.values[0] == pytest.approx(np.mean(rows), abs=1e-12)
    assert pooled.questions == len(rows)


@given(st.lists(SCORE, min_size=2, max_size=8))
def test_spread_over_seeds_is_the_sample_standard_deviation(scores):
    runs = [made(f"s{i}", settings=at(seed=i), test={"q": s}) for i, s in enumerate(scores)]
    (only,) = group(runs)
    pooled = only.score("test/rouge1")
    assert pooled.mean == pytest.approx(np.mean(scores))
    assert pooled.sd == pytest.approx(np.std(scores, ddof=1), abs=1e-9)
    assert list(pooled.values.values()) == scores


GRID = [
    made(
        f"r{r}-s{seed}-f{fold}{copy}",
        settings=at(seed, fold, adapter__r=r, adapter__alpha=2.0 * r),
        test={f"{fold}-{number}": (r + seed + fold + number) / 40 for number in range(3)},
        ended=f"2026-01-01T00:00:0{len(copy)}+00:00",
    )
    for r in (4, 8, 16)
    for seed in (0, 1)
    for fold in (0, 1)
    for copy in (["", "x"] if r == 8 else [""])
]


@given(st.permutations(GRID))
def test_the_order_of_runs_changes_nothing(runs):
    def seen(groups):
        return [
            (one.settings, one.runs, one.duplicates, one.score("test/rougeL")) for one in groups
        ]

    assert differing(runs) == differing(GRID) == ["adapter.r"]
    assert seen(group(runs)) == seen(group(GRID))


def test_groups_come_in_the_order_of_numbers():
    assert [one.settings["adapter.r"] for one in group(GRID)] == [4, 8, 16]


def test_of_a_pair_the_newest_stays():
    eight = group(GRID)[1]
    assert [run.folder.name[-1] for run in eight.runs] == ["x"] * 4
    assert [run.folder.name[-1] for run in eight.duplicates] != ["x"] * 4
    assert len(eight.duplicates) == 4 and eight.complete
    same = [made("copy", test={"q": 1}), made("a", test={"q": 1})]
    (only,) = group(same)
    assert [run.folder.name for run in (*only.runs, *only.duplicates)] == ["a", "copy"]


def test_a_missing_fold_shows():
    (only,) = group([made("a"), made("b", settings=at(1, 0)), made("c", settings=at(1, 1))])
    assert not only.complete


@pytest.mark.parametrize(
    "other",
    [
        {"data": {"fingerprint": "other"}},
        {"rouge": {"fingerprint": "other"}},
        {"base_revision": "other"},
        {"settings": at(1, data__split_seed=1)},
        {"settings": at(1, optim__lr=1e-4)},
        {"settings": at(1, data__folds=4)},
    ],
)
def test_only_repetitions_share_a_group(other):
    first = made("a", settings=at(data__folds=5))
    second = made("b", **{"settings": at(1, data__folds=5)} | other)
    assert len(group([first, second])) == 2


def test_splits_without_folds_are_told_apart_by_their_ids():
    plain = [
        made("a", settings=at(0, data__split="ids.json")),
        made("b", settings=at(1, data__split="ids.json"), split={"fingerprint": "other"}),
    ]
    assert len(group(plain)) == 2
    plain[1].record["split"]["fingerprint"] = "s"
    assert len(group(plain)) == 1


def test_folds_and_names_do_not_set_runs_apart():
    runs = [
        made("a", settings=at(0, 0, name="x")),
        made("b", settings=at(0, 1, name="y"), split={"fingerprint": "other"}),
    ]
    assert len(group(runs)) == 1 and differing(runs) == []


def differences(*settings):
    return differing([made(str(i), settings=at(**more)) for i, more in enumerate(settings)])


def test_keys_that_differ_come_in_the_order_of_the_configuration():
    first = {"adapter__r": 4, "optim__lr": 1.0, "test": True}
    assert differences(first, {"test": False, "optim__lr": 2.0, "adapter__r": 4}) == [
        "optim.lr",
        "test",
    ]


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([(4, 8.0), (8, 16.0)], ["adapter.r"]),
        ([(4, 16.0), (8, 16.0)], ["adapter.r"]),
        ([(4, 8.0), (8, 16.0), (8, 32.0)], ["adapter.r", "adapter.alpha"]),
        ([(8, 8.0), (8, 16.0)], ["adapter.alpha"]),
        ([(3, 1.0), (6, 2.0), (9, 3.0)], ["adapter.r"]),
        ([(4, 8.0), (8, 16.0), (None, None)], ["adapter.method", "adapter.r"]),
        ([(4, 8.0), (None, None)], ["adapter.method"]),
        ([(4, None), (8, None)], ["adapter.r"]),
    ],
)
def test_alpha_that_follows_from_r_is_left_out(pairs, expected):
    settings = [
        {"adapter__method": "lora" if r else "full", "adapter__r": r, "adapter__alpha": alpha}
        for r, alpha in pairs
    ]
    assert differences(*settings) == expected


def test_what_identifies_a_model_is_left_out_where_its_name_does():
    small = {"model__name": "small", "model__backbone": "hub/small"}
    large = {"model__name": "large", "model__backbone": "hub/large"}
    local = {"model__name": "small", "model__backbone": "/somewhere"}
    assert differences(small, large) == ["model.name"]
    assert differences(small, local) == ["model.backbone"]
    assert differences(small, local, large) == ["model.name", "model.backbone"]


def test_a_key_that_an_older_version_lacks_counts_as_null():
    assert differences({"optim__new": None}, {}) == []
    assert differences({"optim__new": 1}, {}) == ["optim.new"]
