"""The audit: its numbers by hand on a small set, and a page that fits any terminal."""

import io
import json
from typing import Any

import pytest
from rich.console import Console

from meqsum_lightning.data.audit import Audit, audit, render
from meqsum_lightning.data.rows import Dropped, Row, RowSet, rows_fingerprint
from meqsum_lightning.data.sources import load_rows
from tests.data.conftest import OFFICIAL, distinct_rows, make_config, needs_official


def small_set() -> RowSet:
    rows = list(distinct_rows(37).rows)
    rows.append(Row("copy", rows[0].question, "What else?"))
    rows.append(Row("twin", "nothing like any other text", "what treats ALPHA0 in beta0"))
    rows.append(Row("near", rows[1].question + " thanks", "Who knows?"))
    dropped = tuple(Dropped(f"t.csv row {n}", "no summary") for n in range(7))
    return RowSet(tuple(rows), dropped, "t.csv", rows_fingerprint(rows))


def page(result: Audit, encoding: str = "utf-8", width: int = 80) -> str:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="strict")
    render(result, Console(file=stream, width=width))
    stream.flush()
    return raw.getvalue().decode(encoding)


@pytest.fixture
def result(tokenizer: Any) -> Audit:
    return audit(small_set(), tokenizer, make_config(max_source_length=9))


def test_counts(result: Audit):
    assert (result.rows, len(result.dropped)) == (40, 7)
    assert result.exact_duplicates == 1
    assert result.distinct_summaries == 39
    assert {(pair.first, pair.second) for pair in result.near_duplicates} == {
        ("r0", "copy"), ("r1", "near"),
    }  # fmt: skip
    assert result.split_counts == {"train": 32, "val": 4, "test": 4}
    for name, count in result.split_counts.items():
        assert sum(result.question_words[name].values()) == count


def test_lengths(result: Audit):
    # "Summarize this question:" is 4 tokens here, the question 5 (6 for one row), the end 1.
    lengths = result.source_lengths
    assert (lengths.shortest, lengths.median, lengths.longest) == (10, 10, 11)
    assert lengths.truncated == 40
    assert lengths.tokens == 401
    assert sum(rows for _, _, rows in lengths.histogram) == 40


def test_histogram_covers_a_long_tail(tokenizer: Any):
    rows = list(distinct_rows(60).rows)
    rows.append(Row("long", "w1 " * 5000, "What?"))
    lengths = audit(RowSet(tuple(rows), (), "t", ""), tokenizer, make_config()).source_lengths
    assert sum(count for _, _, count in lengths.histogram) == 61
    assert lengths.histogram[-1][1:] == (5005, 1)
    assert len(lengths.histogram) <= 11


def test_leakage_by_hand(tokenizer: Any):
    # In plain order the copies of rows 0 and 1 and the twin of row 0 stand at the end: in test.
    result = audit(small_set(), tokenizer, make_config(split=[32, 4, 4]))
    ours, ordered, _ = result.leakage
    assert (ours.near_pairs, ours.summary_pairs, ours.test_rows) == (0, 0, 0)
    assert (ordered.near_pairs, ordered.summary_pairs, ordered.test_rows) == (2, 1, 3)
    assert 0 < ordered.word_shift <= 1


def test_a_split_that_cannot_be_made_is_told(tokenizer: Any):
    result = audit(small_set(), tokenizer, make_config(split="800_100_100"))
    assert result.leakage == ()
    assert set(result.question_words) == {"all"}
    assert "can't be made: data.split=800_100_100: asks for 1,000 rows" in page(result)


def test_dictionary_is_json(result: Audit):
    loaded = json.loads(json.dumps(result.to_dict()))
    assert loaded["dropped"][0] == {"where": "t.csv row 0", "reason": "no summary"}
    assert loaded["leakage"][0]["name"] == "this split"


def test_page_fits_80_columns(result: Audit):
    text = page(result)
    assert max(map(len, text.splitlines())) <= 80
    for part in ("t.csv row 0: no summary", "and 2 more", "█", "Leakage", "<- limit", "100.0%"):
        assert part in text
    assert "\x1b" not in text


def test_page_in_ascii(result: Audit):
    assert "####" in page(result, encoding="ascii")


@needs_official
def test_official_audit(tokenizer: Any):
    data = make_config("meqsum", path=str(OFFICIAL))
    result = audit(load_rows(data), tokenizer, data)
    assert (result.rows, result.distinct_summaries, result.exact_duplicates) == (1000, 994, 0)
    assert len(result.near_duplicates) == 2
    ours, ordered, shuffled = result.leakage
    assert (ours.near_pairs, ours.summary_pairs, ours.test_rows) == (0, 0, 0)
    assert ordered.summary_pairs > 0
    assert ours.word_shift < 0.03 < shuffled.word_shift < ordered.word_shift
    assert max(map(len, page(result).splitlines())) <= 80
