"""`logs/metrics.csv`: every logged value, one row per step, growing columns, ready for a resume."""

import csv
import logging
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from meqsum_lightning.files import atomic_path

log = logging.getLogger(__name__)

FIRST_COLUMNS = ("epoch", "step")


class MetricsCsvLogger(Logger):
    """Appends metrics to a CSV file. Unlike Lightning's own logger it keeps what an interrupted
    run has written, and drops on resume what the resumed run will write again.

    Args:
        save_dir: Folder of `metrics.csv`.
        resume_step: Rows from this step on are dropped; null: nothing is there yet.
    """

    def __init__(self, save_dir: str | Path, resume_step: int | None = None):
        super().__init__()
        self.path = Path(save_dir) / "metrics.csv"
        self.rows: list[dict[str, str]] = []
        self.columns = list(FIRST_COLUMNS)
        if resume_step is not None and self.path.exists():
            self._take_up(resume_step)
            self._rewrite()

    @property
    def name(self) -> str:
        """Kind of logger."""
        return "csv"

    @property
    def version(self) -> str:
        """There is one file per run."""
        return ""

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Does nothing: `config.yaml` holds the configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Adds a row, or fills in the last one when it is of the same step.

        Args:
            metrics: Values by name.
            step: Optimizer steps taken before.
        """
        values = {name: _text(value) for name, value in metrics.items()}
        new = [name for name in values if name not in self.columns]
        row = {"step": str(step if step is not None else ""), **values}
        same = self.rows and self.rows[-1]["step"] == row["step"]
        if same:
            self.rows[-1] |= row
        else:
            self.rows.append(row)
        if new:
            self.columns += sorted(new)
        if new or same or not self.path.exists():
            self._rewrite()
        else:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self.columns, restval="").writerow(row)

    def _take_up(self, resume_step: int) -> None:
        try:
            with self.path.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                columns = list(reader.fieldnames or FIRST_COLUMNS)
                kept = [row for row in reader if (row["step"] or "").isdigit()]
        except (ValueError, KeyError, csv.Error):
            aside = self.path.with_name(f"metrics-damaged-{resume_step}.csv")
            self.path.replace(aside)
            log.warning("%s: damaged, kept as %s", self.path, aside.name)
            return
        self.columns = columns
        self.rows = [row for row in kept if int(row["step"]) < resume_step]

    def _rewrite(self) -> None:
        with (
            atomic_path(self.path) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, self.columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)


def _text(value: float) -> str:
    number = float(value)
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else f"{number:.8g}"
