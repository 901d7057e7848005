"""What Hydra itself does for `meqsum`: showing configurations.

Runs compose without Hydra's job machinery (`config/compose.py`).
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from meqsum_lightning.cli import DONE, HYDRA_SWITCHES, Request
from meqsum_lightning.config.compose import compose, search_path
from meqsum_lightning.config.groups import conf_dir, config_groups
from meqsum_lightning.config.overrides import parse_overrides
from meqsum_lightning.config.validate import validate
from meqsum_lightning.errors import UserError

HYDRA_VIEWS = {"--cfg", "-c", "--info", "-i", "--hydra-help"}


def show(request: Request) -> int:
    """Answers `--help`, `--cfg`, `--info` and `--hydra-help`."""
    if request.help:
        print(command_help(request))
        return DONE
    values = [word for word in request.hydra if word not in HYDRA_SWITCHES]
    options = dict(zip(values[::2], values[1::2], strict=True))
    kind = options.get("--cfg", options.get("-c"))
    if kind == "job":
        print(shown_config(request, options.get("--package", options.get("-p"))), end="")
        return DONE
    if kind is not None and kind not in ("hydra", "all"):
        raise UserError(f"--cfg {kind}: no such part; expected job, hydra or all")
    if not HYDRA_VIEWS & set(request.hydra):
        raise UserError(f"{request.hydra[0]}: shows nothing by itself; expected --cfg job with it")
    call_hydra(
        request.command, [*request.hydra, *_for_hydra(request)], _nothing, request.config_dirs
    )
    return DONE


def command_help(request: Request) -> str:
    """Usage, groups with their choices, and all keys of a command with their defaults."""
    groups = config_groups(request.command, request.config_dirs)
    choices = "\n".join(
        f"  {name}={'|'.join(options)}"
        for name, options in groups.items()
        if options and not name.startswith("hydra/")
    )
    action = " audit" if request.command == "data" else ""
    return (
        f"usage: meqsum {request.command}{action} [group=choice ...] [key=value ...]\n\n"
        f"groups:\n{choices}\n\n"
        "options:\n"
        "  --cfg job          print the composed configuration\n"
        "  -m, --multirun     one job per combination of comma-separated values (train, plan)\n"
        "  --config-dir DIR   a folder of your own config groups\n"
        "  --allow-target P   let _target_ name classes of package P\n"
        "  --verbose          library messages on the terminal too\n\n"
        f"keys and defaults (comments: {conf_dir()}):\n"
        + "".join(f"  {line}\n" for line in shown_config(request, None).splitlines())
    )


def shown_config(request: Request, package: str | None) -> str:
    """The composed configuration as yaml, checked before it is shown."""
    import yaml

    overrides = request.overrides
    if request.command == "data" and overrides[:1] == ["audit"]:
        overrides = overrides[1:]
    raw, mistakes = compose(request.command, overrides, request.config_dirs)
    validate(raw, request.command, mistakes)
    part: Any = raw
    for name in package.split(".") if package and package != "_global_" else ():
        if not isinstance(part, dict) or name not in part:
            raise UserError(f"--package {package}: no such part; expected one of {', '.join(raw)}")
        part = part[name]
    return yaml.safe_dump(part, sort_keys=False, allow_unicode=True)


def call_hydra(
    command: str,
    words: Sequence[str],
    task: Callable[[Any], Any],
    config_dirs: Sequence[str] = (),
) -> None:
    """Runs Hydra's own command line on the configuration of a command.

    Args:
        command: Root file in `conf/`.
        words: Hydra's options and overrides.
        task: Called once per job.
        config_dirs: Further folders of config groups.

    Raises:
        UserError: Hydra refused the words.
    """
    import hydra

    before = sys.argv
    sys.argv = ["meqsum", *words, *search_path(config_dirs)]
    try:
        with _exits_as_errors():
            hydra.main(config_path=str(conf_dir()), config_name=command, version_base="1.3")(task)()
    finally:
        sys.argv = before


def _nothing(_: Any) -> None:
    """A task for the calls that only show something."""


@contextlib.contextmanager
def _exits_as_errors() -> Iterator[None]:
    try:
        yield
    except SystemExit as error:
        if error.code not in (0, None):
            raise UserError("Hydra refused the command line; see its message above") from None


def _for_hydra(request: Request) -> list[str]:
    parsed, mistakes = parse_overrides(request.command, request.overrides, request.config_dirs)
    if mistakes:
        raise UserError(mistakes)
    return [item.hydra for item in parsed]
