"""What a training would cost: parameters, memory, disk and compute, from shapes alone.

No weights, no data, no network for the built-in backbones. Measured figures are `runs`' business.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from meqsum_lightning.config.schema import (
    AdapterConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    TrainerConfig,
)
from meqsum_lightning.models.backbones import check_lengths, load_config
from meqsum_lightning.models.shapes import PUBLISHED, meta_model
from meqsum_lightning.models.targets import (
    LinearLayer,
    TargetModule,
    adapter_parameter_count,
    linear_layers,
    select_modules,
)

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PretrainedConfig

_FP32 = 4
_BF16 = 2


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

    Compute counts matrix products: 2 m n k each. A linear layer costs one product forward; backward
    one for its input where something below is trained, and one for its weight where that is
    trained itself (Kaplan et al. 2020, arXiv:2001.08361, section 2.1, with the frozen parts left
    out); attention two products forward, up to four backward. Recomputation under checkpointing
    repeats the forward pass of each block. Memory: the states of Rajbhandari et al. 2020
    (arXiv:1910.02054, section 3.1); activations by the kind of count in Korthikanti et al. 2022
    (arXiv:2205.05198, section 4) for these models as transformers runs them with fused attention.

    Lengths are the limits `data.max_source_length` and `data.max_target_length`: an upper bound,
    because batches are padded to their own longest row.

    Raises:
        UserError: The backbone, targets, lengths or precision do not fit together.
    """
    config = _shape(cfg.model)
    check_lengths(config, cfg.data)
    adapter = cfg.adapter
    modules = select_modules(config, adapter)
    backbone = {name: tuple(p.shape) for name, p in meta_model(config).named_parameters()}
    backbone_count = sum(math.prod(shape) for shape in backbone.values())
    r = adapter.r or 0
    added = adapter_parameter_count(modules, r, adapter.method)
    shapes = _trainable_shapes(backbone, modules, adapter)
    trainable = sum(math.prod(shape) for shape in shapes)
    alpha = None if adapter.r is None else float(adapter.alpha or 2 * adapter.r)
    precision = _precision(cfg.trainer)
    full = adapter.method == "full"
    weight_bytes = _FP32 if full or cfg.model.dtype == "fp32" else _BF16
    counter, live = _walk(config, cfg.data, adapter, modules)
    backward = counter.backward
    if cfg.model.activation_checkpointing:
        backward += sum(live.values())
    step = (counter.forward + backward) * cfg.data.global_batch_size / cfg.data.micro_batch_size
    kept, checkpointed = _activation_bytes(config, cfg, modules, set(live), precision, weight_bytes)
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
        disk=_disk_bytes(adapter, modules, backbone_count),
        rows=cfg.data.global_batch_size,
        micro_batch=cfg.data.micro_batch_size,
        source_length=cfg.data.max_source_length,
        target_length=cfg.data.max_target_length,
        precision=precision,
        memory=Memory(
            weights=backbone_count * weight_bytes,
            adapter=added * _FP32 * (2 if adapter.method == "pissa" else 1),
            gradients=trainable * _FP32,
            optimizer=_optimizer_bytes(cfg.optim, shapes),
            activations=kept if trainable else 0,
            activations_checkpointed=checkpointed if trainable else 0,
            checkpointing=cfg.model.activation_checkpointing,
        ),
        compute=Compute(counter.forward, backward, round(step) if trainable else 0),
    )


