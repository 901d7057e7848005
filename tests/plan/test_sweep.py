"""The cost of a sweep: steps, seconds, bytes by hand, how jobs spread, and how it is shown."""

import functools
import itertools
import json
import math
import shutil
from io import StringIO

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode
from transformers import T5Config

from meqsum_lightning.config.compose import build_config
from meqsum_lightning.models.adapters import apply_adapter
from meqsum_lightning.models.shapes import random_model
from meqsum_lightning.plan import make_plan, plan_sweep, render_sweep, sweep
from meqsum_lightning.plan.sweep import makespan, total_steps
from meqsum_lightning.plan.throughput import (
    GENERATION_EFFICIENCY,
    JOB_SECONDS,
    LOADING_RATE,
    TRAINING_EFFICIENCY,
    WORKER_SECONDS,
)

RATE = 1e11
DURATIONS = st.lists(st.floats(0, 1e6), min_size=1, max_size=6)


@functools.lru_cache
def composed(*overrides):
    return build_config("train", ["trainer=cpu", "trainer.threads=1", *overrides])


def planned(points, parallel=1, keep="best", rows=(400, 100, 100), **options):
    counts = [[number] * len(points) for number in rows]
    options.setdefault("throughput", lambda *_: RATE)
    return plan_sweep(points, *counts, parallel, keep, **options)


def one(*overrides, **options):
    return planned([("job", composed(*overrides))], **options).jobs[0]


def grid(*ranks):
    """Jobs that differ in rank; composing each anew would take the tests' time."""
    return [(f"r-{r}", changed(composed("adapter.r=1"), "adapter", r=r)) for r in ranks]


def changed(cfg, part, **values):
    """The config with other values, without its checks."""
    return cfg.model_copy(update={part: getattr(cfg, part).model_copy(update=values)})


def shown(plan, width=80):
    stream = StringIO()
    render_sweep(plan, Console(file=stream, width=width))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("overrides", "rows", "steps", "validations"),
    [
        ([], 400, 75, 3),
        ([], 401, 78, 3),
        (["trainer.max_epochs=10", "trainer.check_val_every_n_epoch=4"], 400, 250, 2),
        (["trainer.max_steps=30"], 400, 30, 2),
        (["trainer.max_steps=900"], 400, 75, 3),
        (["trainer.limit_train_batches=4"], 400, 12, 3),
        (["trainer.limit_train_batches=400"], 400, 75, 3),
        (["trainer.overfit_rows=20"], 400, 6, 3),
        (["adapter=none"], 400, 0, 1),
    ],
)
def test_steps_and_validations(overrides, rows, steps, validations):
    cfg = composed("data.global_batch_size=16", *overrides)
    assert total_steps(cfg, rows) == steps
    job = planned([("job", cfg)], rows=(rows, 100, 100)).jobs[0]
    assert (job.steps, job.validations) == (steps, validations)


def test_steps_are_those_of_the_data_module(small):
    from meqsum_lightning.engine.parts import load_data

    for overrides in ([], ["trainer.max_steps=7"], ["trainer.overfit_rows=5"]):
        cfg = small(*overrides)
        data = load_data(cfg)
        assert total_steps(cfg, len(data.split.train)) == data.module.total_steps


def test_seconds_by_hand():
    cfg = composed("test_base=false")
    plan = make_plan(cfg)
    job = one("test_base=false")
    assert job.training == job.steps * plan.compute.step
    start = JOB_SECONDS + plan.memory.weights / LOADING_RATE
    computing = job.training / TRAINING_EFFICIENCY + job.scoring / GENERATION_EFFICIENCY
    assert job.seconds == pytest.approx(start + computing / RATE)
    swept = planned([("job", cfg)])
    assert swept.seconds == pytest.approx(job.seconds + WORKER_SECONDS)
    assert swept.job_seconds == job.seconds


def test_processes_share_the_work(monkeypatch):
    monkeypatch.setattr("meqsum_lightning.plan.throughput.usable_cores", lambda: 8)
    alone = one()
    # Several devices are not accepted yet; the arithmetic is ready for them.
    both = planned([("job", changed(composed(), "trainer", devices=2))]).jobs[0]
    saved = alone.seconds - both.seconds
    assert saved == pytest.approx(
        (alone.training / TRAINING_EFFICIENCY + alone.scoring / GENERATION_EFFICIENCY) / RATE / 2
    )


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_is_what_torch_counts(monkeypatch, beams):
    config = T5Config(
        vocab_size=67,
        d_model=40,
        d_kv=8,
        d_ff=56,
        num_layers=3,
        num_decoder_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        dropout_rate=0.0,
    )
    monkeypatch.setattr("meqsum_lightning.plan.estimate.load_config", lambda model: config)
    cfg = composed(
        "model.weights=random",
        "adapter.r=3",
        "adapter.target_modules=all",
        "data.max_source_length=24",
        "data.max_target_length=10",
        "data.eval_batch_size=2",
        "generation.max_new_tokens=12",
        f"generation.test_num_beams={beams}",
    )
    counted = sweep._operations(cfg, make_plan(cfg), (24, 10))[2]
    model = apply_adapter(random_model(config, torch.float32, 0), cfg.adapter, 0).eval()
    model.set_attn_implementation("eager")
    source = torch.randint(3, 60, (2, 24), generator=torch.Generator().manual_seed(0))
    target = torch.randint(3, 60, (2, 10), generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=source, labels=target, use_cache=False)
        model.generate(
            input_ids=source, num_beams=beams, min_new_tokens=12, max_new_tokens=12, do_sample=False
        )
    real = counter.get_total_flops()
    # Decoding attends to what has been written, the estimate to the whole length.
    assert real <= counted <= 1.03 * real


