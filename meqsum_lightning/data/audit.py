"""What stands in a data set, before any model sees it: `meqsum data audit`.

Counts and describes; rows come from `sources.py`, the split from `splits.py`.
"""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from meqsum_lightning.config.schema import DataConfig
from meqsum_lightning.data.rows import Dropped, Row, RowSet
from meqsum_lightning.data.similarity import Pair, equal_groups, near_duplicate_pairs
from meqsum_lightning.data.splits import (
    SPLITS,
    STRATA,
    Split,
    make_split,
    plain_split,
    question_word,
    scheme_text,
)
from meqsum_lightning.data.tokens import token_lengths
from meqsum_lightning.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

_BINS = 10
_SHOWN = 5
_LEAKAGE_ROW = "  {:<16}{:>15}{:>15}{:>13}{:>17}"


@dataclass(frozen=True)
class Lengths:
    """Token lengths of questions or summaries, uncut; a question's with its prompt.

    Attributes:
        limit: The chosen limit, in tokens.
        truncated: Rows longer than the limit.
        tokens: All tokens together.
        histogram: (from, to, rows), both ends included.
    """

    limit: int
    truncated: int
    tokens: int
    shortest: int
    median: float
    mean: float
    p95: int
    longest: int
    histogram: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Leakage:
    """How much of one split can be copied from another.

    Attributes:
        name: `this split`, `in plain order`, `plain random`.
        near_pairs: Near-duplicate questions in different splits.
        summary_pairs: Equal normalised summaries in different splits.
        test_rows: Test rows with any such partner in train or validation.
        word_shift: Total variation distance between the question words of train and test, 0 to 1:
            half the sum of |share in train - share in test|.
    """

    name: str
    near_pairs: int
    summary_pairs: int
    test_rows: int
    word_shift: float


@dataclass(frozen=True)
class NearPair:
    """Two near-duplicate questions, by id."""

    first: str
    second: str
    similarity: float


