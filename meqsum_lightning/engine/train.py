"""`train(cfg)`: one experiment, from rows to a run directory."""

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from meqsum_lightning.config.schema import TrainConfig
from meqsum_lightning.engine.callbacks import JobCallback, place_counters
from meqsum_lightning.engine.interrupts import InterruptGuard
from meqsum_lightning.engine.job import TrainingJob
from meqsum_lightning.engine.module import Seq2SeqModule
from meqsum_lightning.engine.parts import (
    Data,
    build_callbacks,
    build_loggers,
    build_trainer,
    check_components,
    check_everything,
    load_data,
    prepare_process,
)
from meqsum_lightning.engine.scoring import Scores, collect, score, score_base
from meqsum_lightning.engine.session import Session
from meqsum_lightning.errors import RunFailed, UserError
from meqsum_lightning.files import check_free
from meqsum_lightning.metrics.rouge import RougeProtocol
from meqsum_lightning.models.adapters import apply_adapter, save_adapter, trainable_parameters
from meqsum_lightning.models.backbones import (
    adapter_base_name,
    backbone_fingerprint,
)
from meqsum_lightning.models.budget import resolve_rank
from meqsum_lightning.models.dropout import replace_adapter_dropout
from meqsum_lightning.runs.checkpoints import BEST, latest_checkpoint, load_checkpoint, prune
from meqsum_lightning.runs.hashing import config_hash, stable_part
from meqsum_lightning.runs.record import (
    CONFIG_FILE,
    RUN_FILE,
    RunRecord,
    output_folder,
    read_metrics,
    write_predictions,
)

log = logging.getLogger("meqsum_lightning")


@dataclass(frozen=True)
class TrainResult:
    """What a training leaves.

    Attributes:
        folder: The run directory.
        metrics: Content of `metrics.json`.
    """

    folder: Path
    metrics: dict[str, float]


def train(cfg: TrainConfig, session: Session | None = None) -> TrainResult:
    """Trains an adapter, selects the best epoch on validation, and scores it on the test rows.

    Args:
        cfg: A validated configuration. A budget of parameters becomes a rank first, so that all
            that the run stores says what a run with that rank would.
        session: What this process keeps between trainings; None: nothing.

    Returns:
        The run directory and its metrics.

    Raises:
        UserError: Input that can be mended; nothing has been trained.
        RunFailed: Training diverged, or a checkpoint can't be read.
        RunInterrupted: Ctrl-C or SIGTERM; the run can be resumed.
    """
    with InterruptGuard() as guard:
        prepare_process(cfg)
        cfg = resolve_rank(cfg)
        folder = run_folder(cfg)
        if cfg.resume is None:
            check_free(folder)
        data = check(cfg)
        facts = describe(cfg, data)
        if cfg.resume is None:
            config = cfg.model_dump(by_alias=True)
            record = RunRecord.create(folder, config, facts, data.split.to_json())
        else:
            record = reopen(cfg, folder, facts)
        announce(cfg, data, folder)
        try:
            with record:
                run_training(cfg, data, record, guard, session or Session())
        except (UserError, RunFailed):
            raise
        except Exception as error:
            raise RunFailed(
                f"{type(error).__name__}: {error}; traceback in {folder / 'logs' / 'train.log'}"
            ) from error
    return TrainResult(folder, read_metrics(folder))


def check(cfg: TrainConfig) -> Data:
    """Finds every mistake of the user's that shows without weights; writes nothing.

    Returns:
        Rows, split and tokenizer.

    Raises:
        UserError: The device, backbone, adapter, components or rows can't be used.
    """
    cfg = resolve_rank(cfg)
    check_model(cfg)
    return load_data(cfg)


def check_model(cfg: TrainConfig) -> None:
    """The part of `check` that reads no rows.

    Raises:
        UserError: The device, backbone, adapter or components can't be used.
    """
    check_everything(cfg)
    check_components(cfg)


def reopen(cfg: TrainConfig, folder: Path, facts: Mapping[str, Any]) -> RunRecord:
    """The record of a run to go on with, after making sure that it is the same run.

    Raises:
        UserError: It can't be resumed, or not with these settings, rows or this backbone.
    """
    record = RunRecord.reopen(folder)
    try:
        check_resumable(cfg, record)
        check_same_data(facts, record)
    except BaseException:
        record.release()
        raise
    return record


