"""What goes wrong in the jobs of a test: a callback that fails, kills or waits at a given rank."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback


class Fault(Callback):
    """Strikes before the third step of jobs of one rank.

    Args:
        r: Rank of the jobs.
        kind: raise, memory, diverge, kill, or slow (waits in each step).
        once: File that is left when it has struck and keeps it from striking again.
    """

    def __init__(self, r: int, kind: str, once: str | None = None):
        self.r = r
        self.kind = kind
        self.once = None if once is None else Path(once)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if pl_module.model.peft_config["default"].r != self.r:
            return
        if self.kind == "slow":
            time.sleep(0.3)
        if pl_module.job.cursor.global_step != 3 or (self.once and self.once.exists()):
            return
        if self.once:
            self.once.touch()
        if self.kind == "raise":
            raise ZeroDivisionError("struck")
        if self.kind == "memory":
            raise MemoryError("no more")
        if self.kind == "diverge":
            next(iter(pl_module.job.parameters.values())).data.fill_(float("nan"))
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
