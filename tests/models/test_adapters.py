"""Adapters: what is trained, where they start, their state, and PEFT folders that open anywhere."""

import json
import math

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForSeq2SeqLM

from meqsum_lightning.errors import UserError
from meqsum_lightning.models.adapters import (
    adapter_disabled,
    adapter_state,
    apply_adapter,
    load_adapter_state,
    load_peft_folder,
    peft_base,
    save_adapter,
    trainable_parameters,
)
from meqsum_lightning.models.shapes import embedded_folder, random_model
from meqsum_lightning.models.targets import adapter_parameter_count, select_modules
from tests.models.test_shapes import flan
from tests.models.test_targets import BART, adapter_config

LOW_RANK = ["lora", "dora", "rslora", "pissa"]
FAMILIES = {"t5": flan(dropout_rate=0.0), "bart": BART}
IDS = torch.arange(2, 34).reshape(4, 8) % 38 + 2


def backbone(family="t5", dtype=torch.float32):
    return random_model(FAMILIES[family], dtype, seed=0)


def adapted(method="lora", family="t5", dtype=torch.float32, seed=1, **changes):
    values = {"method": method, "r": 4, "target_modules": "all", **changes}
    return apply_adapter(backbone(family, dtype), adapter_config(**values), seed)


def logits(model):
    model.eval()
    with torch.no_grad():
        return model(input_ids=IDS, labels=IDS, use_cache=False).logits


def train(model, steps=3, lr=1e-2):
    model.train()
    optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=lr)
    for _ in range(steps):
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", LOW_RANK)
def test_counts_agree_with_peft_and_the_formula(method, family):
    model = adapted(method, family)
    count = sum(p.numel() for p in trainable_parameters(model).values())
    modules = select_modules(FAMILIES[family], adapter_config(target_modules="all"))
    assert count == model.get_nb_trainable_parameters()[0]
    assert count == adapter_parameter_count(modules, 4, method)


@pytest.mark.parametrize("method", LOW_RANK)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_training_starts_exactly_at_the_backbone(method, dtype):
    assert torch.equal(logits(adapted(method, dtype=dtype)), logits(backbone(dtype=dtype)))


@pytest.mark.parametrize("method", LOW_RANK)
def test_only_fp32_adapter_weights_get_gradients(method):
    model = adapted(method, dtype=torch.bfloat16)
    assert model.training
    model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == ("lora_" in name), name
        assert parameter.dtype == (torch.float32 if "lora_" in name else torch.bfloat16)


