"""One experiment from a config to a run directory: the contract of DESIGN's files and numbers."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from meqsum_lightning.config.compose import build_config
from meqsum_lightning.engine import scoring
from meqsum_lightning.engine.train import train
from meqsum_lightning.errors import RunFailed, UserError
from meqsum_lightning.runs.record import read_metrics

SCORES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def rows(path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_what_the_contract_says(finished_run):
    names = {path.name for path in finished_run.iterdir()}
    assert names == {
        "config.yaml", "run.json", "metrics.json", "predictions.csv", "predictions_val.csv",
        "predictions_base.csv", "splits.json", "adapter", "checkpoints", "logs",
    }  # fmt: skip
    config = yaml.safe_load((finished_run / "config.yaml").read_text())
    assert config["adapter"]["alpha"] == 8.0
    assert not {"output_dir", "resume", "rerun"} & set(config)
    record = json.loads((finished_run / "run.json").read_text())
    assert record["status"] == "completed" and record["error"] is None
    assert {
        "pid",
        "host",
        "heartbeat",
        "versions",
        "hardware",
        "config_hash",
        "base_revision",
    } <= set(record)
    assert record["training"]["steps"] == 12 and record["training"]["samples"] == 48
    assert record["training"]["samples_per_second"] > 0 and record["peak_memory"] > 1e6
    assert record["parameters"]["trainable"] == sum(
        tensor.numel() for tensor in checkpoint(finished_run, "best")["job"]["adapter"].values()
    )
    split = json.loads((finished_run / "splits.json").read_text())
    assert [len(split[name]) for name in ("train", "val", "test")] == [24, 8, 8]
    assert record["split"]["fingerprint"] == split["fingerprint"]


def checkpoint(folder, name):
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def test_metrics_are_the_means_of_the_predictions(finished_run):
    metrics = read_metrics(finished_run)
    files = {
        "test": "predictions.csv",
        "val": "predictions_val.csv",
        "test_base": "predictions_base.csv",
    }
    for prefix, file in files.items():
        table = rows(finished_run / file)
        assert list(table[0]) == ["id", "question", "reference", "prediction", *SCORES]
        for name in SCORES:
            mean = np.mean([float(row[name]) for row in table])
            assert metrics[f"{prefix}/{name}"] == pytest.approx(mean, abs=1e-6)
            assert metrics[f"{prefix}/{name}_low"] <= mean + 1e-9
            assert metrics[f"{prefix}/{name}_high"] >= mean - 1e-9
    split = json.loads((finished_run / "splits.json").read_text())
    assert [row["id"] for row in rows(finished_run / "predictions.csv")] == split["test"]


def test_predictions_are_scored_as_rouge_score_does(finished_run):
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for row in rows(finished_run / "predictions.csv"):
        theirs = scorer.score(row["reference"], row["prediction"])
        for name in ("rouge1", "rouge2", "rougeL"):
            assert float(row[name]) == pytest.approx(theirs[name].fmeasure, abs=1e-6)


def test_plain_peft_opens_the_adapter_and_predicts_the_same(finished_run, tiny_backbone):
    from peft import PeftModel
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    base = AutoModelForSeq2SeqLM.from_pretrained(tiny_backbone)
    model = PeftModel.from_pretrained(base, finished_run / "adapter").eval()
    tokenizer = AutoTokenizer.from_pretrained(finished_run / "adapter")
    for row in rows(finished_run / "predictions.csv"):
        ids = tokenizer(
            "Summarize this question: " + row["question"],
            return_tensors="pt", truncation=True, max_length=64,
        )  # fmt: skip
        out = model.generate(**ids, max_new_tokens=8, num_beams=2, do_sample=False)
        assert tokenizer.decode(out[0], skip_special_tokens=True).strip() == row["prediction"]


def test_training_learns(finished_run):
    losses = [
        float(row["train/loss"])
        for row in rows(finished_run / "logs" / "metrics.csv")
        if row["train/loss"]
    ]
    assert len(losses) == 12
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    metrics = read_metrics(finished_run)
    assert metrics["test/loss"] < metrics["test_base/loss"]


def test_the_best_epoch_is_chosen_on_validation_and_tested(small, finished_run):
    cfg = small("checkpoint.monitor=val/loss", "trainer.max_epochs=3")
    folder = train(cfg).folder
    record = json.loads((folder / "run.json").read_text())
    logged = [
        float(row["val/loss"]) for row in rows(folder / "logs" / "metrics.csv") if row["val/loss"]
    ]
    assert len(logged) == 3
    assert record["best"]["value"] == pytest.approx(min(logged), rel=1e-6)
    assert read_metrics(folder)["val/loss"] == pytest.approx(min(logged), rel=1e-6)


def test_two_runs_of_one_config_are_the_same(small, finished_run, tmp_path):
    folder = train(small()).folder
    assert read_metrics(folder) == read_metrics(finished_run)
    other = train(small("seed=1", f"output_dir={tmp_path / 'other'}")).folder
    assert read_metrics(other)["test/loss"] != read_metrics(folder)["test/loss"]
    # The seed never moves the split.
    assert (other / "splits.json").read_text() == (folder / "splits.json").read_text()


@pytest.mark.parametrize(
    "overrides",
    [
        ["adapter=dora", "adapter.r=2"],
        ["adapter=rslora", "adapter.r=2", "adapter.target_modules=all"],
        ["adapter=pissa", "adapter.r=2", "adapter.dropout=0.0"],
        ["adapter=full", "adapter.r=null"],
        ["adapter=lora", "adapter.scope=cross", "adapter.layers=[1]", "optim=lora_plus"],
        ["optim=adafactor", "model.activation_checkpointing=true", "optim.label_smoothing=0.1"],
        ["model.dtype=bf16", "trainer.precision=bf16-mixed"],
    ],
    ids=lambda words: "-".join(words[:1]),
)
def test_every_method_trains_saves_and_is_evaluated(overrides, small):
    from meqsum_lightning.engine.evaluate import evaluate

    folder = train(small("trainer.max_epochs=1", *overrides)).folder
    metrics = read_metrics(folder)
    assert all(math.isfinite(value) for value in metrics.values())
    assert (folder / ("model" if "adapter=full" in overrides else "adapter")).is_dir()
    again = evaluate(
        build_config(
            "evaluate",
            [
                f"run={folder}",
                "trainer=cpu",
                "trainer.progress=none",
                f"trainer.precision={'bf16-mixed' if 'model.dtype=bf16' in overrides else '32-true'}",
            ],
        )  # type: ignore[arg-type]
    )
    for name in SCORES:
        assert again.metrics[f"test/{name}"] == pytest.approx(metrics[f"test/{name}"], abs=0.02)
    assert again.metrics["test/loss"] == pytest.approx(metrics["test/loss"], rel=1e-2)


def test_without_adapter_nothing_is_trained(small):
    folder = train(small("adapter=none", "adapter.r=null")).folder
    metrics = read_metrics(folder)
    assert metrics["test/rouge1"] == metrics["test_base/rouge1"] and "val/loss" in metrics
    assert not (folder / "adapter").exists() and not (folder / "checkpoints").exists()


def test_test_and_base_can_be_left_out(small):
    folder = train(small("test=false")).folder
    assert not any(key.startswith("test") for key in read_metrics(folder))
    assert not (folder / "predictions.csv").exists() and (folder / "predictions_val.csv").exists()


def test_the_backbone_is_scored_once(small, finished_run, tmp_path, monkeypatch):
    calls = []
    original = scoring.score

    def counted(cfg, module, data, split, label):
        calls.append(label)
        return original(cfg, module, data, split, label)

    monkeypatch.setattr(scoring, "score", counted)
    folder = train(small("adapter.r=2")).folder
    assert "backbone without adapter" not in calls
    assert (folder / "predictions_base.csv").read_bytes() == (
        finished_run / "predictions_base.csv"
    ).read_bytes()
    train(small("adapter.r=2", "generation.test_num_beams=1", f"output_dir={tmp_path / 'greedy'}"))
    assert "backbone without adapter" in calls


def test_early_stopping(small):
    folder = train(
        small("checkpoint.patience=1", "checkpoint.min_delta=10", "trainer.max_epochs=8")
    ).folder
    record = json.loads((folder / "run.json").read_text())
    assert record["training"]["epochs"] == 2 and record["best"]["epoch"] == 0


def test_a_loss_that_is_not_finite_ends_the_run_as_failed(small, monkeypatch):
    from meqsum_lightning.engine import module

    original, calls = module.token_loss, [0]

    def poisoned(*args, **kwargs):
        loss, tokens = original(*args, **kwargs)
        calls[0] += 1
        return (loss * float("nan") if calls[0] > 9 else loss), tokens

    monkeypatch.setattr(module, "token_loss", poisoned)
    with pytest.raises(RunFailed, match="loss is nan"):
        train(small("test_base=false"))
    folder = Path(small().output_dir)
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "failed" and "loss is nan" in record["error"]
    assert "Traceback" in (folder / "logs" / "train.log").read_text()


def test_max_steps_ends_with_a_validation(small):
    folder = train(small("trainer.max_steps=8")).folder
    record = json.loads((folder / "run.json").read_text())
    assert record["training"]["steps"] == 8
    assert len([r for r in rows(folder / "logs" / "metrics.csv") if r["val/loss"]]) == 2


def test_overfitting_a_few_rows_drives_the_loss_down(small):
    folder = train(
        small(
            "debug=overfit",
            "trainer.overfit_rows=4",
            "trainer.max_epochs=40",
            "adapter=full",
            "adapter.r=null",
            "adapter.dropout=null",
        )
    ).folder
    losses = [
        float(r["train/loss"]) for r in rows(folder / "logs" / "metrics.csv") if r["train/loss"]
    ]
    assert losses[-1] < 0.5 * losses[0]


def test_a_directory_that_is_not_empty_is_refused(small, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        train(small())
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_a_wrong_file_leaves_no_run_directory(small, tmp_path):
    with pytest.raises(UserError, match="no such file"):
        train(small("data.path=/no/such/file.csv"))
    assert not (tmp_path / "run").exists()


def test_checkpoints_can_be_pruned(small):
    folder = train(small("checkpoint.prune=true")).folder
    assert not (folder / "checkpoints").exists() and (folder / "adapter").exists()


def test_users_callbacks_and_loggers_take_part(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = train(
        small("callbacks=device_stats", "logger=[csv,tensorboard]", "debug=profile")
    ).folder
    assert list((folder / "logs" / "tensorboard").rglob("events*"))
    assert list((folder / "logs").glob("*profile*"))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_wrong_arguments_of_a_component_are_the_users(small):
    with pytest.raises(UserError, match=r"callbacks\.x"):
        train(small("callbacks.x={_target_: lightning.pytorch.callbacks.Timer, nope: 1}"))


def test_default_directories_do_not_meet(tmp_path, monkeypatch):
    from meqsum_lightning.runs.record import output_folder

    monkeypatch.chdir(tmp_path)
    first = output_folder(None)
    first.mkdir(parents=True)
    assert output_folder(None) != first
