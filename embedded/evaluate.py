"""Measures the embedded model on the demo with plain peft and transformers.

Run it as `python -m embedded.evaluate meqsum_lightning/assets --rank 0 2 8 32 --threads 2`.
Nothing of meqsum_lightning is imported, so the figures check the framework's own.
"""

import argparse
import csv
import json
import random
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from rouge_score.rouge_scorer import RougeScorer
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, get_linear_schedule_with_warmup

INSTRUCTION = "Summarize this question: "
SPLITS = ("train", "val", "test")
Rows = dict[str, list[dict[str, str]]]  # split -> rows
TARGETS = {
    "qv": ["q", "v"],
    "qkv": ["q", "k", "v"],
    "all": ["q", "k", "v", "o", "wi_0", "wi_1", "wo"],
}


@dataclass(frozen=True)
class Setting:
    """One run: rank 0 trains nothing, rank -1 trains all weights."""

    rank: int = 8
    targets: str = "qkv"
    lr: float = 3e-3
    epochs: int = 12
    batch: int = 16
    warmup: float = 0.06
    seed: int = 0


def run(
    folder: Path, setting: Setting, split: str = "test", validate: bool = True
) -> dict[str, Any]:
    """Trains as the setting says and returns the scores on a split.

    Args:
        folder: the folder with `tiny_t5` and `demo`.
        setting: what to train and how.
        split: the rows to score.
        validate: whether to decode the validation rows after every epoch, as the framework does.
    """
    torch.manual_seed(setting.seed)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tiny_t5")
    model = AutoModelForSeq2SeqLM.from_pretrained(folder / "tiny_t5", dtype=torch.float32)
    if setting.rank > 0:
        config = LoraConfig(
            r=setting.rank,
            lora_alpha=2 * setting.rank,
            target_modules=TARGETS[setting.targets],
            task_type="SEQ_2_SEQ_LM",
        )
        model = get_peft_model(model, config)
    rows = read(folder)
    begin = time.monotonic()
    if setting.rank:
        train(model, tokenizer, rows, setting, validate)
    seconds = time.monotonic() - begin
    answers = predict(model, tokenizer, [row["question"] for row in rows[split]])
    return {**asdict(setting), "seconds": round(seconds), **score(answers, rows[split])}


def read(folder: Path) -> Rows:
    """Returns split -> rows."""
    with (folder / "demo" / "questions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {split: [row for row in rows if row["split"] == split] for split in SPLITS}


def train(model: Any, tokenizer: Any, rows: Rows, setting: Setting, validate: bool) -> None:
    """Trains with AdamW, a linear schedule and batches in random order."""
    count = len(rows["train"])
    steps = setting.epochs * -(-count // setting.batch)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=setting.lr, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, int(setting.warmup * steps), steps)
    order = random.Random(setting.seed)
    for _ in range(setting.epochs):
        model.train()
        shuffled = order.sample(rows["train"], count)
        for i in range(0, count, setting.batch):
            part = shuffled[i : i + setting.batch]
            batch = encode(tokenizer, [row["question"] for row in part])
            labels = tokenizer([r["summary"] for r in part], return_tensors="pt", padding=True)
            batch["labels"] = labels.input_ids.masked_fill(labels.attention_mask == 0, -100)
            model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if validate:
            predict(model, tokenizer, [row["question"] for row in rows["val"]])


def encode(tokenizer: Any, questions: list[str]) -> dict[str, torch.Tensor]:
    """Returns the instructed questions as a padded batch."""
    texts = [INSTRUCTION + question for question in questions]
    batch = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=192)
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}


@torch.no_grad()
def predict(model: Any, tokenizer: Any, questions: list[str]) -> list[str]:
    """Returns greedy answers."""
    model.eval()
    answers = []
    for i in range(0, len(questions), 50):
        batch = encode(tokenizer, questions[i : i + 50])
        ids = model.generate(**batch, max_new_tokens=32, do_sample=False, num_beams=1)
        answers += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return answers


def score(answers: list[str], rows: list[dict[str, str]]) -> dict[str, Any]:
    """Returns mean ROUGE F1, and the shares of exact, focus-copying and well-framed answers."""
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    pairs = list(zip(answers, rows, strict=True))
    rouge = [scorer.score(row["summary"], answer) for answer, row in pairs]
    kinds = ("rouge1", "rouge2", "rougeL")
    result: dict[str, Any] = {k: _mean([r[k].fmeasure for r in rouge]) for k in kinds}
    result["exact"] = _mean([_plain(a) == _plain(row["summary"]) for a, row in pairs])
    result["focus"] = _mean([f" {_plain(r['focus'])} " in f" {_plain(a)} " for a, r in pairs])
    result["frame"] = _mean([_frame(a, row) for a, row in pairs])
    result["examples"] = [{"answer": a, "summary": row["summary"]} for a, row in pairs[:12]]
    return result


def _frame(answer: str, row: dict[str, str]) -> bool:
    """Whether the answer asks the right question, whatever it asks about."""
    head, tail = (part.lower() for part in row["summary"].split(row["focus"]))
    return answer.lower().startswith(head) and answer.lower().endswith(tail)


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def _mean(values: list[Any]) -> float:
    return round(sum(values) / len(values), 3)


def main() -> None:
    """Prints one JSON line per setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("meqsum_lightning/assets"))
    parser.add_argument("--rank", type=int, nargs="+", default=[0, 2, 8, 32])
    parser.add_argument("--targets", choices=TARGETS, default="qkv")
    parser.add_argument("--lr", type=float, nargs="+", default=[3e-3])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--warmup", type=float, default=0.06)
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-validation", action="store_true")
    parser.add_argument("--examples", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for seed in args.seed:
        for rank in args.rank:
            for lr in args.lr:
                shape = (args.epochs, args.batch, args.warmup, seed)
                setting = Setting(rank, args.targets, lr, *shape)
                result = run(args.folder, setting, args.split, not args.no_validation)
                examples = result.pop("examples")
                print(json.dumps(result), flush=True)
                for example in examples if args.examples else ():
                    print(f"    {example['answer']}   <-   {example['summary']}")


if __name__ == "__main__":
    main()
