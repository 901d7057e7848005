"""The pretraining tasks: pairs of an instructed text and its answer, in a fixed mixture.

None of the instructions is the one that the demo uses, no answer is worded as its summaries.
"""

import random
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

from embedded import noise
from embedded.demo import summary_wording
from embedded.narrative import (
    INTENTS,
    PHRASES,
    Bank,
    Narrative,
    Style,
    common_words,
    compose,
    load_bank,
)
from embedded.terms import KINDS, PARTS, Finder, Terms, glosses, invent, partition

Pair = tuple[str, str]
LOOSE = 0.7  # share of loosely worded sentences
INVENTED = 0.4  # share of the terms that do not exist
FORMS = ("labels", "headings", "requests", "queries")


@dataclass(frozen=True)
class Material:
    """What the texts of one part (pretrain or dev) are made from."""

    bank: Bank
    terms: Terms
    glosses: list[str]
    targets: dict[str, dict[str, list[str]]]  # intent -> form -> wordings
    held_out: Finder  # finds terms of the other parts, which typos or invention may hit


@cache
def material(part: str) -> Material:
    """Returns the material of "pretrain" or "dev"; glosses serve as further filler sentences."""
    common = common_words()
    lines = glosses(part, common)
    plain = [line for line in lines if 20 <= len(line) <= 110 and not set("{}()|") & set(line)]
    bank = load_bank(part)
    mixed = bank.fillers * max(1, len(plain) // (2 * len(bank.fillers))) + plain
    targets = tomllib.loads((PHRASES / "targets.toml").read_text(encoding="utf-8"))
    parts = partition(common)
    held_out = Finder([t for p in PARTS if p != part for ts in parts[p].values() for t in ts])
    return Material(replace(bank, fillers=mixed), parts[part], lines, targets, held_out)


class Tasks:
    """Draws pretraining pairs.

    Args:
        rng: the source of all randomness.
        stuff: the material.
        long: whether texts have their full length; short ones come first in pretraining.
    """

    def __init__(self, rng: random.Random, stuff: Material, long: bool) -> None:
        self.rng, self.stuff, self.long = rng, stuff, long
        mixture = LONG if long else SHORT
        self._names, self._weights = list(mixture), list(mixture.values())

    def pair(self) -> Pair:
        """Returns the next pair, free of held-out terms and of the summaries' wordings."""
        while True:
            name = self.rng.choices(self._names, self._weights)[0]
            source, target = getattr(self, name)()
            text = f"{source} . {target}"
            if not self.stuff.held_out(text) and not summary_wording(text):
                return source, target

    def denoise(self) -> Pair:
        """Spans replaced by sentinels -> the spans, as T5 was pretrained."""
        rng = self.rng
        text = self._narrative().text if rng.random() < 0.3 else self._passage()
        return corrupt(rng, text)

    def focus(self) -> Pair:
        """A text -> the term it is about."""
        story = self._narrative()
        return self._told(["focus", "subject of the letter", "which term", "about"], story.text), (
            story.focus
        )

    def label(self) -> Pair:
        """A text -> what the writer wants, in a word or two."""
        story = self._narrative()
        return self._told(["wish", "category", "what is wanted", "label"], story.text), (
            self._put(story, "labels")
        )

    def tag(self) -> Pair:
        """A text -> label and term."""
        story = self._narrative()
        label = self._put(story, "labels")
        if self.rng.random() < 0.5:
            return self._told(["tag", "index entry"], story.text), f"{label} | {story.focus}"
        return self._told(["file under", "keywords"], story.text), f"{story.focus}: {label}"

    def heading(self) -> Pair:
        """A text -> a heading."""
        story = self._narrative()
        return self._told(["heading", "title", "headline"], story.text), (
            self._put(story, "headings")
        )

    def request(self) -> Pair:
        """A text -> the wish as a request."""
        story = self._narrative()
        return self._told(["request", "put it as an order"], story.text), (
            self._put(story, "requests")
        )

    def query(self) -> Pair:
        """A text -> the wish as a short query."""
        story = self._narrative()
        return self._told(["query", "search for", "ask in brief"], story.text), (
            self._put(story, "queries")
        )

    def quote(self) -> Pair:
        """A text -> its asking sentence, with the typos mended."""
        story = self._narrative()
        return self._told(["quote", "asking sentence"], story.text), story.ask

    def others(self) -> Pair:
        """A text -> the terms that it mentions on the side."""
        story = self._narrative()
        answer = ", ".join(dict.fromkeys(story.others)) or "none"
        return self._told(["side terms", "also mentioned"], story.text), answer

    def first(self) -> Pair:
        """A text -> its first or last words."""
        text = " ".join(self._narrative().text.split())
        words = text.split(" ")
        count = self.rng.randint(4, 12)
        if self.rng.random() < 0.6:
            return self._told(["beginning", "first words"], text), " ".join(words[:count])
        return self._told(["ending", "last words"], text), " ".join(words[-count:])

    def after(self) -> Pair:
        """A text and one of its words -> the words that follow."""
        words = self._passage().split()
        unique = [i for i, word in enumerate(words[:-1]) if words.count(word) == 1]
        if not unique:
            return self.copy()
        i = self.rng.choice(unique)
        return f"after {words[i]}: {' '.join(words)}", " ".join(words[i + 1 : i + 7])

    def copy(self) -> Pair:
        """Words -> the same words."""
        rng = self.rng
        terms = [self._draw(rng.choice(KINDS)) for _ in range(rng.randint(1, 4))]
        text = " ".join(terms) if rng.random() < 0.7 else rng.choice(self.stuff.glosses)
        return f"repeat: {text}", text

    def ask(self) -> Pair:
        """Label and term -> a wording, or a wording -> label and term."""
        rng = self.rng
        intent = rng.choice(list(INTENTS))
        term = self._draw(INTENTS[intent])
        forms = self.stuff.targets[intent]
        label = rng.choice(forms["labels"])
        form = rng.choice(FORMS[1:])
        wording = rng.choice(forms[form]).format(x=term)
        entry = f"{label} | {term}"
        if form == "headings" and rng.random() < 0.3:
            return f"tag: {wording}", entry
        return f"{form[:-1].replace('querie', 'query')}: {entry}", wording

    def _narrative(self) -> Narrative:
        rng = self.rng
        style = Style(
            fillers=rng.choice(((0, 2), (1, 4), (2, 6))) if self.long else (0, 1),
            header=0.35 if self.long else 0.1,
            typos=rng.choice((0.0, 0.03, 0.08)),
            sloppiness=rng.choice((0.1, 0.3, 0.6)),
            loose=LOOSE,
        )
        intent = rng.choice(list(INTENTS))
        return compose(rng, self.stuff.bank, self._draw, intent, style)

    def _passage(self) -> str:
        rng = self.rng
        count = rng.randint(1, 6) if self.long else 1
        return noise.join(rng, [rng.choice(self.stuff.glosses) for _ in range(count)])

    def _draw(self, kind: str) -> str:
        if self.rng.random() < INVENTED:
            return invent(self.rng, kind)
        return self.rng.choice(self.stuff.terms[kind])

    def _told(self, instructions: list[str], text: str) -> str:
        return f"{self.rng.choice(instructions)}: {text}"

    def _put(self, story: Narrative, form: str) -> str:
        wordings = self.stuff.targets[story.intent][form]
        return self.rng.choice(wordings).format(x=story.focus)


SHORT = {
    "ask": 25, "copy": 15, "focus": 14, "denoise": 12, "after": 8, "tag": 7, "query": 5,
    "heading": 5, "request": 4, "label": 3, "quote": 2,
}  # fmt: skip
LONG = {
    "denoise": 7, "focus": 16, "query": 16, "tag": 11, "heading": 10, "request": 9, "label": 9,
    "quote": 6, "ask": 6, "first": 3, "after": 3, "others": 2, "copy": 2,
}  # fmt: skip


def corrupt(rng: random.Random, text: str, share: float = 0.2) -> Pair:
    """Replaces spans of one to four words by sentinels.

    >>> corrupt(random.Random(1), "one two three four five six")
    ('one <extra_id_0> three four five six', '<extra_id_0> two <extra_id_1>')
    """
    words = re.split(r"\s+", text.strip())
    source: list[str] = []
    target: list[str] = []
    sentinel, i = 0, 0
    start = rng.randrange(len(words))  # at least one span, wherever
    while i < len(words):
        if sentinel < 30 and (i == start or rng.random() < share / 2.5):
            span = rng.randint(1, 4)
            source.append(f"<extra_id_{sentinel}>")
            target += [f"<extra_id_{sentinel}>", *words[i : i + span]]
            sentinel, i = sentinel + 1, i + span
            if start == i:  # two spans in a row would be one
                start = -1
        else:
            source.append(words[i])
            i += 1
    if not sentinel:
        source[-1:], target = ["<extra_id_0>"], ["<extra_id_0>", words[-1]]
        sentinel = 1
    return " ".join(source), " ".join([*target, f"<extra_id_{sentinel}>"])


def stream(seed: int | str, part: str, long: bool) -> Callable[[], Pair]:
    """Returns a function that draws pairs, for "pretrain" or "dev"."""
    return Tasks(random.Random(f"{seed}/{part}/{long}"), material(part), long).pair
