"""What a sweep has shown: jobs ranked by validation, those that failed, where the best one lies.

Runs are read through `runs`, tables are laid out in `summary_tables`; test scores decide nothing.
"""

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meqsum_lightning.console import program
from meqsum_lightning.errors import UserError
from meqsum_lightning.runs.collect import ROUGE_KEYS, Run, read_run
from meqsum_lightning.runs.pooling import Group, Pooled, differing, group
from meqsum_lightning.sweeps.summary_tables import problem_table, ranking, value_text

if TYPE_CHECKING:
    from rich.console import Console

JOB = "job"
STATUSES = ("completed", "pruned", "failed", "interrupted", "running", "waiting")


@dataclass(frozen=True)
class Row:
    """One configuration: a job, or jobs that differ in seed and fold alone.

    Attributes:
        jobs: Names of the jobs.
        settings: Values of the keys that differ in the sweep.
        validation: Score of the monitored metric at the best epoch; None: there is none.
        test: Test scores by ROUGE key; empty without a test.
        seeds: Number of seeds.
        folds: Number of folds.
        trainable: Trained parameters.
        seconds: Training time, mean over the jobs; None where nothing was trained.
        folder: Run directory; of several the one with the best validation.
    """

    jobs: tuple[str, ...]
    settings: dict[str, Any]
    validation: Pooled | None
    test: dict[str, Pooled]
    seeds: int
    folds: int
    trainable: int | None
    seconds: float | None
    folder: Path

    @property
    def questions(self) -> int:
        """Distinct test questions; without a test those of the validation."""
        pooled = next(iter(self.test.values()), self.validation)
        return pooled.questions if pooled else 0


@dataclass(frozen=True)
class Problem:
    """A job without scores.

    Attributes:
        job: Its name.
        status: `failed`, `interrupted`, or `unreadable` for a completed one that can't be read.
        error: Why, in one line.
        log: Its log; None: it left none.
    """

    job: str
    status: str
    error: str
    log: Path | None


