"""Rows from each source: the embedded demo, MeQSum (Hub or official file), and anyone's own files.

Finds the columns, cleans, gives ids, drops what can't be used by name; splitting is `splits.py`.
"""

import hashlib
import json
import threading
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meqsum_lightning.config.schema import DataConfig
from meqsum_lightning.data.cleaning import clean_text, is_blank
from meqsum_lightning.data.rows import Dropped, Row, RowSet, rows_fingerprint
from meqsum_lightning.data.spreadsheets import brief, cell_text, formulas_without_value
from meqsum_lightning.data.tables import find_column, read_table
from meqsum_lightning.errors import Unreachable, UserError

if TYPE_CHECKING:
    import pandas as pd

QUESTION_COLUMNS = (
    "CHQ", "question", "questions", "text", "input", "document", "source", "body", "article",
)  # fmt: skip
SUMMARY_COLUMNS = (
    "summary", "summaries", "target", "reference", "label", "labels", "output", "highlights",
    "abstract",
)  # fmt: skip
SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val", "eval": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
# Seconds until the Hub counts as unreachable: name look-ups alone may block far longer.
HUB_PATIENCE = 15.0

_LOCAL_WAYS = (
    "expected data.path=FILE.xlsx (the official MeQSum file), or data=files data.path=FILE, "
    "or data=demo"
)


def load_rows(data: DataConfig, key: str = "data.path") -> RowSet:
    """Read the rows that `data` asks for.

    Args:
        data: Validated configuration; `source`, paths, Hub id, columns, sheet and `clean` count.
        key: Config key that names `data.path` in messages.

    Returns:
        Usable rows in the order of the source. A row without question or summary is dropped and
        named. Ids come from `data.id_column`, else from a column `id`, else from the content, so
        that they survive reordering; an identical row read again gets `-2`, `-3`.

    Raises:
        UserError: A file, column, sheet or the Hub can't be read as asked, an id stands twice, or
            no row can be used.
    """
    parts, origin = _parts(data, key)
    drafts: list[_Draft] = []
    dropped: list[Dropped] = []
    for part in parts:
        found = _drafts(part, data, need_summary=True)
        usable = [draft for draft in found if draft.usable]
        _refuse_repeated_ids(usable, data)
        drafts += usable
        dropped += _explain(part, data, [draft for draft in found if not draft.usable])
    if not drafts:
        first = f" ({dropped[0].where}: {dropped[0].reason})" if dropped else ""
        raise UserError(
            f"data.source={data.source}: no usable row in {origin}{first}; expected at least one"
        )
    rows = _identified(_told_apart(drafts) if len(parts) > 1 else drafts)
    return RowSet(rows, tuple(dropped), origin, rows_fingerprint(rows))


def load_questions(
    path: str, data: DataConfig, key: str = "input"
) -> "tuple[RowSet, pd.DataFrame]":
    """Read questions to be summarized: one row out for each row in.

    Args:
        path: A file that `read_table` reads, or `-` for one question per line on standard input.
        data: Validated configuration; columns, sheet and `clean` count.
        key: Config key that names the file in messages.

    Returns:
        The rows, and the table as read, row for row, so that its other columns can be kept. A row
        without a question has the question `""`; `summary` is None where there is none. An id that
        stands several times gets `-2`, `-3`.

    Raises:
        UserError: The file can't be read, has no row, or no column of questions.
    """
    frame = read_table(path, data.sheet, key)
    if frame.empty:
        raise UserError(f"{key}={path}: has no rows; expected at least one question")
    origin = "-" if path == "-" else Path(path).name
    part = _Part(frame, origin)
    rows = _identified(_drafts(part, data, need_summary=False))
    return RowSet(rows, (), origin, rows_fingerprint(rows)), frame


@dataclass(frozen=True)
class _Part:
    """One table of a source; `split` where the whole table is one."""

    frame: "pd.DataFrame"
    label: str
    split: str | None = None
    path: str | None = None


@dataclass(frozen=True)
class _Draft:
    """A row whose id is not settled yet: `row.id` is the user's own, or empty."""

    row: Row
    content: str
    number: int
    where: str

    @property
    def usable(self) -> bool:
        return bool(self.row.question and self.row.summary)


