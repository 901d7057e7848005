"""`RunRecord`: creates a run directory, tells its status while it runs and how it ended.

All writing into a run directory goes through this module and its neighbours in `runs/`.
"""

import fcntl
import json
import logging
import os
import platform
import socket
import subprocess
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
from meqsum_lightning.errors import RunFailed, RunInterrupted, UserError
from meqsum_lightning.files import read_json, write_json, write_text

CONFIG_FILE, RUN_FILE, METRICS_FILE = "config.yaml", "run.json", "metrics.json"
HEARTBEAT_SECONDS = 15.0
LIBRARIES = ("torch", "lightning", "transformers", "peft", "datasets", "hydra-core", "rouge-score")

log = logging.getLogger("meqsum_lightning")


class RunRecord:
    """The record of one run, as a context: `completed` when the block ends, else what went wrong.

    Args:
        folder: The run directory.
        record: Content of `run.json` so far.
    """

    def __init__(self, folder: Path, record: dict[str, Any]):
        self.folder = folder
        self.record = record
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._handler: logging.FileHandler | None = None
        self._descriptor = _lock(folder)

    @classmethod
    def create(cls, folder: Path, config: Mapping[str, Any], facts: Mapping[str, Any]) -> Self:
        """Makes a new run directory.

        Args:
            folder: Where; may exist when it is empty.
            config: Resolved configuration; paths of output, resume and sweep are left out.
            facts: Fingerprints, counts and hashes for `run.json`.

        Raises:
            UserError: The folder holds something, or can't be written.
        """
        check_free(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            new = cls(folder, {"status": "running", "created": _now(), **facts})
            # Again, now that nobody else can be filling it.
            check_free(folder)
            kept = {
                key: value
                for key, value in config.items()
                if key not in ("output_dir", "resume", "rerun", "sweep")
            }
            write_text(folder / CONFIG_FILE, yaml.safe_dump(kept, sort_keys=False))
        except OSError as error:
            raise UserError(
                f"output_dir={folder}: cannot be written ({error.strerror}); "
                "expected a writable folder"
            ) from None
        return new

    @classmethod
    def reopen(cls, folder: Path) -> Self:
        """Opens a run directory to go on with it.

        Raises:
            UserError: It is not a run directory, it is completed, or another process works in it.
        """
        try:
            record = read_json(folder / RUN_FILE)
        except (OSError, ValueError):
            raise UserError(
                f"resume={folder}: holds no readable {RUN_FILE}; expected a run directory"
            ) from None
        if record.get("status") == "completed":
            raise UserError(
                f"resume={folder}: the run is completed; expected an interrupted or failed one "
                f"(rerun={folder} starts its config afresh)"
            )
        if is_alive(record):
            raise UserError(
                f"resume={folder}: process {record['pid']} is still running it; "
                "expected a run that has stopped"
            )
        return cls(folder, record)

    def __enter__(self) -> Self:
        self.record |= {
            "status": "running",
            "pid": os.getpid(),
            "pid_started": _process_start(os.getpid()),
            "host": socket.gethostname(),
            "started": self.record.get("started") or _now(),
            "sessions": self.record.get("sessions", 0) + 1,
            "error": None,
            "versions": versions(),
            "hardware": self.record.get("hardware", {}) | hardware(),
            "git_commit": git_commit(),
        }
        self._session_start = time.monotonic()
        self.write()
        logs = self.folder / "logs"
        logs.mkdir(exist_ok=True)
        self._handler = logging.FileHandler(logs / "train.log", encoding="utf-8")
        self._handler.setFormatter(
            logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
        )
        logging.getLogger().addHandler(self._handler)
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if error is None:
            self.record["status"] = "completed"
        elif isinstance(error, RunInterrupted | KeyboardInterrupt | SystemExit):
            self.record |= {"status": "interrupted", "error": str(error) or "interrupted"}
            log.warning("interrupted: %s", error)
        else:
            self.record |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
            if isinstance(error, RunFailed | UserError):
                log.error("failed: %s", error)
            log.debug("".join(traceback.format_exception(error)))
            if self._handler is not None and self._handler.stream is not None:
                self._handler.stream.write("".join(traceback.format_exception(error)))
        seconds = time.monotonic() - self._session_start
        self.record["wall_seconds"] = round(self.record.get("wall_seconds", 0.0) + seconds, 3)
        self.record["ended"] = _now()
        try:
            self.write()
        except OSError as problem:
            log.error("%s cannot be written: %s", self.folder / RUN_FILE, problem)
        if self._handler is not None:
            logging.getLogger().removeHandler(self._handler)
            self._handler.close()
        os.close(self._descriptor)

    def update(self, **facts: Any) -> None:
        """Adds facts to `run.json`."""
        with self._lock:
            self.record |= facts
        self.write()

    def write(self) -> None:
        """Writes `run.json`, with a fresh heartbeat."""
        with self._lock:
            self.record["heartbeat"] = _now()
            write_json(self.folder / RUN_FILE, self.record)

    def write_metrics(self, metrics: Mapping[str, float]) -> None:
        """Adds flat metrics to `metrics.json`."""
        path = self.folder / METRICS_FILE
        known = read_json(path) if path.exists() else {}
        write_json(path, known | dict(metrics))

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                self.write()
            except OSError as problem:
                log.warning("%s cannot be written: %s", self.folder / RUN_FILE, problem)


def check_free(folder: Path) -> None:
    """Refuses a run directory that holds something.

    Raises:
        UserError: It is a file, or a folder that is not empty.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output_dir={folder}: is a file; expected a new or empty folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"output_dir={folder}: not empty; expected a new or empty folder")


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


def is_alive(record: Mapping[str, Any]) -> bool:
    """Whether the process that a `run.json` names is running: on this host it is looked up, of
    another host a fresh heartbeat tells.
    """
    if record.get("status") != "running":
        return False
    if record.get("host") != socket.gethostname():
        beat = datetime.fromisoformat(record["heartbeat"])
        return (datetime.now(UTC) - beat).total_seconds() < 4 * HEARTBEAT_SECONDS
    pid, started = record.get("pid"), record.get("pid_started")
    # A process id is used again: the start time tells the same process from a later one.
    return isinstance(pid, int) and started is not None and _process_start(pid) == started


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
    """Metrics of a run directory; empty when it has none yet."""
    path = folder / METRICS_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write_predictions(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a table of predictions: raw text, one row per question."""
    import csv

    from meqsum_lightning.files import atomic_path

    columns = list(rows[0]) if rows else ["id", "question", "reference", "prediction"]
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _lock(folder: Path) -> int:
    """Locks a folder against a second process; the lock ends with the process.

    Raises:
        UserError: Another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(
            f"{folder}: another process is working in it; expected a run that has stopped"
        ) from None
    except OSError:
        # Some network file systems have no locks; the process id in run.json remains.
        log.debug("%s: no file locks here", folder)
    return descriptor


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _process_start(pid: int) -> float | None:
    import psutil

    try:
        return round(psutil.Process(pid).create_time(), 1)
    except psutil.Error:
        return None
