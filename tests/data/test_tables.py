"""Tables: text in, the same text out; hostile files end in one clear line."""

import datetime
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import openpyxl
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meqsum_lightning.data.spreadsheets import cell_text
from meqsum_lightning.data.tables import (
    KINDS,
    find_column,
    read_table,
    write_lines,
    write_table,
)
from meqsum_lightning.errors import UserError

CELLS = [
    ["NA", "007", "5.0"],
    ["null", " blanks ", "a,b;c\td"],
    ["line\nbreak", 'a "quote"', "=1+1"],
    ["é 漢字 😀", "-", "nan"],
    ["", "only this", ""],
]


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    assert len(error.value.lines) == 1
    assert error.value.lines[0].startswith(("data.path=", "data.sheet=", "input=", "output="))
    return error.value.lines[0]


def text(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_keeps_the_text(tmp_path: Path, kind: str):
    frame = pd.DataFrame(CELLS, columns=["question", " CHQ ", "x=y"], dtype=object)
    file = tmp_path / "new" / f"table.{kind}"
    write_table(frame, file)
    back = read_table(file)
    assert back.to_numpy().tolist() == CELLS
    assert [name.strip() for name in back.columns] == ["question", "CHQ", "x=y"]
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=1)
)
def test_any_text_survives_csv_and_jsonl(
    tmp_path_factory: pytest.TempPathFactory, cells: list[str]
):
    frame = pd.DataFrame({"q": cells, "other": ["x"] * len(cells)}, dtype=object)
    for kind in ("csv", "jsonl"):
        file = tmp_path_factory.mktemp("any") / f"t.{kind}"
        write_table(frame, file)
        assert read_table(file)["q"].tolist() == cells


def test_control_characters_and_look_alikes_survive_in_xlsx_for_spreadsheet_programs(
    tmp_path: Path,
):
    file = tmp_path / "t.xlsx"
    write_table(pd.DataFrame({"q": ["bell\x07", "_x000D_ spelled out"]}, dtype=object), file)
    import zipfile

    with zipfile.ZipFile(file) as archive:
        content = "".join(archive.read(n).decode() for n in archive.namelist() if "xml" in n)
    assert "bell_x0007_" in content
    assert "_x005F_x000D_ spelled out" in content


def test_numbers_stay_numbers_and_nothing_is_nothing(tmp_path: Path):
    frame = pd.DataFrame({"id": ["a", "b"], "rouge1": [0.5, np.nan], "n": [1, 2]})
    for kind in KINDS:
        write_table(frame, tmp_path / f"t.{kind}")
        back = read_table(tmp_path / f"t.{kind}")
        assert back["rouge1"].tolist() == ["0.5", ""]
        assert back["n"].tolist() == ["1", "2"]
    assert json.loads((tmp_path / "t.json").read_text())[1]["rouge1"] is None
    assert openpyxl.load_workbook(tmp_path / "t.xlsx").active["C2"].value == 1


def test_parquet_takes_mixed_columns(tmp_path: Path):
    frame = pd.DataFrame({"x": ["a", None, datetime.date(2020, 1, 2)]}, dtype=object)
    write_table(frame, tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet")["x"].tolist() == ["a", "", "2020-01-02"]


def test_failed_writing_leaves_the_old_file(tmp_path: Path):
    file = text(tmp_path / "t.xlsx", "old")
    with pytest.raises(UserError) as error:
        write_table(pd.DataFrame({"q": ["x" * 40_000]}), file)
    assert "row 2 has a text of 40,000 characters" in one_line(error)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_places_that_cannot_be_written(tmp_path: Path):
    frame = pd.DataFrame({"q": ["x"]})
    for target, reason in [
        (tmp_path / "t.doc", "`.doc` is no kind"),
        (tmp_path / "t", "no ending"),
        (text(tmp_path / "file", "") / "t.csv", "can't be written"),
    ]:
        with pytest.raises(UserError, match=reason) as error:
            write_table(frame, target)
        one_line(error)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        write_table(frame, tmp_path / "folder.csv")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (5, "5"), (5.0, "5"), (0.1, "0.1"), (1e20, "1e+20"), (True, "true"), (None, ""),
        (float("nan"), ""), ("NA", "NA"), ("\ud800x", "\ufffdx"), (b"raw", "raw"), ([1], "[1]"),
        (datetime.datetime(2020, 1, 2), "2020-01-02"),
        (datetime.datetime(2020, 1, 2, 3, 4), "2020-01-02 03:04:00"),
    ],
)  # fmt: skip
def test_cells_as_text(value: Any, expected: str):
    assert cell_text(value) == expected


