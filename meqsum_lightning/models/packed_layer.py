"""A linear layer with several low-rank branches, each for its own rows of the batch.

Which branches there are, and where their weights come from, is `packed`.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meqsum_lightning.models.dropout import GroupedRowDropout, KeySlot, Restored

Grouping = Literal["each", "rank", "padded"]
"""Which branches share one batched product: none, those of one rank, or all (padded with zeros)."""


@dataclass(eq=False)
class RowGroups:
    """Which rows of a batch belong to which adapter.

    Attributes:
        order: Adapters in the order of their rows, each at most once.
        sizes: Number of rows of each, 0 or more.
    """

    order: tuple[int, ...]
    sizes: tuple[int, ...]
    _plans: dict[tuple[Any, ...], "_Plan"] = field(default_factory=dict)
    _weights: dict[tuple[Any, ...], tuple[Any, list["_Stack"]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.order) != len(self.sizes) or min(self.sizes, default=0) < 0:
            raise ValueError(
                f"{len(self.order)} adapters and rows {self.sizes}: one count for each"
            )
        if len(set(self.order)) != len(self.order):
            raise ValueError(f"an adapter occurs twice in {self.order}")


@dataclass(eq=False)
class RowSlot:
    """Where the layers of one model find the groups: one object, so that setting them is cheap."""

    active: RowGroups | None = None

    def groups(self, order: Sequence[int], sizes: Sequence[int]) -> AbstractContextManager[None]:
        """Groups for the forward passes inside the block."""
        return Restored(self, RowGroups(tuple(order), tuple(sizes)))


class Branch(nn.Module):
    """Weights of one adapter in one layer: adds scale * B A dropout(x).

    Args:
        lora_a: A, (rank, in).
        lora_b: B, (out, rank).
        scale: alpha / rank or alpha / sqrt(rank).
        dropout: Probability of dropping an element of the input.
    """

    def __init__(self, lora_a: nn.Parameter, lora_b: nn.Parameter, scale: float, dropout: float):
        super().__init__()
        self.lora_A = lora_a
        self.lora_B = lora_b
        self.scale = scale
        self.dropout = dropout

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.lora_A.shape[0]

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"rank={self.rank}, scale={self.scale:g}, dropout={self.dropout:g}"


class PackedLinear(nn.Module):
    """A frozen linear layer for all rows, and a low-rank branch per adapter for its own rows.

    An adapter without a branch here contributes nothing. Nothing is ever added over rows of two
    adapters: NaN or infinity in one's rows or weights stays with it. Types follow PEFT's layer: the
    branches compute in the type of their weights, or that of autocast, and the sum has the type of
    the frozen product.

    Args:
        base_layer: The frozen layer; kept as it is, and to be put back when the pack is dissolved.
        name: Its path inside the backbone, which the masks of dropout depend on.
        rows: Where the groups of the current forward pass are found.
        keys: Where the keys of its rows are found, for dropout.
        grouping: Which branches share a batched product; None: chosen by device and size.
    """

    def __init__(
        self,
        base_layer: nn.Linear,
        name: str,
        rows: RowSlot,
        keys: KeySlot,
        grouping: Grouping | None = None,
    ):
        super().__init__()
        self.base_layer = base_layer
        self.name = name
        self.rows = rows
        self.grouping = grouping
        self.branches = nn.ModuleDict()
        self.row_dropout = GroupedRowDropout(name, keys)

    @property
    def weight(self) -> Tensor:
        """The frozen weight: T5's feed-forward asks for its type."""
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias."""
        return self.base_layer.bias

    @property
    def in_features(self) -> int:
        """Width of the input."""
        return self.base_layer.in_features

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return self.base_layer.out_features

    def branch(self, index: int) -> Branch | None:
        """The branch of an adapter, None where it does not target this layer."""
        key = str(index)
        return cast(Branch, self.branches[key]) if key in self.branches else None

    def forward(self, x: Tensor) -> Tensor:
        """Frozen product of all rows plus each adapter's update of its own.

        Args:
            x: (rows, ..., in). Without gradients the rows may be a multiple of those declared, as
                beam search makes it: each row is repeated in its place.

        Returns:
            (rows, ..., out).

        Raises:
            RuntimeError: Outside a block that declares the rows, or with other rows than declared.
        """
        groups = self.rows.active
        if groups is None:
            raise RuntimeError(
                f"{self.name}: a packed layer needs to know whose rows it gets: call the model "
                "inside `with pack.rows([...]):`; where activation checkpointing recomputes after "
                "that block, give it `context_fn=pack.recompute_context()`"
            )
        branches = self._present(groups)
        if not branches:
            return cast(Tensor, self.base_layer(x))
        copies = self._copies(len(x), groups)
        # On a CPU multiplying padding costs more than more calls do: a step of 16 adapters of ranks
        # 4 to 64 takes 15 % less time with separate products (benchmarks/packed_layer.py). On a GPU
        # each call costs a launch, and zeros next to nothing.
        plan = _plan(groups, branches, copies, self.grouping or ("padded" if x.is_cuda else "each"))
        dropped = None
        if self.training and any(rate for _, rate in plan.rates):
            kind = next(iter(branches.values())).lora_A.dtype
            dropped = self.row_dropout(x.to(kind), plan.rates)
        weights = [branch.lora_A for branch in branches.values()]
        weights += [branch.lora_B for branch in branches.values()]
        scales = tuple(branch.scale for branch in branches.values())
        dtype = _compute_dtype(x, weights[0].dtype)
        base = self.base_layer
        if torch.is_grad_enabled():
            out = _PackedProduct.apply(
                x, dropped, base.weight, base.bias, plan.buckets, scales, dtype, *weights
            )
            return cast(Tensor, out)
        source = x if dropped is None else dropped
        stacks = self._stacks(groups, plan, scales, dtype, weights)
        return _product(x, source.to(dtype), base.weight, base.bias, plan.buckets, stacks)[0]

    def _present(self, groups: RowGroups) -> dict[int, Branch]:
        """The branches that have rows, in the order of the rows."""
        found = {}
        for index, size in zip(groups.order, groups.sizes, strict=True):
            branch = self.branch(index)
            if size and branch is not None:
                found[index] = branch
        return found

    def _copies(self, rows: int, groups: RowGroups) -> int:
        """How often each declared row stands in the batch: once, or the number of beams."""
        declared = sum(groups.sizes)
        copies = rows // declared if declared else 0
        if copies * declared != rows or (copies != 1 and torch.is_grad_enabled()):
            raise RuntimeError(
                f"{self.name}: {rows} rows came, {declared} were declared ({groups.sizes})"
            )
        return copies

    def _stacks(
        self,
        groups: RowGroups,
        plan: "_Plan",
        scales: Sequence[float],
        dtype: torch.dtype,
        weights: Sequence[Tensor],
    ) -> list["_Stack"]:
        """Stacked weights; without gradients they serve all tokens that are decoded in a block."""
        if torch.compiler.is_compiling() or any(w.is_inference() for w in weights):
            return _stack(plan.buckets, scales, dtype, weights)
        # A step of the optimizer changes the versions.
        versions = [(id(w), w._version) for w in weights]
        key = (self.name, id(plan), dtype)
        found = groups._weights.get(key)
        if found is None or found[0] != versions:
            found = groups._weights[key] = (versions, _stack(plan.buckets, scales, dtype, weights))
        return found[1]


@dataclass(frozen=True)
class _Bucket:
    """Branches of one batched product: all have the same number of rows."""

    members: tuple[int, ...]  # positions among the layer's branches that have rows
    starts: tuple[int, ...]  # first row of each
    rows: int  # rows of each
    ranks: tuple[int, ...]

    @property
    def consecutive(self) -> bool:
        """Whether the members' rows follow each other, so that no copy is needed."""
        first = self.starts[0]
        return all(start == first + i * self.rows for i, start in enumerate(self.starts))


