import copy
import math

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from meqsum_lightning.models import dropout
from meqsum_lightning.models.dropout import (
    GroupedRowDropout,
    KeySlot,
    RowDropout,
    recompute_context,
    replace_adapter_dropout,
    row_key,
    row_keys,
)


def keys_of(*rows, step=0, seed=0):
    return torch.tensor([row_key(seed, step, row) for row in rows])


def masks(layer, keys, *shape):
    with row_keys(layer, keys):
        return layer.dropped(torch.zeros(len(keys), *shape))


def layer(p=0.3, name="encoder.q", slot=None):
    return RowDropout(p, name, slot or KeySlot())


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 10**6), min_size=1, max_size=5, unique=True),
    st.integers(1, 9),
    st.integers(0, 8),
    st.integers(1, 13),
)
def test_a_mask_does_not_depend_on_company_or_padding(rows, tokens, padding, features):
    module = layer()
    together = masks(module, keys_of(*rows), tokens + padding, features)
    for position, row in enumerate(rows):
        alone = masks(module, keys_of(row), tokens, features)
        assert torch.equal(together[position, :tokens], alone[0])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([0.0, 1e-7, 0.1, 0.5, 0.99])), min_size=1
    ).filter(lambda groups: 0 < sum(rows for rows, _ in groups) < 20),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_groups_of_rows_have_the_dropout_they_would_have_alone(groups, dtype):
    rows = sum(size for size, _ in groups)
    x = torch.randn(rows, 3, 6, dtype=dtype, requires_grad=True)
    keys = keys_of(*range(rows))
    grouped = GroupedRowDropout("encoder.q", KeySlot())
    with row_keys(grouped, keys):
        together = grouped(x, groups)
    start = 0
    for size, p in groups:
        mine = slice(start, start + size)
        start += size
        single = layer(p)
        with row_keys(single, keys[mine]):
            assert torch.equal(together[mine], single(x[mine]))
    assert torch.equal(grouped.eval()(x, groups), x)


def test_rows_without_dropout_keep_nan_away_from_the_others():
    grouped, x = GroupedRowDropout("encoder.q", KeySlot()), torch.ones(4, 2, 6)
    groups = [(2, 0.5), (1, 0.0), (1, 0.5)]
    with row_keys(grouped, keys_of(0, 1, 2, 3)):
        clean = grouped(x, groups)
        x[2] = math.nan
        spoiled = grouped(x, groups)
        assert spoiled[2].isnan().all()
        assert torch.equal(clean[[0, 1, 3]], spoiled[[0, 1, 3]])
        with pytest.raises(RuntimeError, match="4 row keys"):
            grouped(x[:3], groups)
    with pytest.raises(RuntimeError, match="row_keys"):
        grouped(x, groups)


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_rate_and_scale(p):
    module, x = layer(p), torch.ones(8, 100, 250)
    with row_keys(module, keys_of(*range(8))):
        y = module(x)
    dropped = (y == 0).float()
    deviation = math.sqrt(p * (1 - p) / x.numel())
    assert abs(dropped.mean().item() - p) < 4 * deviation
    # Also at each position and for each feature: no row of a table stands out.
    for axes in ((0, 1), (0, 2)):
        means = dropped.mean(axes)
        expected = math.sqrt(p * (1 - p) * means.numel() / x.numel())
        assert (means - p).abs().max() < 5 * expected
        assert means.std().item() == pytest.approx(expected, rel=0.25)
    torch.testing.assert_close(
        y[y != 0], torch.full_like(y[y != 0], 1 / (1 - p)), rtol=1e-3, atol=0
    )


def correlation(first, second):
    """Correlation of two masks in standard errors."""
    pair = torch.stack([first.flatten(), second.flatten()]).double()
    return torch.corrcoef(pair)[0, 1].item() * math.sqrt(pair.shape[1])


def test_rows_steps_seeds_layers_and_positions_are_independent():
    slot = KeySlot()
    module, other = layer(slot=slot), layer(name="encoder.v", slot=slot)
    mask = masks(module, keys_of(*range(16)), 40, 64)
    for different in (
        masks(module, keys_of(*range(16, 32)), 40, 64),
        masks(module, keys_of(*range(16), step=1), 40, 64),
        masks(module, keys_of(*range(16), seed=1), 40, 64),
        masks(other, keys_of(*range(16)), 40, 64),
    ):
        assert abs(correlation(mask, different)) < 4.5
    for shift in (1, 2, 3, 4, 5):
        assert abs(correlation(mask[:, shift:], mask[:, :-shift])) < 4.5
        assert abs(correlation(mask[..., shift:], mask[..., :-shift])) < 4.5
    # The words of position and feature are joined by one operation: pairs of pairs must not agree.
    signs = mask[:, 1:] ^ mask[:, :-1]
    assert abs(correlation(signs[..., 4:], signs[..., :-4])) < 4.5


