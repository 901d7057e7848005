"""On a CUDA device: the same losses as on the CPU, and bf16 within its precision."""

import pytest
import torch

from meqsum_lightning.engine.train import train
from meqsum_lightning.runs.record import read_metrics

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 1e-3), ("bf16-mixed", 3e-2)])
def test_a_gpu_gives_the_losses_of_the_cpu(precision, tolerance, small, tmp_path):
    quiet = ["adapter.dropout=0.0", "model.dropout=0.0", "data.cache=false"]
    cpu = train(small(*quiet, f"output_dir={tmp_path / 'cpu'}")).folder
    gpu = train(
        small(
            *quiet,
            "trainer=gpu",
            f"trainer.precision={precision}",
            "trainer.progress=none",
            f"output_dir={tmp_path / 'gpu'}",
        )
    ).folder
    for key in ("val/loss", "test/loss", "test_base/loss"):
        assert read_metrics(gpu)[key] == pytest.approx(read_metrics(cpu)[key], rel=tolerance)
