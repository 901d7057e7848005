"""A worker of a sweep: a process that runs job after job, and dies alone.

It asks for jobs on one pipe and is answered on another, a line of JSON each. Its own output goes to
`logs/worker-N.log` of the sweep. When the sweep's process is gone it stops as by Ctrl-C.
"""

import json
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import IO, Any

from meqsum_lightning.errors import RunFailed, RunInterrupted, UserError

# How often progress is told, in seconds.
TELL_EVERY = 0.5


class Line:
    """The two pipes to the sweep's process.

    Args:
        incoming: File descriptor of answers.
        outgoing: File descriptor of requests and events.
    """

    def __init__(self, incoming: int, outgoing: int):
        self._incoming = os.fdopen(incoming, "r", encoding="utf-8")
        self._outgoing: IO[str] = os.fdopen(outgoing, "w", encoding="utf-8")
        self._lock = threading.Lock()
        self._answers: list[Any] = []
        self._ready = threading.Condition()
        self._closed = False
        threading.Thread(target=self._listen, name="sweep", daemon=True).start()

    def tell(self, **message: Any) -> None:
        """Sends a message; when nobody reads any more, that is noticed elsewhere."""
        try:
            with self._lock:
                self._outgoing.write(json.dumps(message) + "\n")
                self._outgoing.flush()
        except OSError:
            pass

    def ask(self) -> dict[str, Any] | None:
        """The next job, or None when there is none left."""
        self.tell(event="want", count=1)
        with self._ready:
            # A wait without a limit would keep signals from being handled.
            while not self._answers and not self._closed:
                self._ready.wait(0.2)
            return self._answers.pop(0) if self._answers else None

    def _listen(self) -> None:
        for text in self._incoming:
            jobs = json.loads(text)["jobs"]
            with self._ready:
                self._answers.append(jobs[0] if jobs else None)
                self._ready.notify()
        with self._ready:
            self._closed = True
            self._ready.notify()
        # The sweep's process is gone: what runs is saved and ends.
        os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    """Runs jobs until there is none left."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    line = Line(int(sys.argv[1]), int(sys.argv[2]))
    try:
        work(line)
    except (RunInterrupted, KeyboardInterrupt):
        return 130
    return 0


def work(line: Line) -> None:
    """Runs what the sweep's process hands out.

    Raises:
        RunInterrupted: A signal has come; the job that ran has been saved.
    """
    from meqsum_lightning.config import components
    from meqsum_lightning.config.schema import TrainConfig
    from meqsum_lightning.engine.session import Session
    from meqsum_lightning.engine.train import train
    from meqsum_lightning.logs import configure

    configure()
    reporter = _Reporter(line)
    session = Session(reporter.tell)
    while (job := line.ask()) is not None:
        components.allow_packages(job["allowed"])
        print(f"--- {job['name']}", file=sys.stderr, flush=True)
        reporter.name = job["name"]
        try:
            train(TrainConfig.model_validate(job["config"]), session)
        except RunInterrupted as stop:
            line.tell(event="ended", name=job["name"], status="interrupted", error=str(stop))
            raise
        # Whatever it was, the next job has nothing to do with it.
        except Exception as error:  # noqa: BLE001
            session.forget()
            known = isinstance(error, RunFailed | UserError)
            text = str(error) if known else f"{type(error).__name__}: {error}"
            print(text, file=sys.stderr, flush=True)
            line.tell(event="ended", name=job["name"], status="failed", error=text)
        else:
            line.tell(event="ended", name=job["name"], status="completed", error=None)


class _Reporter:
    """Passes progress on, not more often than a person can read."""

    def __init__(self, line: Line):
        self._line = line
        self._told = 0.0
        self.name = ""

    def tell(self, facts: dict[str, Any]) -> None:
        rare = "stage" in facts or facts.get("step") == facts.get("steps")
        if rare or time.monotonic() - self._told > TELL_EVERY:
            self._told = time.monotonic()
            self._line.tell(event="progress", name=self.name, **facts)


def _stop(number: int, _: FrameType | None) -> None:
    raise RunInterrupted(f"stopped by {signal.Signals(number).name}")


if __name__ == "__main__":
    sys.exit(main())
