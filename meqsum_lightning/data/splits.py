"""Train, validation and test: near-duplicates stay together, and only content and seed decide.

Reading rows is `sources.py`; which rows resemble each other is `similarity.py`.
"""

import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meqsum_lightning.config.schema import DataConfig
from meqsum_lightning.data.rows import Row, RowSet
from meqsum_lightning.data.similarity import duplicate_groups, normalised, words
from meqsum_lightning.errors import UserError

SPLITS = ("train", "val", "test")
# Counts (train, validation, test) of the 1,000 rows: the usual one, and that of published code.
PUBLISHED = {"800_100_100": (800, 100, 100), "400_100_500": (400, 100, 500)}

# First words of summaries that ask in the same way; any other is "other".
_STRATA = {
    **{word: word for word in ("who", "what", "where", "when", "why", "how", "which")},
    **dict.fromkeys(("whom", "whose"), "who"),
    **dict.fromkeys(("is", "are", "was", "were", "am"), "is/are"),
    **dict.fromkeys(("do", "does", "did"), "do/does"),
    **dict.fromkeys(("can", "could", "may", "might"), "can"),
    **dict.fromkeys(("should", "shall", "will", "would", "must"), "should/will"),
    **dict.fromkeys(("has", "have", "had"), "has/have"),
}
STRATA = (*dict.fromkeys(_STRATA.values()), "other")
# Cells of the table by which an exact division is looked for where the greedy one is not.
_SEARCH_LIMIT = 1_000_000


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
                    f'{{"train": ["id", …], "val": […], '
                    '"test": […]}'
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
                f"{what}: the fingerprint is not that of the ids, so the file was "
                "changed; expected "
                "the file as written, or one without a fingerprint"
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
    shares = _Divider(rows.rows, data.near_duplicate_threshold, data.split_seed)
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
    first = words(summary or "")[:1]
    return _STRATA.get(first[0], "other") if first else "other"


# -- schemes ------------------------------------------------------------------------------------


def _given(rows: RowSet) -> Split:
    ids: dict[str, list[str]] = {name: [] for name in SPLITS}
    homeless = [row.id for row in rows.rows if row.split is None]
    if homeless:
        raise UserError(
            f"data.split=given: {len(homeless):,} of {len(rows.rows):,} rows of "
            f"{rows.origin} say no split; "
            "expected a column `split`, data.train_path, data.val_path and data.test_path, or "
            "data.split=[0.8,0.1,0.1]"
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
            "[800,100,100] "
            "or a json file of ids"
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
            f"{what}: {len(unknown):,} ids ({unknown[0]!r}, …) are no rows of "
            f"{rows.origin}; expected ids "
            "of the same data"
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
                f"{what}: asks for {train + val + test:,} rows and there are {total:,} "
                "usable ones; "
                "expected fewer, as with data.split=[0.8,0.1,0.1] or data.split=folds"
            )
        return train, val, test
    if abs(sum(asked) - 1) > 1e-6:
        raise UserError(f"{what}: the fractions sum to {sum(asked):.6g}; expected 1")
    train, val, test = _apportion(total, asked)
    if not (train and val and test):
        raise UserError(
            f"{what}: {total:,} usable rows are too few, a split would be empty; expected at least "
            f"{_least_total(asked):,}"
        )
    return train, val, test


def _least_total(shares: Sequence[float]) -> int:
    total = len(shares)
    while not all(_apportion(total, shares)):
        total += 1
        if total > 1_000_000:
            break
    return total


def _fold(shares: "_Divider", data: DataConfig) -> Split:
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


def _checked(
    shares: "_Divider", train: "Groups", val: "Groups", test: "Groups", data: DataConfig
) -> Split:
    lists = {
        name: sorted(shares.rows[place].id for group in groups for place in group)
        for name, groups in zip(SPLITS, (train, val, test), strict=True)
    }
    for name, ids in lists.items():
        if not ids:
            largest = max(map(len, shares.groups))
            raise UserError(
                f"data.split={scheme_text(data)}: no row is left for {name}, since "
                "near-duplicates stay together "
                f"(the largest group has {largest:,} of {len(shares.rows):,} rows); "
                "expected more rows, "
                "another split or a higher data.near_duplicate_threshold"
            )
    return Split.of(**lists)


# -- dividing groups ----------------------------------------------------------------------------

Group = tuple[int, ...]
Groups = Sequence[Group]


