"""Dropout of adapter inputs whose mask belongs to the row, whoever shares its batch.

It replaces PEFT's `lora_dropout` modules and serves packed layers; the backbone's own dropout is
not touched.
"""

import hashlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

# A mask is 16 bits per element, four elements to one 64-bit hash: probabilities are multiples of
# 2^-16, and four times fewer hashes are computed than with one per element.
_LEVELS = 1 << 16
_PER_HASH = 4
_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


class KeyedMask(nn.Module):
    """Reproducible 16-bit words keyed by (row, layer, token position, feature).

    They are a hash, not a stream of random numbers: neither the other rows of the batch nor its
    padding on the right matter, and recomputing an activation gives the same words. The hash is a
    counter-based generator in the sense of Salmon et al. 2011 ("Parallel random numbers: as easy as
    1, 2, 3") built from the multiplications and shifts of MurmurHash3's 64-bit finaliser.

    Args:
        layer: Name of the layer; layers of different names have independent words.
        slot: Where the keys of the current forward pass are found, shared by a model's layers.
    """

    def __init__(self, layer: str, slot: "KeySlot"):
        super().__init__()
        self.layer = layer
        self.slot = slot
        self._features: tuple[tuple[int, torch.device], Tensor] | None = None

    def active_keys(self, x: Tensor) -> "ActiveKeys":
        """The keys of the current forward pass, one for each row of `x`.

        Raises:
            RuntimeError: Outside `row_keys`, or with another number of rows than keys.
        """
        active = self.slot.active
        if active is None:
            raise RuntimeError(
                f"{self.layer}: row dropout in training needs the keys of the rows: call the model "
                "inside `with row_keys(model, keys):`; where activation checkpointing recomputes "
                "after that block, give it `context_fn=recompute_context(model)`"
            )
        if x.ndim != 3 or len(x) != len(active.keys):
            raise RuntimeError(
                f"{self.layer}: expected (rows, tokens, features) for {len(active.keys)} row keys, "
                f"got {tuple(x.shape)}"
            )
        return active

    def words(self, x: Tensor, rows: slice = slice(None)) -> Tensor:
        """Uniform int16 words for some rows of `x`: (rows, tokens, features)."""
        active = self.active_keys(x)
        _, tokens, features = x.shape
        chunks = -(-features // _PER_HASH)
        # (rows, tokens, 1) ^ (chunks,): both sides are well mixed already, so two multiplications
        # with a shift between them are enough. The shift drags the sign along, which costs the
        # highest bit of the intermediate value and saves a masking pass; it would bias a last step.
        positions = active.positions(tokens, x.device)[rows]
        hashes = positions ^ self._feature_table(chunks, x.device)
        hashes = hashes.mul_(_signed(0xFF51AFD7ED558CCD))
        hashes ^= hashes >> 32
        hashes = hashes.mul_(_signed(0xC4CEB9FE1A85EC53))
        return hashes.view(torch.int16)[..., :features]

    def _feature_table(self, chunks: int, device: torch.device) -> Tensor:
        """Mixed words of this layer's features, four to a word: (chunks,) int64."""
        key = (chunks, device)
        if self._features is None or self._features[0] != key:
            digest = hashlib.blake2b(self.layer.encode(), digest_size=8).digest()
            start = _signed(int.from_bytes(digest, "little"))
            counters = torch.arange(1, chunks + 1, dtype=torch.int64) * _signed(_GOLDEN)
            self._features = (key, _mixed(counters + start).to(device))
        return self._features[1]


class RowDropout(KeyedMask):
    """Dropout of one probability whose mask is keyed by (row, layer, token position, feature).

    Args:
        p: Probability of dropping an element, in [0, 1); rounded to a multiple of 2^-16.
        layer: Name of the layer; layers of different names have independent masks.
        slot: Where the keys of the current forward pass are found, shared by a model's layers.
    """

    def __init__(self, p: float, layer: str, slot: "KeySlot"):
        super().__init__(layer, slot)
        self.p = p
        self._dropped_levels = _dropped_levels(p)
        self._scale = _LEVELS / (_LEVELS - self._dropped_levels)

    def forward(self, x: Tensor) -> Tensor:
        """Drops and rescales in training; the identity in evaluation, and when `p` is 0.

        Args:
            x: (batch, tokens, features), padded on the right.

        Raises:
            RuntimeError: In training outside `row_keys`, or with another number of rows than keys.
        """
        if not self.training or self._dropped_levels == 0:
            return x
        return x.masked_fill(self.dropped(x), 0.0) * self._scale

    def dropped(self, x: Tensor) -> Tensor:
        """Which elements of `x` are dropped: bool, the shape of `x`."""
        return self.words(x) < self._dropped_levels - _LEVELS // 2

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"p={self.p}"


class GroupedRowDropout(KeyedMask):
    """`RowDropout` for a batch whose groups of rows have probabilities of their own.

    A group's mask and scale are those of a `RowDropout` of its probability on its rows alone.
    """

    def forward(self, x: Tensor, groups: Sequence[tuple[int, float]]) -> Tensor:
        """Drops and rescales in training; the identity in evaluation.

        Args:
            x: (batch, tokens, features), padded on the right.
            groups: Rows and probability of each group, in the order of the batch. Groups of
                probability 0 are left alone.

        Raises:
            RuntimeError: In training outside `row_keys`, or with another number of rows than keys.
        """
        levels = tuple((rows, _dropped_levels(p)) for rows, p in groups if rows)
        if not self.training or not any(level for _, level in levels):
            return x
        active = self.active_keys(x)
        limits, scales = active.limits(levels, x.device, x.dtype)
        spans = _spans(levels)
        if spans == [slice(0, len(x))]:
            dropped = self.words(x) < limits
        else:
            dropped = torch.zeros_like(x, dtype=torch.bool)
            for span in spans:
                dropped[span] = self.words(x, span) < limits[span]
        return x.masked_fill(dropped, 0.0) * scales


@contextmanager
def row_keys(model: nn.Module, keys: Tensor) -> Iterator[None]:
    """Sets the keys of the rows for the forward passes of `model` inside the block.

    Encoder and decoder see the same rows in the same order. A model without `RowDropout` ignores
    the keys.

    Args:
        model: A model, or anything that contains one.
        keys: (batch,) int64, one `row_key` per row.

    Raises:
        ValueError: The keys are not a vector of int64.
    """
    if keys.ndim != 1 or keys.dtype != torch.int64:
        raise ValueError(f"expected keys (batch,) of int64, got {tuple(keys.shape)} {keys.dtype}")
    slot = _find_slot(model)
    if slot is None:
        yield
        return
    with Restored(slot, ActiveKeys(keys)):
        yield


def row_key(seed: int, step: int, row_index: int) -> int:
    """A stable key of one row at one step: the same on every machine and in every process.

    Args:
        seed: The run's seed.
        step: Optimizer step, or anything that tells two visits of a row apart.
        row_index: Row number within the training split.

    Returns:
        A signed 64-bit integer, as `torch.int64` holds it.
    """
    word = 0
    for value in (seed, step, row_index):
        word = _mixed_word((word ^ (value & _WORD)) + _GOLDEN)
    return _signed(word)


def key_slot(model: nn.Module) -> "KeySlot":
    """The slot that the dropouts of a model share; made and remembered if it has none yet."""
    slot = _find_slot(model)
    if slot is None:
        slot = _slots[model] = KeySlot()
    return slot


def replace_adapter_dropout(model: nn.Module) -> int:
    """Puts `RowDropout` in the place of PEFT's adapter dropouts, with the same probabilities.

    Args:
        model: A model with PEFT adapters attached; changed in place.

    Returns:
        The number of modules replaced: 0 with a dropout of 0, for which PEFT has no modules.
    """
    slot = key_slot(model)
    replaced = 0
    for name, module in model.named_modules():
        dropouts = getattr(module, "lora_dropout", None)
        if not isinstance(dropouts, nn.ModuleDict):
            continue
        for adapter, dropout in dropouts.items():
            if isinstance(dropout, nn.Dropout):
                dropouts[adapter] = RowDropout(dropout.p, _layer_name(name), slot)
                dropouts[adapter].train(dropout.training)
                replaced += 1
    return replaced


def recompute_context(
    model: nn.Module,
) -> Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]:
    """`context_fn` of `torch.utils.checkpoint`: recomputing sees the keys of its forward pass.

    A backward pass inside the block of `row_keys` finds the keys anyway. One that runs after the
    block, perhaps after other forward passes, needs this:

        model.activation_checkpointing_enable(
            {"use_reentrant": False, "context_fn": recompute_context(model)}
        )

    Args:
        model: A model, or anything that contains one; adapters may be attached later.
    """
    # transformers keeps the function inside the model: a strong reference would be a cycle.
    reference = weakref.ref(model)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        owner = reference()
        slot = None if owner is None else _find_slot(owner)
        if slot is None:
            return nullcontext(), nullcontext()
        return nullcontext(), Restored(slot, slot.active)

    return contexts


