"""Read the files that data come in: IDX (as MNIST), CSV with a header, and NumPy's npz.

Whatever is wrong with a file becomes one sentence with the place in it; nothing is ever unpickled.  Read
next: `datasets`, which turns the arrays into (x, y).
"""

import csv
import gzip
import io
import math
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from meanfield.errors import InputError, did_you_mean

# Third byte of an IDX file -> how its numbers are stored, most significant byte first.
_IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Return the array in an IDX file, which may be compressed with gzip.

    Raises
    ------
    InputError
        If the file is missing, not IDX, or has more or fewer bytes than its header says.
    """
    raw = _bytes_of(Path(path))
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _IDX_TYPES or raw[3] == 0:
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
    return np.frombuffer(raw, dtype=item, offset=start).reshape(shape)


def read_csv(path: str | os.PathLike[str], wanted: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
    """Return the columns of a CSV file with a header, in the order of `wanted` or, without it, of the file.

    Raises
    ------
    InputError
        If the file is missing, empty or ragged, a column is unknown, or a cell in use is no number.
    """
    header, rows = _table_of(Path(path))
    names = header if wanted is None else wanted
    for name in names:
        if name not in header:
            near = did_you_mean(name, header)
            raise InputError(f"'{path}' has no column '{name}': wanted one of {', '.join(header)}.{near}")
    return {name: _column(path, name, header.index(name), rows) for name in names}


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Return the arrays of an npz file.

    Raises
    ------
    InputError
        If the file is missing, is not npz, or holds Python objects.
    """
    raw = _bytes_of(Path(path))
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            names = [name for name in archive.namelist() if name.endswith(".npy")]
            return {name[:-4]: _read_npy(archive.read(name)) for name in names}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        raise InputError(
            f"'{path}' is damaged, not an npz file or holds Python objects: wanted numerical arrays x and y, "
            "as numpy.savez writes them."
        ) from None


def _read_npy(raw: bytes) -> np.ndarray:
    return np.lib.format.read_array(io.BytesIO(raw), allow_pickle=False)


def _unreadable(path: str | os.PathLike[str], error: OSError) -> str:
    return f"the data file '{path}' cannot be read: {error.strerror or error}. Check data.path."


def _bytes_of(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise InputError(f"'{path}' is cut short or damaged: gzip cannot unpack it. Copy it again.") from None
    except OSError as error:
        raise InputError(_unreadable(path, error)) from None


def _table_of(path: Path) -> tuple[tuple[str, ...], list[tuple[int, list[str]]]]:
    """Return the header, and for each row the line where it ends and its cells."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            table = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
    except OSError as error:
        raise InputError(_unreadable(path, error)) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"'{path}' is not a CSV file: {error}. Wanted text with commas.") from None
    if len(table) < 2:
        raise InputError(f"'{path}' has no rows: wanted a line of column names and lines of numbers below.")
    header, rows = tuple(table[0][1]), table[1:]
    repeated = [name for name in header if header.count(name) > 1]
    if repeated:
        raise InputError(f"'{path}' has two columns named '{repeated[0]}': wanted different names.")
    for line, cells in rows:
        if len(cells) != len(header):
            raise InputError(
                f"'{path}' line {line} has {len(cells)} cells: wanted {len(header)}, as many as column names."
            )
    return header, rows


def _column(path: str | os.PathLike[str], name: str, index: int, rows: list[tuple[int, list[str]]]) -> np.ndarray:
    values = np.empty(len(rows))
    for position, (line, cells) in enumerate(rows):
        try:
            values[position] = float(cells[index])
        except ValueError:
            values[position] = math.nan
        if not math.isfinite(values[position]):
            raise InputError(
                f"'{path}' line {line}, column '{name}': '{cells[index]}' is not a finite number. Mend the "
                "cell, or choose other columns with data.columns."
            )
    return values