def _parts(data: DataConfig, key: str) -> tuple[list[_Part], str]:
    if data.source == "demo":
        asset = resources.files("meqsum_lightning") / "assets" / "demo" / "questions.csv"
        with resources.as_file(asset) as file:
            return [_Part(read_table(file), "demo")], "demo"
    if data.train_path is not None:
        files = {"train": data.train_path, "val": data.val_path, "test": data.test_path}
        parts = [
            _Part(read_table(path, data.sheet, f"data.{split}_path"), Path(path).name, split, path)
            for split, path in files.items()
            if path is not None
        ]
        return parts, ", ".join(part.label for part in parts)
    if data.path is not None:
        name = Path(data.path).name
        return [_Part(read_table(data.path, data.sheet, key), name, path=data.path)], name
    if data.source == "meqsum" and data.hub_id is not None:
        return _hub_parts(data.hub_id, data.hub_revision)
    raise UserError("data.path=null: nothing to read; expected a file, or data.train_path, "
                    "data.val_path and data.test_path")  # fmt: skip


def _drafts(part: _Part, data: DataConfig, need_summary: bool) -> list[_Draft]:
    """Every row of a table, cleaned; `question` is empty and `summary` None where there is none."""
    columns = [str(column) for column in part.frame.columns]
    question_column = _column(columns, data.question_column, QUESTION_COLUMNS, "question", part)
    summary_column = _summary_column(columns, data, part, need_summary)
    if summary_column == question_column:
        raise UserError(
            f"data.summary_column={summary_column}: is the column of questions too; "
            "expected another"
        )
    id_column = _optional(columns, data.id_column, "id", "id_column", part)
    split_column = None if part.split else _optional(columns, None, "split", "", part)
    numbers = part.frame.attrs.get("row_numbers") or range(1, len(part.frame) + 1)

    def cells(column: str | None) -> Sequence[str | None]:
        return part.frame[column].tolist() if column else [None] * len(part.frame)

    drafts = []
    for number, question, summary, own, split in zip(
        numbers,
        *(cells(c) for c in (question_column, summary_column, id_column, split_column)),
        strict=True,
    ):
        assert question is not None
        where = f"{part.label} row {number}"
        place = part.split or _split_name(split, data, where)
        row = Row(
            (own or "").strip(), _cleaned(question, data) or "", _cleaned(summary, data), place
        )
        drafts.append(_Draft(row, json.dumps([question, summary or None]), number, where))
    return drafts


def _cleaned(text: str | None, data: DataConfig) -> str | None:
    text = None if text is None else clean_text(text, data.clean)
    return None if text is None or is_blank(text) else text


def _column(
    columns: list[str], wanted: str | None, known: Sequence[str], kind: str, part: _Part
) -> str:
    return find_column(columns, wanted, known, f"data.{kind}_column", part.label)


def _summary_column(columns: list[str], data: DataConfig, part: _Part, need: bool) -> str | None:
    if need or data.summary_column is not None:
        try:
            return _column(columns, data.summary_column, SUMMARY_COLUMNS, "summary", part)
        except UserError:
            if need:
                raise
        return None
    known = {name.casefold() for name in SUMMARY_COLUMNS}
    if not any(column.strip().casefold() in known for column in columns):
        return None
    return _column(columns, None, SUMMARY_COLUMNS, "summary", part)


def _optional(
    columns: list[str], wanted: str | None, usual: str, key: str, part: _Part
) -> str | None:
    if wanted is None and not any(column.strip().casefold() == usual for column in columns):
        return None
    return find_column(columns, wanted, [usual], f"data.{key or usual}", part.label)


def _split_name(text: str | None, data: DataConfig, where: str) -> str | None:
    """The split that a row names itself; other words count as a mistake only where they matter."""
    if text is None:
        return None
    name = SPLIT_NAMES.get(text.strip().casefold())
    if name is None and data.split == "given":
        raise UserError(
            f"data.split=given: {where} has the split {text!r}; expected train, val or test"
        )
    return name


def _explain(part: _Part, data: DataConfig, unusable: list[_Draft]) -> list[Dropped]:
    if not unusable:
        return []
    formulas: set[tuple[int, str]] = set()
    if part.path is not None and part.path.lower().endswith(".xlsx"):
        formulas = formulas_without_value(part.path, data.sheet)
    columns = [str(column) for column in part.frame.columns]
    names = {
        "question": _column(columns, data.question_column, QUESTION_COLUMNS, "question", part),
        "summary": _column(columns, data.summary_column, SUMMARY_COLUMNS, "summary", part),
    }
    dropped = []
    for draft in unusable:
        reasons = []
        for kind, text in (("question", draft.row.question), ("summary", draft.row.summary)):
            if not text:
                formula = (draft.number, names[kind]) in formulas
                reasons.append(
                    f"no {kind}" + (" (a formula without a stored value)" if formula else "")
                )
        dropped.append(Dropped(draft.where, " and ".join(reasons)))
    return dropped


# -- ids ----------------------------------------------------------------------------------------


