"""Sources: every usable row with a stable id, every other one named; questions are never lost."""

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openpyxl
import pytest

from meqsum_lightning.data import sources
from meqsum_lightning.data.rows import Row, rows_fingerprint
from meqsum_lightning.data.similarity import normalised
from meqsum_lightning.data.sources import load_questions, load_rows
from meqsum_lightning.errors import UserError
from tests.data.conftest import OFFICIAL, make_config, needs_official


def csv_file(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def hostile_sheet(tmp_path: Path) -> str:
    """The official style gone wrong: see C01 in the tests below."""
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(["File", " CHQ ", "Summary", None])
    sheet.append(
        ["1.txt", "SUBJECT: flu_x000D_\nMESSAGE: how  long?", "How long does flu last?", 1]
    )
    sheet.append(["2.txt", 5.0, "What is 5?", None])
    sheet.append(["3.txt", "what is asthma", '=CONCAT("What is ","asthma?")', None])
    sheet.append(["4.txt", "no summary here", None, None])
    sheet.append(["5.txt", None, "No question here?", None])
    for row in range(7, 40):
        sheet.cell(row, 2).font = openpyxl.styles.Font(bold=True)
    sheet.append(["6.txt", "NA", "What does NA mean?", None])
    book.save(tmp_path / "MeQSum.xlsx")
    return str(tmp_path / "MeQSum.xlsx")


def test_c01_a_sheet_in_the_official_style(hostile_sheet: str):
    rows = load_rows(make_config("meqsum", path=hostile_sheet))
    assert [(row.question, row.summary) for row in rows.rows] == [
        ("SUBJECT: flu\nMESSAGE: how  long?", "How long does flu last?"),
        ("5", "What is 5?"),
        ("NA", "What does NA mean?"),
    ]
    assert [(drop.where, drop.reason) for drop in rows.dropped] == [
        ("MeQSum.xlsx row 4", "no summary (a formula without a stored value)"),
        ("MeQSum.xlsx row 5", "no summary"),
        ("MeQSum.xlsx row 6", "no question"),
    ]
    assert rows.origin == "MeQSum.xlsx"


def test_c01_prediction_needs_no_summary_and_loses_no_row(hostile_sheet: str):
    rows, frame = load_questions(hostile_sheet, make_config("meqsum"))
    assert [row.question[:8] for row in rows.rows] == [
        "SUBJECT:", "5", "what is ", "no summa", "", "NA",
    ]  # fmt: skip
    assert frame["File"].tolist() == ["1.txt", "2.txt", "3.txt", "4.txt", "5.txt", "6.txt"]
    assert len({row.id for row in rows.rows}) == 6


def test_cleaning_is_the_same_for_training_and_prediction(hostile_sheet: str):
    data = make_config("meqsum", path=hostile_sheet, clean=["markers", "blanks"])
    trained = load_rows(data).rows[0]
    predicted = load_questions(hostile_sheet, data)[0].rows[0]
    assert trained.question == predicted.question == "flu\nhow long?"
    assert trained.id == load_rows(make_config("meqsum", path=hostile_sheet)).rows[0].id


def test_questions_without_any_other_column(tmp_path: Path):
    path = csv_file(tmp_path / "q.csv", "Text", "what is flu", '""', "what is flu")
    rows, frame = load_questions(path, make_config())
    assert [row.question for row in rows.rows] == ["what is flu", "", "what is flu"]
    assert [row.summary for row in rows.rows] == [None] * 3
    assert len({row.id for row in rows.rows}) == 3
    assert len(frame) == 3


def test_questions_keep_repeated_ids_apart(tmp_path: Path):
    path = csv_file(tmp_path / "q.csv", "id,question", "7,a", "7,b", "7-2,c", ",d")
    ids = [row.id for row in load_questions(path, make_config())[0].rows]
    assert ids[:2] == ["7", "7-2"]
    assert len(set(ids)) == 4


def test_questions_of_a_file_without_rows(tmp_path: Path):
    with pytest.raises(UserError, match=r"input=.*has no rows"):
        load_questions(csv_file(tmp_path / "q.csv", "question"), make_config())


def test_questions_keep_summaries_that_are_there(tmp_path: Path):
    path = csv_file(tmp_path / "q.csv", "question,Reference", "a,A?", "b,")
    rows = load_questions(path, make_config())[0].rows
    assert [row.summary for row in rows] == ["A?", None]


def test_ids_come_from_content(tmp_path: Path):
    lines = ["a,A?", "b,B?", "a,A?", "c,C?", "a,other?"]
    shuffled = random.Random(1).sample(lines, len(lines))
    one = load_rows(make_config(path=csv_file(tmp_path / "one.csv", "question,summary,n", *lines)))
    two = load_rows(
        make_config(path=csv_file(tmp_path / "two.csv", "summary,question", *map(swap, shuffled)))
    )
    assert set(one.rows) == set(two.rows)
    assert one.fingerprint == two.fingerprint
    assert one.rows[2].id == f"{one.rows[0].id}-2"
    assert one.rows[4].id != one.rows[0].id


def swap(line: str) -> str:
    return ",".join(reversed(line.split(",")))


def test_fingerprint_is_of_content():
    row = Row("1", "a", "b", "train")
    same = rows_fingerprint([Row("1", "a", "b", "test")])
    assert rows_fingerprint([row]) == same
    assert len(same) == 64
    others = [Row("2", "a", "b"), Row("1", "ab", ""), Row("1", "a", None), Row("1", "a", "None")]
    assert len({same, *(rows_fingerprint([other]) for other in others)}) == 5


def test_own_ids(tmp_path: Path):
    path = csv_file(tmp_path / "t.csv", "ID,key,question,summary", "1,x,a,A?", "2,y,b,B?")
    assert [row.id for row in load_rows(make_config(path=path)).rows] == ["1", "2"]
    keyed = load_rows(make_config(path=path, id_column="Key"))
    assert [row.id for row in keyed.rows] == ["x", "y"]
    with pytest.raises(UserError, match=r"data.id_column=kye: no such column.*did you mean 'key'"):
        load_rows(make_config(path=path, id_column="kye"))


def test_repeated_ids_are_refused_with_both_places(tmp_path: Path):
    path = csv_file(tmp_path / "t.csv", "id,question,summary", "1,a,A?", "2,b,B?", "1,c,C?")
    with pytest.raises(UserError, match=r"'1' stands in t.csv row 2 and t.csv row 4") as error:
        load_rows(make_config(path=path))
    assert len(error.value.lines) == 1


def test_three_files(tmp_path: Path):
    paths = {
        f"{name}_path": csv_file(tmp_path / f"{name}.csv", "id,question,summary", f"0,{name},S?")
        for name in ("train", "val", "test")
    }
    rows = load_rows(make_config(**paths, split="given"))
    assert [(row.id, row.split) for row in rows.rows] == [
        ("train-0", "train"), ("val-0", "val"), ("test-0", "test"),
    ]  # fmt: skip
    assert rows.origin == "train.csv, val.csv, test.csv"
    with pytest.raises(UserError, match=r"data.val_path=.*no such file"):
        load_rows(make_config(**(paths | {"val_path": str(tmp_path / "no.csv")})))


def test_a_split_column(tmp_path: Path):
    path = csv_file(
        tmp_path / "t.csv", "question,summary,Split", "a,A?,training", "b,B?,Dev", "c,C?,test"
    )
    rows = load_rows(make_config(path=path, split="given"))
    assert [row.split for row in rows.rows] == ["train", "val", "test"]
    other = csv_file(tmp_path / "o.csv", "question,summary,split", "a,A?,left")
    assert load_rows(make_config(path=other)).rows[0].split is None
    with pytest.raises(UserError, match=r"o.csv row 2 has the split 'left'; expected train"):
        load_rows(make_config(path=other, split="given"))


def test_nothing_usable(tmp_path: Path):
    path = csv_file(tmp_path / "t.csv", "question,summary", "a,", ",B?", " ,\u200b")
    with pytest.raises(UserError, match=r"no usable row in t.csv \(t.csv row 2: no summary\)"):
        load_rows(make_config(path=path))


def test_columns_that_make_no_pair(tmp_path: Path):
    path = csv_file(tmp_path / "t.csv", "question,answer", "a,b")
    with pytest.raises(UserError, match=r"data.summary_column=null: no column of a known name"):
        load_rows(make_config(path=path))
    with pytest.raises(UserError, match="is the column of questions too"):
        load_rows(make_config(path=path, summary_column="question"))
    assert load_rows(make_config(path=path, summary_column="ANSWER")).rows[0].summary == "b"


def test_no_path():
    with pytest.raises(UserError, match=r"data.path=null"):
        load_rows(make_config())
    with pytest.raises(UserError, match=r"^input=no\.csv: no such file"):
        load_rows(make_config(path="no.csv"), key="input")


def test_demo():
    rows = load_rows(make_config("demo"))
    counts = [sum(row.split == name for row in rows.rows) for name in ("train", "val", "test")]
    assert counts == [400, 100, 100]
    assert rows.dropped == ()
    assert rows.origin == "demo"


@needs_official
def test_the_official_file():
    rows = load_rows(make_config("meqsum", path=str(OFFICIAL)))
    assert (len(rows.rows), len(rows.dropped)) == (1000, 0)
    assert len({normalised(row.summary or "") for row in rows.rows}) == 994
    assert len({row.question for row in rows.rows}) == 1000
    lengths = sorted(len(row.question) for row in rows.rows)
    assert abs(lengths[500] - 269) <= 1
    assert lengths[-1] == 1989


# -- the Hub --------------------------------------------------------------------------------------


def fail(error: Exception) -> Any:
    def raising(*_: Any, **__: Any) -> Any:
        raise error

    return raising


def expect_ways_out(reason: str, **changes: Any) -> None:
    with pytest.raises(UserError, match=reason) as error:
        load_rows(make_config("meqsum", **changes))
    assert len(error.value.lines) == 1
    for way in ("data.path=FILE.xlsx", "data=files", "data=demo"):
        assert way in error.value.lines[0]


def test_c05_no_network(monkeypatch: pytest.MonkeyPatch):
    import datasets
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail(ConnectionError("no route")))
    asked: list[bool] = []

    def load_dataset(*_: Any, **__: Any) -> None:
        asked.append(datasets.config.HF_HUB_OFFLINE)
        raise ConnectionError("not in the cache")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    expect_ways_out("the Hub can't be reached")
    assert asked == [True]
    assert datasets.config.HF_HUB_OFFLINE is False
    expect_ways_out("the Hub can't be reached", hub_revision="abc")
    assert len(asked) == 1  # no guess which revision a cache holds


