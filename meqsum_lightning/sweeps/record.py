"""`sweep.json` and the root of a sweep: what was asked for, how each job stands, who holds it.

The file is written whole at every change; what a killed sweep left in it is put right on reading.
"""

import contextlib
import json
import logging
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from meqsum_lightning.errors import UserError
from meqsum_lightning.files import lock, mendable, read_json, write_json
from meqsum_lightning.runs.record import (
    RUN_FILE,
    close_record,
    is_alive,
    now,
    process_start,
    read_record,
)

SWEEP_FILE = "sweep.json"
VERSION = 1
DEFAULT_PARENT = Path("multirun")
FAILED_FOLDER = "failed"
LOGS_FOLDER = "logs"
ENDED = ("completed", "failed", "interrupted", "pruned")
STATUSES = ("waiting", "running", *ENDED)

log = logging.getLogger("meqsum_lightning")


@dataclass
class JobEntry:
    """One job of a sweep, as `sweep.json` has it.

    Attributes:
        name: Readable and unique in the sweep; also the name of its folder.
        overrides: What was typed, one value each.
        config_hash: By which a job is recognised.
        status: waiting, running, completed, failed, interrupted or pruned.
        folder: Name of its run directory below the root; None: not made yet.
        started: When its last session began.
        ended: When that ended.
        error: Why it failed, in one line.
        value: Best validation score of the monitored metric.
        cwd: Where the command was typed, from which relative paths start.
    """

    name: str
    overrides: list[str]
    config_hash: str
    status: str = "waiting"
    folder: str | None = None
    started: str | None = None
    ended: str | None = None
    error: str | None = None
    value: float | None = None
    cwd: str | None = None