def test_scoring_counts_validations_tests_and_limits():
    def scoring(*overrides, **options):
        return one("generation.test_num_beams=1", *overrides, **options).scoring

    # Greedy everywhere: 3 validations, a test and the backbone's, of 100 rows each.
    batch = sweep._operations(
        composed("generation.test_num_beams=1"), make_plan(composed()), (192, 48)
    )[1]
    rows = batch / 50
    assert scoring() == pytest.approx(500 * rows)
    assert scoring("test_base=false") == pytest.approx(400 * rows)
    assert scoring("test=false") == pytest.approx(300 * rows)
    assert scoring("trainer.limit_val_batches=1") == pytest.approx(350 * rows)
    assert scoring("trainer.limit_test_batches=1") == pytest.approx(400 * rows)
    assert scoring("trainer.overfit_rows=20") == pytest.approx(260 * rows)
    assert one().scoring > scoring()
    # Without an adapter validation runs once, by the test's beams, and the test once.
    bare = composed("adapter=none")
    plain = sweep._operations(bare, make_plan(bare), (192, 48))[2] / 50
    assert one("adapter=none").scoring == pytest.approx(200 * plain)
    assert one("adapter=none", "trainer.limit_val_batches=1").scoring == pytest.approx(150 * plain)


def test_the_backbone_is_scored_once_for_jobs_that_share_its_scores():
    jobs = planned(grid(4, 4)).jobs
    assert jobs[0].scoring - jobs[1].scoring == pytest.approx(
        jobs[1].scoring - planned([("a", composed("adapter.r=4", "test=false"))]).jobs[0].scoring
    )
    folds = [(str(n), composed(f"data.split_seed={n}")) for n in range(2)]
    assert len({job.scoring for job in planned(folds).jobs}) == 1
    uncached = [("a", composed("data.cache=false"))] * 2
    assert len({job.scoring for job in planned(uncached).jobs}) == 1


def test_mean_lengths_cost_less_and_never_more_than_the_limits():
    limits, typical = one(), one(lengths=[(89.6, 12.8)])
    assert typical.seconds < 0.7 * limits.seconds
    assert typical.memory == limits.memory
    assert one(lengths=[(900.0, 900.0)]).training == limits.training
    # 89.6 x 1.1 and 12.8 x 1.65, rounded up to multiples of 8: a plan at those lengths.
    same = make_plan(composed("data.max_source_length=104", "data.max_target_length=24"))
    assert typical.training == pytest.approx(typical.steps * same.compute.step)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_checkpoints_are_as_large_as_real_ones(finished_run, small, method):
    cfg = small(f"adapter={method}", "adapter.r=4")
    job = planned([("job", cfg)], rows=(24, 8, 8)).jobs[0]
    if method == "lora":
        real = (finished_run / "checkpoints" / "best.ckpt").stat().st_size
        assert job.checkpoint == pytest.approx(real, rel=0.15)
    else:
        assert job.checkpoint > planned([("job", small("adapter.r=4"))]).jobs[0].checkpoint


def test_disk_by_hand():
    points = grid(2, 4, 8)
    best, every = planned(points, 2), planned(points, 2, keep="all")
    small_, middle, large = (job.checkpoint for job in best.jobs)
    files = sum(job.files for job in best.jobs)
    assert best.disk_end == files + large
    assert every.disk_end == files + small_ + middle + large
    assert best.disk_peak == best.disk_end + 4 * (middle + large)
    assert every.disk_peak == every.disk_end + 4 * (middle + large)
    assert best.disk_end < every.disk_end
    pruned = planned([("a", composed("checkpoint.prune=true"))] * 2, keep="all")
    assert pruned.disk_end == sum(job.files for job in pruned.jobs)
    assert planned([("none", composed("adapter=none"))]).jobs[0].checkpoint == 0


def test_memory_is_of_all_workers():
    points = grid(4, 64)
    one_by_one, together = planned(points, 1), planned(points, 2)
    assert one_by_one.memory == max(job.memory for job in one_by_one.jobs)
    assert together.memory == 2 * one_by_one.memory
    assert one_by_one.memory_limit == psutil.virtual_memory().total
    # More workers than jobs would stand idle.
    assert planned(points, 7).workers == 2