@dataclass(frozen=True)
class _Plan:
    """How one layer treats one arrangement of rows."""

    buckets: tuple[_Bucket, ...]
    rates: tuple[tuple[int, float], ...]  # rows and dropout of every group


_Stack = tuple[Tensor, Tensor]
"""A (members, rank, in) and scale * B (members, out, rank), padded with zeros."""


def _plan(groups: RowGroups, branches: dict[int, Branch], copies: int, grouping: Grouping) -> _Plan:
    """The same for all layers that have the same branches, so that it is made once per pass."""
    signature = tuple([(index, b.rank, b.dropout) for index, b in branches.items()])
    key = (signature, copies, grouping)
    # Traced, a cache that fills would be one more thing to guard, and to trace again for.
    if not torch.compiler.is_compiling() and key in groups._plans:
        return groups._plans[key]
    starts: dict[int, int] = {}
    sizes: dict[int, int] = {}
    rates = []
    at = 0
    for index, size in zip(groups.order, groups.sizes, strict=True):
        starts[index], sizes[index] = at, copies * size
        at += copies * size
        rates.append((copies * size, branches[index].dropout if index in branches else 0.0))
    together: dict[tuple[int, int], list[int]] = {}
    order = tuple(branches)
    for position, (index, rank, _) in enumerate(signature):
        apart = {"each": position, "rank": rank, "padded": 0}[grouping]
        together.setdefault((sizes[index], apart), []).append(position)
    buckets = []
    for (size, _), members in together.items():
        buckets.append(
            _Bucket(
                members=tuple(members),
                starts=tuple([starts[order[m]] for m in members]),
                rows=size,
                ranks=tuple([signature[m][1] for m in members]),
            )
        )
    plan = _Plan(tuple(buckets), tuple(rates))
    if not torch.compiler.is_compiling():
        groups._plans[key] = plan
    return plan


