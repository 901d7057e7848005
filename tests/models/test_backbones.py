"""Backbones: what loads, what is refused in one line, tokenizers, types, and fingerprints."""

import json
import logging
import shutil
import time

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, BartConfig, GPT2Config

from meqsum_lightning.config.schema import ModelConfig
from meqsum_lightning.errors import UserError
from meqsum_lightning.models import backbones, sources
from meqsum_lightning.models.backbones import (
    adapter_base_name,
    backbone_fingerprint,
    check_backbone,
    check_lengths,
    load_backbone,
    load_config,
    load_tokenizer,
    save_model,
)
from meqsum_lightning.models.shapes import embedded_folder, random_model, shape_config
from tests.models.test_shapes import flan


def model_config(**changes) -> ModelConfig:
    values = {
        "name": "test",
        "backbone": "embedded",
        "revision": None,
        "weights": "pretrained",
        "shape": None,
        "tokenizer": None,
        "dtype": "fp32",
        "dropout": None,
        "activation_checkpointing": False,
    }
    return ModelConfig(**{**values, **changes})


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No test asks the Hub: it does not answer."""
    monkeypatch.setattr(sources, "_hub_answers", lambda: False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved Flan-style model without tokenizer."""
    path = tmp_path_factory.mktemp("model")
    save_model(random_model(flan(), torch.float32, seed=3), path, None)
    return path


def logits(model):
    ids = torch.arange(2, 18).reshape(2, 8)
    with torch.no_grad():
        return model(input_ids=ids, labels=ids).logits


def refused(**changes) -> str:
    with pytest.raises(UserError) as caught:
        check_backbone(model_config(**changes))
    assert len(caught.value.lines) == 1
    return caught.value.lines[0]


class TestLoading:
    def test_embedded_model_and_tokenizer_load(self):
        config = model_config()
        model, tokenizer = load_backbone(config, False, 0), load_tokenizer(config)
        assert model.config.model_type == "t5"
        assert not model.training
        assert len(tokenizer) <= model.config.vocab_size
        assert tokenizer("What is gout?").input_ids[-1] == tokenizer.eos_token_id

    def test_folder_gives_its_weights_without_a_warning(self, folder, caplog, capsys):
        with caplog.at_level(logging.WARNING):
            model = load_backbone(model_config(backbone=str(folder)), False, 0)
        expected = random_model(flan(), torch.float32, seed=3)
        assert torch.equal(logits(model), logits(expected))
        assert model.lm_head.weight is not model.shared.weight
        assert not caplog.records
        assert capsys.readouterr().err == ""

    def test_loaded_output_layer_stays_separate_through_retying_and_saving(self, folder, tmp_path):
        model = load_backbone(model_config(backbone=str(folder)), False, 0)
        before = logits(model)
        model.tie_weights()
        assert torch.equal(logits(model), before)
        save_model(model, tmp_path, None)
        assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is False
        assert torch.equal(logits(AutoModelForSeq2SeqLM.from_pretrained(tmp_path)), before)

    def test_frozen_weights_take_the_given_type_and_trained_ones_fp32(self, folder):
        config = model_config(backbone=str(folder), dtype="bf16")
        frozen, trained = load_backbone(config, False, 0), load_backbone(config, True, 0)
        assert {p.dtype for p in frozen.parameters()} == {torch.bfloat16}
        assert {p.dtype for p in trained.parameters()} == {torch.float32}

    def test_random_weights_follow_the_seed(self):
        config = model_config(weights="random", shape="tiny_t5")
        first, second = load_backbone(config, False, 1), load_backbone(config, False, 2)
        assert not torch.equal(first.shared.weight, second.shared.weight)

    def test_random_bart_runs_with_the_embedded_tokenizer(self, monkeypatch):
        small = BartConfig(
            vocab_size=4000,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
        )
        monkeypatch.setattr(backbones, "shape_config", lambda name: small)
        config = model_config(weights="random", shape="bart_base")
        model, tokenizer = load_backbone(config, False, 0), load_tokenizer(config)
        assert model.config.pad_token_id == tokenizer.pad_token_id
        assert model.config.eos_token_id == tokenizer.eos_token_id
        batch = tokenizer(["what is gout?"], return_tensors="pt")
        assert model.generate(**batch, max_new_tokens=4).shape[1] <= 5


