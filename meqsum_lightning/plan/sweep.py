"""Hours, disk and memory of a sweep, worked out before anything runs.

Jobs are validated configurations with the numbers of their rows; rows themselves are not read.
"""

import dataclasses
import heapq
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from meqsum_lightning.config.schema import TrainConfig
from meqsum_lightning.models.targets import linear_layers, select_modules
from meqsum_lightning.plan.compute import count_operations
from meqsum_lightning.plan.estimate import Plan, _shape, make_plan
from meqsum_lightning.plan.memory import FP32
from meqsum_lightning.plan.terminal import _bytes, _flop
from meqsum_lightning.plan.throughput import (
    GENERATION_EFFICIENCY,
    JOB_SECONDS,
    LOADING_RATE,
    REFERENCE_NAME,
    REFERENCE_UTILISATION,
    TRAINING_EFFICIENCY,
    WORKER_SECONDS,
    measure_throughput,
    reference_rate,
    usable_device,
    worker_rate,
)

if TYPE_CHECKING:
    from rich.console import Console

# Padded batches of rows sorted by length, over the mean row of questions and of summaries.
SOURCE_PADDING, TARGET_PADDING = 1.1, 1.65
# Bytes of a process on the CPU beside the training's own: libraries, rows, the allocator's slack.
PROCESS_BYTES = 768 * 2**20
# Bytes in files: names and layout per trained tensor (weight and two moments) in a checkpoint;
# tokenizer per entry of the vocabulary; a row of predictions; configuration, split, logs.
TENSOR_BYTES, TOKEN_BYTES, ROW_BYTES, RECORD_BYTES = 1216, 75, 400, 64 * 2**10
# best, last, previous, and the one that is being written.
CHECKPOINTS = 4
# Lines of a table before it is shortened, and how many of the shortest then stay.
LINES, SHORTEST = 16, 4


@dataclass(frozen=True)
class Job:
    """What one job of a sweep costs.

    Attributes:
        name: Readable name.
        trainable: Trained parameters.
        steps: Optimizer steps at most (early stopping may end it before).
        validations: Validations at most.
        training: Floating-point operations of all steps.
        scoring: Floating-point operations of validation and test, with the backbone's own.
        seconds: On a worker of this machine; None: the device is not here to be measured.
        guide_seconds: Computing alone, on one reference device.
        memory: Bytes of one process.
        checkpoint: Bytes of one checkpoint: trained weights and the optimizer's state.
        files: Bytes of what stays whatever is pruned: adapter, predictions, logs.
        keeps_checkpoints: Whether the configuration lets a completed run keep any.
        device: `cpu`, `cuda`, or None for one that is not here.
        processes: Processes of this job on one machine.
    """

    name: str
    trainable: int
    steps: int
    validations: int
    training: int
    scoring: int
    seconds: float | None
    guide_seconds: float
    memory: int
    checkpoint: int
    files: int
    keeps_checkpoints: bool
    device: str | None
    processes: int


