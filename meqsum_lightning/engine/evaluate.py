"""`evaluate(cfg)`: scores a finished run, a PEFT folder or a backbone on a split or a file."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from meqsum_lightning.config.schema import EvaluateConfig
from meqsum_lightning.data.datamodule import MeQSumDataModule
from meqsum_lightning.data.sources import load_rows
from meqsum_lightning.data.splits import Split
from meqsum_lightning.engine.interrupts import InterruptGuard
from meqsum_lightning.engine.module import Seq2SeqModule
from meqsum_lightning.engine.parts import check_device, load_data, prepare_process
from meqsum_lightning.engine.scoring import score
from meqsum_lightning.engine.source import find_source, load_source
from meqsum_lightning.errors import UserError
from meqsum_lightning.files import claimed_folder, write_json, write_text
from meqsum_lightning.metrics.rouge import RougeProtocol
from meqsum_lightning.models.backbones import load_tokenizer
from meqsum_lightning.runs.record import output_folder, versions, write_predictions


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation leaves.

    Attributes:
        folder: Where it was written.
        prefix: First part of the metrics' names.
        metrics: Flat metrics with intervals.
        rows: Rows scored.
    """

    folder: Path
    prefix: str
    metrics: dict[str, float]
    rows: int


def evaluate(cfg: EvaluateConfig) -> Evaluation:
    """Scores a model on the rows of a split, or on all rows of a file.

    Args:
        cfg: A validated configuration.

    Returns:
        Metrics, and the folder that holds `metrics.json`, `predictions.csv` and `evaluation.json`.

    Raises:
        UserError: The input can't be used; nothing has been written.
    """
    with InterruptGuard():
        return _evaluate(cfg)


def _evaluate(cfg: EvaluateConfig) -> Evaluation:
    prepare_process(cfg)
    check_device(cfg.trainer)
    folder = evaluation_folder(cfg)
    key = "output_dir" if cfg.output_dir is not None or cfg.run is None else "name"
    find_source(cfg)
    rows = _rows(cfg)
    with claimed_folder(folder, key):
        return _score(cfg, folder, *rows)


def _score(
    cfg: EvaluateConfig, folder: Path, prefix: str, module_data: MeQSumDataModule, split: str
) -> Evaluation:
    source = load_source(cfg)
    module_data.tokenizer = source.tokenizer
    module = Seq2SeqModule(
        source.model, source.tokenizer, cfg.generation, RougeProtocol(cfg.metrics.stemmer)
    )
    scores = score(cfg, module, module_data, split, prefix)
    metrics = scores.metrics(prefix, cfg)
    write_text(
        folder / "config.yaml", yaml.safe_dump(cfg.model_dump(by_alias=True), sort_keys=False)
    )
    write_predictions(folder / "predictions.csv", scores.table(module_data.part(split)))
    write_json(folder / "evaluation.json", _facts(cfg, module_data, split, source.description))
    write_json(folder / "metrics.json", metrics)
    return Evaluation(folder, prefix, metrics, len(scores.predictions))


def evaluation_folder(cfg: EvaluateConfig) -> Path:
    """`DIR/evaluations/NAME` for a run, `output_dir` or a new folder for the rest."""
    if cfg.output_dir is not None or cfg.run is None:
        return output_folder(cfg.output_dir)
    base = Path(cfg.run).expanduser()
    return base / "evaluations" / evaluation_name(cfg)


def evaluation_name(cfg: EvaluateConfig) -> str:
    """A folder name from what is evaluated: no `/` and no `=` in it."""
    if cfg.name is not None:
        if not re.fullmatch(r"[\w+-][\w.+-]{0,199}", cfg.name):
            raise UserError(
                f"name={cfg.name}: not a folder name; expected letters, digits, . + - _"
            )
        return cfg.name
    name = _file_word(cfg.input) if cfg.input else cfg.split
    return f"{name}-base" if cfg.adapter.method == "none" and cfg.run else name


def _rows(cfg: EvaluateConfig) -> tuple[str, MeQSumDataModule, str]:
    if cfg.input is None:
        data = load_data(cfg)
        return cfg.split, data.module, cfg.split
    # A file of its own: all rows are scored, under the run's prompt, cleaning and lengths.
    file = cfg.data.model_copy(
        update={
            "source": "files",
            "path": cfg.input,
            "train_path": None,
            "val_path": None,
            "test_path": None,
            "split": None,
        }
    )
    rows = load_rows(file, key="input")
    ids = tuple(row.id for row in rows.rows)
    module = MeQSumDataModule(
        rows, Split.of((), (), ids), load_tokenizer(cfg.model), file, cfg.seed, cfg.trainer
    )
    return _file_word(cfg.input), module, "test"


def _file_word(path: str) -> str:
    """A file's name as part of folder and metric names."""
    return re.sub(r"[^\w.+-]+", "_", Path(path).stem)


def _facts(
    cfg: EvaluateConfig, data: MeQSumDataModule, split: str, model: dict[str, Any]
) -> dict[str, Any]:
    part = data.part(split)
    protocol = RougeProtocol(cfg.metrics.stemmer)
    return {
        "model": model,
        "rows": len(part.rows),
        "truncated_questions": part.tokens.truncated_sources,
        "data": {"origin": data.row_set.origin, "fingerprint": data.row_set.fingerprint},
        "split": {"name": split, "fingerprint": data.split.fingerprint},
        "rouge": {"fingerprint": protocol.fingerprint, **protocol.describe()},
        "versions": versions(),
    }
