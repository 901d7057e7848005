"""What a person sees while the trainer works: bars on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

# A stage that takes longer than this says something in between.
SECONDS_BETWEEN_LINES = 10.0
BAR_METRICS = {"train/loss": "loss", "val/rouge1": "val R1", "val/rougeL": "val RL"}


def progress_callback(kind: str, label: str) -> Callback:
    """The progress display for `trainer.progress`.

    Args:
        kind: `auto`, `bar`, `plain` or `none`.
        label: What a scoring stage is called.
    """
    if kind == "bar" or (kind == "auto" and sys.stderr.isatty()):
        return BarProgress(label)
    return PlainProgress(label, quiet=kind == "none")


class BarProgress(RichProgressBar):
    """Lightning's rich bars with our names of stages.

    Args:
        label: What a scoring stage is called.
    """

    def __init__(self, label: str):
        super().__init__(leave=False, console_kwargs={"stderr": True})
        self.label = label

    @property
    def validation_description(self) -> str:
        """Name of the validation bar."""
        return "validation"

    @property
    def test_description(self) -> str:
        """Name of the scoring bar."""
        return self.label

    @property
    def predict_description(self) -> str:
        """Name of the prediction bar."""
        return self.label

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What fits beside a bar: the loss, and the validation scores that people watch."""
        found = trainer.callback_metrics
        return {label: float(found[name]) for name, label in BAR_METRICS.items() if name in found}

    def _get_train_description(self, current_epoch: int) -> str:
        """Epochs counted from 1, as everywhere on the terminal."""
        return f"epoch {current_epoch + 1}/{self.trainer.max_epochs}"


class PlainProgress(Callback):
    """One line per epoch, and one every ten seconds inside a long stage, on standard error.

    Args:
        label: What a scoring stage is called.
        quiet: Print nothing.
    """

    def __init__(self, label: str, quiet: bool = False):
        self.label = label
        self.quiet = quiet
        self._started = self._said = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock of an epoch."""
        self._started = self._said = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Says where a long epoch stands."""
        total = trainer.num_training_batches
        self._now_and_then(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  step {batch_idx + 1}/{total}"
            + _values(trainer, ("train/loss",))
        )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One line per epoch."""
        seconds = time.monotonic() - self._started
        self._say(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            + _values(trainer, ("train/loss", "val/loss", "val/rouge1", "val/rougeL"))
            + f"  {seconds:.1f} s"
        )

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Says where a long validation stands."""
        self._stage(
            trainer, "validation", kwargs.get("batch_idx", args[2]), trainer.num_val_batches
        )

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock of a scoring stage."""
        self._started = self._said = time.monotonic()

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Says where a long scoring stage stands."""
        self._stage(trainer, self.label, kwargs.get("batch_idx", args[2]), trainer.num_test_batches)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says that a scoring stage is done."""
        self._say(f"{self.label}: done in {time.monotonic() - self._started:.1f} s")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock of a prediction."""
        self._started = self._said = time.monotonic()

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Says where a long prediction stands."""
        batches = trainer.num_predict_batches
        self._stage(trainer, self.label, kwargs.get("batch_idx", args[2]), batches)

    def _stage(self, trainer: Trainer, name: str, batch_idx: int, batches: Any) -> None:
        total = sum(batches) if isinstance(batches, list) else batches
        self._now_and_then(f"{name}: batch {batch_idx + 1}/{total}")

    def _now_and_then(self, line: str) -> None:
        if time.monotonic() - self._said > SECONDS_BETWEEN_LINES:
            self._say(line)

    def _say(self, line: str) -> None:
        self._said = time.monotonic()
        if not self.quiet:
            print(line, file=sys.stderr, flush=True)


def _values(trainer: Trainer, names: tuple[str, ...]) -> str:
    found = trainer.callback_metrics
    return "".join(f"  {name} {float(found[name]):.4f}" for name in names if name in found)