@dataclass(frozen=True)
class SweepPlan:
    """What `meqsum plan -m` prints.

    Attributes:
        jobs: In the order given.
        workers: Jobs at a time.
        keep: Whose checkpoints stay.
        seconds: From start to end, longest jobs first; None where a job's time is unknown.
        job_seconds: Sum over the jobs.
        guide_seconds: Sum over the jobs on one reference device, computing alone.
        disk_peak: Bytes at most while jobs run.
        disk_end: Bytes when all are done and pruned.
        disk_free: Free bytes where the sweep will be written.
        memory: Bytes of all workers together; on GPUs, of those that share one.
        memory_limit: Bytes of the machine or of one GPU; None: not here.
        typical: Whether times are for mean lengths (else for the configured limits).
        folder: Where the sweep will be written.
    """

    jobs: tuple[Job, ...]
    workers: int
    keep: Literal["best", "all"]
    seconds: float | None
    job_seconds: float | None
    guide_seconds: float
    disk_peak: int
    disk_end: int
    disk_free: int
    memory: int
    memory_limit: int | None
    typical: bool
    folder: str

    @property
    def warnings(self) -> list[str]:
        """A line for each thing that is short."""
        lines = []
        if self.disk_peak > self.disk_free:
            lines.append(
                f"disk: {_bytes(self.disk_peak)} needed, {_bytes(self.disk_free)} free in "
                f"{self.folder}"
            )
        if self.memory_limit is not None and self.memory > self.memory_limit:
            lines.append(
                f"memory: {_bytes(self.memory)} needed, {_bytes(self.memory_limit)} there; "
                "a smaller sweep.parallel or data.micro_batch_size needs less"
            )
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers and strings, ready for json."""
        return dataclasses.asdict(self) | {"warnings": self.warnings}


def plan_sweep(
    points: Sequence[tuple[str, TrainConfig]],
    train_rows: Sequence[int],
    val_rows: Sequence[int],
    test_rows: Sequence[int],
    parallel: int,
    keep: Literal["best", "all"],
    *,
    lengths: Sequence[tuple[float, float] | None] | None = None,
    folder: Path | None = None,
    throughput: Callable[[str, str, int], float] = measure_throughput,
) -> SweepPlan:
    """Works out what a sweep costs.

    The work is an upper bound in three ways: every epoch runs (early stopping is unknown),
    generation goes on to its limit, and rows have the configured lengths. Mean `lengths` lift the
    last two. The time it takes is an estimate: other work on the machine is not foreseen.

    seconds = steps x FLOP per step / (throughput x training efficiency)
            + scored batches x FLOP per batch / (throughput x generation efficiency) + start.

    Jobs that ask for more cores or GPUs together than there are slow each other down in proportion.

    Args:
        points: Name and validated configuration of each job; ranks are known.
        train_rows: Training rows of each job.
        val_rows: Validation rows of each job.
        test_rows: Test rows of each job.
        parallel: Jobs at a time.
        keep: `best`: the best job alone keeps its best checkpoint; `all`: each job does.
        lengths: Mean tokens of questions and of summaries of each job; None: the limits.
        folder: Root of the sweep, which need not exist; None: the working directory.
        throughput: (device, precision, threads) to operations per second.

    Raises:
        UserError: A backbone, its targets and lengths do not fit together.
    """
    given = list(lengths) if lengths is not None else [None] * len(points)
    workers = max(1, min(parallel, len(points)))
    planner = _Planner(workers, throughput)
    jobs = tuple(
        planner.job(name, cfg, train, val, test, mean)
        for (name, cfg), train, val, test, mean in zip(
            points, train_rows, val_rows, test_rows, given, strict=True
        )
    )
    known = [job.seconds for job in jobs if job.seconds is not None]
    complete = len(known) == len(jobs)
    place = _existing((folder or Path.cwd()).expanduser().resolve())
    peak, end = _disk(jobs, workers, keep)
    memory, limit = _memory(jobs, workers)
    return SweepPlan(
        jobs=jobs,
        workers=workers,
        keep=keep,
        seconds=makespan(known, workers) + WORKER_SECONDS * bool(jobs) if complete else None,
        job_seconds=sum(known) if complete else None,
        guide_seconds=sum(job.guide_seconds for job in jobs),
        disk_peak=peak,
        disk_end=end,
        disk_free=shutil.disk_usage(place).free,
        memory=memory,
        memory_limit=limit,
        typical=bool(jobs) and all(mean is not None for mean in given),
        folder=str(place),
    )


def makespan(seconds: Sequence[float], workers: int) -> float:
    """Time until all jobs are done, when each free worker takes the longest job that is left.

    At most 4/3 of the best possible (Graham 1969, doi:10.1137/0117039).
    """
    ends = [0.0] * workers
    for duration in sorted(seconds, reverse=True):
        heapq.heapreplace(ends, ends[0] + duration)
    return max(ends)


def total_steps(cfg: TrainConfig, train_rows: int) -> int:
    """Optimizer steps of a whole training, as the data module counts them."""
    if cfg.adapter.method == "none":
        return 0
    steps = _steps_per_epoch(cfg, train_rows) * cfg.trainer.max_epochs
    return min(steps, cfg.trainer.max_steps or steps)


def render_sweep(plan: SweepPlan, console: "Console") -> None:
    """Prints the plan of a sweep in at most 80 columns; long sweeps are shortened."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    width = min(console.width, 80)
    table = Table(box=box.SIMPLE_HEAD, title_justify="left", width=width)
    table.add_column(f"sweep of {_counted(len(plan.jobs), 'job')}", width=19)
    table.add_column("", justify="right", width=14)
    table.add_column("", style="dim", ratio=1)
    for row in _headline(plan):
        table.add_row(*row)
    console.print(table)

    table = Table(box=box.SIMPLE_HEAD, width=width)
    table.add_column("job", ratio=1, overflow="ellipsis", no_wrap=True)
    timed = plan.seconds is not None
    for title in ("trainable", "steps", "time each" if timed else "compute each"):
        table.add_column(title, justify="right", no_wrap=True)
    for cells in _lines(plan.jobs, timed):
        table.add_row(Text(cells[0]), *cells[1:])
    console.print(table)
    for line in plan.warnings:
        console.print(Text(f"warning: {line}", style="yellow"), width=width)
    console.print(Text(_footnote(plan), style="dim"), width=width)


