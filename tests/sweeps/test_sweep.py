"""Whole sweeps with real worker processes: points, pool, failures, resuming, locks, signals."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from meqsum_lightning.cli import main
from meqsum_lightning.runs.record import read_metrics
from tests.conftest import small_overrides

ROOT = Path(__file__).parents[2]
FAULT = "callbacks.fault={_target_: tests.sweeps.faults.Fault, r: %s, kind: %s%s}"
ALLOW = ["--allow-target", "tests.sweeps.faults"]


@pytest.fixture
def words(tiny_backbone, questions_file, tmp_path, monkeypatch):
    """Makes command lines of sweeps of tiny jobs into `tmp_path/sweep`."""
    monkeypatch.chdir(tmp_path)
    # Workers import the tests' callbacks.
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    fixed = small_overrides(tiny_backbone, questions_file, tmp_path)[:-1]
    fixed += ["trainer.max_epochs=1", "test=false", "adapter.dropout=0", "optim.lr=0.01"]

    def make(*more):
        return ["train", "-m", *fixed, "sweep.dir=sweep", *more]

    return make


def entries(root="sweep"):
    content = json.loads(Path(root, "sweep.json").read_text())
    return {entry["name"]: entry for entry in content["jobs"]}


def statuses(root="sweep"):
    return {name: entry["status"] for name, entry in entries(root).items()}


def start(arguments):
    """A sweep as a process of its own, in its own group."""
    command = [sys.executable, "-m", "meqsum_lightning", *arguments]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_until(condition, seconds=90):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def steps_of(name, root="sweep"):
    """Optimizer steps that a job has logged."""
    path = Path(root, name, "logs", "metrics.csv")
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_grid_then_more_values(words, capsys):
    assert main(words("adapter.r=1,2", "adapter.target_modules=[q,v],ffn")) == 0
    first = entries()
    assert list(first) == [
        "r-1_target-modules-q+v",
        "r-1_target-modules-ffn",
        "r-2_target-modules-q+v",
        "r-2_target-modules-ffn",
    ]
    assert set(statuses().values()) == {"completed"}
    assert len({entry["config_hash"] for entry in first.values()}) == 4
    content = json.loads(Path("sweep/sweep.json").read_text())
    assert content["status"] == "completed" and content["ended"]
    # Only the best of all keeps its checkpoints; every job keeps its adapter.
    kept = [name for name in first if Path("sweep", name, "checkpoints").exists()]
    best = max(first.values(), key=lambda entry: entry["value"])
    assert kept == [best["name"]]
    assert all(Path("sweep", name, "adapter").is_dir() for name in first)
    shown = capsys.readouterr().out
    assert "4 jobs: 4 completed" in shown and f"sweep/{best['name']}" in shown

    stamps = {name: Path("sweep", name, "run.json").stat().st_mtime_ns for name in first}
    again = words("adapter.r=1,2,3", "adapter.target_modules=[q,v],ffn", "sweep.keep=all")
    assert main(again) == 0
    assert len(entries()) == 6
    for name, stamp in stamps.items():
        assert Path("sweep", name, "run.json").stat().st_mtime_ns == stamp
    assert Path("sweep/r-3_target-modules-ffn/checkpoints/best.ckpt").exists()
    # Nothing is left to do: quickly over, and the jobs are known without being typed, and how
    # they are to be kept too.
    assert main(["train", "-m", "sweep.dir=sweep"]) == 0
    assert main(["plan", "-m", "sweep.dir=sweep"]) == 0
    assert "nothing is left to run" in capsys.readouterr().out
    assert Path("sweep/r-3_target-modules-ffn/checkpoints/best.ckpt").exists()


def test_jobs_are_what_single_runs_are(words, tiny_backbone, questions_file, tmp_path):
    """Two jobs in one worker, on one backbone, against two runs alone; dropout included."""
    fixed = ["adapter.dropout=0.1", "model.dropout=0.1", "trainer.max_epochs=2", "test=true"]
    assert main(words(*fixed, "adapter=lora,dora,pissa")) == 0
    for method in ("lora", "dora", "pissa"):
        alone = [word for word in words(*fixed)[2:] if not word.startswith("sweep.")]
        output = tmp_path / "alone" / method
        assert main(["train", *alone, f"adapter={method}", f"output_dir={output}"]) == 0
        assert read_metrics(output) == read_metrics(tmp_path / "sweep" / f"adapter-{method}")


def test_jobs_that_fail_take_nobody_along(words, capsys):
    faults = [FAULT % (r, kind, "") for r, kind in ((1, "raise"), (2, "kill"), (3, "diverge"))]
    faults.append(FAULT % (4, "memory", ""))
    named = [word.replace("fault=", f"f{number}=") for number, word in enumerate(faults)]
    command = [*words("adapter.r=1,2,3,4,5", *named, "sweep.parallel=2"), *ALLOW]
    assert main(command) == 1
    assert statuses() == {
        "r-1": "failed", "r-2": "failed", "r-3": "failed", "r-4": "failed", "r-5": "completed",
    }  # fmt: skip
    expected = {"r-1": "struck", "r-2": "SIGKILL", "r-3": "not finite|is nan", "r-4": "no more"}
    for name, text in expected.items():
        record = json.loads(Path("sweep", name, "run.json").read_text())
        assert record["status"] == "failed"
        for error in (record["error"], entries()[name]["error"]):
            assert any(part in error for part in text.split("|")), (name, error)
    output = capsys.readouterr()
    assert "4 jobs failed" in output.err and "sweep.dir=sweep" in output.err
    assert "ZeroDivisionError: struck" in output.out


def test_failed_jobs_start_again_and_keep_what_they_left(words, tmp_path):
    fault = FAULT % (1, "kill", f", once: {tmp_path / 'struck'}")
    command = [*words("adapter.r=1,2", fault), *ALLOW]
    assert main(command) == 1
    assert statuses() == {"r-1": "failed", "r-2": "completed"}
    assert main(command) == 0
    assert set(statuses().values()) == {"completed"}
    assert json.loads(Path("sweep/failed/r-1-1/run.json").read_text())["status"] == "failed"


def test_a_folder_alone_means_its_own_jobs_from_anywhere(
    words, questions_file, tmp_path, monkeypatch, capsys
):
    Path("own.csv").write_bytes(questions_file.read_bytes())
    fault = FAULT % (1, "raise", f", once: {tmp_path / 'struck'}")
    assert main([*words("adapter.r=1,2", "data.path=own.csv", fault), *ALLOW]) == 1
    assert "--allow-target tests.sweeps.faults" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert main(["train", "-m", *ALLOW, "sweep.dir=../sweep"]) == 0
    assert set(statuses("../sweep").values()) == {"completed"}
    text = (tmp_path / "own.csv").read_text().replace("aunt", "uncle")
    (tmp_path / "own.csv").write_text(text)
    for command in ("train", "plan"):
        assert main([command, "-m", *ALLOW, "sweep.dir=../sweep"]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 2 and "job r-1 is no longer what it was" in " ".join(lines)


def test_nobody_reads_and_the_sweep_goes_on(words):
    """Standard error closed from the start, standard output's reader gone before the end."""
    command = [*words("adapter.r=1,2"), "trainer.progress=plain"]
    shell = f"{shlex.join([sys.executable, '-m', 'meqsum_lightning', *command])} 2>&- | true"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {shell}"], timeout=120)
    assert done.returncode == 0
    assert set(statuses().values()) == {"completed"}
    assert json.loads(Path("sweep/sweep.json").read_text())["status"] == "completed"


