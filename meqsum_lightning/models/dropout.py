"""Dropout of adapter inputs whose mask belongs to the row, whoever shares its batch.

It replaces PEFT's `lora_dropout` modules; the backbone's own dropout is not touched.
"""

import hashlib
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

# A mask is 16 bits per element, four elements to one 64-bit hash: probabilities are multiples of
# 2^-16, and four times fewer hashes are computed than with one per element.
_LEVELS = 1 << 16
_PER_HASH = 4
_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


class RowDropout(nn.Module):
    """Dropout keyed by (row, layer, token position, feature).

    The mask is a hash, not a stream of random numbers: neither the other rows of the batch nor its
    padding on the right matter, and recomputing an activation gives the same mask. The hash is a
    counter-based generator in the sense of Salmon et al. 2011 ("Parallel random numbers: as easy as
    1, 2, 3") built from the multiplications and shifts of MurmurHash3's 64-bit finaliser.

    Args:
        p: Probability of dropping an element, in [0, 1); rounded to a multiple of 2^-16.
        layer: Name of the layer; layers of different names have independent masks.
        slot: Where the keys of the current forward pass are found, shared by a model's layers.
    """

    def __init__(self, p: float, layer: str, slot: "KeySlot"):
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ValueError(f"expected a probability in [0, 1), got {p}")
        self.p = p
        self.layer = layer
        self.slot = slot
        self._dropped_levels = min(round(p * _LEVELS), _LEVELS - 1)
        self._scale = _LEVELS / (_LEVELS - self._dropped_levels)
        self._features: tuple[tuple[int, torch.device], Tensor] | None = None

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
        _, tokens, features = x.shape
        chunks = -(-features // _PER_HASH)
        # (rows, tokens, 1) ^ (chunks,): both sides are well mixed already, so two multiplications
        # with a shift between them are enough. The shift drags the sign along, which costs the
        # highest bit of the intermediate value and saves a masking pass; it would bias a last step.
        hashes = active.positions(tokens, x.device) ^ self._feature_table(chunks, x.device)
        hashes = hashes.mul_(_signed(0xFF51AFD7ED558CCD))
        hashes ^= hashes >> 32
        hashes = hashes.mul_(_signed(0xC4CEB9FE1A85EC53))
        levels = hashes.view(torch.int16)[..., :features]
        return levels < self._dropped_levels - _LEVELS // 2

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"p={self.p}"

    def _feature_table(self, chunks: int, device: torch.device) -> Tensor:
        """Mixed words of this layer's features, four to a word: (chunks,) int64."""
        key = (chunks, device)
        if self._features is None or self._features[0] != key:
            digest = hashlib.blake2b(self.layer.encode(), digest_size=8).digest()
            start = _signed(int.from_bytes(digest, "little"))
            counters = torch.arange(1, chunks + 1, dtype=torch.int64) * _signed(_GOLDEN)
            self._features = (key, _mixed(counters + start).to(device))
        return self._features[1]


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
    before, slot.active = slot.active, ActiveKeys(keys)
    try:
        yield
    finally:
        slot.active = before


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


def replace_adapter_dropout(model: nn.Module) -> int:
    """Puts `RowDropout` in the place of PEFT's adapter dropouts, with the same probabilities.

    Args:
        model: A model with PEFT adapters attached; changed in place.

    Returns:
        The number of modules replaced: 0 with a dropout of 0, for which PEFT has no modules.
    """
    slot = _find_slot(model) or KeySlot()
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
        return nullcontext(), _Restored(slot, slot.active)

    return contexts


@dataclass(eq=False)
class ActiveKeys:
    """Keys of one forward pass, and the words derived from them."""

    keys: Tensor  # (batch,) int64
    _cache: dict[tuple[int, torch.device], Tensor] = field(default_factory=dict)

    def positions(self, tokens: int, device: torch.device) -> Tensor:
        """Mixed words of row and position, the same for all layers: (batch, tokens, 1) int64."""
        if (tokens, device) not in self._cache:
            counters = torch.arange(1, tokens + 1, device=device) * _signed(_GOLDEN)
            words = _mixed(_mixed(self.keys.to(device))[:, None] + counters)
            self._cache[tokens, device] = words[:, :, None]
        return self._cache[tokens, device]


@dataclass(eq=False)
class KeySlot:
    """Where the layers of one model find the keys: one object, so that setting them is cheap."""

    active: ActiveKeys | None = None


class _Restored(AbstractContextManager[None]):
    """Puts keys back into a slot for a recomputation; may be entered again."""

    def __init__(self, slot: KeySlot, keys: ActiveKeys | None):
        self.slot, self.keys = slot, keys
        self.before: list[ActiveKeys | None] = []

    def __enter__(self) -> None:
        self.before.append(self.slot.active)
        self.slot.active = self.keys

    def __exit__(self, *_: object) -> None:
        self.slot.active = self.before.pop()


# Walking thousands of modules at each step would cost milliseconds.
_slots: "weakref.WeakKeyDictionary[nn.Module, KeySlot]" = weakref.WeakKeyDictionary()


def _find_slot(model: nn.Module) -> KeySlot | None:
    """The slot that the model's dropouts share, None if it has none."""
    slot = _slots.get(model)
    if slot is None:
        found = (module.slot for module in model.modules() if isinstance(module, RowDropout))
        slot = next(found, None)
        if slot is not None:
            _slots[model] = slot
    return slot


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