class _Planner:
    """Jobs of one sweep; each distinct shape is worked out once."""

    def __init__(self, workers: int, throughput: Callable[[str, str, int], float]) -> None:
        self.workers = workers
        self.throughput = throughput
        self.plans: dict[str, Plan] = {}
        self.work: dict[tuple[Any, ...], tuple[float, float, float, int]] = {}
        self.bases: set[str] = set()

    def job(
        self,
        name: str,
        cfg: TrainConfig,
        train: int,
        val: int,
        test: int,
        mean: tuple[float, float] | None,
    ) -> Job:
        trainer, data = cfg.trainer, cfg.data
        key = _plan_key(cfg)
        if key not in self.plans:
            self.plans[key] = make_plan(cfg)
        plan = self.plans[key]
        lengths = _padded(cfg, mean)
        work_key = (key, lengths, data.eval_batch_size, cfg.generation.model_dump_json())
        if work_key not in self.work:
            self.work[work_key] = _operations(cfg, plan, lengths)
        step, greedy, beams, vocabulary = self.work[work_key]

        steps = total_steps(cfg, train)
        validations = _validations(cfg, steps, train)
        if trainer.overfit_rows:
            val = min(train, trainer.overfit_rows)
        scored_val = min(val, (trainer.limit_val_batches or val) * data.eval_batch_size)
        scored_test = min(test, (trainer.limit_test_batches or test) * data.eval_batch_size)
        tests = self._tests(cfg)
        # Without an adapter there is no fit: validation runs like a test.
        in_validation = greedy if steps else beams
        scoring = (
            validations * scored_val * in_validation + tests * scored_test * beams
        ) / data.eval_batch_size
        training = steps * step
        processes = trainer.devices * trainer.num_nodes
        device = usable_device(trainer)
        seconds = None
        if device is not None:
            rate = processes * worker_rate(
                trainer, device, plan.precision, self.workers, self.throughput
            )
            seconds = JOB_SECONDS + plan.memory.weights / LOADING_RATE
            seconds += training / (rate * TRAINING_EFFICIENCY)
            seconds += scoring / (rate * GENERATION_EFFICIENCY)
        return Job(
            name=name,
            trainable=plan.trainable,
            steps=steps,
            validations=validations,
            training=round(training),
            scoring=round(scoring),
            seconds=seconds,
            guide_seconds=(training + scoring) / reference_rate(plan.precision),
            memory=plan.memory.total + (PROCESS_BYTES if device == "cpu" else 0),
            checkpoint=_checkpoint_bytes(plan) if steps else 0,
            files=plan.disk
            + TOKEN_BYTES * vocabulary
            + ROW_BYTES * (val + test * (cfg.test + (cfg.test and cfg.test_base)))
            + RECORD_BYTES,
            keeps_checkpoints=not cfg.checkpoint.prune,
            device=device,
            processes=trainer.devices,
        )

    def _tests(self, cfg: TrainConfig) -> int:
        """How often the test rows are scored; the backbone's scores are cached between jobs."""
        if not cfg.test:
            return 0
        trained = cfg.adapter.method != "none"
        if not cfg.test_base:
            return 1
        cached = cfg.data.cache and cfg.trainer.limit_test_batches is None
        shared = {"micro_batch_size", "global_batch_size", "eval_batch_size", "workers"}
        parts = (
            cfg.model.model_dump_json(),
            cfg.data.model_dump_json(exclude=shared),
            cfg.generation.model_dump_json(),
            cfg.adapter.method == "full",
        )
        known = cached and str(parts) in self.bases
        self.bases.add(str(parts))
        return trained + (not known)


