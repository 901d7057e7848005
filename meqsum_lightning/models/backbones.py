"""Backbones: whether they fit, loading and saving them with their tokenizer, what identifies them.

Where they come from is `sources`, random shapes are `shapes`, what is trained on top is `adapters`.
"""

import copy
import functools
import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from meqsum_lightning.config.schema import DataConfig, ModelConfig
from meqsum_lightning.errors import UserError
from meqsum_lightning.models.shapes import (
    SHAPE_NAMES,
    has_own_output_layer,
    keep_untied,
    random_model,
    shape_config,
)
from meqsum_lightning.models.sources import first_line, local_folder, read_config, resolve

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# Without one of these, transformers makes up a tokenizer of special tokens alone.
_VOCABULARIES = ("tokenizer.json", "spiece.model", "vocab.json")
_FINGERPRINTED = ("config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin")


def check_backbone(model: ModelConfig) -> "PretrainedConfig":
    """Check that a backbone can be loaded, reading its configuration but no weights.

    Without a network, a Hub id that is not in the local cache is refused within seconds.

    Returns:
        The configuration, as `load_config` gives it.

    Raises:
        UserError: The folder, Hub id, shape, architecture or weights are not usable.
    """
    config = load_config(model)
    if model.weights == "random":
        return config
    folder = local_folder(model.backbone)
    if folder is not None and not any((folder / name).is_file() for name in _WEIGHTS):
        raise UserError(
            f"model.backbone={model.backbone}: the folder has a config.json but no weights; "
            "expected model.safetensors beside it (or model.weights=random)"
        )
    return config


def check_lengths(config: "PretrainedConfig", data: DataConfig) -> None:
    """Refuse sequences that a model with learned positions (BART) has no positions for.

    Raises:
        UserError: One line for each length that is too large.
    """
    limit = getattr(config, "max_position_embeddings", None)
    if config.model_type == "t5" or limit is None:  # relative positions: no limit
        return
    keys = ("max_source_length", "max_target_length")
    lines = [
        f"data.{key}={getattr(data, key)}: the model has positions for {limit} tokens; "
        f"expected at most {limit}"
        for key in keys
        if getattr(data, key) > limit
    ]
    if lines:
        raise UserError(lines)


def load_config(model: ModelConfig) -> "PretrainedConfig":
    """The backbone's hyperparameters, with `model.dropout` applied; no weights are read.

    `model.dropout` replaces T5's single rate; for BART it replaces all three (hidden, attention,
    activation) and layer drop is turned off, so that 0 means deterministic. null keeps them as
    published.

    Raises:
        UserError: The backbone does not exist, cannot be reached, or is not a T5 or BART.
    """
    if model.weights == "random":
        config = _random_config(model)
    else:
        config = read_config(resolve(model.backbone, model.revision).folder, model.backbone)
    if model.dropout is not None:
        _set_dropout(config, model.dropout)
    return config


def load_tokenizer(model: ModelConfig) -> "PreTrainedTokenizerBase":
    """The tokenizer: `model.tokenizer`, or the backbone's, or for random weights the embedded one.

    Raises:
        UserError: There is none, it lacks an end or padding token, or it has more tokens than the
            model has embeddings.
    """
    from transformers import AutoTokenizer

    own = model.tokenizer is None
    name = model.tokenizer or ("embedded" if model.weights == "random" else model.backbone)
    key = "model.backbone" if own and model.weights != "random" else "model.tokenizer"
    source = resolve(name, model.revision if own else None, key)
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source.arguments)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{key}={name}: no tokenizer could be loaded ({first_line(error)}); "
            "expected a folder or Hub id with tokenizer.json"
        ) from error
    if not any((source.folder / vocabulary).is_file() for vocabulary in _VOCABULARIES):
        raise UserError(
            f"{key}={name}: the model has no tokenizer of its own; "
            "expected model.tokenizer=FOLDER or a Hub id with tokenizer.json"
        )
    missing = [n for n in ("eos_token", "pad_token") if getattr(tokenizer, n) is None]
    if missing:
        raise UserError(
            f"{key}={name}: the tokenizer has no {' and no '.join(missing)}; "
            "expected a sequence-to-sequence tokenizer"
        )
    size = load_config(model).vocab_size
    if len(tokenizer) > size:
        raise UserError(
            f"{key}={name}: the tokenizer has {len(tokenizer):,} tokens and the model {model.name} "
            f"embeddings for {size:,}; expected the tokenizer that the model was trained with"
        )
    return cast("PreTrainedTokenizerBase", tokenizer)


def load_backbone(model: ModelConfig, trainable: bool, seed: int) -> "PreTrainedModel":
    """Load the backbone on the CPU, in evaluation mode.

    Weights are memory-mapped where the file allows it and held once, in `model.dtype`; weights that
    are to be trained themselves are held in fp32 whatever `model.dtype` says. An output layer that
    the checkpoint has of its own (T5 v1.1, Flan-T5) stays separate. Activation checkpointing is
    switched on without reentrance, so that gradients reach adapters although the embeddings are
    frozen.

    Args:
        model: Which backbone, and how.
        trainable: Full fine-tuning.
        seed: Seed of the weights for `model.weights=random`; unused otherwise.

    Raises:
        UserError: See `check_backbone`; also weights that do not fit the configuration.
    """
    import torch

    config = check_backbone(model)
    dtype = torch.float32 if trainable or model.dtype == "fp32" else torch.bfloat16
    if model.weights == "random":
        backbone = random_model(config, dtype, seed)
    else:
        backbone = _load_pretrained(model, config, dtype)
    if model.activation_checkpointing:
        backbone.activation_checkpointing_enable({"use_reentrant": False})
        # Only reentrant checkpointing needs embeddings that ask for gradients; without the hook
        # no gradient is computed for what lies below the first adapter.
        backbone.disable_input_require_grads()
    _forget_generation_habits(backbone)
    return backbone.eval()


