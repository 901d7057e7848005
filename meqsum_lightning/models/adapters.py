"""Adapters: putting them on a backbone, their state for checkpoints, and PEFT folders.

Which layers are chosen is `targets`; loading the backbone is `backbones`.
"""

import contextlib
import copy
import json
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import LoraVariant
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from meqsum_lightning.config.adapter import alpha_value
from meqsum_lightning.config.schema import AdapterConfig
from meqsum_lightning.errors import UserError
from meqsum_lightning.models.backbones import save_model
from meqsum_lightning.models.targets import TargetModule, peft_targets, select_modules

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_ADAPTER = "default"
_CONFIG_FILE = "adapter_config.json"
_WEIGHTS_FILE = "adapter_model.safetensors"
# Layers up to this width get an exact singular value decomposition for PiSSA.
_EXACT_SVD_WIDTH = 512
_SVD_ITERATIONS = 16
_SVD_OVERSAMPLING = 16
# PEFT 0.21 reads this property, and transformers 5.24 complains about the reading.
_DEPRECATED = "`is_gradient_checkpointing` is deprecated"


def apply_adapter(
    backbone: "PreTrainedModel",
    adapter: AdapterConfig,
    seed: int,
    base_name: str | None = None,
    base_revision: str | None = None,
) -> nn.Module:
    """Put an adapter on a backbone (in place) and decide what is trained.

    Low-rank methods freeze the backbone and add fp32 weights whatever its type. The update is
    scaled by alpha / r; by alpha / sqrt(r) for rsLoRA. `full` trains every weight of the backbone,
    `none` trains nothing. Initialisation depends on `seed` alone and leaves the global random
    state as it was.

    PiSSA keeps the backbone as it is: instead of taking the principal part out of the frozen
    weights, the layer adds s (B A - B0 A0) x, where B0 A0 is that part. In exact arithmetic this is
    the method of the paper; here it starts exactly at the backbone in every type, and the backbone
    stays available (for scoring it alone, and for sharing it).

    Args:
        backbone: Loaded by `load_backbone`; with `trainable=True` for `full`.
        adapter: Method, rank, scale and targets.
        seed: Seed of the initial adapter weights.
        base_name: What the PEFT folder writes down as its base (see `adapter_base_name`).
        base_revision: Its revision.

    Returns:
        A `PeftModel` in training mode; the backbone itself for `full` (training mode) and `none`
        (evaluation mode).

    Raises:
        UserError: The targets select nothing or do not exist; a PiSSA rank beyond the matrices'.
    """
    if adapter.method in ("full", "none"):
        trains = adapter.method == "full"
        backbone.requires_grad_(trains)
        return backbone.train(trains)
    modules = select_modules(backbone.config, adapter)
    config = peft_config(backbone.config, adapter, modules)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with _quiet_peft():
            model = get_peft_model(backbone, config)
        if adapter.method == "pissa":
            for _, layer in _lora_layers(model):
                _start_from_principal_part(layer)
    if adapter.method == "dora":
        _refresh_magnitudes(model)
    # PEFT asks the embeddings for gradients under checkpointing; ours is not reentrant.
    backbone.disable_input_require_grads()
    config.base_model_name_or_path = base_name
    config.revision = base_revision
    _check_adapted(model, {m.name for m in modules})
    return model.train()


def peft_config(
    backbone: "PretrainedConfig", adapter: AdapterConfig, modules: Sequence[TargetModule]
) -> LoraConfig:
    """What PEFT is told about a low-rank adapter; the base is not named yet.

    Args:
        backbone: Configuration of the model to be adapted.
        adapter: A low-rank method.
        modules: What `select_modules` chose.

    Raises:
        UserError: No rank, or a PiSSA rank beyond the matrices'.
    """
    if adapter.r is None:
        raise UserError(
            f"adapter.r=null: adapter={adapter.method} needs a rank; expected 1 or more"
        )
    check_rank(modules, adapter)
    alpha = alpha_value(adapter.alpha, adapter.r)
    return LoraConfig(
        task_type=TaskType.SEQ_2_SEQ_LM,
        r=adapter.r,
        lora_alpha=cast(int, _tidy(alpha)),  # PEFT divides: a float is as good
        lora_dropout=adapter.dropout or 0.0,
        target_modules=peft_targets(backbone, modules),
        use_dora=adapter.method == "dora",
        use_rslora=adapter.method == "rslora",
    )


