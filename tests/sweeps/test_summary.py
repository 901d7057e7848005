"""The end of a sweep: validation alone ranks, failures are named, and tables fit the terminal."""

import io
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from meqsum_lightning.sweeps.summary import render, summarize

KEYS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


class Sweep:
    """A sweep's root and the entries of its `sweep.json`, with run directories made from one."""

    def __init__(self, root, template):
        self.root, self.template, self.jobs = root, template, []

    def add(self, name, val=0.5, test=0.5, *, monitor="val/rougeL", record=(), **settings):
        """A completed job; settings as `adapter__r=4`, `test=None` without a test."""
        folder = Path(
            shutil.copytree(
                self.template,
                self.root / name,
                ignore=shutil.ignore_patterns("adapter", "checkpoints", "logs"),
            )
        )
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["checkpoint"]["monitor"] = monitor
        for key, value in settings.items():
            section, _, leaf = key.rpartition("__")
            (config[section] if section else config)[leaf] = value
        (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        metrics = json.loads((folder / "metrics.json").read_text())
        scores = {f"val/{key}": val for key in KEYS} | {"val/loss": val}
        scores |= {f"test/{key}": test for key in KEYS}
        metrics = {key: value for key, value in (metrics | scores).items() if value is not None}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        facts = json.loads((folder / "run.json").read_text())
        facts["best"] = {"epoch": 1, "monitor": monitor, "value": val}
        (folder / "run.json").write_text(json.dumps(facts | dict(record)))
        self.jobs.append({"name": name, "status": "completed", "folder": name, "error": None})
        return folder

    def lose(self, name, status, error, *, folder=None, log=None):
        """A job without scores."""
        if log is not None:
            path = self.root / log
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("Traceback")
        self.jobs.append({"name": name, "status": status, "folder": folder, "error": error})

    @property
    def summary(self):
        return summarize(self.root, self.jobs)

    def text(self, width=80):
        console = Console(record=True, width=width, highlight=False, file=io.StringIO())
        render(self.summary, console)
        return console.export_text()


@pytest.fixture
def sweep(finished_run, tmp_path):
    return Sweep(tmp_path / "sweep", finished_run)


def table_lines(text):
    return [line for line in text.splitlines() if line and line[0] in "┏┃┡│└"]


def cells(text, mark="│"):
    return [
        [cell.strip() for cell in line.strip(mark).split(mark)]
        for line in text.splitlines()
        if line.startswith(mark)
    ]


def test_validation_ranks_and_test_never_decides(sweep):
    sweep.add("r-4", val=0.6, test=0.9, adapter__r=4)
    sweep.add("r-8", val=0.7, test=0.1, adapter__r=8)
    sweep.add("r-16", val=0.65, test=0.99, adapter__r=16)
    summary = sweep.summary
    assert [row.jobs for row in summary.rows] == [("r-8",), ("r-16",), ("r-4",)]
    assert summary.best.folder == sweep.root / "r-8"
    text = sweep.text()
    assert f"best on validation: {sweep.root}/r-8" in text
    assert f"meqsum predict run={sweep.root}/r-8 input=" in text


def test_equal_validation_keeps_the_order_of_settings(sweep):
    sweep.add("b", val=0.5, test=0.9, adapter__r=16)
    sweep.add("a", val=0.5, test=0.1, adapter__r=4)
    assert [row.settings["adapter.r"] for row in sweep.summary.rows] == [4, 16]


def test_a_lower_loss_is_better(sweep):
    sweep.add("r-4", val=2.0, monitor="val/loss", adapter__r=4)
    sweep.add("r-8", val=1.0, monitor="val/loss", adapter__r=8)
    assert [row.jobs[0] for row in sweep.summary.rows] == ["r-8", "r-4"]
    assert "ranked by validation loss" in sweep.text()


def test_a_run_without_training_is_ranked_by_its_own_validation(sweep):
    sweep.add("lora", val=0.4)
    none = {
        "method": "none",
        **dict.fromkeys(("r", "alpha", "dropout", "target_modules", "scope", "layers")),
    }
    sweep.add("none", val=0.8, adapter=none, record={"best": None, "training": None})
    first, second = sweep.summary.rows
    assert first.jobs == ("none",) and first.validation.mean == 0.8 and first.seconds is None
    assert first.settings == {"adapter.method": "none"}
    assert second.settings == {"adapter.method": "lora"}


def test_without_validation_nothing_is_best(sweep):
    folder = sweep.add("a")
    (folder / "metrics.json").write_text('{"test/rougeL": 0.9}')
    facts = json.loads((folder / "run.json").read_text()) | {"best": None}
    (folder / "run.json").write_text(json.dumps(facts))
    assert sweep.summary.best is None and "best on" not in sweep.text()


def test_seeds_are_one_row_with_their_spread(sweep):
    for seed, val in enumerate((0.5, 0.6, 0.7)):
        sweep.add(f"r-4_seed-{seed}", val=val, test=val - 0.1, seed=seed, adapter__r=4)
    sweep.add("r-8_seed-0", val=0.3, seed=0, adapter__r=8)
    first, second = sweep.summary.rows
    assert first.seeds == 3 and first.validation.mean == pytest.approx(0.6)
    assert first.validation.sd == pytest.approx(0.1) and second.validation.sd is None
    # Of the seeds, the one with the best validation is what to use.
    assert first.folder.name == "r-4_seed-2" and len(first.jobs) == 3
    rows = cells(sweep.text())
    assert rows[0][:5] == ["1", "4", "3", "0.600 ± 0.100", "0.500 ± 0.100"]
    assert rows[1][:5] == ["2", "8", "1", "0.300", "0.500"]
    assert "┃ questions" not in sweep.text(120)


def test_folds_are_pooled_and_questions_counted(sweep):
    for fold in (0, 1):
        folder = sweep.add(f"fold-{fold}", data__split="folds", data__fold=fold)
        path = folder / "predictions.csv"
        path.write_text(re.sub(r"^q", f"q{fold}", path.read_text(), flags=re.MULTILINE))
    (row,) = sweep.summary.rows
    assert row.folds == 2 and row.questions == 16
    assert row.test["rougeL"].mean != 0.5  # from the predictions, not from the metrics
    assert re.search(r"┃ questions ", sweep.text(120))
    sweep.add("seed-1", data__split="folds", data__fold=0, seed=1)
    assert any("lack folds" in note for note in sweep.summary.notes)


def test_a_split_without_folds_lacks_none(sweep):
    for fold in (0, 1):
        sweep.add(f"fold-{fold}", data__split="folds", data__fold=fold)
    sweep.add("plain")
    assert not any("lack folds" in note for note in sweep.summary.notes)


def test_columns_are_what_differs_by_short_names(sweep):
    sweep.add("a", adapter__r=4, adapter__alpha=8.0, adapter__target_modules="qv")
    sweep.add("b", adapter__r=8, adapter__alpha=16.0, adapter__target_modules=["q", "v", "wo"])
    lines = table_lines(sweep.text(120))
    upper, lower = (line.split("┃") for line in lines[1:3])
    names = [" ".join(f"{a} {b}".split()) for a, b in zip(upper, lower, strict=True)]
    assert names[1:5] == ["#", "r", "target_ modules", "val ROUGE-L"]
    assert "q,v,wo" in sweep.text(120)


def test_keys_that_end_alike_keep_their_whole_name(sweep):
    sweep.add("a", adapter__dropout=0.1, model__dropout=0.0)
    sweep.add("b", adapter__dropout=0.2, model__dropout=0.1)
    text = " ".join(sweep.text(120).split())
    assert "model. ┃ adapter." in text


def test_jobs_that_only_their_rows_tell_apart_are_named(sweep):
    sweep.add("path-a", val=0.5)
    data = {"fingerprint": "other", "origin": "b.csv", "rows": 40, "dropped": 0}
    sweep.add("path-b", val=0.6, record={"data": data})
    assert [row.settings for row in sweep.summary.rows] == [{"job": "path-b"}, {"job": "path-a"}]
    assert any("can't be compared" in note for note in sweep.summary.notes)


def test_several_monitors_are_ranked_by_the_most_common(sweep):
    sweep.add("a", val=0.5, monitor="val/rouge1", adapter__r=2)
    sweep.add("b", val=0.6, monitor="val/rougeL", adapter__r=4)
    sweep.add("c", val=0.7, monitor="val/rougeL", adapter__r=8)
    assert sweep.summary.monitor == "val/rougeL"
    assert "jobs monitor val/rouge1, val/rougeL; all are ranked by val/rougeL" in (
        sweep.summary.notes
    )
    assert [row.jobs[0] for row in sweep.summary.rows] == ["c", "b", "a"]


def test_repeated_jobs_are_named(sweep):
    sweep.add("a")
    sweep.add("b")
    (row,) = sweep.summary.rows
    assert row.jobs == ("a",)
    assert sweep.summary.notes == ["jobs that repeat another are left out: b"]


def test_jobs_without_scores_have_their_error_and_log(sweep):
    sweep.add("good")
    sweep.lose(
        "bad",
        "failed",
        "RunFailed: loss is nan\n at step 3 " + "and so on " * 20,
        folder="bad",
        log="bad/logs/train.log",
    )
    sweep.lose("killed", "failed", "killed by signal 9", log="logs/killed.log")
    sweep.lose("stopped", "interrupted", None)
    sweep.lose("later", "waiting", None)
    summary = sweep.summary
    assert [problem.job for problem in summary.problems] == ["bad", "killed", "stopped"]
    assert "\n" not in summary.problems[0].error and len(summary.problems[0].error) > 200
    assert [problem.log for problem in summary.problems] == [
        sweep.root / "bad/logs/train.log",
        sweep.root / "logs/killed.log",
        None,
    ]
    text = sweep.text()
    assert "5 jobs: 1 completed, 2 failed, 1 interrupted, 1 waiting" in text
    assert "bad/logs/train.log" in text and "logs/killed.log" in text and "no log" in text
    assert re.search(r"RunFailed: loss is nan at step 3 .*… │", text)
    assert f"the same command with sweep.dir={sweep.root} runs what is missing" in text


def test_a_completed_job_that_cannot_be_read_is_a_problem(sweep):
    sweep.add("good")
    (sweep.add("odd") / "run.json").write_text("{")
    (problem,) = sweep.summary.problems
    assert problem.job == "odd" and problem.status == "unreadable"
    assert "no readable run.json" in problem.error
    assert sweep.summary.best.jobs == ("good",)


def test_damaged_predictions_leave_a_note_not_a_traceback(sweep):
    (sweep.add("a") / "predictions.csv").write_text("")
    (row,) = sweep.summary.rows
    assert row.test == {} and row.validation.mean == 0.5
    assert len(sweep.summary.notes) == 1 and "predictions.csv: not readable" in sweep.text(200)


def test_a_sweep_without_any_result_says_so(sweep):
    sweep.lose("a", "failed", "[bold]no[/bold] markup")
    text = sweep.text()
    assert "1 job: 1 failed" in text and "[bold]no[/bold] markup" in text
    assert sweep.summary.to_dict()["rows"] == []
    assert "0 jobs: none" in Sweep(sweep.root, None).text()


def test_narrow_terminals_lose_columns_in_order(sweep):
    record = {"training": {"seconds": 75.4}, "parameters": {"trainable": 86016}}
    sweep.add("a", adapter__r=4, optim__lr=0.001, record=record)
    sweep.add("b", adapter__r=8, optim__lr=0.0003, record=record)
    wide, usual, narrow = (" ".join(sweep.text(width).split()) for width in (120, 76, 44))
    for name in ("ROUGE-1", "ROUGE-2", "ROUGE-Lsum", "trainable", "time"):
        assert name in wide and name not in narrow
    assert "86,016" in wide and "75 s" in wide
    assert "ROUGE-2" not in usual and "ROUGE-Lsum" not in usual and "ROUGE-1" in usual
    assert "0.0003" in narrow and narrow.count("ROUGE-L ┃") == 2


def test_the_test_score_of_what_ranks_stays(sweep):
    sweep.add("a", monitor="val/rouge2")
    assert "val ┃ test" in " ".join(sweep.text(30).split())
    assert sweep.text(30).count("ROUGE-2 ┃") == 2


@pytest.mark.parametrize("width", [50, 80, 120])
def test_many_settings_share_a_column_where_they_do_not_fit(sweep, width):
    several = {
        "adapter__r": (4, 8),
        "optim__lr": (0.001, 0.0003),
        "optim__schedule": ("linear", "cosine"),
        "optim__label_smoothing": (0.0, 0.1),
        "generation__no_repeat_ngram_size": (0, 3),
        "data__max_source_length": (64, 48),
        "data__prompt": ("Summarize this question: ", "What does this person ask? "),
        "adapter__target_modules": ("qv", ["q", "v", "wi_0", "wo"]),
    }
    for number in (0, 1):
        name, values = "ab"[number], {key: pair[number] for key, pair in several.items()}
        sweep.add(name, **values)
    lines = table_lines(sweep.text(width))
    assert {len(line) for line in lines} == {len(lines[0])} and len(lines[0]) <= width
    text = " ".join(word for line in lines for word in re.split(r"[│┃ ]+", line))
    for word in ("schedule=cosine", "lr=0.0003", "target_modules=q,v,wi_0,wo", "ROUGE-L"):
        assert word in text
    scores = [row[2] for row in cells("\n".join(lines)) if row[0]]
    assert scores == ["0.500", "0.500"]


def test_a_hundred_jobs_all_have_their_row(sweep):
    template = sweep.add("r-1", adapter__r=1)
    config = (template / "config.yaml").read_text()
    for r in range(2, 101):
        folder = sweep.root / f"r-{r}"
        shutil.copytree(template, folder)
        (folder / "config.yaml").write_text(config.replace("  r: 1\n", f"  r: {r}\n"))
        sweep.jobs.append(sweep.jobs[0] | {"name": folder.name, "folder": folder.name})
    text = sweep.text()
    assert [row[1] for row in cells(text)] == [str(r) for r in range(1, 101)]
    assert all(len(line) <= 80 for line in table_lines(text))


def test_a_pipe_gets_no_colours(sweep):
    sweep.add("a")
    sweep.lose("bad", "failed", "why")
    file = io.StringIO()
    render(sweep.summary, Console(file=file, highlight=False, width=80))
    assert "\x1b" not in file.getvalue() and "ROUGE-L" in file.getvalue()


def test_the_plain_form_is_json(sweep):
    for seed in (0, 1):
        sweep.add(f"s{seed}", val=0.25 + seed / 2, test=0.5, seed=seed)
    sweep.lose("bad", "failed", "why", log="logs/bad.log")
    content = sweep.summary.to_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["best"] == "s1" and content["monitor"] == "val/rougeL"
    assert content["statuses"] == {"completed": 2, "failed": 1}
    (row,) = content["rows"]
    assert row["jobs"] == ["s0", "s1"] and row["folder"] == "s1" and row["questions"] == 8
    assert row["validation"]["mean"] == 0.5
    assert row["validation"]["values"] == {"0": 0.25, "1": 0.75}
    assert content["problems"] == [
        {"job": "bad", "status": "failed", "error": "why", "log": "logs/bad.log"}
    ]
