"""Shell completion: commands from here, groups and keys of a command from Hydra.

Hydra's completion knows programs without sub-commands; the sub-command is taken out of the line
before Hydra sees it.
"""

import os
from collections.abc import Sequence

from meqsum_lightning.cli import COMMANDS, DONE
from meqsum_lightning.errors import UserError


def complete(words: Sequence[str]) -> int:
    """Answers `--shell-completion install=SHELL|uninstall=SHELL|query=SHELL`.

    Args:
        words: The command line, beginning with the option.

    Raises:
        UserError: The action is unknown.
    """
    option, _, value = words[0].partition("=")
    action = value or (words[1] if len(words) > 1 else "")
    name, _, shell = action.partition("=")
    if name not in ("install", "uninstall", "query") or shell not in ("bash", "zsh", "fish"):
        raise UserError(
            f"{option} {action}: no such action; expected install=bash, install=zsh or install=fish"
        )
    from meqsum_lightning.hydra_main import call_hydra

    command = "train"
    if name == "query":
        line = os.environ.get("COMP_LINE", "meqsum ")
        program, typed, rest = _take_apart(line)
        if rest is None:
            print(" ".join(known for known in COMMANDS if known.startswith(typed)))
            return DONE
        if typed not in COMMANDS:
            return DONE
        command = typed
        if command == "data":
            # The action is no override.
            rest = rest.removeprefix("audit").lstrip()
        os.environ["COMP_LINE"] = f"{program} {rest}"
    call_hydra(command, ["--shell-completion", f"{name}={shell}"], lambda cfg: None)
    return DONE


def _take_apart(line: str) -> tuple[str, str, str | None]:
    """Program, command so far, and what follows it; None while the command is being typed."""
    program, _, after = line.lstrip().partition(" ")
    command, space, rest = after.lstrip().partition(" ")
    return program, command, rest.lstrip() if space else None