def render(plan: Plan, console: "Console") -> None:
    """Print a plan in at most 80 columns."""
    from rich import box
    from rich.table import Table

    def section(title: str, rows: list[tuple[str, str, str]]) -> None:
        table = Table(box=box.SIMPLE_HEAD, title_justify="left", width=min(console.width, 80))
        table.add_column(title, width=27)
        table.add_column("", justify="right", width=14)
        table.add_column("", style="dim", ratio=1)
        for row in rows:
            table.add_row(*row)
        console.print(table)

    adapted = f"{plan.modules} layers adapted" if plan.modules else ""
    model = [
        ("parameters", f"{plan.parameters:,}", plan.model),
        ("trainable", f"{plan.trainable:,}", adapted or plan.method),
        ("share", f"{100 * plan.share:.3f} %", ""),
    ]
    if plan.r is not None and plan.alpha is not None and plan.scale is not None:
        root = "sqrt(r)" if plan.method == "rslora" else "r"
        model += [
            ("rank r, alpha", f"{plan.r}, {plan.alpha:g}", f"alpha/r = {plan.alpha / plan.r:g}"),
            ("scale of the update", f"{plan.scale:.4g}", f"alpha / {root}"),
        ]
    what = {"full": "model weights, fp32", "none": "nothing is saved"}
    model.append(("size on disk", _bytes(plan.disk), what.get(plan.method, "adapter file")))
    section(f"{plan.method} on {plan.model}", model)

    memory = plan.memory
    on, off = ("not used", "used") if not memory.checkpointing else ("used", "not used")
    section(
        "memory in training",
        [
            ("backbone weights", _bytes(memory.weights), "held once"),
            ("adapter weights", _bytes(memory.adapter), "fp32"),
            ("gradients", _bytes(memory.gradients), "fp32, trainable only"),
            ("optimizer state", _bytes(memory.optimizer), ""),
            ("activations", _bytes(memory.activations), f"{off}; {plan.precision}"),
            ("activations, checkpointed", _bytes(memory.activations_checkpointed), on),
            ("total", _bytes(memory.total), "of one process"),
        ],
    )
    compute = plan.compute
    section(
        "compute",
        [
            ("forward", _flop(compute.forward), f"{plan.micro_batch} rows"),
            ("backward", _flop(compute.backward), f"{plan.micro_batch} rows"),
            ("optimizer step", _flop(compute.step), f"{plan.rows} rows, all processes"),
        ],
    )
    console.print(
        f"Estimates for questions of {plan.source_length} and summaries of {plan.target_length} "
        "tokens, the configured limits: an upper bound.",
        style="dim",
        width=min(console.width, 80),
    )


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


def _trainable_shapes(
    backbone: dict[str, tuple[int, ...]], modules: tuple[TargetModule, ...], adapter: AdapterConfig
) -> list[tuple[int, ...]]:
    if adapter.method == "full":
        return list(backbone.values())
    r = adapter.r or 0
    shapes: list[tuple[int, ...]] = []
    for module in modules:
        shapes += [(r, module.in_features), (module.out_features, r)]
        if adapter.method == "dora":
            shapes.append((module.out_features,))
    return shapes


def _optimizer_bytes(optim: OptimConfig, shapes: list[tuple[int, ...]]) -> int:
    """fp32 state: two moments for Adam's kin, factored ones for Adafactor, momentum for SGD.

    Adafactor keeps one row and one column per matrix (Shazeer and Stern 2018, arXiv:1804.04235,
    section 3). An optimizer that is not known is counted like Adam.
    """
    name = optim.optimizer.target.rpartition(".")[2]
    arguments = optim.optimizer.arguments
    count = sum(math.prod(shape) for shape in shapes)
    if name == "Adafactor":
        factored = sum(sum(s) if len(s) == 2 else math.prod(s) for s in shapes)
        first = count if arguments.get("beta1") is not None else 0
        return _FP32 * (factored + first)
    if name == "SGD":
        return _FP32 * count if arguments.get("momentum") else 0
    return 2 * _FP32 * count


def _disk_bytes(
    adapter: AdapterConfig, modules: tuple[TargetModule, ...], backbone_count: int
) -> int:
    """Size of adapter_model.safetensors to the byte: 8 of length, a json header, fp32 data."""
    if adapter.method in ("full", "none"):
        return backbone_count * _FP32 if adapter.method == "full" else 0
    r = (adapter.r or 0) * (2 if adapter.method == "pissa" else 1)  # PiSSA is saved as LoRA
    shapes: dict[str, list[int]] = {}
    for module in modules:
        start = f"base_model.model.{module.name}"
        shapes[f"{start}.lora_A.weight"] = [r, module.in_features]
        shapes[f"{start}.lora_B.weight"] = [module.out_features, r]
        if adapter.method == "dora":
            shapes[f"{start}.lora_magnitude_vector"] = [module.out_features]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(shapes):
        begin, end = end, end + _FP32 * math.prod(shapes[name])
        header[name] = {"dtype": "F32", "shape": shapes[name], "data_offsets": [begin, end]}
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-length // 8) * 8 + end


