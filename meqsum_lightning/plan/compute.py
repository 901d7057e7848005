"""Floating-point operations of a micro-batch, and which blocks its gradients reach.

Shapes only; bytes are `memory`'s business.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from meqsum_lightning.config.schema import AdapterConfig, DataConfig
from meqsum_lightning.models.targets import LinearLayer, TargetModule, linear_layers

if TYPE_CHECKING:
    from transformers import PretrainedConfig

BlockKey = tuple[str, int]  # side, number
Parts = dict[str, dict[str, LinearLayer]]  # part -> role -> layer


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of one micro-batch.

    Attributes:
        forward: The forward pass.
        backward: The backward pass, without recomputation.
        live: Forward cost of each block whose output asks for gradients: what checkpointing
            recomputes.
    """

    forward: int
    backward: int
    live: dict[BlockKey, int]


def count_operations(
    config: "PretrainedConfig",
    data: DataConfig,
    adapter: AdapterConfig,
    modules: tuple[TargetModule, ...],
) -> Operations:
    """Count the matrix products of a micro-batch at the configured lengths: 2 m n k each.

    A linear layer costs one product forward; backward one for its input where something below is
    trained, and one for its weight where that is trained itself (Kaplan et al. 2020,
    arXiv:2001.08361, section 2.1, with the frozen parts left out); attention two products forward,
    up to four backward. Recomputation repeats the forward pass of a block.
    """
    lengths = {"encoder": data.max_source_length, "decoder": data.max_target_length}
    counter = _Counter(adapter, modules, data.micro_batch_size)
    # Whether what each side has computed so far asks for gradients.
    grads = dict.fromkeys(lengths, counter.full)
    live: dict[BlockKey, int] = {}
    for key, parts in blocks(config).items():
        side = key[0]
        before, length, grad = counter.forward, lengths[side], grads[side]
        grad |= counter.attention(parts["self"], length, length, grad, grad)
        if side == "decoder":
            grad |= counter.attention(
                parts["cross"], length, lengths["encoder"], grad, grads["encoder"]
            )
        grad |= counter.feed_forward(parts["ffn"], length, grad)
        grads[side] = grad
        if grad:
            live[key] = counter.forward - before
    tokens = data.micro_batch_size * lengths["decoder"]
    logits = 2 * tokens * config.d_model * config.vocab_size
    return Operations(
        forward=counter.forward + logits,
        backward=counter.backward + logits * (grads["decoder"] + counter.full),
        live=live,
    )


def blocks(config: "PretrainedConfig") -> dict[BlockKey, Parts]:
    """The linear layers by block, encoder first."""
    found: dict[BlockKey, Parts] = {}
    for layer in linear_layers(config):
        parts = found.setdefault((layer.side, layer.block), {})
        parts.setdefault(layer.part, {})[layer.role] = layer
    return found


class _Counter:
    """Walks a model forward and adds up products; knows where gradients have to go."""

    def __init__(
        self, adapter: AdapterConfig, modules: tuple[TargetModule, ...], batch: int
    ) -> None:
        self.adapter = adapter
        self.adapted = {m.name for m in modules}
        self.full = adapter.method == "full"
        self.batch = batch
        self.forward = 0
        self.backward = 0

    def linear(self, layer: LinearLayer, tokens: int, grad: bool) -> bool:
        """One layer on `tokens` tokens. `grad` and the answer: input, output ask for gradients."""
        product = 2 * tokens * layer.in_features * layer.out_features
        self.forward += product
        self.backward += product * (grad + self.full)
        if layer.name not in self.adapted:
            return grad or self.full
        r = self.adapter.r or 0
        down, up = 2 * tokens * layer.in_features * r, 2 * tokens * r * layer.out_features
        self.forward += down + up
        self.backward += down * (1 + grad) + 2 * up
        if self.adapter.method == "pissa":  # the frozen starting point
            self.forward += down + up
            self.backward += (down + up) * grad
        if self.adapter.method == "dora":
            # PEFT multiplies B A out for its norm, and repeats W x on dropped input.
            self.forward += 2 * layer.in_features * r * (layer.in_features + layer.out_features)
            if self.adapter.dropout:
                self.forward += product
                self.backward += product * grad
        return True

    def attention(
        self,
        layers: dict[str, LinearLayer],
        queries: int,
        keys: int,
        grad: bool,
        keys_grad: bool,
    ) -> bool:
        """q, k, v, two products, o; lengths per row."""
        q = self.linear(layers["q"], self.batch * queries, grad)
        k = self.linear(layers["k"], self.batch * keys, keys_grad)
        v = self.linear(layers["v"], self.batch * keys, keys_grad)
        product = 2 * self.batch * queries * keys * layers["q"].out_features
        self.forward += 2 * product
        weights = q or k
        self.backward += product * (q + k + weights + v)
        return self.linear(layers["o"], self.batch * queries, weights or v)

    def feed_forward(self, layers: dict[str, LinearLayer], length: int, grad: bool) -> bool:
        tokens = self.batch * length
        inner = [self.linear(layers[n], tokens, grad) for n in ("gate", "up") if n in layers]
        return self.linear(layers["down"], tokens, any(inner))
