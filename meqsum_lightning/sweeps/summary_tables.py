"""Tables of a sweep's summary, fitted to the width of a terminal.

What stands in them is found by `summary`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from meqsum_lightning.console import SCORES
from meqsum_lightning.runs.collect import ROUGE_KEYS

if TYPE_CHECKING:
    from rich.table import Table

    from meqsum_lightning.runs.pooling import Pooled
    from meqsum_lightning.sweeps.summary import Summary

# How keys are typed where it is not their last part.
TYPED = {"model.name": "model", "adapter.method": "adapter"}
# Columns that go first when a terminal is narrow; the test score of what ranks goes last.
DROPPED = ("rouge2", "rougeLsum", "trainable", "time", "rouge1", "rougeL", "questions", "seeds")
# All settings in one column, when a column for each is too much.
JOINED = "settings"
# Least width of that column; most width of a job's name; width from which a header is broken.
JOINED_WIDTH, NAME_WIDTH, HEADER_WIDTH = 28, 30, 10
NOTHING = "–"

# Header and cells.
Column = tuple[str, list[str]]


def ranking(summary: "Summary", width: int) -> "Table":
    """The configurations, the best first; `width` is in columns of the terminal."""
    from rich.table import Table
    from rich.text import Text

    columns = _columns(summary)
    settings = list(summary.rows[0].settings)
    core = _test_of(summary)
    # What ranks is read beside its test score: before that goes, settings move together.
    kept = _fitting(_widths(columns), width, [name for name in DROPPED if name != core])
    if kept is None and settings:
        columns = _joined(columns, settings)
    if kept is None:
        widths = _widths(columns)
        widths[JOINED] = min(widths.get(JOINED, 0), JOINED_WIDTH)
        order = sorted(DROPPED, key=lambda name: name == core)
        kept = _fitting(widths, width, order) or [name for name in columns if name not in DROPPED]
    table = Table(title=_title(summary), title_justify="left")
    for name in kept:
        header, cells = columns[name]
        words = name == JOINED or (name in settings and not all(map(_is_number, cells)))
        justify: Any = "left" if words else "right"
        wraps = name == JOINED or name in settings
        table.add_column(header, justify=justify, no_wrap=not wraps, overflow="fold")
    for at in range(len(summary.rows)):
        # As texts: brackets in a value are no markup.
        texts = [Text(columns[name][1][at]) for name in kept]
        table.add_row(*texts, style="bold" if at == 0 and summary.best else None)
    return table


def problem_table(summary: "Summary") -> "Table":
    """Jobs without scores: an error each, shortened to a line, and below it the log."""
    from rich.console import Group as Lines
    from rich.table import Table
    from rich.text import Text

    table = Table(title="jobs without scores", title_justify="left")
    width = min(max(len(problem.job) for problem in summary.problems), NAME_WIDTH)
    table.add_column("job", overflow="fold", min_width=width, max_width=width)
    table.add_column("status", no_wrap=True)
    table.add_column("error and log")
    for problem in summary.problems:
        error = Text(problem.error or NOTHING, no_wrap=True, overflow="ellipsis")
        log = "no log"
        if problem.log:
            below = problem.log.is_relative_to(summary.root)
            log = str(problem.log.relative_to(summary.root) if below else problem.log)
        style = "yellow" if problem.status == "interrupted" else "red"
        lines = Lines(error, Text(log, style="dim", overflow="fold"))
        table.add_row(Text(problem.job), Text(problem.status, style=style), lines)
    return table


def value_text(value: Any) -> str:
    """A setting as it stands in a table."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _columns(summary: "Summary") -> dict[str, Column]:
    """All columns, those that are always shown and those that may be dropped, from the left."""
    rows = summary.rows
    monitored = _monitored(summary)
    labels = _labels(list(rows[0].settings))
    columns: dict[str, Column] = {"#": ("#", [str(at + 1) for at in range(len(rows))])}
    for key, label in labels.items():
        columns[key] = (_broken(label), [value_text(row.settings[key]) for row in rows])
    if any(row.seeds > 1 for row in rows):
        columns["seeds"] = ("seeds", [str(row.seeds) for row in rows])
    if any(row.folds > 1 for row in rows):
        columns["questions"] = ("questions", [str(row.questions) for row in rows])
    header = f"val\n{SCORES.get(monitored, monitored)}"
    columns["val"] = (header, _score_cells([row.validation for row in rows]))
    for key in ROUGE_KEYS:
        if any(key in row.test for row in rows):
            cells = _score_cells([row.test.get(key) for row in rows])
            columns[key] = (f"test\n{SCORES[key]}", cells)
    if any(row.trainable is not None for row in rows):
        counts = [NOTHING if row.trainable is None else f"{row.trainable:,}" for row in rows]
        columns["trainable"] = ("trainable", counts)
    if any(row.seconds is not None for row in rows):
        columns["time"] = ("time", [_duration(row.seconds) for row in rows])
    return columns


