"""Runs the jobs of a sweep that are missing, and keeps `sweep.json` true while they run."""

import contextlib
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from meqsum_lightning.config import components
from meqsum_lightning.config.schema import SweepConfig
from meqsum_lightning.errors import RunFailed, UserError
from meqsum_lightning.runs.checkpoints import prune
from meqsum_lightning.runs.record import RunRecord, now
from meqsum_lightning.signals import heeded
from meqsum_lightning.sweeps.leases import Lease
from meqsum_lightning.sweeps.live import Display
from meqsum_lightning.sweeps.points import Point
from meqsum_lightning.sweeps.pool import Pool
from meqsum_lightning.sweeps.record import (
    LOGS_FOLDER,
    JobEntry,
    SweepRecord,
    alive_jobs,
    close_job,
    reconcile,
    set_aside,
)

ORPHAN_POLL_SECONDS = 0.5


class SweepRun:
    """One command's work on a sweep: feeds the pool, writes the record, drives the display.

    Args:
        record: The sweep, held by this process.
        entries: The jobs of this command, as the record has them.
        points: The same jobs' configurations, in the same order.
        settings: The section `sweep`.
        leases: One per worker.
        display: What a person sees.
    """

    def __init__(
        self,
        record: SweepRecord,
        entries: Sequence[JobEntry],
        points: Sequence[Point],
        settings: SweepConfig,
        leases: Sequence[Lease],
        display: Display,
    ):
        self.record = record
        self.entries = list(entries)
        self.points = {entry.name: point for entry, point in zip(entries, points, strict=True)}
        self.settings = settings
        self.display = display
        self.signalled: str | None = None
        self.pool = Pool(leases, self, record.root / LOGS_FOLDER)
        self._queue = [entry for entry in self.entries if entry.status != "completed"]
        self._started: set[str] = set()
        self._best: dict[str, JobEntry] = {}
        for entry in self.entries:
            if entry.status == "completed":
                self._keep_best(entry)

    def run(self) -> None:
        """Runs what is missing; afterwards every job's status is in the record.

        Raises:
            RunFailed: Workers could not start, and jobs are left.
        """
        if not self._queue:
            return
        previous = {number: signal.signal(number, self._handle) for number in heeded()}
        try:
            self._wait_for_orphans()
            if not self.signalled:
                with self.display:
                    self.pool.run()
        finally:
            for entry in self.entries:
                if entry.status == "running" and entry.name in self._started:
                    self._close(entry, "interrupted", "the sweep was stopped")
            for number, handler in previous.items():
                signal.signal(number, handler)

    def next_job(self, lease: Lease) -> dict[str, Any] | None:
        """The next missing job: on from its checkpoint, or afresh."""
        if not self._queue:
            return None
        entry = self._queue.pop(0)
        point = self.points[entry.name]
        folder = self.record.root / entry.name
        goes_on = entry.status == "interrupted"
        note = "goes on" if goes_on else "starts"
        if entry.status == "failed":
            set_aside(self.record.root, entry)
            note = "starts again"
        progress = "none" if self.display.quiet else "plain"
        trainer = point.cfg.trainer.model_copy(
            update={"threads": lease.threads, "progress": progress}
        )
        place = {"output_dir": None, "resume": str(folder)}
        if not goes_on:
            place = {"output_dir": str(folder), "resume": None}
        cfg = point.cfg.model_copy(update={**place, "trainer": trainer})
        self.record.update(
            entry.name,
            status="running",
            folder=entry.name,
            started=now(),
            ended=None,
            error=None,
        )
        self._started.add(entry.name)
        self.display.started(entry, note)
        return {
            "name": entry.name,
            "config": cfg.model_dump(by_alias=True),
            "allowed": components.allowed_packages(),
        }

    def progressed(self, name: str, facts: Mapping[str, Any]) -> None:
        """For the display alone: the record is for what lasts."""
        self.display.progressed(name, facts)

    def ended(self, name: str, status: str, error: str | None) -> None:
        """A job has ended by itself; its own record has the last word."""
        self._close(self.record.jobs[name], status, error or "")

    def died(self, name: str, reason: str) -> None:
        """A job's process is gone."""
        stopped = self.pool.stopping and (self.signalled or self.settings.fail_fast)
        self._close(self.record.jobs[name], "interrupted" if stopped else "failed", reason)

    def tick(self) -> None:
        """Keeps the table moving."""
        self.display.refresh()

    def _close(self, entry: JobEntry, status: str, error: str) -> None:
        root, point = self.record.root, self.points[entry.name]
        if status == "failed":
            self._leave_folder(entry, point, error)
        close_job(root, entry, status, error)
        entry.status, entry.error = status, error or None
        reconcile(root, entry)
        if entry.status == "interrupted" and self.pool.stopping and not self.signalled:
            entry.error = "stopped by sweep.fail_fast"
        if entry.status == "failed":
            # As the worker told it: without the name of an exception class in front.
            entry.error = error or entry.error
        self.record.update(entry.name, ended=now())
        if entry.status == "completed":
            self._keep_best(entry)
        self.display.ended(entry)
        if entry.status == "failed" and self.settings.fail_fast and not self.pool.stopping:
            self._queue.clear()
            self.pool.stop()

    def _leave_folder(self, entry: JobEntry, point: Point, error: str) -> None:
        """A job that failed before it had a folder gets one that says why."""
        folder = self.record.root / entry.name
        if folder.exists():
            return
        config = point.cfg.model_dump(by_alias=True)
        # A full disk holds no folder; the sweep says then what it knows.
        with (
            contextlib.suppress(RunFailed, UserError, OSError),
            RunRecord.create(folder, config, point.facts, point.split),
        ):
            raise RunFailed(error)

    def _keep_best(self, entry: JobEntry) -> None:
        """`sweep.keep=best`: of all completed jobs only the best one keeps its checkpoints."""
        if self.settings.keep == "all" or entry.value is None:
            return
        monitor = self.points[entry.name].cfg.checkpoint.monitor
        best = self._best.get(monitor)
        loser = entry
        if best is None or best.value is None or _better(monitor, entry.value, best.value):
            self._best[monitor], loser = entry, best or entry
        if loser is not self._best[monitor]:
            prune(self.record.root / loser.name / "checkpoints", everything=True)

    def _wait_for_orphans(self) -> None:
        """Workers that a killed sweep left behind save their job and end by themselves."""
        root = self.record.root
        told = False
        while not self.signalled and (alive := alive_jobs(root, self.entries)):
            if not told:
                names = ", ".join(entry.name for entry in alive)
                self.display.tell(f"waiting for {names}: still running from an earlier command")
                told = True
            time.sleep(ORPHAN_POLL_SECONDS)
        if told:
            for entry in self.entries:
                reconcile(root, entry)
            self._queue = [entry for entry in self.entries if entry.status != "completed"]

    def _handle(self, number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.signalled is None:
            self.signalled = name
            self.display.tell(f"{name}: running jobs are saved and stopped; once more ends at once")
            self.pool.stop()
        else:
            self.pool.kill()


def statuses(entries: Sequence[JobEntry]) -> str:
    """How a sweep stands as a whole."""
    found = {entry.status for entry in entries}
    if "failed" in found:
        return "failed"
    return "interrupted" if found - {"completed", "pruned"} else "completed"


def missing(entries: Sequence[JobEntry], root: Path) -> str:
    """What a command is about to do: `12 jobs in DIR: 5 completed already, 1 goes on, 6 to run`."""
    count = [entry.status for entry in entries].count
    parts = [
        f"{count('completed')} completed already" if count("completed") else "",
        f"{count('interrupted')} to go on with" if count("interrupted") else "",
        f"{count('failed')} failed, to start again" if count("failed") else "",
        f"{count('running')} still running" if count("running") else "",
        f"{count('waiting')} to run" if count("waiting") else "",
    ]
    jobs = "1 job" if len(entries) == 1 else f"{len(entries)} jobs"
    return f"{jobs} in {root}: {', '.join(filter(None, parts))}"


def _better(monitor: str, value: float, other: float) -> bool:
    return value < other if monitor == "val/loss" else value > other
