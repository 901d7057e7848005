"""What a person sees while a sweep runs: a table on a terminal, a line per event elsewhere."""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from meqsum_lightning.sweeps.record import JobEntry

STYLES = {
    "running": "bold",
    "completed": "green",
    "failed": "red",
    "interrupted": "yellow",
    "waiting": "dim",
}
# Lines around the jobs: heading, header, the line of those left out, a margin.
LINES_AROUND = 8


class Display:
    """Shows a running sweep on standard error.

    Args:
        title: What is shown above the jobs.
        jobs: All jobs of this command; they change while it runs.
        workers: Jobs at a time.
        kind: `trainer.progress`: auto, bar, plain or none.
        console: Where; None: standard error.
    """

    def __init__(
        self,
        title: str,
        jobs: Sequence[JobEntry],
        workers: int,
        kind: str,
        console: Console | None = None,
    ):
        self.title = title
        self.jobs = jobs
        self.workers = workers
        self.console = console or Console(stderr=True, highlight=False)
        terminal = self.console.is_terminal and sys.stderr.isatty()
        self.table = kind == "bar" or (kind == "auto" and terminal)
        self.quiet = kind == "none"
        self._progress: dict[str, dict[str, Any]] = {}
        # When a job was first seen training, and how far it was then.
        self._first: dict[str, tuple[float, float]] = {}
        self._began: dict[str, float] = {}
        self._took: dict[str, float] = {}
        self._live: Live | None = None

    def __enter__(self) -> "Display":
        if self.table:
            # Drawn by `refresh` alone: a thread of its own would raise where nobody catches it.
            live = Live(self.render(), console=self.console, auto_refresh=False, transient=True)
            with self._nobody_need_look():
                live.start()
                self._live = live
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            with self._nobody_need_look():
                self._live.stop()

    def started(self, job: JobEntry, note: str) -> None:
        """A worker has taken a job."""
        self._began[job.name] = time.monotonic()
        self._progress.pop(job.name, None)
        self._first.pop(job.name, None)
        self._line(job, note)

    def progressed(self, name: str, facts: Mapping[str, Any]) -> None:
        """A job has come further."""
        self._progress[name] = dict(facts)
        if facts.get("steps"):
            self._first.setdefault(name, (time.monotonic(), self._share(name)))

    def ended(self, job: JobEntry) -> None:
        """A job has ended."""
        self._took[job.name] = time.monotonic() - self._began.get(job.name, time.monotonic())
        score = "" if job.value is None else f"  validation {job.value:.3f}"
        error = f"  {job.error}" if job.error else ""
        self._line(job, f"{job.status}{score}  {_seconds(self._took[job.name])}{error}")

    def tell(self, text: str) -> None:
        """Says something in between."""
        if self._live is not None:
            with self._nobody_need_look():
                self.console.print(Text(text))
        else:
            self._say(text)

    def refresh(self) -> None:
        """Draws the table anew."""
        if self._live is not None:
            with self._nobody_need_look():
                self._live.update(self.render(), refresh=True)

    def render(self) -> Group:
        """Heading and table of the jobs that fit on the screen: running, ended, waiting."""
        order = {"running": 0, "failed": 1, "interrupted": 1, "completed": 2, "waiting": 3}
        ranked = sorted(self.jobs, key=lambda job: order.get(job.status, 2))
        room = max(3, self.console.height - LINES_AROUND)
        shown = {job.name for job in ranked[:room]}
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("job", overflow="ellipsis", no_wrap=True)
        for name in ("status", "progress", "validation", "time", "left"):
            justify = "left" if name == "status" else "right"
            table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
        for job in self.jobs:
            if job.name in shown:
                table.add_row(*self._cells(job), style=STYLES.get(job.status, ""))
        hidden = len(self.jobs) - len(shown)
        lines: list[Any] = [Text(self.heading(), style="bold"), table]
        if hidden:
            lines.append(Text(f"… and {hidden} more", style="dim"))
        return Group(*lines)

    def heading(self) -> str:
        """`sweep DIR: 3/12 done, 1 failed, 2 running, about 4 min left`."""
        count = [job.status for job in self.jobs].count
        text = f"{self.title}: {count('completed')}/{len(self.jobs)} done"
        for status in ("failed", "interrupted", "running"):
            if count(status):
                text += f", {count(status)} {status}"
        left = self.seconds_left()
        return text if left is None else f"{text}, about {_seconds(left)} left"

    def seconds_left(self) -> float | None:
        """From the mean of the jobs that have ended, else from how far the running ones are."""
        running = [job.name for job in self.jobs if job.status == "running"]
        waiting = sum(job.status == "waiting" for job in self.jobs)
        lefts = {name: self._left(name) for name in running}
        took = [
            self._took[job.name]
            for job in self.jobs
            if job.status == "completed" and job.name in self._took
        ] or [
            time.monotonic() - self._began[name] + left
            for name, left in lefts.items()
            if left is not None
        ]
        if not took:
            return None
        mean = sum(took) / len(took)
        undone = sum(
            max(0.0, mean - time.monotonic() + self._began[name]) if left is None else left
            for name, left in lefts.items()
        )
        return (mean * waiting + undone) / max(1, self.workers)

    def _cells(self, job: JobEntry) -> list[str]:
        facts = self._progress.get(job.name, {})
        value = job.value if job.value is not None else facts.get("value")
        progress = took = left = ""
        if job.status == "running":
            elapsed = time.monotonic() - self._began.get(job.name, time.monotonic())
            took = _seconds(elapsed)
            progress = facts.get("stage", "")
            if facts.get("steps"):
                progress = f"step {facts['step']}/{facts['steps']}"
                if (seconds := self._left(job.name)) is not None:
                    left = _seconds(seconds)
        elif job.name in self._took:
            took = _seconds(self._took[job.name])
        score = "" if value is None else f"{value:.3f}"
        return [job.name, job.status, progress, score, took, left]

    def _share(self, name: str) -> float:
        facts = self._progress.get(name, {})
        return facts["step"] / facts["steps"] if facts.get("steps") else 0.0

    def _left(self, name: str) -> float | None:
        """Seconds that a job still trains, from its pace since it was first seen."""
        first, share = self._first.get(name), self._share(name)
        if first is None or share <= first[1]:
            return None
        return (time.monotonic() - first[0]) / (share - first[1]) * (1 - share)

    def _line(self, job: JobEntry, text: str) -> None:
        if self._live is not None:
            self.refresh()
            return
        ended = sum(entry.status in ("completed", "failed", "pruned") for entry in self.jobs)
        self._say(f"[{ended}/{len(self.jobs)}] {job.name}: {text}")

    def _say(self, text: str) -> None:
        if not self.quiet:
            with self._nobody_need_look():
                print(text, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def _nobody_need_look(self) -> Iterator[None]:
        """A terminal that was closed, or a pipe whose reader has gone, stops no job."""
        try:
            yield
        except (OSError, ValueError, SystemExit):
            # Rich leaves the program when a pipe breaks.
            self.quiet, self._live = True, None


def _seconds(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
