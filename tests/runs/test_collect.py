"""Run directories are found wherever they lie, and those that are no use are named."""

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from meqsum_lightning.errors import UserError
from meqsum_lightning.runs.collect import find_runs, read_run


def change(folder, file="run.json", **values):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def configure(folder, **values):
    """Sets keys of a run's `config.yaml`, `__` standing for the dot."""
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    for key, value in values.items():
        section, _, name = key.rpartition("__")
        (config[section] if section else config)[name] = value
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


@pytest.fixture
def copy(finished_run, tmp_path):
    """Copies the finished run, without what a reader of runs does not open."""

    def make(name):
        left_out = shutil.ignore_patterns("adapter", "checkpoints", "logs")
        return Path(shutil.copytree(finished_run, tmp_path / name, ignore=left_out))

    return make


def names(runs):
    return [run.folder.name for run in runs]


def test_a_run_is_read_as_it_was_written(finished_run):
    run = read_run(finished_run)
    metrics = json.loads((finished_run / "metrics.json").read_text())
    assert run.metrics == metrics and run.seed == 0 and run.fold == 0
    assert run.settings["adapter.r"] == 4 and run.settings["adapter.alpha"] == 8.0
    assert "trainer.threads" not in run.settings and "logger.csv._target_" not in run.settings
    assert run.settings["optim.optimizer._target_"] == "torch.optim.AdamW"
    assert run.fingerprints["rouge"] == run.record["rouge"]["fingerprint"]


@pytest.mark.parametrize(
    ("file", "prefix"),
    [
        ("predictions.csv", "test"),
        ("predictions_val.csv", "val"),
        ("predictions_base.csv", "test_base"),
    ],
)
def test_predictions_are_those_behind_the_metrics(finished_run, file, prefix):
    run = read_run(finished_run)
    table = run.read_predictions(file)
    assert len(table.ids) == len(set(table.ids)) == 8
    for key, scores in table.scores.items():
        assert sum(scores) / 8 == pytest.approx(run.metrics[f"{prefix}/{key}"], abs=1e-6)
    rows = run.read_rows(file)
    assert [row["id"] for row in rows] == list(table.ids)
    assert rows[0]["question"].startswith("Hello, case")


def test_predictions_are_read_once(copy):
    run = read_run(copy("a"))
    first = run.read_predictions("predictions.csv")
    (run.folder / "predictions.csv").unlink()
    assert run.read_predictions("predictions.csv") is first


def test_texts_stay_as_they_are(copy):
    folder = copy("a")
    rows = read_run(folder).read_rows("predictions.csv")
    rows[0] |= {"id": "007", "question": 'two\nlines, "quoted"', "prediction": "NA"}
    with (folder / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert read_run(folder).read_rows("predictions.csv") == rows
    assert read_run(folder).read_predictions("predictions.csv").ids[0] == "007"


def test_runs_are_found_at_any_depth_and_never_inside_a_run(copy, tmp_path):
    copy("a")
    copy("deep/er/b")
    copy("a/evaluations/inner")
    copy(".hidden")
    copy("deep/.trash/c")
    found = find_runs([tmp_path])
    assert names(found.runs) == ["a", "b"] and found.skipped == {}
    assert names(find_runs([tmp_path / ".hidden", tmp_path / "deep"]).runs) == [".hidden", "b"]


def test_what_a_sweep_keeps_beside_its_jobs_is_passed_over(copy, tmp_path):
    for name in ("sweep/r-4", "sweep/failed/r-8", "sweep/logs/x", "own/failed/y"):
        copy(name)
    (tmp_path / "sweep" / "sweep.json").write_text("{}")
    assert names(find_runs([tmp_path]).runs) == ["y", "r-4"]
    assert names(find_runs([tmp_path / "sweep" / "failed"]).runs) == ["r-8"]


def test_a_run_counts_once_however_it_is_reached(copy, tmp_path):
    folder = copy("z/run")
    (tmp_path / "best").symlink_to(folder)
    (tmp_path / "z" / "up").symlink_to(tmp_path)
    found = find_runs([tmp_path, tmp_path / "z", folder, tmp_path / "z" / ".." / "z"])
    assert [run.folder for run in found.runs] == [folder]


def test_a_link_to_a_run_elsewhere_is_followed(copy, tmp_path):
    folder = copy("elsewhere/run")
    (tmp_path / "chosen").mkdir()
    (tmp_path / "chosen" / "link").symlink_to(folder)
    assert names(find_runs([tmp_path / "chosen"]).runs) == ["link"]


def test_runs_that_did_not_complete_are_named_by_reason(copy, tmp_path):
    alive = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "pid_started": round(psutil.Process().create_time(), 1),
    }
    change(copy("alive"), status="running", **alive)
    change(copy("dead"), status="running", **alive | {"pid_started": 1.0})
    change(copy("failed-run"), status="failed")
    change(copy("stopped"), status="interrupted")
    change(copy("pruned"), status="pruned")
    copy("good")
    found = find_runs([tmp_path])
    skipped = {reason: [path.name for path in paths] for reason, paths in found.skipped.items()}
    assert names(found.runs) == ["good"]
    assert skipped == {
        "running": ["alive"],
        "interrupted": ["dead", "stopped"],
        "failed": ["failed-run"],
        "pruned": ["pruned"],
    }


