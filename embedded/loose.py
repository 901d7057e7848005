"""Words pretraining sentences loosely, so that the model heeds words rather than templates.

A model that sees a few hundred fixed sentences learns them by heart and reads nothing else.
"""

import random
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

PIECES = Path(__file__).parent / "phrases" / "loose.toml"


def ask(rng: random.Random, template: str, intent: str) -> str:
    """Returns the template with additions or lost words, or keywords among small words."""
    if rng.random() < 0.5:
        keyword = rng.choice(_pieces()["keywords"][intent])
        focus = rng.choice(("{x}", "{x}", "{x}", "it"))
        parts = [keyword, focus] if rng.random() < 0.7 else [focus, keyword]
        words = [*_glue(rng, 0, 4), parts[0], *_glue(rng, 0, 2), parts[1], *_glue(rng, 0, 1)]
        sentence = " ".join(words) + rng.choice("??.")
    else:
        sentence = _perturb(rng, template, 0.12)
    if rng.random() < 0.4:
        sentence = f"{rng.choice(_pieces()['before'])} {sentence}"
    if rng.random() < 0.25:
        sentence = f"{sentence[:-1]} {rng.choice(_pieces()['after'])}{sentence[-1]}"
    return sentence


def background(rng: random.Random, template: str, others: list[str]) -> str:
    """Returns the template with changes, or the term among words from other sentences."""
    if rng.random() < 0.4:
        return _perturb(rng, template, 0.25)
    before = _fragment(rng, others)
    after = _fragment(rng, others) if rng.random() < 0.6 else ""
    link = rng.choice(_pieces()["context"])
    order = (before, link, "{x}", after) if rng.random() < 0.75 else ("{x}", link, after or before)
    return " ".join(part for part in order if part) + "."


@cache
def _pieces() -> dict[str, Any]:
    return tomllib.loads(PIECES.read_text(encoding="utf-8"))


def _glue(rng: random.Random, least: int, most: int) -> list[str]:
    return [rng.choice(_pieces()["glue"]) for _ in range(rng.randint(least, most))]


def _fragment(rng: random.Random, sentences: list[str]) -> str:
    words = [w for w in rng.choice(sentences).rstrip(".").split() if not set("{}()|") & set(w)]
    start = rng.randint(0, max(0, len(words) - 5))
    return " ".join(words[start : start + rng.randint(1, 5)])


def _perturb(rng: random.Random, template: str, rate: float) -> str:
    words = []
    for word in template.split(" "):
        if set("{}()|") & set(word) or rng.random() >= rate:
            words.append(word)
        elif rng.random() < 0.5:
            words += [rng.choice(_pieces()["glue"]), *([word] if rng.random() < 0.5 else [])]
    return " ".join(words)