class TestDropout:
    def test_null_keeps_what_was_published(self):
        config = load_config(model_config(weights="random", shape="bart_base"))
        assert (config.dropout, config.attention_dropout, config.activation_dropout) == (0.1,) * 3

    def test_a_value_replaces_t5_s_rate(self):
        config = model_config(dropout=0.3)
        assert load_config(config).dropout_rate == 0.3
        rates = {m.p for m in load_backbone(config, False, 0).modules() if hasattr(m, "p")}
        assert rates == {0.3}

    def test_zero_makes_bart_deterministic(self):
        config = load_config(model_config(weights="random", shape="bart_base", dropout=0.0))
        assert (config.dropout, config.attention_dropout, config.activation_dropout) == (0.0,) * 3
        assert (config.encoder_layerdrop, config.decoder_layerdrop) == (0.0, 0.0)


class TestRefused:
    def test_missing_folder(self):
        assert refused(backbone="./nowhere").startswith("model.backbone=./nowhere: no such folder")

    def test_file_in_place_of_a_folder(self, tmp_path):
        file = tmp_path / "model.bin"
        file.write_bytes(b"")
        assert "is a file" in refused(backbone=str(file))

    def test_folder_that_is_no_model(self, tmp_path):
        assert "a folder without config.json" in refused(backbone=str(tmp_path))

    def test_adapter_folder(self, tmp_path):
        (tmp_path / "adapter_config.json").write_text("{}")
        assert "an adapter folder (use run=DIR)" in refused(backbone=str(tmp_path))

    @pytest.mark.parametrize("content", ["", "[1]", '{"model_type": "t5", "d_model": "wide"}'])
    def test_broken_config(self, tmp_path, content):
        (tmp_path / "config.json").write_text(content)
        assert "config.json is not valid" in refused(backbone=str(tmp_path))

    def test_decoder_only_model(self, tmp_path):
        GPT2Config(n_layer=1).save_pretrained(tmp_path)
        assert "its architecture is gpt2" in refused(backbone=str(tmp_path))

    def test_half_a_t5(self, tmp_path):
        config = flan()
        config.architectures = ["T5EncoderModel"]
        config.save_pretrained(tmp_path)
        assert "only one half of a t5 model" in refused(backbone=str(tmp_path))

    def test_folder_without_weights(self, tmp_path):
        flan().save_pretrained(tmp_path)
        assert "no weights; expected model.safetensors" in refused(backbone=str(tmp_path))

    def test_truncated_weights(self, folder, tmp_path):
        shutil.copytree(folder, tmp_path / "cut")
        weights = tmp_path / "cut" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:500])
        with pytest.raises(UserError, match="its weights cannot be loaded"):
            load_backbone(model_config(backbone=str(tmp_path / "cut")), False, 0)

    def test_weights_of_a_smaller_model(self, folder, tmp_path):
        shutil.copytree(folder, tmp_path / "deep")
        flan(num_layers=3).save_pretrained(tmp_path / "deep")
        with pytest.raises(UserError, match=r"its weights lack .* tensors"):
            load_backbone(model_config(backbone=str(tmp_path / "deep")), False, 0)

    def test_hub_id_without_a_network_is_refused_at_once(self, monkeypatch, tmp_path):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        start = time.monotonic()
        line = refused(backbone="nobody/flan-t5-nowhere")
        assert "Hub cannot be reached" in line
        assert time.monotonic() - start < 5

    def test_name_of_a_shape_in_place_of_a_hub_id(self, monkeypatch, tmp_path):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        assert "did you mean model=flan_t5_large?" in refused(backbone="flan_t5_large")

    def test_neither_folder_nor_hub_id(self):
        assert "neither a folder nor a Hub id" in refused(backbone="my model")

    @pytest.mark.parametrize(
        ("kind", "reason"),
        [
            ("GatedRepoError", "gated on the Hub"),
            ("RepositoryNotFoundError", "no such model on the Hub"),
            ("RevisionNotFoundError", "model.revision=v9: nobody/x has no such revision"),
            ("RemoteEntryNotFoundError", "not a transformers model"),
        ],
    )
    def test_answers_of_the_hub_are_one_line(self, monkeypatch, kind, reason):
        import httpx2
        import huggingface_hub

        response = httpx2.Response(404, request=httpx2.Request("HEAD", "https://hub.invalid"))
        error = getattr(huggingface_hub.errors, kind)("long\nstory", response=response)

        def answer(*args, **kwargs):
            raise error

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", answer)
        assert reason in refused(backbone="nobody/x", revision="v9")

    def test_random_without_a_shape(self):
        assert refused(weights="random").startswith("model.shape=null")


