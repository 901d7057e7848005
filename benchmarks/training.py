"""Our training beside the plain Hugging Face way, on the same rows, adapter, steps and threads.

    python benchmarks/training.py [--epochs 2] [--threads 2] [meqsum overrides ...]

Prints seconds of training and of the whole run for both, their ratio, and both validation scores.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from meqsum_lightning.config.compose import build_config
from meqsum_lightning.engine.parts import load_data
from meqsum_lightning.engine.train import train
from meqsum_lightning.metrics.rouge import RougeProtocol, score_pair
from meqsum_lightning.models.adapters import apply_adapter
from meqsum_lightning.models.backbones import load_backbone


def ours(cfg: Any) -> dict[str, float]:
    """Seconds and the last epoch's score of `meqsum train`."""
    started = time.perf_counter()
    folder = train(cfg).folder
    whole = time.perf_counter() - started
    record = json.loads((folder / "run.json").read_text())
    last = (folder / "logs" / "metrics.csv").read_text().splitlines()
    column = last[0].split(",").index("val/rouge1")
    scores = [row.split(",")[column] for row in last[1:] if row.split(",")[column]]
    return {"training": record["training"]["seconds"], "whole": whole, "rouge1": float(scores[-1])}


def plain(cfg: Any) -> dict[str, float]:
    """The same with transformers' Seq2SeqTrainer and PEFT, as its documentation shows."""
    from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

    data = load_data(cfg).module
    tokenizer = data.tokenizer
    started = time.perf_counter()
    model = apply_adapter(load_backbone(cfg.model, False, cfg.seed), cfg.adapter, cfg.seed)

    def rows(name: str) -> list[dict[str, list[int]]]:
        tokens = data.part(name).tokens
        return [
            {"input_ids": source, "attention_mask": [1] * len(source), "labels": target}
            for source, target in zip(tokens.source, tokens.target, strict=True)
        ]

    def compute(prediction: Any) -> dict[str, float]:
        ids = prediction.predictions
        ids[ids < 0] = tokenizer.pad_token_id
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        pairs = zip(texts, data.part("val").rows, strict=True)
        protocol = RougeProtocol(cfg.metrics.stemmer)
        found = [score_pair(text, row.summary or "", protocol)["rouge1"] for text, row in pairs]
        return {"rouge1": sum(found) / len(found)}

    with tempfile.TemporaryDirectory() as folder:
        arguments = Seq2SeqTrainingArguments(
            folder,
            per_device_train_batch_size=cfg.data.global_batch_size,
            per_device_eval_batch_size=cfg.data.eval_batch_size,
            num_train_epochs=cfg.trainer.max_epochs,
            learning_rate=cfg.optim.lr,
            lr_scheduler_type=cfg.optim.schedule,
            warmup_steps=cfg.optim.warmup,
            weight_decay=0.0,
            eval_strategy="epoch",
            predict_with_generate=True,
            generation_max_length=cfg.generation.max_new_tokens + 1,
            save_strategy="no",
            report_to=[],
            use_cpu=not torch.cuda.is_available(),
            disable_tqdm=True,
            logging_steps=1_000_000,
        )
        trainer = Seq2SeqTrainer(
            model=model,
            args=arguments,
            train_dataset=rows("train"),
            eval_dataset=rows("val"),
            data_collator=DataCollatorForSeq2Seq(tokenizer, model=model, pad_to_multiple_of=8),
            compute_metrics=compute,
            processing_class=tokenizer,
        )
        validation = 0.0
        evaluate = trainer.evaluate

        def timed(*args: Any, **kwargs: Any) -> dict[str, float]:
            nonlocal validation
            begun = time.perf_counter()
            result = evaluate(*args, **kwargs)
            validation += time.perf_counter() - begun
            return result

        trainer.evaluate = timed  # type: ignore[method-assign]
        begun = time.perf_counter()
        trainer.train()
        training = time.perf_counter() - begun - validation
        score = next(
            row["eval_rouge1"]
            for row in reversed(trainer.state.log_history)
            if "eval_rouge1" in row
        )
    return {"training": training, "whole": time.perf_counter() - started, "rouge1": score}


def main() -> None:
    """Runs both and prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    options, overrides = parser.parse_known_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        cfg = build_config(
            "train",
            [
                "experiment=demo",
                f"trainer.max_epochs={options.epochs}",
                f"trainer.threads={options.threads}",
                "trainer.progress=none",
                "test=false",
                f"output_dir={Path(folder) / 'run'}",
                *overrides,
            ],
        )
        both = {"meqsum-lightning": ours(cfg), "transformers": plain(cfg)}
    print(f"{'':18}{'training s':>12}{'whole s':>10}{'val ROUGE-1':>13}")
    for name, row in both.items():
        print(f"{name:18}{row['training']:12.1f}{row['whole']:10.1f}{row['rouge1']:13.3f}")
    first, second = both.values()
    for key in ("training", "whole"):
        print(f"{key}: transformers / meqsum-lightning = {second[key] / first[key]:.2f}")


if __name__ == "__main__":
    main()
