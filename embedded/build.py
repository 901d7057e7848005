"""Rebuilds the embedded model and the demo questions.

Run it as `python -m embedded.build --output meqsum_lightning/assets`.
"""

import argparse
import shutil
from pathlib import Path

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from embedded import demo, model, tasks, tokenizer
from embedded.pretrain import Schedule, pretrain

CARD = Path(__file__).parent / "README.md"
TOKENIZER_PAIRS = 9_000  # pretraining pairs of each length that the tokenizer sees


def build(output: Path, schedule: Schedule, resume: Path | None = None) -> None:
    """Writes `demo/` and `tiny_t5/` into the output folder.

    Args:
        output: the folder for both.
        schedule: the pretraining.
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
    pretrain(start, pieces, schedule, folder, lambda line: print(line, flush=True))


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
    parser.add_argument("--steps", type=int, default=Schedule.steps)
    parser.add_argument("--seconds", type=float, default=Schedule.seconds)
    parser.add_argument("--lr", type=float, default=Schedule.lr)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--short", type=float, default=Schedule.short)
    parser.add_argument("--resume", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    schedule = Schedule(steps=args.steps, seconds=args.seconds, short=args.short, lr=args.lr)
    build(args.output, schedule, args.resume)


if __name__ == "__main__":
    main()
