"""The command line: exit statuses, one line per mistake, help, completion."""

import subprocess
import sys
from pathlib import Path

import pytest

from meqsum_lightning.cli import COMMANDS, main


def status(*words: str) -> int:
    return main(list(words))


def test_no_command_lists_the_commands(capsys):
    assert status() == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)


def test_help_is_light():
    code = (
        "import sys; from meqsum_lightning.cli import main; main(['--help']);"
        "heavy = {'torch', 'hydra', 'pydantic', 'transformers', 'lightning', 'pandas', 'numpy', 'rich'};"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_mistake_is_found_before_torch_is_imported():
    code = (
        "import sys; from meqsum_lightning.cli import main;"
        "status = main(['train', 'adapter.r=true']);"
        "sys.exit(9 if 'torch' in sys.modules else status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and done.stdout == ""


@pytest.mark.parametrize(
    "words",
    [
        ["trian"],
        ["train", "adapter.rnak=4"],
        ["train", "--bogus"],
        ["train", "--cfg"],
        ["train", "--cfg", "everything"],
        ["train", "--cfg", "job", "--package", "nowhere"],
        ["train", "data=files", "data.path=missing.csv"],
        ["train", "adapter.target_modules=[q,nope]"],
        ["train", "adapter.layers=[99]"],
        ["train", "model.backbone=/no/such/folder"],
        ["train", "model=flan_t5_small"],
        ["train", "resume=/no/such/run"],
        ["train", "rerun=/no/such/run"],
        ["train", "experiment=demo", "rerun=."],
        ["train", "-m", "adapter.r=2,x"],
        ["train", "-m", "resume=x", "seed=0,1"],
        ["train", "-m", "output_dir=x", "seed=0,1"],
        ["train", "-m", "adapter.target_modules=[q,zz],[q,v]"],
        ["train", "-m", "data=files", "data.path=nope.csv", "seed=1,2"],
        ["train", "--resolve"],
        ["train", "+callbacks.a._target_=lightning.pytorch.callbacks.NoSuch"],
        ["train", "+callbacks.a._target_=lightning.pytorch.callbacks.EarlyStopping"],
        ["train", "+optim.optimizer.foo=1"],
        ["train", "optim.optimizer._target_=torch.optim.Nope"],
        ["train", "adapter=pissa", "adapter.r=500"],
        ["train", "output_dir=/dev/null/x"],
        ["train", "trainer.devices=2"],
        ["evaluate", "data=demo", "output_dir=/dev/null/x"],
        ["data", "audit", "output=/dev/null/x.json"],
        ["predict", "-m", "generation.test_num_beams=2,4"],
        ["evaluate", "run=/no/such/run"],
        ["evaluate"],
        ["predict"],
        ["predict", "input=-"],
        ["predict", "input=missing.csv", "output=out.csv"],
        ["predict", "input=-", "output=out.docx"],
        ["data"],
        ["data", "look"],
        ["data", "audit", "data=files", "data.path=missing.csv"],
        ["--shell-completion", "install=tcsh"],
    ],
)
def test_wrong_input_is_one_line_and_two(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert status(*words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1 and captured.err.startswith("meqsum: ")
    assert not list(tmp_path.iterdir())


def test_the_composed_config_is_shown(capsys):
    assert status("train", "--cfg", "job", "adapter.r=3") == 0
    shown = capsys.readouterr().out
    assert "  r: 3\n" in shown and "hydra" not in shown
    assert status("train", "--cfg=job", "-p", "optim.optimizer") == 0
    assert "_target_: torch.optim.AdamW" in capsys.readouterr().out
    assert status("data", "audit", "--cfg", "job") == 0


def test_hydras_own_views_work(capsys):
    assert status("train", "--cfg", "hydra") == 0
    assert "hydra:" in capsys.readouterr().out
    assert status("train", "--info", "defaults") == 0
    assert "adapter/lora" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_names_groups_and_keys(command, capsys):
    assert status(command, "--help") == 0
    shown = capsys.readouterr().out
    assert "data=demo|files|meqsum" in shown and "split_seed: 0" in shown


def test_version(capsys):
    assert status("--version") == 0
    assert capsys.readouterr().out.startswith("meqsum-lightning ")


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("meqsum tr", "train"),
        ("meqsum train adapter=", "adapter=rslora"),
        ("meqsum train optim.l", "optim.lr="),
        ("meqsum evaluate spl", "split="),
        ("meqsum data audit data=m", "data=meqsum"),
        ("meqsum train experiment=fl", "experiment=flan_t5_large_lora"),
    ],
)
def test_completion_knows_commands_groups_and_keys(line, part, capsys, monkeypatch):
    monkeypatch.setenv("COMP_LINE", line)
    assert status("-sc", "query=bash") == 0
    assert part in capsys.readouterr().out.split()


@pytest.mark.skipif(not Path("/bin/bash").exists(), reason="needs bash")
def test_completion_works_in_bash(tmp_path):
    program = tmp_path / "meqsum"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m meqsum_lightning "$@"\n')
    program.chmod(0o755)
    script = (
        f'export PATH="{tmp_path}:$PATH"; eval "$({program} -sc install=bash)";'
        'COMP_LINE="meqsum train adapter=pi"; COMP_POINT=${#COMP_LINE}; COMP_CWORD=2;'
        'hydra_bash_completion; echo "${COMPREPLY[@]}"'
    )
    # The name that completion is installed for is that of the program.
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "adapter=pissa", done.stderr


def test_a_closed_pipe_is_no_error():
    done = subprocess.run(
        [
            "bash",
            "-c",
            f"set -o pipefail; {sys.executable} -m meqsum_lightning train --help | head -1",
        ],
        capture_output=True,
        text=True,
    )
    assert done.stderr == "" and done.stdout.startswith("usage:")