def test_fail_fast_stops_at_the_first(words, capsys):
    command = [*words("adapter.r=1,2,3", FAULT % (1, "raise", ""), "sweep.fail_fast=true"), *ALLOW]
    assert main(command) == 1
    assert statuses() == {"r-1": "failed", "r-2": "waiting", "r-3": "waiting"}
    assert "2 not completed (sweep.fail_fast=true)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "times"),
    [
        (signal.SIGINT, 1),
        pytest.param(signal.SIGINT, 2, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 1, marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_saves_and_the_sweep_goes_on(words, number, times):
    more = ["adapter.r=1,2", FAULT % (1, "slow", ""), "trainer.max_epochs=3"]
    command = [*words(*more), *ALLOW]
    sweep = start(command)
    wait_until(lambda: steps_of("r-1") >= 4)
    for _ in range(times):
        os.kill(sweep.pid, number)
        time.sleep(0.02)
    _, errors = sweep.communicate(timeout=60)
    assert sweep.returncode == 130
    assert "go on with: " in errors and "Traceback" not in errors
    assert statuses() == {"r-1": "interrupted", "r-2": "waiting"}
    assert json.loads(Path("sweep/r-1/run.json").read_text())["status"] == "interrupted"
    assert json.loads(Path("sweep/sweep.json").read_text())["status"] == "interrupted"
    assert main(command) == 0
    assert set(statuses().values()) == {"completed"}
    record = json.loads(Path("sweep/r-1/run.json").read_text())
    assert record["sessions"] == 2 and record["training"]["steps"] == 18


def test_a_sweep_at_work_is_locked_and_a_dead_holder_is_not_in_the_way(words, capsys):
    more = ["adapter.r=1,2", FAULT % (1, "slow", "")]
    command = [*words(*more), *ALLOW]
    sweep = start(command)
    wait_until(lambda: steps_of("r-1") >= 2)
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"process {sweep.pid} on " in line
    os.kill(sweep.pid, signal.SIGKILL)
    sweep.wait()
    # Its worker notices, saves its job and ends; the next command waits for it.
    assert main(command) == 0
    assert set(statuses().values()) == {"completed"}
    assert json.loads(Path("sweep/r-1/run.json").read_text())["sessions"] == 2


def test_sweeps_of_the_same_second_do_not_meet(words, tmp_path):
    command = [word for word in words("adapter.r=1,2") if not word.startswith("sweep.dir")]
    pair = [start(command) for _ in range(2)]
    assert [sweep.wait(120) for sweep in pair] == [0, 0]
    roots = sorted(Path("multirun").glob("*/*"))
    assert len(roots) == 2
    for root in roots:
        assert set(statuses(root).values()) == {"completed"}
    assert main([*command, "sweep.resume=last"]) == 0
    assert len(list(Path("multirun").glob("*/*"))) == 2


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["adapter.r=1,0"], "adapter.r=0"),
        (["adapter.scope=everywhere,cross", "adapter.target_modules=ffn"], "adapter.scope=cross"),
        (["adapter.target_modules=qv,[q,nothing]"], "nothing"),
        (["data.path=questions.csv,missing.csv"], "missing.csv"),
        (["sweep.resume=last"], "cannot be joined with"),
        (["hydra/launcher=joblib"], "hydra/launcher=joblib"),
        (["sweep.parallel=0"], "sweep.parallel=0"),
        (["sweep.dir="], "sweep.dir=: empty"),
        ([f"sweep.dir={'x' * 300}"], "cannot be written (File name too long)"),
    ],
)
def test_one_wrong_point_refuses_the_sweep(words, capsys, more, expected):
    assert main(words(*more)) == 2
    assert expected in capsys.readouterr().err
    assert not Path("sweep").exists()