def run_training(
    cfg: TrainConfig, data: Data, record: RunRecord, guard: InterruptGuard, session: Session
) -> None:
    """Loads the model, fits it, and scores it: the part of a training that a run directory sees."""
    trained = cfg.adapter.method != "none"
    session.tell(stage="loading")
    backbone = session.borrow_backbone(cfg)
    model = apply_adapter(backbone, cfg.adapter, cfg.seed, *adapter_base_name(cfg.model))
    replace_adapter_dropout(model)
    parameters = trainable_parameters(model)
    fingerprint = record.record["base_revision"]
    record.update(parameters=count_parameters(model, parameters))
    protocol = RougeProtocol(cfg.metrics.stemmer)
    job = None
    if trained:
        job = TrainingJob(
            model,
            cfg.optim,
            cfg.checkpoint,
            data.module.total_steps,
            data.module.cursor,
            cfg.seed,
        )
    module = Seq2SeqModule(model, data.tokenizer, cfg.generation, protocol, job)

    # The backbone alone comes first: full fine-tuning leaves nothing of it.
    if cfg.test and cfg.test_base and "test_base/rouge1" not in read_metrics(record.folder):
        session.tell(stage="backbone alone")
        base = score_base(cfg, module, data.module, "test", fingerprint)
        keep_scores(cfg, record, data, base, "test_base", "test", "predictions_base.csv")

    if job is not None:
        fit(cfg, module, job, data, record, guard, session)
        record.update(**training_facts(job))
        use_best(record, job)
        target = "model" if cfg.adapter.method == "full" else "adapter"
        save_adapter(model, record.folder / target, data.tokenizer)
    else:
        scores = score(cfg, module, data.module, "val", "validation")
        keep_scores(cfg, record, data, scores, "val", "val", "predictions_val.csv")

    if cfg.test:
        session.tell(stage="test")
        if trained or not cfg.test_base:
            scores = score(cfg, module, data.module, "test", "test")
        else:
            scores = score_base(cfg, module, data.module, "test", fingerprint)
        keep_scores(cfg, record, data, scores, "test", "test", "predictions.csv")
    record.update(**memory_facts())
    prune(record.folder / "checkpoints", everything=cfg.checkpoint.prune)
    session.give_back(model)


