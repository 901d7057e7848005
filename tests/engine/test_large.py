"""Flan-T5-Large's shape, without its weights: two steps on a small machine."""

import json
import subprocess
import sys

import psutil
import pytest

CODE = """
import resource, sys
from meqsum_lightning.cli import main
status = main(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(status)
"""


@pytest.mark.slow
@pytest.mark.skipif(psutil.virtual_memory().total < 12e9, reason="needs 12 GB of memory")
def test_two_steps_of_flan_t5_large_fit_in_twelve_gigabytes(tmp_path):
    words = [
        "train", "model=flan_t5_large", "model.weights=random", "trainer=cpu", "trainer.max_steps=2",
        "data.global_batch_size=4", "data.micro_batch_size=2", "data.eval_batch_size=2",
        "trainer.limit_val_batches=1", "test=false", "generation.max_new_tokens=2",
        "adapter.r=32", f"output_dir={tmp_path / 'run'}", "trainer.progress=plain",
    ]  # fmt: skip
    done = subprocess.run([sys.executable, "-c", CODE, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["parameters"]["total"] == 783_150_080 + 9_437_184
    assert record["parameters"]["trainable"] == 9_437_184
    assert record["training"]["steps"] == 2
    peak = int(done.stdout.split("peak ")[1]) * 1024
    assert peak < 12e9, f"{peak / 1e9:.1f} GB"
