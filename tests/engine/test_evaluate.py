"""Scoring what a run left, its backbone, a PEFT folder, a split or a file."""

import csv
import json

import pytest

from meqsum_lightning.config.compose import build_config
from meqsum_lightning.engine.evaluate import evaluate
from meqsum_lightning.errors import UserError
from meqsum_lightning.runs.record import read_metrics

QUIET = ["trainer=cpu", "trainer.progress=none"]


def run(*overrides: str):
    return evaluate(build_config("evaluate", [*QUIET, *overrides]))  # type: ignore[arg-type]


def test_a_run_scores_as_it_did(run_copy):
    done = run(f"run={run_copy}")
    assert done.folder == run_copy / "evaluations" / "test"
    metrics = read_metrics(run_copy)
    assert done.metrics == {key: metrics[key] for key in done.metrics}
    assert (done.folder / "predictions.csv").read_bytes() == (
        run_copy / "predictions.csv"
    ).read_bytes()
    facts = json.loads((done.folder / "evaluation.json").read_text())
    assert facts["rows"] == 8 and facts["rouge"]["fingerprint"]


def test_another_split_and_its_backbone(run_copy):
    assert run(f"run={run_copy}", "split=val").rows == 8
    base = run(f"run={run_copy}", "adapter=none")
    metrics = read_metrics(run_copy)
    assert base.metrics["test/rouge1"] == metrics["test_base/rouge1"]
    assert base.metrics["test/loss"] == pytest.approx(metrics["test_base/loss"], rel=1e-6)
    assert base.folder.name == "test-base"


def test_nothing_is_overwritten(run_copy):
    run(f"run={run_copy}", "name=mine")
    with pytest.raises(UserError, match="not empty"):
        run(f"run={run_copy}", "name=mine")
    for name in ("../out", "..", "."):
        with pytest.raises(UserError, match="not a folder name"):
            run(f"run={run_copy}", f"name={name}")


def test_a_runs_adapter_is_its_own(run_copy):
    for override in ("adapter.r=4", "adapter=lora"):
        with pytest.raises(UserError, match="the run has its own adapter"):
            run(f"run={run_copy}", override)


def test_two_at_once_do_not_overwrite(run_copy):
    import fcntl
    import os

    folder = run_copy / "evaluations" / "both"
    folder.mkdir(parents=True)
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another process"):
        run(f"run={run_copy}", "name=both")
    os.close(descriptor)


def test_a_file_of_ones_own(run_copy, tmp_path):
    path = tmp_path / "my rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "summary", "split"])
        writer.writerow(["Does aspirin help with gout?", "Does aspirin help?", "whatever"])
    done = run(f"run={run_copy}", f'input="{path}"')
    assert done.rows == 1 and "my_rows/rouge1" in done.metrics
    assert done.folder.name == "my_rows"


def test_a_peft_folder(run_copy, questions_file, tmp_path):
    output = tmp_path / "scored"
    done = run(
        f"run={run_copy / 'adapter'}", "data=files", f"data.path={questions_file}",
        "data.split=[24,8,8]", "data.max_source_length=64", "data.max_target_length=24",
        "generation.max_new_tokens=8", "generation.test_num_beams=2", "model.dtype=fp32", f"output_dir={output}",
    )  # fmt: skip
    assert done.metrics["test/rouge1"] == read_metrics(run_copy)["test/rouge1"]
    assert (output / "metrics.json").exists()


def test_what_is_no_run(run_copy, tmp_path):
    with pytest.raises(UserError, match=r"holds no config\.yaml"):
        run(f"run={tmp_path}")
    (run_copy / "adapter" / "adapter_config.json").unlink()
    with pytest.raises(UserError, match="has left no adapter"):
        run(f"run={run_copy}")
    (run_copy / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match="cannot be read"):
        run(f"run={run_copy}")
