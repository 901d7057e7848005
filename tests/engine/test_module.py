"""Losses and gradients of the module against plain transformers; generation without surprises."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch

from meqsum_lightning.engine.module import Seq2SeqModule, decode, generation_arguments
from meqsum_lightning.engine.parts import load_data
from meqsum_lightning.metrics.rouge import RougeProtocol
from meqsum_lightning.models.adapters import apply_adapter, trainable_parameters
from meqsum_lightning.models.backbones import load_backbone
from meqsum_lightning.models.losses import token_loss


@pytest.fixture
def parts(small):
    cfg = small("adapter.dropout=0.0", "model.dropout=0.0")
    data = load_data(cfg)
    backbone = load_backbone(cfg.model, trainable=False, seed=0)
    model = apply_adapter(backbone, cfg.adapter, seed=0)
    # B starts at 0 and so do A's gradients: move it, so that gradients can be compared.
    with torch.no_grad():
        for name, parameter in trainable_parameters(model).items():
            if "lora_B" in name:
                parameter.normal_(0, 0.05)
    return cfg, data.module, model


def step_gradients(model, step, tokens):
    model.zero_grad()
    for micro in step["micro_batches"]:
        logits = model(
            input_ids=micro["input_ids"],
            attention_mask=micro["attention_mask"],
            labels=micro["labels"],
        ).logits
        loss, _ = token_loss(logits, micro["labels"])
        (loss / tokens).backward()
    return {name: p.grad.clone() for name, p in trainable_parameters(model).items()}


def test_a_batch_split_in_micro_batches_gives_the_same_gradient(parts, small):
    _, data, model = parts
    split = next(iter(data.train_dataloader()))
    whole_data = load_data(small("data.micro_batch_size=4")).module
    whole = next(iter(whole_data.train_dataloader()))
    assert len(split["micro_batches"]) == 2 and len(whole["micro_batches"]) == 1
    assert split["target_tokens"] == whole["target_tokens"]
    ours = step_gradients(model, split, split["target_tokens"])
    theirs = step_gradients(model, whole, whole["target_tokens"])
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6)


def test_the_loss_is_that_of_transformers(parts):
    cfg, data, model = parts
    module = Seq2SeqModule(model, data.tokenizer, cfg.generation, RougeProtocol(True))
    batch = next(iter(data.val_dataloader()))
    with torch.no_grad():
        total, tokens = token_loss(module(batch), batch["labels"])
        theirs = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            labels=batch["labels"],
        ).loss
    torch.testing.assert_close(total / tokens, theirs)


def test_generation_is_that_of_transformers_row_by_row(parts):
    cfg, data, model = parts
    module = Seq2SeqModule(model.eval(), data.tokenizer, cfg.generation, RougeProtocol(True))
    part = data.part("test")
    ours = {}
    for batch in data.test_dataloader():
        texts = module.generate(batch, 2)
        ours |= dict(zip(batch["row_indices"].tolist(), texts, strict=True))
    for index, ids in enumerate(part.tokens.source):
        alone = model.generate(
            input_ids=torch.tensor([ids]), max_new_tokens=8, num_beams=2, do_sample=False
        )
        assert decode(data.tokenizer, alone)[0].strip() == ours[index]


@pytest.fixture
def published(tiny_backbone, tmp_path):
    """A backbone that brings lengths, beams and blocking of its own, as BART-large does."""
    folder = Path(shutil.copytree(tiny_backbone, tmp_path / "published"))
    path = folder / "generation_config.json"
    habits = {
        "max_length": 20,
        "num_beams": 4,
        "min_length": 5,
        "no_repeat_ngram_size": 1,
        "do_sample": True,
        "early_stopping": True,
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | habits))
    return folder


@pytest.mark.parametrize("beams", [1, 4])
def test_the_length_of_summaries_is_explicit(published, beams, small, caplog):
    """C08: `max_new_tokens=64` gives up to 65 tokens (with the start), and no warning."""
    cfg = small(f"model.backbone={published}", "generation.max_new_tokens=64")
    model = load_backbone(cfg.model, trainable=False, seed=0)
    # Never ends by itself: whatever stops it is the limit.
    model.generation_config.eos_token_id = None
    batch = next(iter(load_data(cfg).module.val_dataloader()))
    with warnings.catch_warnings(), caplog.at_level("WARNING"):
        warnings.simplefilter("error")
        ids = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            **generation_arguments(cfg.generation, beams),
        )
    assert ids.shape[1] == 65
    assert not caplog.records


def test_habits_of_a_published_checkpoint_do_not_count(published, small):
    texts = []
    for overrides in ([], [f"model.backbone={published}"]):
        cfg = small(*overrides)
        data = load_data(cfg).module
        backbone = load_backbone(cfg.model, trainable=False, seed=0)
        module = Seq2SeqModule(backbone, data.tokenizer, cfg.generation, RougeProtocol(True))
        texts.append(module.generate(next(iter(data.val_dataloader())), 1))
    assert texts[0] == texts[1]
