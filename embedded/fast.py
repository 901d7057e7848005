"""Makes pretraining on one CPU thread about twice as fast, with the same mathematics.

Weights and activations are bfloat16 beside float32 master weights, the norm is one function.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5LayerNorm


class RmsNorm(torch.autograd.Function):
    """The norm of T5 with few passes over memory, differentiated by hand."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_().to(x.dtype)
        normed = x * inverse
        ctx.save_for_backward(normed, inverse, weight)
        return normed * weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        normed, inverse, weight = ctx.saved_tensors
        inner = gradient * weight
        mean = (inner * normed).mean(-1, keepdim=True)
        return (inner - normed * mean) * inverse, (gradient * normed).flatten(0, -2).sum(0), None


def speed_up(model: T5ForConditionalGeneration) -> None:
    """Casts the model to bfloat16 and swaps slow parts for equivalent fast ones, in place."""
    model.set_attn_implementation("eager")
    model.to(torch.bfloat16)
    for module in model.modules():
        if isinstance(module, T5LayerNorm):
            module.forward = _norm.__get__(module)
        if hasattr(module, "act"):
            module.act = nn.GELU(approximate="tanh")  # what "gelu_new" computes


class MasterWeights:
    """Float32 copies of bfloat16 parameters, which the optimizer updates."""

    def __init__(self, model: T5ForConditionalGeneration) -> None:
        self.parameters = list(model.parameters())
        self.masters = [nn.Parameter(p.detach().float()) for p in self.parameters]

    def take_gradients(self) -> None:
        """Moves the gradients of the parameters to the masters."""
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            master.grad = parameter.grad.float()
            parameter.grad = None

    @torch.no_grad()
    def give_back(self) -> None:
        """Copies the masters into the parameters."""
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            parameter.copy_(master)


def _norm(self: T5LayerNorm, x: Tensor) -> Tensor:
    return RmsNorm.apply(x, self.weight, self.variance_epsilon)
