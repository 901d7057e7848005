"""Who gets which threads and devices: workers beside each other never fight for either."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from meqsum_lightning.config.schema import TrainConfig

# What a worker needs beside its model: the interpreter and its libraries.
WORKER_BYTES = 1_000_000_000
# Memory left to everything else.
SPARE_SHARE = 0.1


@dataclass(frozen=True)
class Lease:
    """What one worker may use.

    Attributes:
        threads: CPU threads.
        device: Value of CUDA_VISIBLE_DEVICES; None: the environment's stays.
    """

    threads: int
    device: str | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Variables that a worker starts with."""
        threads = str(self.threads)
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        found = dict.fromkeys(names, threads)
        # Tokenizers and Arrow count for themselves.
        found |= {"RAYON_NUM_THREADS": threads, "ARROW_NUM_THREADS": threads}
        if self.device is not None:
            found["CUDA_VISIBLE_DEVICES"] = self.device
        return found


def leases(configs: Sequence[TrainConfig], parallel: int) -> list[Lease]:
    """One lease per worker: cores divided evenly, devices in turn.

    Args:
        configs: The jobs; `trainer.threads` of the first, where set, is kept.
        parallel: Number of workers.
    """
    devices = visible_devices() if any(map(_wants_device, configs)) else []
    threads = configs[0].trainer.threads or max(1, cores() // parallel)
    return [
        Lease(threads, devices[number % len(devices)] if devices else None)
        for number in range(parallel)
    ]


def workers(configs: Sequence[TrainConfig], asked: int | str) -> int:
    """How many jobs run at a time.

    Args:
        configs: The jobs.
        asked: `sweep.parallel`; auto: one per device, or as many as cores and free memory allow.
    """
    if isinstance(asked, int):
        return max(1, min(asked, len(configs)))
    devices = visible_devices() if any(map(_wants_device, configs)) else []
    if devices:
        return max(1, min(len(devices), len(configs)))
    return max(1, min(cores(), len(configs), _fitting(configs)))


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def visible_devices() -> list[str]:
    """CUDA devices that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in given.split(",")] if given else []
    return names[:count] if len(names) >= count else [str(number) for number in range(count)]


def _fitting(configs: Sequence[TrainConfig]) -> int:
    """Jobs of the largest kind that fit into free memory."""
    import psutil

    from meqsum_lightning.plan import make_plan

    kinds = {config.model_dump_json(exclude={"seed", "name"}): config for config in configs}
    largest = max(make_plan(config).memory.total for config in kinds.values())
    free = psutil.virtual_memory().available * (1 - SPARE_SHARE)
    return int(free // (largest + WORKER_BYTES))


def _wants_device(config: TrainConfig) -> bool:
    return config.trainer.accelerator != "cpu"
