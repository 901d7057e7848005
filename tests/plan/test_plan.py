"""The plan's figures against real models: parameters, bytes, and counted operations."""

import functools
import json
from io import StringIO

import pytest
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode
from transformers import BartConfig, T5Config

from meqsum_lightning.config.compose import build_config
from meqsum_lightning.errors import UserError
from meqsum_lightning.models.adapters import apply_adapter, save_adapter, trainable_parameters
from meqsum_lightning.models.shapes import random_model
from meqsum_lightning.plan import make_plan, render

ROWS, SOURCE, TARGET = 2, 24, 10
COMMON = {"vocab_size": 67, "d_model": 40}
T5 = {**COMMON, "d_kv": 8, "d_ff": 56, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4}
CONFIGS = {
    "flan": T5Config(
        **T5,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        dropout_rate=0.0,
    ),
    "t5": T5Config(**T5, feed_forward_proj="relu", decoder_start_token_id=0, dropout_rate=0.0),
    "bart": BartConfig(
        **COMMON,
        encoder_layers=3,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=56,
        decoder_ffn_dim=56,
        max_position_embeddings=64,
        dropout=0.0,
    ),
}
ADAPTERS = [
    ("adapter=lora", "adapter.dropout=0"),
    ("adapter=lora", "adapter.target_modules=all", "adapter.dropout=0"),
    ("adapter=lora", "adapter.target_modules=[k]", "adapter.layers=[1]", "adapter.dropout=0"),
    ("adapter=rslora", "adapter.scope=cross", "adapter.dropout=0"),
    ("adapter=dora", "adapter.target_modules=ffn", "adapter.dropout=0"),
    ("adapter=dora", "adapter.dropout=0.1"),
    ("adapter=pissa", "adapter.target_modules=all", "adapter.dropout=0"),
    ("adapter=full",),
    ("adapter=none",),
]
FIXED = (
    "model.weights=random",
    f"data.max_source_length={SOURCE}",
    f"data.max_target_length={TARGET}",
    f"data.micro_batch_size={ROWS}",
    "data.global_batch_size=8",
    "trainer=cpu",
)


def configured(monkeypatch, family, *overrides):
    """A validated config whose backbone is a small model of the family."""
    monkeypatch.setattr("meqsum_lightning.plan.estimate.load_config", lambda model: CONFIGS[family])
    rank = () if {"adapter=full", "adapter=none"} & set(overrides) else ("adapter.r=3",)
    return composed(*FIXED, *rank, *overrides)


@functools.lru_cache
def composed(*overrides):
    return build_config("plan", overrides)


def built(family, cfg, attention="eager"):
    dtype = torch.bfloat16 if cfg.model.dtype == "bf16" else torch.float32
    model = random_model(CONFIGS[family], dtype, 0)
    model.set_attn_implementation(attention)
    if cfg.model.activation_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return apply_adapter(model, cfg.adapter, 0)


def batch():
    generator = torch.Generator().manual_seed(0)
    source = torch.randint(3, 60, (ROWS, SOURCE), generator=generator)
    mask = torch.ones_like(source)
    mask[0, -3:] = 0
    target = torch.randint(3, 60, (ROWS, TARGET), generator=generator)
    return {"input_ids": source, "attention_mask": mask, "labels": target, "use_cache": False}


def counted(model):
    """Operations of one forward and one backward pass, as torch counts them."""
    with FlopCounterMode(display=False) as forward:
        loss = model(**batch()).loss
    with FlopCounterMode(display=False) as backward:
        if loss.requires_grad:
            loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("overrides", ADAPTERS, ids=" ".join)
@pytest.mark.parametrize("family", CONFIGS)
def test_parameters_and_operations_are_exact(monkeypatch, family, overrides):
    cfg = configured(monkeypatch, family, *overrides)
    plan, model = make_plan(cfg), built(family, cfg)
    trainable = sum(p.numel() for p in trainable_parameters(model).values())
    assert plan.trainable == trainable
    assert plan.parameters == sum(p.numel() for p in model.parameters())
    assert plan.memory.gradients == 4 * trainable
    assert plan.memory.optimizer == 8 * trainable
    forward, backward = counted(model)
    assert (plan.compute.forward, plan.compute.backward) == (forward, backward)
    assert plan.compute.step == (4 * (forward + backward) if trainable else 0)


@pytest.mark.parametrize("family", CONFIGS)
def test_recomputation_is_within_ten_percent(monkeypatch, family):
    cfg = configured(
        monkeypatch, family, "adapter.dropout=0", "model.activation_checkpointing=true"
    )
    _, backward = counted(built(family, cfg))
    assert make_plan(cfg).compute.backward == pytest.approx(backward, rel=0.1)