def check_rank(modules: Iterable[TargetModule], adapter: AdapterConfig) -> None:
    """Refuses a PiSSA rank beyond the number of singular vectors.

    Args:
        modules: What `select_modules` chose.
        adapter: Method and rank.

    Raises:
        UserError: With the largest rank.
    """
    smallest = min(min(m.in_features, m.out_features) for m in modules)
    if adapter.method == "pissa" and adapter.r is not None and adapter.r > smallest:
        raise UserError(
            f"adapter.r={adapter.r}: PiSSA starts from singular vectors, and the smallest chosen "
            f"layer has {smallest}; expected at most {smallest}"
        )


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that are trained, by name, each once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies on the CPU of all that training changes, for a checkpoint.

    For PiSSA also the principal part that the update is measured from, so that a checkpoint does
    not depend on a decomposition being repeated to the bit.
    """
    tensors = {**trainable_parameters(model), **_pissa_buffers(model)}
    return {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}


def load_adapter_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put back what `adapter_state` took; all of it or an error.

    Raises:
        UserError: Tensors are missing, unexpected or of another shape; nothing is changed then.
    """
    copy_state(state, {**trainable_parameters(model), **_pissa_buffers(model)})


def copy_state(state: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy a checkpoint's tensors into those of the same names; all of them or an error.

    Args:
        state: From `adapter_state`.
        tensors: What the model holds; changed in place.

    Raises:
        UserError: Tensors are missing, unexpected or of another shape; nothing is changed then.
    """
    lines = []
    for what, names in (
        ("lacks", tensors.keys() - state.keys()),
        ("also holds", state.keys() - tensors.keys()),
    ):
        if names:
            lines.append(
                f"checkpoint: {what} {len(names)} tensors (first {min(names)}); "
                "expected the state of this model and adapter"
            )
    for name in tensors.keys() & state.keys():
        if tensors[name].shape != state[name].shape:
            lines.append(
                f"checkpoint: {name} has shape {tuple(state[name].shape)}; "
                f"expected {tuple(tensors[name].shape)}"
            )
    if lines:
        raise UserError(sorted(lines)[:5])
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(state[name])


def save_adapter(
    model: nn.Module, folder: Path, tokenizer: "PreTrainedTokenizerBase | None" = None
) -> None:
    """Write a plain PEFT folder, or a model folder after full fine-tuning.

    `PeftModel.from_pretrained(backbone, folder)` opens the first on an untouched backbone. PiSSA is
    written as LoRA of twice the rank at the same scale: s (B A - B0 A0) = s [B, -B0] [A; A0] (the
    conversion that PEFT documents for it). Nothing is read from the Hub.

    Args:
        model: From `apply_adapter`.
        folder: Created if needed.
        tokenizer: Saved beside the weights where given.

    Raises:
        ValueError: Nothing was trained (`none`), so that there is nothing to write.
    """
    if not isinstance(model, PeftModel):
        if not trainable_parameters(model):
            raise ValueError("adapter=none leaves nothing to save")
        save_model(cast("PreTrainedModel", model), folder, tokenizer)
        return
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    config = copy.deepcopy(cast(LoraConfig, model.peft_config[_ADAPTER]))
    initial = _pissa_buffers(model)
    if initial:
        state = _as_plain_lora(state, initial)
        config.r, config.lora_alpha = 2 * config.r, 2 * config.lora_alpha
    write_peft_folder(folder, config, state, tokenizer)


def write_peft_folder(
    folder: Path,
    config: LoraConfig,
    state: Mapping[str, Tensor],
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> None:
    """Write configuration and weights as PEFT reads them.

    Args:
        folder: Created if needed.
        config: As it was trained; not changed.
        state: Weights by the names of PEFT's state dict, which leave the adapter's name out.
        tokenizer: Saved beside the weights where given.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(config)
    config.inference_mode = True
    if isinstance(config.target_modules, set):
        config.target_modules = sorted(config.target_modules)
    tensors = {name: t.detach().cpu().contiguous() for name, t in state.items()}
    save_file(tensors, folder / _WEIGHTS_FILE, metadata={"format": "pt"})
    config.save_pretrained(str(folder))
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def read_peft_config(folder: Path) -> PeftConfig:
    """The configuration of any PEFT folder (rank, targets, base model), without its weights.

    Raises:
        UserError: The folder is not a PEFT folder.
    """
    expected = f"expected a folder with {_CONFIG_FILE} and {_WEIGHTS_FILE}"
    if not folder.is_dir():
        raise UserError(f"run={folder}: no such folder; {expected}")
    if not (folder / _CONFIG_FILE).is_file():
        raise UserError(f"run={folder}: no {_CONFIG_FILE}; {expected}")
    if not any((folder / name).is_file() for name in (_WEIGHTS_FILE, "adapter_model.bin")):
        raise UserError(f"run={folder}: no adapter weights; {expected}")
    try:
        return PeftConfig.from_pretrained(str(folder))
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(
            f"run={folder}: {_CONFIG_FILE} cannot be read ({_short(error)}); {expected}"
        ) from error


def peft_base(folder: Path) -> str | None:
    """The base model that a PEFT folder names: `embedded`, a path, a Hub id, or None.

    The embedded model is known again by the end of its path, so that a folder from another
    installation finds this one's.
    """
    content = json.loads((folder / _CONFIG_FILE).read_text(encoding="utf-8"))
    name = content.get("base_model_name_or_path")
    if isinstance(name, str) and Path(name).parts[-3:] == ("meqsum_lightning", "assets", "tiny_t5"):
        return "embedded"
    return name if isinstance(name, str) else None


def load_peft_folder(folder: Path, backbone: "PreTrainedModel") -> PeftModel:
    """Open any PEFT folder on a backbone, for evaluation and prediction.

    Returns:
        The model in evaluation mode, nothing trainable.

    Raises:
        UserError: No PEFT folder; corrupt weights; weights that do not fit the backbone.
    """
    from safetensors import SafetensorError

    read_peft_config(folder)
    misfit = f"run={folder}: the adapter does not fit the backbone"
    expected = "expected the backbone that the adapter was trained on (model=…)"
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.filterwarnings("ignore", message=_DEPRECATED)
            model = PeftModel.from_pretrained(backbone, str(folder), is_trainable=False)
    except SafetensorError as error:
        raise UserError(
            f"run={folder}: {_WEIGHTS_FILE} is corrupt ({_short(error)}); expected a complete file"
        ) from error
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"{misfit} ({_short(error)}); {expected}") from error
    for warning in caught:
        text = str(warning.message)
        if "missing adapter keys" in text:
            raise UserError(f"{misfit} ({' '.join(text.split())[:160]}); {expected}")
        logging.getLogger(__name__).warning(text)
    return model.eval()


