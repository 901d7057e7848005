import math

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft.optimizers import create_loraplus_optimizer
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration, get_scheduler
from transformers.optimization import Adafactor

from meqsum_lightning.config.schema import OptimConfig
from meqsum_lightning.errors import UserError
from meqsum_lightning.models.optim import (
    build_optimizer,
    build_schedule,
    clip_gradients,
    learning_rate_at,
    schedule_factor,
    warmup_steps,
)


def configured(target="torch.optim.AdamW", arguments=None, **changes):
    values = {
        "optimizer": {"_target_": target, **(arguments or {})},
        "lr": 1e-2,
        "lora_plus_ratio": None,
        "weight_decay": 0.1,
        "schedule": "linear",
        "warmup": 0.1,
        "clip_norm": 1.0,
        "label_smoothing": 0.0,
    }
    return OptimConfig.model_validate({**values, **changes})


def adapted(**arguments):
    torch.manual_seed(0)
    config = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    lora = peft.LoraConfig(r=2, target_modules=["q", "shared"], **arguments)
    return peft.get_peft_model(T5ForConditionalGeneration(config), lora)


def by_parameter(model, optimizer, *keys):
    """What the groups say about each parameter, by its name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: tuple(group[key] for key in keys)
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_no_decay_on_biases_and_norms_and_nothing_frozen():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model[2].weight.requires_grad_(False)
    optimizer = build_optimizer(dict(model.named_parameters()), configured())
    assert isinstance(optimizer, torch.optim.AdamW)
    assert by_parameter(model, optimizer, "weight_decay", "lr") == {
        "0.weight": (0.1, 1e-2),
        "0.bias": (0.0, 1e-2),
        "1.weight": (0.0, 1e-2),
        "1.bias": (0.0, 1e-2),
        "2.bias": (0.0, 1e-2),
    }
    assert [group["name"] for group in optimizer.param_groups] == ["main", "main_no_decay"]


def test_lora_plus_rates_are_those_of_peft():
    model = adapted(bias="all")
    ours = build_optimizer(dict(model.named_parameters()), configured(lora_plus_ratio=16.0))
    theirs = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-2, loraplus_lr_ratio=16.0)
    rates = by_parameter(model, ours, "lr")
    assert rates == by_parameter(model, theirs, "lr")
    assert {rate for (rate,) in rates.values()} == {1e-2, 16e-2, 1e-6}
    for name, (rate,) in rates.items():
        if "lora_A" in name:
            assert rate == 1e-2
        if "lora_B" in name:
            assert rate == 16e-2


def test_without_ratio_all_learn_alike():
    model = adapted()
    optimizer = build_optimizer(dict(model.named_parameters()), configured())
    rates = by_parameter(model, optimizer, "lr")
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    assert rates == dict.fromkeys(trained, (1e-2,))


def test_adafactor_and_its_arguments():
    model = nn.Linear(3, 4)
    arguments = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
    optim = configured("transformers.optimization.Adafactor", arguments, weight_decay=0.0)
    optimizer = build_optimizer(dict(model.named_parameters()), optim)
    assert isinstance(optimizer, Adafactor)
    assert all(not group["relative_step"] for group in optimizer.param_groups)
    before = model.weight.detach().clone()
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(model.weight, before)


@pytest.mark.parametrize(
    ("optim", "lines"),
    [
        (
            configured(arguments={"beta": 0.9, "lr": 1.0}),
            ["optim.optimizer.beta=0.9: no argument", "optim.optimizer.lr=1.0: set by another key"],
        ),
        (configured(arguments={"betas": [2.0, 0.9]}), ["optim.optimizer: torch.optim.AdamW"]),
        (configured(arguments={"weight_decay": 0.2}), ["optim.optimizer.weight_decay=0.2"]),
        (configured("torch.optim.Rprop"), ["optim.weight_decay=0.1: torch.optim.Rprop has none"]),
        (configured(lora_plus_ratio=4.0), ["optim.lora_plus_ratio=4.0: no LoRA B"]),
        (configured("torch.optim.Nothing"), ["torch.optim.Nothing"]),
        (configured("torch.optim.lr_scheduler.LambdaLR"), ["LambdaLR"]),
    ],
)
def test_mistakes_are_named(optim, lines):
    with pytest.raises(UserError) as caught:
        build_optimizer(dict(nn.Linear(2, 2).named_parameters()), optim)
    assert len(caught.value.lines) == len(lines)
    for line, expected in zip(caught.value.lines, lines, strict=True):
        assert expected in line


def test_nothing_trained_is_an_error():
    with pytest.raises(ValueError, match="no trained"):
        build_optimizer(
            dict(nn.Linear(2, 2).requires_grad_(False).named_parameters()), configured()
        )


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("warmup", "total"), [(0.0, 7), (0.06, 50), (0.5, 9), (0.0, 1)])
def test_schedule_is_that_of_transformers(schedule, warmup, total):
    optim = configured(schedule=schedule, warmup=warmup)
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=optim.lr)
    ours = build_schedule(optimizer, optim, total)
    other = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=optim.lr)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    theirs = get_scheduler(name, other, math.ceil(warmup * total), total)
    for step in range(total + 1):
        assert ours.get_last_lr() == pytest.approx(theirs.get_last_lr(), abs=1e-12)
        assert learning_rate_at(step, optim, total) == pytest.approx(ours.get_last_lr()[0])
        for pair in ((optimizer, ours), (other, theirs)):
            pair[0].step()
            pair[1].step()


@given(st.sampled_from(["linear", "cosine", "constant"]), st.floats(0, 0.99), st.integers(1, 3000))
def test_schedule_bounds(schedule, warmup, total):
    optim = configured(schedule=schedule, warmup=warmup)
    factors = [schedule_factor(step, optim, total) for step in range(0, total + 3, 7)]
    assert all(0.0 <= factor <= 1.0 for factor in factors)
    warm = warmup_steps(optim, total)
    assert warm == total - 1 or warm - 1 < warmup * total <= warm
    assert warm < total
    assert schedule_factor(warm, optim, total) == 1.0
    if schedule != "constant":
        for step in (total, total + 5):
            assert schedule_factor(step, optim, total) == pytest.approx(0.0, abs=1e-12)


def test_a_single_step_learns():
    assert learning_rate_at(0, configured(warmup=0.06), 1) == 1e-2


@pytest.mark.parametrize("way", ["state", "step"])
def test_schedule_is_restored(way):
    optim = configured("torch.optim.SGD", lora_plus_ratio=4.0)

    def parts():
        model = adapted()
        return build_optimizer(dict(model.named_parameters()), optim)

    optimizer = parts()
    schedule = build_schedule(optimizer, optim, 20)
    for _ in range(8):
        optimizer.step()
        schedule.step()
    restored = parts()
    if way == "state":
        continued = build_schedule(restored, optim, 20)
        continued.load_state_dict(schedule.state_dict())
        restored.load_state_dict(optimizer.state_dict())
    else:
        continued = build_schedule(restored, optim, 20, step=8)
    for _ in range(4):
        assert [group["lr"] for group in restored.param_groups] == [
            group["lr"] for group in optimizer.param_groups
        ]
        for pair in ((optimizer, schedule), (restored, continued)):
            pair[0].step()
            pair[1].step()


def with_gradients(*gradients):
    parameters = [nn.Parameter(torch.zeros(len(gradient))) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.tensor(gradient)
    return parameters


def test_clipping_scales_down_only_and_returns_the_norm():
    parameters = [*with_gradients([3.0], [0.0, 4.0]), nn.Parameter(torch.zeros(2))]
    assert clip_gradients(iter(parameters), 10.0) == pytest.approx(5.0)
    assert parameters[0].grad.item() == 3.0
    assert clip_gradients(iter(parameters), None) == pytest.approx(5.0)
    assert clip_gradients(iter(parameters), 1.0) == pytest.approx(5.0)
    assert clip_gradients(parameters, None) == pytest.approx(1.0, rel=1e-5)
    assert parameters[1].grad.tolist() == pytest.approx([0.0, 0.8], rel=1e-5)


def test_no_gradient_has_norm_zero():
    assert clip_gradients(nn.Linear(2, 2).parameters(), 1.0) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_is_reported(bad):
    parameters = with_gradients([3.0], [bad])
    assert not math.isfinite(clip_gradients(parameters, 1.0))
    assert parameters[0].grad.item() == 3.0