class TestTokenizer:
    def test_more_tokens_than_embeddings(self, tmp_path):
        save_model(random_model(flan(vocab_size=64), torch.float32, 0), tmp_path, None)
        config = model_config(backbone=str(tmp_path), tokenizer="embedded")
        with pytest.raises(UserError, match=r"model.tokenizer=embedded: .* embeddings for 64"):
            load_tokenizer(config)

    def test_folder_without_tokenizer(self, folder):
        with pytest.raises(UserError, match=r"model.backbone=.*: the model has no tokenizer"):
            load_tokenizer(model_config(backbone=str(folder)))


class TestFingerprint:
    def test_follows_content_and_not_the_place(self, folder, tmp_path):
        shutil.copytree(folder, tmp_path / "copy")
        first = backbone_fingerprint(model_config(backbone=str(folder)))
        copy = model_config(backbone=str(tmp_path / "copy"))
        assert backbone_fingerprint(copy) == first
        weights = tmp_path / "copy" / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1  # one bit of the last weight
        weights.write_bytes(content)
        assert backbone_fingerprint(copy) != first

    def test_random_names_shape_and_seed(self):
        config = model_config(weights="random", shape="flan_t5_small")
        assert backbone_fingerprint(config, 7) == "random:flan_t5_small:7"

    def test_hub_names_the_commit(self, monkeypatch, tmp_path):
        snapshot = tmp_path / "snapshots" / "abc123"
        snapshot.mkdir(parents=True)
        flan().save_pretrained(snapshot)
        path = str(snapshot / "config.json")
        monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a, **k: path)
        config = model_config(backbone="nobody/x")
        assert backbone_fingerprint(config) == "nobody/x@abc123"
        assert adapter_base_name(config) == ("nobody/x", "abc123")

    def test_embedded_model_is_named_by_its_path(self):
        assert adapter_base_name(model_config()) == (str(embedded_folder().resolve()), None)


class TestChecks:
    def test_lengths_beyond_bart_s_positions_are_refused(self):
        from types import SimpleNamespace

        data = SimpleNamespace(max_source_length=2048, max_target_length=64)
        with pytest.raises(UserError, match=r"data.max_source_length=2048: .*at most 1024"):
            check_lengths(shape_config("bart_base"), data)
        check_lengths(shape_config("flan_t5_small"), data)


def test_checkpointing_leaves_the_gradients_as_they_are(folder):
    plain = load_backbone(model_config(backbone=str(folder), dropout=0.0), True, 0).train()
    saving = load_backbone(
        model_config(backbone=str(folder), dropout=0.0, activation_checkpointing=True), True, 0
    ).train()
    assert saving.is_activation_checkpointing
    ids = torch.arange(2, 18).reshape(2, 8)
    for model in (plain, saving):
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), saving.named_parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-6), name