def _compute_dtype(x: Tensor, weights: torch.dtype) -> torch.dtype:
    """Type of the low-rank products; autocast leaves float64 alone."""
    device = x.device.type
    if weights != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weights


class _PackedProduct(torch.autograd.Function):
    """Frozen product plus low-rank updates, added in place so that nothing is copied.

    The weights are A of all branches that have rows, then their B.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dropped: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        buckets: tuple[_Bucket, ...],
        scales: tuple[float, ...],
        dtype: torch.dtype,
        *weights: Tensor,
    ) -> Tensor:
        source = (x if dropped is None else dropped).to(dtype).contiguous()
        stacks = _stack(buckets, scales, dtype, weights)
        y, hidden = _product(x, source, weight, bias, buckets, stacks)
        ctx.save_for_backward(source, weight, *hidden, *weights)
        ctx.types = x.dtype, None if dropped is None else dropped.dtype
        ctx.buckets, ctx.scales = buckets, scales
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        source, weight, *rest = ctx.saved_tensors
        buckets, scales = ctx.buckets, ctx.scales
        hidden, weights = rest[: len(buckets)], rest[len(buckets) :]
        dtype, tokens = source.dtype, source.shape[1:-1].numel()
        x_type, dropped_type = ctx.types
        grad = grad.contiguous()
        with torch.autocast(grad.device.type, enabled=False):
            grad_x = grad_dropped = target = None
            if ctx.needs_input_grad[0]:
                grad_x = target = grad @ weight.to(grad.dtype)
            if dropped_type is not None:
                target = grad_dropped = (
                    torch.zeros_like(source) if ctx.needs_input_grad[1] else None
                )
            grads: list[Tensor | None] = [None] * len(weights)
            flat_grad = grad.to(dtype).view(-1, grad.shape[-1])
            flat_source = source.view(-1, source.shape[-1])
            stacks = _stack(buckets, scales, dtype, weights)
            for bucket, h, (a, b) in zip(buckets, hidden, stacks, strict=True):
                g = _rows(flat_grad, bucket, tokens)
                grad_h = torch.bmm(g, b)  # (members, tokens, rank)
                grad_a = torch.bmm(grad_h.mT, _rows(flat_source, bucket, tokens))
                grad_b = torch.bmm(g.mT, h)
                if target is not None:
                    _add_product(target.view(-1, target.shape[-1]), bucket, tokens, grad_h, a)
                for place, (member, rank) in enumerate(
                    zip(bucket.members, bucket.ranks, strict=True)
                ):
                    other = len(weights) // 2 + member
                    grads[member] = grad_a[place, :rank].to(weights[member].dtype)
                    grads[other] = grad_b[place, :, :rank].to(weights[other].dtype) * scales[member]
        if grad_x is not None:
            grad_x = grad_x.to(x_type)
        if grad_dropped is not None:
            grad_dropped = grad_dropped.to(dropped_type)
        return grad_x, grad_dropped, None, None, None, None, None, *grads


def _product(
    x: Tensor,
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    buckets: tuple[_Bucket, ...],
    stacks: Sequence[_Stack],
) -> tuple[Tensor, list[Tensor]]:
    """The layer's output (rows, ..., out), and A x of each bucket (members, tokens, rank)."""
    y = F.linear(x, weight, bias).contiguous()
    hidden = []
    tokens = x.shape[1:-1].numel()
    flat, flat_source = y.view(-1, y.shape[-1]), source.reshape(-1, x.shape[-1])
    with torch.autocast(x.device.type, enabled=False):
        for bucket, (a, b) in zip(buckets, stacks, strict=True):
            h = torch.bmm(_rows(flat_source, bucket, tokens), a.mT)
            _add_product(flat, bucket, tokens, h, b.mT)
            hidden.append(h)
    return y, hidden


