"""The model that `run=` names: a run directory, a PEFT folder, or nothing (the backbone alone)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from meqsum_lightning.config.schema import ModelConfig, SharedConfig
from meqsum_lightning.errors import UserError
from meqsum_lightning.models.adapters import load_peft_folder, peft_base, read_peft_config
from meqsum_lightning.models.backbones import backbone_fingerprint, load_backbone, load_tokenizer
from meqsum_lightning.runs.record import read_record


@dataclass(frozen=True)
class ModelSource:
    """A model ready to generate.

    Attributes:
        model: Backbone with or without adapter, in evaluation mode.
        tokenizer: Its tokenizer.
        description: What it is, for records.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    description: dict[str, Any]


@dataclass(frozen=True)
class _Place:
    kind: str
    folder: Path | None
    model: ModelConfig


def load_source(cfg: SharedConfig) -> ModelSource:
    """Loads the model of a run directory, a PEFT folder, or the backbone alone.

    Args:
        cfg: With `run`; `adapter=none` asks for the backbone of a run without its adapter.

    Raises:
        UserError: The folder is none of these, or the run left no weights.
    """
    place = find_source(cfg)
    tokenizer = load_tokenizer(place.model)
    backbone = load_backbone(place.model, trainable=False, seed=cfg.seed)
    model: nn.Module = backbone
    if place.kind == "adapter":
        assert place.folder is not None
        model = load_peft_folder(place.folder, backbone)
    model.eval()
    description = {
        "kind": place.kind,
        "folder": str(place.folder) if place.folder else None,
        "backbone": place.model.backbone,
        "base_revision": backbone_fingerprint(place.model, cfg.seed),
    }
    return ModelSource(model, tokenizer, description)


def find_source(cfg: SharedConfig) -> _Place:
    """Where the weights lie, found before anything loads.

    Raises:
        UserError: `run=` names no run directory and no PEFT folder, or an unfinished run.
    """
    run = getattr(cfg, "run", None)
    if run is None:
        return _Place("backbone", None, cfg.model)
    folder = Path(run).expanduser()
    if not folder.is_dir():
        raise UserError(f"run={run}: no such folder; expected a run directory or PEFT folder")
    if (folder / "run.json").is_file():
        return _of_run(cfg, folder)
    if (folder / "adapter_config.json").is_file():
        read_peft_config(folder)
        base = peft_base(folder)
        model = cfg.model if base is None else cfg.model.model_copy(update={"backbone": base})
        return _Place("adapter", folder, model)
    raise UserError(
        f"run={run}: neither run.json nor adapter_config.json in it; "
        "expected a run directory or PEFT folder"
    )


def _of_run(cfg: SharedConfig, folder: Path) -> _Place:
    if cfg.adapter.method == "none":
        return _Place("backbone", folder, cfg.model)
    if (folder / "adapter" / "adapter_config.json").is_file():
        return _Place("adapter", folder / "adapter", cfg.model)
    if (folder / "model" / "config.json").is_file():
        path = str((folder / "model").resolve())
        model = cfg.model.model_copy(
            update={"backbone": path, "revision": None, "weights": "pretrained", "tokenizer": None}
        )
        return _Place("model", folder / "model", model)
    status = read_record(folder, "run")["status"]
    raise UserError(
        f"run={folder}: the run is {status} and has left no adapter; expected a completed run"
    )