def test_a_folder_that_is_no_sweep_is_left_alone(words, capsys):
    Path("sweep").mkdir()
    Path("sweep/thesis.txt").write_text("years of work")
    assert main(words("adapter.r=1")) == 2
    assert "no sweep" in capsys.readouterr().err
    assert [path.name for path in Path("sweep").iterdir()] == ["thesis.txt"]
    assert main(["train", "-m", "sweep.resume=last"]) == 2
    assert "no sweep under multirun" in capsys.readouterr().err


def test_single_runs_refuse_what_only_sweeps_can_do(capsys):
    assert main(["train", "sweep.parallel=2"]) == 2
    assert main(["train", "experiment=ablation_scope"]) == 2
    assert main(["plan", "experiment=ablation_scope"]) == 2
    assert main(["train", "hydra.run.dir=x"]) == 2
    assert main(["train", "-m"]) == 2
    assert main(["evaluate", "-m", "split=val,test"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6
    assert "expected meqsum train -m experiment=ablation_scope" in lines[1]


def test_seeds_and_folds_are_pooled(words, capsys):
    more = ["data.split=folds", "data.folds=2", "data.fold=0,1", "seed=0,1", "test=true"]
    assert main(words(*more, "test_base=false", "sweep.parallel=2")) == 0
    assert set(entries()) == {f"fold-{f}_seed-{s}" for f in (0, 1) for s in (0, 1)}
    shown = capsys.readouterr().out
    assert "±" in shown and "40" in shown


def test_combinations_that_are_the_same_job_run_once(words, capsys):
    assert main(words("adapter.r=8", "adapter.alpha=2r,16", "trainer.progress=plain")) == 0
    assert len(entries()) == 1
    assert "1 combination is the same" in capsys.readouterr().err


def test_the_plan_of_a_sweep(words, capsys):
    assert main(["plan", *words("adapter.r=1,2,4", "sweep.parallel=auto")[1:]]) == 0
    shown = capsys.readouterr().out
    assert "3 jobs" in shown and "disk" in shown and "memory" in shown
    assert not Path("sweep").exists()


def test_a_plan_needs_neither_device_nor_hub(capsys):
    """What a laptop can say of a sweep for a GPU; counts come from the split's name."""
    large = ["model=flan_t5_large", "data=meqsum", "trainer=gpu"]
    assert main(["plan", "-m", "experiment=ablation_scope", *large]) == 0
    shown = capsys.readouterr().out
    assert "4 jobs" in shown and "unknown" in shown and "scope-encoder" in shown
    assert main(["plan", "-m", "adapter.r=1,2", "data=meqsum", "data.split=folds"]) == 2
    assert "data.hub_id" in capsys.readouterr().err


def _tree(process):
    """Workers of a sweep's process."""
    return [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "meqsum_lightning.sweeps.worker" in child.cmdline()
    ]


@pytest.mark.slow
def test_killed_three_times_and_resumed_as_if_never(words, tmp_path):
    """Twelve jobs; SIGKILL to the parent, then to a worker, then to everything."""
    grid = ["adapter.r=1,2,3,4", "optim.lr=0.01,0.02,0.04", "trainer.max_epochs=2", "test=true"]
    command = words(*grid, "sweep.parallel=2")
    other = [word.replace("sweep.dir=sweep", "sweep.dir=whole") for word in command]
    assert main(other) == 0

    def done():
        return sum(status == "completed" for status in statuses().values())

    first = start(command)
    wait_until(lambda: Path("sweep/sweep.json").exists() and done() >= 2)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()

    second = start(command)
    wait_until(lambda: done() >= 5 and _tree(second))
    _tree(second)[0].kill()
    wait_until(lambda: done() >= 7)
    everything = [psutil.Process(second.pid), *_tree(second)]
    for process in everything:
        process.kill()
    second.wait()
    psutil.wait_procs(everything, 10)

    assert main(command) == 0
    assert len(entries()) == 12 and set(statuses().values()) == {"completed"}
    for name, entry in entries().items():
        record = json.loads(Path("sweep", name, "run.json").read_text())
        assert record["status"] == "completed" and record["config_hash"] == entry["config_hash"]
        assert read_metrics(tmp_path / "sweep" / name) == read_metrics(tmp_path / "whole" / name)
