"""What a person reads at the end."""

import io
import sys

from rich.console import Console

from meqsum_lightning.console import print_result, program, with_interval
from meqsum_lightning.engine.train import TrainResult
from meqsum_lightning.runs.record import read_metrics


def shown(folder, width=80):
    stream = io.StringIO()
    result = TrainResult(folder, read_metrics(folder))
    print_result(result, Console(file=stream, width=width, highlight=False))
    return stream.getvalue()


def test_scores_examples_and_what_next(finished_run):
    text = shown(finished_run)
    metrics = read_metrics(finished_run)
    for name in ("rouge1", "rougeLsum"):
        assert with_interval(metrics, f"test/{name}") in text
        assert with_interval(metrics, f"test_base/{name}") in text
    assert text.count("expert") == 3 and text.count("backbone  ") == 3
    assert f"meqsum predict run={finished_run}" in text.replace("\n", "")
    assert all(
        len(line) <= 80
        for line in text.splitlines()
        if "run=" not in line and "directory" not in line
    )


def test_markup_in_a_question_is_text(run_copy):
    path = run_copy / "predictions.csv"
    path.write_text(path.read_text().replace("Hello", "[bold red]Hello[/nope]"))
    assert "[bold red]Hello[/nope]" in shown(run_copy)


def test_the_next_command_can_be_typed_as_it_stands(monkeypatch, tmp_path):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "meqsum").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    monkeypatch.setenv("PATH", "/nowhere")
    assert program() == ".venv/bin/meqsum"
    monkeypatch.setenv("PATH", str(tmp_path / ".venv" / "bin"))
    (tmp_path / ".venv" / "bin" / "meqsum").chmod(0o755)
    assert program() == "meqsum"


def test_intervals():
    metrics = {"a": 0.5, "b": 0.25, "b_low": 0.125, "b_high": 0.375}
    assert with_interval(metrics, "a") == "0.500"
    assert with_interval(metrics, "b") == "0.250 [0.125, 0.375]"
