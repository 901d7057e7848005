"""Finding run directories and reading what they hold, for summaries and reports.

Nothing is trained, scored or written here; joining runs of one configuration is `pooling.py`.
"""

import csv
import logging
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from meqsum_lightning.errors import UserError
from meqsum_lightning.files import read_json
from meqsum_lightning.runs.hashing import stable_part
from meqsum_lightning.runs.record import (
    CONFIG_FILE,
    METRICS_FILE,
    RUN_FILE,
    is_alive,
    read_record,
)

ROUGE_KEYS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
# Table of predictions behind the metrics of a prefix, as in `test/rougeL`.
PREDICTION_FILES = {
    "test": "predictions.csv",
    "val": "predictions_val.csv",
    "test_base": "predictions_base.csv",
}
SWEEP_FILE = "sweep.json"
# What lies in a sweep's root beside its jobs: logs of workers, and earlier attempts that failed.
SWEEP_OWN = ("logs", "failed")
# Why a run directory is left out. What was pruned has no final scores.
REASONS = ("running", "failed", "interrupted", "pruned", "unreadable")

# libyaml reads a configuration ten times as fast; not every build of PyYAML has it.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# What damaged content makes reading raise.
_DAMAGE = (OSError, ValueError, TypeError, LookupError, AttributeError)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Predictions:
    """Scores of a table of predictions.

    Attributes:
        ids: Row ids, in the order of the file.
        scores: F1 in [0, 1] by ROUGE key, each as long as `ids`.
    """

    ids: tuple[str, ...]
    scores: dict[str, tuple[float, ...]]


@dataclass(frozen=True, eq=False)
class Run:
    """A completed run directory.

    Attributes:
        folder: Where it lies.
        record: Content of `run.json`.
        settings: Flat configuration, without keys that do not decide the result.
        metrics: Content of `metrics.json`, without what is not a finite number.
    """

    folder: Path
    record: dict[str, Any]
    settings: dict[str, Any]
    metrics: dict[str, float]
    _read: dict[str, Predictions] = field(default_factory=dict, repr=False)

    @property
    def seed(self) -> int:
        """Seed of initialisation, data order and dropout."""
        return int(self.settings["seed"])

    @property
    def fold(self) -> int:
        """The fold that was tested; 0 without folds."""
        return int(self.settings["data.fold"])

    @property
    def fingerprints(self) -> dict[str, str]:
        """What two runs must share, beside their settings, to be one system on one task.

        Folds of one division share their split: its name then holds how rows were divided. Random
        weights are drawn from the run's seed, which is no difference of its own.
        """
        base, settings = str(self.record["base_revision"]), self.settings
        if base.startswith("random:"):
            base = base.removesuffix(f":{self.seed}")
        split = str(self.record["split"]["fingerprint"])
        if settings.get("data.split") == "folds":
            names = ("folds", "split_seed", "val_fraction", "near_duplicate_threshold")
            split = ":".join(["folds", *(str(settings.get(f"data.{name}")) for name in names)])
        return {
            "data": str(self.record["data"]["fingerprint"]),
            "split": split,
            "rouge": str(self.record["rouge"]["fingerprint"]),
            "base_revision": base,
        }

    def has_predictions(self, file: str) -> bool:
        """Whether the run has this table of predictions."""
        return file in self._read or (self.folder / file).is_file()

    def read_rows(self, file: str) -> list[dict[str, str]]:
        """All columns of a table of predictions, as the strings that stand there.

        Raises:
            UserError: It is missing or damaged.
        """
        path = self.folder / file
        with _readable(path), path.open(newline="", encoding="utf-8") as opened:
            return list(csv.DictReader(opened))

    def read_predictions(self, file: str) -> Predictions:
        """Ids and scores of a table of predictions; read once.

        Args:
            file: Its name in the run directory, one of `PREDICTION_FILES`.

        Raises:
            UserError: It is missing or damaged.
        """
        if file not in self._read:
            path = self.folder / file
            with _readable(path), path.open(newline="", encoding="utf-8") as opened:
                self._read[file] = _scores(csv.reader(opened))
        return self._read[file]


@dataclass(frozen=True)
class Found:
    """What a search has found.

    Attributes:
        runs: Completed runs, in the order of the folders searched and of their names.
        skipped: Other run directories by reason; only reasons that occur.
    """

    runs: list[Run]
    skipped: dict[str, list[Path]]


