"""A pool of worker processes: starts them, hands out jobs, notices deaths, passes on signals.

What jobs are, and what is written down of them, is the business of whoever feeds the pool.
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from meqsum_lightning.errors import RunFailed
from meqsum_lightning.sweeps.leases import Lease

TICK_SECONDS = 0.25
# Time that workers get to save and end when the sweep itself fails.
SAVE_SECONDS = 30.0


class Feeder(Protocol):
    """Who knows the jobs."""

    def next_job(self, lease: Lease) -> dict[str, Any] | None:
        """A job for a worker; None: there is none left."""

    def progressed(self, name: str, facts: dict[str, Any]) -> None:
        """A worker tells how far a job is."""

    def ended(self, name: str, status: str, error: str | None) -> None:
        """A worker tells how a job ended."""

    def died(self, name: str, reason: str) -> None:
        """The worker of a job is gone without a word."""

    def tick(self) -> None:
        """Some time has passed."""


@dataclass
class _Worker:
    number: int
    lease: Lease
    process: subprocess.Popen[bytes]
    answers: int
    events: int
    log: Path
    # Whether it has asked for a job, and been told that there is none.
    asked: bool = False
    released: bool = False
    job: str | None = None
    buffer: bytes = field(default=b"")


class Pool:
    """Worker processes of one sweep.

    Args:
        leases: One per worker.
        feeder: Hands out jobs and hears of them.
        logs: Folder of the workers' own output.
    """

    def __init__(self, leases: Sequence[Lease], feeder: Feeder, logs: Path):
        self.leases = leases
        self.feeder = feeder
        self.logs = logs
        self.stopping = False
        self._faults: list[str] = []
        self._workers: dict[int, _Worker] = {}
        self._selector = selectors.DefaultSelector()

    def run(self) -> None:
        """Runs until every worker has ended.

        Raises:
            RunFailed: Workers could not even start, and jobs may be left.
        """
        self.logs.mkdir(exist_ok=True)
        try:
            for number, lease in enumerate(self.leases):
                self._start(number, lease)
            while self._workers:
                for key, _ in self._selector.select(TICK_SECONDS):
                    self._read(key.data)
                self.feeder.tick()
        finally:
            self._leave()
            self._selector.close()
        if self._faults and not self.stopping:
            raise RunFailed(self._faults[0])

    def stop(self) -> None:
        """Hands out nothing more and asks the workers to save and end."""
        self.stopping = True
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        """Ends the workers at once, with all that they have started."""
        self.stopping = True
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        for worker in list(self._workers.values()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if number == signal.SIGKILL:
                    os.killpg(worker.process.pid, number)
                else:
                    worker.process.send_signal(number)

    def _start(self, number: int, lease: Lease) -> None:
        answers_end, answers = os.pipe()
        events, events_end = os.pipe()
        log = self.logs / f"worker-{number + 1}.log"
        command = [sys.executable, "-m", "meqsum_lightning.sweeps.worker"]
        try:
            with log.open("ab") as output:
                process = subprocess.Popen(
                    [*command, str(answers_end), str(events_end)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env={**os.environ, **lease.environment},
                    pass_fds=(answers_end, events_end),
                    # Ctrl-C reaches the sweep's process alone, which passes it on.
                    start_new_session=True,
                )
        finally:
            os.close(answers_end)
            os.close(events_end)
        worker = _Worker(number, lease, process, answers, events, log)
        self._workers[number] = worker
        self._selector.register(events, selectors.EVENT_READ, worker)

    def _read(self, worker: _Worker) -> None:
        data = os.read(worker.events, 1 << 16)
        if not data:
            self._end(worker)
            return
        *lines, worker.buffer = (worker.buffer + data).split(b"\n")
        for line in lines:
            self._handle(worker, json.loads(line))

    def _handle(self, worker: _Worker, message: dict[str, Any]) -> None:
        event = message.pop("event")
        if event == "want":
            worker.asked = True
            job = None if self.stopping else self.feeder.next_job(worker.lease)
            worker.job = job["name"] if job else None
            worker.released = job is None
            text = json.dumps({"jobs": [job] if job else []}) + "\n"
            with contextlib.suppress(BrokenPipeError):
                os.write(worker.answers, text.encode())
        elif event == "progress":
            self.feeder.progressed(message.pop("name"), message)
        elif event == "ended":
            worker.job = None
            self.feeder.ended(message["name"], message["status"], message["error"])

    def _end(self, worker: _Worker) -> None:
        """A worker has closed its pipe: it is done, or dead."""
        self._reap(worker)
        reason = _reason(worker.process.returncode)
        if worker.job is not None:
            self.feeder.died(worker.job, reason)
        if worker.released or self.stopping:
            return
        if worker.asked:
            self._start(worker.number, worker.lease)
        else:
            # Another one would end in the same way; the rest of the pool goes on.
            self._faults.append(f"a worker could not start ({reason}); see {worker.log}")

    def _leave(self) -> None:
        """After a fault of our own: what runs is saved, if it can be in good time."""
        if not self._workers:
            return
        self.stop()
        for worker in list(self._workers.values()):
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(SAVE_SECONDS)
        self.kill()
        for worker in list(self._workers.values()):
            self._reap(worker)

    def _reap(self, worker: _Worker) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(worker.events)
        worker.process.wait()
        os.close(worker.events)
        os.close(worker.answers)
        self._workers.pop(worker.number, None)


def _reason(code: int) -> str:
    if code >= 0:
        return f"its process ended with exit status {code}"
    name = signal.Signals(-code).name
    # The kernel ends with SIGKILL what asks for more memory than there is.
    hint = " (out of memory, or killed by hand)" if name == "SIGKILL" else ""
    return f"its process was killed by {name}{hint}"
