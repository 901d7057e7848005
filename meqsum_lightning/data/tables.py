"""Tables of text in files (csv, tsv, json, jsonl, parquet, xlsx): read as strings, written whole.

What the columns mean, and which rows can be used, is `sources.py`.
"""

import csv
import difflib
import io
import json
import math
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from meqsum_lightning.data.spreadsheets import (
    Record,
    brief,
    cell_text,
    folded,
    is_missing,
    plain_cell,
    quoted,
    read_xlsx,
    with_header,
    write_xlsx,
)
from meqsum_lightning.errors import UserError
from meqsum_lightning.files import atomic_path

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("csv", "tsv", "json", "jsonl", "parquet", "xlsx")


def read_table(
    path: str | os.PathLike[str], sheet: str | None = None, key: str = "data.path"
) -> "pd.DataFrame":
    """Read a file as a table of strings.

    Args:
        path: A csv, tsv, json, jsonl, parquet or xlsx file; `-` reads standard input, where each
            line is a question.
        sheet: Sheet of an xlsx file; None: the first.
        key: Config key that names the file in error messages.

    Returns:
        One string per cell, `""` for an empty one; nothing is guessed (`NA` is a word, `007` stays
        `007`; a number in an xlsx or json file is written the shortest way, 5.0 as `5`). Rows of
        an xlsx file that hold nothing but formats vanish, as do blank lines. Columns have distinct
        names; blank headers become `column_4` where cells stand under them, else vanish.
        `frame.attrs["row_numbers"]` has each row's number as its program shows it.

    Raises:
        UserError: The file is missing, empty, corrupt, not UTF-8, of an unknown kind, or has two
            columns of one name.
    """
    if str(path) == "-":
        lines = _decode(sys.stdin.buffer.read(), key, "-").split("\n")
        records = [(n, [line.removesuffix("\r")]) for n, line in enumerate(lines, start=1)]
        if records[-1][1] == [""]:
            records.pop()
        return _frame(["question"], records, key, "-")
    file = Path(path).expanduser()
    if not file.exists():
        raise UserError(f"{key}={path}: no such file; expected a {_listed(KINDS)} file")
    if file.is_dir():
        raise UserError(f"{key}={path}: is a folder; expected a {_listed(KINDS)} file")
    kind = table_kind(file, key)
    if sheet is not None and kind != "xlsx":
        raise UserError(f"data.sheet={sheet}: {file.name} has no sheets; expected an xlsx file")
    try:
        if file.stat().st_size == 0:
            raise UserError(f"{key}={path}: the file is empty; expected a header and rows")
        if kind == "xlsx":
            records = read_xlsx(file, sheet, key)
            return _frame(*with_header(records, keep_empty=False), key, file.name)
        if kind == "parquet":
            return _read_parquet(file, key)
        text = _decode(file.read_bytes(), key, str(path))
    except OSError as error:
        raise UserError(f"{key}={path}: can't be read ({error.strerror or error})") from error
    if not text.strip():
        raise UserError(f"{key}={path}: the file is empty; expected a header and rows")
    if kind in ("csv", "tsv"):
        records = _csv_records(text, kind, f"{key}={path}")
        return _frame(*with_header(records, keep_empty=True), key, file.name)
    objects = _json_objects(text, kind, f"{key}={path}")
    header = list(dict.fromkeys(name for _, item in objects for name in item))
    rows = [(n, [cell_text(item.get(name)) for name in header]) for n, item in objects]
    return _frame([str(name) for name in header], rows, key, file.name)


def write_table(frame: "pd.DataFrame", path: str | os.PathLike[str], key: str = "output") -> None:
    """Write a table whole or not at all; read back by `read_table` it has the same text.

    Args:
        frame: Any table; its index is not written.
        path: A csv, tsv, json, jsonl, parquet or xlsx file, replaced if it exists; folders on the
            way are made. `-` writes csv to standard output.
        key: Config key that names the file in error messages.

    Raises:
        UserError: The kind is unknown, the place can't be written, or a text is too long for xlsx.
    """
    if str(path) == "-":
        sys.stdout.write(_csv_text(frame, ","))
        sys.stdout.flush()
        return
    file = Path(path).expanduser()
    kind = table_kind(file, key)
    if file.is_dir():
        raise UserError(f"{key}={path}: is a folder; expected a file name")
    try:
        with atomic_path(file) as temporary, temporary.open("wb") as stream:
            _write(frame, stream, kind, f"{key}={path}")
    except OSError as error:
        raise UserError(f"{key}={path}: can't be written ({error.strerror or error})") from error


