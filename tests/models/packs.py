"""What the tests of packs share: small models, adapters, batches, and the same adapters alone."""

import torch
from transformers import BartConfig, GenerationConfig

from meqsum_lightning.models.adapters import apply_adapter, trainable_parameters
from meqsum_lightning.models.packed import PackedModel
from meqsum_lightning.models.shapes import random_model
from tests.models.test_shapes import flan
from tests.models.test_targets import BART, adapter_config

FAMILIES = {
    "t5": flan(dropout_rate=0.0),
    "bart": BartConfig.from_dict({**BART.to_dict(), "dropout": 0.0}),
}

# One on everything, one on some attention with rsLoRA, one feed-forward alone, one on one side.
MIXED = (
    adapter_config(r=4, target_modules="all"),
    adapter_config(method="rslora", r=3, alpha=5.0, target_modules="qv"),
    adapter_config(r=1, target_modules="ffn", layers=[1]),
    adapter_config(r=8, alpha=4.0, target_modules="attention", scope="encoder"),
)
SIZES = (3, 2, 2, 1)


def backbone(family="t5", dtype=torch.float64):
    model = random_model(FAMILIES[family], dtype, seed=0).eval()
    model.generation_config = GenerationConfig(
        decoder_start_token_id=0, eos_token_id=1, pad_token_id=0
    )
    return model


def stirred(parameters, seed):
    """B starts at zero, which would hide half of everything."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in parameters.values():
            value.add_(torch.randn(value.shape, generator=generator).to(value) * 0.2)


def make_pack(adapters=MIXED, family="t5", dtype=torch.float64, **options):
    pack = PackedModel(backbone(family, dtype), **options).eval()
    for index, adapter in enumerate(adapters):
        pack.add(index, adapter, seed=index)
        stirred(pack.parameters_of(index), seed=100 + index)
    return pack


def alone(pack, index, adapter, family="t5", dtype=torch.float64):
    """The same adapter in PEFT's own model, in the same mode."""
    model = apply_adapter(backbone(family, dtype), adapter, seed=index)
    with torch.no_grad():
        for name, value in pack.parameters_of(index).items():
            trainable_parameters(model)[name].copy_(value)
    return model.train(pack.training)


def batch(rows, source=7, target=5, seed=0):
    """Ids, mask and labels (rows, ...), padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 38, (rows, source), generator=generator)
    labels = torch.randint(2, 38, (rows, target), generator=generator)
    lengths = torch.randint(3, source + 1, (rows,), generator=generator)
    mask = (torch.arange(source) < lengths[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


def part(inputs, start, size):
    return {name: value[start : start + size] for name, value in inputs.items()}


def parts(inputs, sizes):
    starts = torch.tensor([0, *sizes]).cumsum(0).tolist()
    return [part(inputs, start, size) for start, size in zip(starts, sizes, strict=False)]


def logits(model, inputs):
    return model(**inputs, use_cache=False).logits


def gradients(parameters):
    return {name: value.grad for name, value in parameters.items()}
