"""NetCDF-4 files in memory, with a checksum: what a run's records are kept in.

A file is what xarray and h5netcdf make of a Dataset, and behind the last byte that HDF5 knows of one line,
"sha256 <digest>", which other programs do not see. The digest is compared before anything is parsed, since HDF5 itself
has no checksums over data; a file without the line was written by another program, unless it says that it had one. Such
a file is first read by a process of its own, because the HDF5 library may crash on a damaged one, or read it for ever.
"""

import contextlib
import hashlib
import io
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from meanfield.errors import InputError

MARK, SEALED = b"\nsha256 ", "checksum"
WORDS = "sha256, in a line behind the data"
SIGNATURE = b"\x89HDF\r\n\x1a\n"  # of HDF5, at the beginning or somewhere after it
LENGTH = len(MARK) + 64 + 1
# Numbers take no more memory than file, but texts, and files that another program has compressed.
SPARE, RATIO = 64 << 20, 4
SECONDS = 60  # of a processor, to read a file that has no checksum
APART = "from meanfield import netcdf; netcdf.probe()"
_tried: dict[str, str] = {}  # SHA-256 of files without a checksum: why they cannot be read, "" for those that can


def dumps(data: Any) -> bytes:
    """Return a Dataset as the bytes of a NetCDF-4 file with its checksum."""
    import h5netcdf
    from xarray.backends import H5NetCDFStore

    buffer = io.BytesIO()
    with h5netcdf.File(buffer, "w") as file:
        data.assign_attrs({SEALED: WORDS} | _texts(data.attrs)).dump_to_store(H5NetCDFStore(file))
    content = buffer.getvalue()
    return content + MARK + hashlib.sha256(content).hexdigest().encode() + b"\n"


def _texts(attributes: Mapping[Any, Any]) -> dict[Any, str]:
    """Return the attributes that are texts, without the characters that HDF5 cannot keep."""
    texts = {key: value for key, value in attributes.items() if isinstance(value, str)}
    return {key: text.replace("\0", "").encode("utf-8", "replace").decode() for key, text in texts.items()}


def loads(raw: bytes) -> Any:
    """Return the Dataset in the bytes of a NetCDF-4 file.

    Raises
    ------
    InputError
        If the checksum is wrong or missing, the bytes are no NetCDF-4, refer to other files, are few and stand for
        very many, or are more than the HDF5 library can cope with.
    """
    content, sealed = raw, raw[-LENGTH:].startswith(MARK)
    if sealed:
        content = raw[:-LENGTH]
        if raw[-LENGTH:] != MARK + hashlib.sha256(content).hexdigest().encode() + b"\n":
            raise InputError("its checksum is wrong, so it was damaged or changed after it was written")
    elif WORDS.encode() in content:
        raise InputError("its checksum is missing, so it was cut or changed after it was written")
    elif SIGNATURE not in content:
        raise InputError("it is no NetCDF-4 file")
    else:
        _try_apart(content)
    data = _parsed(content)
    data.attrs.pop(SEALED, None)
    return data


def _parsed(content: bytes) -> Any:
    import xarray

    try:
        _look_at(content)
        return xarray.load_dataset(io.BytesIO(content), engine="h5netcdf", decode_times=False)
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001  (what h5py, h5netcdf and xarray raise on damaged files has no end)
        raise InputError(str(error) or type(error).__name__) from error


def _try_apart(content: bytes) -> None:
    """Refuse a file that a process of its own could not read; asked once for each content."""
    name = hashlib.sha256(content).hexdigest()
    if name not in _tried:
        if len(_tried) > 100:
            _tried.clear()
        _tried[name] = _read_apart(content)
    if _tried[name]:
        raise InputError(_tried[name])


def _read_apart(content: bytes) -> str:
    """Return why a process of its own could not read a file, "" if it could."""
    there = os.pathsep.join(path or os.getcwd() for path in sys.path)
    try:
        done = subprocess.run(
            [sys.executable, "-c", APART], input=content, capture_output=True, timeout=10 * SECONDS,
            env=os.environ | {"PYTHONPATH": there, "MEANFIELD_SECONDS": str(SECONDS)},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"the HDF5 library was not through with it after {10 * SECONDS} seconds"
    except OSError as error:
        return f"it has no checksum, and the process that was to try it cannot be started: {error.strerror or error}"
    if done.returncode in (0, 1):
        return done.stdout.decode(errors="replace")
    return f"the HDF5 library crashed on it, or was not through with it after {SECONDS} seconds"


def probe() -> None:
    """Read the file that comes on the standard input, say there what is wrong with it, and exit with 1 if it is."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        seconds = int(os.environ["MEANFIELD_SECONDS"])
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        _parsed(sys.stdin.buffer.read())
    except InputError as error:
        sys.stdout.buffer.write(str(error).encode(errors="replace"))
        sys.exit(1)


def _look_at(content: bytes) -> None:
    """Refuse files whose arrays lie elsewhere, or take far more memory than the file has bytes."""
    import h5py

    total, most = 0, RATIO * len(content) + SPARE
    with h5py.File(io.BytesIO(content), "r") as file:
        for name in file:
            if not isinstance(file.get(name, getlink=True), h5py.HardLink):
                raise InputError(f"{name!r} is a link to elsewhere")
            item = file[name]
            if not isinstance(item, h5py.Dataset):
                raise InputError(f"{name!r} is a {type(item).__name__.lower()}, wanted arrays alone")
            if item.external or item.is_virtual:
                raise InputError(f"the numbers of {name!r} lie in another file")
            total += math.prod(item.shape or ()) * max(item.dtype.itemsize, 1)
            if total > most:
                raise InputError(
                    f"its arrays would take over {most >> 20} MB of memory, the file has {len(content)} bytes"
                )
