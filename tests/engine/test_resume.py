"""A training that is killed and resumed ends as the one that was never stopped."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch

from meqsum_lightning.config.compose import build_config
from meqsum_lightning.engine.train import train
from meqsum_lightning.errors import RunFailed, UserError
from meqsum_lightning.runs.record import read_metrics
from tests.conftest import small_overrides
from tests.engine.killing import train_and_die, train_and_signal

DROPOUT = ["adapter.dropout=0.1", "model.dropout=0.1", "data.cache=false"]


@pytest.fixture(scope="module")
def whole(tiny_backbone, questions_file, tmp_path_factory):
    """The training that nobody stops: with dropout of both kinds, so that randomness counts."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    cfg = build_config("train", small_overrides(tiny_backbone, questions_file, folder) + DROPOUT)
    train(cfg)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter" / "adapter_model.safetensors")


def assert_same(folder: Path, whole: Path) -> None:
    assert read_metrics(folder) == read_metrics(whole)
    ours, theirs = weights(folder), weights(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for name in ("predictions.csv", "predictions_val.csv", "splits.json", "config.yaml"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "completed"
    logged = (folder / "logs" / "metrics.csv").read_text()
    assert logged == (whole / "logs" / "metrics.csv").read_text()


def resume(folder: Path) -> None:
    train(build_config("train", [f"resume={folder}"]))


@pytest.mark.parametrize(
    "moment",
    [
        "created",
        "base",
        "step 1",
        "step 5",
        "validation 1",
        "best 1",
        "writing 3",
        "step 9",
        "validation 2",
        "test",
    ],
)
def test_killed_and_resumed_is_as_never_stopped(
    moment, whole, tiny_backbone, questions_file, tmp_path
):
    folder = tmp_path / "run"
    overrides = small_overrides(tiny_backbone, questions_file, folder) + DROPOUT
    train_and_die(overrides, moment)
    assert json.loads((folder / "run.json").read_text())["status"] == "running"
    resume(folder)
    assert_same(folder, whole)


def test_killed_twice(whole, tiny_backbone, questions_file, tmp_path):
    folder = tmp_path / "run"
    train_and_die(small_overrides(tiny_backbone, questions_file, folder) + DROPOUT, "step 3")
    train_and_die([f"resume={folder}"], "step 10")
    resume(folder)
    assert_same(folder, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_step_and_exits_with_130(
    number, whole, tiny_backbone, questions_file, tmp_path
):
    folder = tmp_path / "run"
    overrides = [
        *small_overrides(tiny_backbone, questions_file, folder),
        *DROPOUT,
        "checkpoint.every_n_steps=null",
    ]
    assert train_and_signal(overrides, "step 3", number) == 130
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "interrupted"
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["job"]["cursor"] == {"epoch": 0, "step": 3, "global_step": 3}
    resume(folder)
    assert read_metrics(folder) == read_metrics(whole)


@pytest.fixture
def stopped(tiny_backbone, questions_file, tmp_path):
    """A run directory that a kill has left behind at step 9, in the second epoch."""
    folder = tmp_path / "stopped"
    train_and_die(small_overrides(tiny_backbone, questions_file, folder) + DROPOUT, "step 9")
    return folder


def test_a_corrupt_last_checkpoint_falls_back_to_the_previous(stopped, whole):
    last = stopped / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    resume(stopped)
    assert_same(stopped, whole)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 truncated", b"not a checkpoint"])
def test_no_good_checkpoint_ends_with_its_path(stopped, content):
    for path in (stopped / "checkpoints").iterdir():
        path.write_bytes(content)
    with pytest.raises(RunFailed, match=r"last\.ckpt: corrupt"):
        resume(stopped)
    assert json.loads((stopped / "run.json").read_text())["status"] == "failed"


def test_settings_that_do_not_fit_are_refused_with_both_values(stopped):
    with pytest.raises(UserError) as caught:
        train(build_config("train", [f"resume={stopped}", "optim.lr=0.5", "adapter.r=2"]))
    text = "\n".join(caught.value.lines)
    assert "optim.lr=0.5" in text and "0.01" in text
    assert "adapter.r=2" in text and "has 4" in text


def test_an_edited_config_is_refused(stopped):
    path = stopped / "config.yaml"
    path.write_text(path.read_text().replace("lr: 0.01", "lr: 0.5"))
    with pytest.raises(UserError, match="changed since the run was started"):
        resume(stopped)
    # A refusal leaves the lock free, for the next try in the same process.
    path.write_text(path.read_text().replace("lr: 0.5", "lr: 0.01"))
    resume(stopped)


def test_a_checkpoint_of_another_run_is_refused(stopped, finished_run):
    shutil.copy(finished_run / "checkpoints" / "last.ckpt", stopped / "checkpoints" / "last.ckpt")
    with pytest.raises(UserError, match="expected a checkpoint of this run"):
        resume(stopped)


def test_a_run_is_resumed_from_another_folder(
    whole, tiny_backbone, questions_file, tmp_path, monkeypatch
):
    monkeypatch.chdir(questions_file.parent)
    folder = tmp_path / "run"
    overrides = small_overrides(tiny_backbone, questions_file, folder) + DROPOUT
    train_and_die([*overrides, f"data.path={questions_file.name}"], "step 9")
    monkeypatch.chdir(tmp_path)
    resume(folder)
    assert_same(folder, whole)


@pytest.mark.parametrize("content", ["[]", '"a"', "{}", '{"status": "failed"}', "{"])
def test_a_damaged_record_is_one_line(stopped, content):
    (stopped / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"no readable run\.json"):
        resume(stopped)


def test_how_a_run_is_carried_out_may_change(stopped, whole):
    train(build_config("train", [f"resume={stopped}", "data.workers=1", "trainer.progress=plain"]))
    assert read_metrics(stopped) == read_metrics(whole)


def test_other_rows_are_refused(stopped, questions_file, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text(questions_file.read_text().replace("aunt", "uncle"))
    with pytest.raises(UserError, match="data: fingerprint"):
        train(build_config("train", [f"resume={stopped}", f"data.path={other}"]))


def test_a_completed_run_is_not_resumed(finished_run):
    with pytest.raises(UserError, match="completed"):
        resume(finished_run)


def test_a_running_run_is_not_resumed(stopped):
    import fcntl
    import os

    descriptor = os.open(stopped, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another process"):
        resume(stopped)
    os.close(descriptor)


def test_resume_creates_nothing_elsewhere(stopped, tmp_path, monkeypatch):
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    resume(stopped)
    assert not list(empty.iterdir())


def test_rerun_starts_the_same_config_afresh(finished_run, tmp_path):
    folder = tmp_path / "again"
    train(build_config("train", [f"rerun={finished_run}", f"output_dir={folder}"]))
    assert read_metrics(folder) == read_metrics(finished_run)
    changed = tmp_path / "changed"
    cfg = build_config("train", [f"rerun={finished_run}", "adapter.r=2", f"output_dir={changed}"])
    assert cfg.adapter.r == 2 and cfg.optim.lr == 0.01


def test_copied_run_directories_can_be_resumed(stopped, whole, tmp_path):
    copy = Path(shutil.copytree(stopped, tmp_path / "moved"))
    resume(copy)
    assert_same(copy, whole)
