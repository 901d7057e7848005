"""One summary per row, in input order, whatever the kind of file."""

import csv
import io

import pandas as pd
import pytest

from meqsum_lightning.cli import main
from meqsum_lightning.config.compose import build_config
from meqsum_lightning.data.tables import read_table, write_table
from meqsum_lightning.engine.predict import predict
from meqsum_lightning.errors import UserError

QUIET = ["trainer=cpu", "trainer.progress=none"]


def run(*overrides: str):
    return predict(build_config("predict", [*QUIET, *overrides]))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def known(finished_run):
    with (finished_run / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl", "parquet", "xlsx"])
def test_predictions_are_those_of_the_run_in_input_order(kind, known, finished_run, tmp_path):
    source, target = tmp_path / f"in.{kind}", tmp_path / f"out.{kind}"
    table = pd.DataFrame(
        {"note": [f"n{i}" for i in range(8)], "CHQ": [r["question"] for r in known]}
    )
    write_table(table.iloc[::-1], source)
    assert run(f"run={finished_run}", f"input={source}", f"output={target}") == target
    out = read_table(target)
    assert list(out["prediction"]) == [row["prediction"] for row in reversed(known)]
    assert list(out["note"]) == [f"n{i}" for i in reversed(range(8))]


def test_one_row_is_enough_and_no_question_is_no_lost_row(known, finished_run, tmp_path, caplog):
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    write_table(pd.DataFrame({"question": [known[0]["question"], "  "]}), source)
    run(f"run={finished_run}", f"input={source}", f"output={target}")
    assert list(read_table(target)["prediction"]) == [known[0]["prediction"], ""]
    assert "1 rows have no question" in caplog.text


def test_standard_input_and_output(known, finished_run, monkeypatch, capsys):
    asked = known[0]["question"] + "\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(asked.encode())))
    words = ["predict", f"run={finished_run}", "input=-", "output=-", *QUIET]
    assert main(words) == 0
    assert capsys.readouterr().out == known[0]["prediction"] + "\n"


def test_a_column_of_that_name_is_kept(known, finished_run, tmp_path):
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    write_table(pd.DataFrame({"question": [known[0]["question"]], "prediction": ["mine"]}), source)
    run(f"run={finished_run}", f"input={source}", f"output={target}")
    out = read_table(target)
    assert list(out["prediction"]) == ["mine"] and list(out["prediction_new"]) == [
        known[0]["prediction"]
    ]


def test_an_existing_output_is_refused_before_anything_loads(finished_run, tmp_path, monkeypatch):
    target = tmp_path / "out.csv"
    target.write_text("precious")
    monkeypatch.setattr("meqsum_lightning.engine.source.load_backbone", None)
    with pytest.raises(UserError, match="exists"):
        run(f"run={finished_run}", "input=-", f"output={target}")
    assert target.read_text() == "precious"
    with pytest.raises(UserError, match="no folder"):
        run(f"run={finished_run}", "input=-", f"output={tmp_path / 'no' / 'out.csv'}")


def test_a_failed_prediction_leaves_nothing(finished_run, tmp_path, monkeypatch):
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    write_table(pd.DataFrame({"question": ["What helps?"]}), source)

    def broken(*args):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("meqsum_lightning.engine.predict.summarize_rows", broken)
    with pytest.raises(RuntimeError):
        run(f"run={finished_run}", f"input={source}", f"output={target}")
    assert not target.exists()


def test_the_backbone_alone_predicts_too(tiny_backbone, tmp_path):
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    write_table(pd.DataFrame({"question": ["What helps against gout?"]}), source)
    run(f"model.backbone={tiny_backbone}", f"input={source}", f"output={target}")
    assert len(read_table(target)) == 1