def fit(
    cfg: TrainConfig,
    module: Seq2SeqModule,
    job: TrainingJob,
    data: Data,
    record: RunRecord,
    guard: InterruptGuard,
    session: Session,
) -> None:
    """Runs the training loop from where the job stands, which may be its end."""
    checkpoints = record.folder / "checkpoints"
    saved = latest_checkpoint(checkpoints, record.record["config_hash"])
    if saved is not None:
        job.load_state_dict(saved["job"])
        log.info("resuming at epoch %d, step %d", job.cursor.epoch, job.cursor.global_step)
    module.train()
    epochs = -(-data.module.total_steps // data.module.steps_per_epoch)
    if job.cursor.epoch >= epochs or job.stopper.should_stop:
        return

    def keep_best(metrics: Mapping[str, float]) -> None:
        scores = collect(module, data.module.part("val"), metrics["val/loss"])
        keep_scores(cfg, record, data, scores, "val", "val", "predictions_val.csv")

    callback = JobCallback(
        job,
        checkpoints,
        record.record["config_hash"],
        cfg.checkpoint.every_n_steps,
        guard,
        keep_best,
        lambda: session.tell(
            step=job.cursor.global_step,
            steps=data.module.total_steps,
            epoch=job.cursor.epoch,
            value=job.best.value,
        ),
    )
    resume_step = job.cursor.global_step if cfg.resume is not None else None
    trainer = build_trainer(
        cfg,
        record.folder,
        [callback, *build_callbacks(cfg)],
        build_loggers(cfg, record.folder / "logs", resume_step),
        max_epochs=epochs,
    )
    place_counters(trainer, job)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    trainer.fit(module, datamodule=data.module)
    log.info(
        "training ended after %d epochs and %d steps%s",
        job.cursor.epoch,
        trainer.global_step,
        " (early stopping)" if job.cursor.epoch < epochs else "",
    )


def use_best(record: RunRecord, job: TrainingJob) -> None:
    """Puts the best epoch's weights in place; without any validation the last ones stay."""
    path = record.folder / "checkpoints" / BEST
    if job.best.value is None:
        log.warning("no validation gave a finite %s: the last weights are used", job.monitor)
        return
    job.load_adapter(load_checkpoint(path)["job"])
    record.update(best={"epoch": job.best.epoch, "monitor": job.monitor, "value": job.best.value})


def keep_scores(
    cfg: TrainConfig,
    record: RunRecord,
    data: Data,
    scores: Scores,
    prefix: str,
    split: str,
    file: str,
) -> None:
    """Writes predictions, then metrics: whoever sees metrics finds the predictions."""
    write_predictions(record.folder / file, scores.table(data.module.part(split)))
    record.write_metrics(scores.metrics(prefix, cfg))


def run_folder(cfg: TrainConfig) -> Path:
    """The run directory: the resumed one, `output_dir`, or `outputs/DATE/TIME`."""
    if cfg.resume is not None:
        return Path(cfg.resume).expanduser()
    folder = output_folder(cfg.output_dir)
    # The folder one stands in is replaced by a new one: only its full name leads there.
    return folder.resolve() if folder.resolve() == Path.cwd() else folder


def announce(cfg: TrainConfig, data: Data, folder: Path) -> None:
    """Says what is about to happen; loading or drawing a large backbone takes a while."""
    if cfg.trainer.progress == "none":
        return
    rank = f" r={cfg.adapter.r}" if cfg.adapter.r else ""
    counts = "/".join(str(len(getattr(data.split, name))) for name in ("train", "val", "test"))
    print(
        f"{cfg.name}: {cfg.model.name}, adapter={cfg.adapter.method}{rank}, {counts} questions of "
        f"{data.rows.origin}; run directory {folder}",
        file=sys.stderr,
        flush=True,
    )


def describe(cfg: TrainConfig, data: Data) -> dict[str, Any]:
    """Fingerprints by which runs are compared and recognised."""
    protocol = RougeProtocol(cfg.metrics.stemmer)
    counts = {name: len(getattr(data.split, name)) for name in ("train", "val", "test")}
    return {
        "name": cfg.name,
        "config_hash": config_hash(cfg.model_dump(by_alias=True), data.rows.fingerprint),
        "base_revision": backbone_fingerprint(cfg.model, cfg.seed),
        "data": {
            "origin": data.rows.origin,
            "fingerprint": data.rows.fingerprint,
            "rows": len(data.rows.rows),
            "dropped": len(data.rows.dropped),
        },
        "split": {"fingerprint": data.split.fingerprint, **counts},
        "rouge": {"fingerprint": protocol.fingerprint, **protocol.describe()},
    }


def check_resumable(cfg: TrainConfig, record: RunRecord) -> None:
    """Refuses to go on under other settings or on other data than the run was started with.

    Raises:
        UserError: One line per setting, with both values.
    """
    stored = yaml.safe_load((record.folder / CONFIG_FILE).read_text(encoding="utf-8"))
    before, now = stable_part(stored), stable_part(cfg.model_dump(by_alias=True))
    lines = [
        f"{key}={_show(now.get(key))}: the run in {record.folder} has {_show(before.get(key))}; "
        f"expected no change (rerun={record.folder} starts afresh)"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if lines:
        raise UserError(lines)


def check_same_data(facts: Mapping[str, Any], record: RunRecord) -> None:
    """Refuses to go on when rows, split or backbone are not those of the run.

    Raises:
        UserError: With both fingerprints.
    """
    known = record.record
    if not isinstance(known["data"], dict) or not isinstance(known["split"], dict):
        raise UserError(
            f"{record.folder / RUN_FILE}: damaged; expected the file that the run wrote"
        )
    pairs = {
        "data": (known["data"].get("fingerprint"), facts["data"]["fingerprint"]),
        "data.split": (known["split"].get("fingerprint"), facts["split"]["fingerprint"]),
        "model.backbone": (known["base_revision"], facts["base_revision"]),
    }
    lines = [
        f"{key}: fingerprint {now} now, {before} when the run was started; expected the same"
        for key, (before, now) in pairs.items()
        if before != now
    ]
    if not lines and facts["config_hash"] != known["config_hash"]:
        lines = [
            f"{record.folder / CONFIG_FILE}: changed since the run was started "
            f"(hash {facts['config_hash']}, in {RUN_FILE} {known['config_hash']}); "
            f"expected the original (rerun={record.folder} starts afresh)"
        ]
    if lines:
        raise UserError(lines)


def count_parameters(model: torch.nn.Module, trainable: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters in all, trained, and the share of the trained ones."""
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in trainable.values())
    return {"total": total, "trainable": trained, "share": trained / total}


def training_facts(job: TrainingJob) -> dict[str, Any]:
    """Throughput and length of the training, over all sessions."""
    usage, seconds = job.usage, max(job.usage.seconds, 1e-9)
    tokens = usage.source_tokens + usage.target_tokens
    return {
        "training": {
            "epochs": job.cursor.epoch,
            "steps": job.cursor.global_step,
            "seconds": round(usage.seconds, 3),
            "samples": usage.samples,
            "samples_per_second": round(usage.samples / seconds, 3),
            "tokens_per_second": round(tokens / seconds, 1),
        }
    }


def memory_facts() -> dict[str, Any]:
    """Peak memory of the process and, where there is one, of the device, in bytes."""
    import resource
    import sys

    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    facts = {"peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if torch.cuda.is_available():
        facts["peak_device_memory"] = torch.cuda.max_memory_allocated()
    return facts


def _show(value: Any) -> str:
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )
