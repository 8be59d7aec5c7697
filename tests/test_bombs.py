"""Little that stands for much, files without an end, arrays that lie elsewhere: refused before memory is taken."""

import gzip
import io
import os
import re
import tracemalloc
import zipfile
from pathlib import Path

import h5netcdf  # noqa: F401  (what importing takes is not looked at)
import h5py
import pytest
import xarray  # noqa: F401

from meanfield import datasets, readers, store
from meanfield.config import DataConfig
from meanfield.errors import InputError


def peak(read, *arguments) -> tuple[InputError, int]:
    """What reading is refused with, and the most memory that it took."""
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as caught:
            read(*arguments)
        return caught.value, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


BOMB = 64 << 20


def npz_bomb(method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive, archive.open("x.npy", "w") as member:
        for _ in range(BOMB >> 22):
            member.write(bytes(1 << 22))
    return buffer.getvalue()


def npy_bomb(shape: tuple[int, ...]) -> bytes:
    header = repr({"descr": "<f8", "fortran_order": False, "shape": shape}).encode() + b"\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + bytes(64))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("make", "read"),
    [
        (lambda: gzip.compress(bytes(BOMB), 1), readers.read_idx),
        (lambda: b"\0\0\x0e\x03" + b"\xff" * 12, readers.read_idx),
        (lambda: b"\0\0\x08\xff" + b"\0\0\0\1" * 255 + b"\0", readers.read_idx),
        (lambda: b"\0\0\x08\x04" + b"\0\0\0\0" + b"\xff" * 12, readers.read_idx),
        (lambda: npz_bomb(zipfile.ZIP_DEFLATED), readers.read_npz),
        (lambda: npz_bomb(zipfile.ZIP_BZIP2), readers.read_npz),
        (lambda: npz_bomb(zipfile.ZIP_DEFLATED), store.read_npz),
        (lambda: npy_bomb((1 << 40,)), readers.read_npz),
        (lambda: npy_bomb((1 << 40,)), store.read_npz),
        (lambda: npy_bomb((-1, 8)), readers.read_npz),
    ],
)
def test_little_that_stands_for_much(make, read, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(readers, "BUDGET", 8 << 20)
    path = tmp_path / "bomb"
    path.write_bytes(make())
    _, most = peak(read, path)
    assert most < 4 * readers.BUDGET


def test_records_that_stand_for_much(tmp_path, monkeypatch) -> None:
    with h5py.File(tmp_path / "records.nc", "w") as file:
        file.create_dataset("loss", (1 << 40,), "f8", chunks=(1 << 20,))
    error, most = peak(store.read_dataset, tmp_path / "records.nc")
    assert "arrays would take over" in str(error) and most < 32 << 20


def test_records_that_lie_elsewhere(tmp_path) -> None:
    (tmp_path / "secret").write_bytes(bytes(64))
    makers = {
        "link": lambda file: file.__setitem__("loss", h5py.ExternalLink(str(tmp_path / "secret"), "/x")),
        "soft": lambda file: file.__setitem__("loss", h5py.SoftLink("/nowhere")),
        "external": lambda file: file.create_dataset("loss", (8,), "f8", external=[(str(tmp_path / "secret"), 0, 64)]),
        "group": lambda file: file.create_group("loss"),
    }
    for make in makers.values():
        with h5py.File(tmp_path / "records.nc", "w") as file:
            make(file)
        with pytest.raises(InputError, match="link to elsewhere|in another file|is a group"):
            store.read_dataset(tmp_path / "records.nc")


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/stdin", "pipe"])
def test_files_without_an_end(path, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    for read in (readers.read_idx, readers.read_csv, readers.read_npz, store.read_npz, store.read_json):
        with pytest.raises(InputError, match="no regular file"):
            read(Path(path))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            dict(source="sphere", n=10**12),
            r"data of 1,000,000,000,000 rows and 10 columns take .* GB of memory: wanted at most",
        ),
        (dict(source="sphere", d=10**12), "Take a smaller data.n, data.d or data.lags"),
        (dict(source="sine", lags=10**6, n=10**6), "take .* GB of memory"),
    ],
)
def test_generated_data_that_would_not_fit(keys, words) -> None:
    error, most = peak(datasets.load, DataConfig(**keys))
    assert re.search(words, str(error)) and most < 1 << 20
