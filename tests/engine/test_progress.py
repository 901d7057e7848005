"""What is seen while the trainer works: plain lines in a file, bars on a terminal."""

import io
import re
import subprocess
import sys

from meqsum_lightning.engine import progress
from meqsum_lightning.engine.train import train
from tests.conftest import small_overrides


def test_one_plain_line_per_epoch_and_stage(small, capsys):
    train(small("trainer.progress=auto", "data.cache=false"))
    lines = capsys.readouterr().err.splitlines()
    epochs = [line for line in lines if re.match(r"epoch \d/2  train/loss \d", line)]
    assert len(epochs) == 2 and all("val/rougeL" in line for line in epochs)
    assert any(line.startswith("backbone without adapter: done in") for line in lines)
    assert any(line.startswith("test: done in") for line in lines)


def test_the_terminal_shows_our_lines_and_no_librarys(tiny_backbone, questions_file, tmp_path):
    # In a process of its own: other tests leave handlers of other libraries behind.
    words = small_overrides(tiny_backbone, questions_file, tmp_path / "run")
    words += ["trainer.progress=auto", "trainer.max_epochs=1", "test=false"]
    done = subprocess.run(
        [sys.executable, "-m", "meqsum_lightning", "train", *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert all(line.startswith(("train: ", "epoch 1/1")) for line in lines), done.stderr
    logged = (tmp_path / "run" / "logs" / "train.log").read_text()
    assert "GPU available" in logged


def test_long_stages_say_where_they_stand(small, capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    train(small("trainer.progress=plain", "data.cache=false", "data.eval_batch_size=4"))
    text = capsys.readouterr().err
    assert "epoch 1/2  step 3/6" in text
    assert "validation: batch 1/2" in text and "test: batch 2/2" in text


def test_bars_on_a_terminal(small, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    train(small("trainer.progress=auto", "trainer.max_epochs=1", "test=false"))
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    assert "epoch 1/1" in shown and "6/6" in shown and "val RL" in shown
