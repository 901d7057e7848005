"""Dividing groups of rows that stay together: exact counts where groups allow, strata in shares.

Which rows belong together is `similarity.py`; what a split asks for is `splits.py`.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence

from meqsum_lightning.data.rows import Row
from meqsum_lightning.data.similarity import duplicate_groups, normalised

Group = tuple[int, ...]
Groups = Sequence[Group]

# Cells of the table by which an exact division is looked for where the greedy one is not.
_SEARCH_LIMIT = 1_000_000


class Divider:
    """Rows in groups that stay together, in an order that content and seed alone decide.

    Args:
        rows: All rows; groups hold positions among them.
        strata: The stratum of each row. One row, which the seed picks, speaks for its group.
        threshold: Jaccard similarity from which two questions are near-duplicates.
        seed: Seed of the order.
    """

    def __init__(self, rows: Sequence[Row], strata: Sequence[str], threshold: float, seed: int):
        self.rows = rows
        self.seed = seed
        self.groups = duplicate_groups(rows, threshold)
        self.content = [
            f"{normalised(row.question)}\n{normalised(row.summary or '')}" for row in rows
        ]
        rank = self._hash_of(seed)
        self.stratum = {group: strata[min(group, key=rank)] for group in self.groups}

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
            quotas = apportion(min(size, sum(available)), available)
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

    def _hash_of(self, salt: object) -> Callable[[int], str]:
        def rank(place: int) -> str:
            return hashlib.sha256(f"{salt}\n{self.content[place]}".encode()).hexdigest()

        return rank


def apportion(total: int, weights: Sequence[float]) -> list[int]:
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


def _filled(parts: Sequence[Groups]) -> list[int]:
    return [sum(map(len, part)) for part in parts]


def _take(groups: Groups, room: int) -> list[Group]:
    taken = []
    for group in groups:
        if len(group) <= room:
            taken.append(group)
            room -= len(group)
    return taken


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
