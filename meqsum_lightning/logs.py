"""Where messages go: the libraries' into the run's log, ours also on the terminal."""

import logging
import os
import sys


def configure(verbose: bool = False) -> None:
    """Sets up logging for a command.

    Args:
        verbose: Show the libraries' messages on standard error too.
    """
    # Set before transformers and datasets are imported: their own handlers and bars stay away.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "warning" if verbose else "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    for handler in [h for h in root.handlers if getattr(h, "from_meqsum", False)]:
        root.removeHandler(handler)
    terminal = _Terminal()
    terminal.from_meqsum = True  # type: ignore[attr-defined]
    terminal.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    terminal.addFilter(_for_terminal if not verbose else lambda record: True)
    root.addHandler(terminal)
    logging.captureWarnings(True)
    for name in ("httpx", "urllib3", "filelock", "matplotlib"):
        logging.getLogger(name).setLevel(logging.WARNING)


def adopt_lightning() -> None:
    """Lets Lightning's messages take the way of all others; it brings a handler of its own."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True


class _Terminal(logging.StreamHandler):
    """Standard error as it is when something is said: it may have been replaced since."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _for_terminal(record: logging.LogRecord) -> bool:
    ours = record.name.startswith("meqsum_lightning")
    return record.levelno >= (logging.WARNING if ours else logging.ERROR)