@contextlib.contextmanager
def adapter_disabled(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes what the backbone alone computes.

    Training or evaluation mode is left as it is: call `model.eval()` to be rid of dropout.

    Raises:
        ValueError: The backbone itself was trained (`full`): it cannot be brought back.
    """
    if isinstance(model, PeftModel):
        flags = {name: p.requires_grad for name, p in model.named_parameters()}
        with model.disable_adapter():
            yield
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags[name])
    elif trainable_parameters(model):
        raise ValueError("after full fine-tuning there is no backbone alone; load it afresh")
    else:
        yield


class _PissaVariant(LoraVariant):
    """LoRA measured from a frozen starting point: adds s (B A - B0 A0) x to the layer's output."""

    def supports_lora_conversion(self) -> bool:
        return False

    @staticmethod
    def init(module: LoraLayer, adapter_name: str, **kwargs: Any) -> None:
        """Nothing here: `_start_from_principal_part` sets the weights."""

    @staticmethod
    def forward(
        module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any
    ) -> Tensor:
        dropped = module.lora_dropout[active_adapter](x)
        update = module.lora_B[active_adapter](module.lora_A[active_adapter](dropped))
        start = F.linear(F.linear(x, module.pissa_A), module.pissa_B)
        return result + (update - start) * module.scaling[active_adapter]

    @staticmethod
    def merge_safe(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        return orig_weight + _pissa_delta(module, active_adapter).to(orig_weight.dtype)

    @staticmethod
    def merge_unsafe(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> None:
        orig_weight.data += _pissa_delta(module, active_adapter).to(orig_weight.dtype)

    @staticmethod
    def unmerge(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        return orig_weight - _pissa_delta(module, active_adapter).to(orig_weight.dtype)


def _start_from_principal_part(layer: LoraLayer) -> None:
    """A = sqrt(S / s) V^T and B = U sqrt(S / s) of the r largest singular values of W.

    Meng et al. 2024 (arXiv:2404.02948), equations 2 and 3, with the scale s divided out as PEFT
    does. Wide layers use the paper's fast decomposition (randomised, 16 iterations).
    """
    rank, scale = layer.r[_ADAPTER], layer.scaling[_ADAPTER]
    weight = cast(Tensor, layer.get_base_layer().weight).detach().float()  # (out, in)
    width = min(weight.shape)
    if width <= _EXACT_SVD_WIDTH or 4 * rank >= width:
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
    else:
        left, values, right_columns = torch.svd_lowrank(
            weight, q=min(rank + _SVD_OVERSAMPLING, width), niter=_SVD_ITERATIONS
        )
        right = right_columns.T
    root = torch.sqrt(values[:rank] / scale)
    a = root[:, None] * right[:rank]  # (r, in)
    b = left[:, :rank] * root  # (out, r)
    with torch.no_grad():
        layer.lora_A[_ADAPTER].weight.copy_(a)
        layer.lora_B[_ADAPTER].weight.copy_(b)
    layer.register_buffer("pissa_A", a.contiguous(), persistent=False)
    layer.register_buffer("pissa_B", b.contiguous(), persistent=False)
    layer.lora_variant[_ADAPTER] = _PissaVariant()


def _pissa_delta(layer: LoraLayer, adapter_name: str) -> Tensor:
    update = layer.lora_B[adapter_name].weight @ layer.lora_A[adapter_name].weight
    return cast(Tensor, (update - layer.pissa_B @ layer.pissa_A) * layer.scaling[adapter_name])


def _pissa_buffers(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: buffer
        for name, buffer in model.named_buffers()
        if name.endswith((".pissa_A", ".pissa_B"))
    }


def _as_plain_lora(state: Mapping[str, Tensor], initial: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """[A; A0] and [B, -B0], by the names of PEFT's state dict."""
    joined = {}
    for name, tensor in state.items():
        layer, _, kind = name.removesuffix(".weight").rpartition(".")
        if kind == "lora_A":
            joined[name] = torch.cat([tensor, initial[f"{layer}.pissa_A"]], dim=0)
        else:
            joined[name] = torch.cat([tensor, -initial[f"{layer}.pissa_B"]], dim=1)
    return joined


def _refresh_magnitudes(model: nn.Module) -> None:
    """Recompute DoRA's magnitudes in fp32.

    PEFT computes them in the backbone's type, and rounded to bf16 they would change the model's
    output by up to 0.4 % before the first step.
    """
    for _, layer in _lora_layers(model):
        magnitude = cast(nn.Parameter, layer.lora_magnitude_vector[_ADAPTER].weight)
        weight = cast(Tensor, layer.get_base_layer().weight).detach().float()
        with torch.no_grad():  # B starts at zero, so that the norm is the backbone's
            magnitude.copy_(torch.linalg.norm(weight, dim=1))


@contextlib.contextmanager
def _quiet_peft() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_DEPRECATED)
        yield


def _lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def _check_adapted(model: PeftModel, expected: set[str]) -> None:
    adapted = {name.removeprefix("base_model.model.") for name, _ in _lora_layers(model)}
    if adapted != expected:
        difference = sorted(adapted ^ expected)
        raise RuntimeError(f"PEFT adapted other layers than chosen, first {difference[0]}")


def _tidy(number: float) -> float | int:
    return int(number) if float(number).is_integer() else number


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
