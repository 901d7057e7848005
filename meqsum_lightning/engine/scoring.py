"""Scores a module on a split: predictions and ROUGE by row, means with intervals, cached base."""

import hashlib
import json
import logging
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meqsum_lightning.config.schema import SharedConfig
from meqsum_lightning.data.datamodule import MeQSumDataModule, Part
from meqsum_lightning.data.tokens import default_cache_dir
from meqsum_lightning.engine.module import Seq2SeqModule
from meqsum_lightning.engine.parts import build_trainer, precision
from meqsum_lightning.files import read_json, write_json
from meqsum_lightning.metrics.intervals import score_summary
from meqsum_lightning.metrics.rouge import ROUGE_KEYS, RougeProtocol, score_pair
from meqsum_lightning.models.adapters import adapter_disabled

log = logging.getLogger("meqsum_lightning")


@dataclass(frozen=True)
class Scores:
    """What scoring a split gives.

    Attributes:
        loss: Mean over target tokens.
        predictions: Summary by row id.
        per_row: ROUGE by row id.
    """

    loss: float
    predictions: dict[str, str]
    per_row: dict[str, dict[str, float]]

    def metrics(self, prefix: str, cfg: SharedConfig) -> dict[str, float]:
        """Flat metrics with intervals: `prefix/loss`, `prefix/rouge1`, `prefix/rouge1_low`, ..."""
        return {f"{prefix}/loss": self.loss} | score_summary(
            self.per_row,
            prefix,
            cfg.metrics.bootstrap_resamples,
            cfg.metrics.confidence,
            cfg.data.split_seed,
        )

    def table(self, part: Part) -> list[dict[str, Any]]:
        """Rows of a predictions file, in the order of the split."""
        return [
            {
                "id": row.id,
                "question": row.question,
                "reference": row.summary or "",
                "prediction": self.predictions[row.id],
                **{name: f"{self.per_row[row.id][name]:.6f}" for name in ROUGE_KEYS},
            }
            for row in part.rows
            if row.id in self.predictions
        ]


def score(
    cfg: SharedConfig, module: Seq2SeqModule, data: MeQSumDataModule, split: str, label: str
) -> Scores:
    """Generates and scores the summaries of a split with the beams of the test.

    Args:
        cfg: Device and generation.
        module: Backbone with or without adapter.
        data: The rows.
        split: `train`, `val` or `test`.
        label: What the progress display calls it.
    """
    trainer = build_trainer(cfg, label=label)
    # Tells the data module of this trainer's processes, which decide who scores which rows.
    data.trainer = trainer
    trainer.test(module, dataloaders=data.eval_dataloader(split), verbose=False)
    return collect(module, data.part(split), float(trainer.callback_metrics["test/loss"]))


def collect(module: Seq2SeqModule, part: Part, loss: float) -> Scores:
    """Scores by row id of what a module has just predicted."""
    protocol = module.rouge.protocol
    predictions = {part.rows[index].id: text for index, text in sorted(module.predictions.items())}
    references = {row.id: row.summary or "" for row in part.rows}
    per_row = {
        row: score_pair(text, references[row], protocol) for row, text in predictions.items()
    }
    return Scores(loss, predictions, per_row)


def score_base(
    cfg: SharedConfig, module: Seq2SeqModule, data: MeQSumDataModule, split: str, fingerprint: str
) -> Scores:
    """Scores the backbone without its adapter; once per backbone, rows, protocol and generation.

    Args:
        cfg: Device and generation.
        module: The module whose adapter is switched off for the time.
        data: The rows.
        split: `train`, `val` or `test`.
        fingerprint: Fingerprint of the backbone.
    """
    part = data.part(split)
    protocol = module.rouge.protocol
    path = default_cache_dir() / "base" / f"{base_key(cfg, part, fingerprint, protocol)}.json"
    # A debugging run scores fewer rows than the cache holds.
    usable = cfg.data.cache and cfg.trainer.limit_test_batches is None
    known = _read_cache(path, part, protocol) if usable else None
    if known is not None:
        log.info("backbone without adapter: scores taken from %s", path)
        return known
    # Before full fine-tuning the model still is the backbone alone.
    alone = nullcontext() if cfg.adapter.method == "full" else adapter_disabled(module.model)
    with alone:
        scores = score(cfg, module, data, split, "backbone without adapter")
    if usable:
        try:
            write_json(path, {"loss": scores.loss, "predictions": scores.predictions})
        except OSError as error:
            log.info("backbone scores are not cached: %s", error)
    return scores


def base_key(cfg: SharedConfig, part: Part, fingerprint: str, protocol: RougeProtocol) -> str:
    """Hash of everything that decides the backbone's scores on these rows."""
    content: dict[str, Any] = {
        "backbone": fingerprint,
        "rows": [[row.id, row.question, row.summary] for row in part.rows],
        "source": [cfg.data.prompt, cfg.data.max_source_length, cfg.data.max_target_length],
        "tokenizer": cfg.model.tokenizer,
        "dtype": [cfg.model.dtype, str(precision(cfg.trainer)), cfg.adapter.method == "full"],
        "generation": cfg.generation.model_dump(),
        "protocol": protocol.fingerprint,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def _read_cache(path: Path, part: Part, protocol: RougeProtocol) -> Scores | None:
    if not path.exists():
        return None
    try:
        stored: Mapping[str, Any] = read_json(path)
        predictions = {row.id: str(stored["predictions"][row.id]) for row in part.rows}
        loss = float(stored["loss"])
    except (ValueError, KeyError, TypeError):
        log.warning("%s: not readable, computed again", path)
        return None
    per_row = {
        row.id: score_pair(predictions[row.id], row.summary or "", protocol) for row in part.rows
    }
    return Scores(loss, predictions, per_row)
