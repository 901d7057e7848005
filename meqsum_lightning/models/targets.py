"""Which linear layers of a backbone are adapted: presets, names, scopes and block numbers.

Works from shapes alone (meta device). Putting adapters on the chosen layers is `adapters`.
"""

import difflib
import functools
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from meqsum_lightning.config.schema import AdapterConfig, LayerPart
from meqsum_lightning.errors import UserError
from meqsum_lightning.models.shapes import meta_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Side = Literal["encoder", "decoder"]
Part = Literal["self", "cross", "ffn"]
_SIDES: tuple[Side, ...] = ("encoder", "decoder")

PRESETS: dict[str, tuple[str, ...]] = {
    "qv": ("q", "v"),
    "qkv": ("q", "k", "v"),
    "attention": ("q", "k", "v", "o"),
    "ffn": ("up", "gate", "down"),
    "all": ("q", "k", "v", "o", "up", "gate", "down"),
}

_NAMES = {
    "t5": re.compile(
        r"(?P<side>encoder|decoder)\.block\.(?P<block>\d+)\.layer\.\d+\."
        r"(?P<part>SelfAttention|EncDecAttention|DenseReluDense)\.(?P<leaf>\w+)"
    ),
    "bart": re.compile(
        r"model\.(?P<side>encoder|decoder)\.layers\.(?P<block>\d+)\."
        r"(?:(?P<part>self_attn|encoder_attn)\.)?(?P<leaf>\w+)"
    ),
}
_PARTS: dict[str | None, Part] = {
    "SelfAttention": "self",
    "EncDecAttention": "cross",
    "DenseReluDense": "ffn",
    "self_attn": "self",
    "encoder_attn": "cross",
    None: "ffn",
}
# What each layer does, by its last name. In a gated feed-forward wi_0 is the gate.
_ROLES = {
    "t5": {
        **{n: n for n in ("q", "k", "v", "o")},
        "wi": "up",
        "wi_0": "gate",
        "wi_1": "up",
        "wo": "down",
    },
    "bart": {
        "q_proj": "q",
        "k_proj": "k",
        "v_proj": "v",
        "out_proj": "o",
        "fc1": "up",
        "fc2": "down",
    },
}
# The plain attention names mean the same on every backbone, so that one list sweeps over models.
_ALIASES = {"bart": {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}, "t5": {}}
_OUTPUT_LAYER = "lm_head"


@dataclass(frozen=True)
class TargetModule:
    """A linear layer that is adapted.

    Attributes:
        name: Path inside the backbone, for example `encoder.block.0.layer.0.SelfAttention.q`.
        in_features: Width of its input.
        out_features: Width of its output.
    """

    name: str
    in_features: int
    out_features: int


@dataclass(frozen=True)
class LinearLayer(TargetModule):
    """Any linear layer inside a block, with its place in the architecture.

    Attributes:
        side: `encoder` or `decoder`.
        block: Number of the block on its side, from 0.
        part: Self-attention, cross-attention or feed-forward.
        role: q, k, v, o, up, gate or down.
    """

    side: Side
    block: int
    part: Part
    role: str

    @property
    def leaf(self) -> str:
        """The last part of the name."""
        return self.name.rpartition(".")[2]


def linear_layers(config: "PretrainedConfig") -> tuple[LinearLayer, ...]:
    """All linear layers inside the model's blocks, in the model's order.

    Raises:
        UserError: The model is not a T5 or BART.
    """
    return _catalogue(config.model_type, _Key(config))[0]


def select_modules(config: "PretrainedConfig", adapter: AdapterConfig) -> tuple[TargetModule, ...]:
    """The linear layers that an adapter changes.

    `adapter.target_modules` is a preset, a name or a list of names. A name is the last part of a
    layer's path or a longer end of it (`v`, `EncDecAttention.v`), as in PEFT; on BART the plain
    q, k, v and o stand for q_proj, k_proj, v_proj and out_proj. The output layer is never adapted.

    `adapter.layers` is a list of block numbers, for encoder and decoder alike, or a part of each
    side's own number of blocks (`part_of_blocks`, which says how is rounded). A part may be empty
    on one side (the middle third of two blocks), not on all of those in scope.

    Returns:
        The chosen layers in the model's order; none for the methods `full` and `none`.

    Raises:
        UserError: One line for each name that matches nothing (with what exists), each block
            number out of range, a part without any block, and a combination that selects nothing.
    """
    if adapter.method in ("full", "none"):
        return ()
    layers = linear_layers(config)
    scope = adapter.scope or "everywhere"
    in_scope = [layer for layer in layers if _in_scope(layer, scope)]
    lines = _block_mistakes(in_scope, adapter, scope)
    blocks = _chosen_blocks(layers, adapter.layers)
    candidates = [x for x in in_scope if lines or x.block in blocks[x.side]]

    single = adapter.target_modules
    if isinstance(single, str) and (
        single in PRESETS or not _matching(layers, single, config.model_type)
    ):
        roles, more = _preset(single, layers, config.model_type)
        lines += more
        chosen = [layer for layer in candidates if layer.role in roles]
        if not chosen and not lines:
            lines.append(
                f"adapter.target_modules={adapter.target_modules}: selects nothing with "
                f"adapter.scope={scope}; expected one of qv, qkv, attention, all for this scope"
            )
    else:
        names = [single] if isinstance(single, str) else single or []
        matched = {name: _matching(candidates, name, config.model_type) for name in names}
        for name, found in matched.items():
            if not found:
                lines.append(_name_mistake(name, layers, candidates, scope, config))
        if not names:
            lines.append(
                "adapter.target_modules=[]: selects nothing; expected one of "
                f"{', '.join(PRESETS)}, or names among {_listing(layers)}"
            )
        wanted = {layer.name for found in matched.values() for layer in found}
        chosen = [layer for layer in candidates if layer.name in wanted]
    if lines:
        raise UserError(lines)
    return tuple(TargetModule(x.name, x.in_features, x.out_features) for x in chosen)