# -- csv ------------------------------------------------------------------------------------------


def test_csv_keeps_words_and_drops_the_bom(tmp_path: Path):
    file = text(tmp_path / "t.csv", b"\xef\xbb\xbfquestion,summary\r\nNA,null\r\n007,1.50\r\n")
    assert read_table(file).to_dict("records") == [
        {"question": "NA", "summary": "null"},
        {"question": "007", "summary": "1.50"},
    ]


def test_csv_row_numbers_count_as_a_person_does(tmp_path: Path):
    file = text(tmp_path / "t.csv", 'question,summary\n"a\nb",x\n\n,\nlast,y\n')
    frame = read_table(file)
    assert frame["question"].tolist() == ["a\nb", "", "last"]
    assert frame.attrs["row_numbers"] == [2, 4, 5]


def test_csv_of_one_column_keeps_a_quoted_empty_row(tmp_path: Path):
    file = text(tmp_path / "t.csv", 'question\na\n""\nb\n')
    assert read_table(file)["question"].tolist() == ["a", "", "b"]


@pytest.mark.parametrize("mark", [";", "\t"])
def test_csv_of_other_countries(tmp_path: Path, mark: str):
    file = text(tmp_path / "t.csv", f"question{mark}summary\na, b{mark}c\n")
    assert read_table(file).to_dict("records") == [{"question": "a, b", "summary": "c"}]


def test_csv_with_a_very_long_cell(tmp_path: Path):
    file = text(tmp_path / "t.csv", f"question\n{'x' * 300_000}\n")
    assert len(read_table(file)["question"][0]) == 300_000


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"\xef\xbb\xbf \n", "the file is empty"),
        (b"question\ncaf\xe9\n", "line 2 is not UTF-8 (byte 0xE9)"),
        ("question\na\n".encode("utf-16"), "is not UTF-8 (byte 0xFF)"),
        ("question\na\n".encode("utf-16-le"), "holds zero bytes"),
        (b"question,summary\nunquoted, comma,x\n", "row 2 has 3 cells, the header has 2"),
        (b'question,summary\n"never closed,x\n', "row 2 is not valid csv"),
        (b'question,summary\na,b\n"x"y,z\n', "row 3 is not valid csv"),
        (b",,\n,,\n", "has no header"),
        (b"a,b, a\n1,2,3\n", "the column 'a' stands 2 times"),
    ],
)
def test_hostile_csv(tmp_path: Path, content: bytes, reason: str):
    file = text(tmp_path / "t.csv", content)
    with pytest.raises(UserError) as error:
        read_table(file)
    assert reason in one_line(error)


# -- json, parquet --------------------------------------------------------------------------------


def test_json_in_its_shapes(tmp_path: Path):
    rows = [{"question": "a", "n": 5.0}, {"question": None, "extra": [1]}]
    expected = [["a", "5", ""], ["", "", "[1]"]]
    lines = "\n\n".join(map(json.dumps, rows))
    for name, content in [("t.json", json.dumps(rows)), ("t.jsonl", lines)]:
        assert read_table(text(tmp_path / name, content)).to_numpy().tolist() == expected
    assert read_table(tmp_path / "t.jsonl").attrs["row_numbers"] == [1, 3]
    columns = text(tmp_path / "c.json", '{"question": ["a", "b"], "summary": ["x", "y"]}')
    assert read_table(columns)["summary"].tolist() == ["x", "y"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("t.json", "[{", "line 1 is not valid JSON"),
        ("t.json", '{"question": "a"}', "is no list of objects"),
        ("t.json", '{"q": ["a"], "s": []}', "differ in length"),
        ("t.json", '["a"]', "row 1 is no object"),
        ("t.json", "[" * 100_000, "not valid JSON"),
        ("t.json", '[{"q": ' + "9" * 5000 + "}]", "not valid JSON"),
        ("t.jsonl", '{"q": 1}\n{"q": \n', "line 2 is not valid JSON"),
        ("t.jsonl", '{"q": 1}\n[1]\n', "row 2 is no object"),
        ("t.parquet", "PAR1 no", "corrupt, or no parquet file"),
        ("t.xlsx", "PK\x03\x04 no", "corrupt, or no xlsx file"),
        ("t.xls", "x", "`.xls` is no kind"),
        ("t", "x", "no ending"),
    ],
)
def test_other_hostile_files(tmp_path: Path, name: str, content: str, reason: str):
    file = text(tmp_path / name, content)
    with pytest.raises(UserError) as error:
        read_table(file)
    assert reason in one_line(error)


