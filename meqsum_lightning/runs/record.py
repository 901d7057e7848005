"""`RunRecord`: creates a run directory, tells its status while it runs and how it ended.

All writing into a run directory goes through this module and its neighbours in `runs/`.
"""

import contextlib
import csv
import errno
import json
import logging
import os
import platform
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from meqsum_lightning import __version__
from meqsum_lightning.errors import RunInterrupted, UserError
from meqsum_lightning.files import (
    atomic_path,
    check_free,
    lock,
    mendable,
    read_json,
    umask,
    write_json,
    write_text,
)

CONFIG_FILE, RUN_FILE, METRICS_FILE = "config.yaml", "run.json", "metrics.json"
SPLITS_FILE = "splits.json"
# Keys that say where a run is written, not what it is.
PLACES = ("output_dir", "resume", "rerun", "sweep")
HEARTBEAT_SECONDS = 15.0
LIBRARIES = ("torch", "lightning", "transformers", "peft", "datasets", "hydra-core", "rouge-score")

log = logging.getLogger("meqsum_lightning")


class RunRecord:
    """The record of one run, as a context: `completed` when the block ends, else what went wrong.

    Args:
        folder: The run directory.
        record: Content of `run.json` so far.
    """

    def __init__(self, folder: Path, record: dict[str, Any], descriptor: int):
        self.folder = folder
        self.record = record
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._log: logging.FileHandler | None = None
        self._session_start = time.monotonic()

    @classmethod
    def create(
        cls,
        folder: Path,
        config: Mapping[str, Any],
        facts: Mapping[str, Any],
        split: Mapping[str, Any],
    ) -> Self:
        """Makes a new run directory; it appears whole, ready to be resumed, or not at all.

        Args:
            folder: Where; may exist when it is empty.
            config: Resolved configuration; paths of output, resume and sweep are left out.
            facts: Fingerprints, counts and hashes for `run.json`.
            split: Content of `splits.json`.

        Raises:
            UserError: The folder holds something, or can't be written.
        """
        check_free(folder)
        record = {"created": now(), **facts} | _session({})
        kept = {key: value for key, value in config.items() if key not in PLACES}
        with mendable(folder, "output_dir"):
            folder.parent.mkdir(parents=True, exist_ok=True)
            fresh = Path(tempfile.mkdtemp(prefix=".run-", dir=folder.parent))
            try:
                fresh.chmod(0o777 & ~umask())
                write_text(fresh / CONFIG_FILE, yaml.safe_dump(kept, sort_keys=False))
                write_json(fresh / SPLITS_FILE, split)
                write_json(fresh / RUN_FILE, record)
                descriptor = _put_in_place(fresh, folder)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
        return cls(folder, record, descriptor)

    @classmethod
    def reopen(cls, folder: Path) -> Self:
        """Opens a run directory to go on with it; nothing is written before the context begins.

        Raises:
            UserError: It is not a run directory, it is completed, or another process works in it.
        """
        record = read_record(folder, "resume")
        if record["status"] == "completed":
            raise UserError(
                f"resume={folder}: the run is completed; expected an interrupted or failed one "
                f"(rerun={folder} starts its config afresh)"
            )
        if is_alive(record):
            raise UserError(
                f"resume={folder}: process {record.get('pid')} is still running it; "
                "expected a run that has stopped"
            )
        with mendable(folder, "resume"):
            descriptor = lock(folder)
        return cls(folder, record | _session(record), descriptor)

    def __enter__(self) -> Self:
        self._session_start = time.monotonic()
        self.write()
        logs = self.folder / "logs"
        logs.mkdir(exist_ok=True)
        self._log = _QuietFile(logs / "train.log", encoding="utf-8")
        self._log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logging.getLogger().addHandler(self._log)
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        seconds = time.monotonic() - self._session_start
        self.record |= {
            **_ending(error),
            "wall_seconds": round(self.record.get("wall_seconds", 0.0) + seconds, 3),
            "ended": now(),
        }
        if error is not None and self._log is not None:
            # Into the file alone: whoever called tells the user.
            text = "".join(traceback.format_exception(error))
            self._log.handle(logging.LogRecord(__name__, logging.ERROR, "", 0, text, None, None))
        try:
            self.write()
        except OSError:
            self._write_in_place()
        finally:
            self.release()

    def release(self) -> None:
        """Ends the lock and the log."""
        if self._log is not None:
            logging.getLogger().removeHandler(self._log)
            with contextlib.suppress(OSError):
                self._log.close()
        os.close(self._descriptor)

    def update(self, **facts: Any) -> None:
        """Adds facts to `run.json`."""
        with self._lock:
            self.record |= facts
        self.write()

    def write(self) -> None:
        """Writes `run.json`, with a fresh heartbeat."""
        with self._lock:
            self.record["heartbeat"] = now()
            write_json(self.folder / RUN_FILE, self.record)

    def write_metrics(self, metrics: Mapping[str, float]) -> None:
        """Adds flat metrics to `metrics.json`."""
        write_json(self.folder / METRICS_FILE, read_metrics(self.folder) | dict(metrics))

    def _write_in_place(self) -> None:
        """On a full disk: the blocks that `run.json` has are enough for how the run ended."""
        try:
            text = json.dumps(self.record, default=str)
            (self.folder / RUN_FILE).write_text(text, encoding="utf-8")
        except OSError as problem:
            log.error("%s cannot be written: %s", self.folder / RUN_FILE, problem)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                self.write()
            except OSError as problem:
                log.warning("%s cannot be written: %s", self.folder / RUN_FILE, problem)