class _Counter:
    """Walks a model forward and adds up products; knows where gradients have to go."""

    def __init__(
        self, adapter: AdapterConfig, modules: tuple[TargetModule, ...], batch: int
    ) -> None:
        self.adapter = adapter
        self.adapted = {m.name for m in modules}
        self.full = adapter.method == "full"
        self.batch = batch
        self.forward = 0
        self.backward = 0

    def linear(self, layer: LinearLayer, tokens: int, grad: bool) -> bool:
        """One layer on `tokens` tokens. `grad` and the answer: input, output ask for gradients."""
        product = 2 * tokens * layer.in_features * layer.out_features
        self.forward += product
        self.backward += product * (grad + self.full)
        if layer.name not in self.adapted:
            return grad or self.full
        r, dora = self.adapter.r or 0, self.adapter.method == "dora"
        down, up = 2 * tokens * layer.in_features * r, 2 * tokens * r * layer.out_features
        self.forward += down + up
        self.backward += down * (1 + grad) + 2 * up
        if self.adapter.method == "pissa":  # the frozen starting point
            self.forward += down + up
            self.backward += (down + up) * grad
        if dora:  # PEFT multiplies B A out for its norm, and repeats W x on dropped input
            self.forward += 2 * layer.in_features * r * (layer.in_features + layer.out_features)
            if self.adapter.dropout:
                self.forward += product
                self.backward += product * grad
        return True

    def attention(
        self,
        layers: dict[str, LinearLayer],
        queries: int,
        keys: int,
        grad: bool,
        keys_grad: bool,
    ) -> bool:
        """q, k, v, two products, o; lengths per row."""
        q = self.linear(layers["q"], self.batch * queries, grad)
        k = self.linear(layers["k"], self.batch * keys, keys_grad)
        v = self.linear(layers["v"], self.batch * keys, keys_grad)
        product = 2 * self.batch * queries * keys * layers["q"].out_features
        self.forward += 2 * product
        weights = q or k
        self.backward += product * (q + k + weights + v)
        return self.linear(layers["o"], self.batch * queries, weights or v)

    def feed_forward(self, layers: dict[str, LinearLayer], length: int, grad: bool) -> bool:
        tokens = self.batch * length
        inner = [self.linear(layers[n], tokens, grad) for n in ("gate", "up") if n in layers]
        return self.linear(layers["down"], tokens, any(inner))


Blocks = dict[tuple[str, int], dict[str, dict[str, LinearLayer]]]


def _blocks(config: "PretrainedConfig") -> Blocks:
    """(side, number) -> part -> role -> layer, encoder first."""
    blocks: Blocks = {}
    for layer in linear_layers(config):
        parts = blocks.setdefault((layer.side, layer.block), {})
        parts.setdefault(layer.part, {})[layer.role] = layer
    return blocks


def _walk(
    config: "PretrainedConfig",
    data: DataConfig,
    adapter: AdapterConfig,
    modules: tuple[TargetModule, ...],
) -> tuple[_Counter, dict[tuple[str, int], int]]:
    """Count a micro-batch; also the forward cost of each block whose output asks for gradients."""
    source, target = data.max_source_length, data.max_target_length
    counter = _Counter(adapter, modules, data.micro_batch_size)
    grad = encoder_grad = counter.full
    live: dict[tuple[str, int], int] = {}
    decoding = False
    for key, parts in _blocks(config).items():
        before = counter.forward
        if key[0] == "decoder" and not decoding:
            decoding, encoder_grad, grad = True, grad, counter.full
        length = target if decoding else source
        grad |= counter.attention(parts["self"], length, length, grad, grad)
        if decoding:
            grad |= counter.attention(parts["cross"], length, source, grad, encoder_grad)
        grad |= counter.feed_forward(parts["ffn"], length, grad)
        if grad:
            live[key] = counter.forward - before
    logits = 2 * data.micro_batch_size * target * config.d_model * config.vocab_size
    counter.forward += logits
    counter.backward += logits * (grad + counter.full)
    return counter, live


