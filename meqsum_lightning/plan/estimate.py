"""Parameters, memory, disk and compute of a training, from shapes alone.

No weights, no data, no network for the built-in backbones. The formulas are in `compute` and
`memory`, the report in `terminal`.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from meqsum_lightning.config.adapter import alpha_value
from meqsum_lightning.config.schema import ModelConfig, TrainConfig, TrainerConfig
from meqsum_lightning.models.backbones import check_lengths, load_config
from meqsum_lightning.models.budget import resolve_rank
from meqsum_lightning.models.shapes import PUBLISHED, meta_model
from meqsum_lightning.models.targets import adapter_parameter_count, select_modules
from meqsum_lightning.plan.compute import count_operations
from meqsum_lightning.plan.memory import (
    BF16,
    FP32,
    activation_bytes,
    adapter_shapes,
    disk_bytes,
    optimizer_bytes,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Memory:
    """Bytes while training, of one process.

    Attributes:
        weights: The backbone (exact; tied weights once).
        adapter: Adapter weights in fp32, and PiSSA's frozen starting point.
        gradients: fp32, one per trainable parameter.
        optimizer: State of the optimizer.
        activations: Kept for the backward pass, without checkpointing.
        activations_checkpointed: The same with checkpointing: the input of each block, and the
            inside of the largest one.
        checkpointing: Whether the configuration uses it.
    """

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    activations_checkpointed: int
    checkpointing: bool

    @property
    def total(self) -> int:
        """Sum with the activations of this configuration."""
        chosen = self.activations_checkpointed if self.checkpointing else self.activations
        return self.weights + self.adapter + self.gradients + self.optimizer + chosen


@dataclass(frozen=True)
class Compute:
    """Floating-point operations (a multiplication and an addition count as two).

    Attributes:
        forward: One forward pass of a micro-batch.
        backward: Its backward pass, recomputation under checkpointing included.
        step: One optimizer step, all processes together.
    """

    forward: int
    backward: int
    step: int


@dataclass(frozen=True)
class Plan:
    """What `meqsum plan` prints.

    Attributes:
        name: Name of the run.
        model: Short name of the backbone.
        method: How it is adapted.
        modules: Number of adapted layers.
        parameters: Of backbone and adapter.
        trainable: Those that are trained.
        r: Rank, if any.
        alpha: Numerator of the scale, if any.
        scale: Factor of the update: alpha / r, for rsLoRA alpha / sqrt(r).
        disk: Bytes of what is saved: the adapter file, or the weights after full fine-tuning.
        rows: Rows per optimizer step over all processes.
        micro_batch: Rows per forward pass of one process.
        source_length: Tokens per question at most.
        target_length: Tokens per summary at most.
        precision: What the estimates assume.
        memory: Bytes while training.
        compute: Floating-point operations.
    """

    name: str
    model: str
    method: str
    modules: int
    parameters: int
    trainable: int
    r: int | None
    alpha: float | None
    scale: float | None
    disk: int
    rows: int
    micro_batch: int
    source_length: int
    target_length: int
    precision: str
    memory: Memory
    compute: Compute

    @property
    def share(self) -> float:
        """Trainable parameters over all parameters."""
        return self.trainable / self.parameters

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers and strings, ready for json."""
        content = dataclasses.asdict(self)
        content["share"] = self.share
        content["memory"]["total"] = self.memory.total
        return content


def make_plan(cfg: TrainConfig) -> Plan:
    """Work out a training's parameters, memory, disk and compute.

    Compute counts matrix products (`count_operations`). Memory counts the states of Rajbhandari et
    al. 2020 (arXiv:1910.02054, section 3.1) and the activations (`activation_bytes`).

    Lengths are the limits `data.max_source_length` and `data.max_target_length`: an upper bound,
    because batches are padded to their own longest row.

    Raises:
        UserError: The backbone, targets, lengths or precision do not fit together.
    """
    config = _shape(cfg.model)
    check_lengths(config, cfg.data)
    cfg = resolve_rank(cfg, config)
    adapter, data = cfg.adapter, cfg.data
    modules = select_modules(config, adapter)
    r = adapter.r or 0
    full = adapter.method == "full"
    backbone = [tuple(p.shape) for p in meta_model(config).parameters()]
    backbone_count = sum(map(math.prod, backbone))
    shapes = backbone if full else list(adapter_shapes(modules, adapter.method, r).values())
    trainable = sum(map(math.prod, shapes))
    added = adapter_parameter_count(modules, r, adapter.method)
    alpha = None if adapter.r is None else alpha_value(adapter.alpha, adapter.r)
    precision = _precision(cfg.trainer)
    weight_bytes = FP32 if full or cfg.model.dtype == "fp32" else BF16
    operations = count_operations(config, data, adapter, modules)
    forward, backward = operations.forward, operations.backward
    if cfg.model.activation_checkpointing:
        backward += sum(operations.live.values())
    step = (forward + backward) * data.global_batch_size / data.micro_batch_size
    kept, checkpointed = activation_bytes(
        config, cfg, modules, operations.live, precision, weight_bytes
    )
    return Plan(
        name=cfg.name,
        model=cfg.model.name,
        method=adapter.method,
        modules=len(modules),
        parameters=backbone_count + added,
        trainable=trainable,
        r=adapter.r,
        alpha=alpha,
        scale=None if alpha is None else alpha / (r**0.5 if adapter.method == "rslora" else r),
        disk=disk_bytes(adapter, modules, backbone_count),
        rows=data.global_batch_size,
        micro_batch=data.micro_batch_size,
        source_length=data.max_source_length,
        target_length=data.max_target_length,
        precision=precision,
        memory=Memory(
            weights=backbone_count * weight_bytes,
            adapter=added * FP32 * (2 if adapter.method == "pissa" else 1),
            gradients=trainable * FP32,
            optimizer=optimizer_bytes(cfg.optim, shapes),
            activations=kept if trainable else 0,
            activations_checkpointed=checkpointed if trainable else 0,
            checkpointing=cfg.model.activation_checkpointing,
        ),
        compute=Compute(forward, backward, round(step) if trainable else 0),
    )


def with_rank(cfg: TrainConfig) -> TrainConfig:
    """`resolve_rank` by the backbone's shape, which needs no weights and no network.

    Raises:
        UserError: The budget is too small for rank 1.
    """
    return cfg if cfg.adapter.budget is None else resolve_rank(cfg, _shape(cfg.model))


def _shape(model: ModelConfig) -> "PretrainedConfig":
    """The backbone's configuration, from the built-in shape where the Hub id is a known one."""
    known = PUBLISHED.get(model.backbone)
    if model.weights == "pretrained" and known is not None:
        model = model.model_copy(
            update={"weights": "random", "shape": known, "tokenizer": model.backbone}
        )
    return load_config(model)


def _precision(trainer: TrainerConfig) -> str:
    """What `trainer.precision=auto` comes to for this accelerator."""
    if trainer.precision != "auto":
        return trainer.precision
    if trainer.accelerator == "auto":
        import torch

        bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        return "bf16-mixed" if bf16 else "32-true"
    return "bf16-mixed" if trainer.accelerator == "gpu" else "32-true"
