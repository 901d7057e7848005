"""`Session`: what a process keeps from one training to the next, and whom it tells of progress."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from meqsum_lightning.config.schema import TrainConfig
from meqsum_lightning.models.backbones import load_backbone

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

log = logging.getLogger("meqsum_lightning")

Listener = Callable[[dict[str, Any]], None]


class Session:
    """Trainings of one process, one after another.

    A frozen backbone is loaded once and lent to each training in turn: an adapter is taken off
    again as it was put on, and the weights below were never written. Weights that are trained
    themselves (`adapter=full`) are never kept, and after a failure nothing is.

    Args:
        listener: Called with facts about the current training, often: `stage` outside the steps,
            else `step`, `steps`, `epoch` and `value` of the monitored metric; None: nobody
            listens.
    """

    def __init__(self, listener: Listener | None = None):
        self._listener = listener
        self._key: str | None = None
        self._kept: PreTrainedModel | None = None
        self._lent: PreTrainedModel | None = None

    def tell(self, **facts: Any) -> None:
        """Tells the listener."""
        if self._listener is not None:
            self._listener(facts)

    def borrow_backbone(self, cfg: TrainConfig) -> "PreTrainedModel":
        """The backbone of a configuration, in evaluation mode, from memory where it is there.

        Raises:
            UserError: See `load_backbone`.
        """
        trainable = cfg.adapter.method == "full"
        key = None if trainable else _key(cfg)
        if key is not None and key == self._key and self._kept is not None:
            backbone = self._kept
        else:
            # Two backbones in memory at once may be one too many.
            self.forget()
            backbone = load_backbone(cfg.model, trainable=trainable, seed=cfg.seed)
        self._key, self._kept, self._lent = key, None, backbone
        return backbone

    def give_back(self, model: "nn.Module") -> None:
        """Takes a training's adapter off the backbone, which is kept for the next one.

        Args:
            model: From `apply_adapter` on the borrowed backbone; its training has ended well.
        """
        backbone, self._lent = self._lent, None
        if self._key is None or backbone is None:
            return
        if model is not backbone:
            model.unload()  # type: ignore[operator]
        backbone.requires_grad_(False)
        self._kept = backbone.eval()

    def forget(self) -> None:
        """Lets go of all memory, on the device too."""
        import gc

        import torch

        self._key = self._kept = self._lent = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _key(cfg: TrainConfig) -> str:
    """Configurations of one key have the same frozen weights in memory."""
    seed = cfg.seed if cfg.model.weights == "random" else 0
    return f"{cfg.model.model_dump_json()} {seed}"
