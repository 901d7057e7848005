"""`meqsum train -m`: from a command line to a sweep, and to its summary."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from meqsum_lightning.config.compose import sweeper_params
from meqsum_lightning.config.overrides import parse_overrides
from meqsum_lightning.config.schema import SweepConfig
from meqsum_lightning.console import program
from meqsum_lightning.errors import RunFailed, RunInterrupted, UserError
from meqsum_lightning.sweeps.grid import Combination, expand
from meqsum_lightning.sweeps.points import Point, check_points, compose_points, enter
from meqsum_lightning.sweeps.record import (
    SWEEP_FILE,
    JobEntry,
    SweepRecord,
    last_root,
    new_root,
    read_sweep,
)

# Composing a point takes a tenth of a second: long grids say that they are being read.
MANY_POINTS = 50


@dataclass(frozen=True)
class Asked:
    """What a command line asks for.

    Attributes:
        points: Composed and validated, not yet checked against data and backbone.
        settings: The section `sweep`.
        root: An existing or named folder; None: a new one.
        config_dirs: Further folders of config groups.
    """

    points: list[Point]
    settings: SweepConfig
    root: Path | None
    config_dirs: list[str]


def sweep(overrides: Sequence[str], config_dirs: Sequence[str], verbose: bool = False) -> None:
    """Runs every combination that is missing, and prints what the sweep has shown.

    Args:
        overrides: As typed after `meqsum train -m`.
        config_dirs: Further folders of config groups.
        verbose: Library messages on the terminal too.

    Raises:
        UserError: Something is wrong with the sweep or one of its points; nothing was started.
        RunFailed: A job failed; the others have run.
        RunInterrupted: Stopped by a signal; the same sweep can go on.
    """
    asked = ask(overrides, config_dirs)
    from meqsum_lightning.logs import configure

    configure(verbose)
    points, twice = check_points(asked.points)
    from meqsum_lightning.sweeps.leases import leases, workers
    from meqsum_lightning.sweeps.live import Display
    from meqsum_lightning.sweeps.run import SweepRun, missing, statuses

    record = SweepRecord.open(asked.root or new_root())
    try:
        entries = enter(points, record.jobs)
        for entry in entries:
            record.jobs.setdefault(entry.name, entry)
        todo = [entry for entry in entries if entry.status != "completed"]
        configs = [point.cfg for point in points]
        count = workers(configs[: len(todo)] or configs, asked.settings.parallel)
        kind = configs[0].trainer.progress
        title = missing(entries, record.root)
        display = Display(f"sweep {record.root}", entries, count, kind)
        if kind != "none":
            print(title, file=sys.stderr)
            if twice:
                print(f"{twice} combinations are the same jobs as others", file=sys.stderr)
        run = SweepRun(record, entries, points, asked.settings, leases(configs, count), display)
        record.start(overrides, config_dirs)
    except BaseException:
        record.release()
        raise
    status = "interrupted"
    try:
        run.run()
        status = statuses(list(record.jobs.values()))
    finally:
        record.finish(status)
    _print_summary(record.root)
    failed = sum(entry.status == "failed" for entry in entries)
    again = _again(overrides, config_dirs, record.root)
    if run.signalled:
        raise RunInterrupted(f"stopped by {run.signalled}; go on with: {again}")
    if failed:
        jobs = "1 job failed" if failed == 1 else f"{failed} jobs failed"
        left = sum(entry.status in ("waiting", "interrupted") for entry in entries)
        stopped = f", {left} not run (sweep.fail_fast=true)" if left else ""
        raise RunFailed(f"{jobs}{stopped}; run what is missing with: {again}")


def ask(overrides: Sequence[str], config_dirs: Sequence[str]) -> Asked:
    """Reads a sweep's command line and composes its points.

    With nothing but keys of `sweep` and a folder that holds a sweep, its own jobs are meant.

    Raises:
        UserError: With every mistake found.
    """
    parsed, mistakes = parse_overrides("train", list(overrides), config_dirs, sweep=True)
    if mistakes:
        raise UserError(mistakes)
    own = [item.hydra for item in parsed if item.key.startswith("sweep.")]
    root = _named_root(overrides, config_dirs)
    dirs = list(config_dirs)
    if parsed and len(own) == len(parsed) and root is not None and (root / SWEEP_FILE).exists():
        content, jobs = read_sweep(root)
        combinations = [_recorded(job, own) for job in jobs]
        dirs = dirs or list(content.get("config_dirs", ()))
    else:
        combinations = expand(overrides, config_dirs)
    if len(combinations) > MANY_POINTS:
        print(f"checking {len(combinations)} combinations …", file=sys.stderr)
    points = compose_points(combinations, dirs)
    for item in parsed:
        if item.key in ("hydra/launcher", "hydra/sweeper") and item.value != "basic":
            raise UserError(
                f"{item.key}={item.text_value}: no such choice here; expected basic "
                "(sweep.parallel=N runs jobs beside each other)"
            )
    return Asked(points, points[0].cfg.sweep, root, dirs)


def refuse_sweep_keys(
    command: str, overrides: Sequence[str], config_dirs: Sequence[str] = ()
) -> None:
    """Refuses a single run of what only a sweep can do.

    Raises:
        UserError: A key of `sweep` was typed, or an experiment that is a grid.
    """
    parsed, _ = parse_overrides(command, list(overrides), config_dirs)
    lines = []
    for item in parsed:
        if item.key.startswith("sweep."):
            lines.append(f"{item.key}={item.text_value}: for sweeps; expected meqsum {command} -m")
        elif item.key == "experiment" and isinstance(item.value, str):
            if params := sweeper_params(command, item.value, config_dirs):
                lines.append(
                    f"experiment={item.value}: is a sweep over {', '.join(params)}; "
                    f"expected meqsum {command} -m experiment={item.value}"
                )
        elif item.key in ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir"):
            lines.append(f"{item.key}={item.text_value}: not used; expected output_dir=DIR")
    if lines:
        raise UserError(lines)


def _named_root(overrides: Sequence[str], config_dirs: Sequence[str]) -> Path | None:
    """The folder that `sweep.dir` or `sweep.resume` names."""
    given = {
        item.key: item.value
        for item in parse_overrides("train", list(overrides), config_dirs, sweep=True)[0]
        if item.key in ("sweep.dir", "sweep.resume") and item.value is not None
    }
    if len(given) == 2:
        raise UserError(
            f"sweep.resume={given['sweep.resume']}: cannot be joined with "
            f"sweep.dir={given['sweep.dir']}; expected one of them"
        )
    if given.get("sweep.resume") == "last":
        return last_root()
    if "sweep.dir" in given:
        root = Path(str(given["sweep.dir"])).expanduser()
        if root.exists() and not root.is_dir():
            raise UserError(f"sweep.dir={root}: is a file; expected a folder")
        return root
    return None


def _recorded(job: JobEntry, own: Sequence[str]) -> Combination:
    """A job of the record as a combination, under today's keys of `sweep`."""
    before = [word for word in job.overrides if not word.startswith("sweep.")]
    return Combination((*before, *own), {})


def _print_summary(root: Path) -> None:
    from dataclasses import asdict

    from rich.console import Console

    from meqsum_lightning.sweeps.summary import render, summarize

    _, jobs = read_sweep(root)
    render(summarize(root, [asdict(job) for job in jobs]), Console(highlight=False))


def _again(overrides: Sequence[str], config_dirs: Sequence[str], root: Path) -> str:
    """The command that goes on with a sweep, quoted for a shell."""
    words = [word for word in overrides if not word.startswith(("sweep.dir=", "sweep.resume="))]
    folders = [part for folder in config_dirs for part in ("--config-dir", folder)]
    return shlex.join([program(), "train", "-m", *folders, *words, f"sweep.dir={root}"])
