"""Read the files that data come in: IDX (as MNIST), CSV with a header, and NumPy's npz.

Whatever is wrong with a file becomes one sentence with the place in it; nothing is ever unpickled.  Read
next: `datasets`, which turns the arrays into (x, y).
"""

import array
import csv
import gzip
import hashlib
import io
import lzma
import math
import os
import stat
import struct
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from meanfield import mapped
from meanfield.errors import InputError, did_you_mean

BUDGET = 2 << 30  # bytes that a file of data may take in memory, unpacked
# Third byte of an IDX file -> how its numbers are stored, most significant byte first.
_MOST_DIMENSIONS = 32
_IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
# What Python and numpy raise on damaged or hostile archives: a flipped bit may ask for what they cannot do.
DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, struct.error, RuntimeError, MemoryError,
          OverflowError, SyntaxError, TypeError, zlib.error, lzma.LZMAError, tokenize.TokenError)  # fmt: skip


def opened(path: Path) -> IO[bytes]:
    """Return a file opened for reading bytes; pipes and devices, which may have no end, are an OSError."""
    handle = open(path, "rb", opener=_without_waiting)  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
        handle.close()
        raise OSError(None, "it is no regular file")
    return handle


def _without_waiting(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    except ValueError as error:  # a zero byte in the name
        raise OSError(None, str(error)) from error


def sha256(paths: Sequence[Path]) -> str:
    """Return the SHA-256, in hexadecimal, of the contents of files one after the other."""
    total = hashlib.sha256()
    for path in paths:
        with opened(path) as handle:
            while piece := handle.read(1 << 20):
                total.update(piece)
    return total.hexdigest()


def content(path: Path, limit: int | None = None) -> bytes:
    """Return the bytes of a file, or raise OSError if it cannot be read or has more than `limit`."""
    with opened(path) as handle:
        raw = handle.read() if limit is None else handle.read(limit + 1)
    if limit is not None and len(raw) > limit:
        raise OSError(None, f"it has more than {limit:,} bytes")
    return raw


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Return the array in an IDX file, which may be compressed with gzip.

    Raises
    ------
    InputError
        If the file is missing, not IDX, has more or fewer bytes than its header says, or more than `BUDGET`.
    """
    raw = _bytes_of(Path(path))
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _IDX_TYPES or not 0 < raw[3] <= _MOST_DIMENSIONS:
        raise InputError(
            f"'{path}' is not an IDX file: its first four bytes are {raw[:4].hex(' ') or 'absent'}; wanted "
            "00 00, a type and a number of dimensions, as 00 00 08 03 for images."
        )
    item, start = np.dtype(_IDX_TYPES[raw[2]]), 4 + 4 * raw[3]
    shape = [int(size) for size in np.frombuffer(raw[4:start].ljust(start - 4, b"\0"), dtype=">u4")]
    wanted = start + math.prod(shape) * item.itemsize
    if len(raw) != wanted:
        raise InputError(
            f"'{path}' is {'cut short' if len(raw) < wanted else 'too long'}: {len(raw)} bytes came, wanted "
            f"{wanted} for the shape {tuple(shape)} in its header. Copy the file again."
        )
    try:
        return np.frombuffer(raw, dtype=item, offset=start).reshape(shape)
    except ValueError:  # of no numbers, with axes that are too long
        raise InputError(f"'{path}' holds nothing: the shape in its header is {tuple(shape)}.") from None


def read_csv(path: str | os.PathLike[str], wanted: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
    """Return the columns of a CSV file with a header, in the order of `wanted` or, without it, of the file.

    Raises
    ------
    InputError
        If the file is missing, empty, ragged or larger than `BUDGET`, a column is unknown, or a cell in use is no
        number.
    """
    try:
        with io.TextIOWrapper(io.BytesIO(content(Path(path), BUDGET)), encoding="utf-8-sig", newline="") as file:
            return _columns(path, file, wanted)
    except OSError as error:
        raise InputError(_unreadable(path, error)) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"'{path}' is not a CSV file: {error}. Wanted text with commas.") from None


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Return the arrays of an npz file.

    Raises
    ------
    InputError
        If the file is missing, is not npz, holds Python objects, or more than `BUDGET`.
    """
    try:
        with opened(Path(path)) as handle:
            return arrays(handle, BUDGET)
    except OSError as error:
        raise InputError(_unreadable(path, error)) from None
    except DAMAGE as error:
        raise InputError(
            f"'{path}' is damaged, not an npz file or holds Python objects: wanted numerical arrays x and y, "
            f"as numpy.savez writes them ({_short(str(error))})."
        ) from None


def arrays(handle: IO[bytes], limit: int, checked: bool = False, folder: Path | None = None) -> dict[str, np.ndarray]:
    """Return the arrays in an open npz file, as `numpy.savez` and `savez_compressed` write it.

    Parameters
    ----------
    limit : int
        Bytes that all of them may take: what the archive says is compared with it before anything is unpacked.
    checked : bool
        Compare all checksums first; without it each is compared when its array was read.
    folder : path, optional
        Where large arrays are put on disk (`mapped`), instead of in memory.

    Raises
    ------
    One of DAMAGE
        If the archive is damaged, holds anything but arrays of numbers and texts, or more than `limit`.
    """
    with zipfile.ZipFile(handle) as archive:
        members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
        for info in members:
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{info.filename} is compressed in a way that numpy does not use")
        if sum(info.file_size for info in members) > limit:
            raise ValueError(f"it would take more than {limit:,} bytes of memory")
        damaged = archive.testzip() if checked else None
        if damaged:
            raise zipfile.BadZipFile(f"{damaged} has a wrong checksum")
        return {info.filename.removesuffix(".npy"): _array(archive, info, folder) for info in members}


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, folder: Path | None) -> np.ndarray:
    """Return one array, whose size must be what its header says before memory is taken for it."""
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)  # type: ignore[arg-type]
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{info.filename} has the version {version} of the format")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, reversed_axes, dtype = read(member)  # type: ignore[arg-type]
        if dtype.kind not in "biufcSU" or dtype.shape or dtype.itemsize == 0 or min(shape, default=0) < 0:
            raise ValueError(f"{info.filename} holds {dtype}, wanted numbers")
        if member.tell() + math.prod(shape) * dtype.itemsize != info.file_size:
            raise ValueError(f"{info.filename} has another size than its header says")
        if folder is not None and shape and math.prod(shape) * dtype.itemsize >= mapped.LARGE and not reversed_axes:
            placed = mapped.empty(folder, shape, dtype)
            for piece in mapped.pieces(placed):
                piece[...] = np.frombuffer(member.read(piece.nbytes), dtype).reshape(piece.shape)
            return placed
    with archive.open(info) as member:
        found: np.ndarray = np.lib.format.read_array(member, allow_pickle=False)  # type: ignore[arg-type]
        if member.read(1):
            raise ValueError(f"{info.filename} goes on behind its array")
        return found


