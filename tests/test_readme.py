"""Every command of the README is run, in order, in one folder; what needs the Hub is composed."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from meqsum_lightning.cli import main
from meqsum_lightning.data.tables import read_table, write_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]
# What makes a training a matter of seconds; the commands stay as they are otherwise.
SHORT = [
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=1",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
    "generation.max_new_tokens=4",
    "generation.test_num_beams=1",
    "data.max_source_length=64",
    "trainer.threads=1",
]
OFFLINE = {"make demo", "make test", "pip install -e ."}


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    for line in COMMANDS:
        if line.startswith("make "):
            assert re.search(rf"^{line.split()[1]}:", makefile, flags=re.MULTILINE)


@pytest.mark.slow
def test_every_command_runs(tmp_path, monkeypatch):
    import openpyxl

    from tests.engine.killing import train_and_die

    monkeypatch.chdir(tmp_path)
    demo = read_table(ROOT / "meqsum_lightning/assets/demo/questions.csv")
    write_table(demo[["question", "summary"]].head(40), "questions.csv")
    book = openpyxl.Workbook()
    book.active.append(["File", "CHQ", "Summary"])
    for number in range(1000):
        row = demo.iloc[number % len(demo)]
        book.active.append(
            [f"{number}", f"{row['question']} {number}", f"{row['summary']} {number}"]
        )
    book.save("MeQSum.xlsx")
    stopped = [f"output_dir={tmp_path / 'runs' / 'stopped'}", "experiment=demo", *SHORT]
    train_and_die(stopped, "test")
    seen = []
    for line in COMMANDS:
        if line in OFFLINE:
            continue
        seen.append(line)
        before, _, command = line.rpartition("| ")
        words = shlex.split(command)
        assert words[0] == "meqsum", line
        words = words[1:]
        if "flan_t5_large_lora" in line:
            assert main([*words, "--cfg", "job"]) == 0, line
            continue
        own = line.endswith("-m sweep.dir=sweeps/grid")
        if words[0] == "train" and "resume" not in line and not own:
            words += SHORT
        if words[0] in ("evaluate", "predict"):
            words += ["generation.max_new_tokens=4", "generation.test_num_beams=1"]
        if "model.weights=random" in line:
            # The small sibling has the same layers; the large one has a test of its own.
            words = [w.replace("flan_t5_large", "flan_t5_small") for w in words]
        typed = shlex.split(before.removesuffix("| "))[1] if before else None
        done = subprocess.run(
            [sys.executable, "-m", "meqsum_lightning", *words],
            input=typed, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout[-500:]}\n{done.stderr[-1500:]}"
    assert len(seen) >= 13
    assert len(read_table("summaries.csv")) == 40


def test_the_table_of_commands_is_complete():
    from meqsum_lightning.cli import COMMANDS as known

    for name in known:
        assert f"| `meqsum {name}" in README