def _joined(columns: Mapping[str, Column], settings: Sequence[str]) -> dict[str, Column]:
    """The columns with all settings in one, as `key=value` words that may wrap."""
    labels = _labels(settings)
    lines = [
        " ".join(f"{labels[key]}={value}" for key, value in zip(settings, values, strict=True))
        for values in zip(*(columns[key][1] for key in settings), strict=True)
    ]
    rest = {name: column for name, column in columns.items() if name not in (*settings, "#")}
    return {"#": columns["#"], JOINED: (JOINED, lines), **rest}


def _fitting(widths: Mapping[str, int], width: int, order: Sequence[str]) -> list[str] | None:
    """Names of columns that fit, after dropping as few as needed in this order; None: too wide."""
    kept = [name for name in widths if widths[name]]

    def fits() -> bool:
        # A blank on both sides of a cell, and a border.
        return sum(widths[name] + 3 for name in kept) + 1 <= width

    for name in order:
        if name in kept and not fits():
            kept.remove(name)
    return kept if fits() else None


def _widths(columns: Mapping[str, Column]) -> dict[str, int]:
    from rich.cells import cell_len

    return {
        name: max(cell_len(line) for text in (header, *cells) for line in text.split("\n"))
        for name, (header, cells) in columns.items()
    }


def _score_cells(scores: Sequence["Pooled | None"]) -> list[str]:
    """Means under each other, with the spread over seeds where there are several."""
    spread = any(score is not None and score.sd is not None for score in scores)
    cells = []
    for score in scores:
        mean = NOTHING if score is None else f"{score.mean:.3f}"
        sd = "" if score is None or score.sd is None else f" ± {score.sd:.3f}"
        cells.append(mean + (sd or " " * len(" ± 0.000") if spread else ""))
    return cells


def _labels(keys: Sequence[str]) -> dict[str, str]:
    """How a key is typed: its last part, or all of it where two end alike."""
    short = {key: TYPED.get(key, key.rpartition(".")[2]) for key in keys}
    counts = Counter(short.values())
    return {key: label if counts[label] == 1 else key for key, label in short.items()}


def _broken(label: str) -> str:
    """A long label in two lines, broken at the joint nearest to its middle."""
    joints = [at + 1 for at, letter in enumerate(label[:-1]) if letter in "_."]
    if len(label) <= HEADER_WIDTH or not joints:
        return label
    middle = min(joints, key=lambda at: abs(2 * at - len(label)))
    return f"{label[:middle]}\n{label[middle:]}"


def _monitored(summary: "Summary") -> str:
    return (summary.monitor or "").partition("/")[2]


def _test_of(summary: "Summary") -> str:
    """The test score that belongs to what ranks; ROUGE-L where that is the loss."""
    monitored = _monitored(summary)
    return monitored if monitored in ROUGE_KEYS else "rougeL"


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return cell == NOTHING
    return True


def _title(summary: "Summary") -> str:
    monitored, count = _monitored(summary), len(summary.rows)
    what = "1 configuration" if count == 1 else f"{count} configurations"
    return f"{what}, ranked by validation {SCORES.get(monitored, monitored)}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return NOTHING
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3 * 3600 else f"{seconds / 3600:.1f} h"
