"""The measured rate of matrix products, and which device and cores it is measured for."""

import pytest
import torch

from meqsum_lightning.config.compose import build_config
from meqsum_lightning.plan import throughput
from meqsum_lightning.plan.throughput import (
    measure_throughput,
    reference_rate,
    usable_cores,
    usable_device,
    worker_rate,
)


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves 10 ms per product; the count of products."""
    state = {"now": 0.0, "products": 0, "threads": []}
    product = torch.mm

    def mm(left, right):
        state["now"] += 0.01
        state["products"] += 1
        state["threads"].append(torch.get_num_threads())
        return product(left[:2], right)

    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: state["now"])
    measure_throughput.cache_clear()
    yield state
    measure_throughput.cache_clear()


def trainer(*overrides, **changes):
    return build_config("plan", overrides).trainer.model_copy(update=changes)


def test_rate_is_operations_over_time(clock):
    rows, inner, outer = throughput._PRODUCT["cpu"]
    assert measure_throughput("cpu", "32-true", 1) == pytest.approx(2 * rows * inner * outer / 0.01)
    # A quarter of a second, and one product to warm up.
    assert clock["products"] in (26, 27)


def test_measured_once_per_arguments_and_threads_are_put_back(clock):
    before = torch.get_num_threads()
    measure_throughput("cpu", "32-true", 2)
    products = clock["products"]
    measure_throughput("cpu", "32-true", 2)
    assert clock["products"] == products
    assert set(clock["threads"]) == {2}
    assert torch.get_num_threads() == before
    measure_throughput("cpu", "32-true", 1)
    assert clock["products"] > products


def test_real_measurement_is_plausible():
    measure_throughput.cache_clear()
    assert 1e8 < measure_throughput("cpu", "32-true", 1) < 1e14


@pytest.mark.parametrize(
    ("choice", "cuda", "mps", "expected"),
    [
        ("cpu", True, True, "cpu"),
        ("gpu", True, False, "cuda"),
        ("gpu", False, False, None),
        ("gpu", False, True, None),
        ("auto", True, False, "cuda"),
        ("auto", False, False, "cpu"),
        ("auto", False, True, None),
    ],
)
def test_device_is_the_one_the_trainer_would_choose(monkeypatch, choice, cuda, mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert usable_device(trainer(f"trainer={choice}")) == expected


@pytest.mark.parametrize(
    ("changes", "workers", "threads", "share"),
    [
        ({}, 1, 8, 1),
        ({}, 2, 4, 1),
        ({}, 3, 2, 1),
        ({}, 16, 1, 1 / 2),
        ({"threads": 4}, 2, 4, 1),
        ({"threads": 4}, 4, 4, 1 / 2),
        ({"devices": 2}, 2, 2, 1),
    ],
)
def test_workers_share_the_cores(monkeypatch, changes, workers, threads, share):
    monkeypatch.setattr(throughput, "usable_cores", lambda: 8)
    asked = []

    def rate(*arguments):
        asked.append(arguments)
        return 1e9

    config = trainer("trainer=cpu", **changes)
    assert worker_rate(config, "cpu", "32-true", workers, rate) == pytest.approx(1e9 * share)
    assert asked == [("cpu", "32-true", threads)]


def test_workers_share_the_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    config = trainer("trainer=gpu", devices=2)
    rates = [worker_rate(config, "cuda", "bf16-mixed", n, lambda *_: 1e12) for n in (1, 2, 4)]
    assert rates == [1e12, 1e12, 5e11]


def test_reference_is_the_data_sheet_at_the_stated_share():
    assert reference_rate("bf16-mixed") == pytest.approx(109.2e12)
    assert reference_rate("32-true") < reference_rate("16-mixed")
    assert usable_cores() >= 1