@dataclass(frozen=True)
class Audit:
    """All that `meqsum data audit` tells; see the parts.

    Attributes:
        exact_duplicates: Rows whose question, character for character, stood before.
        distinct_summaries: Summaries that differ in more than case, punctuation and blanks.
        question_words: Question word to rows, by split; `all` where there is no split.
        split_error: Why the asked split can't be made, if it can't.
    """

    origin: str
    fingerprint: str
    rows: int
    dropped: tuple[Dropped, ...]
    exact_duplicates: int
    distinct_summaries: int
    near_duplicate_threshold: float
    near_duplicates: tuple[NearPair, ...]
    source_lengths: Lengths
    target_lengths: Lengths
    scheme: str
    split_counts: dict[str, int]
    split_fingerprint: str | None
    split_error: str | None
    question_words: dict[str, dict[str, int]]
    leakage: tuple[Leakage, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dictionaries, numbers and strings, for a json file."""
        return asdict(self)


def audit(rows: RowSet, tokenizer: Any, data: DataConfig) -> Audit:
    """Describe a data set under the chosen settings.

    Args:
        rows: Usable rows and the dropped ones.
        tokenizer: The transformers tokenizer of the chosen backbone.
        data: Validated configuration.

    Returns:
        The description. A split that can't be made is told in it, not raised.
    """
    questions = [row.question for row in rows.rows]
    summaries = [row.summary for row in rows.rows]
    near = near_duplicate_pairs(questions, data.near_duplicate_threshold)
    same = equal_groups(summaries)
    split, error = None, None
    try:
        split = make_split(rows, data)
    except UserError as problem:
        error = problem.lines[0]
    scheme = scheme_text(data)
    if scheme == "folds":
        scheme = f"fold {data.fold} of {data.folds}"
    return Audit(
        origin=rows.origin,
        fingerprint=rows.fingerprint,
        rows=len(rows.rows),
        dropped=rows.dropped,
        exact_duplicates=len(questions) - len(set(questions)),
        distinct_summaries=len(rows.rows) - sum(len(group) - 1 for group in same),
        near_duplicate_threshold=data.near_duplicate_threshold,
        near_duplicates=_named(rows.rows, near),
        source_lengths=_lengths(
            token_lengths([data.prompt + text for text in questions], tokenizer),
            data.max_source_length,
        ),
        target_lengths=_lengths(
            token_lengths([text or "" for text in summaries], tokenizer), data.max_target_length
        ),
        scheme=scheme,
        split_counts={name: len(split.ids(name)) for name in SPLITS} if split else {},
        split_fingerprint=split.fingerprint if split else None,
        split_error=error,
        question_words=_question_words(rows.rows, split),
        leakage=_all_leakage(rows.rows, split, near, same, data.split_seed) if split else (),
    )


def render(result: Audit, console: "Console") -> None:
    """Print an audit; it needs no more than 80 columns and is as readable without a terminal.

    Args:
        result: What to print.
        console: Where to; its encoding decides how bars are drawn.
    """
    _Page(result, console).print()


def _named(rows: Sequence[Row], pairs: Sequence[Pair]) -> tuple[NearPair, ...]:
    ordered = sorted(pairs, key=lambda pair: -pair.similarity)
    return tuple(
        NearPair(rows[pair.first].id, rows[pair.second].id, round(pair.similarity, 4))
        for pair in ordered
    )


def _lengths(lengths: list[int], limit: int) -> Lengths:
    ordered = sorted(lengths)
    p95 = ordered[max(0, -(-95 * len(ordered) // 100) - 1)]  # nearest rank
    # Widths that people count in; the last bin takes the tail.
    width = next(
        w for step in range(9) for w in (10**step, 2 * 10**step, 5 * 10**step) if w * _BINS >= p95
    )
    bins = Counter(min((length - 1) // width, _BINS) for length in ordered)
    last = max(bins)
    histogram = tuple(
        (at * width + 1, ordered[-1] if at == _BINS else (at + 1) * width, bins[at])
        for at in range(last + 1)
    )
    return Lengths(
        limit=limit,
        truncated=sum(length > limit for length in ordered),
        tokens=sum(ordered),
        shortest=ordered[0],
        median=statistics.median(ordered),
        mean=round(statistics.fmean(ordered), 2),
        p95=p95,
        longest=ordered[-1],
        histogram=histogram,
    )


def _question_words(rows: Sequence[Row], split: Split | None) -> dict[str, dict[str, int]]:
    word = {row.id: question_word(row.summary) for row in rows}
    parts = {name: split.ids(name) for name in SPLITS} if split else {"all": tuple(word)}
    counted = {name: Counter(word[i] for i in ids) for name, ids in parts.items()}
    return {name: {w: counts[w] for w in STRATA if counts[w]} for name, counts in counted.items()}


def _all_leakage(
    rows: Sequence[Row], split: Split, near: Sequence[Pair], same: list[list[int]], seed: int
) -> tuple[Leakage, ...]:
    ids = [row.id for row in rows]
    splits = {
        "this split": split,
        "in plain order": plain_split(ids, split, None),
        "plain random": plain_split(ids, split, seed),
    }
    return tuple(_leakage(name, rows, other, near, same) for name, other in splits.items())


def _leakage(
    name: str,
    rows: Sequence[Row],
    split: Split,
    near: Sequence[Pair],
    same: Sequence[Sequence[int]],
) -> Leakage:
    home = {i: part for part in SPLITS for i in split.ids(part)}
    homes = [home.get(row.id) for row in rows]

    crossing = [
        (pair.first, pair.second)
        for pair in near
        if homes[pair.first] and homes[pair.second] and homes[pair.first] != homes[pair.second]
    ]
    touched = {place for pair in crossing for place in pair if homes[place] == "test"}
    summary_pairs = 0
    for group in same:
        here = Counter(homes[place] for place in group if homes[place])
        summary_pairs += (here.total() ** 2 - sum(n**2 for n in here.values())) // 2
        if len(here) > 1:
            touched.update(place for place in group if homes[place] == "test")
    shares = {}
    for part in ("train", "test"):
        counts = Counter(
            question_word(row.summary) for row, at in zip(rows, homes, strict=True) if at == part
        )
        shares[part] = {word: count / counts.total() for word, count in counts.items()}
    shift = sum(abs(shares["train"].get(w, 0) - shares["test"].get(w, 0)) for w in STRATA) / 2
    return Leakage(name, len(crossing), summary_pairs, len(touched), round(shift, 4))


class _Page:
    """The printed form of one audit."""

    def __init__(self, result: Audit, console: "Console"):
        self.result = result
        self.console = console
        self.bar = "█" if console.encoding.lower().startswith("utf") else "#"

    def print(self) -> None:
        self._rows()
        self._lengths("Question tokens (with prompt and end token)", self.result.source_lengths)
        self._lengths("Summary tokens (with end token)", self.result.target_lengths)
        if self.result.split_error:
            self._heading("Split")
            self._line(f"can't be made: {self.result.split_error}")
        self._question_words()
        if self.result.leakage:
            self._leakage()

    def _rows(self) -> None:
        result = self.result
        self._line(f"Audit of {result.origin}", style="bold")
        self._line(
            f"  rows                      {result.rows:>8,}   fingerprint {result.fingerprint[:12]}"
        )
        self._line(f"  dropped                   {len(result.dropped):>8,}")
        for row in result.dropped[:_SHOWN]:
            self._line(f"      {row.where}: {row.reason}")
        self._more(len(result.dropped))
        self._line(f"  exact duplicate questions {result.exact_duplicates:>8,}")
        self._line(
            f"  near-duplicate pairs      {len(result.near_duplicates):>8,}   "
            f"Jaccard of word trigrams >= {result.near_duplicate_threshold:g}"
        )
        for pair in result.near_duplicates[:_SHOWN]:
            self._line(f"      {pair.similarity:.2f}  {pair.first}  {pair.second}")
        self._more(len(result.near_duplicates))
        self._line(
            f"  distinct summaries        {result.distinct_summaries:>8,}   case and "
            "punctuation aside"
        )

    def _lengths(self, title: str, lengths: Lengths) -> None:
        self._heading(title)
        self._line(
            f"  shortest {lengths.shortest:,}, median {lengths.median:g}, mean {lengths.mean:.1f}, "
            f"95 % within {lengths.p95:,}, longest {lengths.longest:,}"
        )
        share = lengths.truncated / self.result.rows
        self._line(f"  limit {lengths.limit:,}: {lengths.truncated:,} rows are cut ({share:.1%})")
        most = max(rows for _, _, rows in lengths.histogram)
        width = len(f"{lengths.longest:,}")
        for low, high, rows in lengths.histogram:
            bar = self.bar * (max(1, round(36 * rows / most)) if rows else 0)
            line = f"  {low:>{width + 1},} - {high:>{width + 1},}  {rows:>7,}  {bar}"
            self._line(line + (" <- limit" if low <= lengths.limit <= high else ""))

    def _question_words(self) -> None:
        columns = self.result.question_words
        totals = {name: sum(counts.values()) for name, counts in columns.items()}
        where = f"split {self.result.scheme}" if self.result.split_counts else "no split"
        self._heading(f"Question words ({where})")
        self._line("  " + f"{'':<12}" + "".join(f"{name:>18}" for name in columns))
        for word in STRATA:
            if any(word in counts for counts in columns.values()):
                cells = [
                    f"{c.get(word, 0):,} ({_percent(c.get(word, 0), totals[n])})"
                    for n, c in columns.items()
                ]
                self._line(f"  {word:<12}" + "".join(f"{cell:>18}" for cell in cells))
        self._line(f"  {'all':<12}" + "".join(f"{total:>10,}        " for total in totals.values()))

    def _leakage(self) -> None:
        self._heading("Leakage between splits")
        for heads in (
            ("", "near-duplicate", "equal summary", "test rows", "question words,"),
            ("", "pairs", "pairs", "with a twin", "train to test"),
        ):
            self._line(_LEAKAGE_ROW.format(*heads))
        for leak in self.result.leakage:
            cells = [f"{n:,}" for n in (leak.near_pairs, leak.summary_pairs, leak.test_rows)]
            self._line(_LEAKAGE_ROW.format(leak.name, *cells, f"{leak.word_shift:.1%} apart"))

    def _heading(self, title: str) -> None:
        self._line("")
        self._line(title, style="bold")

    def _more(self, total: int) -> None:
        if total > _SHOWN:
            self._line(f"      and {total - _SHOWN:,} more")

    def _line(self, text: str, style: str | None = None) -> None:
        self.console.print(
            text.rstrip(), style=style, markup=False, highlight=False, soft_wrap=True
        )


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "-"