class _Divider:
    """Rows in groups that stay together, in an order that content and seed alone decide."""

    def __init__(self, rows: Sequence[Row], threshold: float, seed: int):
        self.rows = rows
        self.seed = seed
        self.groups = duplicate_groups(rows, threshold)
        self.content = [
            f"{normalised(row.question)}\n{normalised(row.summary or '')}" for row in rows
        ]
        leaders = {group: min(group, key=self._hash_of(seed)) for group in self.groups}
        self.stratum = {group: question_word(rows[leaders[group]].summary) for group in self.groups}

    def divide(
        self, sizes: Sequence[int], purpose: str, groups: Groups | None = None
    ) -> list[list[Group]]:
        """Fill parts one after the other, each with its share of each stratum.

        Args:
            sizes: Rows of each part.
            purpose: What the parts are for: another purpose draws another order.
            groups: Groups to divide; None: all.

        Returns:
            One list of groups per part, of exactly `sizes` rows if any choice of groups has them,
            else of fewer, or of the smallest group where that alone is more.
        """
        rank = self._hash_of(f"{self.seed} {purpose}")
        order = sorted(
            self.groups if groups is None else groups, key=lambda group: min(map(rank, group))
        )
        parts = self._greedy(order, sizes)
        if _filled(parts) != list(sizes):
            # Large groups first: the single rows then fill what is left.
            large_first = self._greedy(sorted(order, key=len, reverse=True), sizes)
            exact = _filled(large_first) == list(sizes)
            parts = large_first if exact else _exact(order, sizes) or self._none_empty(parts, order)
        return parts

    def left_out(self, parts: Sequence[Groups], groups: Groups | None = None) -> list[Group]:
        """Groups that stand in none of the parts, the largest first."""
        placed = {group for part in parts for group in part}
        rest = [
            group for group in (self.groups if groups is None else groups) if group not in placed
        ]
        rank = self._hash_of(self.seed)
        return sorted(rest, key=lambda group: (-len(group), min(map(rank, group))))

    def _greedy(self, order: Groups, sizes: Sequence[int]) -> list[list[Group]]:
        free = dict.fromkeys(order)
        parts = []
        for size in sizes:
            strata: dict[str, list[Group]] = defaultdict(list)
            for group in free:
                strata[self.stratum[group]].append(group)
            names = sorted(strata)
            available = [sum(map(len, strata[name])) for name in names]
            quotas = _apportion(min(size, sum(available)), available)
            part: list[Group] = []
            for name, quota in zip(names, quotas, strict=True):
                part += _take(strata[name], quota)
            taken = set(part)
            part += _take([g for g in free if g not in taken], size - sum(map(len, part)))
            parts.append(part)
            for group in part:
                del free[group]
        return parts

    def _none_empty(self, parts: list[list[Group]], order: Groups) -> list[list[Group]]:
        """Give each empty part the smallest group that nobody has, or that a part can spare."""
        placed = {group for part in parts for group in part}
        free = [group for group in order if group not in placed]
        for part in parts:
            if part:
                continue
            spare = [(group, free) for group in free]
            spare += [(group, other) for other in parts if len(other) > 1 for group in other]
            if spare:
                group, owner = min(spare, key=lambda pair: len(pair[0]))
                owner.remove(group)
                part.append(group)
        return parts

    def _hash_of(self, salt: object) -> Any:
        def rank(place: int) -> str:
            return hashlib.sha256(f"{salt}\n{self.content[place]}".encode()).hexdigest()

        return rank


def _filled(parts: Sequence[Groups]) -> list[int]:
    return [sum(map(len, part)) for part in parts]


def _take(groups: Groups, room: int) -> list[Group]:
    taken = []
    for group in groups:
        if len(group) <= room:
            taken.append(group)
            room -= len(group)
    return taken


def _apportion(total: int, weights: Sequence[float]) -> list[int]:
    """Divide a count in proportion to weights: floors, then one each to the largest remainders."""
    whole = sum(weights)
    if not whole:
        return [0] * len(weights)
    # Rounded, so that 0.8 * 1000 is not 799.9999…
    exact = [round(total * weight / whole, 9) for weight in weights]
    parts = [int(share) for share in exact]
    order = sorted(range(len(weights)), key=lambda at: (parts[at] - exact[at], at))
    for at in order[: total - sum(parts)]:
        parts[at] += 1
    return parts


def _exact(order: Groups, sizes: Sequence[int]) -> list[list[Group]] | None:
    """Parts of exactly the asked sizes, strata aside; None if there are none or too many ways.

    Dynamic programming over how full each part is, one group after the other.
    """
    total = sum(map(len, order))
    if sum(sizes) == total and len(sizes) > 1:  # the last part is what the others leave
        parts = _exact(order, sizes[:-1])
        placed = {group for part in parts or [] for group in part}
        return parts and [*parts, [group for group in order if group not in placed]]
    cells = len(order)
    for size in sizes:
        cells *= size + 1
    if cells > _SEARCH_LIMIT or sum(sizes) > total:
        return None
    start = (0,) * len(sizes)
    # For each state the group that led there and the part it joined; earlier states are kept.
    layers: list[dict[tuple[int, ...], int]] = [{start: -1}]
    for group in order:
        layer: dict[tuple[int, ...], int] = dict.fromkeys(layers[-1], -1)
        for state in layers[-1]:
            for part, size in enumerate(sizes):
                if state[part] + len(group) <= size:
                    after = (*state[:part], state[part] + len(group), *state[part + 1 :])
                    layer.setdefault(after, part)
        layers.append(layer)
    state = tuple(sizes)
    if state not in layers[-1]:
        return None
    found: list[list[Group]] = [[] for _ in sizes]
    for group, layer in zip(reversed(order), reversed(layers[1:]), strict=True):
        part = layer[state]
        if part >= 0:
            found[part].append(group)
            state = (*state[:part], state[part] - len(group), *state[part + 1 :])
    return found
