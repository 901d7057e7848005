"""The tiny T5 and its start: copying is built in, so that pretraining need not discover it.

One encoder head attends to the previous token and writes it into a second subspace; one
decoder head compares the last word written with that subspace and repeats what followed it.
"""

from pathlib import Path

import torch
from transformers import GenerationConfig, T5Config, T5ForConditionalGeneration

COPY_HEAD = 0
PREVIOUS_BIAS = 7.0  # logit in favour of the previous position
MATCH_LOGIT = 10.0  # cross-attention logit of an exact match, about
VALUE_SCALE = 12.0  # how loudly the copied word is written into the stream
QUIET = 0.3  # factor of all other output projections


def build(vocab_size: int, seed: int = 0) -> T5ForConditionalGeneration:
    """Returns the untrained model (4.6 million parameters) with copying initialised."""
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=vocab_size,
        d_model=256,
        d_kv=64,
        d_ff=512,
        num_heads=4,
        num_layers=3,
        num_decoder_layers=2,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=128,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        architectures=["T5ForConditionalGeneration"],
    )
    model = T5ForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, max_new_tokens=48
    )
    with torch.no_grad():
        _initialise_copying(model)
    return model


def save(model: T5ForConditionalGeneration, folder: Path) -> None:
    """Writes the model in bfloat16 with its configuration."""
    state = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    copy = T5ForConditionalGeneration(model.config).to(torch.bfloat16)
    copy.load_state_dict(state)
    copy.generation_config = model.generation_config
    copy.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)


def _initialise_copying(model: T5ForConditionalGeneration) -> None:
    width, head = model.config.d_model, model.config.d_kv
    rows = slice(COPY_HEAD * head, (COPY_HEAD + 1) * head)
    basis = torch.linalg.qr(torch.randn(width, width))[0]  # (width, width), orthonormal rows
    token, shifted, value = basis[:head], basis[head : 2 * head], basis[2 * head : 3 * head]

    for name, weight in model.named_parameters():  # nothing else is loud at first
        if name.endswith((".o.weight", ".wo.weight")):
            weight *= QUIET

    first = model.encoder.block[0].layer[0].SelfAttention
    first.relative_attention_bias.weight[:, COPY_HEAD] = 0.0
    first.relative_attention_bias.weight[1, COPY_HEAD] = PREVIOUS_BIAS  # bucket 1: one back
    first.q.weight[rows] *= 0.1
    first.v.weight[rows] = token
    first.o.weight[:, rows] = shifted.T * 2.0

    scale = (MATCH_LOGIT / head) ** 0.5  # a normed vector has squares of `head` in a subspace
    last = model.decoder.block[-1].layer[1].EncDecAttention
    last.q.weight[rows] = token * scale
    last.k.weight[rows] = shifted * scale
    last.v.weight[rows] = value
    last.o.weight[:, rows] = value.T * VALUE_SCALE
