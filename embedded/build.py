"""Rebuilds the embedded model and the demo questions.

Run it as `python -m embedded.build --output meqsum_lightning/assets`.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from embedded import demo, model, tasks, tokenizer
from embedded.pretrain import Schedule, pretrain

CARD = Path(__file__).parent / "README.md"
TOKENIZER_PAIRS = 9_000  # pretraining pairs of each length that the tokenizer sees
# Three stages, each annealed: what helped was to come back with a smaller rate and new text.
RECIPE = (
    Schedule(),
    Schedule(steps=1100, lr=4.5e-4, short=0.0, seed=2),
    Schedule(steps=3100, lr=5e-4, short=0.0, seed=3),
)


def build(output: Path, stages: Sequence[Schedule] = RECIPE, resume: Path | None = None) -> None:
    """Writes `demo/` and `tiny_t5/` into the output folder.

    Args:
        output: the folder for both.
        stages: the pretraining, one schedule after another.
        resume: a folder with an earlier `tiny_t5` whose tokenizer and weights go on.
    """
    demo.write(output / "demo")
    folder = output / "tiny_t5"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(CARD, folder / "README.md")
    if resume:
        pieces = AutoTokenizer.from_pretrained(resume / "tiny_t5")
        start = AutoModelForSeq2SeqLM.from_pretrained(resume / "tiny_t5", dtype=torch.float32)
    else:
        pieces = tokenizer.train(tokenizer_texts())
        start = model.build(len(pieces))
    tokenizer.save(pieces, folder)
    for number, stage in enumerate(stages):
        if number:
            # From what was written: pretraining leaves its model in bfloat16.
            start = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32)
        pretrain(start, pieces, stage, folder, lambda line: print(line, flush=True))


def tokenizer_texts() -> list[str]:
    """Returns glosses, terms and pretraining pairs, all of the pretraining part."""
    stuff = tasks.material("pretrain")
    terms = [term for group in stuff.terms.values() for term in group]
    texts = [*stuff.glosses, *terms, *terms]
    for long in (False, True):
        draw = tasks.stream("tokenizer", "pretrain", long)
        texts += [text for _ in range(TOKENIZER_PAIRS) for text in draw()]
    return texts


def main() -> None:
    """Parses the command line and builds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", type=Path)
    single = parser.add_argument_group("one stage of one's own, instead of the recipe")
    single.add_argument("--steps", type=int)
    single.add_argument("--seconds", type=float)
    single.add_argument("--lr", type=float)
    single.add_argument("--short", type=float)
    single.add_argument("--seed", type=int)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    names = ("steps", "seconds", "lr", "short", "seed")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    build(args.output, [Schedule(**given)] if given else RECIPE, args.resume)


if __name__ == "__main__":
    main()
