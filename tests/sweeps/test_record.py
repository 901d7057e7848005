"""`sweep.json`: true on reading whatever happened, refused when it is not one."""

import json
import shutil
import threading

import pytest

from meqsum_lightning.errors import UserError
from meqsum_lightning.files import read_json, write_json
from meqsum_lightning.runs.record import RUN_FILE
from meqsum_lightning.sweeps.record import (
    SWEEP_FILE,
    JobEntry,
    SweepRecord,
    last_root,
    new_root,
    read_sweep,
    set_aside,
)


@pytest.fixture
def sweep(tmp_path, finished_run):
    """A sweep that was killed while its one job was running, which had ended all the same."""
    root = tmp_path / "sweep"
    record = SweepRecord.open(root)
    shutil.copytree(finished_run, root / "r-4")
    found = read_json(root / "r-4" / RUN_FILE)
    record.jobs["r-4"] = JobEntry("r-4", ["adapter.r=4"], found["config_hash"], "running", "r-4")
    record.start(["adapter.r=4"], [], {})
    record.release()
    return root


def change_run(root, **facts):
    path = root / "r-4" / RUN_FILE
    write_json(path, read_json(path) | facts)


def killed(root):
    content = read_json(root / SWEEP_FILE)
    write_json(root / SWEEP_FILE, content | {"pid_started": 0.0})
    return read_sweep(root)


def test_a_job_went_further_than_the_sweep_could_write(sweep):
    content, (job,) = killed(sweep)
    assert content["status"] == "interrupted"
    assert job.status == "completed" and job.value is not None


@pytest.mark.parametrize(
    ("facts", "before", "after"),
    [
        ({"status": "running", "pid_started": 0.0}, "running", "interrupted"),
        ({"status": "failed", "error": "struck"}, "running", "failed"),
        # The sweep saw it die; the run could not write that itself.
        ({"status": "running", "pid_started": 0.0}, "failed", "failed"),
        ({"config_hash": "1-other"}, "running", "waiting"),
    ],
)
def test_what_runs_say_holds(sweep, facts, before, after):
    change_run(sweep, **facts)
    content = read_json(sweep / SWEEP_FILE)
    content["jobs"][0]["status"] = before
    write_json(sweep / SWEEP_FILE, content)
    (job,) = killed(sweep)[1]
    assert job.status == after


def test_a_removed_folder_means_run_again(sweep):
    shutil.rmtree(sweep / "r-4")
    (job,) = killed(sweep)[1]
    assert (job.status, job.folder) == ("waiting", None)


@pytest.mark.parametrize(
    "facts",
    [{"folder": "../elsewhere"}, {"name": ".."}, {"status": "well"}, {"overrides": "adapter.r=4"}],
)
def test_an_entry_that_no_sweep_wrote_is_one_line(sweep, facts):
    content = read_json(sweep / SWEEP_FILE)
    content["jobs"][0] |= facts
    write_json(sweep / SWEEP_FILE, content)
    with pytest.raises(UserError, match=r"sweep.json: damaged"):
        read_sweep(sweep)


def test_a_full_disk_stops_no_sweep(sweep, monkeypatch, caplog):
    import meqsum_lightning.sweeps.record as module

    def full(*_):
        raise OSError(28, "No space left on device")

    content = read_json(sweep / SWEEP_FILE)
    write_json(sweep / SWEEP_FILE, content | {"pid_started": 0.0})
    record = SweepRecord.open(sweep)
    monkeypatch.setattr(module, "write_json", full)
    record.update("r-4", status="failed")
    record.finish("failed")
    assert "No space left" in caplog.text
    # The blocks that the file had were enough.
    assert read_json(sweep / SWEEP_FILE)["status"] == "failed"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"jobs": 3}', '{"jobs": [{"name": "x"}]}'])
def test_a_damaged_file_is_one_line(sweep, text):
    (sweep / SWEEP_FILE).write_text(text)
    with pytest.raises(UserError, match=r"sweep.json: damaged"):
        SweepRecord.open(sweep)


def test_a_later_version_is_refused(sweep):
    write_json(sweep / SWEEP_FILE, read_json(sweep / SWEEP_FILE) | {"version": 2})
    with pytest.raises(UserError, match="version 2; this program reads version 1"):
        read_sweep(sweep)


def test_failed_attempts_are_numbered(sweep):
    job = JobEntry("r-4", [], "1-a")
    for number in (1, 2):
        set_aside(sweep, job)
        assert (sweep / "failed" / f"r-4-{number}" / RUN_FILE).exists()
        shutil.copytree(sweep / "failed" / f"r-4-{number}", sweep / "r-4")


def test_roots_made_at_once_differ(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    roots = []
    threads = [threading.Thread(target=lambda: roots.append(new_root())) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(roots)) == 20
    with pytest.raises(UserError, match="no sweep under multirun"):
        last_root()
    (roots[3] / SWEEP_FILE).write_text(json.dumps({}))
    assert last_root() == roots[3]


def test_an_unused_root_goes_again(tmp_path):
    record = SweepRecord.open(tmp_path / "sweep")
    record.release()
    assert not (tmp_path / "sweep").exists()
