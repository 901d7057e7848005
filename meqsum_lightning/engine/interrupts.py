"""Ctrl-C, SIGTERM, SIGHUP: the first one lets the current training step end; nothing is lost."""

import signal
import threading
from types import FrameType
from typing import Any, Self

from meqsum_lightning.errors import RunInterrupted
from meqsum_lightning.signals import heeded


class InterruptGuard:
    """A context in which SIGINT, SIGTERM and SIGHUP end the run in an orderly way.

    While `deferring`, a first signal only sets `requested`, and the training loop stops at the next
    step; otherwise, and at a second signal, `RunInterrupted` is raised at once.
    """

    def __init__(self) -> None:
        self.deferring = False
        self.requested: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # Only the main thread may set handlers; elsewhere (a notebook's worker) the caller decides.
        if threading.current_thread() is threading.main_thread():
            for number in heeded():
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raises if a signal has come.

        Raises:
            RunInterrupted: A signal has come.
        """
        if self.requested:
            raise RunInterrupted(self.requested)

    def _handle(self, number: int, _: FrameType | None) -> None:
        message = f"stopped by {signal.Signals(number).name}"
        first = self.requested is None
        self.requested = message
        if not (self.deferring and first):
            self.deferring = False
            raise RunInterrupted(message)
