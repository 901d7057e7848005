"""What a row is, for every source alike: an id, a question, its summary, and where it belongs.

Plain data only: reading is `sources.py`, dividing into train, validation and test is `splits.py`.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One question.

    Attributes:
        id: Unique within its `RowSet`, the same wherever the row stands in its file.
        question: The text, cleaned by the steps of `data.clean`; empty only in prediction.
        summary: The reference summary; None where none is known (prediction).
        split: `train`, `val` or `test` where the source says so, else None.
    """

    id: str
    question: str
    summary: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Dropped:
    """A row that can't be used: where a person finds it, and why it can't."""

    where: str
    reason: str


@dataclass(frozen=True)
class RowSet:
    """The usable rows of a source, and the others by name.

    Attributes:
        rows: In the order of the source.
        dropped: Rows that can't be used.
        origin: What a person calls the source (file names, a Hub id).
        fingerprint: sha256 (hex) of the rows' content: neither their order, nor their split, nor
            the place of the file changes it.
    """

    rows: tuple[Row, ...]
    dropped: tuple[Dropped, ...]
    origin: str
    fingerprint: str


def rows_fingerprint(rows: Iterable[Row]) -> str:
    """Hash ids, questions and summaries, whatever their order.

    Args:
        rows: Any rows.

    Returns:
        64 hexadecimal digits.
    """
    lines = sorted(json.dumps([row.id, row.question, row.summary]) for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