def _short(text: str, most: int = 200) -> str:
    return text if len(text) <= most else text[:most] + "..."


def _names(names: Sequence[str], most: int = 30) -> str:
    return _short(", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else ""), 1000)


def _unreadable(path: str | os.PathLike[str], error: OSError) -> str:
    return f"the data file '{path}' cannot be read: {error.strerror or error}. Check data.path."


def _bytes_of(path: Path) -> bytes:
    """Return the bytes of a file, unpacked if they are gzip's."""
    try:
        raw = content(path, BUDGET)
        if raw[:2] != b"\x1f\x8b":
            return raw
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
            raw = file.read(BUDGET + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile, struct.error):
        raise InputError(f"'{path}' is cut short or damaged: gzip cannot unpack it. Copy it again.") from None
    except OSError as error:
        raise InputError(_unreadable(path, error)) from None
    if len(raw) > BUDGET:
        raise InputError(f"'{path}' takes more than {BUDGET:,} bytes unpacked: wanted a smaller file.")
    return raw


def _columns(path: str | os.PathLike[str], file: IO[str], wanted: tuple[str, ...] | None) -> dict[str, np.ndarray]:
    """Return columns of an open CSV file, row by row, so that a table takes no more memory than its numbers."""
    reader = csv.reader(file, strict=True)
    rows = ((reader.line_num, [cell.strip() for cell in row]) for row in reader if row)
    header = _header(path, rows)
    place = {name: index for index, name in enumerate(header)}
    names = tuple(header) if wanted is None else wanted
    for name in names:
        if name not in place:
            near = did_you_mean(name, header)
            raise InputError(f"'{path}' has no column '{name}': wanted one of {_names(header)}.{near}")
    columns = {name: array.array("d") for name in names}
    for line, cells in rows:
        if len(cells) != len(header):
            raise InputError(
                f"'{path}' line {line} has {len(cells)} cells: wanted {len(header)}, as many as column names."
            )
        for name, column in columns.items():
            column.append(_number(path, line, name, cells[place[name]]))
    if not all(columns.values()) or not columns:
        raise InputError(f"'{path}' has no rows: wanted a line of column names and lines of numbers below.")
    return {name: np.array(column) for name, column in columns.items()}


def _header(path: str | os.PathLike[str], rows: Iterator[tuple[int, list[str]]]) -> list[str]:
    _, header = next(rows, (0, []))
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if repeated:
        raise InputError(f"'{path}' has two columns named '{_short(repeated[0])}': wanted different names.")
    return header


def _number(path: str | os.PathLike[str], line: int, name: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(
            f"'{path}' line {line}, column '{_short(name)}': '{_short(cell)}' is not a finite number. Mend the "
            "cell, or choose other columns with data.columns."
        )
    return value


def idx_pair(path: Path) -> tuple[Path, Path]:
    """Return the files of images and of labels: those of a folder, or that of images and the labels beside it."""
    candidates = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if "images" in file.name and "idx3" in file.name)
        candidates = sorted(files, key=lambda file: not file.name.startswith("train"))
    if not candidates:
        raise InputError(f"the folder '{path}' has no IDX images: wanted files as train-images-idx3-ubyte.gz.")
    images = candidates[0]
    stem = images.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    names = (stem, f"{stem}.gz")
    labels = next((images.with_name(name) for name in names if images.with_name(name).exists()), None)
    if labels is None or labels == images:
        raise InputError(
            f"no labels lie beside '{images}': wanted images as in train-images-idx3-ubyte and labels as in "
            "train-labels-idx1-ubyte."
        )
    return images, labels
