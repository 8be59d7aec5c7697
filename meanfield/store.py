"""The run directory: what is written, atomically, and how it is read back.

    metadata.json             versions, seed, timings, status, what was left out and why
    records.nc                everything recorded (NetCDF-4 through xarray)
    checkpoint.npz            what a restart needs; checkpoint.previous.npz is the one before
    cloud_<step>.npz          snapshots

Where ranks hold a cloud together each writes its rows to a file of its own, <name>.rows<first>-<last>.npz, and the file
of that name says which belong to it; any number of ranks reads them back.

Every file is written under a temporary name, synced and renamed, so a kill leaves the old one or the new one. What
was damaged later is seen: arrays carry the checksums of zip, records a SHA-256 behind their last byte (`netcdf`).
"""

import contextlib
import dataclasses
import errno
import functools
import itertools
import json
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from meanfield import mapped, netcdf, ranks, readers
from meanfield.account import Account
from meanfield.cloud import Cloud, Kernel
from meanfield.errors import InputError
from meanfield.files import WRITING as WRITING
from meanfield.files import check_writable as check_writable
from meanfield.files import prepare as prepare
from meanfield.files import refuse_strangers as refuse_strangers
from meanfield.files import said, write_with
from meanfield.files import write_bytes as write_bytes
from meanfield.ranks import Share

Array = np.ndarray
LARGEST_TEXT = 64 << 20  # bytes of a JSON file
# Entries of metadata.json that are read again, and what they are made of.
ENTRIES = {
    "status": str, "message": str, "identity": dict, "timings": dict, "absent": dict, "errors": dict,
    "versions": dict, "machine": dict, "data": dict, "config": dict,
}  # fmt: skip
METADATA, RECORDS = "metadata.json", "records.nc"
CHECKPOINT, PREVIOUS = "checkpoint.npz", "checkpoint.previous.npz"
# Why files that are whole cannot be read, for now.
WITHHELD = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT)
_SCALARS = ("reference_variance", "start_std", "step", "time", "eta", "seed", "replicate")
_ARRAYS = ("z", "weights", "reference", "start")
_ROW = re.compile(r"cloud\d+\.(z|reference|start|weights)")


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON; numbers that are not finite become strings."""
    write_bytes(path, (json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object from a file, or an error that names it."""
    try:
        value = json.loads(readers.content(path, LARGEST_TEXT).decode("utf-8"))
        json.dumps(value, ensure_ascii=False).encode()  # no half of a character, which could not be written again
    except FileNotFoundError as error:
        raise InputError(f"{path.parent} is not a run directory: it has no {path.name}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} should hold a JSON object, it holds {type(value).__name__}")
    return value


def read_metadata(directory: Path) -> dict[str, Any]:
    """Return what metadata.json says of a run, each entry of the kind that it should be.

    Raises
    ------
    InputError
        If it is missing or damaged.
    """
    path = directory / METADATA
    metadata = read_json(path)
    for name, kind in ENTRIES.items():
        if not isinstance(metadata.get(name, kind()), kind):
            raise InputError(f"{path} is damaged: {name!r} is a {type(metadata[name]).__name__}, not a {kind.__name__}")
    notes = metadata.get("data", {}).get("notes", [])
    if not isinstance(notes, list):
        raise InputError(f"{path} is damaged: the notes on the data are no list")
    if not isinstance(metadata.get("config", {}).get("cloud", {}), dict):
        raise InputError(f"{path} is damaged: the section [cloud] of its configuration is no table")
    return metadata