def test_c05_a_hub_that_never_answers(monkeypatch: pytest.MonkeyPatch):
    import threading

    import datasets
    import huggingface_hub

    stop = threading.Event()
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: stop.wait(10))
    monkeypatch.setattr(datasets, "load_dataset", fail(ConnectionError("not in the cache")))
    monkeypatch.setattr(sources, "HUB_PATIENCE", 0.2)
    expect_ways_out("no answer from the Hub")
    stop.set()


def test_c05_a_loading_script_is_never_run(tmp_path: Path):
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit(3)\n"
    )
    expect_ways_out("needs a loading script", hub_id=str(folder))
    assert not (tmp_path / "ran").exists()


def test_hub_rows(monkeypatch: pytest.MonkeyPatch):
    import datasets

    one = datasets.Dataset.from_dict({"CHQ": ["a", "b"], "Summary": ["A?", None]})
    two = datasets.Dataset.from_dict({"CHQ": ["c"], "Summary": ["C?"]})
    answers = iter(
        [
            datasets.DatasetDict({"train": one}),
            datasets.DatasetDict({"train": one, "validation": two}),
        ]
    )
    monkeypatch.setattr(sources, "_unreachable", lambda *_: None)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: next(answers))
    rows = load_rows(make_config("meqsum", hub_revision="abc"))
    assert [(row.question, row.summary, row.split) for row in rows.rows] == [("a", "A?", None)]
    assert rows.origin == "albertvillanova/meqsum@abc"
    assert rows.dropped[0].where == "albertvillanova/meqsum@abc row 2"
    assert [row.split for row in load_rows(make_config("meqsum")).rows] == ["train", "val"]


