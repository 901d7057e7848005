"""The embedded model and questions: sizes, plain loading, and splits that share nothing."""

import csv
from collections import Counter
from pathlib import Path

import pytest

from meqsum_lightning.data.similarity import near_duplicate_pairs
from meqsum_lightning.models.shapes import embedded_folder

DEMO = Path(embedded_folder()).parent / "demo" / "questions.csv"


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    with DEMO.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_sizes_and_card():
    folder = Path(embedded_folder())
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 10e6
    assert "not a medical model" in (folder / "README.md").read_text(encoding="utf-8")
    assert "CC0" in (DEMO.parent / "LICENSE").read_text(encoding="utf-8")


def test_plain_transformers_loads_it():
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    model = AutoModelForSeq2SeqLM.from_pretrained(embedded_folder())
    tokenizer = AutoTokenizer.from_pretrained(embedded_folder())
    assert len(tokenizer) == model.config.vocab_size
    printable = "".join(map(chr, range(32, 127)))
    assert tokenizer.unk_token_id not in tokenizer(printable).input_ids
    assert tokenizer("gout").input_ids[-1] == tokenizer.eos_token_id
    assert sum(p.numel() for p in model.parameters()) < 5e6


def test_questions_are_as_promised(rows):
    assert Counter(row["split"] for row in rows) == {"train": 400, "val": 100, "test": 100}
    assert len({row["id"] for row in rows}) == 600
    assert all(row["question"].strip() and row["summary"].strip() for row in rows)


def test_terms_of_test_questions_stand_in_no_other_split(rows):
    terms = {
        split: {row["focus"].lower() for row in rows if row["split"] == split}
        for split in ("train", "val", "test")
    }
    assert not terms["test"] & (terms["train"] | terms["val"])
    assert not terms["val"] & terms["train"]


def test_no_two_questions_are_near_duplicates(rows):
    assert not near_duplicate_pairs([row["question"] for row in rows], 0.5)


def test_terms_templates_and_wordings_are_disjoint(monkeypatch):
    from embedded import check

    # The command draws more; here a sample shows that the check itself is alive.
    monkeypatch.setattr(check, "SAMPLE", 1_000)
    check.check_terms()
    check.check_templates()
    check.check_pretraining()
    check.check_questions(DEMO.parents[1])
    check.check_files(DEMO.parents[1])