def plain(value: Any) -> Any:
    """Return a value made of what JSON can hold; numbers that are not finite become strings."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return value


# Clouds -------------------------------------------------------------------------------------------------------------


def pack_cloud(cloud: Cloud, prefix: str) -> dict[str, Array]:
    """Return a cloud as named arrays."""
    out = {f"{prefix}.{name}": np.asarray(getattr(cloud, name)) for name in _SCALARS}
    for name in _ARRAYS:
        value = getattr(cloud, name)
        if value is not None:
            out[f"{prefix}.{name}"] = value
    for entry in dataclasses.fields(Account):
        out[f"{prefix}.account.{entry.name}"] = np.asarray(getattr(cloud.account, entry.name))
    for name, value in ({} if cloud.kernel is None else cloud.kernel._asdict()).items():
        if value is not None:
            out[f"{prefix}.kernel.{name}"] = np.asarray(value)
    return out


def unpack_cloud(arrays: dict[str, Array], prefix: str) -> Cloud:
    """Return the cloud that `pack_cloud` packed."""
    values: dict[str, Any] = {name: arrays[f"{prefix}.{name}"].item() for name in _SCALARS}
    for name in _ARRAYS:
        values[name] = arrays.get(f"{prefix}.{name}")
    account: dict[str, Any] = {}
    for entry in dataclasses.fields(Account):
        value = arrays[f"{prefix}.account.{entry.name}"]
        account[entry.name] = value.item() if value.ndim == 0 else value
    kernel = None
    if f"{prefix}.kernel.gram" in arrays:
        part = {name: arrays.get(f"{prefix}.kernel.{name}") for name in Kernel._fields}
        kernel = Kernel(**part | {name: part[name].item() for name in ("age", "of")})  # type: ignore[union-attr]
    return Cloud(**values, account=Account(**account), kernel=kernel)


def pack_clouds(clouds: Sequence[Cloud]) -> dict[str, Array]:
    """Return replicates as named arrays."""
    out: dict[str, Array] = {"replicates": np.asarray(len(clouds))}
    for index, cloud in enumerate(clouds):
        out |= pack_cloud(cloud, f"cloud{index}")
    return out


def unpack_clouds(arrays: dict[str, Array]) -> list[Cloud]:
    """Return the replicates that `pack_clouds` packed, or raise ValueError if they are none."""
    clouds = [unpack_cloud(arrays, f"cloud{index}") for index in range(int(arrays["replicates"]))]
    for cloud in clouds:
        others = [array.shape for array in (cloud.reference, cloud.start) if array is not None]
        masses = (cloud.m,) if cloud.weights is None else cloud.weights.shape
        if cloud.z.ndim != 2 or cloud.z.dtype.kind != "f" or {*others, cloud.z.shape} != {cloud.z.shape}:
            raise ValueError(f"particles of the shape {cloud.z.shape} and type {cloud.z.dtype} are no cloud")
        if masses != (cloud.m,) or not isinstance(cloud.step, int):
            raise ValueError("weights or steps are not those of a cloud")
    if not clouds:
        raise ValueError("there is no cloud")
    return clouds


def write_npz(path: Path, arrays: dict[str, Array]) -> None:
    """Write named arrays to an npz file, atomically; large ones go through memory a piece at a time."""
    write_with(path, lambda handle: _save(handle, arrays))


def _save(handle: IO[bytes], arrays: dict[str, Array]) -> None:
    """Write what `numpy.savez` writes."""
    with zipfile.ZipFile(handle, "w") as archive:
        for name, value in arrays.items():
            array = np.asanyarray(value, order="C")
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                if array.nbytes < mapped.LARGE or not array.ndim:
                    np.lib.format.write_array(member, array, allow_pickle=False)  # type: ignore[arg-type]
                    continue
                described = np.lib.format.header_data_from_array_1_0(array)
                np.lib.format.write_array_header_1_0(member, described)  # type: ignore[arg-type]
                for piece in mapped.pieces(array):
                    member.write(piece.tobytes())


def read_npz(path: Path, folder: Path | None = None) -> dict[str, Array]:
    """Return the named arrays of an npz file; every member's checksum is checked before it is read.

    With a folder, large arrays come as arrays on disk there (`mapped`).

    Raises
    ------
    InputError
        If the file is missing or damaged, or asks for more memory than it has bytes.
    """
    try:
        with readers.opened(path) as handle:
            return readers.arrays(handle, os.fstat(handle.fileno()).st_size, checked=True, folder=folder)
    except readers.DAMAGE as error:
        what = "cannot be read" if _withheld(error) else "is missing or damaged"
        raise InputError(f"{path} {what}: {getattr(error, 'strerror', None) or error}") from error


def write_clouds(path: Path, clouds: Sequence[Cloud]) -> None:
    """Write replicates to an npz file, atomically; each rank its rows, where ranks hold them together."""
    arrays, share = pack_clouds(clouds), clouds[0].share
    if share is not None:
        arrays = write_rows(path.parent, path.stem, arrays, share)

    def write() -> None:
        write_npz(path, arrays)
        _clear_rows(path.stem, path)  # of a run that was killed here, on another number of ranks

    write() if share is None else ranks.on_first(share.communicator, write)


# Checkpoints --------------------------------------------------------------------------------------------------------


def write_checkpoint(directory: Path, clouds: Sequence[Cloud], records: dict[str, Array], state: dict) -> None:
    """Write all that a restart needs; the checkpoint before is kept under another name."""
    share, path = clouds[0].share, directory / CHECKPOINT
    arrays = pack_clouds(clouds) | {f"record.{name}": value for name, value in records.items()}
    arrays["state"] = np.asarray(json.dumps(plain(state)))
    if share is not None:
        stem = f"{path.stem}.{clouds[0].step}"
        arrays = write_rows(
            directory, ranks.on_first(share.communicator, lambda: _free(directory, stem)), arrays, share
        )

    def write() -> None:
        if path.exists():
            with said(path):
                os.replace(path, directory / PREVIOUS)
        write_npz(path, arrays)
        _clear_rows(f"{path.stem}.*", path, directory / PREVIOUS)

    write() if share is None else ranks.on_first(share.communicator, write)


def _free(directory: Path, stem: str) -> str:
    """Return a stem of files of rows that no checkpoint of the same step has."""
    names = itertools.chain([stem], (f"{stem}.{k}" for k in itertools.count(1)))
    return next(name for name in names if not any(directory.glob(f"{name}.rows*")))


def read_checkpoint(
    directory: Path, share: Share | None = None, folder: Path | None = None
) -> tuple[list[Cloud], dict[str, Array], dict] | None:
    """Return (clouds, records, state) of the newest whole checkpoint, or None where there is none.

    With a share, which all ranks then have to bring, clouds are the rows that it says, whoever wrote them. With a
    folder, large clouds come as clouds on disk there.
    """
    damaged = ""
    for name in (CHECKPOINT, PREVIOUS):
        path = directory / name
        if not path.exists():
            continue
        try:
            clouds, arrays, state = _shared(share, functools.partial(_checkpoint, path, share, folder))
        except InputError as error:
            if _withheld(error):
                raise InputError(
                    f"{error}; nothing was changed, and the same command goes on from it once it can be read"
                ) from error
            damaged = f"{name} is damaged ({error})"
            continue
        if damaged:
            warnings.warn(f"{damaged}; going on from {name}, the one before", stacklevel=2)
        prefix = "record."
        return clouds, {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix) and v.ndim}, state
    if damaged:
        raise InputError(f"{directory}: {damaged}, and there is no other; remove the directory to start again")
    return None


def _withheld(error: BaseException | None) -> bool:
    """Return whether a file may be whole, and what the system said is why it could not be read."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in WITHHELD:
            return True
        error = error.__cause__
    return False