def find_runs(folders: Sequence[Path], key: str = "folder") -> Found:
    """Reads all completed runs in and below some folders.

    A run directory is never looked into for others. Hidden folders are passed over, and what a
    sweep keeps beside its jobs (`logs/`, `failed/`), unless they are among `folders`. A directory
    that is reached twice, through a link or a second name, counts once.

    Args:
        folders: Run directories, or folders that hold some at any depth.
        key: What names the folders in messages.

    Raises:
        UserError: A folder does not exist; one line for each.
    """
    roots = [folder.expanduser() for folder in folders]
    if mistakes := [
        f"{key}={root}: {'not a folder' if root.exists() else 'no such folder'}; "
        "expected a run directory or a folder that holds some"
        for root in roots
        if not root.is_dir()
    ]:
        raise UserError(mistakes)
    found = Found([], {})
    for folder in _run_folders(roots):
        try:
            reason = _reason(read_record(folder, key))
            if reason is None:
                found.runs.append(read_run(folder, key))
        except UserError as error:
            log.debug("%s", error)
            reason = "unreadable"
        if reason is not None:
            found.skipped.setdefault(reason, []).append(folder)
    return found


def read_run(folder: Path, key: str = "run") -> Run:
    """Reads a completed run directory.

    Args:
        folder: The run directory.
        key: What names it in messages.

    Raises:
        UserError: It is not a run directory, damaged, or not completed.
    """
    record = read_record(folder, key)
    if record["status"] != "completed":
        raise UserError(f"{key}={folder}: {_reason(record)}; expected a completed run")
    for name in ("data", "split", "rouge"):
        if not isinstance(record.get(name), dict) or "fingerprint" not in record[name]:
            raise UserError(f"{key}={folder}: {RUN_FILE} is damaged ({name}); expected it whole")
    with _readable(folder / CONFIG_FILE):
        config = yaml.load((folder / CONFIG_FILE).read_text(encoding="utf-8"), _LOADER)
        # An empty group (no callbacks) has no settings.
        settings = {name: value for name, value in stable_part(config).items() if value != {}}
        int(settings["seed"]), int(settings["data.fold"])
    with _readable(folder / METRICS_FILE):
        metrics = {
            name: float(value)
            for name, value in read_json(folder / METRICS_FILE).items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
    return Run(folder, record, settings, metrics)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns what goes wrong with reading a file of a run into a line."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected the file that the run wrote") from None
    except (*_DAMAGE, yaml.YAMLError, csv.Error) as error:
        raise UserError(
            f"{path}: not readable ({error}); expected the file that the run wrote"
        ) from None


def _scores(rows: Iterator[list[str]]) -> Predictions:
    header = next(rows, [])
    place = header.index("id")
    places = {key: header.index(key) for key in ROUGE_KEYS}
    table = [row for row in rows if row]
    scores = {key: tuple(float(row[at]) for row in table) for key, at in places.items()}
    if not table or not all(math.isfinite(value) for column in scores.values() for value in column):
        raise ValueError("no rows, or scores that are not numbers")
    return Predictions(tuple(row[place] for row in table), scores)


def _reason(record: dict[str, Any]) -> str | None:
    """Why a run is left out; None: it is completed."""
    status = record["status"]
    if status == "completed":
        return None
    if status == "running":
        return "running" if is_alive(record) else "interrupted"
    return status if status in REASONS else "unreadable"


def _run_folders(roots: Iterable[Path]) -> Iterator[Path]:
    """Run directories, each once; links are followed last, so that a place's own name counts."""
    seen: set[str] = set()
    for root in roots:
        waiting = deque([root])
        while waiting:
            yield from _descend(waiting.popleft(), seen, waiting)


def _descend(folder: Path, seen: set[str], links: deque[Path]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    if (folder / RUN_FILE).is_file():
        yield folder
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        log.warning("%s: passed over (%s)", folder, error.strerror)
        return
    own = SWEEP_OWN if any(entry.name == SWEEP_FILE for entry in entries) else ()
    for entry in entries:
        if entry.name.startswith(".") or entry.name in own or not entry.is_dir():
            continue
        if entry.is_symlink():
            links.append(folder / entry.name)
        else:
            yield from _descend(folder / entry.name, seen, links)