def test_hub_errors_by_kind():
    from huggingface_hub import errors

    def http(kind: type[Exception]) -> Exception:
        error = kind.__new__(kind)
        error.args = ("no",)
        return error

    assert "no such data set" in sources._hub_reason(http(errors.RepositoryNotFoundError))
    assert "login" in sources._hub_reason(http(errors.GatedRepoError))
    assert "no such revision" in sources._hub_reason(http(errors.RevisionNotFoundError))
    assert sources._hub_reason(ValueError("odd\nmore")) == "ValueError: odd"


def test_questions_from_standard_input(monkeypatch: pytest.MonkeyPatch):
    import io
    import sys

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"what is flu\n\nx\n")))
    rows, _ = load_questions("-", make_config())
    assert [row.question for row in rows.rows] == ["what is flu", "", "x"]


def test_one_row_in_every_kind(tmp_path: Path):
    from meqsum_lightning.data.tables import KINDS, read_table, write_table

    source = csv_file(tmp_path / "t.csv", "question,summary", "a,A?")
    found = set()
    for kind in KINDS:
        write_table(read_table(source), tmp_path / f"k.{kind}")
        found.add(load_rows(make_config(path=str(tmp_path / f"k.{kind}"))).fingerprint)
    assert len(found) == 1
    (tmp_path / "t.json").write_text(json.dumps([{"question": "\ud800", "summary": "A?"}]))
    assert load_rows(make_config(path=str(tmp_path / "t.json"))).rows[0].question == "\ufffd"
