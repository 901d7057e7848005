"""`predict(cfg)`: one summary per row of a file, in input order."""

import logging
import sys
from pathlib import Path

from meqsum_lightning.config.schema import PredictConfig
from meqsum_lightning.data.datamodule import MeQSumDataModule
from meqsum_lightning.data.rows import RowSet
from meqsum_lightning.data.sources import load_questions
from meqsum_lightning.data.splits import Split
from meqsum_lightning.data.tables import table_kind, write_lines, write_table
from meqsum_lightning.engine.interrupts import InterruptGuard
from meqsum_lightning.engine.module import Seq2SeqModule
from meqsum_lightning.engine.parts import build_trainer, check_device, prepare_process
from meqsum_lightning.engine.source import find_source, load_source
from meqsum_lightning.errors import UserError
from meqsum_lightning.files import claimed_file
from meqsum_lightning.metrics.rouge import RougeProtocol

log = logging.getLogger("meqsum_lightning")

SUMMARY_COLUMN = "prediction"


def predict(cfg: PredictConfig) -> Path | None:
    """Summarizes the questions of a file; other columns are kept, a column `prediction` is added.

    Args:
        cfg: A validated configuration.

    Returns:
        The file written, or None for standard output.

    Raises:
        UserError: Input or output can't be used; nothing has been written.
    """
    if cfg.input is None:
        raise UserError(
            "input=null: missing; expected a file of questions, or - for standard input"
        )
    if cfg.output is None:
        raise UserError("output=null: missing; expected a file to write, or - for standard output")
    if cfg.output != "-":
        table_kind(cfg.output, "output")
    prepare_process(cfg)
    check_device(cfg.trainer)
    find_source(cfg)
    if cfg.output == "-":
        rows, _ = load_questions(cfg.input, cfg.data)
        with InterruptGuard():
            write_lines(summarize_rows(cfg, rows))
        return None
    path = Path(cfg.output).expanduser()
    with claimed_file(path, "output"), InterruptGuard():
        rows, frame = load_questions(cfg.input, cfg.data)
        texts = summarize_rows(cfg, rows)
        name = SUMMARY_COLUMN
        while name in frame.columns:
            name += "_new"
        write_table(frame.assign(**{name: texts}), path)
    print(f"{len(texts)} summaries in {cfg.output}", file=sys.stderr)
    return path


def summarize_rows(cfg: PredictConfig, rows: RowSet) -> list[str]:
    """Summaries in the order of the rows; a row without a question gets an empty one."""
    asked = tuple(row for row in rows.rows if row.question.strip())
    if empty := len(rows.rows) - len(asked):
        log.warning("%d rows have no question: their summary is empty", empty)
    if not asked:
        return [""] * len(rows.rows)
    source = load_source(cfg)
    ids = tuple(row.id for row in asked)
    data = MeQSumDataModule(rows, Split.of((), (), ids), source.tokenizer, cfg.data, cfg.seed)
    module = Seq2SeqModule(
        source.model, source.tokenizer, cfg.generation, RougeProtocol(cfg.metrics.stemmer)
    )
    trainer = build_trainer(cfg, label="prediction")
    data.trainer = trainer
    trainer.predict(module, dataloaders=data.eval_dataloader("test"), return_predictions=False)
    part = data.part("test")
    if part.tokens.truncated_sources:
        log.warning(
            "%d of %d questions are longer than data.max_source_length=%d and were cut",
            part.tokens.truncated_sources,
            len(part.rows),
            cfg.data.max_source_length,
        )
    by_id = {part.rows[index].id: text for index, text in module.predictions.items()}
    return [by_id.get(row.id, "") for row in rows.rows]
