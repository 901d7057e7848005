"""Asserts that nothing of the demo's test leaked, and that sizes are as promised.

Run it as `python -m embedded.check [meqsum_lightning/assets]`.
"""

import argparse
import csv
import re
import string
from itertools import combinations
from pathlib import Path

from transformers import AutoTokenizer

from embedded import demo, tasks
from embedded.evaluate import INSTRUCTION
from embedded.narrative import INTENTS, PHRASES, common_words, load_bank
from embedded.terms import PARTS, Finder, glosses, partition

MEGABYTE = 1_000_000
BANKS = {"pretrain": "pretrain", "dev": "dev", **{s: f"demo_{s}" for s in demo.SIZES}}
SAMPLE = 20_000  # pretraining pairs drawn for the check


def check_terms() -> str:
    """No term of one part occurs, as whole words, in a term of another."""
    parts = partition(common_words())
    flat = {part: [t for terms in parts[part].values() for t in terms] for part in PARTS}
    for a, b in combinations(flat, 2):
        for left, right in ((a, b), (b, a)):
            found = [t for t in flat[left] if Finder(flat[right])(t)]
            assert not found, f"terms of {right} inside terms of {left}: {found[:5]}"
    return ", ".join(f"{part} {len(terms)}" for part, terms in flat.items()) + " terms"


def check_templates() -> str:
    """No two banks share a template, every bank asks for every intent, no odd long overlap."""
    banks = {part: load_bank(name) for part, name in BANKS.items()}
    plain = {part: {_plain(t) for t in bank.templates()} for part, bank in banks.items()}
    for a, b in combinations(plain, 2):
        shared = {t for t in plain[a] & plain[b] if t}
        assert not shared, f"{a} and {b} share templates: {sorted(shared)[:5]}"
    for part, bank in banks.items():
        assert set(bank.ask) == set(INTENTS), f"{part} lacks intents"
        bare = [t for t in bank.templates() if set(re.findall(r"\{(\w+)\}", t)) - SLOTS]
        assert not bare, f"{part} has unknown slots: {bare[:3]}"
    return ", ".join(f"{part} {len(templates)}" for part, templates in plain.items()) + " templates"


def check_pretraining() -> str:
    """Pretraining texts hold no demo term, no summary wording and not the demo's instruction."""
    parts = partition(common_words())
    held = Finder([t for p in demo.SIZES for terms in parts[p].values() for t in terms])
    for long in (False, True):
        draw = tasks.stream("check", "pretrain", long)
        for _ in range(SAMPLE // 2):
            source, target = draw()
            assert INSTRUCTION.strip(" :").lower() not in source.lower(), source
            for text in (source, target):
                assert not (found := held(text)), f"demo terms {found} in {text!r}"
                wording = demo.summary_wording(text)
                assert wording is None, f"a summary's wording {wording!r} in {text!r}"
    dev = set(glosses("dev", common_words())) & set(glosses("pretrain", common_words()))
    assert not dev, "development glosses in pretraining"
    return f"{SAMPLE} pretraining pairs without demo terms or summary wordings"


def check_questions(folder: Path) -> str:
    """The CSV is what the generator writes; no near-duplicates, above all not across splits."""
    with (folder / "demo" / "questions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == demo.questions(), "questions.csv is not what embedded.demo writes"
    assert len({row["id"] for row in rows}) == len(rows)
    for split, size in demo.SIZES.items():
        assert sum(row["split"] == split for row in rows) == size
    for row in rows:
        assert row["focus"] in row["summary"]
        assert row["focus"] in row["question"].lower(), f"{row['id']} lacks its focus"
    by_split = {s: {r["focus"] for r in rows if r["split"] == s} for s in demo.SIZES}
    for a, b in combinations(by_split, 2):
        assert not by_split[a] & by_split[b], f"{a} and {b} share focus terms"
    assert len(by_split["test"]) >= 90, "the test repeats focus terms"
    grams = [(row, _trigrams(row["question"])) for row in rows]
    worst = {True: 0.0, False: 0.0}  # across splits, within one
    for (left, one), (right, other) in combinations(grams, 2):
        across = left["split"] != right["split"]
        worst[across] = max(worst[across], len(one & other) / len(one | other))
    assert worst[True] < 0.3, f"near-duplicates across splits: {worst[True]:.2f}"
    assert worst[False] < 0.75, f"near-duplicates within a split: {worst[False]:.2f}"
    return f"highest trigram overlap {worst[True]:.2f} across, {worst[False]:.2f} within splits"


def check_files(folder: Path) -> str:
    """The model folder is complete and small, and the tokenizer takes every printable ASCII."""
    model = folder / "tiny_t5"
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert (model / name).is_file(), f"{name} is missing"
    size = sum(path.stat().st_size for path in model.iterdir())
    assert size <= 10 * MEGABYTE, f"{model} has {size} bytes"
    tokenizer = AutoTokenizer.from_pretrained(model)
    for character in string.printable:
        assert tokenizer.unk_token_id not in tokenizer(character).input_ids, repr(character)
    assert tokenizer("pain").input_ids[-1] == tokenizer.eos_token_id
    lengths = sorted(len(tokenizer(INSTRUCTION + r["question"]).input_ids) for r in _rows(folder))
    assert lengths[-1] <= 192, f"a demo question has {lengths[-1]} tokens"
    return f"model folder {size / MEGABYTE:.2f} MB, questions up to {lengths[-1]} tokens"


SLOTS = {"x", "c", "d", "p", "who", "who_short", "age", "n", "time"}


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "demo" / "questions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", re.sub(r"\{\w+\}", "_", text).lower()))


def _trigrams(text: str) -> set[tuple[str, ...]]:
    words = _plain(text).split()
    return set(zip(words, words[1:], words[2:], strict=False))


def main() -> None:
    """Runs all checks and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("meqsum_lightning/assets"))
    folder = parser.parse_args().folder
    assert PHRASES.is_dir()
    print("terms:", check_terms())
    print("templates:", check_templates())
    print("pretraining:", check_pretraining())
    print("questions:", check_questions(folder))
    print("files:", check_files(folder))


if __name__ == "__main__":
    main()
