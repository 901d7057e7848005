"""Which layers are adapted: presets, names, scopes, blocks, and the known counts."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BartConfig, T5Config

from meqsum_lightning.config.adapter import LAYER_NAMES
from meqsum_lightning.config.adapter import PRESETS as CONFIG_PRESETS
from meqsum_lightning.config.schema import AdapterConfig
from meqsum_lightning.errors import UserError
from meqsum_lightning.models.shapes import meta_model, shape_config
from meqsum_lightning.models.targets import (
    PRESETS,
    adapter_parameter_count,
    linear_layers,
    part_of_blocks,
    peft_targets,
    select_modules,
)

T5 = T5Config(
    vocab_size=40,
    d_model=16,
    d_kv=4,
    d_ff=24,
    num_heads=2,
    num_layers=3,
    num_decoder_layers=2,
    feed_forward_proj="gated-gelu",
)
BART = BartConfig(
    vocab_size=40,
    d_model=16,
    encoder_layers=3,
    decoder_layers=2,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=24,
    decoder_ffn_dim=24,
    max_position_embeddings=32,
)

MODULE_NAMES = {
    config.model_type: [name for name, _ in meta_model(config).named_modules()]
    for config in (T5, BART)
}


def adapter_config(**changes) -> AdapterConfig:
    values = {
        "method": "lora",
        "r": 8,
        "budget": None,
        "alpha": None,
        "dropout": 0.0,
        "target_modules": "qv",
        "scope": "everywhere",
        "layers": None,
    }
    return AdapterConfig(**{**values, **changes})


def names(config, **changes) -> list[str]:
    return [m.name for m in select_modules(config, adapter_config(**changes))]


def mistakes(config, **changes) -> list[str]:
    with pytest.raises(UserError) as caught:
        select_modules(config, adapter_config(**changes))
    return caught.value.lines


@pytest.mark.parametrize(
    ("preset", "count"),
    [
        ("qv", 9_437_184),
        ("qkv", 14_155_776),
        ("attention", 18_874_368),
        ("ffn", 17_694_720),
        ("all", 36_569_088),
    ],
)
def test_known_counts_of_flan_t5_large_at_rank_32(preset, count):
    modules = select_modules(shape_config("flan_t5_large"), adapter_config(target_modules=preset))
    assert adapter_parameter_count(modules, 32, "lora") == count


def test_dora_adds_one_magnitude_per_output():
    modules = select_modules(T5, adapter_config())
    extra = adapter_parameter_count(modules, 4, "dora") - adapter_parameter_count(
        modules, 4, "lora"
    )
    assert extra == sum(m.out_features for m in modules)


@pytest.mark.parametrize("config", [T5, BART], ids=["t5", "bart"])
def test_presets_select_the_same_parts_on_both_families(config):
    # 3 encoder and 2 decoder self-attentions, 2 cross-attentions; 5 feed-forwards.
    assert len(names(config, target_modules="qv")) == 14
    assert len(names(config, target_modules="qkv")) == 21
    assert len(names(config, target_modules="attention")) == 28
    assert len(names(config, target_modules="ffn")) == (15 if config is T5 else 10)
    assert not any("lm_head" in name for name in names(config, target_modules="all"))
    assert len(names(config, target_modules="all")) == len(linear_layers(config))


def test_original_t5_has_one_layer_up_in_its_feed_forward():
    chosen = names(shape_config("t5_large"), target_modules="ffn", layers=[0])
    assert [n.rpartition(".")[2] for n in chosen] == ["wi", "wo"] * 2


@pytest.mark.parametrize("config", [T5, BART], ids=["t5", "bart"])
def test_scopes_split_the_model(config):
    everywhere = names(config, target_modules="all")
    encoder = names(config, target_modules="all", scope="encoder")
    decoder = names(config, target_modules="all", scope="decoder")
    cross = names(config, target_modules="all", scope="cross")
    assert sorted(encoder + decoder) == sorted(everywhere)
    assert set(cross) < set(decoder)
    assert all("EncDec" in n or "encoder_attn" in n for n in cross)
    assert len(cross) == 2 * 4


def test_layers_choose_blocks_by_number_on_both_sides():
    assert names(T5, target_modules=["q"], layers=[2, 1, 2]) == [
        "encoder.block.1.layer.0.SelfAttention.q",
        "encoder.block.2.layer.0.SelfAttention.q",
        "decoder.block.1.layer.0.SelfAttention.q",
        "decoder.block.1.layer.1.EncDecAttention.q",
    ]


def test_plain_attention_names_are_understood_on_bart():
    assert names(BART, target_modules=["q", "v"]) == names(BART, target_modules="qv")
    assert names(BART, target_modules=["q_proj", "v_proj"]) == names(BART, target_modules="qv")


@pytest.mark.parametrize("config", [T5, BART], ids=["t5", "bart"])
def test_a_single_name_is_a_list_of_one(config):
    assert names(config, target_modules="v") == names(config, target_modules=["v"])


def test_the_configuration_knows_the_names_of_both_families():
    leaves = {x.leaf for c in (T5, BART, shape_config("t5_large")) for x in linear_layers(c)}
    assert leaves == LAYER_NAMES
    assert tuple(PRESETS) == CONFIG_PRESETS


class TestPartsOfTheBlocks:
    def test_each_side_counts_its_own_blocks(self):
        def blocks(part):
            chosen = names(T5, target_modules=["SelfAttention.q"], layers=part)
            return [(n.split(".")[0][:3], int(n.split(".")[2])) for n in chosen]

        assert blocks("first_half") == [("enc", 0), ("enc", 1), ("dec", 0)]
        assert blocks("last_half") == [("enc", 2), ("dec", 1)]
        assert blocks("first_third") == [("enc", 0), ("dec", 0)]
        assert blocks("middle_third") == [("enc", 1)]
        assert blocks("last_third") == [("enc", 2), ("dec", 1)]

    def test_flan_t5_large_in_thirds_and_halves(self):
        assert part_of_blocks("first_third", 24) == range(8)
        assert part_of_blocks("middle_third", 24) == range(8, 16)
        assert part_of_blocks("last_half", 24) == range(12, 24)

    @given(depth=st.integers(1, 100), size=st.sampled_from(["half", "third"]))
    def test_each_block_lies_in_exactly_one_part(self, depth, size):
        positions = ("first", "last") if size == "half" else ("first", "middle", "last")
        parts = [part_of_blocks(f"{position}_{size}", depth) for position in positions]
        assert [block for part in parts for block in part] == list(range(depth))
        lengths = [len(part) for part in parts]
        assert max(lengths) - min(lengths) <= 1
        assert depth < len(parts) or min(lengths) >= 1

    def test_a_part_without_any_block_is_refused(self):
        (line,) = mistakes(T5, scope="decoder", layers="middle_third")
        assert line.startswith("adapter.layers=middle_third: selects none of the 2 blocks")
        # Each side in scope is looked at, not the whole model.
        (line,) = mistakes(T5, scope="cross", target_modules="attention", layers="middle_third")
        assert "adapter.scope=cross" in line


def test_a_longer_name_narrows_the_choice():
    assert names(T5, target_modules=["EncDecAttention.v"]) == [
        f"decoder.block.{i}.layer.1.EncDecAttention.v" for i in (0, 1)
    ]


@pytest.mark.parametrize("method", ["full", "none"])
def test_methods_without_targets_select_nothing(method):
    assert select_modules(T5, adapter_config(method=method, target_modules=None, r=None)) == ()


class TestRefused:
    def test_each_wrong_name_is_told_although_another_matches(self):
        lines = mistakes(T5, target_modules=["q", "wi", "vv", "lm_head", "shared", "qv"])
        assert [line.split(":")[0] for line in lines] == [
            f"adapter.target_modules={n}" for n in ("wi", "vv", "lm_head", "shared", "qv")
        ]
        assert "did you mean v?" in lines[1]
        assert "q, k, v, o, wi_0, wi_1, wo" in lines[1]
        assert "output layer is never adapted" in lines[2]
        assert "a preset stands alone" in lines[4]

    def test_feed_forward_in_cross_attention(self):
        assert (
            "selects nothing with adapter.scope=cross"
            in mistakes(T5, target_modules="ffn", scope="cross")[0]
        )
        assert "wo" in mistakes(T5, target_modules=["q", "wo"], scope="cross")[0]

    def test_block_numbers_out_of_range(self):
        lines = mistakes(T5, layers=[0, 3, 7])
        assert [line.split(":")[0] for line in lines] == ["adapter.layers=3", "adapter.layers=7"]
        assert "from 0 to 2" in lines[0]
        assert "from 0 to 1" in mistakes(T5, scope="decoder", layers=[2])[0]
        assert "selects nothing" in mistakes(T5, layers=[])[0]

    def test_unknown_preset_and_a_list_written_as_a_string(self):
        assert "did you mean attention?" in mistakes(T5, target_modules="atention")[0]
        assert "a list is written [q,v]" in mistakes(T5, target_modules="q,v")[0]

    def test_empty_list(self):
        assert "selects nothing" in mistakes(T5, target_modules=[])[0]


@settings(max_examples=25, deadline=None)
@given(
    config=st.sampled_from([T5, BART]),
    preset=st.sampled_from(sorted(PRESETS)),
    scope=st.sampled_from(["everywhere", "encoder", "decoder", "cross"]),
    layers=st.none()
    | st.lists(st.integers(0, 1), min_size=1)
    | st.sampled_from(["first_half", "last_half", "first_third", "last_third"]),
)
def test_what_peft_is_given_matches_exactly_the_chosen_layers(config, preset, scope, layers):
    if preset == "ffn" and scope == "cross":
        return
    modules = select_modules(
        config, adapter_config(target_modules=preset, scope=scope, layers=layers)
    )
    targets = peft_targets(config, modules)
    every = MODULE_NAMES[config.model_type]
    if isinstance(targets, str):
        found = [name for name in every if re.fullmatch(targets, name)]
    else:
        found = [n for n in every if any(n == t or n.endswith(f".{t}") for t in targets)]
    assert sorted(found) == sorted(m.name for m in modules)


def test_the_plain_list_is_used_where_it_says_enough():
    chosen = select_modules(T5, adapter_config(target_modules="qv"))
    assert peft_targets(T5, chosen) == ["q", "v"]
