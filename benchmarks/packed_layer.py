"""One training step and one generation of K packed adapters, beside PEFT one by one.

    python benchmarks/packed_layer.py [--packs 1 2 4 8 16] [--dropout 0.1] [--device cuda --bf16]

The model has the shape of the embedded one (or of `--shape`) and random weights. Prints
milliseconds of forward plus backward for all K adapters, by how branches share batched products,
and of greedy generation.
"""

import argparse
import contextlib
import itertools
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from meqsum_lightning.config.schema import AdapterConfig
from meqsum_lightning.models.adapters import apply_adapter
from meqsum_lightning.models.dropout import replace_adapter_dropout, row_keys
from meqsum_lightning.models.packed import PackedModel
from meqsum_lightning.models.packed_layer import Grouping
from meqsum_lightning.models.shapes import embedded_folder, random_model, shape_config

GROUPINGS: tuple[Grouping, ...] = ("each", "rank", "padded")
RANKS = (4, 8, 16, 32, 64)


def main() -> None:
    """Measures what the options say and prints two tables."""
    options = arguments()
    torch.set_num_threads(options.threads)
    for title, measure in (("training step", train_step), ("generation", generation)):
        print(f"\n{title}, milliseconds for all K adapters")
        print("".join(f"{name:>10}" for name in ["K", *GROUPINGS, "peft", "peft/best"]))
        for size in options.packs:
            steps = [packed(options, size, grouping, measure) for grouping in GROUPINGS]
            steps.append(one_by_one(options, size, measure))
            # In turns, so that other work on the machine falls on all of them.
            times = in_turns(steps, options)
            shown = [f"{size:>10}", *(f"{value:10.1f}" for value in times)]
            print("".join(shown) + f"{times[-1] / min(times[:-1]):10.2f}", flush=True)


def train_step(options: argparse.Namespace, model: nn.Module, rows: int) -> None:
    """Forward, loss and backward of a batch."""
    source, target, keys = batch(options, rows)
    with precision(options), row_keys(model, keys):
        model(input_ids=source, labels=target, use_cache=False).loss.backward()
    model.zero_grad()


def generation(options: argparse.Namespace, model: nn.Module, rows: int) -> None:
    """Greedy summaries of a batch."""
    source, _, _ = batch(options, rows)
    with precision(options), torch.no_grad():
        model.generate(  # type: ignore[operator]
            input_ids=source, min_new_tokens=options.target, max_new_tokens=options.target
        )


Measure = Callable[[argparse.Namespace, nn.Module, int], None]


def packed(
    options: argparse.Namespace, size: int, grouping: Grouping, measure: Measure
) -> Callable[[], None]:
    """A pack of `size` adapters."""
    pack = PackedModel(backbone(options), grouping=grouping)
    for index, adapter in enumerate(adapters(options, size)):
        pack.add(index, adapter, seed=index)
    pack.to(options.device).train(measure is train_step)

    def run() -> None:
        with pack.rows([options.rows] * size):
            measure(options, pack, options.rows * size)

    return run


def one_by_one(options: argparse.Namespace, size: int, measure: Measure) -> Callable[[], None]:
    """The same adapters on a backbone each."""
    models = []
    for index, adapter in enumerate(adapters(options, size)):
        model = apply_adapter(backbone(options), adapter, seed=index)
        replace_adapter_dropout(model)
        models.append(model.to(options.device).train(measure is train_step))

    def run() -> None:
        for model in models:
            measure(options, model, options.rows)

    return run


def in_turns(steps: list[Callable[[], None]], options: argparse.Namespace) -> list[float]:
    """Median milliseconds of each, after one run to warm up."""
    times: list[list[float]] = [[] for _ in steps]
    for turn in range(options.repeats + 1):
        for step, found in zip(steps, times, strict=True):
            synchronise(options)
            started = time.perf_counter()
            step()
            synchronise(options)
            if turn:
                found.append(1000 * (time.perf_counter() - started))
    return [statistics.median(found) for found in times]


def adapters(options: argparse.Namespace, size: int) -> list[AdapterConfig]:
    """LoRA of mixed ranks on all layers."""
    return [
        AdapterConfig(
            method="lora",
            r=rank,
            budget=None,
            alpha=2.0 * rank,
            dropout=options.dropout,
            target_modules=options.targets,
            scope="everywhere",
            layers=None,
        )
        for rank in itertools.islice(itertools.cycle(options.ranks), size)
    ]


def backbone(options: argparse.Namespace) -> nn.Module:
    """Random weights of the chosen shape."""
    from transformers import AutoConfig

    config = (
        AutoConfig.from_pretrained(embedded_folder())
        if options.shape is None
        else shape_config(options.shape)
    )
    return random_model(config, torch.bfloat16 if options.bf16 else torch.float32, seed=0)


def batch(
    options: argparse.Namespace, rows: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Source (rows, source), target (rows, target) and keys of the rows (rows,)."""
    make = torch.Generator().manual_seed(0)
    source = torch.randint(2, 1000, (rows, options.source), generator=make)
    target = torch.randint(2, 1000, (rows, options.target), generator=make)
    return tuple(x.to(options.device) for x in (source, target, torch.arange(rows)))  # type: ignore[return-value]


def precision(options: argparse.Namespace) -> contextlib.AbstractContextManager[object]:
    """Mixed precision where it was asked for."""
    if not options.bf16:
        return contextlib.nullcontext()
    return torch.autocast(options.device, torch.bfloat16)


def synchronise(options: argparse.Namespace) -> None:
    """Waits for the device."""
    if options.device == "cuda":
        torch.cuda.synchronize()


def arguments() -> argparse.Namespace:
    """What is measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packs", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--ranks", type=int, nargs="+", default=list(RANKS))
    parser.add_argument("--targets", default="all", help="preset of target modules")
    parser.add_argument("--rows", type=int, default=8, help="rows of each adapter")
    parser.add_argument("--source", type=int, default=100, help="tokens")
    parser.add_argument("--target", type=int, default=20, help="tokens")
    parser.add_argument("--dropout", type=float, default=0.0, help="of the adapters' input")
    parser.add_argument("--shape", help="built-in shape, for example flan_t5_large")
    parser.add_argument("--bf16", action="store_true", help="bf16 weights and autocast")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
