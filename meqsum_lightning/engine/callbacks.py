"""The thin layer between Lightning's hooks and the training job: saving, stopping, interrupting."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from meqsum_lightning.engine.interrupts import InterruptGuard
from meqsum_lightning.engine.job import TrainingJob
from meqsum_lightning.runs.checkpoints import BEST, LAST, save_checkpoint

log = logging.getLogger("meqsum_lightning")


class JobCallback(Callback):
    """Saves the job, tells it of validations, and stops training when it says so.

    Args:
        job: State of training.
        folder: `checkpoints/` of the run directory.
        config_hash: Hash of the run's configuration.
        every_n_steps: Also save inside an epoch; None: never.
        guard: Tells of Ctrl-C.
        on_best: Called with the metrics of each new best validation.
        on_progress: Called after each step and each validation.
    """

    def __init__(
        self,
        job: TrainingJob,
        folder: Path,
        config_hash: str,
        every_n_steps: int | None,
        guard: InterruptGuard,
        on_best: Callable[[Mapping[str, float]], None],
        on_progress: Callable[[], None],
    ):
        self.job = job
        self.folder = folder
        self.config_hash = config_hash
        self.every_n_steps = every_n_steps
        self.guard = guard
        self.on_best = on_best
        self.on_progress = on_progress
        self._saved_at = job.cursor.global_step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts Lightning's counters where the job stands."""
        self.guard.deferring = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves every so many steps, and before an interrupt."""
        self.on_progress()
        cursor = self.job.cursor
        # At the end of an epoch validation is still due: the state is saved after it.
        if cursor.step == 0:
            return
        due = self.every_n_steps and cursor.global_step % self.every_n_steps == 0
        if due or self.guard.requested:
            self._save(trainer, LAST)
        self.guard.check()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Inside a validation there is nothing to save: an interrupt need not wait."""
        self.guard.deferring = False
        self.guard.check()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Best or not, saved, and whether to go on."""
        if trainer.state.fn != "fit":
            return
        metrics = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/")
        }
        improved = self.job.report_validation(metrics, trainer.current_epoch)
        if improved:
            self._save(trainer, BEST)
            self.on_best(metrics)
        self._save(trainer, LAST)
        self.on_progress()
        if self.job.stopper.should_stop:
            log.info("early stopping: no improvement in %d validations", self.job.stopper.waited)
            trainer.should_stop = True
        self.guard.deferring = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves an epoch that was not validated."""
        if self._saved_at != self.job.cursor.global_step:
            self._save(trainer, LAST)
        self.guard.check()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training is over: an interrupt need not wait."""
        self.guard.deferring = False

    def _save(self, trainer: Trainer, name: str) -> None:
        if trainer.is_global_zero:
            save_checkpoint(self.folder, name, self.config_hash, self.job.state_dict())
        if name == LAST:
            self._saved_at = self.job.cursor.global_step


def place_counters(trainer: Trainer, job: TrainingJob) -> None:
    """Puts the counters of Lightning's loops where the job stands, before `fit`.

    Lightning's own resume would replay the batches of a half-finished epoch; here the loader itself
    starts at the cursor, and the loops only need to know epoch and step.

    Args:
        trainer: A trainer that has not run yet.
        job: State of training.
    """
    cursor, loop = job.cursor, trainer.fit_loop
    for counts in (loop.epoch_progress.current, loop.epoch_progress.total):
        counts.ready = counts.started = counts.processed = counts.completed = cursor.epoch
    steps = loop.epoch_loop.manual_optimization.optim_step_progress.total
    steps.ready = steps.completed = cursor.global_step
    loop.epoch_loop._batches_that_stepped = cursor.global_step