def _stack(
    buckets: tuple[_Bucket, ...],
    scales: Sequence[float],
    dtype: torch.dtype,
    weights: Sequence[Tensor],
) -> list[_Stack]:
    """Weights of each bucket, ranks padded with zeros to the largest; scaled in their own type."""
    stacks = []
    for bucket in buckets:
        rank = max(bucket.ranks)
        a = [weights[m] for m in bucket.members]
        b = [weights[len(weights) // 2 + m] for m in bucket.members]
        scaled = torch._foreach_mul(b, [scales[m] for m in bucket.members])
        if all(r == rank for r in bucket.ranks):
            stacks.append((_joined(a).to(dtype), _joined(scaled).to(dtype)))
            continue
        padded_a = a[0].new_zeros((len(a), rank, a[0].shape[1]), dtype=dtype)
        padded_b = b[0].new_zeros((len(b), b[0].shape[0], rank), dtype=dtype)
        pairs: Iterator[tuple[Tensor, Tensor]] = zip(a, scaled, strict=True)
        for place, ((one_a, one_b), r) in enumerate(zip(pairs, bucket.ranks, strict=True)):
            padded_a[place, :r] = one_a
            padded_b[place, :, :r] = one_b
        stacks.append((padded_a, padded_b))
    return stacks


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """A stack, without a copy where there is one alone."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(list(tensors))


def _rows(flat: Tensor, bucket: _Bucket, tokens: int) -> Tensor:
    """A bucket's rows of (all rows * tokens, width): (members, rows * tokens, width)."""
    length = bucket.rows * tokens
    if bucket.consecutive:
        first = bucket.starts[0] * tokens
        members = len(bucket.members)
        return flat[first : first + members * length].view(members, length, flat.shape[-1])
    return torch.stack([flat[start * tokens :][:length] for start in bucket.starts])


def _add_product(flat: Tensor, bucket: _Bucket, tokens: int, left: Tensor, right: Tensor) -> None:
    """Adds left @ right to a bucket's rows, in place."""
    if bucket.consecutive and flat.dtype == left.dtype:
        _rows(flat, bucket, tokens).baddbmm_(left, right)
        return
    length = bucket.rows * tokens
    targets = [flat[start * tokens :][:length] for start in bucket.starts]
    torch._foreach_add_(targets, list(torch.bmm(left, right).unbind()))