@pytest.mark.parametrize("overrides", [ADAPTERS[0], ADAPTERS[1], ADAPTERS[5], ADAPTERS[7]])
@pytest.mark.parametrize("family", CONFIGS)
def test_activations_are_within_thirty_percent(monkeypatch, family, overrides):
    cfg = configured(monkeypatch, family, *overrides)
    model = built(family, cfg, attention="sdpa")
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = tensor  # holds it, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(**batch())
    size = sum(t.untyped_storage().nbytes() for t in kept.values())
    memory = make_plan(cfg).memory
    assert memory.activations == pytest.approx(size, rel=0.3)
    assert memory.activations_checkpointed < memory.activations


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("family", CONFIGS)
def test_bytes_of_weights_are_exact(monkeypatch, family, dtype):
    cfg = configured(monkeypatch, family, f"model.dtype={dtype}")
    model = built(family, cfg)
    sizes = {"adapter": 0, "weights": 0}
    for name, parameter in model.named_parameters():
        sizes["adapter" if "lora_" in name else "weights"] += parameter.nbytes
    memory = make_plan(cfg).memory
    assert (memory.weights, memory.adapter) == (sizes["weights"], sizes["adapter"])
    assert memory.total == sum(
        (memory.weights, memory.adapter, memory.gradients, memory.optimizer, memory.activations)
    )


@pytest.mark.parametrize("method", ["lora", "dora", "pissa"])
@pytest.mark.parametrize("family", CONFIGS)
def test_size_on_disk_is_exact(monkeypatch, tmp_path, family, method):
    cfg = configured(monkeypatch, family, f"adapter={method}", "adapter.target_modules=all")
    save_adapter(built(family, cfg), tmp_path)
    size = (tmp_path / "adapter_model.safetensors").stat().st_size
    assert make_plan(cfg).disk == size


def test_adafactor_state_is_what_the_optimizer_holds(monkeypatch):
    cfg = configured(monkeypatch, "flan", "optim=adafactor")
    from transformers.optimization import Adafactor

    model = built("flan", cfg)
    optimizer = Adafactor(trainable_parameters(model).values(), **cfg.optim.optimizer.arguments)
    optimizer.param_groups[0]["lr"] = 1e-3
    model(**batch()).loss.backward()
    optimizer.step()
    held = sum(
        value.nbytes
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.ndim
    )
    assert make_plan(cfg).memory.optimizer == held


@pytest.mark.parametrize(
    ("preset", "trainable"), [("qv", 9_437_184), ("qkv", 14_155_776), ("all", 36_569_088)]
)
def test_flan_t5_large_is_planned_without_a_network(preset, trainable):
    cfg = build_config(
        "plan", ["model=flan_t5_large", "adapter.r=32", f"adapter.target_modules={preset}"]
    )
    plan = make_plan(cfg)
    assert plan.trainable == trainable
    assert plan.parameters == 783_150_080 + trainable
    assert plan.share == trainable / (783_150_080 + trainable)
    assert plan.memory.weights == 2 * 783_150_080


@pytest.mark.parametrize(
    ("overrides", "alpha", "scale"),
    [
        (["adapter.r=16"], 32, 2),
        (["adapter.r=16", "adapter.alpha=8.0"], 8, 0.5),
        (["adapter=rslora", "adapter.r=16"], 32, 8),
    ],
)
def test_scale_of_the_update(overrides, alpha, scale):
    plan = make_plan(build_config("plan", overrides))
    assert (plan.alpha, plan.scale) == (alpha, scale)


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"data.max_source_length=2048"):
        make_plan(build_config("plan", ["model=bart_base", "data.max_source_length=2048"]))
    with pytest.raises(UserError, match=r"adapter.layers=40"):
        make_plan(build_config("plan", ["adapter.layers=[40]"]))


@pytest.mark.parametrize("choice", ["adapter=rslora", "adapter=full", "adapter=none"])
def test_report_fits_eighty_columns_and_json(choice):
    plan = make_plan(build_config("plan", ["model=flan_t5_large", choice]))
    stream = StringIO()
    render(plan, Console(file=stream, width=80))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert f"{plan.trainable:,}" in stream.getvalue()
    assert ("alpha / sqrt(r)" in stream.getvalue()) == (choice == "adapter=rslora")
    content = json.loads(json.dumps(plan.to_dict()))
    assert content["share"] == plan.share
    assert content["memory"]["total"] == plan.memory.total