def test_missing_file_and_folder(tmp_path: Path):
    with pytest.raises(UserError, match="no such file") as error:
        read_table(tmp_path / "no.csv", key="input")
    assert one_line(error).startswith("input=")
    with pytest.raises(UserError, match="is a folder"):
        read_table(tmp_path)


# -- xlsx -----------------------------------------------------------------------------------------


def test_truncated_xlsx(tmp_path: Path):
    file = tmp_path / "t.xlsx"
    write_table(pd.DataFrame({"q": ["x" * 1000] * 50}), file)
    whole = file.read_bytes()
    for part in (len(whole) // 2, len(whole) - 30):
        text(file, whole[:part])
        with pytest.raises(UserError, match="corrupt, or no xlsx file"):
            read_table(file)


def test_sheets(tmp_path: Path):
    book = openpyxl.Workbook()
    book.active.append(["first"])
    second = book.create_sheet("Questions")
    second.append([])
    second.append(["question"])
    second.append(["a"])
    book.save(tmp_path / "t.xlsx")
    assert list(read_table(tmp_path / "t.xlsx").columns) == ["first"]
    frame = read_table(tmp_path / "t.xlsx", sheet=" questions")
    assert frame["question"].tolist() == ["a"]
    assert frame.attrs["row_numbers"] == [3]
    with pytest.raises(UserError, match="did you mean 'Questions'") as error:
        read_table(tmp_path / "t.xlsx", sheet="Question")
    assert one_line(error).startswith("data.sheet=Question:")
    with pytest.raises(UserError, match="has no sheets"):
        read_table(text(tmp_path / "t.csv", "q\na\n"), sheet="Questions")


def test_xlsx_without_cells(tmp_path: Path):
    openpyxl.Workbook().save(tmp_path / "t.xlsx")
    with pytest.raises(UserError, match="has no header"):
        read_table(tmp_path / "t.xlsx")


# -- standard streams -----------------------------------------------------------------------------


def test_standard_input_has_a_question_per_line(monkeypatch: pytest.MonkeyPatch):
    raw = io.BytesIO(b"\xef\xbb\xbffirst, question\r\n\nthird\x0cpart\n")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=raw))
    frame = read_table("-")
    assert frame["question"].tolist() == ["first, question", "", "third\x0cpart"]


def test_standard_output(capsys: pytest.CaptureFixture[str]):
    write_table(pd.DataFrame({"q": ["a,b"], "s": ["c"]}), "-")
    write_lines(["one\ntwo", ""])
    assert capsys.readouterr().out == 'q,s\n"a,b",c\none two\n\n'


# -- columns --------------------------------------------------------------------------------------


def test_columns_are_found_after_strip_and_casefold():
    assert find_column(["File", " CHQ "], None, ["chq", "question"]) == " CHQ "
    assert find_column(["question", "CHQ"], None, ["CHQ", "question"]) == "CHQ"
    assert find_column(["A", "Straße"], " STRASSE", ["x"]) == "Straße"


def test_missing_column_lists_what_there_is():
    with pytest.raises(UserError) as error:
        find_column(["Quesiton", "Answer"], "question", [], origin="t.csv")
    assert error.value.lines == [
        "data.question_column=question: no such column in t.csv; expected one of 'Quesiton', "
        "'Answer'; did you mean 'Quesiton'?"
    ]
    with pytest.raises(UserError, match=r"question_column=null: no column of a known name"):
        find_column([], None, ["CHQ"])


def test_ambiguous_column():
    with pytest.raises(UserError, match="2 columns of t have this name"):
        find_column(["chq", "CHQ "], None, ["CHQ"], origin="t")
