"""Trainings in child processes that die by SIGKILL at a chosen moment."""

import multiprocessing
import os
import signal
import sys
from pathlib import Path

_context = multiprocessing.get_context("forkserver")
# The libraries are imported once; each child starts from there.
_context.set_forkserver_preload(["tests.engine.killing", "meqsum_lightning.engine.train"])


def train_and_die(overrides: list[str], moment: str) -> None:
    """Starts a training that kills itself.

    Args:
        overrides: Of `meqsum train`.
        moment: `step N`, `validation N`, `best N` (between best and last checkpoint),
            `writing N` (inside the N-th checkpoint), `test` or `base`.
    """
    child = _context.Process(target=_train, args=(overrides, moment))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL, f"{moment}: exit code {child.exitcode}"


def train_and_signal(overrides: list[str], moment: str, number: int) -> int | None:
    """Starts a training that gets a signal at a moment; returns its exit code."""
    child = _context.Process(target=_train, args=(overrides, moment, number))
    child.start()
    child.join(120)
    return child.exitcode


def _train(overrides: list[str], moment: str, number: int = signal.SIGKILL) -> None:
    import torch

    from meqsum_lightning.cli import main
    from meqsum_lightning.engine import callbacks, scoring
    from meqsum_lightning.engine import train as training
    from meqsum_lightning.runs import checkpoints

    torch.set_num_threads(1)
    kind, _, text = moment.partition(" ")
    count = int(text or 1)

    def die() -> None:
        os.kill(os.getpid(), number)

    if kind == "step":
        original = callbacks.JobCallback.on_train_batch_end

        def on_train_batch_end(self, *args, **kwargs):
            if self.job.cursor.global_step == count:
                die()
            original(self, *args, **kwargs)

        callbacks.JobCallback.on_train_batch_end = on_train_batch_end
    elif kind in ("best", "writing"):
        save, calls = checkpoints.save_checkpoint, [0]

        def save_checkpoint(folder, name, *args):
            wanted = checkpoints.BEST if kind == "best" else None
            if wanted in (None, name):
                calls[0] += 1
                if calls[0] == count:
                    if kind == "writing":
                        (Path(folder) / ".last-half.ckpt").write_bytes(b"PK")
                        torch.save = lambda *a, **k: die()
                    else:
                        save(folder, name, *args)
                        die()
            save(folder, name, *args)

        callbacks.save_checkpoint = save_checkpoint
    elif kind == "validation":
        start, seen = callbacks.JobCallback.on_validation_start, [0]

        def on_validation_start(self, *args):
            seen[0] += 1
            if seen[0] == count:
                die()
            start(self, *args)

        callbacks.JobCallback.on_validation_start = on_validation_start
    elif kind == "created":
        training.announce = lambda *args: die()
    elif kind == "test":
        training.score = lambda *args: die()
    elif kind == "base":
        scoring.score = lambda *args: die()
    sys.exit(main(["train", *overrides]))
