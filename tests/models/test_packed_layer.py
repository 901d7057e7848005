"""One packed layer beside PEFT's own layer: outputs, gradients, types, and who may touch whom."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.lora import Linear as PeftLinear
from torch import nn
from torch.utils.checkpoint import checkpoint

from meqsum_lightning.models.dropout import KeySlot
from meqsum_lightning.models.packed_layer import Branch, PackedLinear, RowGroups, RowSlot

GROUPINGS = ["each", "rank", "padded"]


def layer_of(ranks, width=(6, 5), bias=True, dtype=torch.float64, grouping=None, seed=0):
    """A layer; rank None: this adapter has no branch."""
    torch.manual_seed(seed)
    base = nn.Linear(*width, bias=bias, dtype=dtype).requires_grad_(False)
    layer = PackedLinear(base, "encoder.q", RowSlot(), KeySlot(), grouping)
    kind = torch.float32 if dtype == torch.bfloat16 else dtype
    for index, rank in enumerate(ranks):
        if rank is not None:
            a, b = (
                nn.Parameter(torch.randn(shape, dtype=kind) / 3)
                for shape in ((rank, width[0]), (width[1], rank))
            )
            layer.branches[str(index)] = Branch(a, b, scale=(3.0 + index) / rank, dropout=0.0)
    return layer


def peft_layer(layer, index):
    branch = layer.branch(index)
    config = LoraConfig(r=branch.rank, lora_alpha=branch.scale * branch.rank)
    peft = PeftLinear(layer.base_layer, "default", config, r=config.r, lora_alpha=config.lora_alpha)
    for ours, theirs in ((branch.lora_A, peft.lora_A), (branch.lora_B, peft.lora_B)):
        theirs["default"].weight = nn.Parameter(ours.detach().clone())
    return peft


def run(layer, x, sizes, order=None):
    order = range(len(sizes)) if order is None else order
    with layer.rows.groups(order, sizes):
        return layer(x)


def compare(layer, sizes, tokens, order=None, autocast=None, **tolerance):
    """Output, gradient of the input and of all weights, against PEFT adapter by adapter."""
    order = list(range(len(sizes))) if order is None else order
    width = layer.in_features
    dtype = layer.weight.dtype
    x = torch.randn(sum(sizes), tokens, width, dtype=dtype, requires_grad=True)
    pull = torch.randn(sum(sizes), tokens, layer.out_features, dtype=dtype)
    context = torch.autocast("cpu", torch.bfloat16, enabled=bool(autocast))
    with context:
        out = run(layer, x, sizes, order)
    (out * pull).sum().backward()
    start = 0
    for index, size in zip(order, sizes, strict=True):
        rows = slice(start, start + size)
        start += size
        mine = x.detach()[rows].clone().requires_grad_()
        branch = layer.branch(index)
        peft = layer.base_layer if branch is None else peft_layer(layer, index)
        with context:
            expected = peft(mine)
        (expected * pull[rows]).sum().backward()
        assert out.dtype == expected.dtype
        torch.testing.assert_close(out[rows], expected, **tolerance)
        torch.testing.assert_close(x.grad[rows], mine.grad, **tolerance)
        if branch is None:
            continue
        if size == 0:
            assert branch.lora_A.grad is None and branch.lora_B.grad is None
            continue
        for ours, theirs in ((branch.lora_A, peft.lora_A), (branch.lora_B, peft.lora_B)):
            assert ours.grad.dtype == ours.dtype
            torch.testing.assert_close(ours.grad, theirs["default"].weight.grad, **tolerance)


EXACT = {"rtol": 1e-10, "atol": 1e-10}
members = st.tuples(st.one_of(st.none(), st.integers(1, 64)), st.integers(0, 4))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_equals_peft_for_any_ranks_rows_and_order(data):
    found = data.draw(
        st.lists(members, min_size=1, max_size=6).filter(lambda m: sum(n for _, n in m))
    )
    order = data.draw(st.permutations(range(len(found))))
    layer = layer_of(
        [rank for rank, _ in found],
        width=data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9))),
        bias=data.draw(st.booleans()),
        grouping=data.draw(st.sampled_from([None, *GROUPINGS])),
    )
    compare(layer, [found[i][1] for i in order], data.draw(st.integers(1, 5)), order, **EXACT)


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_equals_peft_in_fp32(grouping):
    layer = layer_of([1, 64, 8, 8], (96, 64), dtype=torch.float32, grouping=grouping)
    compare(layer, [4, 4, 4, 2], 20, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [(torch.float32, True), (torch.bfloat16, False), (torch.bfloat16, True)],
)
def test_follows_peft_s_types(grouping, dtype, autocast):
    """The two round at different places, so that bf16 agrees to a few of its last digits."""
    layer = layer_of([2, 7, None, 2], (32, 24), dtype=dtype, grouping=grouping)
    compare(layer, [2, 2, 1, 2], 4, autocast=autocast, rtol=3e-2, atol=6e-2)


def test_float64_is_left_alone_by_autocast():
    compare(layer_of([2, 3]), [1, 2], 3, autocast=True, **EXACT)


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("where", ["rows", "weights", "gradient", "infinite rows"])
def test_nan_of_one_adapter_stays_with_it(grouping, where):
    x = torch.randn(7, 3, 6, dtype=torch.float64)

    def outcome(spoil):
        layer = layer_of([2, 5, 3, None], grouping=grouping)
        rows = x.clone()
        pull = torch.ones(7, 3, 5, dtype=torch.float64)
        if spoil and where.endswith("rows"):
            rows[2:4] = float("inf" if "infinite" in where else "nan")
        if spoil and where == "weights":
            with torch.no_grad():
                layer.branch(1).lora_A.fill_(float("nan"))
                layer.branch(1).lora_B.fill_(float("inf"))
        if spoil and where == "gradient":
            pull[2:4] = float("nan")
        rows.requires_grad_()
        out = run(layer, rows, [2, 2, 2, 1])
        (out * pull).sum().backward()
        others = [i for i in range(7) if i not in (2, 3)]
        grads = [p.grad for i in (0, 2) for p in layer.branch(i).parameters()]
        spoiled = layer.branch(1).lora_A.grad
        return [out[others], rows.grad[others], *grads], spoiled

    clean, finite = outcome(False)
    spoiled, broken = outcome(True)
    assert finite.isfinite().all() and not broken.isfinite().all()
    assert all(torch.equal(a, b) for a, b in zip(clean, spoiled, strict=True))


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_input_without_gradient(grouping):
    layer = layer_of([2, 3], grouping=grouping)
    x = torch.randn(4, 2, 6, dtype=torch.float64)
    run(layer, x, [2, 2]).sum().backward()
    assert all(p.grad is not None for p in layer.branches.parameters())


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_gradients_agree_with_finite_differences(grouping):
    layer = layer_of([1, 2], (3, 2), grouping=grouping)
    x = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    inputs = (x, *layer.branches.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: run(layer, x, [1, 2]), inputs)


def test_beams_belong_to_their_row():
    layer = layer_of([2, None, 3])
    x = torch.randn(6, 1, 6, dtype=torch.float64)
    with torch.no_grad():
        once = run(layer, x, [3, 1, 2])
        thrice = run(layer, x.repeat_interleave(3, 0), [3, 1, 2])
    torch.testing.assert_close(thrice, once.repeat_interleave(3, 0), **EXACT)


def test_weights_changed_between_two_passes_without_gradient_are_seen():
    layer = layer_of([2, 3], grouping="padded")
    x = torch.randn(4, 2, 6, dtype=torch.float64)
    with torch.no_grad(), layer.rows.groups([0, 1], [2, 2]):
        before = layer(x)
        assert torch.equal(layer(x), before)
        layer.branch(1).lora_B.mul_(2)
        after = layer(x)
    assert torch.equal(after[:2], before[:2]) and not torch.allclose(after[2:], before[2:])


def test_mistakes_are_said():
    layer = layer_of([2, 3])
    x = torch.randn(4, 2, 6, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="whose rows"):
        layer(x)
    with pytest.raises(RuntimeError, match="4 rows came, 3 were declared"):
        run(layer, x, [1, 2])
    with pytest.raises(RuntimeError, match="4 rows came, 2 were declared"):
        run(layer, x, [1, 1])  # beams, but with gradients
    with torch.no_grad(), pytest.raises(RuntimeError, match="4 rows came, 3 were declared"):
        run(layer, x, [1, 2])
    for order, sizes in (((0, 0), (1, 1)), ((0,), (1, 1)), ((0,), (-1,))):
        with pytest.raises(ValueError):
            RowGroups(order, sizes)


def test_blocks_nest_and_end():
    layer = layer_of([2, 3])
    x = torch.randn(4, 2, 6, dtype=torch.float64)
    with layer.rows.groups([0, 1], [1, 3]):
        expected = layer(x)
        with layer.rows.groups([1, 0], [2, 2]):
            assert not torch.equal(layer(x), expected)
        assert torch.equal(layer(x), expected)
    assert layer.rows.active is None


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("gradients", [True, False])
def test_compiles(grouping, gradients):
    torch._dynamo.reset()
    layer = layer_of([2, 3, None, 3], grouping=grouping)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    x = torch.randn(7, 2, 6, dtype=torch.float64)
    results = []
    for module in (layer, compiled):
        layer.zero_grad()
        with torch.set_grad_enabled(gradients), layer.rows.groups(range(4), [2, 2, 1, 2]):
            out = module(x)
        if gradients:
            out.square().sum().backward()
        results.append([out, *(p.grad for p in layer.branches.parameters() if gradients)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_recomputes_within_the_block():
    layer = layer_of([2, 3])
    x = torch.randn(4, 2, 6, dtype=torch.float64, requires_grad=True)
    grads = []
    for recompute in (False, True):
        layer.zero_grad()
        with layer.rows.groups([0, 1], [2, 2]):
            out = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)
            out.square().sum().backward()
        grads.append([p.grad for p in layer.branches.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
