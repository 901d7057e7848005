"""Built-in shapes of the known backbones, and models drawn at random from a shape.

Everything here works offline and from hyperparameters alone; loading weights is `backbones`.
"""

import copy
import difflib
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meqsum_lightning.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

SHAPE_NAMES = (
    "tiny_t5",
    "flan_t5_small",
    "flan_t5_base",
    "flan_t5_large",
    "t5_large",
    "bart_base",
    "bart_large",
)

_T5: dict[str, Any] = {
    "model_type": "t5",
    "vocab_size": 32128,
    "d_kv": 64,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "dropout_rate": 0.1,
    "layer_norm_epsilon": 1e-6,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
# T5 v1.1 and Flan-T5: gated feed-forward, an output layer of its own, logits not scaled.
_FLAN: dict[str, Any] = {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
_BART: dict[str, Any] = {
    "model_type": "bart",
    "vocab_size": 50265,
    "max_position_embeddings": 1024,
    "activation_function": "gelu",
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.1,
    "init_std": 0.02,
    "scale_embedding": False,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_bos_token_id": 0,
    "forced_eos_token_id": 2,
}


def _bart(d_model: int, layers: int, heads: int, ffn: int) -> dict[str, Any]:
    sides = {
        f"{side}_{key}": value
        for side in ("encoder", "decoder")
        for key, value in (("layers", layers), ("attention_heads", heads), ("ffn_dim", ffn))
    }
    return {**_BART, **sides, "d_model": d_model}


# The hyperparameters of the published checkpoints: google/flan-t5-*, google-t5/t5-large,
# facebook/bart-*. `tiny_t5` stands for the embedded model, whose own config.json comes first.
_SHAPES: dict[str, dict[str, Any]] = {
    "tiny_t5": {
        **_T5,
        "feed_forward_proj": "gated-gelu",
        "vocab_size": 3072,
        "d_model": 256,
        "d_ff": 512,
        "num_heads": 4,
        "num_layers": 3,
        "num_decoder_layers": 2,
    },
    "flan_t5_small": {**_FLAN, "d_model": 512, "d_ff": 1024, "num_heads": 6, "num_layers": 8},
    "flan_t5_base": {**_FLAN, "d_model": 768, "d_ff": 2048, "num_heads": 12, "num_layers": 12},
    "flan_t5_large": {**_FLAN, "d_model": 1024, "d_ff": 2816, "num_heads": 16, "num_layers": 24},
    "t5_large": {
        **_T5,
        "feed_forward_proj": "relu",
        "d_model": 1024,
        "d_ff": 4096,
        "num_heads": 16,
        "num_layers": 24,
    },
    "bart_base": _bart(d_model=768, layers=6, heads=12, ffn=3072),
    "bart_large": _bart(d_model=1024, layers=12, heads=16, ffn=4096),
}

# Hub ids whose configuration is one of the shapes, so that a plan needs no network.
PUBLISHED = {
    "google/flan-t5-small": "flan_t5_small",
    "google/flan-t5-base": "flan_t5_base",
    "google/flan-t5-large": "flan_t5_large",
    "google-t5/t5-large": "t5_large",
    "facebook/bart-base": "bart_base",
    "facebook/bart-large": "bart_large",
}


def embedded_folder() -> Path:
    """Folder of the model that ships with the package (weights, config and tokenizer)."""
    return Path(str(resources.files("meqsum_lightning"))) / "assets" / "tiny_t5"


def shape_config(name: str) -> "PretrainedConfig":
    """Hyperparameters of a built-in shape, without any download.

    Args:
        name: One of `SHAPE_NAMES`.

    Raises:
        UserError: There is no such shape.
    """
    from transformers import AutoConfig

    if name not in _SHAPES:
        close = difflib.get_close_matches(name, SHAPE_NAMES, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(
            f"model.shape={name}: no such shape; {hint}expected one of {', '.join(SHAPE_NAMES)}"
        )
    if name == "tiny_t5" and (embedded_folder() / "config.json").is_file():
        config = AutoConfig.from_pretrained(embedded_folder(), trust_remote_code=False)
    else:
        config = AutoConfig.for_model(**_SHAPES[name])
    return config


def has_own_output_layer(config: "PretrainedConfig") -> bool:
    """Whether the model's output layer is separate from its embeddings.

    transformers 5 reports `tie_word_embeddings=True` for every T5. What is left of the published
    `false` of v1.1 is `scale_decoder_outputs=False`: the original T5 ties and scales the decoder's
    output by d_model^-0.5, T5 v1.1 does neither (Raffel et al. 2020; the notes on v1.1 at
    github.com/google-research/text-to-text-transfer-transformer).
    """
    if config.model_type == "t5":
        return not getattr(config, "scale_decoder_outputs", True)
    return not config.tie_word_embeddings


def meta_model(config: "PretrainedConfig") -> "PreTrainedModel":
    """The model's modules on the meta device: shapes and names, no memory."""
    import torch
    from transformers import AutoModelForSeq2SeqLM

    with torch.device("meta"):
        model = AutoModelForSeq2SeqLM.from_config(copy.deepcopy(config), trust_remote_code=False)
        if has_own_output_layer(config):
            model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    if has_own_output_layer(config):
        keep_untied(model)
    return model


def random_model(config: "PretrainedConfig", dtype: "torch.dtype", seed: int) -> "PreTrainedModel":
    """A model with random weights, created directly in `dtype`, in evaluation mode.

    The global random state is left as it was. An untied output layer is drawn with standard
    deviation d_model^-0.5, so that random logits have unit variance and the loss starts near
    ln(vocabulary), as in T5X (its logits layer: variance scaling 1.0 over fan-in).

    Args:
        config: Shape, for example from `shape_config`.
        dtype: Type of all weights.
        seed: Seed of the weights.
    """
    import torch
    from transformers import AutoModelForSeq2SeqLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSeq2SeqLM.from_config(
            copy.deepcopy(config), dtype=dtype, trust_remote_code=False
        )
        if has_own_output_layer(config):
            vocabulary, width = model.lm_head.weight.shape
            weight = torch.empty(vocabulary, width, dtype=dtype).normal_(std=width**-0.5)
            model.lm_head.weight = torch.nn.Parameter(weight)
            keep_untied(model)
    return model.eval()


def keep_untied(model: "PreTrainedModel") -> None:
    """Make a separate output layer stay separate when transformers ties weights again.

    transformers 5 recomputes ties from the class, so the class's list is shadowed on the instance.
    """
    model._tied_weights_keys = {
        target: source
        for target, source in (model._tied_weights_keys or {}).items()
        if target != "lm_head.weight"
    }
    model.all_tied_weights_keys.pop("lm_head.weight", None)
