"""`TrainingJob`: everything that changes while one adapter trains, as one serialisable object.

The Lightning module and its callbacks are thin wrappers around it; a packed training holds several.
Randomness needs no state here: data order and dropout are pure functions of (seed, step, row).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from meqsum_lightning.config.schema import CheckpointConfig, OptimConfig
from meqsum_lightning.data.batching import Cursor
from meqsum_lightning.models.adapters import (
    adapter_state,
    load_adapter_state,
    trainable_parameters,
)
from meqsum_lightning.models.optim import build_optimizer, build_schedule

State = dict[str, Any]


@dataclass
class BestTracker:
    """Remembers the best validation; NaN is never best.

    Attributes:
        mode: Whether larger (`max`) or smaller (`min`) is better.
        min_delta: Smallest change that counts.
        value: Best value so far.
        epoch: Epoch of the best value, from 0.
        metrics: All validation metrics of that epoch.
    """

    mode: str
    min_delta: float = 0.0
    value: float | None = None
    epoch: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)

    def update(self, value: float, epoch: int, metrics: Mapping[str, float]) -> bool:
        """Takes a validation into account.

        Returns:
            Whether it is the best so far.
        """
        if not math.isfinite(value):
            return False
        gain = math.inf if self.value is None else value - self.value
        if self.mode == "min" and self.value is not None:
            gain = -gain
        if not gain > self.min_delta:
            return False
        self.value, self.epoch, self.metrics = value, epoch, dict(metrics)
        return True


@dataclass
class EarlyStopper:
    """Counts validations without improvement.

    Attributes:
        patience: How many are allowed; None: any number.
        waited: How many there were in a row.
    """

    patience: int | None
    waited: int = 0

    def update(self, improved: bool) -> None:
        """Takes a validation into account."""
        self.waited = 0 if improved else self.waited + 1

    @property
    def should_stop(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.waited >= self.patience


@dataclass
class Usage:
    """What training has consumed so far, over all sessions of a resumed run.

    Attributes:
        seconds: Wall time inside training steps.
        samples: Training rows seen.
        source_tokens: Tokens of their questions, without padding.
        target_tokens: Tokens of their summaries.
    """

    seconds: float = 0.0
    samples: int = 0
    source_tokens: int = 0
    target_tokens: int = 0


class TrainingJob:
    """The state of one training.

    Args:
        model: Backbone with its adapter; what of it is trainable is this job's.
        optim: Optimizer, schedule, clipping.
        checkpoint: Which metric is best, and patience.
        total_steps: Optimizer steps of the whole training.
        cursor: Where training stands; shared with the data module.
        seed: Seed of dropout.
    """

    def __init__(
        self,
        model: nn.Module,
        optim: OptimConfig,
        checkpoint: CheckpointConfig,
        total_steps: int,
        cursor: Cursor,
        seed: int,
    ):
        self.model = model
        self.parameters = trainable_parameters(model)
        self.optim = optim
        self.monitor = checkpoint.monitor
        self.cursor = cursor
        self.seed = seed
        self.optimizer = build_optimizer(self.parameters, optim)
        self.schedule = build_schedule(self.optimizer, optim, total_steps)
        mode = "min" if checkpoint.monitor == "val/loss" else "max"
        self.best = BestTracker(mode, checkpoint.min_delta)
        self.stopper = EarlyStopper(checkpoint.patience)
        self.usage = Usage()

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step (of the first parameter group)."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step_taken(self, steps_in_epoch: int) -> None:
        """Moves schedule and cursor past an optimizer step."""
        self.schedule.step()
        self.cursor.advance(steps_in_epoch)

    def report_validation(self, metrics: Mapping[str, float], epoch: int) -> bool:
        """Takes a validation into account.

        Args:
            metrics: Flat validation metrics, with the monitored one.
            epoch: Epoch that was validated, from 0.

        Returns:
            Whether it is the best so far.
        """
        improved = self.best.update(metrics[self.monitor], epoch, metrics)
        self.stopper.update(improved)
        return improved

    def state_dict(self) -> State:
        """Plain containers and tensors, readable with `weights_only=True`."""
        return {
            "adapter": adapter_state(self.model),
            "optimizer": self.optimizer.state_dict(),
            "schedule": _plain(self.schedule.state_dict()),
            "cursor": asdict(self.cursor),
            "best": asdict(self.best),
            "stopper": asdict(self.stopper),
            "usage": asdict(self.usage),
            "seed": self.seed,
        }

    def load_state_dict(self, state: State) -> None:
        """Restores a state of the same model and adapter.

        Raises:
            UserError: Tensors are missing, unknown, or of another shape.
        """
        self.load_adapter(state)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        for name, value in state["cursor"].items():
            setattr(self.cursor, name, value)
        self.best = BestTracker(**state["best"])
        self.stopper = EarlyStopper(**state["stopper"])
        self.usage = Usage(**state["usage"])

    def load_adapter(self, state: State) -> None:
        """Restores the weights alone, for example those of the best epoch."""
        load_adapter_state(self.model, state["adapter"])


def _plain(state: Mapping[str, Any]) -> State:
    """A schedule's state without its functions, which follow from the configuration."""
    return {
        name: value
        for name, value in state.items()
        if isinstance(value, int | float | bool | str | list | type(None)) and name != "lr_lambdas"
    } | {"lr_lambdas": [None] * len(state.get("lr_lambdas", []))}
