"""Tokens: the end token survives, labels have no padding, a cache is only ever a convenience."""

from pathlib import Path
from typing import Any

import pytest

from meqsum_lightning.data import tokens as module
from meqsum_lightning.data.rows import Row
from meqsum_lightning.data.tokens import (
    default_cache_dir,
    token_lengths,
    tokenize_rows,
    tokens_fingerprint,
)
from tests.data.conftest import ROOT, make_config

ROWS = (
    Row("1", "w1 w2", "a b"),
    Row("2", " ".join(f"w{n}" for n in range(30)), "a " * 20),
    Row("3", "w3", None),
)


def config(**changes: Any) -> Any:
    return make_config(
        **({"prompt": "summarize: ", "max_source_length": 12, "max_target_length": 6} | changes)
    )


def test_prompt_end_token_and_truncation(tokenizer: Any):
    result = tokenize_rows(ROWS, tokenizer, config())
    words = tokenizer.convert_ids_to_tokens
    assert result.ids == ("1", "2", "3")
    assert words(result.source[0]) == ["summarize", ":", "w1", "w2", "</s>"]
    assert words(result.source[1]) == ["summarize", ":", *(f"w{n}" for n in range(9)), "</s>"]
    assert words(result.target[0]) == ["a", "b", "</s>"]
    assert words(result.target[1]) == ["a"] * 5 + ["</s>"]
    assert result.target[2] == []
    assert (result.truncated_sources, result.truncated_targets) == (1, 1)


def test_a_row_of_exactly_the_limit_is_not_cut(tokenizer: Any):
    result = tokenize_rows([Row("1", "w1 " * 9, "a " * 5)], tokenizer, config())
    assert (len(result.source[0]), len(result.target[0])) == (12, 6)
    assert (result.truncated_sources, result.truncated_targets) == (0, 0)


def test_layout_with_a_start_token(bart_tokenizer: Any):
    result = tokenize_rows(ROWS, bart_tokenizer, config(prompt=""))
    for ids in [*result.source, *result.target[:2]]:
        words = bart_tokenizer.convert_ids_to_tokens(ids)
        assert (words[0], words[-1]) == ("<s>", "</s>")
    assert len(result.source[1]) == 12


def test_special_tokens_spelled_out_are_text(tokenizer: Any):
    result = tokenize_rows([Row("1", "a </s> b <pad>", "a </s> b")], tokenizer, config())
    for ids in (result.source[0], result.target[0]):
        assert ids.count(tokenizer.eos_token_id) == 1
        assert tokenizer.pad_token_id not in ids


def test_no_rows(tokenizer: Any):
    assert tokenize_rows([], tokenizer, config()).source == []


def test_embedded_tokenizer_keeps_the_end_token():
    from transformers import AutoTokenizer

    folder = ROOT / "meqsum_lightning" / "assets" / "tiny_t5"
    embedded = AutoTokenizer.from_pretrained(folder)
    rows = [Row("1", "how long does the flu last " * 9, "how long does the flu last " * 9)]
    result = tokenize_rows(rows, embedded, config(max_source_length=8, max_target_length=4))
    assert (len(result.source[0]), len(result.target[0])) == (8, 4)
    assert {result.source[0][-1], result.target[0][-1]} == {embedded.eos_token_id}
    assert token_lengths(["w1"], embedded) == [len(embedded("w1").input_ids)]


# -- cache ----------------------------------------------------------------------------------------


def cached_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each call of a tokenizer."""
    made: list[int] = []
    real = module._call

    def counted(*args: Any, **kwargs: Any) -> Any:
        made.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "_call", counted)
    return made


def test_second_call_reads_the_cache(tokenizer: Any, calls: list[int], cache_folder: Path):
    first = tokenize_rows(ROWS, tokenizer, config())
    made = len(calls)
    assert tokenize_rows(ROWS, tokenizer, config()) == first
    assert len(calls) == made > 0
    assert [path.suffix for path in cached_files(cache_folder)] == [".npz"]


def test_cache_in_a_given_folder(tokenizer: Any, tmp_path: Path, cache_folder: Path):
    tokenize_rows(ROWS, tokenizer, config(), tmp_path / "own")
    assert len(cached_files(tmp_path / "own")) == 1
    assert cached_files(cache_folder) == []


def test_no_cache(tokenizer: Any, cache_folder: Path):
    tokenize_rows(ROWS, tokenizer, config(cache=False))
    assert cached_files(cache_folder) == []


@pytest.mark.parametrize("damage", ["empty", "half", "foreign", "renamed"])
def test_damaged_cache_is_made_again(
    tokenizer: Any, calls: list[int], cache_folder: Path, damage: str
):
    first = tokenize_rows(ROWS, tokenizer, config())
    (file,) = cached_files(cache_folder)
    whole = file.read_bytes()
    if damage == "renamed":
        other = tokens_fingerprint(ROWS, tokenizer, config(prompt="a"))
        file.rename(file.with_name(f"{other}.npz"))
        assert tokenize_rows(ROWS, tokenizer, config(prompt="a")).source != first.source
        return
    file.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "foreign": b"no"}[damage])
    made = len(calls)
    assert tokenize_rows(ROWS, tokenizer, config()) == first
    assert len(calls) > made
    assert tokenize_rows(ROWS, tokenizer, config()) == first


def test_a_folder_that_cannot_be_written(tokenizer: Any, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    result = tokenize_rows(ROWS, tokenizer, config(), tmp_path / "file")
    assert len(result.source) == 3


def test_key_covers_all_that_tokens_depend_on(tokenizer: Any, bart_tokenizer: Any):
    changed = [
        tokens_fingerprint(ROWS, tokenizer, config()),
        tokens_fingerprint(ROWS[:2], tokenizer, config()),
        tokens_fingerprint(ROWS[::-1], tokenizer, config()),
        tokens_fingerprint(ROWS, bart_tokenizer, config()),
        tokens_fingerprint(ROWS, tokenizer, config(prompt="")),
        tokens_fingerprint(ROWS, tokenizer, config(max_source_length=13)),
        tokens_fingerprint(ROWS, tokenizer, config(max_target_length=7)),
        tokens_fingerprint(ROWS, tokenizer, config(clean=["blanks"])),
    ]
    assert len(set(changed)) == len(changed)


def test_key_does_not_depend_on_earlier_calls(tokenizer: Any):
    before = tokens_fingerprint(ROWS, tokenizer, config())
    tokenizer(["w1 w2 w3", "w1"], truncation=True, max_length=2, padding=True)
    assert tokens_fingerprint(ROWS, tokenizer, config()) == before


def test_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("MEQSUM_CACHE", "~/mine")
    assert default_cache_dir() == Path.home() / "mine"
    monkeypatch.delenv("MEQSUM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    assert default_cache_dir() == tmp_path / "meqsum-lightning"
    monkeypatch.setattr("sys.platform", "darwin")
    assert default_cache_dir() == Path.home() / "Library" / "Caches" / "meqsum-lightning"
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert default_cache_dir() == tmp_path / "local" / "meqsum-lightning"
