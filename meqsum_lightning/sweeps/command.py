"""`meqsum train -m`: from a command line to a sweep, and to its summary."""

import contextlib
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from meqsum_lightning.config.components import allowed_packages
from meqsum_lightning.config.compose import sweeper_params
from meqsum_lightning.config.overrides import parse_overrides
from meqsum_lightning.config.schema import SweepConfig
from meqsum_lightning.console import program
from meqsum_lightning.errors import RunFailed, RunInterrupted, UserError
from meqsum_lightning.files import mendable
from meqsum_lightning.signals import importing
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
# Keys of `sweep` that hold on when only the folder is named.
REMEMBERED = ("parallel", "fail_fast", "keep")


@dataclass(frozen=True)
class Asked:
    """What a command line asks for.

    Attributes:
        points: Composed and validated, not yet checked against data and backbone.
        settings: The section `sweep`.
        root: An existing or named folder; None: a new one.
        config_dirs: Further folders of config groups.
        recorded: Names of jobs by hash, where the folder alone was named; else None.
    """

    points: list[Point]
    settings: SweepConfig
    root: Path | None
    config_dirs: list[str]
    recorded: dict[str, str] | None = None


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
    check_recorded(asked, points)
    with importing():
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
        display.tell(title)
        if twice:
            display.tell(same_jobs(twice))
        run = SweepRun(record, entries, points, asked.settings, leases(configs, count), display)
        settings = {key: getattr(asked.settings, key) for key in REMEMBERED}
        record.start(overrides, asked.config_dirs, settings)
    except BaseException:
        record.release()
        raise
    status = "interrupted"
    try:
        run.run()
        status = statuses(list(record.jobs.values()))
    finally:
        record.finish(status)
    try:
        _print_summary(record.root)
    except (BrokenPipeError, SystemExit):
        # The reader (head, less) has seen enough; the exit status still tells how it went.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    failed = sum(entry.status == "failed" for entry in entries)
    again = _again(overrides, config_dirs, record.root)
    if run.signalled:
        raise RunInterrupted(f"stopped by {run.signalled}; go on with: {again}")
    left = sum(entry.status not in ("completed", "pruned", "failed") for entry in entries)
    if failed or left:
        jobs = "1 job failed" if failed == 1 else f"{failed} jobs failed"
        why = " (sweep.fail_fast=true)" if asked.settings.fail_fast else ""
        rest = f"{left} not completed{why}" if left else ""
        told = ", ".join(filter(None, [jobs if failed else "", rest]))
        raise RunFailed(f"{told}; run what is missing with: {again}")


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
    recorded: dict[str, str] | None = None
    if len(own) == len(parsed):
        if root is None or not (root / SWEEP_FILE).exists():
            raise UserError(
                "-m: nothing to sweep over; expected lists such as adapter.r=4,8, an experiment, "
                "or sweep.dir=DIR of a sweep to go on with"
            )
        content, jobs = read_sweep(root)
        if not jobs:
            raise UserError(f"sweep.dir={root}: a sweep without jobs; expected one with some")
        recorded = {job.config_hash: job.name for job in jobs}
        dirs = dirs or list(content.get("config_dirs", ()))
        typed = [item.key for item in parsed]
        own += [
            f"sweep.{key}={str(value).lower()}"
            for key, value in content.get("settings", {}).items()
            if f"sweep.{key}" not in typed
        ]
        points = [point for job in jobs for point in _recorded(root, job, own, dirs)]
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
    return Asked(points, points[0].cfg.sweep, root, dirs, recorded)


def same_jobs(twice: int) -> str:
    """What is said of combinations that come to the same."""
    if twice == 1:
        return "1 combination is the same job as another"
    return f"{twice} combinations are the same jobs as others"


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
        if not str(given["sweep.dir"]).strip():
            raise UserError("sweep.dir=: empty; expected a folder")
        root = Path(str(given["sweep.dir"])).expanduser()
        with mendable(root, "sweep.dir"):
            if root.exists() and not root.is_dir():
                raise UserError(f"sweep.dir={root}: is a file; expected a folder")
        return root
    return None


def _recorded(
    root: Path, job: JobEntry, own: Sequence[str], config_dirs: Sequence[str]
) -> list[Point]:
    """A job of the record, composed where it was typed, under today's keys of `sweep`."""
    before = [word for word in job.overrides if not word.startswith("sweep.")]
    where = job.cwd or str(Path.cwd())
    if not Path(where).is_dir():
        raise UserError(
            f"sweep.dir={root}: {job.name} was asked for in {where}, which is gone; "
            "expected the whole command, with its overrides"
        )
    with contextlib.chdir(where):
        return compose_points([Combination((*before, *own), {})], config_dirs)


def check_recorded(asked: Asked, points: Sequence[Point]) -> None:
    """Refuses to take other jobs for those that a folder's record has."""
    if asked.recorded is None:
        return
    left = set(asked.recorded) - {point.config_hash for point in points}
    if left:
        raise UserError(
            [
                f"sweep.dir={asked.root}: job {asked.recorded[digest]} is no longer what it was "
                "(its data, backbone or configuration files have changed); expected them "
                "unchanged, or the whole command with its overrides"
                for digest in sorted(left)
            ]
        )


def _print_summary(root: Path) -> None:
    from dataclasses import asdict

    from rich.console import Console

    from meqsum_lightning.sweeps.summary import render, summarize

    _, jobs = read_sweep(root)
    render(summarize(root, [asdict(job) for job in jobs]), Console(highlight=False))


def _again(overrides: Sequence[str], config_dirs: Sequence[str], root: Path) -> str:
    """The command that goes on with a sweep, quoted for a shell."""
    words = [word for word in overrides if not word.startswith(("sweep.dir=", "sweep.resume="))]
    options = [part for folder in config_dirs for part in ("--config-dir", folder)]
    options += [part for name in allowed_packages() for part in ("--allow-target", name)]
    return shlex.join([program(), "train", "-m", *options, *words, f"sweep.dir={root}"])
