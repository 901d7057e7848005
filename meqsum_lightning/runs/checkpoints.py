"""Checkpoints of a training: adapter and job state alone, written atomically, the last two kept.

`best.ckpt` is the best epoch, `last.ckpt` where training stands, `previous.ckpt` the one before,
for the case that the last one can't be read.
"""

import logging
import os
from pathlib import Path
from typing import Any

import torch

from meqsum_lightning.errors import RunFailed, UserError
from meqsum_lightning.files import atomic_path

BEST, LAST, PREVIOUS = "best.ckpt", "last.ckpt", "previous.ckpt"
FORMAT = 1
JOB_STATE = {"adapter", "optimizer", "schedule", "cursor", "best", "stopper", "usage"}

log = logging.getLogger(__name__)


class CorruptCheckpoint(RunFailed):
    """A checkpoint that can't be read."""


def save_checkpoint(folder: Path, name: str, config_hash: str, job: dict[str, Any]) -> None:
    """Writes a checkpoint; the last one becomes the previous one.

    Args:
        folder: `checkpoints/` of a run directory.
        name: `best.ckpt` or `last.ckpt`.
        config_hash: Hash of the run's configuration.
        job: State of the training job.
    """
    with atomic_path(folder / name) as temporary:
        torch.save({"format": FORMAT, "config_hash": config_hash, "job": job}, temporary)
        if name == LAST and (folder / LAST).exists():
            # A copy by hard link: at no moment is there no last checkpoint.
            link = folder / f".{PREVIOUS}-link"
            link.unlink(missing_ok=True)
            os.link(folder / LAST, link)
            os.replace(link, folder / PREVIOUS)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint without running any code in it.

    Returns:
        `{"format", "config_hash", "job"}`.

    Raises:
        CorruptCheckpoint: It is empty, truncated, or something else; the message names it.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["format"] != FORMAT:
            raise CorruptCheckpoint(
                f"{path}: checkpoint of format {content['format']}; this version reads {FORMAT}"
            )
        if missing := JOB_STATE - set(content["job"]):
            raise CorruptCheckpoint(f"{path}: corrupt, without {', '.join(sorted(missing))}")
        return content
    except CorruptCheckpoint:
        raise
    except FileNotFoundError:
        raise CorruptCheckpoint(f"{path}: no such checkpoint") from None
    # torch raises many kinds here (zip, pickle, EOF, key): all mean the same to a user.
    except Exception as error:  # noqa: BLE001
        kind = type(error).__name__
        raise CorruptCheckpoint(
            f"{path}: corrupt, cannot be read as a checkpoint ({kind})"
        ) from None


def latest_checkpoint(folder: Path, config_hash: str) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, to go on from.

    Args:
        folder: `checkpoints/` of a run directory.
        config_hash: Hash of the run's configuration.

    Returns:
        Its content, or None when there is no checkpoint at all.

    Raises:
        CorruptCheckpoint: There are checkpoints, and none can be read.
        UserError: A checkpoint belongs to another run.
    """
    found = [folder / name for name in (LAST, PREVIOUS, BEST) if (folder / name).exists()]
    faults = []
    for path in found:
        try:
            content = load_checkpoint(path)
            if content["config_hash"] != config_hash:
                raise UserError(
                    f"{path}: of a run with hash {content['config_hash']}, this one has "
                    f"{config_hash}; expected a checkpoint of this run"
                )
            return content
        except CorruptCheckpoint as fault:
            faults.append(fault)
            log.warning("%s", fault)
    if faults:
        raise CorruptCheckpoint(f"{faults[0]}; no earlier checkpoint can be read either")
    return None


def prune(folder: Path, everything: bool) -> None:
    """Deletes the checkpoints that a completed run needs no more.

    Args:
        folder: `checkpoints/` of a run directory.
        everything: Also the best and the last one.
    """
    names = (PREVIOUS, LAST, BEST) if everything else (PREVIOUS,)
    for name in names:
        (folder / name).unlink(missing_ok=True)
    if everything and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
