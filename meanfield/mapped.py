"""Arrays in files: clouds larger than memory, whose pages come and go with the blocks of particles that are worked.

    z = empty(folder, (m, D), "float32")    an array in a file that has no name and ends with it
    like(z)                                 another of its kind: in a file where z is, else in memory
    relieve(most)                           give back the pages held in memory where they are more bytes than `most`

Everything that takes an array takes these; a pass over one in blocks holds no more than the blocks at work. The system
keeps in its own cache what it has room for.
"""

import mmap
import os
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from meanfield.errors import InputError

Array = npt.NDArray[Any]

LARGE = 1 << 24  # bytes: arrays of so many are read and written in pieces
_before: dict[str, float] = {}  # bytes of files, of libraries above all, that were in memory before the first of ours
_folders: "weakref.WeakKeyDictionary[mmap.mmap, Path]" = weakref.WeakKeyDictionary()


def empty(folder: str | Path, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """Return an array of zeros in a nameless file in a folder; its space on the disk is taken at once.

    Raises
    ------
    InputError
        If the folder has no such space or cannot be written to.
    """
    folder, kind = Path(folder), np.dtype(dtype)
    _before.setdefault("bytes", _resident())
    size = max(int(np.prod(shape)) * kind.itemsize, 1)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as handle:
            # Space that is missing later would end the process without a word.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(handle.fileno(), 0, size)
            else:
                handle.truncate(size)
            pages = mmap.mmap(handle.fileno(), size)
    except OSError as error:
        raise InputError(
            f"{size / 1e9:.3g} GB for a cloud on disk cannot be had in {folder}: {error.strerror or error}; choose a "
            "directory on a larger disk"
        ) from error
    _folders[pages] = folder
    return np.ndarray(shape, kind, buffer=pages)


def folder_of(array: Any) -> Path | None:
    """Return the folder of the file that holds an array, or a part of it; None for one in memory."""
    while isinstance(array, np.ndarray):
        array = array.base
    return _folders.get(array) if isinstance(array, mmap.mmap) else None


def like(array: Array) -> Array:
    """Return an array of the same shape and dtype, in a file of its own where `array` is in one."""
    folder = folder_of(array)
    return np.empty_like(array) if folder is None else empty(folder, array.shape, array.dtype)


def pieces(array: Array) -> Iterator[Array]:
    """Yield an array in runs of rows of about LARGE bytes, and give back the pages of each when it is done with."""
    rows = max(1, LARGE // max(array.nbytes // max(len(array), 1), 1))
    for first in range(0, len(array), rows):
        yield array[first : first + rows]
        relieve(2 * LARGE)


def relieve(most: int) -> None:
    """Give the pages of all arrays in files back to the system if more than `most` bytes of them are in memory."""
    if not _folders or not hasattr(mmap.mmap, "madvise"):
        return
    if not _resident() - _before["bytes"] <= most:
        for pages in list(_folders):
            pages.madvise(mmap.MADV_DONTNEED)


def _resident() -> float:
    """Return how many bytes of files are mapped into this process and in memory; NaN where nobody tells."""
    try:
        with open("/proc/self/statm", "rb") as handle:
            return int(handle.read().split()[2]) * mmap.PAGESIZE
    except (OSError, IndexError, ValueError):
        return float("nan")
