"""From a budget of trained parameters to the rank that keeps within it.

Works from shapes alone. Which layers share the budget is `targets`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from meqsum_lightning.config.adapter import MAX_RANK, alpha_value
from meqsum_lightning.config.schema import SharedConfig
from meqsum_lightning.errors import UserError
from meqsum_lightning.models.backbones import load_config
from meqsum_lightning.models.shapes import meta_model
from meqsum_lightning.models.targets import TargetModule, adapter_parameter_count, select_modules

if TYPE_CHECKING:
    from transformers import PretrainedConfig

AnyConfig = TypeVar("AnyConfig", bound=SharedConfig)


def resolve_rank(cfg: AnyConfig, config: "PretrainedConfig | None" = None) -> AnyConfig:
    """A configuration with a rank in place of `adapter.budget`.

    The rank is the largest one whose trained parameters do not exceed the budget; alpha becomes a
    number (2 r unless given). The result equals the configuration in which this rank was typed, and
    so does its hash. A configuration without a budget comes back as it is.

    Args:
        cfg: A validated configuration.
        config: The backbone's hyperparameters; None: read as `cfg.model` says.

    Raises:
        UserError: The budget is too small for rank 1, or larger than the largest rank needs; the
            backbone or target modules can't be used.
    """
    adapter = cfg.adapter
    if adapter.budget is None:
        return cfg
    config = config or load_config(cfg.model)
    budget, shown = adapter.budget, f"adapter.budget={adapter.budget}"
    if isinstance(budget, float):
        parameters = sum(p.numel() for p in meta_model(config).parameters())
        budget = int(budget * parameters)
        shown += f" ({budget} of {parameters} parameters)"
    modules = select_modules(config, adapter)
    r = largest_rank(modules, budget, adapter.method)
    if r < 1:
        least = adapter_parameter_count(modules, 1, adapter.method)
        raise UserError(
            f"{shown}: too small for the {len(modules)} chosen layers, where rank 1 needs "
            f"{least} parameters; expected at least {least}, or fewer target modules"
        )
    if r > MAX_RANK:
        most = adapter_parameter_count(modules, MAX_RANK, adapter.method)
        raise UserError(
            f"{shown}: gives the {len(modules)} chosen layers rank {r}; expected at most {most}, "
            f"which is rank {MAX_RANK}"
        )
    update = {"r": r, "budget": None, "alpha": alpha_value(adapter.alpha, r)}
    return cfg.model_copy(update={"adapter": adapter.model_copy(update=update)})


def largest_rank(modules: Sequence[TargetModule], budget: int, method: str) -> int:
    """The largest rank whose trained parameters do not exceed a budget; 0 or less: there is none.

    The count is linear in the rank (`adapter_parameter_count`).
    """
    fixed = adapter_parameter_count(modules, 0, method)
    return (budget - fixed) // (adapter_parameter_count(modules, 1, method) - fixed)
