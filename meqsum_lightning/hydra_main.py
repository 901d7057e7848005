"""What Hydra itself does for `meqsum`: showing configurations, completion, and multirun.

Single runs compose without Hydra's job machinery (`config/compose.py`).
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from meqsum_lightning.cli import DONE, FAILED, HYDRA_SWITCHES, Request
from meqsum_lightning.config.compose import (
    build_config,
    compose,
    search_path,
)
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
        "  -m, --multirun     one job per combination of comma-separated values (train)\n"
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


def sweep(request: Request) -> int:
    """`-m`: one job per combination of values, one after another.

    Every job's configuration is checked before the first one starts; a job that fails does not
    stop the others.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.override_parser.overrides_parser import OverridesParser

    if request.command != "train":
        raise UserError(f"-m: meqsum {request.command} has no sweeps; expected meqsum train -m")
    for word in request.overrides:
        name, _, value = word.partition("=")
        if name in ("resume", "output_dir"):
            raise UserError(
                f"{name}={value}: each job of a sweep has a directory of its own; "
                "expected hydra.sweep.dir=DIR"
            )
    words = _for_hydra(request, sweep=True)
    parsed = OverridesParser.create().parse_overrides(words)
    jobs = BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]
    configs = _all_or_error(jobs, lambda job: build_config("train", job, request.config_dirs))
    from meqsum_lightning.console import print_result
    from meqsum_lightning.engine.train import check, train
    from meqsum_lightning.logs import configure

    configure(request.verbose)
    _all_or_error(configs, check)
    failures: list[str] = []

    def run(_: Any) -> None:
        hydra = HydraConfig.get()
        overrides = [*hydra.overrides.task, f'output_dir="{hydra.runtime.output_dir}"']
        label = f"job {hydra.job.num + 1}/{len(jobs)}"
        print(f"{label}: {' '.join(word.lstrip('+') for word in hydra.overrides.task)}")
        try:
            print_result(train(build_config("train", overrides, request.config_dirs)))  # type: ignore[arg-type]
        except Exception as error:  # noqa: BLE001 (a job must not take the others along)
            failures.append(f"{label} failed: {type(error).__name__}: {error}")

    call_hydra("train", ["--multirun", *words], run, request.config_dirs)
    for line in failures:
        print(f"meqsum: {line}", file=sys.stderr)
    return FAILED if failures else DONE


def _all_or_error(items: Sequence[Any], function: Callable[[Any], Any]) -> list[Any]:
    """Results for all items, or one error with every mistake found."""
    results, lines = [], []
    for item in items:
        try:
            results.append(function(item))
        except UserError as error:
            lines += error.lines
    if lines:
        raise UserError(list(dict.fromkeys(lines)))
    return results


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


def _for_hydra(request: Request, sweep: bool = False) -> list[str]:
    parsed, mistakes = parse_overrides(
        request.command, request.overrides, request.config_dirs, sweep=sweep
    )
    if mistakes:
        raise UserError(mistakes)
    return [item.hydra for item in parsed]
