"""Cells as text, and the sheets of xlsx files: what they hold and how they are written.

The other kinds of files, and the one function that reads them all, are in `tables.py`.
"""

import datetime
import difflib
import json
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from meqsum_lightning.data.cleaning import decode_escapes, repair_surrogates
from meqsum_lightning.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

# The most characters that spreadsheet programs keep in a cell.
CELL_LIMIT = 32_767

# A row's number as a person sees it, and its cells.
Record = tuple[int, list[str]]

_FORMULA = "\0formula"


def read_xlsx(file: Path, sheet: str | None, key: str, formulas: bool = False) -> list[Record]:
    """Read all rows of a sheet, with their numbers.

    Args:
        file: An xlsx file.
        sheet: Its name; None: the first.
        key: Config key that names the file in messages.
        formulas: Mark formulas instead of giving their stored values.

    Raises:
        UserError: The file is corrupt or no xlsx file, or there is no such sheet.
    """
    import warnings

    import openpyxl

    try:
        with file.open("rb") as stream, warnings.catch_warnings():
            # Extensions that openpyxl leaves out (validation, styles) hold no text.
            warnings.simplefilter("ignore", UserWarning)
            book = openpyxl.load_workbook(stream, read_only=True, data_only=not formulas)
            sheets = {ws.title: ws for ws in book.worksheets}
            if not sheets:
                raise UserError(f"{key}={file}: has no sheet of cells; expected one")
            chosen = _sheet(sheets, sheet, file)
            # A sheet may claim thousands of columns; without the claim rows end where cells do.
            chosen.reset_dimensions()
            return [
                (number, [_xlsx_cell(cell, formulas) for cell in cells])
                for number, cells in enumerate(chosen.iter_rows(), start=1)
            ]
    except (UserError, OSError):
        raise
    # A broken archive surfaces as any of a dozen errors of zipfile, the XML parser and openpyxl.
    except Exception as error:
        raise UserError(f"{key}={file}: corrupt, or no xlsx file ({brief(error)})") from error


def formulas_without_value(
    path: str | os.PathLike[str], sheet: str | None = None
) -> set[tuple[int, str]]:
    """Cells of an xlsx file that hold a formula, as (row number, column name).

    A formula has a value only if a spreadsheet program computed and stored it; an empty cell among
    these is such a formula.
    """
    file = Path(path).expanduser()
    records = read_xlsx(file, sheet, "data.path", formulas=True)
    header, rows = with_header(records, keep_empty=False)
    names = [name if name.strip() else f"column_{at}" for at, name in enumerate(header, start=1)]
    return {
        (number, name)
        for number, cells in rows
        for name, cell in zip(names, cells, strict=False)
        if cell == _FORMULA
    }


def cell_text(value: Any) -> str:
    """A cell's value as the text that a person sees.

    Example:
        >>> [cell_text(v) for v in (5.0, 0.5, None, float("nan"), "NA", True)]
        ['5', '0.5', '', '', 'NA', 'true']
    """
    if isinstance(value, str):
        return repair_surrogates(value)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if math.isnan(value):
            return ""
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, datetime.datetime):
        return str(value.date() if value.time() == datetime.time() else value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list | dict | tuple):
        return repair_surrogates(json.dumps(value, ensure_ascii=False, default=str))
    return str(value)


def plain_cell(value: Any) -> Any:
    """A cell for csv and xlsx: numbers stay numbers, nothing is empty, all else is text."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "" if isinstance(value, float) and not math.isfinite(value) else value
    return "" if is_missing(value) else cell_text(value)


def is_missing(value: Any) -> bool:
    """Whether a cell is None or one of pandas' own words for nothing."""
    import pandas as pd

    return value is None or value is pd.NA or value is pd.NaT


def write_xlsx(frame: "pd.DataFrame", stream: IO[bytes], what: str) -> None:
    """Write a table as the only sheet of an xlsx file; texts stay texts, even `=1+1` and `007`.

    Raises:
        UserError: A text is longer than a cell; the message starts with `what`.
    """
    import openpyxl
    from openpyxl.cell import WriteOnlyCell

    rows = [list(frame.columns), *frame.itertuples(index=False, name=None)]
    plain = [[_stored(value) for value in row] for row in rows]
    for number, row in enumerate(plain, start=1):
        longest = max((len(cell) for cell in row if isinstance(cell, str)), default=0)
        if longest > CELL_LIMIT:
            raise UserError(
                f"{what}: row {number} has a text of {longest:,} characters; expected at most "
                f"{CELL_LIMIT:,} in an xlsx cell, or a csv or jsonl file"
            )
    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("Sheet1")
    for row in plain:
        cells = []
        for value in row:
            cell = WriteOnlyCell(sheet, value=None)
            if value != "":
                cell.value = value
                if isinstance(value, str):
                    cell.data_type = "s"  # or a text that starts with `=` would be a formula
            cells.append(cell)
        sheet.append(cells)
    book.save(stream)


def with_header(records: list[Record], keep_empty: bool) -> tuple[list[str], list[Record]]:
    """The first row that holds anything is the header; `keep_empty` keeps blank rows below it."""
    filled = [at for at, (_, cells) in enumerate(records) if any(cell.strip() for cell in cells)]
    if not filled:
        return [], []
    header = records[filled[0]][1]
    below = records[filled[0] + 1 :] if keep_empty else [records[at] for at in filled[1:]]
    return header, below


def folded(name: str) -> str:
    """A column's or sheet's name as it is compared."""
    return name.strip().casefold()


def quoted(names: Iterable[str]) -> str:
    """Column or sheet names as messages list them."""
    return ", ".join(repr(str(name)) for name in names) or "no column at all"


def brief(error: Exception) -> str:
    """A foreign error as half a line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:120]


def _sheet(sheets: dict[str, Any], wanted: str | None, file: Path) -> Any:
    if wanted is None:
        return next(iter(sheets.values()))
    for title, sheet in sheets.items():
        if folded(title) == folded(wanted):
            return sheet
    near = difflib.get_close_matches(wanted, sheets, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UserError(
        f"data.sheet={wanted}: no such sheet in {file.name}; expected one of {quoted(sheets)}{hint}"
    )


def _xlsx_cell(cell: Any, formulas: bool) -> str:
    if cell.data_type == "f" and formulas:
        return _FORMULA
    if cell.data_type == "e":  # #N/A, #REF!: the program's own words, not a person's
        return ""
    text = cell_text(cell.value)
    return decode_escapes(text) if isinstance(cell.value, str) else text


def _stored(value: Any) -> Any:
    """A cell as xlsx stores it: control characters and look-alikes of escapes as `_xHHHH_`."""
    text = plain_cell(value)
    if not isinstance(text, str):
        return text
    text = re.sub(r"_(?=x[0-9A-Fa-f]{4}_)", "_x005F_", text)
    return re.sub("[\x00-\x08\x0b-\x1f\ufffe\uffff]", lambda match: f"_x{ord(match[0]):04X}_", text)
