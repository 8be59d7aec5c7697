"""One process at a time in a directory: an advisory lock that goes with its process, however that ends."""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from meanfield.errors import InputError

_held = threading.local()  # directories that this thread holds already


@contextlib.contextmanager
def claimed(directory: Path | None, *, wait: bool = False) -> Iterator[None]:
    """Hold a directory for this process, so that no two write to it; waiting for another, or refusing at once.

    It is made if it is not there, and removed again if nothing was written. A thread that holds it may claim it again.
    Nothing happens for None, and file systems that know no locks are taken without.

    Raises
    ------
    InputError
        If another process or thread works on it (unless `wait`), or it cannot be made.
    """
    if directory is None:
        yield
        return
    made = _make(directory)
    handle = None
    try:
        handle = _take(directory, wait)
        yield
    finally:
        if handle is not None:
            _release(handle)
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()  # only if nothing was written


def _make(directory: Path) -> list[Path]:
    """Make a directory; return it and those above it that were not there, itself first."""
    path, missing = directory.absolute(), []
    try:
        while not path.exists():
            missing.append(path)
            path = path.parent
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot write to the run directory {directory}: {error.strerror or error}; choose another with --out"
        ) from error
    return missing


def _take(directory: Path, wait: bool) -> int | None:
    """Return the descriptor that holds the lock, or None where this thread has it or there are no locks."""
    try:
        import fcntl
    except ImportError:
        return None
    while True:
        handle = os.open(directory, os.O_RDONLY)
        here = os.fstat(handle)
        if (here.st_dev, here.st_ino) in _mine():
            os.close(handle)
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            os.close(handle)
            raise InputError(f"another process works on {directory}: wait for it, or choose another --out") from error
        except OSError:
            pass
        if directory.exists() and os.path.samestat(directory.stat(), here):
            _mine()[here.st_dev, here.st_ino] = handle
            return handle
        os.close(handle)  # whoever held it removed it: it is made anew
        directory.mkdir(parents=True, exist_ok=True)


def _release(handle: int) -> None:
    mine = _mine()
    for key in [key for key, value in mine.items() if value == handle]:
        del mine[key]
    os.close(handle)


def _mine() -> dict[tuple[int, int], int]:
    found: dict[tuple[int, int], int] | None = getattr(_held, "directories", None)
    if found is None:
        found = _held.directories = {}
    return found
