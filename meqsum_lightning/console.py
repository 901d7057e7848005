"""What a person reads at the end of a command: scores against the backbone, examples, what next."""

import csv
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from meqsum_lightning.files import read_json

if TYPE_CHECKING:
    from meqsum_lightning.engine.evaluate import Evaluation
    from meqsum_lightning.engine.train import TrainResult

SCORES = {
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "rougeLsum": "ROUGE-Lsum",
}
EXAMPLES = 3


def print_result(result: "TrainResult", console: Console | None = None) -> None:
    """Prints what a finished run has shown.

    Args:
        result: A training's folder and metrics.
        console: Where; None: standard output.
    """
    console = console or Console(highlight=False)
    record = read_json(result.folder / "run.json")
    parameters = record["parameters"]
    console.print()
    console.print(score_table(result.metrics))
    console.print(
        f"trained {parameters['trainable']:,} of {parameters['total']:,} parameters "
        f"({parameters['share']:.2%})" + _training(record)
    )
    for example in examples(result.folder):
        console.print()
        _print_example(console, example)
    console.print()
    console.print(Text(f"run directory: {result.folder}"), soft_wrap=True)
    console.print("next:", style="bold")
    for command in suggestions(result.folder, record):
        console.print(Text(f"  {command}"), soft_wrap=True)


def print_evaluation(evaluation: "Evaluation", console: Console | None = None) -> None:
    """Prints the scores of an evaluation."""
    console = console or Console(highlight=False)
    console.print(one_column(evaluation.metrics, evaluation.prefix))
    console.print(Text(f"{evaluation.rows} rows; written to {evaluation.folder}"), soft_wrap=True)


def score_table(metrics: dict[str, float]) -> Table:
    """Test scores of run and backbone with their intervals; validation scores without a test."""
    prefix = "test" if "test/rouge1" in metrics else "val"
    title = {"test": "test questions", "val": "validation questions, best epoch"}[prefix]
    table = Table(title=title, title_justify="left")
    table.add_column("")
    base = "test_base/rouge1" in metrics
    if base:
        table.add_column("backbone alone", justify="right")
    table.add_column("this run", justify="right", style="bold")
    if base:
        table.add_column("gain", justify="right")
    for name, label in SCORES.items():
        key = f"{prefix}/{name}"
        if key not in metrics:
            continue
        cells = [label]
        if base:
            cells.append(with_interval(metrics, f"test_base/{name}"))
        cells.append(with_interval(metrics, key))
        if base:
            cells.append(f"{metrics[key] - metrics[f'test_base/{name}']:+.3f}")
        table.add_row(*cells)
    return table


def one_column(metrics: dict[str, float], prefix: str) -> Table:
    """Scores of one evaluation with their intervals."""
    table = Table(title=prefix, title_justify="left")
    table.add_column("")
    table.add_column("score", justify="right", style="bold")
    for name, label in SCORES.items():
        table.add_row(label, with_interval(metrics, f"{prefix}/{name}"))
    table.add_row("loss", f"{metrics[f'{prefix}/loss']:.4f}")
    return table


def with_interval(metrics: dict[str, float], key: str) -> str:
    """`0.758 [0.712, 0.801]`."""
    value = f"{metrics[key]:.3f}"
    if f"{key}_low" not in metrics:
        return value
    return f"{value} [{metrics[f'{key}_low']:.3f}, {metrics[f'{key}_high']:.3f}]"


def examples(folder: Path) -> list[dict[str, str]]:
    """A few test rows with all summaries: a good, a middling and a poor one."""
    rows = _read(folder / "predictions.csv")
    base = {row["id"]: row["prediction"] for row in _read(folder / "predictions_base.csv")}
    if not rows:
        return []
    ordered = sorted(rows, key=lambda row: (-float(row["rougeL"]), row["id"]))
    places = [round(share * (len(ordered) - 1)) for share in (0.1, 0.5, 0.9)][:EXAMPLES]
    chosen = [ordered[place] for place in dict.fromkeys(places)]
    return [row | {"base": base.get(row["id"], "")} for row in chosen]


def suggestions(folder: Path, record: dict[str, Any]) -> list[str]:
    """Commands that make sense after this run."""
    name, meqsum = _quoted(str(folder)), _quoted(program())
    commands = [f"{meqsum} evaluate run={name} split=val"]
    if record["parameters"]["trainable"]:
        commands.append(f"{meqsum} predict run={name} input=questions.csv output=summaries.csv")
        commands.append(f"{meqsum} train rerun={name} adapter.r=16")
    else:
        commands.append(f"{meqsum} train rerun={name} adapter=lora")
    return commands


def program() -> str:
    """How `meqsum` is called from here: by name, or by its path in an environment that is not on
    the search path (as after `make demo`).
    """
    beside = Path(sys.executable).parent / "meqsum"
    if shutil.which("meqsum") or not beside.is_file():
        return "meqsum"
    inside = beside.is_relative_to(Path.cwd())
    return str(beside.relative_to(Path.cwd()) if inside else beside)


def _print_example(console: Console, example: dict[str, str]) -> None:
    question = " ".join(example["question"].split())
    if len(question) > 240:
        question = question[:237].rsplit(" ", 1)[0] + " …"
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    table.add_row("question", Text(question))
    table.add_row("expert", Text(example["reference"]))
    if example["base"]:
        table.add_row("backbone", Text(" ".join(example["base"].split())[:240]))
    table.add_row("this run", Text(example["prediction"], style="bold"))
    console.print(table)


def _training(record: dict[str, Any]) -> str:
    facts = record.get("training")
    if not facts:
        return ""
    best = record.get("best")
    chosen = f", best epoch {best['epoch'] + 1}" if best else ""
    epochs = "1 epoch" if facts["epochs"] == 1 else f"{facts['epochs']} epochs"
    return f", {epochs} in {facts['seconds']:.0f} s{chosen}"


def _read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _quoted(text: str) -> str:
    return shlex.quote(text)
