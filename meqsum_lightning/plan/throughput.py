"""How fast this machine multiplies matrices, and which share of that a training reaches.

Measured in a fraction of a second; what a training has to compute is the business of `compute`.
"""

import functools
import os
import time
from collections.abc import Callable

from meqsum_lightning.config.schema import TrainerConfig

# Shares of the measured matrix throughput that real work reaches at the lengths of its padded
# batches, on one CPU thread in fp32. Training: 0.22 for the embedded model (50 steps of 16 rows),
# 0.18 and 0.25 for the shapes of Flan-T5-Small and -Base. Scoring: 0.26 by greedy decoding and 0.13
# by four beams for the embedded model, about 0.4 for the larger ones, whose estimate is therefore
# too long. The rest goes to dropout, norms, softmax, the optimizer, and the single tokens of
# generation. On a GPU they are assumed, not measured.
TRAINING_EFFICIENCY = 0.20
GENERATION_EFFICIENCY = 0.18

# Seconds: importing the libraries, once per worker; rows, trainer, intervals and files, per job.
WORKER_SECONDS = 6.0
JOB_SECONDS = 2.0
# Bytes per second at which weights are read.
LOADING_RATE = 500e6

# A guide where the machine can't be measured: NVIDIA A100 SXM, dense, by its data sheet (FP32 and
# BF16/FP16 tensor cores), at the 35 % that trainings of this size usually reach.
REFERENCE_NAME = "A100"
REFERENCE_PEAK = {"32-true": 19.5e12, "bf16-mixed": 312e12, "16-mixed": 312e12}
REFERENCE_UTILISATION = 0.35

# Rows, inner, outer size of the measured product: tokens of a micro-batch, widths of a backbone.
_PRODUCT = {"cpu": (2048, 512, 512), "cuda": (8192, 4096, 4096)}
_SECONDS = 0.25


@functools.cache
def measure_throughput(device: str, precision: str, threads: int) -> float:
    """Times a matrix product of realistic shape; once per process and arguments.

    On the CPU always in fp32: units for 16 bit would promise more than the rest of a training,
    which stays in fp32 under autocast, lets through.

    Args:
        device: `cpu` or `cuda`.
        precision: Of the trainer (`32-true`, `bf16-mixed`, `16-mixed`).
        threads: CPU threads of one process.

    Returns:
        Floating-point operations per second of one process.
    """
    import torch

    kinds = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    dtype = torch.float32 if device == "cpu" else kinds.get(precision, torch.float32)
    rows, inner, outer = _PRODUCT[device]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        left = torch.randn(rows, inner, device=device, dtype=dtype)
        right = torch.randn(inner, outer, device=device, dtype=dtype)

        def product() -> float:
            started = time.perf_counter()
            torch.mm(left, right)
            if device == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - started

        product()  # the first one also loads kernels
        times = [product()]
        while sum(times) < _SECONDS:
            times.append(product())
    finally:
        torch.set_num_threads(before)
    # The fastest: other work on the machine only ever slows a product down.
    return 2 * rows * inner * outer / min(times)


def worker_rate(
    trainer: TrainerConfig,
    device: str,
    precision: str,
    workers: int,
    throughput: Callable[[str, str, int], float] = measure_throughput,
) -> float:
    """Operations per second of one process of a job while all workers are busy.

    Workers that ask for more cores or GPUs than there are slow each other down in proportion.

    Args:
        trainer: Devices and threads of a job.
        device: From `usable_device`.
        precision: Of the trainer, `auto` resolved.
        workers: Jobs at a time.
        throughput: Like `measure_throughput`.
    """
    processes = workers * trainer.devices
    units = usable_cores()
    threads = trainer.threads or max(1, units // processes)
    wanted = processes * threads
    if device == "cuda":
        import torch

        units, wanted = torch.cuda.device_count(), processes
    return throughput(device, precision, threads) * min(1.0, units / wanted)


def usable_device(trainer: TrainerConfig) -> str | None:
    """`cpu` or `cuda`, as the trainer would choose; None: a GPU that is not here or not known."""
    import torch

    if trainer.accelerator == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if trainer.accelerator == "gpu" or torch.backends.mps.is_available():
        return None
    return "cpu"


def usable_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def reference_rate(precision: str) -> float:
    """Operations per second of the reference device in a training."""
    return REFERENCE_PEAK[precision] * REFERENCE_UTILISATION
