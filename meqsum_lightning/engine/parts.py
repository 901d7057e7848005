"""The parts of a command, built from its configuration: device, data, module, trainer, loggers."""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from transformers import PreTrainedTokenizerBase

from meqsum_lightning.config.checks import LOW_RANK
from meqsum_lightning.config.components import build, check_arguments
from meqsum_lightning.config.schema import SharedConfig, TrainConfig, TrainerConfig
from meqsum_lightning.data.datamodule import MeQSumDataModule
from meqsum_lightning.data.rows import RowSet
from meqsum_lightning.data.sources import load_rows
from meqsum_lightning.data.splits import Split, make_split
from meqsum_lightning.engine.progress import BarProgress, progress_callback
from meqsum_lightning.errors import UserError
from meqsum_lightning.logs import adopt_lightning
from meqsum_lightning.models.adapters import check_rank
from meqsum_lightning.models.backbones import check_backbone, check_lengths, load_tokenizer
from meqsum_lightning.models.optim import build_optimizer
from meqsum_lightning.models.targets import select_modules
from meqsum_lightning.runs.metrics_csv import MetricsCsvLogger

log = logging.getLogger("meqsum_lightning")


@dataclass(frozen=True)
class Data:
    """Rows, split and tokenizer: all that is known before a model loads."""

    rows: RowSet
    split: Split
    tokenizer: PreTrainedTokenizerBase
    module: MeQSumDataModule


def check_everything(cfg: SharedConfig) -> None:
    """Finds the user's mistakes that need more than the configuration, before any weights load.

    Raises:
        UserError: No such device, no such backbone, or target modules that match nothing.
    """
    check_device(cfg.trainer)
    config = check_backbone(cfg.model)
    check_lengths(config, cfg.data)
    if cfg.adapter.method in LOW_RANK:
        check_rank(select_modules(config, cfg.adapter), cfg.adapter)


def check_components(cfg: TrainConfig) -> None:
    """Finds mistakes in the classes and arguments that a training's config names.

    Raises:
        UserError: A class can't be loaded, or does not take the arguments.
    """
    low_rank = cfg.adapter.method in LOW_RANK
    names = ("lora_A.weight", "lora_B.weight") if low_rank else ("weight", "bias")
    if cfg.adapter.method != "none":
        build_optimizer({name: torch.nn.Parameter(torch.zeros(1, 1)) for name in names}, cfg.optim)
    build_callbacks(cfg)
    for name, component in cfg.logger.items():
        check_arguments(f"logger.{name}", component.target, Logger, component.arguments)


def check_device(trainer: TrainerConfig) -> None:
    """Raises UserError when the accelerator or that many devices are not there."""
    if trainer.accelerator == "gpu":
        found = torch.cuda.device_count()
        if found == 0 and not torch.backends.mps.is_available():
            raise UserError("trainer.accelerator=gpu: no GPU found; expected auto or cpu")
        if 0 < found < trainer.devices:
            raise UserError(
                f"trainer.devices={trainer.devices}: {found} found; expected at most {found}"
            )
    if trainer.precision == "bf16-mixed" and uses_cuda(trainer) and not bf16_is_fast():
        log.warning(
            "trainer.precision=bf16-mixed: this GPU has no bf16 units; 32-true may be faster"
        )


def uses_cuda(trainer: TrainerConfig) -> bool:
    """Whether the trainer will run on a CUDA device."""
    return trainer.accelerator != "cpu" and torch.cuda.is_available()


