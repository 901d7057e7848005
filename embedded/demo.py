"""Writes the demo questions: 400 for training, 100 for validation, 100 for the test."""

import csv
import random
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

from embedded.narrative import INTENTS, Style, common_words, compose, load_bank
from embedded.terms import Terms, partition

SIZES = {"train": 400, "val": 100, "test": 100}
MAX_CHARACTERS = 640
SUMMARIES = {
    "treatment": "What are the treatments for {x}?",
    "cause": "What causes {x}?",
    "symptoms": "What are the symptoms of {x}?",
    "diagnosis": "How is {x} diagnosed?",
    "prevention": "How can {x} be prevented?",
    "inheritance": "Is {x} inherited?",
    "prognosis": "What is the outlook for {x}?",
    "contagion": "Is {x} contagious?",
    "diet": "What diet is recommended for {x}?",
    "specialist": "Which doctors specialize in {x}?",
    "complications": "What are the complications of {x}?",
    "research": "What research is being done on {x}?",
    "information": "Where can I find information about {x}?",
    "support": "Are there support groups for {x}?",
    "side_effects": "What are the side effects of {x}?",
    "dosage": "What is the recommended dose of {x}?",
    "ingredients": "What are the ingredients of {x}?",
    "pregnancy": "Is it safe to take {x} during pregnancy?",
    "alcohol": "Can {x} be taken with alcohol?",
    "alternatives": "What are the alternatives to {x}?",
    "mechanism": "How does {x} work?",
    "storage": "How should {x} be stored?",
    "recovery": "How long does recovery from {x} take?",
    "risks": "What are the risks of {x}?",
    "preparation": "How should I prepare for {x}?",
    "cost": "How much does {x} cost?",
}
LICENSE = """The demo questions (questions.csv) are synthetic: a program wrote them, no patient did.
They are dedicated to the public domain under CC0 1.0 Universal,
https://creativecommons.org/publicdomain/zero/1.0/
Medical terms were chosen from WordNet 3.0, Copyright 2006 by Princeton University. All rights
reserved. Its licence lies in the source repository: embedded/lexicon/WORDNET-LICENSE.txt.
"""

Row = dict[str, str]


def questions(seed: int = 2019) -> list[Row]:
    """Returns the rows of `questions.csv`: id, split, question, summary, focus, intent."""
    rows: list[Row] = []
    for split, size in SIZES.items():
        rng = random.Random(f"{seed}/{split}")
        bank, terms = load_bank(f"demo_{split}"), partition(common_words())[split]
        draw = _without_repeats(rng, terms)
        intents = [list(INTENTS)[i % len(INTENTS)] for i in range(size)]
        rng.shuffle(intents)
        for intent in intents:
            while True:
                narrative = compose(rng, bank, draw, intent, Style(fillers=(1, 4)))
                if len(narrative.text) <= MAX_CHARACTERS:
                    break
            summary = SUMMARIES[intent].format(x=narrative.focus)
            row = {"id": f"demo-{len(rows) + 1:04}", "split": split, "question": narrative.text}
            rows.append({**row, "summary": summary, "focus": narrative.focus, "intent": intent})
    return rows


def summary_wording(text: str) -> str | None:
    """Returns the first wording of a summary found in the text, within a sentence."""
    for sentence in re.split(r"[.?!;:\n]", text.lower()):
        if found := _wordings().search(" ".join(re.findall(r"[a-z0-9]+", sentence))):
            return found[0]
    return None


def write(folder: Path) -> None:
    """Writes `questions.csv` and its LICENSE into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = questions()
    with (folder / "questions.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    (folder / "LICENSE").write_text(LICENSE, encoding="utf-8")


@cache
def _wordings() -> re.Pattern[str]:
    patterns = []
    for summary in SUMMARIES.values():
        head, tail = (" ".join(re.findall("[a-z]+", p)) for p in summary.lower().split("{x}"))
        patterns.append(rf"\b{head}(?: \w+){{1,6}} {tail}\b" if tail else rf"\b{head} \w+")
    return re.compile("|".join(patterns))


def _without_repeats(rng: random.Random, terms: Terms) -> Callable[[str], str]:
    """Draws every term of a kind once before any comes again."""
    decks: dict[str, list[str]] = {kind: [] for kind in terms}

    def draw(kind: str) -> str:
        if not decks[kind]:
            decks[kind] = rng.sample(terms[kind], len(terms[kind]))
        return decks[kind].pop()

    return draw