def test_masks_are_stable_over_versions():
    mask = masks(layer(0.5), keys_of(0, 1), 2, 6).int()
    assert mask.tolist() == [
        [[1, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]],
        [[1, 0, 1, 0, 0, 1], [1, 0, 1, 0, 0, 1]],
    ]


def test_row_key_is_a_stable_signed_word():
    assert row_key(0, 0, 0) == 2558736989570252433
    keys = {row_key(seed, step, row) for seed in range(9) for step in range(9) for row in range(9)}
    assert len(keys) == 9**3
    assert all(-(2**63) <= key < 2**63 for key in keys)
    assert min(keys) < 0 < max(keys)
    assert row_key(2**32 - 1, 10**9, 10**9) != row_key(2**32 - 1, 10**9, 10**9 + 1)


def test_words_agree_with_python_integers():
    words = [0, 1, 2**63 - 1, 2**64 - 1, 0x0123456789ABCDEF]
    tensor = torch.tensor([dropout._signed(word) for word in words])
    expected = [dropout._signed(dropout._mixed_word(word)) for word in words]
    assert dropout._mixed(tensor).tolist() == expected


@pytest.mark.parametrize("p", [0.0, 1e-6])
def test_identity_in_evaluation_and_without_dropout(p):
    x = torch.randn(2, 3, 4)
    assert layer().eval()(x) is x
    assert layer(p)(x) is x


@pytest.mark.parametrize("p", [1.0, -0.1])
def test_probability_is_checked(p):
    with pytest.raises(ValueError, match="probability"):
        layer(p)


def test_training_needs_fitting_keys():
    module = layer()
    with pytest.raises(RuntimeError, match="row_keys"):
        module(torch.zeros(2, 3, 4))
    with row_keys(module, keys_of(1)), pytest.raises(RuntimeError, match="1 row keys"):
        module(torch.zeros(2, 3, 4))
    with row_keys(module, keys_of(1)), pytest.raises(RuntimeError, match="rows, tokens"):
        module(torch.zeros(1, 4))
    for wrong in (torch.zeros(2), torch.zeros(1, 2, dtype=torch.int64)):
        with pytest.raises(ValueError, match="int64"), row_keys(module, wrong):
            pass


def test_blocks_nest_and_end():
    module = layer()
    outer = masks(module, keys_of(1), 3, 4)
    with row_keys(module, keys_of(1)):
        with row_keys(module, keys_of(2)):
            pass
        assert torch.equal(module.dropped(torch.zeros(1, 3, 4)), outer)
        with pytest.raises(KeyError), row_keys(module, keys_of(2)):
            raise KeyError
        assert torch.equal(module.dropped(torch.zeros(1, 3, 4)), outer)
    assert module.slot.active is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_type_is_kept_and_gradient_follows_the_mask(dtype):
    module, x = layer(), torch.ones(2, 3, 5, dtype=dtype, requires_grad=True)
    with row_keys(module, keys_of(1, 2)), torch.autocast("cpu", torch.bfloat16):
        y = module(x)
    assert y.dtype == dtype
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())
    assert torch.equal(y == 0, masks(module, keys_of(1, 2), 3, 5))


def adapted(family="t5", p=0.3, **arguments):
    torch.manual_seed(0)
    if family == "t5":
        config = T5Config(
            vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
            decoder_start_token_id=0, dropout_rate=0.0,
        )  # fmt: skip
        model = T5ForConditionalGeneration(config)
    else:
        config = BartConfig(
            vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32,
            decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2,
            max_position_embeddings=32, dropout=0.0,
        )  # fmt: skip
        model = BartForConditionalGeneration(config)
    names = ["q", "v"] if family == "t5" else ["q_proj", "v_proj", "fc1"]
    lora = peft.LoraConfig(
        r=2, target_modules=names, lora_dropout=p, init_lora_weights=False, **arguments
    )
    return peft.get_peft_model(model, lora).train()


BATCH = {
    "input_ids": torch.randint(3, 40, (3, 7), generator=torch.Generator().manual_seed(0)),
    "labels": torch.randint(3, 40, (3, 4), generator=torch.Generator().manual_seed(1)),
}


def gradients(model):
    return [value.grad.clone() for value in model.parameters() if value.grad is not None]


