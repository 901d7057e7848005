"""`meqsum COMMAND [options] [key=value ...]`: the command line.

Nothing heavy is imported before a command needs it; what a command does is elsewhere.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from meqsum_lightning import __version__
from meqsum_lightning.errors import RunFailed, RunInterrupted, UserError
from meqsum_lightning.signals import importing

DONE, FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130

COMMANDS = {
    "train": "train, validate, test the best epoch, write a run directory (-m: a sweep)",
    "evaluate": "score a run, a PEFT folder or a backbone on a split or a file",
    "predict": "one summary per row of a file, in input order",
    "plan": "parameters, memory and compute of a configuration, without weights",
    "data": "audit a data set: `meqsum data audit`",
}
# Options that Hydra answers itself, from the composed configuration.
HYDRA_VALUES = {"--cfg", "-c", "--info", "-i", "--package", "-p"}
HYDRA_SWITCHES = {"--resolve", "--hydra-help"}
OUR_VALUES = {"--config-dir", "-cd", "--allow-target"}


@dataclass
class Request:
    """A command line, taken apart."""

    command: str
    overrides: list[str] = field(default_factory=list)
    config_dirs: list[str] = field(default_factory=list)
    allowed: list[str] = field(default_factory=list)
    hydra: list[str] = field(default_factory=list)
    multirun: bool = False
    help: bool = False
    verbose: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: Without the program's name; None: those of the process.

    Returns:
        Exit status: 0 done, 1 failed while running, 2 the input was wrong, 130 interrupted.
    """
    if arguments is None:
        _open_closed_streams()
        signal.signal(signal.SIGTERM, _terminate)
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return DONE
    if words[0] in ("-V", "--version"):
        print(f"meqsum-lightning {__version__}")
        return DONE
    try:
        if words[0] in ("--shell-completion", "-sc") or words[0].startswith("--shell-completion="):
            from meqsum_lightning.completion import complete

            return complete(words)
        request = parse(words)
        return run(request)
    except UserError as error:
        return _tell(error.lines, MISTAKE)
    except RunFailed as error:
        return _tell(str(error).splitlines(), FAILED)
    except (RunInterrupted, KeyboardInterrupt) as error:
        return _tell([str(error) or "interrupted"], INTERRUPTED)
    except BrokenPipeError:
        # The reader (head, less) has seen enough; Python must not complain when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


def overview() -> str:
    """What `meqsum --help` prints."""
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return f"""meqsum-lightning {__version__}: LoRA ablations for health question summarization

usage: meqsum COMMAND [key=value ...]

{lines}

  meqsum COMMAND --help      keys and choices of a command
  meqsum COMMAND --cfg job   the composed configuration
  --config-dir DIR           a folder of your own config groups
  --allow-target PACKAGE     let _target_ name classes of this package
  --verbose                  library messages on the terminal too

try: meqsum train experiment=demo
shell completion: eval "$(meqsum --shell-completion install=bash)\""""


def parse(words: Sequence[str]) -> Request:
    """Takes a command line apart.

    Raises:
        UserError: Unknown command or option.
    """
    command, *rest = words
    if command not in COMMANDS:
        import difflib

        close = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"{command}: no such command; expected {', '.join(COMMANDS)}{hint}")
    request = Request(command)
    queue = list(rest)
    while queue:
        word = queue.pop(0)
        name, equals, value = word.partition("=")
        if word in ("-h", "--help"):
            request.help = True
        elif word in ("-m", "--multirun"):
            request.multirun = True
        elif word == "--verbose":
            request.verbose = True
        elif word in HYDRA_SWITCHES:
            request.hydra.append(word)
        elif name in HYDRA_VALUES | OUR_VALUES:
            if not equals:
                if not queue:
                    raise UserError(f"{word}: needs a value; expected {word} VALUE")
                value = queue.pop(0)
            if name in ("--config-dir", "-cd"):
                request.config_dirs.append(value)
            elif name == "--allow-target":
                request.allowed.append(value)
            else:
                request.hydra += [name, value]
        else:
            request.overrides.append(word)
    return request


def run(request: Request) -> int:
    """Runs a parsed command line."""
    from meqsum_lightning.config import components

    components.allow_packages(request.allowed)
    if request.help or request.hydra:
        from meqsum_lightning.hydra_main import show

        return show(request)
    if request.multirun:
        return _sweep(request)
    return HANDLERS[request.command](request)


def _sweep(request: Request) -> int:
    if request.command == "train":
        from meqsum_lightning.sweeps.command import sweep

        sweep(request.overrides, request.config_dirs, request.verbose)
    elif request.command == "plan":
        from meqsum_lightning.sweeps.planning import plan

        plan(request.overrides, request.config_dirs)
    else:
        raise UserError(f"-m: meqsum {request.command} has no sweeps; expected meqsum train -m")
    return DONE


def _train(request: Request) -> int:
    cfg = _configured(request)
    with importing():
        from meqsum_lightning.console import print_result
        from meqsum_lightning.engine.train import train

    print_result(train(cfg))
    return DONE


def _evaluate(request: Request) -> int:
    cfg = _configured(request)
    with importing():
        from meqsum_lightning.console import print_evaluation
        from meqsum_lightning.engine.evaluate import evaluate

    print_evaluation(evaluate(cfg))
    return DONE


def _predict(request: Request) -> int:
    cfg = _configured(request)
    with importing():
        from meqsum_lightning.engine.predict import predict

    predict(cfg)
    return DONE


def _plan(request: Request) -> int:
    cfg = _configured(request)
    with importing():
        from rich.console import Console

        from meqsum_lightning.plan import make_plan, render

    render(make_plan(cfg), Console())
    return DONE


def _data(request: Request) -> int:
    action, *request.overrides = request.overrides or [""]
    if action != "audit":
        raise UserError(f"meqsum data {action}: no such action; expected meqsum data audit")
    cfg = _configured(request)
    from meqsum_lightning.engine.audit import audit_command

    audit_command(cfg)
    return DONE


HANDLERS: dict[str, Callable[[Request], int]] = {
    "train": _train,
    "evaluate": _evaluate,
    "predict": _predict,
    "plan": _plan,
    "data": _data,
}


def _configured(request: Request) -> Any:
    """The validated configuration of a command, of the kind that its schema names; then logging
    is set up, before any library is imported.
    """
    from meqsum_lightning.config.compose import build_config
    from meqsum_lightning.logs import configure
    from meqsum_lightning.sweeps.command import refuse_sweep_keys

    if request.command in ("train", "plan"):
        refuse_sweep_keys(request.command, request.overrides, request.config_dirs)
    cfg = build_config(request.command, request.overrides, request.config_dirs)
    configure(request.verbose)
    return cfg


def _terminate(number: int, _: FrameType | None) -> None:
    """Until a run has its own way to stop, SIGTERM ends like Ctrl-C."""
    raise RunInterrupted(f"stopped by {signal.Signals(number).name}")


def _open_closed_streams() -> None:
    """Closed streams (`2>&-`) lead nowhere: their numbers must not become those of other files."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115


def _tell(lines: Sequence[str], status: int) -> int:
    # With nobody to read it, the exit status still says how it ended.
    with contextlib.suppress(OSError):
        for line in lines:
            print(f"meqsum: {line}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
