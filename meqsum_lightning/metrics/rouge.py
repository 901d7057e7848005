"""ROUGE over Google's rouge_score: the protocol, one pair's scores, and a metric by row.

Intervals over rows are in `intervals.py`; nothing here decodes tokens or writes files.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from rouge_score.rouge_scorer import RougeScorer
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from meqsum_lightning.metrics.sentences import SPLITTER_VERSION, split_sentences

ROUGE_KEYS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


@dataclass(frozen=True)
class RougeProtocol:
    """What has to agree before two ROUGE scores may be compared.

    Attributes:
        stemmer: Whether words of more than three letters go through the Porter stemmer.
    """

    stemmer: bool

    def describe(self) -> dict[str, Any]:
        """The protocol in words, as it stands in `run.json`."""
        return {
            "library": "rouge_score",
            "version": importlib.metadata.version("rouge_score"),
            "measure": "f1",
            "stemmer": self.stemmer,
            "sentence_splitter": SPLITTER_VERSION,
        }

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change whenever `describe()` does."""
        text = json.dumps(self.describe(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def score_pair(prediction: str, reference: str, protocol: RougeProtocol) -> dict[str, float]:
    """ROUGE F1 of one prediction against one reference.

    Tokens are runs of the ASCII letters and digits, in lower case. A side without any token (empty,
    or written in another script) scores 0 on everything, also when both sides are so: there is
    nothing that could agree. A side of a single token has no bigram, hence ROUGE-2 is 0 even
    against itself. ROUGE-Lsum compares the sentences that `split_sentences` finds.

    Args:
        prediction: The model's summary.
        reference: The summary to compare with.
        protocol: How to score.

    Returns:
        F1 in [0, 1] for each of `ROUGE_KEYS`.
    """
    # rouge_score takes line breaks as sentence ends for Lsum; for the others they are blanks.
    scores = _scorer(protocol.stemmer).score(
        target="\n".join(split_sentences(reference)),
        prediction="\n".join(split_sentences(prediction)),
    )
    return {key: float(scores[key].fmeasure) for key in ROUGE_KEYS}


class RougeMetric(Metric):
    """Mean ROUGE F1 over rows, and each row's own scores.

    Every row counts once, however often it was seen: samplers of several processes repeat rows to
    give each process the same number. The first score of a row is kept.

    As input to `update` the metric takes

    - `row_indices` (sequence of int): which row of the split each pair is.
    - `predictions` (sequence of str) and `references` (sequence of str).

    As output of `compute` it returns a dictionary with the keys of `ROUGE_KEYS`: scalar tensors,
    means over rows, in [0, 1]. `compute` and `per_row` gather over processes, so all processes have
    to call them; a process without rows may.

    Args:
        protocol: How to score.
        **kwargs: Arguments of `torchmetrics.Metric`.

    Example:
        >>> metric = RougeMetric(RougeProtocol(stemmer=True))
        >>> metric.update(
        ...     [7],
        ...     ["what are treatments for headaches"],
        ...     ["what is the treatment for headache"],
        ... )
        >>> {key: round(value.item(), 6) for key, value in metric.compute().items()}
        {'rouge1': 0.727273, 'rouge2': 0.444444, 'rougeL': 0.727273, 'rougeLsum': 0.727273}
        >>> round(metric.per_row()[7]["rouge2"], 6)
        0.444444
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    row_index: list[Tensor]  # each (rows of one update,), int64
    scores: list[Tensor]  # each (rows of one update, len(ROUGE_KEYS))

    def __init__(self, protocol: RougeProtocol, **kwargs: Any):
        super().__init__(**kwargs)
        self.protocol = protocol
        self.add_state("row_index", default=[], dist_reduce_fx="cat")
        self.add_state("scores", default=[], dist_reduce_fx="cat")

    def update(
        self, row_indices: Sequence[int], predictions: Sequence[str], references: Sequence[str]
    ) -> None:
        """Scores a batch.

        Args:
            row_indices: Row numbers within the split, one per pair.
            predictions: Summaries of the model.
            references: Summaries to compare with.

        Raises:
            ValueError: The three have different lengths.
        """
        counts = len(row_indices), len(predictions), len(references)
        if len(set(counts)) > 1:
            raise ValueError(
                "row_indices, predictions and references must have equal lengths, got "
                f"{counts[0]}, {counts[1]} and {counts[2]}"
            )
        rows = [
            [score_pair(prediction, reference, self.protocol)[key] for key in ROUGE_KEYS]
            for prediction, reference in zip(predictions, references, strict=True)
        ]
        self._append([int(index) for index in row_indices], rows)

    def compute(self) -> dict[str, Tensor]:
        """Mean F1 over all rows of all processes.

        Raises:
            ValueError: No row was scored, by any process.
        """
        _, scores = self._unique_rows()
        if len(scores) == 0:
            raise ValueError("no row was scored: the mean of nothing is undefined")
        return dict(zip(ROUGE_KEYS, scores.mean(dim=0).unbind(), strict=True))

    def per_row(self) -> dict[int, dict[str, float]]:
        """Scores of each row of all processes, ordered by row number; empty without rows."""
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn,
            process_group=self.process_group,
            should_sync=self.sync_on_compute and not self._is_synced,
        ):
            indices, scores = self._unique_rows()
        return {
            index: dict(zip(ROUGE_KEYS, row, strict=True))
            for index, row in zip(indices.tolist(), scores.tolist(), strict=True)
        }

    def sync(
        self,
        dist_sync_fn: Callable | None = None,
        process_group: Any | None = None,
        should_sync: bool = True,
        distributed_available: Callable | None = None,
    ) -> None:
        """Gathers the states of all processes; see `torchmetrics.Metric.sync`."""
        # torchmetrics stands in for a missing list state with a 1-d float tensor, which can't be
        # gathered with the others' int64 and 2-d states: an empty entry of the right kind can.
        if not self._is_synced and not self.row_index:
            self._append([], [])
        super().sync(dist_sync_fn, process_group, should_sync, distributed_available)

    def _append(self, indices: list[int], rows: list[list[float]]) -> None:
        """Adds one entry to both states."""
        # Apple's devices have no float64.
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        scores = torch.tensor(rows, dtype=dtype, device=self.device)
        self.row_index.append(torch.tensor(indices, dtype=torch.int64, device=self.device))
        self.scores.append(scores.reshape(-1, len(ROUGE_KEYS)))

    def _unique_rows(self) -> tuple[Tensor, Tensor]:
        """Row numbers in order and their scores: (rows,), (rows, keys)."""
        # A synced state is one tensor, a local one a list of them.
        if len(self.row_index) == 0:
            return torch.empty(0, dtype=torch.int64), torch.empty(0, len(ROUGE_KEYS))
        indices, scores = dim_zero_cat(self.row_index), dim_zero_cat(self.scores)
        ordered, order = torch.sort(indices, stable=True)
        first = torch.ones_like(ordered, dtype=torch.bool)
        first[1:] = ordered[1:] != ordered[:-1]
        return ordered[first], scores[order[first]]


@lru_cache(maxsize=2)
def _scorer(stemmer: bool) -> RougeScorer:
    """One scorer per setting: building a stemmer for each pair would dominate the time."""
    return RougeScorer(list(ROUGE_KEYS), use_stemmer=stemmer)
