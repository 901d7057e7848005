"""Configurations from the shipped defaults, small sets of rows, and a cache of their own."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from meqsum_lightning.config.schema import DataConfig
from meqsum_lightning.data.rows import Row, RowSet, rows_fingerprint

ROOT = Path(__file__).parents[2]
OFFICIAL = (
    ROOT.parent / "shared" / "data" / "meqsum" / "MeQSum_ACL2019_BenAbacha_Demner-Fushman.xlsx"
)
needs_official = pytest.mark.skipif(not OFFICIAL.exists(), reason="the official file is not here")

MakeConfig = Callable[..., DataConfig]


def make_config(source: str = "files", **changes: Any) -> DataConfig:
    """The defaults of `conf/data`, with changes."""
    values: dict[str, Any] = {}
    for name in ("base", source):
        values |= yaml.safe_load((ROOT / "conf" / "data" / f"{name}.yaml").read_text())
    values.pop("defaults")
    return DataConfig.model_validate(values | changes)


def make_rows(pairs: Sequence[tuple[str, str | None]], splits: Sequence[str] = ()) -> RowSet:
    """Rows with the ids r0, r1, …"""
    homes = splits or [None] * len(pairs)
    rows = tuple(
        Row(f"r{at}", question, summary, home)
        for at, ((question, summary), home) in enumerate(zip(pairs, homes, strict=True))
    )
    return RowSet(rows, (), "test rows", rows_fingerprint(rows))


def distinct_rows(count: int) -> RowSet:
    """Rows that resemble one another in nothing."""
    starts = ("What", "How", "Is", "Can", "Where")
    return make_rows(
        [
            (
                f"alpha{n} beta{n} gamma{n} delta{n} please",
                f"{starts[n % 5]} treats alpha{n} in beta{n}?",
            )
            for n in range(count)
        ]
    )


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("MEQSUM_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A small tokenizer with T5's layout: the end token last."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=_word_level(("$A </s>", "$A </s> $B </s>")),
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )


@pytest.fixture(scope="session")
def bart_tokenizer() -> Any:
    """The same with BART's layout: a start token too."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=_word_level(("<s> $A </s>", "<s> $A </s> </s> $B </s>")),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )


def _word_level(layout: tuple[str, str]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<pad>", "</s>", "<unk>", "<s>", "summarize", ":", "<", ">", "/", "s", "a", "b", "c"]
    words += [f"w{n}" for n in range(40)]
    tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=layout[0], pair=layout[1], special_tokens=[("</s>", 1), ("<s>", 3)]
    )
    return tokenizer
