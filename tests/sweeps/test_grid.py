"""Combinations of a sweep: every list form, experiments that bring a grid, what is refused."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meqsum_lightning.errors import UserError
from meqsum_lightning.sweeps.grid import expand


def overrides(*words):
    return [combination.overrides for combination in expand(list(words))]


def test_the_last_key_moves_fastest():
    assert overrides("adapter.r=4,8", "seed=0,1") == [
        ("adapter.r=4", "seed=0"),
        ("adapter.r=4", "seed=1"),
        ("adapter.r=8", "seed=0"),
        ("adapter.r=8", "seed=1"),
    ]


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("adapter.target_modules=[q,v],[q,k,v,o]", ["[q,v]", "[q,k,v,o]"]),
        ("adapter.target_modules=q,v", ["q", "v"]),
        ("adapter.target_modules=qv,[q,k],all", ["qv", "[q,k]", "all"]),
        ("adapter.layers=[0],[1,2],null", ["[0]", "[1,2]", "null"]),
        ("adapter.r=choice(1,2)", ["1", "2"]),
        ("adapter.r=range(1,4)", ["1", "2", "3"]),
        ("adapter.r=2,2,4", ["2", "4"]),
        ("+adapter.r=1,2", ["1", "2"]),
        ("++adapter.r=1,2", ["1", "2"]),
        ("data.split=800_100_100,folds", ['"800_100_100"', "folds"]),
        ("adapter=lora,dora", ["lora", "dora"]),
        ("model=glob(flan_t5_*)", ["flan_t5_base", "flan_t5_large", "flan_t5_small"]),
        ("model=glob(*,exclude=[*large,bart*,flan*])", ["tiny_t5"]),
        ("data.prompt='a, b',c", ["'a, b'", "c"]),
        ("logger=[csv,wandb],csv", ["[csv,wandb]", "csv"]),
    ],
)
def test_every_form_of_a_list(word, values):
    key = word.partition("=")[0].lstrip("+")
    assert overrides(word) == [(f"{key}={value}",) for value in values]


@given(
    st.lists(st.integers(1, 99), min_size=1, max_size=5, unique=True),
    st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True),
)
def test_a_grid_is_a_product(ranks, seeds):
    found = overrides(f"adapter.r={','.join(map(str, ranks))}", f"seed={','.join(map(str, seeds))}")
    expected = itertools.product(ranks, seeds)
    assert found == [(f"adapter.r={r}", f"seed={seed}") for r, seed in expected]


def test_a_very_long_list():
    assert len(overrides(f"seed={','.join(map(str, range(3000)))}")) == 3000


def test_only_what_has_several_values_counts_as_different():
    (first, second) = expand(["adapter.r=4,8", "optim.lr=0.1"])
    assert (first.values, second.values) == ({"adapter.r": "4"}, {"adapter.r": "8"})


def test_an_experiment_brings_its_grid_and_typed_keys_replace_it():
    assert len(overrides("experiment=ablation_scope")) == 4
    found = overrides("experiment=ablation_scope", "adapter.scope=encoder", "seed=0,1")
    assert [words for words in found if "adapter.scope=encoder" in words] == found
    assert len(found) == 2


def test_several_experiments_each_with_its_grid():
    found = overrides("experiment=ablation_scope,demo")
    assert sum("experiment=demo" in words for words in found) == 1
    assert sum("experiment=ablation_scope" in words for words in found) == 4


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("optim.lr=interval(1,2)", "expected a list such as optim.lr=1,2"),
        ("model=glob(zzz*)", "matches nothing; expected a pattern for bart_base"),
        ("adapter.r=glob(*)", "matches nothing; expected a list of values"),
        ("adapter.r=range(4,4)", "no values"),
        ("sweep.dir=a,b", "holds for a whole sweep"),
        ("sweep.parallel=1,2", "holds for a whole sweep"),
        ("hydra.sweep.dir=x", "expected sweep.dir=DIR"),
        ("hydra.sweep.subdir=x", "expected sweep.dir=DIR"),
        ("output_dir=x", "expected sweep.dir=DIR"),
        ("resume=x", "sweep.resume=last"),
        ("model=tiny_t5,zzz", "model=zzz: no such choice"),
        ("experiment=nothing", "experiment=nothing: no such choice"),
        ("--adapter.r=4", "expected key=value"),
    ],
)
def test_what_is_refused(word, expected):
    with pytest.raises(UserError, match=None) as error:
        expand([word])
    (line,) = error.value.lines
    assert expected in line
