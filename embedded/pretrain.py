"""Pretrains the tiny T5 on the task mixture: short texts first, then long ones.

The schedule counts steps; a limit of seconds only shortens it, for slow machines.
"""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, T5ForConditionalGeneration

from embedded import model as models
from embedded import tasks
from embedded.fast import MasterWeights, speed_up

MAX_SOURCE, MAX_TARGET = 224, 48
USUAL_TARGET = 16  # longer targets come in batches of their own, for little padding
LARGEST_BATCH = 160
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # source, mask, labels: (batch, length)


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        steps: optimizer steps.
        seconds: a limit of wall-clock time; reaching it anneals the rate all the same.
        short: share of the schedule that has short texts.
        tokens: source tokens per batch.
        checkpoint: steps between checkpoints with a look at the development texts.
    """

    steps: int = 4200
    seconds: float = float("inf")
    short: float = 0.15
    lr: float = 7e-4
    warmup: float = 0.02
    tokens: int = 3500
    checkpoint: int = 400
    seed: int = 1


def pretrain(
    model: T5ForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    schedule: Schedule,
    folder: Path,
    log: Callable[[str], None] = print,
) -> None:
    """Trains the model in place and writes it into the folder, at checkpoints and at the end."""
    torch.manual_seed(schedule.seed)
    weights = MasterWeights(model)
    speed_up(model)
    groups = [
        {"params": [master], "factor": rate_factor(name)}
        for (name, _), master in zip(model.named_parameters(), weights.masters, strict=True)
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=schedule.lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True
    )
    begin = time.monotonic()
    phases = {long: batches(tokenizer, schedule, "pretrain", long) for long in (False, True)}
    examples, running = 0, 0.0
    for step in range(schedule.steps):
        seconds = time.monotonic() - begin
        progress = max(step / schedule.steps, seconds / schedule.seconds)
        if progress >= 1:
            break
        batch = next(phases[progress >= schedule.short])
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr * group["factor"] * rate(progress, schedule.warmup)
        loss = cross_entropy(model, batch)
        loss.backward()
        weights.take_gradients()
        torch.nn.utils.clip_grad_norm_(weights.masters, 1.0)
        optimizer.step()
        weights.give_back()
        examples += len(batch[0])
        running = loss.item() if step == 0 else 0.98 * running + 0.02 * loss.item()
        if step % 50 == 0:
            log(f"step {step} {examples} examples {seconds:.0f} s loss {running:.3f}")
        if step and step % schedule.checkpoint == 0:
            models.save(model, folder)
            log(f"step {step} dev {development(model, tokenizer)}")
    models.save(model, folder)
    log(f"end {examples} examples {time.monotonic() - begin:.0f} s")
    log(f"end dev {development(model, tokenizer, 256)}")


def rate_factor(name: str) -> float:
    """Returns by how much a parameter's rate differs from the others'.

    T5 does not scale attention logits, so queries and keys are small and learn gently, or
    copying is lost in the first hundred steps; embeddings have a variance of one and need more.
    """
    if name.endswith((".q.weight", ".k.weight")):
        return 0.15
    return 3.0 if name.startswith("shared") else 1.0


def cross_entropy(model: T5ForConditionalGeneration, batch: Batch) -> torch.Tensor:
    """Returns the mean loss over the target tokens, in float32."""
    source, mask, labels = batch
    start = torch.zeros_like(labels[:, :1])
    shifted = torch.cat([start, labels[:, :-1].clamp(min=0)], 1)  # (batch, target)
    logits = model(
        input_ids=source, attention_mask=mask, decoder_input_ids=shifted, use_cache=False
    ).logits
    real = labels != -100
    return torch.nn.functional.cross_entropy(logits[real].float(), labels[real])


def rate(progress: float, warmup: float) -> float:
    """Returns the factor of the learning rate: linear warm-up, then a cosine down to 2 %."""
    if progress < warmup:
        return (progress + 1e-3) / (warmup + 1e-3)
    return 0.02 + 0.98 * 0.5 * (1 + cos(pi * (progress - warmup) / (1 - warmup)))


def batches(
    tokenizer: PreTrainedTokenizerFast, schedule: Schedule, part: str, long: bool
) -> Iterator[Batch]:
    """Yields batches of sources of similar length, for ever."""
    draw = tasks.stream(schedule.seed, part, long)
    rng = random.Random(schedule.seed)
    while True:
        pairs = [draw() for _ in range(3000)]
        sources = tokenizer([s for s, _ in pairs], truncation=True, max_length=MAX_SOURCE).input_ids
        targets = tokenizer([t for _, t in pairs], truncation=True, max_length=MAX_TARGET).input_ids
        encoded = sorted(
            zip(sources, targets, strict=True),
            key=lambda pair: (len(pair[1]) > USUAL_TARGET, len(pair[0])),
        )
        bundles: list[list[tuple[list[int], list[int]]]] = [[]]
        for pair in encoded:
            count = len(bundles[-1]) + 1
            if count * len(pair[0]) > schedule.tokens or count > LARGEST_BATCH:
                bundles.append([])
            bundles[-1].append(pair)
        rng.shuffle(bundles)
        for bundle in bundles:
            source, mask = pad([s for s, _ in bundle], 0)
            labels, _ = pad([t for _, t in bundle], -100)
            yield source, mask, labels


def pad(rows: list[list[int]], value: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the rows filled up to one length, and a mask of what is not filling."""
    length = max(map(len, rows))
    filled = torch.tensor([row + [value] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return filled, mask


@torch.no_grad()
def development(
    model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, count: int = 96
) -> str:
    """Returns how often focus and label of development texts are right, greedily decoded."""
    model.eval()
    drawer = tasks.Tasks(random.Random(7), tasks.material("dev"), long=True)
    scores = []
    for name in ("focus", "label", "query"):
        pairs = [getattr(drawer, name)() for _ in range(count // (1 if count > 96 else 2))]
        batch = tokenizer([s for s, _ in pairs], return_tensors="pt", padding=True)
        ids = model.generate(
            batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=24
        )
        answers = tokenizer.batch_decode(ids, skip_special_tokens=True)
        right = [_right(name, a, t, drawer) for a, (_, t) in zip(answers, pairs, strict=True)]
        scores.append(f"{name} {sum(right) / len(right):.2f}")
    return " ".join(scores)


def _right(name: str, answer: str, target: str, drawer: tasks.Tasks) -> bool:
    if name == "focus":
        return answer == target
    forms = {"label": "labels", "query": "queries"}[name]
    for wordings in drawer.stuff.targets.values():
        if name == "label" and target in wordings[forms]:
            return answer in wordings[forms]
        for wording in wordings[forms] if name == "query" else ():
            head, tail = wording.split("{x}")
            if target.startswith(head) and target.endswith(tail):
                term = target[len(head) : len(target) - len(tail)]
                if answer in [other.format(x=term) for other in wordings[forms]]:
                    return True
    return False
