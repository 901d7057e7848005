"""What is seen while the trainer works: plain lines in a file, bars on a terminal."""

import io
import re

from meqsum_lightning.engine import progress
from meqsum_lightning.engine.train import train


def test_one_plain_line_per_epoch_and_stage(small, capsys):
    train(small("trainer.progress=auto", "data.cache=false"))
    lines = capsys.readouterr().err.splitlines()
    epochs = [line for line in lines if re.match(r"epoch \d/2  train/loss \d", line)]
    assert len(epochs) == 2 and all("val/rougeL" in line for line in epochs)
    assert any(line.startswith("backbone without adapter: done in") for line in lines)
    assert any(line.startswith("test: done in") for line in lines)
    assert not any("GPU available" in line or "💡" in line for line in lines)


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