def output_folder(given: str | None) -> Path:
    """`output_dir`, or a new folder under `outputs/DATE/`."""
    if given is not None:
        return Path(given).expanduser()
    now = datetime.now()
    base = Path("outputs") / now.strftime("%Y-%m-%d") / now.strftime("%H-%M-%S")
    folder, number = base, 1
    while folder.exists():
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder


def read_record(folder: Path, key: str) -> dict[str, Any]:
    """The content of `run.json`.

    Args:
        folder: A run directory.
        key: Config key that names it, for messages.

    Raises:
        UserError: There is none, or it is not what a run writes.
    """
    try:
        record = read_json(folder / RUN_FILE)
    except (OSError, ValueError):
        record = None
    needed = ("status", "config_hash", "data", "split", "base_revision")
    if not isinstance(record, dict) or any(name not in record for name in needed):
        raise UserError(f"{key}={folder}: holds no readable {RUN_FILE}; expected a run directory")
    return record


def is_alive(record: Mapping[str, Any]) -> bool:
    """Whether the process that a `run.json` names is running: on this host it is looked up, of
    another host a fresh heartbeat tells.
    """
    if record.get("status") != "running":
        return False
    if record.get("host") != socket.gethostname():
        try:
            beat = datetime.fromisoformat(record["heartbeat"])
            return (datetime.now(UTC) - beat).total_seconds() < 4 * HEARTBEAT_SECONDS
        except (KeyError, ValueError, TypeError):
            return False
    pid, started = record.get("pid"), record.get("pid_started")
    # A process id is used again: the start time tells the same process from a later one.
    return isinstance(pid, int) and started is not None and process_start(pid) == started


def close_record(folder: Path, status: str, error: str) -> None:
    """Writes down how a run ended whose process is gone; a run that has ended stays as it is.

    Args:
        folder: A run directory.
        status: `failed` or `interrupted`.
        error: What is known.
    """
    record = read_record(folder, "run")
    if record["status"] == "running" and not is_alive(record):
        write_json(folder / RUN_FILE, record | {"status": status, "error": error, "ended": now()})


def versions() -> dict[str, str]:
    """Versions of this package, Python and the libraries that decide results."""
    found = {"meqsum-lightning": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Processor, cores and devices of this machine."""
    import torch

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "devices": devices,
    }


def git_commit() -> str | None:
    """Commit of the checkout that this package is run from, or None."""
    package = Path(__file__).resolve().parents[2]
    if not (package / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(package), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def read_metrics(folder: Path) -> dict[str, float]:
    """Metrics of a run directory; empty when it has none yet.

    Raises:
        UserError: The file is damaged.
    """
    path = folder / METRICS_FILE
    if not path.exists():
        return {}
    try:
        metrics = read_json(path)
    except ValueError as error:
        raise UserError(f"{error}; expected the file that the run wrote") from None
    if not isinstance(metrics, dict):
        raise UserError(f"{path}: no metrics; expected the file that the run wrote")
    return metrics


def write_predictions(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a table of predictions: raw text, one row per question."""
    columns = list(rows[0]) if rows else ["id", "question", "reference", "prediction"]
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


class _QuietFile(logging.FileHandler):
    """A log file whose faults (a full disk) are not worth a traceback each."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


def _put_in_place(fresh: Path, folder: Path) -> int:
    """Moves a new run directory to its place and locks it; fails when the place has been filled.

    Returns:
        The lock's descriptor.
    """
    descriptor = lock(fresh)
    try:
        # Takes the place of an empty folder too.
        os.rename(fresh, folder.resolve())
    except OSError as error:
        os.close(descriptor)
        if error.errno not in (errno.EBUSY, errno.EXDEV, errno.EINVAL):
            raise
        # A mount point can't be replaced, only filled.
        descriptor = lock(folder)
        check_free(folder)
        for name in (SPLITS_FILE, CONFIG_FILE, RUN_FILE):
            shutil.move(fresh / name, folder / name)
    return descriptor


def _session(before: Mapping[str, Any]) -> dict[str, Any]:
    """What `run.json` says of the process that works on the run from now on."""
    return {
        "status": "running",
        "pid": os.getpid(),
        "pid_started": process_start(os.getpid()),
        "host": socket.gethostname(),
        "heartbeat": now(),
        "started": before.get("started") or now(),
        "sessions": before.get("sessions", 0) + 1,
        "error": None,
        "versions": versions(),
        "hardware": hardware(),
        "git_commit": git_commit(),
    }


def _ending(error: BaseException | None) -> dict[str, Any]:
    if error is None:
        return {"status": "completed", "error": None}
    if isinstance(error, RunInterrupted | KeyboardInterrupt | SystemExit):
        return {"status": "interrupted", "error": str(error) or "interrupted"}
    return {"status": "failed", "error": f"{type(error).__name__}: {error}"}


def now() -> str:
    """The time as records write it: UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def process_start(pid: int) -> float | None:
    """When a process was started, which tells it from a later one of the same number."""
    import psutil

    try:
        return round(psutil.Process(pid).create_time(), 1)
    except psutil.Error:
        return None
