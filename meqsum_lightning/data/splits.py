"""Train, validation and test: near-duplicates stay together, and only content and seed decide.

Reading rows is `sources.py`; filling splits with whole groups is `grouping.py`.
"""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meqsum_lightning.config.question_words import QUESTION_WORDS, first_question_word
from meqsum_lightning.config.schema import DataConfig
from meqsum_lightning.data.cleaning import ALL_STEPS, clean_text
from meqsum_lightning.data.grouping import Divider, Groups, apportion
from meqsum_lightning.data.rows import RowSet
from meqsum_lightning.errors import UserError

SPLITS = ("train", "val", "test")
# Counts (train, validation, test) of the 1,000 rows: the usual one, and that of published code.
PUBLISHED = {"800_100_100": (800, 100, 100), "400_100_500": (400, 100, 500)}

# Summaries that ask in the same way.
STRATA = QUESTION_WORDS


@dataclass(frozen=True)
class Split:
    """Row ids by split, and the hash by which two runs know that they share it.

    Attributes:
        train: Ids; for `data.split=given` in the order of the source, else sorted.
        val: The same for validation.
        test: The same for test.
        fingerprint: sha256 (hex) of the ids by split, whatever their order; made when left out.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    fingerprint: str = ""

    def __post_init__(self) -> None:
        if not self.fingerprint:
            content = json.dumps([sorted(self.train), sorted(self.val), sorted(self.test)])
            digest = hashlib.sha256(content.encode()).hexdigest()
            object.__setattr__(self, "fingerprint", digest)

    @classmethod
    def of(cls, train: Sequence[str], val: Sequence[str], test: Sequence[str]) -> "Split":
        """Make a split from ids, in their order."""
        return cls(tuple(train), tuple(val), tuple(test))

    def ids(self, split: str) -> tuple[str, ...]:
        """Ids of `train`, `val` or `test`."""
        return {"train": self.train, "val": self.val, "test": self.test}[split]

    def to_json(self) -> dict[str, Any]:
        """The content of `splits.json`."""
        return {name: list(self.ids(name)) for name in SPLITS} | {"fingerprint": self.fingerprint}

    @classmethod
    def from_json(cls, content: Mapping[str, Any], what: str = "splits.json") -> "Split":
        """Read the content of `splits.json`; a fingerprint may be left out.

        Args:
            content: The parsed file.
            what: What the file is called in messages.

        Raises:
            UserError: A split is missing or empty, an id stands twice, or the fingerprint is not
                that of the ids.
        """
        lists: dict[str, list[str]] = {}
        for name in SPLITS:
            ids = content.get(name) if isinstance(content, Mapping) else None
            if not isinstance(ids, list) or not ids or not all(isinstance(i, str) for i in ids):
                raise UserError(
                    f"{what}: {name!r} is no list of ids; expected "
                    '{"train": ["id", …], "val": […], "test": […]}'
                )
            lists[name] = ids
        repeated = [
            i for i, n in Counter(i for ids in lists.values() for i in ids).items() if n > 1
        ]
        if repeated:
            raise UserError(
                f"{what}: {len(repeated)} ids stand more than once ({repeated[0]!r}, …); "
                "expected each once"
            )
        split = cls.of(**lists)
        if content.get("fingerprint", split.fingerprint) != split.fingerprint:
            raise UserError(
                f"{what}: the fingerprint is not that of the ids, so the file was changed; "
                "expected the file as written, or one without a fingerprint"
            )
        return split


def make_split(rows: RowSet, data: DataConfig) -> Split:
    """Divide rows as `data.split` says.

    Groups of near-duplicates (`duplicate_groups`) never cross splits, except where the user's own
    assignment (`given`, or a file of ids) has them do so. Counts are exact where groups allow.
    Each split gets its share of each question word. Neither the rows' order, nor their ids, nor
    `data.clean` moves a row.

    Args:
        rows: All usable rows.
        data: Validated configuration; `split`, `split_seed`, `folds`, `fold`, `val_fraction` and
            `near_duplicate_threshold` count.

    Returns:
        The split. With counts that sum to less than there is, rows are left out.

    Raises:
        UserError: Too few rows, an empty split, or an assignment that doesn't fit the rows.
    """
    scheme = split_scheme(data)
    if scheme == "given":
        return _given(rows)
    if isinstance(scheme, str) and scheme != "folds" and scheme not in PUBLISHED:
        return _from_file(rows, scheme)
    strata = [question_word(row.summary) for row in rows.rows]
    shares = Divider(rows.rows, strata, data.near_duplicate_threshold, data.split_seed)
    if scheme == "folds":
        return _fold(shares, data)
    counts = _counts(scheme, len(rows.rows), data)
    test, val, train = shares.divide((counts[2], counts[1], counts[0]), "split")
    if sum(counts) == len(rows.rows):
        train += shares.left_out([test, val, train])
    return _checked(shares, train, val, test, data)


def split_scheme(data: DataConfig) -> str | list[int] | list[float]:
    """`data.split`; where it is null, `given` for three files, else `[0.8, 0.1, 0.1]`."""
    if data.split is not None:
        return data.split
    return "given" if data.train_path is not None else [0.8, 0.1, 0.1]


def scheme_text(data: DataConfig) -> str:
    """The scheme as it is written on a command line."""
    scheme = split_scheme(data)
    return scheme if isinstance(scheme, str) else "[" + ",".join(map(str, scheme)) + "]"


def plain_split(ids: Sequence[str], like: Split, seed: int | None) -> Split:
    """A split with the counts of another, but in plain order or plainly shuffled, for comparison.

    Args:
        ids: All ids in the order of the source.
        like: The split whose counts are taken.
        seed: Seed of the shuffle; None keeps the order.
    """
    order = list(ids)
    if seed is not None:
        random.Random(seed).shuffle(order)
    train, val = len(like.train), len(like.train) + len(like.val)
    return Split.of(order[:train], order[train:val], order[val : val + len(like.test)])


def question_word(summary: str | None) -> str:
    """The stratum of a row: how its summary asks, one of `STRATA`."""
    return first_question_word(clean_text(summary or "", ALL_STEPS))


def _given(rows: RowSet) -> Split:
    ids: dict[str, list[str]] = {name: [] for name in SPLITS}
    homeless = [row.id for row in rows.rows if row.split is None]
    if homeless:
        raise UserError(
            f"data.split=given: {len(homeless):,} of {len(rows.rows):,} rows of {rows.origin} "
            "say no split; expected a column `split`, data.train_path, data.val_path and "
            "data.test_path, or data.split=[0.8,0.1,0.1]"
        )
    for row in rows.rows:
        ids[row.split or ""].append(row.id)
    for name, found in ids.items():
        if not found:
            raise UserError(
                f"data.split=given: {rows.origin} has no usable {name} row; expected at least one"
            )
    return Split.of(**ids)


def _from_file(rows: RowSet, path: str) -> Split:
    what = f"data.split={path}"
    file = Path(path).expanduser()
    if not file.is_file():
        schemes = ", ".join(["given", *PUBLISHED, "folds"])
        raise UserError(
            f"{what}: neither a scheme nor a file; expected {schemes}, [0.8,0.1,0.1], "
            "[800,100,100] or a json file of ids"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{what}: is not readable JSON ({reason}); expected a json file of ids"
        ) from error
    split = Split.from_json(content, what)
    known = {row.id for row in rows.rows}
    unknown = [i for name in SPLITS for i in split.ids(name) if i not in known]
    if unknown:
        raise UserError(
            f"{what}: {len(unknown):,} ids ({unknown[0]!r}, …) are no rows of {rows.origin}; "
            "expected ids of the same data"
        )
    return split


def _counts(scheme: Any, total: int, data: DataConfig) -> tuple[int, int, int]:
    """Rows of train, val and test that a scheme asks for, checked against what there is."""
    what = f"data.split={scheme_text(data)}"
    asked = PUBLISHED[scheme] if isinstance(scheme, str) else tuple(scheme)
    if len(asked) != 3:
        raise UserError(
            f"{what}: has {len(asked)} numbers; expected three, for train, val and test"
        )
    if any(part <= 0 for part in asked):
        raise UserError(f"{what}: leaves a split empty; expected three numbers above 0")
    if all(isinstance(part, int) for part in asked):
        train, val, test = (int(part) for part in asked)
        if train + val + test > total:
            raise UserError(
                f"{what}: asks for {train + val + test:,} rows and there are {total:,} usable "
                "ones; expected fewer, as with data.split=[0.8,0.1,0.1] or data.split=folds"
            )
        return train, val, test
    if abs(sum(asked) - 1) > 1e-6:
        raise UserError(f"{what}: the fractions sum to {sum(asked):.6g}; expected 1")
    train, val, test = apportion(total, asked)
    if not (train and val and test):
        raise UserError(
            f"{what}: {total:,} usable rows are too few, a split would be empty; expected at least "
            f"{_least_total(asked):,}"
        )
    return train, val, test


def _least_total(shares: Sequence[float]) -> int:
    total = len(shares)
    while total <= 1_000_000 and not all(apportion(total, shares)):
        total += 1
    return total


def _fold(shares: Divider, data: DataConfig) -> Split:
    total, folds = len(shares.rows), data.folds
    what = f"data.folds={folds}"
    if data.fold >= folds:
        raise UserError(
            f"data.fold={data.fold}: there are {folds} folds; expected 0 to {folds - 1}"
        )
    if total < folds + 2:
        raise UserError(
            f"{what}: {total:,} usable rows are too few; expected at least {folds + 2:,} "
            "rows or fewer folds"
        )
    sizes = [total // folds + (fold < total % folds) for fold in range(folds)]
    parts = [list(part) for part in shares.divide(sizes, "folds")]
    for group in shares.left_out(parts):
        smallest = min(range(folds), key=lambda fold: sum(map(len, parts[fold])))
        parts[smallest].append(group)
    rest = [group for fold, part in enumerate(parts) if fold != data.fold for group in part]
    left = sum(map(len, rest))
    wanted = min(max(1, round(data.val_fraction * left)), max(1, left - 1))
    val, train = shares.divide((wanted, left - wanted), f"val of fold {data.fold}", rest)
    train = [*train, *shares.left_out([val, train], rest)]
    return _checked(shares, train, val, parts[data.fold], data)


def _checked(shares: Divider, train: Groups, val: Groups, test: Groups, data: DataConfig) -> Split:
    lists = {
        name: sorted(shares.rows[place].id for group in groups for place in group)
        for name, groups in zip(SPLITS, (train, val, test), strict=True)
    }
    for name, ids in lists.items():
        if not ids:
            largest = max(map(len, shares.groups))
            raise UserError(
                f"data.split={scheme_text(data)}: no row is left for {name}, since "
                f"near-duplicates stay together (the largest group has {largest:,} of "
                f"{len(shares.rows):,} rows); expected more rows, another split or a higher "
                "data.near_duplicate_threshold"
            )
    return Split.of(**lists)
