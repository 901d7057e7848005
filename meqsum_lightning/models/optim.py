"""Optimizer with its parameter groups, learning-rate schedule and gradient clipping.

Which parameters are trained is decided by the adapter; when to step, by the module.
"""

import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from meqsum_lightning.config.schema import OptimConfig
from meqsum_lightning.errors import UserError

LORA_EMBEDDING_LR = 1e-6
"""LoRA+'s learning rate of adapted embeddings, as in its authors' code and in PEFT."""

# Set from the other keys of `optim`, so an argument of the same name would be a second value.
_OWN_ARGUMENTS = {"lr": "optim.lr", "weight_decay": "optim.weight_decay"}


def build_optimizer(named_parameters: Mapping[str, nn.Parameter], optim: OptimConfig) -> Optimizer:
    """Builds the configured optimizer over the trained parameters.

    Weight decay leaves out biases and all one-dimensional parameters (norms, DoRA magnitudes). With
    LoRA+ (Hayou et al. 2024, arXiv:2402.12354) the B matrices and, as in PEFT, one-dimensional
    parameters learn at `lr * lora_plus_ratio`, adapted embeddings at `LORA_EMBEDDING_LR`, the rest
    at `lr`. Each group carries a `name`.

    Args:
        named_parameters: Parameters by their name in the model; frozen ones are left out.
        optim: The optimizer's part of the config.

    Returns:
        The optimizer.

    Raises:
        UserError: The class can't be used or doesn't take the arguments, or LoRA+ has no B matrix.
        ValueError: No parameter is trained.
    """
    from meqsum_lightning.config.components import build, load_class

    trained = {name: value for name, value in named_parameters.items() if value.requires_grad}
    if not trained:
        raise ValueError("no trained parameters: an optimizer needs at least one")
    optimizer_class = load_class(optim.optimizer.target, Optimizer)
    arguments = _checked_arguments(optimizer_class, optim)
    groups = _parameter_groups(trained, optim)
    built: Optimizer = build(
        "optim.optimizer", optim.optimizer.target, Optimizer, {"params": groups, **arguments}
    )
    return built


def build_schedule(
    optimizer: Optimizer, optim: OptimConfig, total_steps: int, step: int = 0
) -> LambdaLR:
    """Builds the schedule; each group's own learning rate is multiplied by `schedule_factor`.

    The factor depends on the step alone, so a schedule is restored by its state or by `step`.

    Args:
        optimizer: Optimizer whose groups hold their peak learning rates.
        optim: The optimizer's part of the config.
        total_steps: Optimizer steps of the whole training.
        step: Optimizer steps that were already taken.

    Returns:
        A scheduler to be stepped once after each optimizer step.
    """

    def factor(at: int) -> float:
        return schedule_factor(at, optim, total_steps)

    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    return LambdaLR(optimizer, factor, last_epoch=step - 1)


def learning_rate_at(step: int, optim: OptimConfig, total_steps: int) -> float:
    """Learning rate of the optimizer step number `step` (from 0), of groups that learn at `lr`.

    Args:
        step: Optimizer steps taken before.
        optim: The optimizer's part of the config.
        total_steps: Optimizer steps of the whole training.
    """
    return optim.lr * schedule_factor(step, optim, total_steps)


