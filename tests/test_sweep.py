"""`-m`: one job per combination; all are checked first, a failing one takes nobody along."""

import json

from meqsum_lightning.cli import main
from meqsum_lightning.engine import train as training
from meqsum_lightning.errors import RunFailed, RunInterrupted
from tests.conftest import small_overrides


def words(backbone, questions, tmp_path, *more):
    fixed = small_overrides(backbone, questions, tmp_path)[:-1]
    quick = ["trainer.max_epochs=1", "test=false", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    return ["train", "-m", *fixed, *quick, *more]


def test_a_grid_of_lists_and_presets(tiny_backbone, questions_file, tmp_path):
    more = ["adapter.r=1,2", "adapter.target_modules=[q,v],ffn"]
    assert main(words(tiny_backbone, questions_file, tmp_path, *more)) == 0
    found = [json.loads((tmp_path / "sweep" / str(n) / "run.json").read_text()) for n in range(4)]
    assert {record["status"] for record in found} == {"completed"}
    assert len({record["config_hash"] for record in found}) == 4


def test_a_job_that_fails(tiny_backbone, questions_file, tmp_path, monkeypatch, capsys):
    original = training.train

    def train(cfg):
        if cfg.adapter.r == 1:
            raise RunFailed("diverged")
        return original(cfg)

    monkeypatch.setattr(training, "train", train)
    assert main(words(tiny_backbone, questions_file, tmp_path, "adapter.r=1,2")) == 1
    assert "job 1/2 failed: RunFailed: diverged" in capsys.readouterr().err
    assert (tmp_path / "sweep" / "1" / "run.json").exists()


def test_an_interrupt_ends_the_sweep(tiny_backbone, questions_file, tmp_path, monkeypatch):
    def train(cfg):
        started.append(cfg.seed)
        raise RunInterrupted("stopped by SIGINT")

    started: list[int] = []
    monkeypatch.setattr(training, "train", train)
    assert main(words(tiny_backbone, questions_file, tmp_path, "seed=1,2,3")) == 130
    assert started == [1]


def test_one_wrong_point_refuses_the_sweep(tiny_backbone, questions_file, tmp_path):
    more = ["adapter.r=1,2", "adapter.scope=everywhere,cross", "adapter.target_modules=ffn"]
    assert main(words(tiny_backbone, questions_file, tmp_path, *more)) == 2
    assert not (tmp_path / "sweep").exists()