@dataclass(eq=False)
class ActiveKeys:
    """Keys of one forward pass, and the words derived from them."""

    keys: Tensor  # (batch,) int64
    _cache: dict[tuple[int, torch.device], Tensor] = field(default_factory=dict)
    _limits: dict[tuple[object, ...], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def positions(self, tokens: int, device: torch.device) -> Tensor:
        """Mixed words of row and position, the same for all layers: (batch, tokens, 1) int64."""
        if (tokens, device) not in self._cache:
            counters = torch.arange(1, tokens + 1, device=device) * _signed(_GOLDEN)
            words = _mixed(_mixed(self.keys.to(device))[:, None] + counters)
            self._cache[tokens, device] = words[:, :, None]
        return self._cache[tokens, device]

    def limits(
        self, levels: tuple[tuple[int, int], ...], device: torch.device, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Words below the limit are dropped, others scaled: (batch, 1, 1) int16, and of `dtype`.

        Args:
            levels: Rows and dropped levels of each group.
            device: Where the tensors are needed.
            dtype: Type of the scales.
        """
        key = (levels, device, dtype)
        if key not in self._limits:
            limits = [level - _LEVELS // 2 for rows, level in levels for _ in range(rows)]
            scales = [_LEVELS / (_LEVELS - level) for rows, level in levels for _ in range(rows)]
            self._limits[key] = (
                torch.tensor(limits, dtype=torch.int16, device=device)[:, None, None],
                torch.tensor(scales, dtype=dtype, device=device)[:, None, None],
            )
        return self._limits[key]


@dataclass(eq=False)
class KeySlot:
    """Where the layers of one model find the keys: one object, so that setting them is cheap."""

    active: ActiveKeys | None = None


class Restored(AbstractContextManager[None]):
    """Puts a value into `slot.active`, and the earlier one back at the end; may be entered again.

    Args:
        slot: Anything with an attribute `active` (a `KeySlot`, say).
        active: The value inside the block.
    """

    def __init__(self, slot: Any, active: Any):
        self.slot, self.active = slot, active
        self.before: list[Any] = []

    def __enter__(self) -> None:
        self.before.append(self.slot.active)
        self.slot.active = self.active

    def __exit__(self, *_: object) -> None:
        self.slot.active = self.before.pop()


# Walking thousands of modules at each step would cost milliseconds.
_slots: "weakref.WeakKeyDictionary[nn.Module, KeySlot]" = weakref.WeakKeyDictionary()


def _find_slot(model: nn.Module) -> KeySlot | None:
    """The slot that the model's dropouts share, None if it has none."""
    slot = _slots.get(model)
    if slot is None:
        found = (module.slot for module in model.modules() if isinstance(module, KeyedMask))
        slot = next(found, None)
        if slot is not None:
            _slots[model] = slot
    return slot


def _dropped_levels(p: float) -> int:
    """How many of the levels of a word are dropped."""
    if not 0.0 <= p < 1.0:
        raise ValueError(f"expected a probability in [0, 1), got {p}")
    return min(round(p * _LEVELS), _LEVELS - 1)


def _spans(levels: Sequence[tuple[int, int]]) -> list[slice]:
    """The longest stretches of rows that all have dropout."""
    spans: list[slice] = []
    start = 0
    for rows, level in levels:
        stop = start + rows
        if level and spans and spans[-1].stop == start:
            spans[-1] = slice(spans[-1].start, stop)
        elif level:
            spans.append(slice(start, stop))
        start = stop
    return spans


def _layer_name(name: str) -> str:
    """Name of a layer within the backbone, whatever wraps it (PEFT, Lightning, DDP)."""
    return name.rpartition("base_model.model.")[2]


def _mixed(words: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64 words (Steele et al. 2014, "Fast splittable ...")."""
    words = (words ^ _logical_shift(words, 30)) * _signed(0xBF58476D1CE4E5B9)
    words = (words ^ _logical_shift(words, 27)) * _signed(0x94D049BB133111EB)
    return words ^ _logical_shift(words, 31)


def _mixed_word(word: int) -> int:
    """`_mixed` on one unsigned Python integer."""
    word &= _WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)


def _logical_shift(words: Tensor, bits: int) -> Tensor:
    """Shift to the right that fills with zeros (int64's own repeats the sign)."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    """An unsigned 64-bit word as the int64 of the same bits."""
    return word - (1 << 64) if word >> 63 else word