def backbone_fingerprint(model: ModelConfig, seed: int = 0) -> str:
    """What identifies the backbone's weights, for records and caches.

    Returns:
        `HUB_ID@COMMIT`; for a folder `sha256:` and the hash of config and weight files (each read
        in whole; remembered in this process while size and time stay the same); for random
        weights `random:SHAPE:SEED`. `model.dtype` and `model.dropout` are not part of it.
    """
    if model.weights == "random":
        return f"random:{model.shape}:{seed}"
    source = resolve(model.backbone, model.revision)
    if source.hub_id is not None:
        return f"{source.hub_id}@{source.commit}"
    paths = sorted({p for pattern in _FINGERPRINTED for p in source.folder.glob(pattern)})
    digest = hashlib.sha256()
    for path in paths:
        stat = path.stat()
        digest.update(f"{path.name}:{_file_hash(path, stat.st_size, stat.st_mtime_ns)}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def adapter_base_name(model: ModelConfig) -> tuple[str | None, str | None]:
    """What a PEFT folder writes down as its base model: (name or path, revision).

    A Hub id with its commit; for a folder and for the embedded model the absolute path, which
    PEFT's Auto classes open on the same machine; nothing for random weights.
    """
    if model.weights == "random":
        return None, None
    source = resolve(model.backbone, model.revision)
    if source.hub_id is not None:
        return source.hub_id, source.commit
    return str(source.folder.resolve()), None


def save_model(
    model: "PreTrainedModel", folder: Path, tokenizer: "PreTrainedTokenizerBase | None"
) -> None:
    """Write a model folder that any version of transformers opens with the same logits.

    transformers 5 writes `tie_word_embeddings: true` for every T5. For a separate output layer the
    published `false` is written back, which transformers 4 needs and transformers 5 understands.
    """
    with _quiet_progress():
        model.save_pretrained(folder)
    if model.config.model_type == "t5" and has_own_output_layer(model.config):
        path = folder / "config.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        content.pop("scale_decoder_outputs", None)
        content["tie_word_embeddings"] = False
        path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _forget_generation_habits(backbone: "PreTrainedModel") -> None:
    """Keeps the special tokens of a published generation configuration and nothing else.

    Checkpoints bring lengths, beams and n-gram blocking of their own (BART: made for news), which
    would mix with ours and warn on each call.
    """
    from transformers import GenerationConfig

    published = backbone.generation_config
    names = (
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "decoder_start_token_id",
        "forced_bos_token_id",
        "forced_eos_token_id",
    )
    tokens = {name: getattr(published, name, None) for name in names}
    backbone.generation_config = GenerationConfig(**tokens)


def _random_config(model: ModelConfig) -> "PretrainedConfig":
    if model.shape is None:
        raise UserError(
            "model.shape=null: model.weights=random needs a shape; "
            f"expected one of {', '.join(SHAPE_NAMES)}"
        )
    config = shape_config(model.shape)
    if model.tokenizer is None and config.model_type != "t5":
        # The embedded tokenizer stands in, and it has T5's special tokens: padding 0, end 1.
        config.pad_token_id, config.eos_token_id, config.decoder_start_token_id = 0, 1, 0
        config.forced_eos_token_id, config.forced_bos_token_id = 1, None
        config.bos_token_id = None
    return config


def _set_dropout(config: "PretrainedConfig", rate: float) -> None:
    if config.model_type == "t5":
        config.dropout_rate = rate
        return
    for key in ("dropout", "attention_dropout", "activation_dropout"):
        setattr(config, key, rate)
    config.encoder_layerdrop = config.decoder_layerdrop = 0.0


def _load_pretrained(
    model: ModelConfig, config: "PretrainedConfig", dtype: Any
) -> "PreTrainedModel":
    from safetensors import SafetensorError
    from transformers import AutoModelForSeq2SeqLM

    source = resolve(model.backbone, model.revision)
    try:
        with _expected_tie_warning(), _quiet_progress(source.hub_id is None):
            backbone, report = AutoModelForSeq2SeqLM.from_pretrained(
                **source.arguments,
                config=copy.deepcopy(config),
                dtype=dtype,
                output_loading_info=True,
            )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise UserError(
            f"model.backbone={model.backbone}: its weights cannot be loaded "
            f"({first_line(error)}); expected complete weights that fit its config.json"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"model.backbone={model.backbone}: its weights lack {len(missing)} tensors "
            f"(first {missing[0]}); expected complete weights that fit its config.json"
        )
    if backbone.lm_head.weight is not backbone.get_input_embeddings().weight:
        keep_untied(backbone)
    return cast("PreTrainedModel", backbone)


@contextmanager
def _expected_tie_warning() -> Iterator[None]:
    """Drop the one warning that every Flan-T5 raises: its output layer is separate on purpose."""

    def keep(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("The tied weights mapping and config")

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


@contextmanager
def _quiet_progress(quiet: bool = True) -> Iterator[None]:
    """No bars for work that is over in a moment; downloads keep theirs."""
    from transformers.utils import logging as hf_logging

    shown = hf_logging.is_progress_bar_enabled()
    if quiet:
        hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if quiet and shown:
            hf_logging.enable_progress_bar()


@functools.lru_cache(maxsize=64)
def _file_hash(path: Path, size: int, mtime_ns: int) -> str:
    del size, mtime_ns  # part of the key: a changed file is read again
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