@pytest.mark.parametrize("scope", ["everywhere", "cross"])
def test_activation_checkpointing_gives_adapters_the_same_gradients(scope):
    gradients = []
    for checkpointing in (False, True):
        base = backbone()
        if checkpointing:
            base.activation_checkpointing_enable({"use_reentrant": False})
        model = apply_adapter(base, adapter_config(r=4, scope=scope), 1)
        for parameter in trainable_parameters(model).values():  # B is zero at the start
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        gradients.append({n: p.grad for n, p in trainable_parameters(model).items()})
    assert all(gradient.abs().sum() > 0 for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        size = gradient.abs().max().item()
        assert torch.allclose(gradient, gradients[1][name], atol=1e-4 * size), name


def test_initialisation_follows_the_seed_alone():
    torch.manual_seed(8)
    before = torch.get_rng_state()
    first = adapter_state(adapted())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(9)
    second, other = adapter_state(adapted()), adapter_state(adapted(seed=2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("method", "scale"), [("lora", 6 / 4), ("dora", 6 / 4), ("rslora", 6 / math.sqrt(4))]
)
def test_scale_of_the_update(method, scale):
    model = adapted(method, alpha=6.0)
    layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
    assert {layer.scaling["default"] for layer in layers} == {scale}


def test_alpha_is_twice_the_rank_unless_given():
    assert adapted().peft_config["default"].lora_alpha == 8


def test_rslora_update_is_what_the_formula_says():
    model = adapted("rslora", target_modules=["v"], alpha=6.0)
    layer = next(m for m in model.modules() if isinstance(m, LoraLayer))
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    x = torch.randn(3, layer.in_features)
    update = x @ layer.lora_A["default"].weight.T @ layer.lora_B["default"].weight.T
    expected = layer.get_base_layer()(x) + 6 / math.sqrt(4) * update
    assert torch.allclose(layer.eval()(x), expected, atol=1e-5)


@pytest.mark.parametrize("scope", ["everywhere", "encoder", "decoder", "cross"])
@pytest.mark.parametrize("family", FAMILIES)
def test_exactly_the_chosen_layers_are_adapted(family, scope):
    choice = {"target_modules": "qv", "scope": scope, "layers": [1]}
    model = adapted(family=family, **choice)
    found = {
        n.removeprefix("base_model.model.")
        for n, m in model.named_modules()
        if isinstance(m, LoraLayer)
    }
    chosen = select_modules(FAMILIES[family], adapter_config(**choice))
    assert found == {m.name for m in chosen}


class TestPissa:
    def test_follows_peft_s_own_pissa(self):
        ours = train(adapted("pissa", target_modules="qv"), lr=1e-3)
        config = LoraConfig(
            r=4,
            lora_alpha=8,
            init_lora_weights="pissa",
            target_modules=["q", "v"],
            task_type="SEQ_2_SEQ_LM",
        )
        theirs = train(get_peft_model(backbone(), config), lr=1e-3)
        moved = (logits(ours) - logits(backbone())).abs().max()
        assert torch.allclose(logits(ours), logits(theirs), atol=1e-3 * moved.item() + 1e-5)

    def test_starts_from_the_largest_singular_values(self):
        model = adapted("pissa", target_modules=["v"], alpha=6.0)
        layer = next(m for m in model.modules() if isinstance(m, LoraLayer))
        product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * 6 / 4
        values = torch.linalg.svdvals(layer.get_base_layer().weight)
        assert torch.allclose(torch.linalg.svdvals(product)[:4], values[:4], atol=1e-5)

    def test_wide_layers_use_the_fast_decomposition_and_still_start_exactly(self, monkeypatch):
        monkeypatch.setattr("meqsum_lightning.models.adapters._EXACT_SVD_WIDTH", 4)
        model = adapted("pissa", r=1, target_modules=["wi_0"])
        layer = next(m for m in model.modules() if isinstance(m, LoraLayer))
        product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * 2
        values = torch.linalg.svdvals(layer.get_base_layer().weight)
        assert torch.linalg.svdvals(product)[0].item() == pytest.approx(values[0].item(), rel=1e-3)
        assert torch.equal(logits(model), logits(backbone()))

    def test_rank_beyond_the_matrices_is_refused(self):
        with pytest.raises(UserError, match=r"adapter.r=9: PiSSA .*at most 8"):
            adapted("pissa", r=9, target_modules="qv")

    def test_merging_gives_the_same_model(self):
        model = train(adapted("pissa"))
        before = logits(model)
        assert torch.allclose(logits(model.merge_and_unload(safe_merge=True)), before, atol=1e-4)

    def test_is_saved_as_lora_of_twice_the_rank(self, tmp_path):
        save_adapter(train(adapted("pissa")), tmp_path)
        config = json.loads((tmp_path / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"]) == (8, 16)


class TestFolders:
    @pytest.mark.parametrize("method", LOW_RANK)
    @pytest.mark.parametrize("family", FAMILIES)
    def test_plain_peft_opens_the_folder_with_the_same_logits(self, method, family, tmp_path):
        model = train(adapted(method, family, scope="decoder"))
        assert (logits(model) - logits(backbone(family))).abs().max() > 5e-3
        save_adapter(model, tmp_path)
        again = PeftModel.from_pretrained(backbone(family), tmp_path)
        assert torch.allclose(logits(again), logits(model), atol=2e-5)
        ours = load_peft_folder(tmp_path, backbone(family))
        assert not ours.training
        assert not trainable_parameters(ours)

    def test_saving_does_not_change_the_model(self, tmp_path):
        model = train(adapted("pissa"))
        before = logits(model)
        save_adapter(model, tmp_path)
        assert torch.equal(logits(model), before)
        assert model.peft_config["default"].r == 4

    def test_base_model_is_written_down(self, tmp_path):
        path = str(embedded_folder().resolve())
        model = apply_adapter(backbone(), adapter_config(r=2), 0, path)
        save_adapter(model, tmp_path)
        config = json.loads((tmp_path / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == path
        assert config["target_modules"] == ["q", "v"]
        assert peft_base(tmp_path) == "embedded"

    def test_hub_base_keeps_its_revision(self, tmp_path):
        model = apply_adapter(backbone(), adapter_config(r=2), 0, "google/flan-t5-base", "abc")
        save_adapter(model, tmp_path)
        assert json.loads((tmp_path / "adapter_config.json").read_text())["revision"] == "abc"
        assert peft_base(tmp_path) == "google/flan-t5-base"

    def test_full_fine_tuning_gives_a_model_folder(self, tmp_path):
        model = train(apply_adapter(backbone(), adapter_config(method="full", r=None), 0))
        save_adapter(model, tmp_path)
        assert torch.equal(logits(AutoModelForSeq2SeqLM.from_pretrained(tmp_path)), logits(model))

    def test_none_has_nothing_to_save(self, tmp_path):
        model = apply_adapter(backbone(), adapter_config(method="none", r=None), 0)
        with pytest.raises(ValueError, match="nothing to save"):
            save_adapter(model, tmp_path)


class TestWrongFolders:
    def test_no_folder_and_no_adapter(self, tmp_path):
        with pytest.raises(UserError, match=r"run=.*nowhere: no such folder"):
            load_peft_folder(tmp_path / "nowhere", backbone())
        with pytest.raises(UserError, match=r"no adapter_config.json"):
            load_peft_folder(tmp_path, backbone())

    def test_truncated_weights(self, tmp_path):
        save_adapter(adapted(), tmp_path)
        weights = tmp_path / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:200])
        with pytest.raises(UserError, match=r"adapter_model.safetensors is corrupt"):
            load_peft_folder(tmp_path, backbone())

    def test_broken_configuration(self, tmp_path):
        save_adapter(adapted(), tmp_path)
        (tmp_path / "adapter_config.json").write_text('{"peft_type": "NOPE"}')
        with pytest.raises(UserError, match=r"adapter_config.json cannot be read"):
            load_peft_folder(tmp_path, backbone())

    def test_another_backbone(self, tmp_path):
        save_adapter(adapted(), tmp_path)
        with pytest.raises(UserError, match="does not fit the backbone"):
            load_peft_folder(tmp_path, backbone("bart"))
        wider = random_model(flan(d_model=32), torch.float32, 0)
        with pytest.raises(UserError, match="does not fit the backbone"):
            load_peft_folder(tmp_path, wider)
        deeper = random_model(flan(num_layers=3), torch.float32, 0)
        with pytest.raises(UserError, match="does not fit the backbone"):
            load_peft_folder(tmp_path, deeper)


class TestBackboneAlone:
    @pytest.mark.parametrize("method", LOW_RANK)
    def test_disabled_adapter_is_the_backbone_and_comes_back(self, method):
        model = train(adapted(method, dtype=torch.bfloat16))
        trained = logits(model)
        names = set(trainable_parameters(model))
        with adapter_disabled(model):
            assert torch.equal(logits(model), logits(backbone(dtype=torch.bfloat16)))
        assert torch.equal(logits(model), trained)
        assert set(trainable_parameters(model)) == names

    def test_none_is_the_backbone(self):
        model = apply_adapter(backbone(), adapter_config(method="none", r=None), 0)
        assert not model.training
        assert not trainable_parameters(model)
        with adapter_disabled(model):
            assert torch.equal(logits(model), logits(backbone()))

    def test_full_has_no_backbone_left(self):
        model = apply_adapter(backbone(), adapter_config(method="full", r=None), 0)
        assert model.training
        assert len(trainable_parameters(model)) == len(list(model.parameters()))
        with pytest.raises(ValueError, match="no backbone alone"), adapter_disabled(model):
            pass


class TestState:
    @pytest.mark.parametrize("method", [*LOW_RANK, "full"])
    def test_state_brings_a_fresh_model_to_the_same_point(self, method):
        model = train(adapted(method, r=None if method == "full" else 4))
        state = adapter_state(model)
        frozen = {name: tensor.clone() for name, tensor in state.items()}
        after = logits(model)
        train(model, steps=1)
        assert all(torch.equal(state[n], frozen[n]) for n in frozen)  # copies, not views
        fresh = adapted(method, r=None if method == "full" else 4, seed=5)
        load_adapter_state(fresh, state)
        assert torch.equal(logits(fresh), after)

    def test_none_has_an_empty_state(self):
        assert adapter_state(apply_adapter(backbone(), adapter_config(method="none"), 0)) == {}

    def test_what_does_not_fit_is_refused_and_changes_nothing(self):
        model = adapted()
        before = adapter_state(model)
        state = {name: tensor + 1 for name, tensor in before.items()}
        first = min(state)
        missing = {name: t for name, t in state.items() if name != first}
        with pytest.raises(UserError, match=f"checkpoint: lacks 1 tensors .first {first}"):
            load_adapter_state(model, missing)
        with pytest.raises(UserError, match=r"also holds 1 tensors .first other"):
            load_adapter_state(model, {**state, "other": torch.zeros(1)})
        with pytest.raises(UserError, match=r"has shape \(8, 16\); expected \(4, 16\)"):
            load_adapter_state(model, adapter_state(adapted(r=8)))
        after = adapter_state(model)
        assert all(torch.equal(before[name], after[name]) for name in before)
