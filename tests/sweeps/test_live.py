"""The display of a running sweep: what it counts, how long it says, what fits."""

import io

import pytest
from rich.console import Console

from meqsum_lightning.sweeps import live
from meqsum_lightning.sweeps.live import Display
from meqsum_lightning.sweeps.record import JobEntry


class Clock:
    now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(live, "time", clock)
    return clock


def display(jobs, workers=1, height=40):
    console = Console(file=io.StringIO(), width=80, height=height, highlight=False)
    return Display("sweep s", jobs, workers, "bar", console)


def text(shown):
    shown.console.print(shown.render())
    return shown.console.file.getvalue()


def start(shown, job):
    job.status = "running"
    shown.started(job, "starts")


def test_time_left_before_and_after_the_first_job(clock):
    jobs = [JobEntry(f"r-{r}", [], "1-a") for r in (1, 2, 4)]
    shown = display(jobs)
    assert shown.seconds_left() is None
    start(shown, jobs[0])
    clock.now += 10  # loading
    shown.progressed("r-1", {"step": 0, "steps": 10, "value": None})
    clock.now += 20
    shown.progressed("r-1", {"step": 5, "steps": 10, "value": 0.5})
    # 20 s for one half: 20 s are left, and 50 s for each of the others.
    assert shown.seconds_left() == pytest.approx(20 + 2 * 50)
    clock.now += 20
    jobs[0].status, jobs[0].value = "completed", 0.5
    shown.ended(jobs[0])
    assert shown.seconds_left() == pytest.approx(2 * 50)
    start(shown, jobs[1])
    clock.now += 30
    assert shown.seconds_left() == pytest.approx(20 + 50)
    assert "1/3 done, 1 running, about 70 s left" in text(shown)


def test_a_resumed_job_is_not_faster_than_it_is(clock):
    job = JobEntry("r-1", [], "1-a")
    shown = display([job])
    start(shown, job)
    shown.progressed("r-1", {"step": 80, "steps": 100})
    clock.now += 10
    shown.progressed("r-1", {"step": 90, "steps": 100})
    assert shown.seconds_left() == pytest.approx(10)


def test_more_jobs_than_lines(clock):
    jobs = [JobEntry(f"r-{r}", [], "1-a") for r in range(100)]
    for job in jobs[:40]:
        job.status, job.value = "completed", 0.25
    start(shown := display(jobs, height=24), jobs[99])
    shown.progressed("r-99", {"stage": "backbone alone"})
    lines = text(shown).splitlines()
    assert len(lines) <= 24
    assert any("r-99" in line and "backbone alone" in line for line in lines)
    assert any("and 84 more" in line for line in lines)


@pytest.mark.parametrize("kind", ["bar", "plain"])
def test_a_terminal_that_goes_away_stops_nothing(kind, monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    job = JobEntry("r-1", [], "1-a")
    monkeypatch.setattr(live.sys, "stderr", Gone())
    console = Console(file=Gone(), force_terminal=True)
    with Display("sweep s", [job], 1, kind, console) as shown:
        start(shown, job)
        shown.refresh()
        shown.tell("something")
        shown.ended(job)
    assert shown.quiet


def test_lines_elsewhere(capsys):
    job = JobEntry("r-1", [], "1-a")
    shown = Display("sweep s", [job], 1, "plain")
    with shown:
        start(shown, job)
        job.status, job.error = "failed", "struck"
        shown.ended(job)
    assert capsys.readouterr().err.splitlines() == [
        "[0/1] r-1: starts",
        "[1/1] r-1: failed  0 s  struck",
    ]