def _operations(
    cfg: TrainConfig, plan: Plan, lengths: tuple[int, int]
) -> tuple[float, float, float, int]:
    """FLOP per optimizer step and per scored batch (greedy, by the test's beams); vocabulary.

    A scored batch costs one forward pass for its loss, and for its summaries the encoder once and,
    per beam, the decoder over all new tokens (with cached keys and values a pass over T tokens
    costs what T passes over one token cost) and its keys and values of the question, which
    transformers computes anew for each beam.
    """
    config, data, adapter = _shape(cfg.model), cfg.data, cfg.adapter
    modules = select_modules(config, adapter)
    source, target = lengths

    def forward(tokens: int) -> int:
        shape = {
            "max_source_length": source,
            "max_target_length": tokens,
            "micro_batch_size": data.eval_batch_size,
        }
        return count_operations(config, data.model_copy(update=shape), adapter, modules).forward

    adapted = {module.name for module in modules}
    cross = 0
    for layer in linear_layers(config):
        if layer.side == "decoder" and layer.part == "cross" and layer.role in ("k", "v"):
            size = layer.in_features * layer.out_features
            if layer.name in adapted:
                size += (adapter.r or 0) * (layer.in_features + layer.out_features)
            cross += 2 * data.eval_batch_size * source * size
    limit = cfg.generation.max_new_tokens
    new = min(limit, target) if lengths != _limits(cfg) else limit
    encoder = forward(0) - cross

    def scored(beams: int) -> int:
        return forward(target) + encoder + beams * (forward(new) - encoder)

    step = float(plan.compute.step)
    if lengths != _limits(cfg):
        shape = {"max_source_length": source, "max_target_length": target}
        real = count_operations(config, data.model_copy(update=shape), adapter, modules)
        total = real.forward + real.backward
        if cfg.model.activation_checkpointing:
            total += sum(real.live.values())
        step *= total / (plan.compute.forward + plan.compute.backward)
    generation = cfg.generation
    return (
        step,
        scored(generation.val_num_beams),
        scored(generation.test_num_beams),
        int(config.vocab_size),
    )


def _plan_key(cfg: TrainConfig) -> str:
    """Everything that `make_plan` depends on, but for what it only repeats (name and alpha)."""
    data = cfg.data
    return str(
        (
            cfg.model.model_dump_json(),
            cfg.adapter.model_dump_json(exclude={"alpha"}),
            cfg.optim.optimizer.model_dump_json(),
            (data.max_source_length, data.max_target_length),
            (data.global_batch_size, data.micro_batch_size),
            (cfg.trainer.accelerator, cfg.trainer.precision),
        )
    )


def _limits(cfg: TrainConfig) -> tuple[int, int]:
    return cfg.data.max_source_length, cfg.data.max_target_length


def _padded(cfg: TrainConfig, mean: tuple[float, float] | None) -> tuple[int, int]:
    """Tokens per row of a batch: from the mean row, a multiple of 8, at most the limits."""
    limits = _limits(cfg)
    if mean is None:
        return limits
    wide = (mean[0] * SOURCE_PADDING, mean[1] * TARGET_PADDING)
    source, target = (
        min(math.ceil(w / 8) * 8, limit) for w, limit in zip(wide, limits, strict=True)
    )
    return source, target


def _steps_per_epoch(cfg: TrainConfig, train_rows: int) -> int:
    rows = min(train_rows, cfg.trainer.overfit_rows or train_rows)
    steps = math.ceil(rows / cfg.data.global_batch_size)
    return min(steps, cfg.trainer.limit_train_batches or steps)


def _validations(cfg: TrainConfig, steps: int, train_rows: int) -> int:
    if not steps:
        return 1
    epochs = math.ceil(steps / _steps_per_epoch(cfg, train_rows))
    return epochs // cfg.trainer.check_val_every_n_epoch


def _checkpoint_bytes(plan: Plan) -> int:
    tensors = plan.modules * (3 if plan.method == "dora" else 2)
    return plan.trainable * FP32 + plan.memory.optimizer + tensors * TENSOR_BYTES