def schedule_factor(step: int, optim: OptimConfig, total_steps: int) -> float:
    """Share of the peak learning rate, in [0, 1]; the formulas are those of transformers.

    The rate rises linearly from 0 over the first `warmup_steps`, then stays, falls linearly, or
    falls along half a cosine; the falling ones reach 0 after `total_steps` and stay there.

    Args:
        step: Optimizer steps taken before, from 0.
        optim: The optimizer's part of the config.
        total_steps: Optimizer steps of the whole training.
    """
    warm = warmup_steps(optim, total_steps)
    if step < warm:
        return step / warm
    if optim.schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warm) / max(1, total_steps - warm))
    if optim.schedule == "linear":
        return 1.0 - progress
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def warmup_steps(optim: OptimConfig, total_steps: int) -> int:
    """Optimizer steps of the warm-up: the fraction of all steps, rounded up; never all of them."""
    # The first step of a warm-up has rate 0: a training of one step would learn nothing.
    return min(math.ceil(optim.warmup * total_steps), max(0, total_steps - 1))


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float | None) -> float:
    """Scales gradients down so that their common norm is at most `max_norm`.

    A norm that is not finite leaves the gradients alone: the caller sees it and decides.

    Args:
        parameters: Parameters; those without a gradient are skipped.
        max_norm: Largest L2 norm; None only measures.

    Returns:
        L2 norm of all gradients before clipping; 0 if there are none.
    """
    parameters = list(parameters)
    gradients = [item.grad for item in parameters if item.grad is not None]
    if not gradients:
        return 0.0
    norm = torch.nn.utils.get_total_norm(gradients)
    value = float(norm)
    if max_norm is not None and math.isfinite(value):
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return value


def _checked_arguments(optimizer_class: type, optim: OptimConfig) -> dict[str, Any]:
    """Keyword arguments for the optimizer class, or a line for each that it doesn't take."""
    target, arguments = optim.optimizer.target, optim.optimizer.arguments
    signature = inspect.signature(optimizer_class).parameters
    open_ended = any(item.kind is item.VAR_KEYWORD for item in signature.values())
    accepted = [name for name in signature if name not in ("params", *_OWN_ARGUMENTS)]
    mistakes = []
    for name, value in arguments.items():
        if name in _OWN_ARGUMENTS:
            reason, expected = "set by another key", f"{_OWN_ARGUMENTS[name]}=..."
        elif name not in accepted and not open_ended:
            reason, expected = f"no argument of {target}", f"one of {', '.join(accepted)}"
        else:
            continue
        mistakes.append(f"optim.optimizer.{name}={value}: {reason}; expected {expected}")
    takes_decay = "weight_decay" in signature or open_ended
    if optim.weight_decay and not takes_decay:
        mistakes.append(
            f"optim.weight_decay={optim.weight_decay}: {target} has none; "
            "expected 0 or another optimizer"
        )
    if mistakes:
        raise UserError(mistakes)
    own: dict[str, Any] = {"lr": optim.lr}
    if takes_decay:
        own["weight_decay"] = optim.weight_decay
    return {**own, **arguments}


def _parameter_groups(
    trained: Mapping[str, nn.Parameter], optim: OptimConfig
) -> list[dict[str, Any]]:
    """Groups by learning rate and weight decay, in a fixed order, none of them empty."""
    ratio = optim.lora_plus_ratio
    if ratio is not None and not any("lora_B" in name for name in trained):
        raise UserError(
            f"optim.lora_plus_ratio={ratio}: no LoRA B matrix is trained; "
            "expected null or an adapter that has some"
        )
    rates = {"main": optim.lr, "lora_B": optim.lr * (ratio or 1.0), "embedding": LORA_EMBEDDING_LR}
    groups: dict[str, dict[str, Any]] = {}
    for rate, lr in rates.items():
        for suffix, decay in (("", optim.weight_decay), ("_no_decay", 0.0)):
            groups[rate + suffix] = {"params": [], "lr": lr, "name": rate + suffix}
            if optim.weight_decay:
                groups[rate + suffix]["weight_decay"] = decay
    for name, parameter in trained.items():
        undecayed = parameter.ndim <= 1 or name.endswith("bias")
        rate = "main" if ratio is None else _lora_plus_rate(name, parameter)
        groups[rate + ("_no_decay" if undecayed else "")]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def _lora_plus_rate(name: str, parameter: nn.Parameter) -> str:
    """Which learning rate LoRA+ gives to a parameter; as PEFT's `create_loraplus_optimizer`."""
    if "lora_embedding_" in name:
        return "embedding"
    return "lora_B" if "lora_B" in name or parameter.ndim == 1 else "main"
