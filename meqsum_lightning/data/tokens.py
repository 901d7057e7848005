"""Questions and summaries as token ids, cut at the limits with the end token kept, cached on disk.

Padding and batches are `batching.py`; what the text is was settled in `sources.py`.
"""

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meqsum_lightning.config.schema import DataConfig
from meqsum_lightning.data.rows import Row
from meqsum_lightning.files import atomic_path

if TYPE_CHECKING:
    import numpy as np

# Part of each cache key: raised when what is stored, or how it is made, changes.
_VERSION = 1


@dataclass(frozen=True)
class TokenizedRows:
    """Token ids of rows, in their order, without padding.

    Attributes:
        ids: Row ids.
        source: Token ids of prompt and question, end token last; at most `max_source_length`.
        target: Token ids of the summary, end token last; at most `max_target_length`; empty where
            the row has no summary.
        truncated_sources: Rows whose question was cut.
        truncated_targets: Rows whose summary was cut.
    """

    ids: tuple[str, ...]
    source: list[list[int]]
    target: list[list[int]]
    truncated_sources: int
    truncated_targets: int


def tokenize_rows(
    rows: Sequence[Row], tokenizer: Any, data: DataConfig, cache_dir: Path | None = None
) -> TokenizedRows:
    """Tokenize rows, or read what an earlier call left in the cache.

    Special tokens spelled out in a text (`</s>`) are text. The end token survives truncation.

    Args:
        rows: Any rows.
        tokenizer: A transformers tokenizer.
        data: Validated configuration; `prompt`, the length limits and `cache` count.
        cache_dir: Folder of the cache; None: `default_cache_dir()`. With `data.cache=false`, or a
            folder that can't be written, nothing is kept.

    Returns:
        Token ids.
    """
    file: Path | None = None
    key = ""
    if data.cache and rows:
        key = tokens_fingerprint(rows, tokenizer, data)
        file = (cache_dir or default_cache_dir()) / "tokens" / f"{key}.npz"
        cached = _load(file, key, rows)
        if cached is not None:
            return cached
    source, cut_sources = _encode(
        [data.prompt + row.question for row in rows], tokenizer, data.max_source_length
    )
    known = [place for place, row in enumerate(rows) if row.summary is not None]
    encoded, cut_targets = _encode(
        [rows[place].summary or "" for place in known],
        tokenizer,
        data.max_target_length,
        target=True,
    )
    target: list[list[int]] = [[] for _ in rows]
    for place, ids in zip(known, encoded, strict=True):
        target[place] = ids
    tokens = TokenizedRows(tuple(row.id for row in rows), source, target, cut_sources, cut_targets)
    if file is not None:
        _save(tokens, file, key)
    return tokens


def tokens_fingerprint(rows: Sequence[Row], tokenizer: Any, data: DataConfig) -> str:
    """sha256 (hex) of all that token ids depend on: rows in order, tokenizer, prompt, limits."""
    digest = hashlib.sha256()
    settings = [
        _VERSION,
        data.prompt,
        data.max_source_length,
        data.max_target_length,
        sorted(data.clean),
    ]
    digest.update(json.dumps([*settings, tokenizer_fingerprint(tokenizer)]).encode())
    for row in rows:
        digest.update(json.dumps([row.id, row.question, row.summary]).encode())
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """sha256 (hex) of a tokenizer: vocabulary, rules and special tokens, wherever it "
    "was loaded from.
    """
    import tokenizers

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = json.loads(backend.to_str())
        # What the last call happened to set.
        content = {
            name: part for name, part in content.items() if name not in ("truncation", "padding")
        }
    else:
        content = {"vocab": tokenizer.get_vocab()}
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    sides = [
        getattr(tokenizer, "truncation_side", "right"),
        tokenizers.__version__,
        type(tokenizer).__name__,
    ]
    text = json.dumps([content, special, sides], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def default_cache_dir() -> Path:
    """The cache folder: `MEQSUM_CACHE` if set, else `meqsum-lightning` in the user's "
    "cache folder.
    """
    if own := os.environ.get("MEQSUM_CACHE"):
        return Path(own).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "meqsum-lightning"


def token_lengths(texts: Sequence[str], tokenizer: Any) -> list[int]:
    """Tokens of each text, end token included, uncut."""
    return [len(ids) for ids in _encode(texts, tokenizer, sys.maxsize)[0]]


def _encode(
    texts: Sequence[str], tokenizer: Any, limit: int, *, target: bool = False
) -> tuple[list[list[int]], int]:
    """Token ids of texts, and how many were cut at the limit."""
    if not texts:
        return [], 0
    full = _call(tokenizer, texts, target)
    long = [place for place, ids in enumerate(full) if len(ids) > limit]
    if long:
        # The tokenizer knows which special tokens its layout keeps at either end.
        cut = _call(
            tokenizer, [texts[place] for place in long], target, truncation=True, max_length=limit
        )
        for place, ids in zip(long, cut, strict=True):
            full[place] = ids
    return full, len(long)


def _call(tokenizer: Any, texts: Sequence[str], target: bool, **options: Any) -> list[list[int]]:
    name = "text_target" if target else "text"
    encoded = tokenizer(**{name: list(texts)}, split_special_tokens=True, verbose=False, **options)
    return [list(ids) for ids in encoded["input_ids"]]


# -- cache --------------------------------------------------------------------------------------


def _save(tokens: TokenizedRows, file: Path, key: str) -> None:
    import numpy as np

    counts = np.array([tokens.truncated_sources, tokens.truncated_targets], dtype=np.int64)
    arrays = {**_flat("source", tokens.source), **_flat("target", tokens.target), "cut": counts}
    try:
        with atomic_path(file) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, key=np.array(key), **arrays)
    except OSError:
        pass  # a cache is a convenience: the tokens are there


def _load(file: Path, key: str, rows: Sequence[Row]) -> TokenizedRows | None:
    """What the cache holds; None if it holds nothing or nothing whole."""
    import numpy as np

    try:
        with np.load(file, allow_pickle=False) as stored:
            if str(stored["key"]) != key:
                return None
            source = _unflat(stored["source"], stored["source_ends"])
            target = _unflat(stored["target"], stored["target_ends"])
            cut_sources, cut_targets = (int(count) for count in stored["cut"])
    # A truncated or foreign file fails as any of zipfile's and numpy's errors; it is made again.
    except Exception:  # noqa: BLE001
        return None
    if len(source) != len(rows) or len(target) != len(rows):
        return None
    return TokenizedRows(tuple(row.id for row in rows), source, target, cut_sources, cut_targets)


def _flat(name: str, lists: list[list[int]]) -> dict[str, "np.ndarray"]:
    import numpy as np

    ends = np.cumsum([len(ids) for ids in lists], dtype=np.int64)
    return {name: np.array([i for ids in lists for i in ids], dtype=np.int32), f"{name}_ends": ends}


def _unflat(flat: "np.ndarray", ends: "np.ndarray") -> list[list[int]]:
    values, starts = flat.tolist(), [0, *ends.tolist()]
    if starts[-1] != len(values):
        raise ValueError("the lengths don't match the tokens")
    return [values[start:end] for start, end in pairwise(starts)]
