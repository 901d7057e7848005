"""`meqsum plan -m`: what a sweep would take, before anything runs.

Needs no weights, no device, and, where a split's counts are in its name, no rows either.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from meqsum_lightning.config.schema import TrainConfig
from meqsum_lightning.errors import Unreachable
from meqsum_lightning.signals import importing
from meqsum_lightning.sweeps.command import ask, check_recorded, same_jobs
from meqsum_lightning.sweeps.points import Point, all_or_error, distinct, enter
from meqsum_lightning.sweeps.record import DEFAULT_PARENT, SWEEP_FILE, JobEntry, read_sweep

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class _Texts:
    """What is known of a job's rows.

    Attributes:
        counts: Rows by split, in the order of `SPLITS`.
        lengths: Mean tokens of a training question and summary; None: no tokenizer at hand.
    """

    counts: tuple[int, int, int]
    lengths: tuple[float, float] | None


def plan(overrides: Sequence[str], config_dirs: Sequence[str]) -> None:
    """Prints the number of jobs, hours, disk and memory of a sweep, or of what is missing of it.

    Args:
        overrides: As typed after `meqsum plan -m`.
        config_dirs: Further folders of config groups.

    Raises:
        UserError: Something is wrong with the sweep or one of its points.
    """
    asked = ask(overrides, config_dirs)
    from meqsum_lightning.logs import configure

    configure()
    with importing():
        from rich.console import Console

        from meqsum_lightning.plan import plan_sweep, render_sweep
        from meqsum_lightning.sweeps.leases import workers

    points, texts, twice = _study(asked.points)
    if all(text.lengths for text in texts.values()):
        check_recorded(asked, points)
    jobs: dict[str, JobEntry] = {}
    if asked.root is not None and (asked.root / SWEEP_FILE).exists():
        jobs = {job.name: job for job in read_sweep(asked.root)[1]}
    entries = enter(points, jobs)
    todo = [
        (entry.name, point)
        for entry, point in zip(entries, points, strict=True)
        if entry.status != "completed"
    ]
    if twice:
        print(same_jobs(twice))
    if len(todo) < len(entries):
        print(f"{len(entries) - len(todo)} of {len(entries)} jobs are completed already")
    if not todo:
        print("nothing is left to run")
        return
    known = [texts[point.config_hash] for _, point in todo]
    done = plan_sweep(
        [(name, point.cfg) for name, point in todo],
        [text.counts[0] for text in known],
        [text.counts[1] for text in known],
        [text.counts[2] for text in known],
        parallel=workers([point.cfg for _, point in todo], asked.settings.parallel),
        keep=asked.settings.keep,
        lengths=[text.lengths for text in known],
        folder=asked.root or DEFAULT_PARENT,
    )
    render_sweep(done, Console(highlight=False))


def _study(points: Sequence[Point]) -> tuple[list[Point], dict[str, _Texts], int]:
    """Distinct points with their hashes, by hash what is known of their rows, and how many points
    were asked for twice.
    """
    from meqsum_lightning.plan import make_plan, with_rank

    texts: dict[str, _Texts] = {}
    seen: dict[str, tuple[_Texts, str]] = {}

    def studied(point: Point) -> Point:
        cfg = with_rank(point.cfg)
        make_plan(cfg)
        key = f"{cfg.data.model_dump_json()} {cfg.model.model_dump_json()}"
        if key not in seen:
            seen[key] = _read(cfg)
        text, fingerprint = seen[key]
        from meqsum_lightning.runs.hashing import config_hash

        digest = config_hash(cfg.model_dump(by_alias=True), fingerprint)
        texts[digest] = text
        return replace(point, cfg=cfg, facts={"config_hash": digest})

    found, twice = distinct(all_or_error(points, studied))
    return found, texts, twice


def _read(cfg: TrainConfig) -> tuple[_Texts, str]:
    """Rows, lengths and fingerprint, as far as they can be had."""
    from meqsum_lightning.data.datamodule import MeQSumDataModule
    from meqsum_lightning.data.sources import load_rows
    from meqsum_lightning.data.splits import make_split
    from meqsum_lightning.models.backbones import load_tokenizer

    try:
        rows = load_rows(cfg.data)
    except Unreachable:
        counts = _named_counts(cfg)
        if counts is None:
            raise
        return _Texts(counts, None), "unknown"
    split = make_split(rows, cfg.data)
    train, val, test = (len(getattr(split, name)) for name in SPLITS)
    lengths = None
    try:
        tokenizer = load_tokenizer(cfg.model)
    except Unreachable:
        pass
    else:
        part = MeQSumDataModule(rows, split, tokenizer, cfg.data).part("train")
        lengths = (
            sum(part.source_lengths) / max(1, train),
            sum(part.target_lengths) / max(1, train),
        )
    return _Texts((train, val, test), lengths), rows.fingerprint


def _named_counts(cfg: TrainConfig) -> tuple[int, int, int] | None:
    """Counts that a split's own name tells, such as `800_100_100`."""
    split = cfg.data.split
    parts = split.split("_") if isinstance(split, str) else split
    if parts is None or len(parts) != 3 or not all(str(part).isdigit() for part in parts):
        return None
    train, val, test = map(int, parts)
    return train, val, test
