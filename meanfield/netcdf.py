"""NetCDF-4 files in memory, with a checksum: what a run's records are kept in.

A file is what xarray and h5netcdf make of a Dataset, and behind the last byte that HDF5 knows of one line,
"sha256 <digest>", which other programs do not see. The digest is compared before anything is parsed, since HDF5 itself
has no checksums over data; a file without the line was written by another program, unless it says that it had one.
"""

import hashlib
import io
import math
from collections.abc import Mapping
from typing import Any

from meanfield.errors import InputError

MARK, SEALED = b"\nsha256 ", "checksum"
WORDS = "sha256, in a line behind the data"
LENGTH = len(MARK) + 64 + 1
# Numbers take no more memory than file, but texts, and files that another program has compressed.
SPARE, RATIO = 64 << 20, 4


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
        If the checksum is wrong or missing, the bytes are no NetCDF-4, refer to other files, or are few and stand for
        very many.
    """
    import xarray

    content, sealed = raw, raw[-LENGTH:].startswith(MARK)
    if sealed:
        content = raw[:-LENGTH]
        if raw[-LENGTH:] != MARK + hashlib.sha256(content).hexdigest().encode() + b"\n":
            raise InputError("its checksum is wrong, so it was damaged or changed after it was written")
    try:
        _look_at(content)
        data = xarray.load_dataset(io.BytesIO(content), engine="h5netcdf", decode_times=False)
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001  (what h5py, h5netcdf and xarray raise on damaged files has no end)
        raise InputError(str(error) or type(error).__name__) from error
    if data.attrs.pop(SEALED, None) is not None and not sealed:
        raise InputError("its checksum is missing, so it was cut or changed after it was written")
    return data


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
