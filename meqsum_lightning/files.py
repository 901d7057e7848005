"""Writing files so that a reader never sees half of one and two writers never meet.

A file is written beside its place and renamed; a place is claimed by a lock that ends with the
process.
"""

import fcntl
import json
import logging
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from meqsum_lightning.errors import UserError

log = logging.getLogger(__name__)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well.

    Args:
        path: The file to write.

    Yields:
        The temporary path, with the same suffix.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        # mkstemp makes private files; a run directory is read by others as the umask allows.
        temporary.chmod(0o666 & ~umask())
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Writes JSON atomically; numbers that are not finite become null, since JSON has none."""
    write_text(path, json.dumps(_finite(content), indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
        ValueError: The file is not JSON; the message names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from None


def lock(path: Path) -> int:
    """Locks a file or folder against other processes; the lock ends with the process.

    Returns:
        A descriptor; closing it ends the lock.

    Raises:
        BlockingIOError: Another process holds it.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        # Some network file systems have no locks.
        log.debug("%s: no file locks here", path)
    return descriptor


def check_free(folder: Path, key: str = "output_dir") -> None:
    """Refuses a folder that holds something.

    Args:
        folder: A folder to be written.
        key: Config key that names it, for messages.

    Raises:
        UserError: It is a file, or a folder that is not empty.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{key}={folder}: is a file; expected a new or empty folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{key}={folder}: not empty; expected a new or empty folder")


@contextmanager
def claimed_folder(folder: Path, key: str) -> Iterator[Path]:
    """A new or empty folder that nobody else writes during the block; left empty, it goes again.

    Raises:
        UserError: It holds something, another process has claimed it, or it can't be made.
    """
    check_free(folder, key)
    with mendable(folder, key):
        new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = lock(folder)
    try:
        check_free(folder, key)
        if not os.access(folder, os.W_OK):
            raise UserError(f"{key}={folder}: cannot be written; expected a writable folder")
        yield folder
    finally:
        if new and not any(folder.iterdir()):
            folder.rmdir()
        os.close(descriptor)


@contextmanager
def claimed_file(path: Path, key: str) -> Iterator[Path]:
    """A new file that nobody else writes during the block; left empty, it goes again.

    Raises:
        UserError: It exists, another process has claimed it, or it can't be written.
    """
    if path.is_dir() or (path.exists() and path.stat().st_size):
        raise UserError(f"{key}={path}: exists; expected a new file")
    if not path.parent.is_dir():
        raise UserError(f"{key}={path}: no folder {path.parent}; expected an existing folder")
    with mendable(path, key):
        path.open("a").close()
        descriptor = lock(path)
    try:
        yield path
    finally:
        if path.exists() and not path.stat().st_size:
            path.unlink()
        os.close(descriptor)


@contextmanager
def mendable(path: Path, key: str) -> Iterator[None]:
    """Turns what the system says of a place that can't be written into a line for the user.

    Raises:
        UserError: With the system's reason.
    """
    try:
        yield
    except BlockingIOError:
        raise UserError(
            f"{key}={path}: another process is working in it; expected another place"
        ) from None
    except OSError as error:
        raise UserError(
            f"{key}={path}: cannot be written ({error.strerror}); expected a writable place"
        ) from None


def umask() -> int:
    """The permissions that new files lack; reading them means setting them for a moment."""
    found = os.umask(0o022)
    os.umask(found)
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
