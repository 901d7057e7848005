"""Classes that a config may name with `_target_`: loading them, and the list of allowed packages.

A config file must not be a way to run any program: only classes of known packages that derive from
the expected base are loaded, and only `--allow-target PACKAGE` on the command line widens the list.
"""

import importlib
import inspect
from collections.abc import Iterable
from typing import Any

from meqsum_lightning.errors import UserError

ALLOWED_PACKAGES = (
    "torch.optim",
    "transformers.optimization",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "meqsum_lightning",
)
_widened: list[str] = []


def allow_packages(packages: Iterable[str]) -> None:
    """Lets `_target_` name classes of further packages, for this process.

    Args:
        packages: Import paths of packages or modules.
    """
    _widened.extend(package for package in packages if package not in _widened)


def allowed_packages() -> list[str]:
    """What `allow_packages` has added, for another process to do the same."""
    return list(_widened)


def is_allowed(target: str) -> bool:
    """Whether `target` lies in an allowed package (nothing is imported)."""
    return any(target.startswith(package + ".") for package in (*ALLOWED_PACKAGES, *_widened))


def check_target(key: str, target: str) -> str | None:
    """The mistake in a `_target_`, or None.

    Args:
        key: Config key, for the message.
        target: Import path of a class.
    """
    if is_allowed(target):
        return None
    return (
        f"{key}={target}: not in an allowed package; expected a class of "
        f"{', '.join((*ALLOWED_PACKAGES, *_widened))} (or --allow-target PACKAGE)"
    )


def load_class(target: str, base: type) -> type:
    """Imports the class that a config names.

    Args:
        target: Import path, `package.module.Class`.
        base: What the class must derive from.

    Returns:
        The class.

    Raises:
        UserError: The path is not allowed, does not exist, or names something else than a subclass.
    """
    if mistake := check_target("_target_", target):
        raise UserError(mistake)
    module_name, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), name, None)
    except ImportError as error:
        raise UserError(
            f"_target_={target}: cannot be imported ({error}); expected an installed class"
        ) from None
    # A module attribute may be borrowed from elsewhere: what counts is where a class is defined.
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise UserError(f"_target_={target}: not such a class; expected a kind of {base.__name__}")
    return found


def check_arguments(key: str, target: str, base: type, arguments: dict[str, Any]) -> None:
    """Checks a class path and the names of its arguments without building the object.

    Raises:
        UserError: The class can't be loaded, or has no such argument.
    """
    found = load_class(target, base)
    try:
        inspect.signature(found).bind_partial(**arguments)
    except TypeError as error:
        raise UserError(f"{key}: {target} refuses its arguments: {error}") from None


def build(key: str, target: str, base: type, arguments: dict[str, Any]) -> Any:
    """Builds an object from a class path and keyword arguments.

    Args:
        key: Config key, for messages.
        target: Import path of the class.
        base: What the class must derive from.
        arguments: Keyword arguments.

    Raises:
        UserError: The class can't be loaded, or refuses the arguments.
    """
    found = load_class(target, base)
    try:
        return found(**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}: {target} refused its arguments: {error}") from error
    except ModuleNotFoundError as error:
        raise UserError(f"{key}: {target} needs a package that is missing: {error}") from error
