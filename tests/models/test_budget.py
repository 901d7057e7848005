"""The rank follows from a budget, and what is stored is the rank."""

import functools
import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from meqsum_lightning.cli import main
from meqsum_lightning.config.compose import build_config
from meqsum_lightning.config.schema import TrainConfig
from meqsum_lightning.engine.train import check, describe, train
from meqsum_lightning.errors import UserError
from meqsum_lightning.models.budget import largest_rank, resolve_rank
from meqsum_lightning.models.shapes import shape_config
from meqsum_lightning.models.targets import (
    PRESETS,
    TargetModule,
    adapter_parameter_count,
    select_modules,
)
from meqsum_lightning.plan import make_plan
from meqsum_lightning.runs.hashing import config_hash

# On the embedded model one rank of qv has 14 layers of 256 + 256 parameters.
PER_RANK = 14 * 512


def config(*overrides: str) -> TrainConfig:
    return build_config("train", overrides)  # type: ignore[return-value]


def mistake(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        resolve_rank(config(*overrides))
    (line,) = caught.value.lines
    return line


@functools.cache
def embedded_modules(preset: str) -> tuple[TargetModule, ...]:
    return select_modules(
        shape_config("tiny_t5"), config(f"adapter.target_modules={preset}").adapter
    )


@pytest.mark.parametrize(
    ("budget", "r"), [(PER_RANK, 1), (2 * PER_RANK - 1, 1), (2 * PER_RANK, 2), (100_000, 13)]
)
def test_the_largest_rank_within_a_count(budget, r):
    assert resolve_rank(config(f"adapter.budget={budget}")).adapter.r == r


def test_a_share_is_of_the_backbone():
    # 4,591,360 parameters.
    found = resolve_rank(config("adapter.budget=0.01")).adapter
    assert found.r == 45_913 // PER_RANK


def test_the_known_rank_of_flan_t5_large():
    cfg = config("model=flan_t5_large", "adapter.budget=9437184")
    assert resolve_rank(cfg, shape_config("flan_t5_large")).adapter.r == 32
    plan = make_plan(cfg)
    assert (plan.r, plan.trainable, plan.alpha) == (32, 9_437_184, 64.0)


@settings(max_examples=60, deadline=None)
@given(
    preset=st.sampled_from(sorted(PRESETS)),
    method=st.sampled_from(["lora", "dora", "rslora", "pissa"]),
    budget=st.integers(1, 30_000_000),
)
def test_one_rank_more_would_exceed_the_budget(preset, method, budget):
    modules = embedded_modules(preset)
    r = largest_rank(modules, budget, method)
    assert adapter_parameter_count(modules, r + 1, method) > budget
    assert r < 1 or adapter_parameter_count(modules, r, method) <= budget


@pytest.mark.parametrize(
    ("alpha", "value"), [("null", 26.0), ("2r", 26.0), ("0.5r", 6.5), ("16", 16.0)]
)
def test_alpha_follows_the_rank_found(alpha, value):
    found = resolve_rank(config("adapter.budget=100000", f"adapter.alpha={alpha}"))
    typed = config("adapter.r=13", f"adapter.alpha={alpha}")
    assert found == typed and found.adapter.alpha == value
    assert config_hash(found.model_dump(by_alias=True), "x") == config_hash(
        typed.model_dump(by_alias=True), "x"
    )


def test_without_a_budget_nothing_changes():
    for overrides in ([], ["adapter=full"], ["adapter=none"]):
        cfg = config(*overrides)
        assert resolve_rank(cfg) is cfg


def test_a_budget_below_rank_one_says_what_that_needs():
    line = mistake(f"adapter.budget={PER_RANK - 1}")
    assert line.startswith("adapter.budget=7167: too small for the 14 chosen layers")
    assert f"expected at least {PER_RANK}" in line
    # DoRA's magnitudes alone are 14 x 256.
    assert f"expected at least {PER_RANK + 14 * 256}" in mistake("adapter=dora", "adapter.budget=9")
    assert "(4 of 4591360 parameters)" in mistake("adapter.budget=0.000001")


def test_a_budget_beyond_the_largest_rank():
    assert f"expected at most {4096 * PER_RANK}" in mistake(f"adapter.budget={5000 * PER_RANK}")


def test_too_small_a_budget_is_found_before_any_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command in ("train", "plan"):
        assert main([command, "adapter.budget=100"]) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("meqsum: adapter.budget=100: too small")
    with pytest.raises(UserError, match="too small"):
        check(config("adapter.budget=100"))
    assert not list(tmp_path.iterdir())


def test_a_run_stores_the_rank(small):
    shared = ["adapter.alpha=2r", "trainer.max_steps=1", "test=false"]
    folder = train(small("adapter.r=null", "adapter.budget=5000", *shared)).folder
    stored = yaml.safe_load((folder / "config.yaml").read_text())["adapter"]
    # 12 layers of 32 + 32 parameters: 6 x 768 = 4608.
    assert (stored["r"], stored["budget"], stored["alpha"]) == (6, None, 12.0)
    record = json.loads((folder / "run.json").read_text())
    assert record["parameters"]["trainable"] == 4608
    typed = small("adapter.r=6", *shared)
    assert record["config_hash"] == describe(typed, check(typed))["config_hash"]