class SweepRecord:
    """The record of a sweep that this process holds.

    Args:
        root: The sweep's folder.
        content: Of `sweep.json`, without the jobs.
        jobs: Its jobs, by name.
        descriptor: Of the lock.
    """

    def __init__(
        self, root: Path, content: dict[str, Any], jobs: dict[str, JobEntry], descriptor: int
    ):
        self.root = root
        self.content = content
        self.jobs = jobs
        self._descriptor = descriptor
        self._told = False

    @classmethod
    def open(cls, root: Path) -> Self:
        """Takes hold of a sweep's folder, new or not; nothing is written yet.

        Raises:
            UserError: Another process works in it, it holds something else, or it can't be written.
        """
        if root.is_dir() and any(root.iterdir()) and not (root / SWEEP_FILE).exists():
            raise UserError(
                f"sweep.dir={root}: not empty and no sweep (it has no {SWEEP_FILE}); "
                "expected a new folder or that of a sweep"
            )
        descriptor = -1
        with mendable(root, "sweep.dir"):
            root.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(BlockingIOError):
                descriptor = lock(root)
        content: dict[str, Any] = {}
        jobs: list[JobEntry] = []
        try:
            if (root / SWEEP_FILE).exists():
                content, jobs = read_sweep(root)
            # Where a file system has no locks, the record tells.
            if descriptor < 0 or is_alive(content):
                raise UserError(
                    f"sweep.dir={root}: process {content.get('pid', '?')} on "
                    f"{content.get('host', 'this host')} is working on it; "
                    "expected a sweep that has stopped"
                )
        except BaseException:
            if descriptor >= 0:
                os.close(descriptor)
            raise
        return cls(root, content, {job.name: job for job in jobs}, descriptor)

    def start(
        self, overrides: Sequence[str], config_dirs: Sequence[str], settings: Mapping[str, Any]
    ) -> None:
        """Writes what this command asks for, and who works on it.

        Args:
            overrides: As typed.
            config_dirs: Further folders of config groups.
            settings: How jobs are run, for a command that names the folder alone.

        Raises:
            UserError: The folder can't be written.
        """
        commands = [*self.content.get("commands", ())]
        if list(overrides) not in commands:
            commands.append(list(overrides))
        self.content = {
            "version": VERSION,
            "status": "running",
            "pid": os.getpid(),
            "pid_started": process_start(os.getpid()),
            "host": socket.gethostname(),
            "started": self.content.get("started") or now(),
            "ended": None,
            "sessions": self.content.get("sessions", 0) + 1,
            "commands": commands,
            "config_dirs": [str(Path(folder).resolve()) for folder in config_dirs],
            "settings": dict(settings),
        }
        with mendable(self.root, "sweep.dir"):
            write_json(self.root / SWEEP_FILE, self._whole())

    def update(self, name: str, **facts: Any) -> None:
        """Changes what is known of a job."""
        for key, value in facts.items():
            setattr(self.jobs[name], key, value)
        self.write()

    def finish(self, status: str) -> None:
        """Writes how the sweep ended and lets go of its folder."""
        self.content |= {"status": status, "ended": now()}
        try:
            self.write()
        finally:
            self.release()

    def release(self) -> None:
        """Lets go of the folder; one that is still empty goes again."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                self.root.rmdir()
            os.close(self._descriptor)
            self._descriptor = -1

    def write(self) -> None:
        """Writes `sweep.json`; a disk that is full stops no job."""
        try:
            write_json(self.root / SWEEP_FILE, self._whole())
        except OSError as problem:
            if not self._told:
                log.warning("%s cannot be written: %s", self.root / SWEEP_FILE, problem)
                self._told = True
            # The blocks that the file has may be enough.
            with contextlib.suppress(OSError):
                (self.root / SWEEP_FILE).write_text(json.dumps(self._whole()), encoding="utf-8")

    def _whole(self) -> dict[str, Any]:
        jobs = list(map(asdict, self.jobs.values()))
        return self.content | {"heartbeat": now(), "jobs": jobs}


def read_sweep(root: Path) -> tuple[dict[str, Any], list[JobEntry]]:
    """What `sweep.json` says, put right by what its runs say.

    A killed sweep leaves itself and its jobs marked as running; a job may have gone further than
    the sweep had time to write.

    Returns:
        Content without the jobs, and the jobs.

    Raises:
        UserError: There is none, or it is damaged.
    """
    path = root / SWEEP_FILE
    try:
        content = read_json(path)
        jobs = [_entry(**entry) for entry in content.pop("jobs")]
        version, status = content["version"], content["status"]
    except OSError as error:
        raise UserError(
            f"sweep.dir={root}: {SWEEP_FILE} cannot be read ({error.strerror}); expected a sweep"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: damaged; expected the file that a sweep wrote") from None
    if version != VERSION:
        raise UserError(f"{path}: version {version}; this program reads version {VERSION}")
    if status == "running" and not is_alive(content):
        content["status"] = "interrupted"
    for job in jobs:
        reconcile(root, job)
    return content, jobs


def _entry(**facts: Any) -> JobEntry:
    """An entry as it was written; ValueError for one that was not written here."""
    job = JobEntry(**facts)
    texts = [job.name, job.config_hash, job.status, job.folder or job.name, *job.overrides]
    if not isinstance(job.overrides, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError
    if job.status not in STATUSES or any(
        name in ("", ".", "..") or "/" in name for name in (job.name, job.folder or job.name)
    ):
        raise ValueError
    return job


def reconcile(root: Path, job: JobEntry) -> None:
    """Sets the status of a job to what its run directory says."""
    if job.folder is None and (root / job.name / RUN_FILE).exists():
        job.folder = job.name
    try:
        record = read_record(root / (job.folder or job.name), "run")
    except UserError:
        # Nothing there: it never began, or somebody removed it.
        if job.status != "failed":
            job.status, job.folder = "waiting", None
        return
    status = record["status"]
    if status == "running" and not is_alive(record):
        status = "interrupted"
    # The sweep knows what the process that was killed could not write.
    if job.status == "failed" and status == "interrupted":
        return
    if record["config_hash"] != job.config_hash:
        job.status, job.folder = "waiting", None
        return
    job.status, job.error = status, record.get("error")
    best = record.get("best")
    if isinstance(best, dict) and isinstance(best.get("value"), int | float):
        job.value = float(best["value"])
    if status in ENDED:
        job.ended = record.get("ended") or job.ended


def new_root() -> Path:
    """Makes `multirun/DATE/TIME`, or the first of `TIME-2`, ... that nobody else has made."""
    time = datetime.now()
    base = DEFAULT_PARENT / time.strftime("%Y-%m-%d") / time.strftime("%H-%M-%S")
    with mendable(base, "sweep.dir"):
        base.parent.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            root = base if number == 1 else base.with_name(f"{base.name}-{number}")
            try:
                root.mkdir()
                return root
            except FileExistsError:
                number += 1


def last_root() -> Path:
    """The sweep under `multirun/` that was worked on last.

    Raises:
        UserError: There is none.
    """
    found = list(DEFAULT_PARENT.glob(f"*/*/{SWEEP_FILE}"))
    if not found:
        raise UserError(
            f"sweep.resume=last: no sweep under {DEFAULT_PARENT}/ here; expected sweep.dir=DIR"
        )
    return max(found, key=lambda path: (path.stat().st_mtime_ns, str(path))).parent


def close_job(root: Path, job: JobEntry, status: str, error: str) -> None:
    """Writes into a job's own folder how it ended, when its process could not."""
    folder = root / (job.folder or job.name)
    with contextlib.suppress(UserError):
        close_record(folder, status, error)


def set_aside(root: Path, job: JobEntry) -> None:
    """Moves what a failed job left to `failed/NAME-N`, so that it can start again."""
    folder = root / (job.folder or job.name)
    if not folder.exists():
        return
    number = 1
    while (target := root / FAILED_FOLDER / f"{folder.name}-{number}").exists():
        number += 1
    target.parent.mkdir(exist_ok=True)
    folder.rename(target)


def alive_jobs(root: Path, jobs: Iterable[JobEntry]) -> list[JobEntry]:
    """Jobs that processes of an earlier command are still running."""
    found = []
    for job in jobs:
        with contextlib.suppress(UserError):
            if is_alive(read_record(root / (job.folder or job.name), "run")):
                found.append(job)
    return found
