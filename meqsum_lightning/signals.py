"""Signals before a command works on anything: it ends at once, with one line."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

# What asks a program to end. Under nohup SIGHUP is ignored, and stays so.
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def heeded() -> list[signal.Signals]:
    """The signals among `STOPPING` that this process was not told to ignore."""
    return [
        number
        for number in STOPPING
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
    ]


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """While libraries are imported nothing is lost by ending; an exception in the midst of their
    C++ code would end in an abort, or in a traceback of theirs.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _leave) for number in heeded()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(number: int, _: FrameType | None) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"meqsum: stopped by {signal.Signals(number).name}\n")
        sys.stderr.flush()
    os._exit(130)
