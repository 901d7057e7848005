"""Prints a plan in the terminal; its figures come from `estimate`."""

from typing import TYPE_CHECKING

from meqsum_lightning.plan.estimate import Plan

if TYPE_CHECKING:
    from rich.console import Console


def render(plan: Plan, console: "Console") -> None:
    """Print a plan in at most 80 columns."""
    from rich import box
    from rich.table import Table

    def section(title: str, rows: list[tuple[str, str, str]]) -> None:
        table = Table(box=box.SIMPLE_HEAD, title_justify="left", width=min(console.width, 80))
        table.add_column(title, width=27)
        table.add_column("", justify="right", width=14)
        table.add_column("", style="dim", ratio=1)
        for row in rows:
            table.add_row(*row)
        console.print(table)

    adapted = f"{plan.modules} layers adapted" if plan.modules else ""
    model = [
        ("parameters", f"{plan.parameters:,}", plan.model),
        ("trainable", f"{plan.trainable:,}", adapted or plan.method),
        ("share", f"{100 * plan.share:.3f} %", ""),
    ]
    if plan.r is not None and plan.alpha is not None and plan.scale is not None:
        root = "sqrt(r)" if plan.method == "rslora" else "r"
        model += [
            ("rank r, alpha", f"{plan.r}, {plan.alpha:g}", f"alpha/r = {plan.alpha / plan.r:g}"),
            ("scale of the update", f"{plan.scale:.4g}", f"alpha / {root}"),
        ]
    what = {"full": "model weights, fp32", "none": "nothing is saved"}
    model.append(("size on disk", _bytes(plan.disk), what.get(plan.method, "adapter file")))
    section(f"{plan.method} on {plan.model}", model)

    memory = plan.memory
    on, off = ("not used", "used") if not memory.checkpointing else ("used", "not used")
    section(
        "memory in training",
        [
            ("backbone weights", _bytes(memory.weights), "held once"),
            ("adapter weights", _bytes(memory.adapter), "fp32"),
            ("gradients", _bytes(memory.gradients), "fp32, trainable only"),
            ("optimizer state", _bytes(memory.optimizer), ""),
            ("activations", _bytes(memory.activations), f"{off}; {plan.precision}"),
            ("activations, checkpointed", _bytes(memory.activations_checkpointed), on),
            ("total", _bytes(memory.total), "of one process"),
        ],
    )
    compute = plan.compute
    section(
        "compute",
        [
            ("forward", _flop(compute.forward), f"{plan.micro_batch} rows"),
            ("backward", _flop(compute.backward), f"{plan.micro_batch} rows"),
            ("optimizer step", _flop(compute.step), f"{plan.rows} rows, all processes"),
        ],
    )
    console.print(
        f"Estimates for questions of {plan.source_length} and summaries of {plan.target_length} "
        "tokens, the configured limits: an upper bound.",
        style="dim",
        width=min(console.width, 80),
    )


def _bytes(number: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number} B"


def _flop(number: int) -> str:
    for unit, size in (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number} FLOP"