def _state(arrays: dict[str, Array]) -> dict[str, Any]:
    """Return what a checkpoint keeps beside its arrays, or raise ValueError if it is not that."""
    state = json.loads(str(arrays["state"]))
    parts = [state.get(name) for name in ("identity", "absent", "timings")] if isinstance(state, dict) else [None]
    if not all(isinstance(part, dict) for part in parts):
        raise ValueError("its state is not that of a run")
    return state


def _checkpoint(path: Path, share: Share | None, folder: Path | None) -> tuple[list[Cloud], dict[str, Array], dict]:
    try:
        arrays = read_rows(path, share, folder)
        state = _state(arrays)
        return [cloud.replace(share=share) for cloud in unpack_clouds(arrays)], arrays, state
    except (InputError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise InputError(str(error)) from error  # the caller tells the text


def _shared(share: Share | None, work: Callable[[], Any]) -> Any:
    """Return what `work` returns here; with a share, what it raises on one rank is raised on all."""
    if share is None:
        return work()
    found = []
    ranks.together(share.communicator, lambda: found.append(work()))
    return found[0]


# Rows of ranks ------------------------------------------------------------------------------------------------------


def write_rows(directory: Path, stem: str, arrays: dict[str, Array], share: Share) -> dict[str, Array]:
    """Write this rank's rows of the clouds in `arrays` to a file of its own; return the others and where rows are."""
    mine = {name: arrays[name] for name in arrays if _ROW.fullmatch(name)}
    names = [f"{stem}.rows{a}-{b}.npz" for a, b in zip(share.bounds, share.bounds[1:], strict=False)]
    ranks.together(share.communicator, lambda: write_npz(directory / names[share.communicator.rank], mine))
    rest = {name: array for name, array in arrays.items() if name not in mine}
    return rest | {"rows.files": np.asarray(names), "rows.bounds": np.asarray(share.bounds)}


def read_rows(path: Path, share: Share | None = None, folder: Path | None = None) -> dict[str, Array]:
    """Return the arrays of an npz file with those of the files that it names: all rows, or those of a share.

    Raises
    ------
    InputError
        If a file is missing or damaged.
    """
    arrays = read_npz(path, folder)
    first, last = (0, None) if share is None else (share.first, share.last)
    if "rows.files" not in arrays:
        return {name: array[first:last] if _ROW.fullmatch(name) else array for name, array in arrays.items()}
    bounds = [int(bound) for bound in arrays.pop("rows.bounds")]
    found: dict[str, list[Array]] = {}
    for name, a, b in zip(arrays.pop("rows.files"), bounds, bounds[1:], strict=False):
        last_here = b if last is None else min(b, last)
        if max(a, first) >= last_here:
            continue
        for key, array in read_npz(path.with_name(Path(str(name)).name)).items():
            if len(array) != b - a:
                raise InputError(f"{name} should hold {b - a} particles, it holds {len(array)}")
            found.setdefault(key, []).append(array[max(first - a, 0) : last_here - a])
    return arrays | {key: np.concatenate(parts) for key, parts in found.items()}


def _clear_rows(stem: str, *heads: Path) -> None:
    """Remove rows that belong to none of the files that may have some, and what was half written of them."""
    files = set(heads[0].parent.glob(f"{stem}.rows*"))
    for path in heads if files else ():
        with contextlib.suppress(InputError):
            names = read_npz(path).get("rows.files", ()) if path.exists() else ()
            files -= {path.with_name(str(name)) for name in names}
    for path in files:
        path.unlink(missing_ok=True)


# Records ------------------------------------------------------------------------------------------------------------


def write_dataset(path: Path, data: Any) -> None:
    """Write an xarray Dataset as NetCDF-4 with its checksum, atomically.

    It is made in memory first: libhdf5 does not survive a disk that fills up while it writes.
    """
    write_bytes(path, netcdf.dumps(data))


def read_dataset(path: Path) -> Any:
    """Return the Dataset of a NetCDF file, in memory.

    Raises
    ------
    InputError
        If the file is missing, is no NetCDF file, was damaged, or asks for much more memory than it has bytes.
    """
    if not path.exists():
        raise InputError(f"{path.parent} is not a finished run directory: it has no {path.name}")
    try:
        return netcdf.loads(readers.content(path))
    except (InputError, OSError) as error:
        raise InputError(f"{path} cannot be read as NetCDF: {error}") from error
