"""Writes one consumer health question from a bank of sentence templates and a set of terms.

Demo questions and pretraining texts share this composer, never a template or a term.
"""

import random
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from embedded import loose, noise
from embedded.terms import Terms

PHRASES = Path(__file__).parent / "phrases"
CHOICE = re.compile(r"\(([^()]*\|[^()]*)\)")
SLOT = re.compile(r"\{(\w+)\}")
PEOPLE = [
    "mother", "father", "son", "daughter", "wife", "husband", "sister", "brother", "cousin",
    "friend", "neighbor",
]  # fmt: skip
TIMES = ["two days", "three weeks", "a month", "six months", "a year", "5 years", "10 days"]

INTENTS_BY_KIND = {  # kind of the focus -> what may be asked about it
    "condition": [
        "treatment", "cause", "symptoms", "diagnosis", "prevention", "inheritance", "prognosis",
        "contagion", "diet", "specialist", "complications", "research", "information", "support",
    ],
    "drug": [
        "side_effects", "dosage", "ingredients", "pregnancy", "alcohol", "alternatives",
        "mechanism", "storage",
    ],
    "procedure": ["recovery", "risks", "preparation", "cost"],
}  # fmt: skip
INTENTS = {intent: kind for kind, intents in INTENTS_BY_KIND.items() for intent in intents}


@dataclass(frozen=True)
class Bank:
    """The sentence templates of one split.

    Attributes:
        subjects: what may stand after `SUBJECT:`.
        background: kind -> sentences that introduce the focus term.
        ask: intent -> sentences that ask; those without `{x}` need a background sentence.
    """

    subjects: list[str]
    greetings: list[str]
    closers: list[str]
    fillers: list[str]
    background: dict[str, list[str]]
    ask: dict[str, list[str]]

    def templates(self) -> list[str]:
        """Returns every template of the bank."""
        nested = [*self.background.values(), *self.ask.values()]
        flat = [self.subjects, self.greetings, self.closers, self.fillers, *nested]
        return [template for group in flat for template in group]


@dataclass(frozen=True)
class Style:
    """How long and how untidy the texts are."""

    fillers: tuple[int, int] = (0, 3)
    header: float = 0.35
    typos: float = 0.03
    sloppiness: float = 0.25
    loose: float = 0.0  # share of loosely worded sentences about the focus, for pretraining


@dataclass(frozen=True)
class Narrative:
    """One question with what it is about."""

    text: str
    focus: str
    intent: str
    ask: str  # the asking sentence, clean
    others: tuple[str, ...]  # further terms in the text


@cache
def load_bank(name: str) -> Bank:
    """Reads `phrases/NAME.toml`."""
    with (PHRASES / f"{name}.toml").open("rb") as file:
        return Bank(**tomllib.load(file))


@cache
def common_words() -> frozenset[str]:
    """Returns all words of all templates: no term may consist of them alone."""
    text = " ".join(path.read_text(encoding="utf-8") for path in sorted(PHRASES.glob("*.toml")))
    words = {*re.findall(r"[a-z0-9]+", text.lower()), *PEOPLE}
    return frozenset(words | {word.removesuffix("s") for word in words})


def compose(
    rng: random.Random, bank: Bank, draw: Callable[[str], str], intent: str, style: Style
) -> Narrative:
    """Writes a narrative.

    Args:
        rng: the source of all randomness.
        bank: the templates.
        draw: returns a new term of a kind.
        intent: what is asked.
        style: length and noise.
    """
    kind = INTENTS[intent]
    slots = _Slots(rng, draw, draw(kind))
    template = rng.choice(bank.ask[intent])
    if style.loose and rng.random() < style.loose:
        template = loose.ask(rng, template, intent)
    ask = slots.fill(template)
    opening = [slots.fill(f) for f in _sample(rng, bank.fillers, rng.randint(*style.fillers))]
    if "{x}" not in template or rng.random() < 0.7:
        position = rng.randint(0, len(opening))
        background = rng.choice(bank.background[kind])
        if style.loose and rng.random() < style.loose:
            background = loose.background(rng, background, bank.fillers)
        opening.insert(position, slots.fill(background))
    asking = [ask]
    if rng.random() < 0.15:
        asking.append(slots.fill(rng.choice(bank.fillers)))
    sentences = [*opening, *asking]
    if rng.random() < 0.15 and "{x}" in template:  # the question comes first
        sentences = [*asking, *opening]
    if rng.random() < 0.35:
        sentences.insert(0, slots.fill(rng.choice(bank.greetings)))
    if rng.random() < 0.45:
        sentences.append(slots.fill(rng.choice(bank.closers)))
    keep = set(slots.focus.split(" "))
    rough = [
        noise.dress(rng, noise.roughen(rng, s, style.typos, keep), style.sloppiness)
        for s in sentences
    ]
    text = noise.join(rng, rough)
    if rng.random() < style.header:
        subject = noise.dress(rng, slots.fill(rng.choice(bank.subjects)), 0.3)
        text = f"SUBJECT: {subject}\nMESSAGE: {text}"
    return Narrative(text, slots.focus, intent, ask, tuple(slots.others))


def drawer(rng: random.Random, terms: Terms) -> Callable[[str], str]:
    """Returns a function that draws a term of a kind at random."""
    return lambda kind: rng.choice(terms[kind])


class _Slots:
    """Fills the slots of the templates of one narrative, the same person throughout."""

    def __init__(self, rng: random.Random, draw: Callable[[str], str], focus: str) -> None:
        self.rng, self.draw, self.focus = rng, draw, focus
        self.person = rng.choice(PEOPLE)
        self.others: list[str] = []

    def fill(self, template: str) -> str:
        template = CHOICE.sub(lambda m: self.rng.choice(m[1].split("|")), template)
        return SLOT.sub(lambda m: self._value(m[1]), template)

    def _value(self, slot: str) -> str:
        match slot:
            case "x":
                return self.focus
            case "c" | "d" | "p":
                kind = {"c": "condition", "d": "drug", "p": "part"}[slot]
                self.others.append(self.draw(kind))
                return self.others[-1]
            case "who":
                return f"my {self.person}"
            case "who_short":
                return self.person
            case "age":
                return str(self.rng.randint(3, 89))
            case "n":
                return str(self.rng.randint(90, 320))
            case "time":
                return self.rng.choice(TIMES)
        raise KeyError(f"unknown slot {{{slot}}}")


def _sample(rng: random.Random, items: list[str], count: int) -> list[str]:
    return rng.sample(items, min(count, len(items)))
