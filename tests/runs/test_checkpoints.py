"""Checkpoints: no code is run by reading one, the last good one is found."""

import pickle

import pytest
import torch

from meqsum_lightning.errors import UserError
from meqsum_lightning.runs import checkpoints
from meqsum_lightning.runs.checkpoints import (
    BEST,
    JOB_STATE,
    LAST,
    PREVIOUS,
    CorruptCheckpoint,
    latest_checkpoint,
    load_checkpoint,
    prune,
    save_checkpoint,
)


def save(folder, name, step):
    state = dict.fromkeys(JOB_STATE) | {"step": step, "weights": torch.arange(3.0)}
    save_checkpoint(folder, name, "hash", state)


def test_the_last_becomes_the_previous(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, LAST, step)
    assert load_checkpoint(tmp_path / LAST)["job"]["step"] == 3
    assert load_checkpoint(tmp_path / PREVIOUS)["job"]["step"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [LAST, PREVIOUS]


def test_the_newest_that_can_be_read_is_taken(tmp_path):
    assert latest_checkpoint(tmp_path, "hash") is None
    save(tmp_path, BEST, 1)
    save(tmp_path, LAST, 2)
    save(tmp_path, LAST, 3)
    (tmp_path / LAST).write_bytes(b"")
    assert latest_checkpoint(tmp_path, "hash")["job"]["step"] == 2
    (tmp_path / PREVIOUS).unlink()
    assert latest_checkpoint(tmp_path, "hash")["job"]["step"] == 1
    (tmp_path / BEST).write_bytes(b"PK\x03\x04")
    with pytest.raises(CorruptCheckpoint, match=r"last\.ckpt: corrupt.*no earlier"):
        latest_checkpoint(tmp_path, "hash")


def test_half_a_state_is_passed_over(tmp_path):
    save(tmp_path, LAST, 1)
    save_checkpoint(tmp_path, LAST, "hash", {})
    assert latest_checkpoint(tmp_path, "hash")["job"]["step"] == 1


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    save(tmp_path, LAST, 1)
    with pytest.raises(UserError, match="hash hash, this one has other"):
        latest_checkpoint(tmp_path, "other")


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code was run')",))


def test_a_checkpoint_runs_no_code(tmp_path):
    torch.save({"format": 1, "job": Evil()}, tmp_path / LAST, pickle_module=pickle)
    with pytest.raises(CorruptCheckpoint):
        load_checkpoint(tmp_path / LAST)


def test_a_format_of_the_future_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "FORMAT", 9)
    save(tmp_path, LAST, 1)
    monkeypatch.undo()
    with pytest.raises(CorruptCheckpoint, match="format 9; this version reads 1"):
        load_checkpoint(tmp_path / LAST)
    with pytest.raises(CorruptCheckpoint, match="no such checkpoint"):
        load_checkpoint(tmp_path / "none.ckpt")


def test_a_failed_write_leaves_the_last_one(tmp_path, monkeypatch):
    save(tmp_path, LAST, 1)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, LAST, 2)
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / LAST)["job"]["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == [LAST]


def test_pruning(tmp_path):
    folder = tmp_path / "checkpoints"
    for name in (BEST, LAST, LAST):
        save(folder, name, 1)
    prune(folder, everything=False)
    assert sorted(path.name for path in folder.iterdir()) == [BEST, LAST]
    prune(folder, everything=True)
    assert not folder.exists()
