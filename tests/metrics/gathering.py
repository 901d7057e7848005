"""What each of several processes does in a test; a module of its own so that it imports little."""

from collections.abc import Sequence
from pathlib import Path

import torch

from meqsum_lightning.metrics.rouge import RougeMetric, RougeProtocol

Row = tuple[int, str, str]  # row number, prediction, reference


def gather(
    rank: int, rows: Sequence[Sequence[Row]], one_more: Row, store: Path
) -> tuple[dict[str, float], dict[int, dict[str, float]], int]:
    """What process `rank` sees of all rows, and how many rows after each added `one_more`."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=len(rows)
    )
    try:
        metric = RougeMetric(RougeProtocol(stemmer=True))
        for index, prediction, reference in rows[rank]:
            metric.update([index], [prediction], [reference])
        means = {key: value.item() for key, value in metric.compute().items()}
        per_row = metric.per_row()
        # Gathering leaves the process with its own rows: more can follow, and be gathered again.
        metric.update([one_more[0]], [one_more[1]], [one_more[2]])
        return means, per_row, len(metric.per_row())
    finally:
        torch.distributed.destroy_process_group()