def _activation_bytes(
    config: "PretrainedConfig",
    cfg: TrainConfig,
    modules: tuple[TargetModule, ...],
    live: set[tuple[str, int]],
    precision: str,
    weight_bytes: int,
) -> tuple[int, int]:
    """Bytes kept for the backward pass of one micro-batch: (without, with) checkpointing.

    Only blocks that gradients reach (`live`) keep anything. Per token of a block: the input of each
    norm (fp32 inside), q, k, v and the attention's output, the inside of the feed-forward (6 widths
    for T5's gated GELU, which transformers computes step by step; 1 for a plain ReLU or GELU), one
    byte per element that dropout masks, the inputs of trained layers, and the additive position
    bias of T5's attention (heads x queries x keys). Twice the logits in fp32. Under autocast, fp32
    linear weights are held once more in 16 bit.

    Within 30 % of what autograd keeps for adapters everywhere; for adapters in few blocks or in the
    feed-forward of one side it says too much, because it counts whole blocks.
    """
    rows, source, target = (
        cfg.data.micro_batch_size,
        cfg.data.max_source_length,
        cfg.data.max_target_length,
    )
    mixed = precision != "32-true"
    element = _BF16 if mixed else weight_bytes
    hidden = rows * config.d_model
    # Outside autocast PEFT hands its fp32 weights an fp32 copy of the input.
    read = element if mixed or cfg.adapter.method == "full" else _FP32
    inputs = _trained_input_bytes(config, cfg.adapter, modules, (rows, source, target), read, mixed)
    dropping = bool(config.dropout_rate if config.model_type == "t5" else config.dropout)
    kept, largest, boundaries = 0, 0, 0
    for key, parts in _blocks(config).items():
        if key not in live:
            continue
        length, decoder = (target, True) if key[0] == "decoder" else (source, False)
        inner = parts["self"]["q"].out_features
        norms = 3 if decoder else 2
        size = norms * hidden * length * (_FP32 if element == _FP32 else _FP32 + element)
        size += 4 * rows * length * inner * element
        size += _bias_bytes(config, rows, length, length, element)
        if decoder:
            size += 2 * rows * (length + source) * inner * element
            size += _bias_bytes(config, rows, length, source, element)
        width = parts["ffn"]["up"].out_features
        size += (6 if "gate" in parts["ffn"] else 1) * rows * length * width * element
        if dropping:
            size += norms * hidden * length + rows * length * width
        size += inputs.get(key, 0)
        kept += size
        largest = max(largest, size)
        boundaries += hidden * length * element
    logits = 2 * rows * target * config.vocab_size * _FP32
    copies = 0
    if mixed and weight_bytes == _FP32:
        layers = linear_layers(config)
        copies = _BF16 * sum(x.in_features * x.out_features for x in layers)
        copies += _BF16 * config.d_model * config.vocab_size
    return kept + logits + copies, boundaries + largest + logits + copies


def _bias_bytes(
    config: "PretrainedConfig", rows: int, queries: int, keys: int, element: int
) -> int:
    """The mask that fused attention keeps: with T5's position bias one per head, else shared."""
    heads = config.num_attention_heads if config.model_type == "t5" else 1
    return rows * int(heads) * queries * keys * element


def _trained_input_bytes(
    config: "PretrainedConfig",
    adapter: AdapterConfig,
    modules: tuple[TargetModule, ...],
    batch: tuple[int, int, int],
    element: int,
    mixed: bool,
) -> dict[tuple[str, int], int]:
    """Inputs that trained layers keep for their weights' gradients, per block.

    One input serves q, k and v, or both halves of a gated feed-forward. Under autocast each layer
    casts a copy of its own; with adapter dropout it also drops one of its own, and keeps what was
    dropped. DoRA keeps two or three outputs per layer for its magnitudes. `batch` is rows, source
    and target length; `element` the bytes per number.
    """
    rows, source, target = batch
    names = {m.name for m in modules}
    full = adapter.method == "full"
    sizes: dict[tuple[str, int], int] = {}
    seen: set[tuple[str, int, str, str]] = set()
    for layer in linear_layers(config):
        if not full and layer.name not in names:
            continue
        reads_source = layer.side == "encoder" or (
            layer.part == "cross" and layer.role in ("k", "v")
        )
        tokens = rows * (source if reads_source else target)
        key = (layer.side, layer.block)
        group = {"q": "qkv", "k": "qkv", "v": "qkv", "up": "in", "gate": "in"}.get(layer.role)
        shared = (*key, layer.part, f"{group or layer.role}{reads_source}")
        size = 0
        if adapter.dropout:
            size += tokens * layer.in_features * (element + 1)
        elif mixed or shared not in seen:
            size += tokens * layer.in_features * element
        seen.add(shared)
        if not full:
            size += tokens * (adapter.r or 0) * element
        if adapter.method == "dora":
            size += tokens * layer.out_features * (3 if adapter.dropout else 2) * element
        sizes[key] = sizes.get(key, 0) + size
    return sizes


def _bytes(number: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number} B"


def _flop(number: int) -> str:
    for unit, size in (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number} FLOP"
