"""Real questions: the official file where it lies beside the checkout, else a small one in its style."""

import json
from pathlib import Path

import openpyxl
import pytest

from meqsum_lightning.config.compose import build_config
from meqsum_lightning.data.similarity import duplicate_groups
from meqsum_lightning.data.sources import load_rows
from meqsum_lightning.engine.train import train
from meqsum_lightning.runs.record import read_metrics
from tests.conftest import REAL_MEQSUM, WORDS


@pytest.fixture(scope="module")
def sheet(tmp_path_factory) -> Path:
    """The official file, or one in its style: sorted by summary, with near-duplicates."""
    if REAL_MEQSUM.is_file():
        return REAL_MEQSUM
    path = tmp_path_factory.mktemp("meqsum") / "small.xlsx"
    book = openpyxl.Workbook()
    book.active.append(["File", "CHQ", "Summary"])
    starts = ("What causes", "What are the treatments for", "How is it to live with", "Can I have")
    rows = [
        (f"SUBJECT: {word}\nMESSAGE: Dear doctor, I was told that {word} number {i} is back. [NAME]", f"{start} {word}?")
        for i in range(25) for word in WORDS for start in starts
    ]  # fmt: skip
    for number, (question, summary) in enumerate(
        sorted(rows, key=lambda row: row[1], reverse=True)
    ):
        book.active.append([f"{number}.txt", question, summary])
    book.save(path)
    return path


def test_real_questions_train_and_score(sheet, tiny_backbone, tmp_path):
    cfg = build_config(
        "train",
        [
            "data=meqsum", f"data.path={sheet}", f"model.backbone={tiny_backbone}", "model.dtype=fp32",
            "data.max_source_length=64", "trainer=cpu", "trainer.threads=1", "trainer.progress=none",
            "trainer.max_epochs=1", "trainer.limit_train_batches=10", "generation.max_new_tokens=4",
            "generation.test_num_beams=1", "metrics.bootstrap_resamples=100", f"output_dir={tmp_path / 'run'}",
        ],
    )  # fmt: skip
    folder = train(cfg).folder  # type: ignore[arg-type]
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "completed" and record["data"]["rows"] == 1000
    split = json.loads((folder / "splits.json").read_text())
    assert [len(split[name]) for name in ("train", "val", "test")] == [800, 100, 100]
    metrics = read_metrics(folder)
    assert "test/rougeLsum" in metrics and "test_base/rougeLsum" in metrics
    rows = load_rows(cfg.data)  # type: ignore[attr-defined]
    home = {row: name for name in ("train", "val", "test") for row in split[name]}
    for group in duplicate_groups(rows.rows, 0.5):
        assert len({home[rows.rows[at].id] for at in group}) == 1


def test_the_official_file_is_as_measured(real_meqsum):
    cfg = build_config("train", ["data=meqsum", f"data.path={real_meqsum}"])
    rows = load_rows(cfg.data)  # type: ignore[attr-defined]
    assert len(rows.rows) == 1000 and not rows.dropped
    assert max(len(row.question) for row in rows.rows) == 1989
    assert max(len(row.summary or "") for row in rows.rows) == 168