def test_short_memory_and_disk_are_one_line_each(monkeypatch, tmp_path):
    missing = tmp_path / "not" / "there"
    assert planned(grid(4), folder=missing).warnings == []
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    limit = psutil.virtual_memory()._replace(total=2**20)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: limit)
    plan = planned(grid(4), folder=missing)
    assert plan.folder == str(tmp_path.resolve())
    disk, memory = plan.warnings
    assert disk.startswith("disk: ") and "1000 B free" in disk
    assert memory.startswith("memory: ") and "1.00 MiB there" in memory
    assert "warning: disk" in shown(plan) and "warning: memory" in shown(plan)


@given(DURATIONS, st.integers(1, 4))
def test_makespan_stays_in_its_bounds(seconds, workers):
    found = makespan(seconds, workers)
    slack = 1e-9 * (1 + sum(seconds))
    assert found >= max(seconds) - slack
    assert found >= sum(seconds) / workers - slack
    assert found <= sum(seconds) + slack


@given(DURATIONS, st.integers(1, 3))
def test_makespan_is_near_the_best_there_is(seconds, workers):
    best = math.inf
    for places in itertools.product(range(workers), repeat=len(seconds)):
        loads = [0.0] * workers
        for place, duration in zip(places, seconds, strict=True):
            loads[place] += duration
        best = min(best, max(loads))
    bound = (4 / 3 - 1 / (3 * workers)) * best
    assert best * (1 - 1e-9) <= makespan(seconds, workers) <= bound * (1 + 1e-9)


def test_each_distinct_shape_is_worked_out_once(monkeypatch):
    calls = []

    def counted(cfg):
        calls.append(cfg)
        return make_plan(cfg)

    monkeypatch.setattr(sweep, "make_plan", counted)
    shapes = [
        composed(f"adapter.r={r}", f"adapter.target_modules={t}")
        for r in (4, 8)
        for t in ("qv", "all")
    ]
    alike = [
        composed("adapter.r=4", "adapter.target_modules=qv", word)
        for word in (
            "adapter.alpha=7.0",
            "optim.lr=0.01",
            "seed=3",
            "trainer.max_epochs=9",
            "name=other",
        )
    ]
    plan = planned([(str(n), cfg) for n, cfg in enumerate((shapes + alike) * 60)])
    assert len(plan.jobs) == 540
    assert len(calls) == 4
    calls.clear()
    planned([("a", composed()), ("b", composed("model.activation_checkpointing=true"))])
    planned([("a", composed()), ("b", composed("optim=adafactor"))])
    planned([("a", composed()), ("b", composed("data.micro_batch_size=8"))])
    assert len(calls) == 6


def test_alike_jobs_share_their_figures_with_a_plan_of_their_own():
    cfg = composed("adapter.r=8", "adapter.alpha=3.0")
    plan = make_plan(cfg)
    job = planned([*grid(8), ("other", cfg)]).jobs[1]
    assert (job.trainable, job.training) == (plan.trainable, job.steps * plan.compute.step)


def test_hours_are_unknown_without_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = build_config("train", ["trainer=gpu"])

    def never(*_):
        raise AssertionError("nothing to measure")

    plan = planned([("a", cfg), ("b", cfg)], throughput=never)
    assert (plan.seconds, plan.job_seconds, plan.memory_limit) == (None, None, None)
    work = sum(job.training + job.scoring for job in plan.jobs)
    assert plan.guide_seconds == pytest.approx(work / (0.35 * 312e12))
    text = shown(plan)
    assert "unknown" in text and "A100" in text and "guide" in text
    assert "compute each" in text and "time each" not in text
    assert json.loads(json.dumps(plan.to_dict()))["seconds"] is None


def test_report_fits_eighty_columns_and_json():
    long_name = "r-64_target-modules-" + "+".join("abcdefgh" * 9)
    points = [
        *grid(4, 8),
        (long_name, composed("adapter.r=64")),
        ("[bold]", composed("adapter.r=2")),
    ]
    plan = planned(points, 2)
    for width in (80, 200):
        text = shown(plan, width)
        assert max(map(len, text.splitlines())) <= 80
        assert "sweep of 4 jobs" in text and "2 jobs" in text and "[bold]" in text
        assert "\x1b" not in text
    for job in plan.jobs:
        assert f"{job.trainable:,}" in shown(plan)
    content = json.loads(json.dumps(plan.to_dict()))
    assert content["seconds"] == plan.seconds
    assert [job["name"] for job in content["jobs"]] == [name for name, _ in points]


def test_alike_jobs_take_one_line():
    points = [(f"lr-{n}", composed("adapter.r=4", f"optim.lr={n}e-3")) for n in range(1, 6)]
    text = shown(planned(points))
    assert "lr-1 and 4 alike" in text
    assert "lr-2" not in text


def test_long_sweeps_keep_their_extremes():
    text = shown(planned(grid(*range(1, 41))))
    assert "… and 25 more" in text
    lines = [line.split()[0] for line in text.splitlines() if line.strip().startswith("r-")]
    assert lines[:2] == ["r-40", "r-39"]
    assert lines[-1] == "r-1"
    assert len(lines) == 15


def test_an_empty_sweep_costs_nothing():
    plan = planned([])
    assert (plan.seconds, plan.disk_peak, plan.memory) == (0, 0, 0)
    assert "0 jobs" in shown(plan)
