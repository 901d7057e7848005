"""Several adapters on one frozen backbone, trained and run side by side.

What one packed layer computes is `packed_layer`; when which adapter steps is the engine's matter.
"""

import copy
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn

from meqsum_lightning.config.schema import AdapterConfig
from meqsum_lightning.errors import UserError
from meqsum_lightning.models.adapters import copy_state, peft_config, write_peft_folder
from meqsum_lightning.models.dropout import Restored, key_slot, recompute_context
from meqsum_lightning.models.packed_layer import Branch, Grouping, PackedLinear, RowSlot
from meqsum_lightning.models.targets import select_modules

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ADAPTER = "default"
_PREFIX = "base_model.model."
_REASONS = {
    "pissa": (
        "its update is measured from a frozen principal part of its own, a second branch in every "
        "layer that a pack doesn't hold"
    ),
    "dora": "it needs the norm of each merged weight, which is another one for every adapter",
    "full": "it trains the backbone itself, so that there is no frozen base to share",
    "none": "it trains nothing",
}


def packable(adapter: AdapterConfig) -> str | None:
    """Why an adapter can't share a backbone with others, in words; None if it can.

    LoRA and rsLoRA can, of any rank, scale, dropout and targets.
    """
    return _REASONS.get(adapter.method)


class PackedModel(nn.Module):
    """A frozen backbone with several adapters, each acting on its own rows of a batch.

    Adapters are known by a number of the caller's choice and may come and go. Each keeps weights
    of its own, by the names and with the initial values that `apply_adapter` gives them alone, so
    that optimizers and checkpoints of packed and single training can be exchanged.

        pack = PackedModel(backbone)
        pack.add(0, adapter, seed=1)
        pack.add(1, other, seed=2)
        with pack.rows([8, 8]):
            logits = pack(input_ids=..., labels=...).logits  # rows of adapter 0, then of 1

    Args:
        backbone: Loaded by `load_backbone`. Its linear layers are replaced while an adapter needs
            them, and put back as they were.
        base_name: What the PEFT folders write down as their base (see `adapter_base_name`).
        base_revision: Its revision.
        grouping: Which branches share a batched product; None: chosen by device and size.
    """

    def __init__(
        self,
        backbone: "PreTrainedModel",
        base_name: str | None = None,
        base_revision: str | None = None,
        grouping: Grouping | None = None,
    ):
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.base_name = base_name
        self.base_revision = base_revision
        self.grouping = grouping
        self._row_slot = RowSlot()
        self._key_slot = key_slot(self)
        self._configs: dict[int, LoraConfig] = {}
        self._targets: dict[int, tuple[str, ...]] = {}
        # Only reentrant checkpointing needs embeddings that ask for gradients.
        backbone.disable_input_require_grads()
        if backbone.is_activation_checkpointing:
            backbone.activation_checkpointing_enable(
                {"use_reentrant": False, "context_fn": self.recompute_context()}
            )
            backbone.disable_input_require_grads()
        self.train()

    @property
    def adapters(self) -> tuple[int, ...]:
        """Numbers of the adapters, in the order in which they came."""
        return tuple(self._configs)

    @property
    def config(self) -> Any:
        """The backbone's configuration."""
        return self.backbone.config

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The backbone's forward pass; to be called inside `rows`."""
        return self.backbone(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Tensor:
        """The backbone's generation, for all adapters at once; to be called inside `rows`."""
        return cast(Tensor, self.backbone.generate(*args, **kwargs))

    def rows(
        self, sizes: Sequence[int], order: Sequence[int] | None = None
    ) -> AbstractContextManager[None]:
        """Says whose rows the batches inside the block hold.

        With generation the rows are those given to `generate`: beams are accounted for.

        Args:
            sizes: Rows of each adapter, one after the other; 0 where one has none.
            order: The adapters that the sizes belong to; None: all, as they came.

        Raises:
            ValueError: Numbers that don't match, or an adapter that isn't here.
        """
        order = self.adapters if order is None else tuple(order)
        unknown = [index for index in order if index not in self._configs]
        if unknown:
            raise ValueError(f"no adapter {unknown[0]} in this pack, only {self.adapters}")
        return self._row_slot.groups(order, sizes)

    def backbone_alone(self) -> AbstractContextManager[None]:
        """Inside, the model computes what the backbone alone computes."""
        return self._row_slot.groups((), ())

    def add(self, index: int, adapter: AdapterConfig, seed: int) -> None:
        """Takes in an adapter, with the initial weights that `apply_adapter` would give it.

        The global random state stays as it was.

        Args:
            index: A number that no adapter of this pack has.
            adapter: LoRA or rsLoRA.
            seed: Seed of the initial weights.

        Raises:
            UserError: A method that can't be packed, or wrong targets; nothing is changed then.
            ValueError: The number is taken.
        """
        if index in self._configs:
            raise ValueError(f"adapter {index} is in this pack already")
        reason = packable(adapter)
        if reason is not None:
            raise UserError(
                f"adapter={adapter.method}: can't be packed, {reason}; expected lora or rslora"
            )
        modules = select_modules(self.backbone.config, adapter)
        config = peft_config(self.backbone.config, adapter, modules)
        names = tuple(module.name for module in modules)
        branches = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for name in names:
                branches[name] = _initial_branch(self._base_layer(name), config)
        config.base_model_name_or_path = self.base_name
        config.revision = self.base_revision
        for name, branch in branches.items():
            self._packed_layer(name).branches[str(index)] = branch
        self._configs[index] = config
        self._targets[index] = names

    def remove(self, index: int) -> None:
        """Lets an adapter go; layers that no other needs become the backbone's own again.

        Raises:
            KeyError: There is no such adapter.
        """
        del self._configs[index]
        for name in self._targets.pop(index):
            layer = cast(PackedLinear, self.backbone.get_submodule(name))
            del layer.branches[str(index)]
            if not layer.branches:
                self._replace(name, layer.base_layer)

    def parameters_of(self, index: int) -> dict[str, nn.Parameter]:
        """An adapter's weights, by the names and in the order that `trainable_parameters` has.

        Raises:
            KeyError: There is no such adapter.
        """
        return {
            f"{_PREFIX}{name}.{kind}.{_ADAPTER}.weight": parameter
            for name, branch in self._branches(index)
            for kind, parameter in (("lora_A", branch.lora_A), ("lora_B", branch.lora_B))
        }

    def adapter_state(self, index: int) -> dict[str, Tensor]:
        """Copies on the CPU of an adapter's weights, as `adapters.adapter_state` takes them."""
        parameters = self.parameters_of(index)
        return {name: p.detach().to("cpu", copy=True) for name, p in parameters.items()}

    def load_adapter_state(self, index: int, state: Mapping[str, Tensor]) -> None:
        """Puts back what `adapter_state` took, here or from a model with this adapter alone.

        Raises:
            UserError: Tensors are missing, unexpected or of another shape; nothing is changed then.
        """
        copy_state(state, self.parameters_of(index))

    def save_adapter(
        self, index: int, folder: Path, tokenizer: "PreTrainedTokenizerBase | None" = None
    ) -> None:
        """Writes the same plain PEFT folder as `adapters.save_adapter`.

        Args:
            index: Which adapter.
            folder: Created if needed.
            tokenizer: Saved beside the weights where given.
        """
        state = {
            name.replace(f".{_ADAPTER}.", "."): tensor
            for name, tensor in self.parameters_of(index).items()
        }
        write_peft_folder(folder, self._configs[index], state, tokenizer)

    def peft_config(self, index: int) -> LoraConfig:
        """A copy of what PEFT would be told about an adapter."""
        return copy.deepcopy(self._configs[index])

    def recompute_context(
        self,
    ) -> Callable[[], tuple[AbstractContextManager[Any], AbstractContextManager[Any]]]:
        """`context_fn` of `torch.utils.checkpoint`: recomputing sees rows and keys of its pass.

        A backbone whose activation checkpointing is on when the pack is made has it already.
        """
        keys = recompute_context(self)
        slot = weakref.ref(self._row_slot)  # the backbone keeps this function

        def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
            first, second = keys()
            rows = slot()
            if rows is None:
                return first, second
            return first, _Both(second, Restored(rows, rows.active))

        return contexts

    def _branches(self, index: int) -> Iterator[tuple[str, Branch]]:
        for name in self._targets[index]:
            branch = cast(PackedLinear, self.backbone.get_submodule(name)).branch(index)
            assert branch is not None
            yield name, branch

    def _base_layer(self, name: str) -> nn.Linear:
        layer = self.backbone.get_submodule(name)
        return layer.base_layer if isinstance(layer, PackedLinear) else cast(nn.Linear, layer)

    def _packed_layer(self, name: str) -> PackedLinear:
        """The packed layer of this name, put there if need be."""
        layer = self.backbone.get_submodule(name)
        if isinstance(layer, PackedLinear):
            return layer
        base = cast(nn.Linear, layer)
        packed = PackedLinear(base, name, self._row_slot, self._key_slot, self.grouping)
        packed.train(base.training)
        self._replace(name, packed)
        return packed

    def _replace(self, name: str, layer: nn.Module) -> None:
        parent, _, leaf = name.rpartition(".")
        setattr(self.backbone.get_submodule(parent), leaf, layer)


class _Both(AbstractContextManager[None]):
    """Two contexts as one; may be entered again."""

    def __init__(self, *contexts: AbstractContextManager[Any]):
        self.contexts = contexts
        self.stacks: list[ExitStack] = []

    def __enter__(self) -> None:
        stack = ExitStack()
        for context in self.contexts:
            stack.enter_context(context)
        self.stacks.append(stack)

    def __exit__(self, *error: Any) -> None:
        self.stacks.pop().__exit__(*error)


def _initial_branch(base_layer: nn.Linear, config: LoraConfig) -> Branch:
    """A branch as PEFT begins it: drawn by its own layer, in the base's type and then in fp32.

    The type matters: on a bf16 backbone PEFT's initial weights are rounded to bf16.
    """
    layer = PeftLinear(base_layer, _ADAPTER, config, r=config.r, lora_alpha=config.lora_alpha)
    a, b = (cast(Tensor, kind[_ADAPTER].weight) for kind in (layer.lora_A, layer.lora_B))
    dtype = torch.float32 if a.dtype in (torch.float16, torch.bfloat16) else a.dtype
    return Branch(
        nn.Parameter(a.detach().to(dtype)),
        nn.Parameter(b.detach().to(dtype)),
        float(layer.scaling[_ADAPTER]),
        float(config.lora_dropout),
    )
