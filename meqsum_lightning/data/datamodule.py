"""`MeQSumDataModule`: rows, split and tokens as batches for the Lightning trainer.

Which rows share a batch is decided in `batching.py`; this module turns the plan into tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from meqsum_lightning.config.schema import DataConfig, TrainerConfig
from meqsum_lightning.data.batching import (
    IGNORED_LABEL,
    Cursor,
    Step,
    pad_width,
    plan_epoch,
    plan_evaluation,
)
from meqsum_lightning.data.rows import Row, RowSet
from meqsum_lightning.data.splits import Split
from meqsum_lightning.data.tokens import TokenizedRows, tokenize_rows

SPLITS = ("train", "val", "test")
Batch = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """The rows of one split in a fixed order, and their tokens."""

    rows: tuple[Row, ...]
    tokens: TokenizedRows

    @property
    def source_lengths(self) -> list[int]:
        """Tokens of each question."""
        return [len(ids) for ids in self.tokens.source]

    @property
    def target_lengths(self) -> list[int]:
        """Tokens of each summary."""
        return [len(ids) for ids in self.tokens.target]


class MeQSumDataModule(LightningDataModule):
    """Serves the splits of a set of questions as padded batches.

    A training item is a whole optimizer step:
    `{"micro_batches": [batch, ...], "target_tokens": int, "rows": int}`. A batch holds `input_ids`
    and `attention_mask` (batch, source), `labels` (batch, target; padded with -100), `row_indices`
    (batch) and, outside training, `references`.

    Args:
        rows: All usable rows.
        split: Ids of the rows by split.
        tokenizer: Tokenizer of the backbone.
        data: Lengths, batch sizes, workers.
        seed: Seed of the data order.
        trainer_config: Epochs, steps and limits of a training; None: only evaluation.
        cache_dir: Where tokens are cached; null: the user's cache.
    """

    def __init__(
        self,
        rows: RowSet,
        split: Split,
        tokenizer: PreTrainedTokenizerBase,
        data: DataConfig,
        seed: int = 0,
        trainer_config: TrainerConfig | None = None,
        cache_dir: Path | None = None,
    ):
        super().__init__()
        self.row_set = rows
        self.split = split
        self.tokenizer = tokenizer
        self.data = data
        self.seed = seed
        self.limits = trainer_config
        self.cache_dir = cache_dir
        # Shared with the training job, which moves it; the loader of an epoch starts there.
        self.cursor = Cursor()
        self._parts: dict[str, Part] = {}

    def part(self, name: str) -> Part:
        """Rows and tokens of a split, tokenized when first asked for.

        Args:
            name: `train`, `val` or `test`.
        """
        if name not in self._parts:
            by_id = {row.id: row for row in self.row_set.rows}
            overfit = self.limits.overfit_rows if self.limits else None
            ids = getattr(self.split, "train" if overfit and name == "val" else name)
            rows = tuple(by_id[row] for row in ids)
            if overfit and name in ("train", "val"):
                rows = rows[:overfit]
            cache = self.cache_dir if self.data.cache else None
            self._parts[name] = Part(rows, tokenize_rows(rows, self.tokenizer, self.data, cache))
        return self._parts[name]

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of a whole epoch."""
        steps = -(-len(self.part("train").rows) // self.data.global_batch_size)
        limit = self.limits.limit_train_batches if self.limits else None
        return min(steps, limit) if limit else steps

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training."""
        assert self.limits is not None
        steps = self.steps_per_epoch * self.limits.max_epochs
        return min(steps, self.limits.max_steps) if self.limits.max_steps else steps

    def steps_in_epoch(self, epoch: int) -> int:
        """Optimizer steps of one epoch; `max_steps` may cut the last one short."""
        return min(self.steps_per_epoch, self.total_steps - epoch * self.steps_per_epoch)

    def setup(self, stage: str | None = None) -> None:
        """Tokenizes what a stage needs (Lightning's hook)."""
        for name in {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}.get(
            stage or "", ()
        ):
            self.part(name)

    def train_dataloader(self) -> DataLoader:
        """Steps of the epoch in which the cursor stands, from the cursor on."""
        part = self.part("train")
        steps = plan_epoch(
            part.source_lengths,
            part.target_lengths,
            seed=self.seed,
            epoch=self.cursor.epoch,
            global_batch_size=self.data.global_batch_size,
            micro_batch_size=self.data.micro_batch_size,
            rank=self._rank,
            world_size=self._world_size,
        )
        steps = steps[: self.steps_in_epoch(self.cursor.epoch)]
        return self._loader(_StepDataset(part, steps[self.cursor.step :], self._pad_token))

    def val_dataloader(self) -> DataLoader:
        """Validation rows, each once."""
        return self.eval_dataloader("val")

    def test_dataloader(self) -> DataLoader:
        """Test rows, each once."""
        return self.eval_dataloader("test")

    def eval_dataloader(self, name: str) -> DataLoader:
        """Rows of any split, each once over all processes, longest first.

        Args:
            name: `train`, `val` or `test`.
        """
        part = self.part(name)
        batches = plan_evaluation(
            part.source_lengths, self.data.eval_batch_size, self._rank, self._world_size
        )
        limit = getattr(self.limits, f"limit_{name}_batches", None) if self.limits else None
        return self._loader(_EvaluationDataset(part, batches[:limit], self._pad_token))

    @property
    def _pad_token(self) -> int:
        return int(self.tokenizer.pad_token_id)

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    def _loader(self, dataset: Dataset) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=None,
            num_workers=self.data.workers,
            pin_memory=torch.cuda.is_available(),
        )


def collate(part: Part, positions: Sequence[int], pad_token: int) -> Batch:
    """Pads rows into tensors.

    Args:
        part: Rows and tokens.
        positions: Which rows.
        pad_token: Id of the padding token.

    Returns:
        `input_ids`, `attention_mask` (batch, source), `labels` (batch, target) padded with -100,
        `row_indices` (batch): positions in the part.
    """
    sources = [part.tokens.source[row] for row in positions]
    targets = [part.tokens.target[row] for row in positions]
    source_width = pad_width([len(ids) for ids in sources])
    target_width = pad_width([max(1, len(ids)) for ids in targets])
    input_ids = torch.full((len(positions), source_width), pad_token)
    mask = torch.zeros((len(positions), source_width), dtype=torch.long)
    labels = torch.full((len(positions), target_width), IGNORED_LABEL)
    for at, (source, target) in enumerate(zip(sources, targets, strict=True)):
        input_ids[at, : len(source)] = torch.tensor(source)
        mask[at, : len(source)] = 1
        labels[at, : len(target)] = torch.tensor(target, dtype=torch.long)
    return {
        "input_ids": input_ids,
        "attention_mask": mask,
        "labels": labels,
        "row_indices": torch.tensor(positions),
    }


class _StepDataset(Dataset):
    def __init__(self, part: Part, steps: list[Step], pad_token: int):
        self.part, self.steps, self.pad_token = part, steps, pad_token

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> Batch:
        step = self.steps[index]
        return {
            "micro_batches": [
                collate(self.part, rows, self.pad_token) for rows in step.micro_batches
            ],
            "target_tokens": step.target_tokens,
            "rows": step.rows,
        }


class _EvaluationDataset(Dataset):
    def __init__(self, part: Part, batches: list[tuple[int, ...]], pad_token: int):
        self.part, self.batches, self.pad_token = part, batches, pad_token

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        rows = self.batches[index]
        batch = collate(self.part, rows, self.pad_token)
        return batch | {"references": [self.part.rows[row].summary or "" for row in rows]}
