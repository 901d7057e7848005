"""A run is recognised by what was computed, not by where, when or by how many."""

import pytest

from meqsum_lightning.config.compose import build_config
from meqsum_lightning.runs.hashing import config_hash


def hashed(*overrides: str, data: str = "rows") -> str:
    return config_hash(build_config("train", overrides).model_dump(by_alias=True), data)


@pytest.mark.parametrize(
    "override",
    [
        "output_dir=there",
        "data.workers=3",
        "logger=[csv,tensorboard]",
        "trainer.progress=none",
        "adapter.alpha=16",
        "adapter.r=8",
    ],
)
def test_what_does_not_count(override):
    assert hashed(override) == hashed()


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "adapter.r=4",
        "adapter=dora",
        "data.split_seed=1",
        "optim.lr=1e-5",
        "model.dropout=0.0",
    ],
)
def test_what_counts(override):
    assert hashed(override) != hashed()


def test_the_path_of_the_data_does_not_count_but_its_rows_do():
    one = hashed("data=files", "data.path=a.csv")
    assert one == hashed("data=files", "data.path=b.csv")
    assert one != hashed("data=files", "data.path=a.csv", data="other rows")
