"""Cross entropy as sums over real target tokens, with their count.

Nothing is averaged here: accumulation, several processes and packs divide once, at the end.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED_LABEL = -100


def token_loss(
    logits: Tensor, labels: Tensor, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Cross entropy summed over a batch.

    `sum / count` is the loss that transformers computes. With smoothing it is torch's
    `cross_entropy(..., label_smoothing=...)` (Szegedy et al. 2016, arXiv:1512.00567).

    Args:
        logits: (batch, target, vocabulary), of any floating type; computed in fp32.
        labels: (batch, target), with `IGNORED_LABEL` where there is no target.
        label_smoothing: Share of the probability that is spread over the vocabulary, in [0, 1).

    Returns:
        The sum in nats, fp32 scalar with gradient, and the number of target tokens, int64 scalar.
        A batch without target tokens gives 0 (and zero gradients) and 0.
    """
    total = F.cross_entropy(
        logits.flatten(0, -2).float(),
        labels.flatten(),
        ignore_index=IGNORED_LABEL,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return total, (labels != IGNORED_LABEL).sum()


def row_losses(
    logits: Tensor, labels: Tensor, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Cross entropy summed over each row, for groups of rows that are normalised apart.

    Args:
        logits: (batch, target, vocabulary), of any floating type; computed in fp32.
        labels: (batch, target), with `IGNORED_LABEL` where there is no target.
        label_smoothing: Share of the probability that is spread over the vocabulary, in [0, 1).

    Returns:
        Sums in nats, (batch,) fp32 with gradient, and target tokens, (batch,) int64.
    """
    per_token = F.cross_entropy(
        logits.flatten(0, -2).float(),
        labels.flatten(),
        ignore_index=IGNORED_LABEL,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    sums = per_token.view(labels.shape).sum(dim=-1, dtype=torch.float32)
    return sums, (labels != IGNORED_LABEL).sum(dim=-1)
