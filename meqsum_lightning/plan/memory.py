"""Bytes: the adapter's tensors and file, the optimizer's state, what the backward pass needs.

Shapes only; which blocks gradients reach is `compute`'s business.
"""

import json
import math
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from meqsum_lightning.config.schema import AdapterConfig, OptimConfig, TrainConfig
from meqsum_lightning.models.targets import TargetModule, linear_layers
from meqsum_lightning.plan.compute import BlockKey, Parts, blocks

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FP32 = 4
BF16 = 2

Shape = tuple[int, ...]


def adapter_shapes(modules: Iterable[TargetModule], method: str, r: int) -> dict[str, Shape]:
    """The tensors of an adapter, by their names in its file."""
    shapes: dict[str, Shape] = {}
    for module in modules:
        start = f"base_model.model.{module.name}"
        shapes[f"{start}.lora_A.weight"] = (r, module.in_features)
        shapes[f"{start}.lora_B.weight"] = (module.out_features, r)
        if method == "dora":
            shapes[f"{start}.lora_magnitude_vector"] = (module.out_features,)
    return shapes


def disk_bytes(adapter: AdapterConfig, modules: Iterable[TargetModule], backbone_count: int) -> int:
    """Size of what is saved: of adapter_model.safetensors to the byte, or of fp32 weights.

    The adapter's file: 8 bytes of length, a json header, fp32 data. PiSSA is saved as a LoRA of
    twice the rank.
    """
    if adapter.method in ("full", "none"):
        return backbone_count * FP32 if adapter.method == "full" else 0
    r = (adapter.r or 0) * (2 if adapter.method == "pissa" else 1)
    shapes = adapter_shapes(modules, adapter.method, r)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(shapes):
        begin, end = end, end + FP32 * math.prod(shapes[name])
        header[name] = {"dtype": "F32", "shape": shapes[name], "data_offsets": [begin, end]}
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + math.ceil(length / 8) * 8 + end


def optimizer_bytes(optim: OptimConfig, shapes: Collection[Shape]) -> int:
    """fp32 state: two moments for Adam's kin, factored ones for Adafactor, momentum for SGD.

    Adafactor keeps one row and one column per matrix (Shazeer and Stern 2018, arXiv:1804.04235,
    section 3). An optimizer that is not known is counted like Adam.
    """
    name = optim.optimizer.target.rpartition(".")[2]
    arguments = optim.optimizer.arguments
    count = sum(map(math.prod, shapes))
    if name == "Adafactor":
        factored = sum(sum(s) if len(s) == 2 else math.prod(s) for s in shapes)
        first = count if arguments.get("beta1") is not None else 0
        return FP32 * (factored + first)
    if name == "SGD":
        return FP32 * count if arguments.get("momentum") else 0
    return 2 * FP32 * count


def activation_bytes(
    config: "PretrainedConfig",
    cfg: TrainConfig,
    modules: tuple[TargetModule, ...],
    live: Collection[BlockKey],
    precision: str,
    weight_bytes: int,
) -> tuple[int, int]:
    """Bytes kept for the backward pass of one micro-batch: (without, with) checkpointing.

    By the kind of count in Korthikanti et al. 2022 (arXiv:2205.05198, section 4), for these models
    as transformers runs them with fused attention.

    Only blocks that gradients reach (`live`) keep anything: what `_block_bytes` counts, one byte
    per element that dropout masks, and the inputs of trained layers. Twice the logits in fp32.
    Under autocast, fp32 linear weights are held once more in 16 bit.

    Within 30 % of what autograd keeps for adapters everywhere; for adapters in few blocks or in the
    feed-forward of one side it says too much, because it counts whole blocks.
    """
    rows = cfg.data.micro_batch_size
    lengths = {"encoder": cfg.data.max_source_length, "decoder": cfg.data.max_target_length}
    mixed = precision != "32-true"
    element = BF16 if mixed else weight_bytes
    # Outside autocast PEFT hands its fp32 weights an fp32 copy of the input.
    read = element if mixed or cfg.adapter.method == "full" else FP32
    inputs = _trained_input_bytes(config, cfg, modules, read, mixed)
    kept, largest, boundaries = 0, 0, 0
    for key, parts in blocks(config).items():
        if key not in live:
            continue
        length = lengths[key[0]]
        size = _block_bytes(config, parts, rows, length, lengths["encoder"], element)
        size += inputs.get(key, 0)
        kept += size
        largest = max(largest, size)
        boundaries += rows * length * config.d_model * element
    always = 2 * rows * lengths["decoder"] * config.vocab_size * FP32
    if mixed and weight_bytes == FP32:
        always += BF16 * sum(x.in_features * x.out_features for x in linear_layers(config))
        always += BF16 * config.d_model * config.vocab_size
    return kept + always, boundaries + largest + always


def _block_bytes(
    config: "PretrainedConfig", parts: Parts, rows: int, length: int, source: int, element: int
) -> int:
    """What a block keeps, whatever is trained in it.

    Per token the input of each norm (fp32 inside), q, k, v and the attention's output, the inside
    of the feed-forward (6 widths for T5's gated GELU, which transformers computes step by step; 1
    for a plain ReLU or GELU), the masks of dropout; and the mask of each attention.
    """
    tokens = rows * length
    inner = parts["self"]["q"].out_features
    width = parts["ffn"]["up"].out_features
    # Fused attention keeps its additive mask: T5's position bias is one per head, else shared.
    heads = config.num_attention_heads if config.model_type == "t5" else 1
    norms = 2
    size = 4 * tokens * inner * element + heads * tokens * length * element
    if "cross" in parts:
        norms = 3
        size += 2 * rows * (length + source) * inner * element + heads * tokens * source * element
    size += norms * tokens * config.d_model * (FP32 if element == FP32 else FP32 + element)
    size += (6 if "gate" in parts["ffn"] else 1) * tokens * width * element
    if config.dropout_rate if config.model_type == "t5" else config.dropout:
        size += norms * tokens * config.d_model + tokens * width
    return int(size)


def _trained_input_bytes(
    config: "PretrainedConfig",
    cfg: TrainConfig,
    modules: tuple[TargetModule, ...],
    element: int,
    mixed: bool,
) -> dict[BlockKey, int]:
    """Inputs that trained layers keep for their weights' gradients, per block.

    One input serves q, k and v, or both halves of a gated feed-forward. Under autocast each layer
    casts a copy of its own; with adapter dropout it also drops one of its own, and keeps what was
    dropped. DoRA keeps two or three outputs per layer for its magnitudes. `element` is the bytes
    per number.
    """
    adapter, data = cfg.adapter, cfg.data
    names = {m.name for m in modules}
    full = adapter.method == "full"
    sizes: dict[BlockKey, int] = {}
    seen: set[tuple[str, int, str, str, bool]] = set()
    for layer in linear_layers(config):
        if not full and layer.name not in names:
            continue
        reads_source = layer.side == "encoder" or (
            layer.part == "cross" and layer.role in ("k", "v")
        )
        length = data.max_source_length if reads_source else data.max_target_length
        tokens = data.micro_batch_size * length
        key = (layer.side, layer.block)
        group = {"q": "qkv", "k": "qkv", "v": "qkv", "up": "in", "gate": "in"}.get(layer.role)
        shared = (*key, layer.part, group or layer.role, reads_source)
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
