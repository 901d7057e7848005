"""The ready ablations: every point of every grid is valid, on the embedded model and the large one.

The formulas behind them (counts, parts of blocks) have tests of their own.
"""

import itertools
from collections.abc import Iterator

import pytest

from meqsum_lightning.config.compose import build_config, sweeper_params
from meqsum_lightning.config.groups import conf_dir
from meqsum_lightning.config.schema import TrainConfig
from meqsum_lightning.models.budget import resolve_rank
from meqsum_lightning.models.shapes import shape_config
from meqsum_lightning.models.targets import adapter_parameter_count, select_modules

JOBS = {
    "ablation_rank": 15,
    "ablation_alpha": 5,
    "ablation_targets": 7,
    "ablation_scope": 4,
    "ablation_matched": 5,
    "ablation_layers": 6,
}
PLACES = {
    "tiny_t5": [],
    "flan_t5_large": ["model=flan_t5_large", "data=meqsum", "trainer=gpu"],
}


def points(params: dict[str, str]) -> Iterator[list[str]]:
    """Every combination of the values of a grid, as overrides."""
    choices = [[f"{key}={value}" for value in text.split(",")] for key, text in params.items()]
    for point in itertools.product(*choices):
        yield list(point)


def resolved(shape: str, *overrides: str) -> TrainConfig:
    cfg = build_config("train", [*PLACES[shape], *overrides])
    return resolve_rank(cfg, shape_config(shape))  # type: ignore[return-value]


def test_there_is_an_ablation_for_each_name():
    assert {path.stem for path in (conf_dir() / "experiment").glob("ablation_*.yaml")} == set(JOBS)


@pytest.mark.parametrize("shape", PLACES)
@pytest.mark.parametrize("name", JOBS)
def test_every_point_is_a_training_of_its_own(name, shape):
    shape_of = shape_config(shape)
    seen = []
    for point in points(sweeper_params("train", name)):
        cfg = resolved(shape, f"experiment={name}", *point)
        assert select_modules(shape_of, cfg.adapter)
        assert (cfg.name, cfg.model.name) == (name, shape)
        assert cfg.data.source == ("demo" if shape == "tiny_t5" else "meqsum")
        assert cfg.trainer.accelerator == ("auto" if shape == "tiny_t5" else "gpu")
        assert isinstance(cfg.adapter.alpha, float) and cfg.adapter.r
        seen.append((cfg.adapter, cfg.optim.lr))
    assert len(seen) == JOBS[name] and all(seen.count(entry) == 1 for entry in seen)


@pytest.mark.parametrize("shape", PLACES)
def test_matched_sets_lie_within_one_rank_of_the_budget(shape):
    config = shape_config(shape)
    parameters = {"tiny_t5": 4_591_360, "flan_t5_large": 783_150_080}[shape]
    budget = int(0.03 * parameters)
    ranks = []
    for point in points(sweeper_params("train", "ablation_matched")):
        adapter = resolved(shape, "experiment=ablation_matched", *point).adapter
        modules = select_modules(config, adapter)
        r = adapter.r or 0
        count = adapter_parameter_count(modules, r, adapter.method)
        assert count <= budget < adapter_parameter_count(modules, r + 1, adapter.method)
        assert count > 0.9 * budget
        assert adapter.alpha == 2 * r
        ranks.append(r)
    assert ranks == {"tiny_t5": [19, 12, 9, 11, 5], "flan_t5_large": [79, 53, 39, 42, 20]}[shape]


@pytest.mark.parametrize(
    ("policy", "scales"),
    [
        ([], [2.0, 2.0, 2.0]),
        (["adapter.alpha=16"], [8.0, 2.0, 0.5]),
        (["adapter=rslora", "adapter.alpha=16"], [16 / 2**0.5, 16 / 8**0.5, 16 / 32**0.5]),
    ],
    ids=["fixed alpha / r", "fixed alpha", "rslora"],
)
def test_alpha_policies_of_the_rank_ablation(policy, scales):
    found = []
    for r in (2, 8, 32):
        adapter = resolved("tiny_t5", "experiment=ablation_rank", *policy, f"adapter.r={r}").adapter
        assert adapter.alpha is not None
        found.append(adapter.alpha / (r**0.5 if adapter.method == "rslora" else r))
    assert found == pytest.approx(scales)


def test_all_alpha_policies_at_once_are_a_grid():
    ranks = sweeper_params("train", "ablation_rank")["adapter.r"]
    params = {"adapter": "lora,rslora", "adapter.alpha": "16,2r", "adapter.r": ranks}
    found = [resolved("tiny_t5", "experiment=ablation_rank", *p).adapter for p in points(params)]
    assert len(found) == 20
    # Where 2 r is 16 both policies are the same training.
    assert len({(a.method, a.r, a.alpha) for a in found}) == 18