def bf16_is_fast() -> bool:
    """Whether the CUDA device computes in bf16 without emulation."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def prepare_process(cfg: SharedConfig) -> None:
    """Threads and reproducibility of this process, and quiet libraries."""
    if cfg.trainer.threads is not None:
        torch.set_num_threads(cfg.trainer.threads)
    torch.manual_seed(cfg.seed)
    adopt_lightning()
    for text in (
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*treespec.*",
        ".*The `srun` command is available.*",
    ):
        warnings.filterwarnings("ignore", message=text)


def load_data(cfg: SharedConfig) -> Data:
    """Rows, split and tokenizer.

    Raises:
        UserError: Rows can't be read or split, or the tokenizer can't be loaded.
    """
    rows = load_rows(cfg.data)
    split = make_split(rows, cfg.data)
    tokenizer = load_tokenizer(cfg.model)
    module = MeQSumDataModule(rows, split, tokenizer, cfg.data, cfg.seed, cfg.trainer)
    if rows.dropped:
        first = "; ".join(f"{entry.where}: {entry.reason}" for entry in rows.dropped[:3])
        log.warning(
            "%d rows left out (%s%s)",
            len(rows.dropped),
            first,
            "; …" if len(rows.dropped) > 3 else "",
        )
    return Data(rows, split, tokenizer, module)


def build_trainer(
    cfg: SharedConfig,
    folder: Path | None = None,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
    label: str = "scoring",
    max_epochs: int = 1,
) -> Trainer:
    """A Lightning trainer for fitting or scoring.

    Args:
        cfg: Device, precision, validation rhythm.
        folder: Run directory of a training, where a profiler writes; None: scoring, which leaves
            nothing behind.
        callbacks: What hangs on the training.
        loggers: Where metrics go.
        label: What progress lines call this stage.
        max_epochs: Epochs to train.
    """
    trainer = cfg.trainer
    progress = progress_callback(trainer.progress, label)
    return Trainer(
        accelerator=trainer.accelerator,
        devices=trainer.devices,
        num_nodes=trainer.num_nodes,
        precision=precision(trainer),
        max_epochs=max_epochs,
        check_val_every_n_epoch=trainer.check_val_every_n_epoch,
        log_every_n_steps=trainer.log_every_n_steps,
        # The loader of an epoch starts where the job stands.
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        # Warns instead of failing where an operation has no reproducible form (CUDA embeddings).
        deterministic="warn" if trainer.deterministic else False,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=isinstance(progress, BarProgress),
        profiler=_profiler(trainer, folder) if folder is not None else None,
        logger=list(loggers) or False,
        callbacks=[*callbacks, progress],
        default_root_dir=str(folder or Path.cwd()),
    )


def precision(trainer: TrainerConfig) -> Any:
    """Lightning's precision for `auto`: bf16-mixed on a GPU that has it, else 32-true."""
    if trainer.precision != "auto":
        return trainer.precision
    return "bf16-mixed" if uses_cuda(trainer) and bf16_is_fast() else "32-true"


def build_loggers(cfg: TrainConfig, folder: Path, resume_step: int | None) -> list[Logger]:
    """The configured loggers; the CSV file is always among them.

    Args:
        cfg: With `logger`.
        folder: `logs/` of the run directory.
        resume_step: Step from which metrics are written again; None for a new run.
    """
    loggers: list[Logger] = [MetricsCsvLogger(folder, resume_step)]
    for name, component in cfg.logger.items():
        if name == "csv":
            continue
        # W&B makes a folder wandb/ of its own.
        target = folder if name == "wandb" else folder / name
        target.mkdir(parents=True, exist_ok=True)
        arguments = {"save_dir": str(target), **component.arguments}
        loggers.append(build(f"logger.{name}", component.target, Logger, arguments))
    return loggers


def build_callbacks(cfg: TrainConfig) -> list[Callback]:
    """The user's own Lightning callbacks."""
    return [
        build(f"callbacks.{name}", component.target, Callback, component.arguments)
        for name, component in cfg.callbacks.items()
    ]


def _profiler(trainer: TrainerConfig, folder: Path) -> Any:
    if trainer.profiler is None:
        return None
    from lightning.pytorch import profilers

    kinds = {
        "simple": profilers.SimpleProfiler,
        "advanced": profilers.AdvancedProfiler,
        "pytorch": profilers.PyTorchProfiler,
    }
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    return kinds[trainer.profiler](dirpath=logs, filename="profile")