def part_of_blocks(part: LayerPart, depth: int) -> range:
    """The blocks of one side that a part such as `first_third` names.

    Halves and thirds are cut at i n / k (k = 2, 3) rounded to the nearest block number, a half
    upwards: each block lies in exactly one half and in exactly one third. A side of three blocks
    has halves [0, 1], [2] and thirds [0], [1], [2]; of four, thirds [0], [1, 2], [3]; of five,
    [0, 1], [2], [3, 4]. With at least k blocks no part is empty; of two blocks the middle third is,
    and of one block the last half and the outer thirds are.

    Args:
        part: Name of the part.
        depth: Blocks of the side.
    """
    position, _, size = part.partition("_")
    parts = {"half": 2, "third": 3}[size]
    index = {"first": 0, "middle": 1, "last": parts - 1}[position]
    start, end = ((2 * i * depth + parts) // (2 * parts) for i in (index, index + 1))
    return range(start, end)


def adapter_parameter_count(modules: Iterable[TargetModule], r: int, method: str) -> int:
    """Trainable parameters of an adapter.

    A (r x in) and B (out x r) per layer: r (in + out) (Hu et al. 2021, arXiv:2106.09685, section
    4.1); DoRA adds one magnitude per output (Liu et al. 2024, arXiv:2402.09353, equation 5).
    """
    magnitudes = method == "dora"
    return sum(
        r * (m.in_features + m.out_features) + (m.out_features if magnitudes else 0)
        for m in modules
    )


def peft_targets(config: "PretrainedConfig", modules: Sequence[TargetModule]) -> list[str] | str:
    """`target_modules` for PEFT that selects exactly `modules` on any copy of the backbone.

    Returns:
        The last names (`["q", "v"]`) where these select nothing else, otherwise one regular
        expression, which PEFT matches against whole paths.
    """
    chosen = {m.name for m in modules}
    leaves = sorted({name.rpartition(".")[2] for name in chosen})
    every_name = _catalogue(config.model_type, _Key(config))[1]
    if {n for n in every_name if n.rpartition(".")[2] in leaves} == chosen:
        return leaves
    blocks: dict[tuple[str, str], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for name in (m.name for m in modules):
        before, block, after, leaf = _split_name(name)
        blocks[before, after][leaf].append(block)
    alternatives: dict[tuple[str, str, tuple[int, ...]], list[str]] = defaultdict(list)
    for (before, after), by_leaf in blocks.items():
        for leaf, numbers in by_leaf.items():
            alternatives[before, after, tuple(sorted(numbers))].append(leaf)
    patterns = [
        f"{re.escape(before)}({'|'.join(map(str, numbers))}){re.escape(after)}"
        f"({'|'.join(sorted(names))})"
        for (before, after, numbers), names in alternatives.items()
    ]
    return "|".join(f"(?:{pattern})" for pattern in patterns)


class _Key:
    """A configuration that hashes by its content, so that its modules are listed once."""

    def __init__(self, config: "PretrainedConfig"):
        self.config = config
        self.text = config.to_json_string(use_diff=False)

    def __hash__(self) -> int:
        return hash(self.text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.text == other.text


@functools.lru_cache(maxsize=16)
def _catalogue(kind: str, key: _Key) -> tuple[tuple[LinearLayer, ...], tuple[str, ...]]:
    """The linear layers inside blocks, and the names of all modules."""
    from torch import nn

    if kind not in _NAMES:
        raise UserError(f"model.backbone: a {kind} model has no known layers; expected T5 or BART")
    layers = []
    names = []
    for name, module in meta_model(key.config).named_modules():
        names.append(name)
        match = _NAMES[kind].fullmatch(name)
        if match is None or not isinstance(module, nn.Linear):
            continue
        layers.append(
            LinearLayer(
                name=name,
                in_features=module.in_features,
                out_features=module.out_features,
                side="encoder" if match["side"] == "encoder" else "decoder",
                block=int(match["block"]),
                part=_PARTS[match["part"]],
                role=_ROLES[kind][match["leaf"]],
            )
        )
    return tuple(layers), tuple(names)


def _in_scope(layer: LinearLayer, scope: str) -> bool:
    if scope == "everywhere":
        return True
    if scope == "cross":
        return layer.part == "cross"
    return layer.side == scope


def _chosen_blocks(
    layers: Sequence[LinearLayer], chosen: LayerPart | list[int] | None
) -> dict[Side, Collection[int]]:
    """Numbers of the blocks that `adapter.layers` leaves, by side."""
    blocks: dict[Side, Collection[int]] = {}
    for side in _SIDES:
        depth = 1 + max((x.block for x in layers if x.side == side), default=-1)
        if chosen is None:
            blocks[side] = range(depth)
        else:
            blocks[side] = part_of_blocks(chosen, depth) if isinstance(chosen, str) else chosen
    return blocks


def _block_mistakes(
    in_scope: Sequence[LinearLayer], adapter: AdapterConfig, scope: str
) -> list[str]:
    if adapter.layers is None:
        return []
    last = max(layer.block for layer in in_scope)
    if isinstance(adapter.layers, str):
        blocks = _chosen_blocks(in_scope, adapter.layers)
        if any(layer.block in blocks[layer.side] for layer in in_scope):
            return []
        return [
            f"adapter.layers={adapter.layers}: selects none of the {last + 1} blocks with "
            f"adapter.scope={scope}; expected another part, or numbers from 0 to {last}"
        ]
    if not adapter.layers:
        return [f"adapter.layers=[]: selects nothing; expected numbers from 0 to {last}, or null"]
    return [
        f"adapter.layers={number}: no such block with adapter.scope={scope}; "
        f"expected numbers from 0 to {last}"
        for number in dict.fromkeys(adapter.layers)
        if number > last
    ]


def _preset(
    name: str, layers: Sequence[LinearLayer], kind: str
) -> tuple[tuple[str, ...], list[str]]:
    if name in PRESETS:
        return PRESETS[name], []
    expected = f"expected one of {', '.join(PRESETS)}, or a list of names such as [q,v]"
    parts = [part.strip() for part in name.split(",")]
    if all(_matching(layers, part, kind) for part in parts):
        # `-m adapter.target_modules=q,v` makes two jobs; one list was probably meant.
        listing = f"[{','.join(parts)}]"
        return (), [f"adapter.target_modules={name}: a list is written {listing}; {expected}"]
    close = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return (), [f"adapter.target_modules={name}: no such preset; {hint}{expected}"]


def _matching(layers: Iterable[LinearLayer], name: str, kind: str) -> list[LinearLayer]:
    wanted = _ALIASES[kind].get(name, name)
    return [x for x in layers if x.name == wanted or x.name.endswith(f".{wanted}")]


def _name_mistake(
    name: str,
    layers: Sequence[LinearLayer],
    candidates: Sequence[LinearLayer],
    scope: str,
    config: "PretrainedConfig",
) -> str:
    key = f"adapter.target_modules={name}"
    if name in PRESETS:
        return f"{key}: a preset stands alone, outside a list; expected names among " + _listing(
            layers
        )
    if name == _OUTPUT_LAYER or name.endswith(f".{_OUTPUT_LAYER}"):
        return f"{key}: the output layer is never adapted; expected names among {_listing(layers)}"
    if _matching(layers, name, config.model_type):
        return (
            f"{key}: no such layer with the chosen adapter.scope={scope} and adapter.layers; "
            f"expected names among {_listing(candidates)}"
        )
    close = difflib.get_close_matches(name, sorted({x.leaf for x in layers}), n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return (
        f"{key}: no linear layer of this name in the model; {hint}"
        f"expected names among {_listing(layers)}"
    )


def _listing(layers: Iterable[LinearLayer]) -> str:
    return ", ".join(dict.fromkeys(layer.leaf for layer in layers))


def _split_name(name: str) -> tuple[str, int, str, str]:
    """`encoder.block.3.layer.0.SelfAttention.q` -> before and after the block number, last name."""
    match = re.fullmatch(r"(.*?\.(?:block|layers)\.)(\d+)(\..*\.|\.)(\w+)", name)
    if match is None:  # every entry of the catalogue has a block number
        raise ValueError(f"{name} is not a layer inside a block")
    return match[1], int(match[2]), match[3], match[4]
