"""`Seq2SeqModule`: the Lightning module around a backbone with its adapter.

It computes losses and summaries of batches; the state of training lives in `TrainingJob`, what a
run leaves behind in `runs/`.
"""

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from meqsum_lightning.config.schema import GenerationConfig
from meqsum_lightning.engine.job import TrainingJob
from meqsum_lightning.errors import RunFailed
from meqsum_lightning.metrics.rouge import RougeMetric, RougeProtocol
from meqsum_lightning.models.dropout import row_key, row_keys
from meqsum_lightning.models.losses import token_loss
from meqsum_lightning.models.optim import clip_gradients

Batch = dict[str, Any]


class Seq2SeqModule(LightningModule):
    """Trains, scores and runs a summarizer.

    Optimization is manual: one item of the data module is one optimizer step, whose micro-batches
    are summed and divided by the target tokens of the whole step.

    Args:
        model: Backbone, with or without adapter.
        tokenizer: Turns generated ids into text.
        generation: Lengths and beams.
        protocol: How ROUGE is computed.
        job: State of training; None: the module can't be trained.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        generation: GenerationConfig,
        protocol: RougeProtocol,
        job: TrainingJob | None = None,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.tokenizer = tokenizer
        self.generation = generation
        self.job = job
        self.rouge = RougeMetric(protocol)
        # Summaries of the latest validation, test or prediction, by row index.
        self.predictions: dict[int, str] = {}
        self._loss_sum = 0.0
        self._loss_tokens = 0

    def forward(self, batch: Batch) -> Tensor:
        """Logits (batch, target, vocabulary) of a batch with labels."""
        return self.model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            labels=batch["labels"],
            # Nothing is generated here: keys and values need not be kept.
            use_cache=False,
        ).logits

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The job's optimizer."""
        assert self.job is not None
        return self.job.optimizer

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One optimizer step over the micro-batches of an item.

        Raises:
            RunFailed: The loss or the gradient is not finite.
        """
        job = self.job
        assert job is not None
        started = time.monotonic()
        step, rate = job.cursor.global_step, job.learning_rate
        # A step whose rows all lack a target has nothing to learn from: zero, not NaN.
        tokens = max(1, batch["target_tokens"])
        total = torch.zeros((), device=self.device)
        for micro in batch["micro_batches"]:
            # The backbone's own dropout draws from torch's generator: keyed by seed, step and
            # first row it is the same after a resume. LoRA's dropout is keyed by row.
            rows = micro["row_indices"].tolist()
            keys = [row_key(job.seed, step, row) for row in rows]
            torch.manual_seed(keys[0] & 0x7FFF_FFFF_FFFF_FFFF)
            with row_keys(self.model, torch.tensor(keys, device=self.device)):
                loss, _ = token_loss(self(micro), micro["labels"], job.optim.label_smoothing)
                self.manual_backward(loss / tokens)
            total += loss.detach()
            job.usage.source_tokens += int(micro["attention_mask"].sum())
            job.usage.target_tokens += int((micro["labels"] >= 0).sum())
        mean = float(total) / tokens
        if not math.isfinite(mean):
            raise RunFailed(
                f"the loss is {mean} at step {step}: training has diverged; "
                "a lower optim.lr or trainer.precision=32-true may help"
            )
        norm = clip_gradients(list(job.parameters.values()), job.optim.clip_norm)
        if not math.isfinite(norm):
            raise RunFailed(
                f"the gradient norm is {norm} at step {step}: training has diverged; "
                "a lower optim.lr or trainer.precision=32-true may help"
            )
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        optimizer.step()
        optimizer.zero_grad()
        job.step_taken(self._steps_in_epoch)
        job.usage.samples += batch["rows"]
        job.usage.seconds += time.monotonic() - started
        self.log_dict(
            {"train/loss": mean, "train/lr": rate, "train/grad_norm": norm},
            prog_bar=True,
            batch_size=batch["rows"],
        )

    def on_validation_epoch_start(self) -> None:
        """Forgets the last round."""
        self._reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and greedy summaries."""
        self._score(batch, self.generation.val_num_beams)

    def on_validation_epoch_end(self) -> None:
        """Logs the mean scores."""
        self.log_dict(self._summary("val"), prog_bar=True)

    def on_test_epoch_start(self) -> None:
        """Forgets the last round."""
        self._reset()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and summaries by beam search."""
        self._score(batch, self.generation.test_num_beams)

    def on_test_epoch_end(self) -> None:
        """Logs the mean scores."""
        self.log_dict(self._summary("test"))

    def on_predict_epoch_start(self) -> None:
        """Forgets the last round."""
        self._reset()

    def predict_step(self, batch: Batch, batch_idx: int) -> list[tuple[int, str]]:
        """Summaries of a batch, with the indices of its rows."""
        texts = self.generate(batch, self.generation.test_num_beams)
        rows = batch["row_indices"].tolist()
        self.predictions.update(zip(rows, texts, strict=True))
        return list(zip(rows, texts, strict=True))

    def generate(self, batch: Batch, num_beams: int) -> list[str]:
        """Decodes the summaries of a batch.

        Args:
            batch: `input_ids` and `attention_mask` (batch, source).
            num_beams: 1 is greedy.

        Returns:
            One text per row.
        """
        ids = self.model.generate(  # type: ignore[operator]
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            **generation_arguments(self.generation, num_beams),
        )
        return [text.strip() for text in decode(self.tokenizer, ids)]

    @property
    def _steps_in_epoch(self) -> int:
        assert self.job is not None
        datamodule = self.trainer.datamodule
        return datamodule.steps_in_epoch(self.job.cursor.epoch)

    def _score(self, batch: Batch, num_beams: int) -> None:
        loss, tokens = token_loss(self(batch), batch["labels"])
        self._loss_sum += float(loss)
        self._loss_tokens += int(tokens)
        texts = self.generate(batch, num_beams)
        rows = batch["row_indices"].tolist()
        self.predictions.update(zip(rows, texts, strict=True))
        self.rouge.update(rows, texts, batch["references"])

    def _summary(self, prefix: str) -> dict[str, float]:
        scores = {f"{prefix}/{name}": float(value) for name, value in self.rouge.compute().items()}
        device = self.device if self.device.type == "cuda" else "cpu"
        sums = [self._loss_sum, float(self._loss_tokens)]
        totals = torch.tensor(sums, dtype=torch.float64, device=device)
        total, tokens = self.trainer.strategy.reduce(totals, reduce_op="sum").tolist()
        return {f"{prefix}/loss": total / max(1.0, tokens), **scores}

    def _reset(self) -> None:
        self.rouge.reset()
        self.predictions = {}
        self._loss_sum, self._loss_tokens = 0.0, 0


def generation_arguments(generation: GenerationConfig, num_beams: int) -> dict[str, Any]:
    """Arguments of `generate`; the length is always explicit, and only one kind of it is given.

    Args:
        generation: Lengths and penalties.
        num_beams: 1 is greedy.
    """
    arguments: dict[str, Any] = {
        "max_new_tokens": generation.max_new_tokens,
        "num_beams": num_beams,
        "do_sample": False,
        "no_repeat_ngram_size": generation.no_repeat_ngram_size,
    }
    if num_beams > 1:
        arguments |= {"length_penalty": generation.length_penalty, "early_stopping": False}
    return arguments


def decode(tokenizer: PreTrainedTokenizerBase, ids: Tensor | Sequence[Sequence[int]]) -> list[str]:
    """Texts of generated ids (batch, length), special tokens left out."""
    return tokenizer.batch_decode(ids, skip_special_tokens=True)
