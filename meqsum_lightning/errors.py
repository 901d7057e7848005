"""Errors by kind: what the user can mend (one line each, exit status 2) and a run that failed.

Anything else that escapes is a bug and keeps its traceback.
"""

from collections.abc import Sequence


class UserError(Exception):
    """One or more mistakes in the user's input; each is one line, exit status 2.

    Args:
        lines: A message, or one message per mistake. Line breaks inside a message are folded.
    """

    def __init__(self, lines: str | Sequence[str]):
        entries = [lines] if isinstance(lines, str) else list(lines)
        self.lines = [" ".join(str(line).split()) for line in entries]
        super().__init__("\n".join(self.lines))


class Unreachable(UserError):
    """What is asked for lies on the Hub, and neither the network nor the cache has it."""


class RunFailed(Exception):
    """A run that started and could not finish (a loss that is not finite, say); exit status 1."""


class RunInterrupted(BaseException):
    """The user or the system asked the run to stop; it can be resumed. Exit status 130.

    Like KeyboardInterrupt it is no Exception: whoever handles errors must not swallow it.
    """