def table_kind(path: str | os.PathLike[str], key: str = "output") -> str:
    """Tell the kind of a table from its file name, without looking at the file.

    Args:
        path: A file name.
        key: Config key that names the file in error messages.

    Returns:
        One of `KINDS`.

    Raises:
        UserError: The ending is none of them.
    """
    kind = Path(path).suffix.lower().lstrip(".")
    if kind not in KINDS:
        what = f"`.{kind}` is no kind that is known" if kind else "the name has no ending"
        raise UserError(f"{key}={path}: {what}; expected {_listed(KINDS)}")
    return kind


def write_lines(lines: Iterable[str], stream: IO[str] | None = None) -> None:
    """Write one line per text, line breaks inside a text folded to a space.

    Args:
        lines: Texts.
        stream: Where to; None: standard output.
    """
    stream = stream or sys.stdout
    for line in lines:
        stream.write(" ".join(line.split()) + "\n")
    stream.flush()


def find_column(
    columns: Sequence[str],
    wanted: str | None,
    known_names: Sequence[str],
    key: str = "data.question_column",
    origin: str = "the table",
) -> str:
    """Find a column by name, upper and lower case and blanks at the ends aside.

    Args:
        columns: What the table has.
        wanted: The name given by the user; None: the first of `known_names` that is there.
        known_names: Usual names of such a column, the most usual first.
        key: Config key by which a user names the column.
        origin: What the table is called in messages.

    Returns:
        The column as the table spells it.

    Raises:
        UserError: None matches, or several do.
    """
    for name in [wanted] if wanted is not None else known_names:
        matches = [column for column in columns if folded(column) == folded(name)]
        if len(matches) > 1:
            raise UserError(
                f"{key}={name}: {len(matches)} columns of {origin} have this name "
                f"({quoted(matches)}); expected one"
            )
        if matches:
            return matches[0]
    names = [wanted] if wanted is not None else list(known_names)
    near = {
        column: max(difflib.SequenceMatcher(None, folded(column), folded(n)).ratio() for n in names)
        for column in columns
    }
    best = max(near, key=lambda column: near[column], default=None)
    hint = f"; did you mean {best!r}?" if best is not None and near[best] >= 0.6 else ""
    reason = (
        "no such column"
        if wanted is not None
        else f"no column of a known name ({known_names[0]}, …)"
    )
    shown = "null" if wanted is None else wanted
    raise UserError(f"{key}={shown}: {reason} in {origin}; expected one of {quoted(columns)}{hint}")


# -- reading ------------------------------------------------------------------------------------


def _decode(raw: bytes, key: str, path: str) -> str:
    wrong = "expected UTF-8 (in a spreadsheet program: save as CSV UTF-8)"
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        byte = raw[error.start]
        raise UserError(
            f"{key}={path}: line {line} is not UTF-8 (byte 0x{byte:02X}); {wrong}"
        ) from error
    if "\0" in text:
        raise UserError(
            f"{key}={path}: holds zero bytes, so it is another encoding or no text; {wrong}"
        )
    return text


def _csv_records(text: str, kind: str, what: str) -> list[Record]:
    """Records with their numbers; lines that hold nothing at all are left out."""
    first = next(line for line in text.splitlines() if line.strip())
    delimiter = "\t" if kind == "tsv" else ","
    if kind == "csv" and "," not in first:
        # The separator of spreadsheet programs where the comma is the decimal mark.
        delimiter = next((mark for mark in ";\t" if mark in first), ",")
    limit = csv.field_size_limit(2**31 - 1)  # more than 128 KiB; C's long on every system
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        records = [(n, cells) for n, cells in enumerate(reader, start=1) if cells]
    except csv.Error as error:
        raise UserError(
            f"{what}: row {_count_rows(text, delimiter)} is not valid csv ({error}); expected "
            f"texts with quotes or {delimiter!r} in them to be quoted, quotes inside doubled"
        ) from error
    finally:
        csv.field_size_limit(limit)
    width = len(records[0][1])
    for number, cells in records:
        if any(cells[width:]):
            raise UserError(
                f"{what}: row {number} has {len(cells)} cells, the header has {width}; expected "
                f"texts with {delimiter!r} in them to be quoted"
            )
    return records


def _count_rows(text: str, delimiter: str) -> int:
    """Number of the record at which strict reading of a csv text stops."""
    number = 1
    try:
        for _ in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True):
            number += 1
    except csv.Error:
        pass
    return number