@pytest.mark.parametrize(("family", "count"), [("t5", 12), ("bart", 8)])
@pytest.mark.parametrize("use_dora", [False, True])
def test_adapters_are_replaced_and_rows_are_independent(family, count, use_dora):
    model = adapted(family, use_dora=use_dora)
    assert replace_adapter_dropout(model) == count
    assert replace_adapter_dropout(model) == 0
    replaced = [module for module in model.modules() if isinstance(module, RowDropout)]
    assert len({module.layer for module in replaced}) == count
    assert {module.p for module in replaced} == {0.3}
    assert not any("lora_dropout" in name for name in model.state_dict())

    with row_keys(model, keys_of(4, 5, 6)):
        whole = model(**BATCH).logits
        again = model(**BATCH).logits
    assert torch.equal(whole, again)
    with row_keys(model, keys_of(5)):
        alone = model(**{key: value[1:2] for key, value in BATCH.items()}).logits
    torch.testing.assert_close(alone, whole[1:2], rtol=1e-4, atol=1e-5)
    with row_keys(model, keys_of(4, 5, 6, step=1)):
        assert not torch.allclose(model(**BATCH).logits, whole, atol=1e-3)
    with pytest.raises(RuntimeError, match="row_keys"):
        model(**BATCH)
    model.eval()
    with torch.no_grad():
        model(**BATCH)
        model.generate(input_ids=BATCH["input_ids"], max_new_tokens=3, num_beams=2)


def test_padding_changes_nothing():
    model = adapted()
    replace_adapter_dropout(model)
    mask = torch.ones_like(BATCH["input_ids"])
    padded = {
        "input_ids": nn.functional.pad(BATCH["input_ids"], (0, 5)),
        "attention_mask": nn.functional.pad(mask, (0, 5)),
        "labels": nn.functional.pad(BATCH["labels"], (0, 3), value=-100),
    }
    with row_keys(model, keys_of(1, 2, 3)):
        short = model(**BATCH, attention_mask=mask)
        long = model(**padded)
    torch.testing.assert_close(long.logits[:, :4], short.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(long.loss, short.loss)


def test_names_do_not_depend_on_the_wrapper():
    bare, wrapped = adapted(), adapted()
    replace_adapter_dropout(bare)
    holder = nn.ModuleDict({"backbone": wrapped})
    replace_adapter_dropout(holder)
    with row_keys(bare, keys_of(1, 2, 3)), row_keys(holder, keys_of(1, 2, 3)):
        assert torch.equal(bare(**BATCH).logits, wrapped(**BATCH).logits)


def test_without_dropout_there_is_nothing_to_replace():
    model = adapted(p=0.0)
    assert replace_adapter_dropout(model) == 0
    with row_keys(model, keys_of(1, 2, 3)):
        model(**BATCH)


def test_a_copy_has_its_own_keys():
    model = adapted()
    replace_adapter_dropout(model)
    copied = copy.deepcopy(model)
    with row_keys(model, keys_of(1, 2, 3)), pytest.raises(RuntimeError, match="row_keys"):
        copied(**BATCH)
    with row_keys(copied, keys_of(1, 2, 3)):
        copied(**BATCH)


def test_checkpointing_recomputes_the_same_masks():
    plain, saving = adapted(), adapted()
    replace_adapter_dropout(plain)
    saving.get_base_model().activation_checkpointing_enable(
        {"use_reentrant": False, "context_fn": recompute_context(saving)}
    )
    replace_adapter_dropout(saving)
    for model in (plain, saving):
        losses = []
        # Both backward passes run after both forward passes, outside the blocks.
        for step in range(2):
            with row_keys(model, keys_of(1, 2, 3, step=step)):
                losses.append(model(**BATCH, use_cache=False).loss)
        sum(losses).backward()
    assert len(gradients(plain)) == 24
    for ours, theirs in zip(gradients(saving), gradients(plain), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_checkpointing_without_the_context_is_a_clear_error():
    module, x = layer(), torch.ones(1, 2, 4, requires_grad=True)

    def run(context):
        with row_keys(module, keys_of(1)):
            y = checkpoint(lambda x: module(x).exp(), x, use_reentrant=False, **context)
        y.sum().backward(retain_graph=True)
        y.sum().backward()

    with pytest.raises(RuntimeError, match="recompute_context"):
        run({})
    run({"context_fn": recompute_context(module)})
    assert module.slot.active is None


def test_checkpointing_needs_no_context_inside_the_block():
    module, x = layer(), torch.ones(1, 2, 4, requires_grad=True)
    with row_keys(module, keys_of(1)):
        y = checkpoint(lambda x: module(x).exp(), x, use_reentrant=False)
        y.sum().backward()
        expected = module(torch.ones(1, 2, 4))
    torch.testing.assert_close(x.grad, expected * expected.exp())


def test_a_model_without_row_dropout_ignores_keys_and_context():
    model, x = nn.Linear(4, 4), torch.ones(1, 2, 4, requires_grad=True)
    with row_keys(model, keys_of(1)):
        y = checkpoint(model, x, use_reentrant=False, context_fn=recompute_context(model))
    y.sum().backward()
    assert x.grad is not None


def test_print_shows_the_probability():
    assert repr(layer(0.25)) == "RowDropout(p=0.25)"
