"""Files that are there whole or not at all, and directories that may be written to."""

import contextlib
import errno
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import IO, Any

from meanfield.errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PROBE, WRITING = ".probe", ".writing"


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, sync it, and rename it into place."""
    write_with(path, lambda handle: handle.write(content))


def write_with(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file with a function of its handle, under a temporary name; sync it, and rename it into place."""
    temporary = path.with_name(path.name + WRITING)
    with said(path):
        try:
            with open(temporary, "wb") as handle:
                write(handle)
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)  # what it takes may be just what is missing
            raise


@contextlib.contextmanager
def said(path: Path) -> Iterator[None]:
    """Say what kept a file from being written, and what to do."""
    try:
        yield
    except OSError as error:
        cure = "free some space and go on with the same command, or " if error.errno in FULL else ""
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; {cure}choose another directory with --out"
        ) from error


def prepare(directory: Path) -> None:
    """Make the directory and check that it can be written to."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_bytes(directory / PROBE, b"")
        (directory / PROBE).unlink()
    except OSError as error:
        raise InputError(
            f"cannot write to the run directory {directory}: {error.strerror or error}; choose another with --out"
        ) from error


def check_writable(directory: Path) -> None:
    """Refuse a directory that could not be written to, without making it.

    Raises
    ------
    InputError
        If it, or the nearest folder above it that exists, is no directory or is not writable.
    """
    nearest = directory.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir():
        raise InputError(f"{nearest} is a file, wanted a directory; choose another run directory with --out")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"cannot write to {nearest}: permission denied; choose another run directory with --out")


def refuse_strangers(directory: Path, ours: Collection[str]) -> None:
    """Refuse a path that is a file, or a directory that holds anything but the files called `ours`.

    What an attempt that was killed early leaves behind is no stranger.
    """
    if not directory.exists():
        return
    if not directory.is_dir():
        raise InputError(f"{directory} is a file, wanted a directory; choose another run directory")
    names = sorted(p.name for p in directory.iterdir())
    found = [name for name in names if name not in (*ours, PROBE) and not name.endswith(WRITING)]
    if found:
        raise InputError(
            f"{directory} is not empty and is no run directory (it holds {found[0]}); nothing was overwritten, "
            "choose another directory"
        )
