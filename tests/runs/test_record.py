"""A run directory tells the truth about its run, whatever happens to it."""

import json
import os
import socket

import pytest

from meqsum_lightning.errors import RunFailed, RunInterrupted, UserError
from meqsum_lightning.runs import record as records
from meqsum_lightning.runs.record import RunRecord, is_alive

FACTS = {"config_hash": "h", "data": {}, "split": {}, "base_revision": "b"}


def status(folder):
    return json.loads((folder / "run.json").read_text())


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RunFailed("diverged"), "failed"),
        (ValueError("bug"), "failed"),
        (MemoryError(), "failed"),
        (RunInterrupted("stopped by SIGINT"), "interrupted"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_how_a_run_ended(error, kind, tmp_path):
    folder = tmp_path / "run"
    with (
        pytest.raises(type(error)),
        RunRecord.create(folder, {"a": 1, "output_dir": "x"}, FACTS, {}),
    ):
        assert status(folder)["status"] == "running"
        raise error
    assert status(folder)["status"] == kind and status(folder)["error"]
    assert (folder / "config.yaml").read_text() == "a: 1\n"


def test_a_completed_run_keeps_facts_and_time(tmp_path):
    with RunRecord.create(tmp_path / "run", {}, FACTS | {"name": "x"}, {}) as record:
        record.update(best={"epoch": 3})
        record.write_metrics({"val/loss": 1.0})
        record.write_metrics({"test/loss": float("nan")})
    content = status(tmp_path / "run")
    assert content["status"] == "completed" and content["best"] == {"epoch": 3}
    assert content["wall_seconds"] >= 0 and content["versions"]["torch"]
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == {
        "val/loss": 1.0,
        "test/loss": None,
    }


def test_the_heart_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(records, "now", iter(map(str, range(10**6))).__next__)
    with RunRecord.create(tmp_path / "run", {}, FACTS, {}):
        first = status(tmp_path / "run")["heartbeat"]
        while status(tmp_path / "run")["heartbeat"] == first:
            pass


def test_two_processes_do_not_share_a_directory(tmp_path):
    with (
        RunRecord.create(tmp_path / "run", {}, FACTS, {}),
        pytest.raises(UserError, match=r"not empty|another process"),
    ):
        RunRecord.create(tmp_path / "run", {}, FACTS, {})
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"no readable run\.json"):
        RunRecord.reopen(tmp_path / "run")


def test_a_dead_process_is_told_from_a_living_one():
    import psutil

    started = round(psutil.Process().create_time(), 1)
    here = {"status": "running", "host": socket.gethostname(), "pid": os.getpid()}
    assert is_alive(here | {"pid_started": started})
    assert not is_alive(here | {"pid_started": started - 100})
    assert not is_alive(here | {"pid": 2**22 + 1, "pid_started": None})
    assert not is_alive(here | {"status": "failed", "pid_started": started})


def test_another_host_is_judged_by_its_heartbeat():
    there = {"status": "running", "host": "elsewhere", "pid": 1}
    assert is_alive(there | {"heartbeat": records.now()})
    assert not is_alive(there | {"heartbeat": "2020-01-01T00:00:00+00:00"})


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        RunRecord.create(tmp_path / "file", {}, FACTS, {})
    with pytest.raises(UserError, match="cannot be written"):
        RunRecord.create(tmp_path / "file" / "run", {}, FACTS, {})


def test_a_full_disk_leaves_a_true_status(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    with (
        pytest.raises(OSError, match="No space"),
        RunRecord.create(tmp_path / "run", {}, FACTS, {}),
    ):
        monkeypatch.setattr(records, "write_json", full)
        full()
    assert status(tmp_path / "run")["status"] == "failed"
    assert "No space" in status(tmp_path / "run")["error"]


def test_the_folder_one_stands_in_is_filled(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with RunRecord.create((tmp_path / "here"), {}, FACTS, {}) as record:
        record.write_metrics({"val/loss": 1.0})
    assert (tmp_path / "here" / "metrics.json").exists()


def test_a_mount_point_is_filled_not_replaced(tmp_path, monkeypatch):
    def busy(*args):
        raise OSError(16, "Device or resource busy")

    (tmp_path / "mount").mkdir()
    monkeypatch.setattr(os, "rename", busy)
    with RunRecord.create(tmp_path / "mount", {"a": 1}, FACTS, {}):
        pass
    names = {"config.yaml", "splits.json", "run.json", "logs"}
    assert {path.name for path in (tmp_path / "mount").iterdir()} == names
    assert [path.name for path in tmp_path.iterdir()] == ["mount"]