def damage(folder, file, content):
    (folder / file).write_bytes(content)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: damage(folder, "run.json", b""),
        lambda folder: damage(folder, "run.json", b"[1, 2]"),
        lambda folder: damage(folder, "run.json", b'{"distance": 10, "shoes": "old"}'),
        lambda folder: damage(folder, "run.json", b"\xff\xfe"),
        lambda folder: change(folder, status=["completed"]),
        lambda folder: change(folder, rouge=None),
        lambda folder: change(folder, split={"train": 8}),
        lambda folder: damage(folder, "config.yaml", b"a: [1"),
        lambda folder: damage(folder, "config.yaml", b"- 1"),
        lambda folder: damage(folder, "config.yaml", b"seed: 1"),
        lambda folder: (folder / "config.yaml").unlink(),
        lambda folder: damage(folder, "metrics.json", b"{"),
        lambda folder: damage(folder, "metrics.json", b"[]"),
        lambda folder: (folder / "metrics.json").unlink(),
    ],
)
def test_foreign_and_damaged_folders_are_unreadable(copy, spoil, tmp_path):
    copy("good")
    spoil(copy("odd"))
    found = find_runs([tmp_path])
    assert names(found.runs) == ["good"] and found.skipped == {"unreadable": [tmp_path / "odd"]}
    with pytest.raises(UserError, match=r"odd.*; expected"):
        read_run(tmp_path / "odd")


@pytest.mark.parametrize(
    "content",
    [b"", b"id,question\n", b"id,rouge1,rouge2,rougeL,rougeLsum\n", b"\xff"]
    + [
        f"id,rouge1,rouge2,rougeL,rougeLsum\na,{row}\n".encode()
        for row in ("1,1,1", "1,1,1,x", "1,1,1,nan")
    ],
)
def test_damaged_predictions_name_the_file(copy, content):
    run = read_run(copy("a"))
    damage(run.folder, "predictions.csv", content)
    with pytest.raises(UserError, match=r"a/predictions\.csv: not readable .*; expected"):
        run.read_predictions("predictions.csv")
    (run.folder / "predictions.csv").unlink()
    with pytest.raises(UserError, match=r"a/predictions\.csv: no such file; expected"):
        run.read_rows("predictions.csv")


def test_a_loss_without_a_number_is_no_metric(copy):
    folder = change(copy("a"), "metrics.json", **{"test/loss": None})
    assert "test/loss" not in read_run(folder).metrics


def test_folders_that_are_not_there_are_all_named(copy, tmp_path):
    copy("a")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as caught:
        find_runs([tmp_path / "a", tmp_path / "missing", tmp_path / "file"])
    first, second = caught.value.lines
    assert first.startswith(f"folder={tmp_path}/missing: no such folder; expected ")
    assert second.startswith(f"folder={tmp_path}/file: not a folder; expected ")


def test_an_empty_folder_holds_no_runs(tmp_path):
    found = find_runs([tmp_path])
    assert found.runs == [] and found.skipped == {}


def test_random_weights_do_not_set_seeds_apart(copy):
    runs = []
    for seed in (0, 1):
        folder = configure(copy(f"s{seed}"), seed=seed)
        runs.append(read_run(change(folder, base_revision=f"random:tiny_t5:{seed}")))
    assert runs[0].fingerprints == runs[1].fingerprints


def test_reading_runs_loads_nothing_heavy():
    code = (
        "import sys, meqsum_lightning.runs.pooling; "
        "print([n for n in ('torch', 'pandas', 'numpy', 'transformers') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