@dataclass(frozen=True)
class Summary:
    """What is printed at the end of a sweep.

    Attributes:
        root: The sweep's folder.
        monitor: Metric that ranks, such as `val/rougeL`.
        statuses: Number of jobs by status.
        rows: Configurations, the best validation first.
        problems: Jobs without scores, in the order of the sweep.
        notes: What a reader of the scores must know.
    """

    root: Path
    monitor: str | None
    statuses: dict[str, int]
    rows: list[Row]
    problems: list[Problem]
    notes: list[str]

    @property
    def best(self) -> Row | None:
        """The configuration chosen on validation; None without any validation score."""
        return self.rows[0] if self.rows and self.rows[0].validation else None

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain containers, ready for json; folders are below `root`."""
        best = self.best
        return {
            "root": str(self.root),
            "monitor": self.monitor,
            "statuses": dict(self.statuses),
            "best": _below(best.folder, self.root) if best else None,
            "rows": [
                {
                    "jobs": list(row.jobs),
                    "settings": dict(row.settings),
                    "validation": _plain(row.validation),
                    "test": {key: _plain(pooled) for key, pooled in row.test.items()},
                    "seeds": row.seeds,
                    "folds": row.folds,
                    "questions": row.questions,
                    "trainable": row.trainable,
                    "seconds": row.seconds,
                    "folder": _below(row.folder, self.root),
                }
                for row in self.rows
            ],
            "problems": [
                {
                    "job": problem.job,
                    "status": problem.status,
                    "error": problem.error,
                    "log": _below(problem.log, self.root) if problem.log else None,
                }
                for problem in self.problems
            ],
            "notes": list(self.notes),
        }


def summarize(root: Path, jobs: Sequence[Mapping[str, Any]]) -> Summary:
    """Reads the completed jobs of a sweep and ranks them on validation alone.

    Args:
        root: The sweep's folder.
        jobs: Entries of `sweep.json`: name, status, folder below `root` or None, error or None.
    """
    runs: list[Run] = []
    names: dict[Path, str] = {}
    problems = []
    for job in jobs:
        status, error = job["status"], job.get("error")
        if status == "completed":
            try:
                run = read_run(root / (job.get("folder") or job["name"]))
            except UserError as mistake:
                status, error = "unreadable", mistake.lines[0]
            else:
                runs.append(run)
                names[run.folder] = job["name"]
        if status in ("failed", "interrupted", "unreadable"):
            line = " ".join(str(error or "").split())
            problems.append(Problem(job["name"], status, line, _log(root, job)))
    groups = group(runs)
    monitors = Counter(str(run.settings.get("checkpoint.monitor")) for run in runs)
    # The first of the sweep where two are as common.
    monitor = monitors.most_common(1)[0][0] if monitors else None
    notes = _notes(groups, names, list(monitors), monitor)
    rows = []
    if monitor is not None:
        keys = differing([run for one in groups for run in one.runs])
        rows = [_row(one, keys, monitor, names, notes) for one in groups]
        if len({tuple(map(value_text, row.settings.values())) for row in rows}) < len(rows):
            # Other rows behind one configuration, say: only the jobs' names tell them apart.
            rows = [_named(row, names) for row in rows]
        rows.sort(key=lambda row: _order(row.validation.mean if row.validation else None, monitor))
    counts = Counter(str(job["status"]) for job in jobs)
    statuses = {status: counts[status] for status in STATUSES if counts[status]}
    return Summary(root, monitor, statuses, rows, problems, notes)


def render(summary: Summary, console: "Console") -> None:
    """Prints a summary; columns that matter less are left out where the console is narrow."""
    from rich.text import Text

    console.print()
    if summary.rows:
        console.print(ranking(summary, console.width))
    console.print(Text(_headline(summary)))
    for note in summary.notes:
        console.print(Text(f"note: {note}", style="yellow"))
    if summary.problems:
        console.print()
        console.print(problem_table(summary))
    console.print()
    if summary.best:
        console.print(Text(f"best on validation: {summary.best.folder}"), soft_wrap=True)
    console.print(Text(f"sweep directory: {summary.root}"), soft_wrap=True)
    if commands := _suggestions(summary):
        console.print("next:", style="bold")
        for command in commands:
            console.print(Text(f"  {command}"), soft_wrap=True)


def _row(
    one: Group, keys: Sequence[str], monitor: str, names: Mapping[Path, str], notes: list[str]
) -> Row:
    first = one.runs[0]
    best = min(one.runs, key=lambda run: _order(_validation(run, monitor), monitor))
    seconds = [
        float(run.record["training"]["seconds"]) for run in one.runs if run.record.get("training")
    ]
    test = {key: _score(one, f"test/{key}", notes) for key in ROUGE_KEYS}
    return Row(
        jobs=tuple(names[run.folder] for run in one.runs),
        settings={key: one.settings.get(key) for key in keys},
        validation=_pooled_validation(one, monitor, notes),
        test={key: pooled for key, pooled in test.items() if pooled is not None},
        seeds=len(one.seeds),
        folds=len(one.folds),
        trainable=(first.record.get("parameters") or {}).get("trainable"),
        seconds=math.fsum(seconds) / len(seconds) if seconds else None,
        folder=best.folder,
    )


def _named(row: Row, names: Mapping[Path, str]) -> Row:
    return replace(row, settings={JOB: names[row.folder], **row.settings})


def _validation(run: Run, monitor: str) -> float | None:
    """Score of the best epoch; of a run that was not trained, its score on validation."""
    best = run.record.get("best") or {}
    value = best.get("value") if best.get("monitor") == monitor else None
    return float(value) if value is not None else run.metrics.get(monitor)


def _pooled_validation(one: Group, monitor: str, notes: list[str]) -> Pooled | None:
    pooled = _score(one, monitor, notes)
    value = _validation(one.runs[0], monitor)
    if len(one.runs) > 1 or value is None:
        return pooled
    return Pooled({one.runs[0].seed: value}, pooled.questions if pooled else 0)


def _score(one: Group, metric: str, notes: list[str]) -> Pooled | None:
    try:
        return one.score(metric)
    except UserError as error:
        if error.lines[0] not in notes:
            notes.append(error.lines[0])
        return None


def _order(value: float | None, monitor: str) -> float:
    """Sorts the best first, and what has no score last."""
    if value is None or not math.isfinite(value):
        return math.inf
    return value if monitor.endswith("/loss") else -value


def _notes(
    groups: Sequence[Group],
    names: Mapping[Path, str],
    monitors: Sequence[str],
    monitor: str | None,
) -> list[str]:
    notes = []
    if len(monitors) > 1:
        notes.append(f"jobs monitor {', '.join(monitors)}; all are ranked by {monitor}")
    tasks = {
        tuple(run.fingerprints[key] for key in ("data", "split", "rouge"))
        for one in groups
        for run in one.runs
    }
    if len(tasks) > 1:
        notes.append(
            "jobs were scored on different rows, splits or by different ROUGE settings: "
            "their scores can't be compared"
        )
    folded = [one for one in groups if one.settings.get("data.split") == "folds"]
    if len({tuple(one.folds) for one in folded}) > 1 or not all(one.complete for one in folded):
        notes.append("some seeds lack folds: their scores are over fewer questions")
    repeated = [names[run.folder] for one in groups for run in one.duplicates]
    if repeated:
        notes.append(f"jobs that repeat another are left out: {', '.join(repeated)}")
    return notes


def _headline(summary: Summary) -> str:
    total = sum(summary.statuses.values())
    parts = ", ".join(f"{count} {status}" for status, count in summary.statuses.items())
    return f"{total} job{'' if total == 1 else 's'}: {parts or 'none'}"


def _suggestions(summary: Summary) -> list[str]:
    meqsum, commands = shlex.quote(program()), []
    if summary.best:
        run = shlex.quote(str(summary.best.folder))
        if summary.best.trainable:
            commands.append(f"{meqsum} predict run={run} input=questions.csv output=summaries.csv")
        else:
            commands.append(f"{meqsum} evaluate run={run} split=val")
    done = summary.statuses.get("completed", 0) + summary.statuses.get("pruned", 0)
    if sum(summary.statuses.values()) > done:
        root = shlex.quote(str(summary.root))
        commands.append(f"the same command with sweep.dir={root} runs what is missing")
    return commands


def _log(root: Path, job: Mapping[str, Any]) -> Path | None:
    """The log that a job left: its own, else what its worker said."""
    own = root / (job.get("folder") or job["name"]) / "logs" / "train.log"
    return next(
        (path for path in (own, root / "logs" / f"{job['name']}.log") if path.exists()), None
    )


def _plain(pooled: Pooled | None) -> dict[str, Any] | None:
    if pooled is None:
        return None
    values = {str(seed): value for seed, value in pooled.values.items()}
    return {"mean": pooled.mean, "sd": pooled.sd, "values": values, "questions": pooled.questions}


def _below(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
