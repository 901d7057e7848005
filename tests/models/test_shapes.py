"""Built-in shapes: published sizes, random weights, and the separate output layer of T5 v1.1."""

import math

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, T5Config

from meqsum_lightning.errors import UserError
from meqsum_lightning.models.shapes import (
    PUBLISHED,
    SHAPE_NAMES,
    has_own_output_layer,
    meta_model,
    random_model,
    shape_config,
)


def flan(**changes):
    """A small T5 v1.1."""
    values = {
        "vocab_size": 64,
        "d_model": 16,
        "d_kv": 4,
        "d_ff": 24,
        "num_layers": 2,
        "num_heads": 2,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "decoder_start_token_id": 0,
    }
    return T5Config(**{**values, **changes})


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("flan_t5_small", 76_961_152),
        ("flan_t5_base", 247_577_856),
        ("flan_t5_large", 783_150_080),
        ("t5_large", 737_668_096),
        ("bart_base", 139_420_416),
        ("bart_large", 406_291_456),
    ],
)
def test_shapes_have_the_published_number_of_parameters(name, count):
    model = meta_model(shape_config(name))
    assert sum(p.numel() for p in model.parameters()) == count
    assert all(p.is_meta for p in model.parameters())


def test_published_ids_name_shapes():
    assert set(PUBLISHED.values()) <= set(SHAPE_NAMES)


def test_unknown_shape_is_told_with_a_suggestion():
    with pytest.raises(UserError, match=r"model.shape=flan_t5_larg: .*did you mean flan_t5_large"):
        shape_config("flan_t5_larg")


def test_flan_is_untied_and_unscaled_and_t5_is_tied_and_scaled():
    assert has_own_output_layer(shape_config("flan_t5_small"))
    assert not shape_config("flan_t5_small").scale_decoder_outputs
    assert not has_own_output_layer(shape_config("t5_large"))
    assert shape_config("t5_large").scale_decoder_outputs
    assert not has_own_output_layer(shape_config("bart_base"))


def test_random_weights_depend_on_the_seed_alone_and_leave_the_global_state():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = random_model(flan(), torch.float32, seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    second = random_model(flan(), torch.float32, seed=1).state_dict()
    other = random_model(flan(), torch.float32, seed=2).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_random_model_is_created_in_its_type_and_starts_near_a_uniform_guess():
    model = random_model(flan(d_model=64, vocab_size=512), torch.bfloat16, seed=0)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not model.training
    ids = torch.randint(2, 512, (4, 12))
    assert model(input_ids=ids, labels=ids).loss.item() == pytest.approx(math.log(512), rel=0.15)


def test_untied_output_survives_retying_saving_and_loading(tmp_path):
    model = random_model(flan(), torch.float32, seed=0)
    output = model.lm_head.weight.detach().clone()
    model.tie_weights()
    assert torch.equal(model.lm_head.weight, output)
    assert model.lm_head.weight is not model.shared.weight
    model.save_pretrained(tmp_path)
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert torch.equal(again.lm_head.weight, output)
    ids = torch.randint(2, 64, (2, 7))
    with torch.no_grad():
        assert torch.equal(
            again(input_ids=ids, labels=ids).logits, model(input_ids=ids, labels=ids).logits
        )