def _json_objects(text: str, kind: str, what: str) -> list[tuple[int, dict[str, Any]]]:
    try:
        if kind == "jsonl":
            number = 0
            items = []
            for number, line in enumerate(text.split("\n"), start=1):
                if line.strip():
                    items.append((number, json.loads(line)))
        else:
            number = 0
            loaded = json.loads(text)
            if (
                isinstance(loaded, dict)
                and loaded
                and all(isinstance(v, list) for v in loaded.values())
            ):
                if len({len(column) for column in loaded.values()}) > 1:
                    raise UserError(f"{what}: its columns differ in length; expected equal ones")
                loaded = [
                    dict(zip(loaded, row, strict=True))
                    for row in zip(*loaded.values(), strict=True)
                ]
            if not isinstance(loaded, list):
                raise UserError(f'{what}: is no list of objects; expected [{{"question": …}}, …]')
            items = list(enumerate(loaded, start=1))
    except (ValueError, RecursionError) as error:
        place = number or getattr(error, "lineno", 1)
        reason = getattr(error, "msg", None) or brief(error)
        raise UserError(f"{what}: line {place} is not valid JSON ({reason})") from error
    for number, item in items:
        if not isinstance(item, dict):
            raise UserError(f'{what}: row {number} is no object; expected {{"question": …}}')
    return items


def _read_parquet(file: Path, key: str) -> "pd.DataFrame":
    import pyarrow
    import pyarrow.parquet

    try:
        with file.open("rb") as stream:
            table = pyarrow.parquet.read_table(stream)
        columns = [[cell_text(cell) for cell in column.to_pylist()] for column in table.columns]
    except (pyarrow.ArrowException, ValueError) as error:
        raise UserError(f"{key}={file}: corrupt, or no parquet file ({brief(error)})") from error
    records = [(n, list(cells)) for n, cells in enumerate(zip(*columns, strict=True), start=1)]
    return _frame(table.column_names, records, key, file.name)


def _frame(header: Sequence[str], records: list[Record], key: str, origin: str) -> "pd.DataFrame":
    import pandas as pd

    width = max([len(header), *(len(cells) for _, cells in records)])
    names = [name.strip() for name in [*header, *[""] * (width - len(header))]]
    if not any(names):
        raise UserError(f"{key}={origin}: has no header; expected a row of column names")
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise UserError(
            f"{key}={origin}: the column {twice[0]!r} stands {names.count(twice[0])} times; "
            "expected distinct names"
        )
    columns: dict[str, list[str]] = {}
    for at, name in enumerate(names):
        cells = [row[at] if at < len(row) else "" for _, row in records]
        if name or any(cells):
            original = header[at] if at < len(header) else ""
            columns[original if name else f"column_{at + 1}"] = cells
    frame = pd.DataFrame(columns, dtype=object)
    frame.attrs["row_numbers"] = [number for number, _ in records]
    return frame


# -- writing ------------------------------------------------------------------------------------


def _write(frame: "pd.DataFrame", stream: IO[bytes], kind: str, what: str) -> None:
    if kind in ("csv", "tsv"):
        stream.write(_csv_text(frame, "\t" if kind == "tsv" else ",").encode())
    elif kind == "parquet":
        bare = frame.copy()
        bare.attrs = {}  # pandas would store them in the file
        for name in bare.columns:
            if any(not isinstance(cell, str | int | float) for cell in bare[name]):
                bare[name] = [None if is_missing(cell) else cell_text(cell) for cell in bare[name]]
        bare.to_parquet(stream, index=False)
    elif kind == "xlsx":
        write_xlsx(frame, stream, what)
    else:
        items = [
            dict(zip(frame.columns, row, strict=True))
            for row in frame.itertuples(index=False, name=None)
        ]
        items = [{str(name): _json_value(cell) for name, cell in item.items()} for item in items]
        if kind == "jsonl":
            text = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
        else:
            text = json.dumps(items, ensure_ascii=False, indent=1) + "\n"
        stream.write(text.encode())


def _csv_text(frame: "pd.DataFrame", delimiter: str) -> str:
    text = io.StringIO(newline="")
    rows = [list(frame.columns)]
    rows += [[plain_cell(cell) for cell in row] for row in frame.itertuples(index=False, name=None)]
    # Before Python 3.13 a carriage return alone is left unquoted, and splits the row on reading.
    risky = any("\r" in str(cell) for row in rows for cell in row)
    writer = csv.writer(
        text,
        delimiter=delimiter,
        quoting=csv.QUOTE_ALL if risky else csv.QUOTE_MINIMAL,
        lineterminator="\n",
    )
    writer.writerows(rows)
    return text.getvalue()


def _json_value(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    if is_missing(value) or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value if isinstance(value, bool | int | float) else cell_text(value)


# -- words for messages -------------------------------------------------------------------------


def _listed(kinds: Sequence[str]) -> str:
    return ", ".join(kinds[:-1]) + " or " + kinds[-1]