def _disk(jobs: Sequence[Job], workers: int, keep: str) -> tuple[int, int]:
    """Bytes at most while jobs run, and in the end."""
    kept = [job.checkpoint for job in jobs if job.keeps_checkpoints]
    end = sum(job.files for job in jobs)
    end += sum(kept) if keep == "all" else max(kept, default=0)
    running = sorted((job.checkpoint for job in jobs), reverse=True)[:workers]
    return end + CHECKPOINTS * sum(running), end


def _memory(jobs: Sequence[Job], workers: int) -> tuple[int, int | None]:
    """Bytes at most of all workers (of those on one GPU), and what there is."""
    import psutil

    if not jobs:
        return 0, None
    largest = max(jobs, key=lambda job: job.memory * job.processes)
    if any(job.device is None for job in jobs):
        return largest.memory, None
    if any(job.device == "cuda" for job in jobs):
        import torch

        sharing = math.ceil(workers * largest.processes / torch.cuda.device_count())
        return largest.memory * sharing, int(torch.cuda.get_device_properties(0).total_memory)
    return largest.memory * largest.processes * workers, int(psutil.virtual_memory().total)


def _existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _headline(plan: SweepPlan) -> list[tuple[str, str, str]]:
    work = sum(job.training + job.scoring for job in plan.jobs)
    score = sum(job.scoring for job in plan.jobs)
    rows = [("at a time", _counted(plan.workers, "job"), f"sweep.keep={plan.keep}")]
    if plan.seconds is None or plan.job_seconds is None:
        rows.append(("time", "unknown", "the GPU is not here to be measured"))
        guide = f"a guide: at {REFERENCE_UTILISATION:.0%} of its peak"
        rows.append((f"on one {REFERENCE_NAME}", _duration(plan.guide_seconds), guide))
    else:
        each = f"{_duration(plan.job_seconds)} of jobs, one after another"
        rows.append(("time", _duration(plan.seconds), each))
    share = 100 * score / work if work else 0
    limit = "" if plan.memory_limit is None else f", of {_bytes(plan.memory_limit)}"
    workers = "of one process" if plan.memory_limit is None else "at the peak"
    return [
        *rows,
        ("compute", _flop(work), f"{share:.0f} % of it for validation and test"),
        ("disk, at the peak", _bytes(plan.disk_peak), f"{_bytes(plan.disk_free)} free"),
        ("disk, in the end", _bytes(plan.disk_end), "when all are done and pruned"),
        ("memory", _bytes(plan.memory), workers + limit),
    ]


def _lines(jobs: Sequence[Job], timed: bool) -> list[tuple[str, str, str, str]]:
    """Jobs that cost the same in one line; of many lines the most and the least costly."""
    alike: dict[tuple[int, int, int], list[Job]] = {}
    for job in jobs:
        alike.setdefault((job.trainable, job.steps, job.training), []).append(job)
    groups = list(alike.values())
    if len(groups) > LINES:
        groups.sort(key=lambda group: group[0].training, reverse=True)
        first, last = groups[: LINES - SHORTEST - 1], groups[-SHORTEST:]
        left = len(jobs) - sum(map(len, first)) - sum(map(len, last))
        more = (f"… and {left} more", "", "", "")
        return [*(_line(x, timed) for x in first), more, *(_line(x, timed) for x in last)]
    return [_line(group, timed) for group in groups]


def _line(group: Sequence[Job], timed: bool) -> tuple[str, str, str, str]:
    # The first of a group may score the backbone for the others: the longest speaks for all.
    longest = max(group, key=lambda job: job.training + job.scoring)
    name = group[0].name + (f" and {len(group) - 1} alike" if len(group) > 1 else "")
    cost = _flop(longest.training + longest.scoring)
    if timed and longest.seconds is not None:
        cost = _duration(longest.seconds)
    return name, f"{longest.trainable:,}", f"{longest.steps:,}", cost


def _footnote(plan: SweepPlan) -> str:
    lengths = "rows of the mean lengths" if plan.typical else "rows as long as the limits allow"
    return f"Times are for {lengths} and every epoch; early stopping makes them shorter."


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86400 * 2), ("h", 5400), ("min", 90)):
        if seconds >= size:
            return f"{seconds / {'d': 86400, 'h': 3600, 'min': 60}[unit]:.1f} {unit}"
    return f"{seconds:.0f} s"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