def _refuse_repeated_ids(drafts: list[_Draft], data: DataConfig) -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for draft in drafts:
        if draft.row.id:
            places[draft.row.id].append(draft.where)
    repeated = {own: found for own, found in places.items() if len(found) > 1}
    if repeated:
        own, found = next(iter(repeated.items()))
        more = f", and {len(repeated) - 1} more ids likewise" if len(repeated) > 1 else ""
        raise UserError(
            f"data.id_column={data.id_column or 'id'}: {own!r} stands in {found[0]} and "
            f"{found[1]}{more}; "
            "expected distinct ids"
        )


def _told_apart(drafts: list[_Draft]) -> list[_Draft]:
    """Where files of different splits count from 0 each, the split joins the id."""
    own = Counter(draft.row.id for draft in drafts if draft.row.id)
    if not own or max(own.values()) == 1:
        return drafts
    return [
        replace(d, row=replace(d.row, id=f"{d.row.split}-{d.row.id}")) if d.row.id else d
        for d in drafts
    ]


def _identified(drafts: list[_Draft]) -> tuple[Row, ...]:
    """Final ids: the user's own, else from the content; what stands again is numbered."""
    used: set[str] = set()
    times: Counter[str] = Counter()
    rows = []
    for draft in drafts:
        base = draft.row.id or hashlib.sha256(draft.content.encode()).hexdigest()[:16]
        times[base] += 1
        name = base if times[base] == 1 else f"{base}-{times[base]}"
        while name in used:
            times[base] += 1
            name = f"{base}-{times[base]}"
        used.add(name)
        rows.append(replace(draft.row, id=name))
    return tuple(rows)


# -- the Hub ------------------------------------------------------------------------------------


def _hub_parts(hub_id: str, revision: str | None) -> tuple[list[_Part], str]:
    """The splits of a data set on the Hub, or its copy in the cache where there is no network."""
    import datasets

    origin = f"{hub_id}@{revision}" if revision else hub_id
    problem = None if Path(hub_id).is_dir() else _unreachable(hub_id, revision)
    if problem and revision:
        # The cache can't say which revision it holds.
        raise _hub_error(origin, problem)
    was_offline = datasets.config.HF_HUB_OFFLINE
    bars = datasets.is_progress_bar_enabled()
    try:
        datasets.config.HF_HUB_OFFLINE = was_offline or problem is not None
        if problem:
            datasets.disable_progress_bars()
        loaded = datasets.load_dataset(hub_id, revision=revision)
    # Whatever goes wrong on the way to the Hub, the way out is the same.
    except Exception as error:
        raise _hub_error(origin, problem or _hub_reason(error)) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = was_offline
        if bars:
            datasets.enable_progress_bars()
    tables = dict(loaded) if isinstance(loaded, dict) else {"train": loaded}
    parts = []
    for name, table in tables.items():
        split = SPLIT_NAMES.get(str(name).casefold()) if len(tables) > 1 else None
        label = f"{origin} {name}" if len(tables) > 1 else origin
        parts.append(_Part(_texts(table), label, split))
    return parts, origin


def _unreachable(hub_id: str, revision: str | None) -> str | None:
    """Why a data set can't be had from the Hub right now; None if it can."""
    import huggingface_hub

    answer: list[str | None] = []

    def ask() -> None:
        try:
            huggingface_hub.HfApi().dataset_info(hub_id, revision=revision, timeout=HUB_PATIENCE)
            answer.append(None)
        except Exception as error:  # noqa: BLE001 (reported by the caller)
            answer.append(_hub_reason(error))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_PATIENCE)
    return answer[0] if answer else f"no answer from the Hub within {HUB_PATIENCE:.0f} s"


def _hub_reason(error: Exception) -> str:
    from huggingface_hub import errors

    text = str(error)
    if "scripts are no longer supported" in text:
        return "the data set needs a loading script, and remote code is never run"
    if isinstance(error, errors.GatedRepoError):
        return "the data set asks for a login (huggingface-cli login)"
    if isinstance(error, errors.RevisionNotFoundError):
        return "no such revision"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "no such data set on the Hub, or it is private"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "the Hub is switched off (HF_HUB_OFFLINE) and the data set is not in the cache"
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"ConnectError", "TimeoutException", "NetworkError", "ConnectionError"}:
        return "the Hub can't be reached and the data set is not in the cache"
    return brief(error)


def _hub_error(origin: str, reason: str) -> Unreachable:
    return Unreachable(f"data.hub_id={origin}: {reason}; {_LOCAL_WAYS}")


def _texts(table: Any) -> "pd.DataFrame":
    import pandas as pd

    columns = {name: [cell_text(cell) for cell in table[name]] for name in table.column_names}
    return pd.DataFrame(columns, dtype=object)
