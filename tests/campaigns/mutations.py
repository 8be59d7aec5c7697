"""Mutations of valid files: of bytes, and of what the bytes mean. All are functions of a generator, so they repeat."""

import io
import json
import struct
import tomllib
import zipfile
from collections.abc import Callable
from typing import Any

import h5netcdf
import numpy as np
import tomli_w
from xarray.backends import H5NetCDFStore

from meanfield import netcdf

Generator = np.random.Generator
NUMBERS = [0, 1, -1, 2, 7, 64, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 53, 1 << 63, (1 << 64) - 1, 1 << 64, 10**18,
           10**400, -(10**400), 0.0, -0.0, 0.5, 1e-320, 1e-30, 1e30, 1e308, -1e308, float("nan"), float("inf"),
           -float("inf"), True, False]  # fmt: skip
TEXTS = ["", " ", "\0", "a\0b", "\n", "\x1b[31m", "m^1e400", "m^nan", "sqrt(m)", "auto", "NaN", "../../etc/passwd",
         "/dev/zero", "/dev/tty", "/", ".", "~", "<script>alert(1)</script>", "\"'><img src=x onerror=alert(1)>", "$x",
         "\u202e", "\uffff", "𝔊",
         "é" * 300, "x" * 5000, "%s%n{0}{x}", "__import__('os').system('false')", "cos\nsystem\n(S'false'\ntR.",
         "=1+1", "1e", "1_0", "0x10", "١"]  # fmt: skip
WORDS = [b"nan", b"inf", b"-", b",", b"\"", b"\n", b"\r", b"\0", b"1e999", b"9" * 5000, b"[", b"[" * 2000, b"{a=" * 500,
         b"\xff", b"\xef\xbb\xbf", b"'''", b'"""', b"#", b"=", b".", b"=[", b"]]", b"0x" + b"f" * 5000, b"\x1f\x8b\x08",
         b"PK\x03\x04", b"PK\x01\x02", b"\x93NUMPY", b"1979-05-27T07:32:00Z", b"\\ud800", b"\\u0000",
         b"\xed\xa0\x80"]  # fmt: skip


def pick(rng: Generator, items: Any) -> Any:
    return items[int(rng.integers(len(items)))]


def hostile(rng: Generator, depth: int = 0) -> Any:
    """A number, a text, a list or a table that nobody expects."""
    kind = int(rng.integers(10))
    if kind < 4:
        return pick(rng, NUMBERS)
    if kind < 8:
        return pick(rng, TEXTS)
    few = range(int(rng.integers(4)))
    if kind == 8 and depth < 3:
        return [hostile(rng, depth + 1) for _ in few]
    if depth < 3:
        return {pick(rng, TEXTS): hostile(rng, depth + 1) for _ in few}
    return []


def of_bytes(raw: bytes, rng: Generator) -> bytes:
    """A few bytes changed, put in, taken out, doubled or cut off."""
    out = bytearray(raw)
    for _ in range(int(rng.integers(1, 5))):
        place, kind = int(rng.integers(len(out) + 1)), int(rng.integers(8))
        span = int(min(rng.geometric(0.1), 200))
        if kind == 0:
            del out[place:]
        elif kind == 1:
            del out[place : place + span]
        elif kind == 2:
            out[place:place] = pick(rng, WORDS)
        elif kind == 3:
            out[place : place + 4] = struct.pack(pick(rng, "<>") + "I", int(pick(rng, [0, 1, 2**31, 2**32 - 1, 65536])))
        elif kind == 4:
            out[place:place] = out[place : place + span] * int(rng.integers(1, 20))
        elif kind == 5:
            out[place : place + span] = rng.bytes(span)
        elif place < len(out):
            out[place] ^= 1 << int(rng.integers(8))
    return bytes(out[: 1 << 20])


def of_toml(raw: bytes, rng: Generator) -> bytes:
    """A value or a key of a valid configuration replaced."""
    tree = tomllib.loads(raw.decode())
    for _ in range(int(rng.integers(1, 4))):
        section = pick(rng, [*tree, "sweep", "output", pick(rng, TEXTS)])
        table = tree.setdefault(section, {})
        if isinstance(table, dict):
            key = pick(rng, [*table, *ALL_KEYS.get(section, []), pick(rng, TEXTS)])
            table[key] = hostile(rng)
        else:
            tree[section] = hostile(rng)
    try:
        return tomli_w.dumps(tree).encode()
    except (TypeError, ValueError):  # no TOML has that
        return of_bytes(raw, rng)


ALL_KEYS: dict[str, list[str]] = {
    "data": ["source", "path", "classes", "n", "n_test", "d", "seed", "teacher", "lags", "noise", "target", "columns",
             "scale", "sha256"],
    "network": ["activation", "bias", "loss", "alpha", "centred"],
    "cloud": ["m", "seed", "replicates", "dtype", "backend", "initial", "on_disk"],
    "flow": ["lam", "eta", "scheme", "time", "steps", "batch", "train", "allow_unstable"],
    "record": ["observables", "every", "bounds_every", "snapshots"],
    "output": ["checkpoint_seconds", "memory_mb", "title"],
    "sweep": ["cloud.m", "flow", "cloud"],
}  # fmt: skip


def of_csv(raw: bytes, rng: Generator) -> bytes:
    """A cell, a row or the header replaced."""
    rows = [line.split(",") for line in raw.decode("utf-8", "replace").splitlines()]
    for _ in range(int(rng.integers(1, 4))):
        row = pick(rng, rows)
        kind = int(rng.integers(4))
        if kind == 0:
            row[int(rng.integers(len(row)))] = str(pick(rng, TEXTS))
        elif kind == 1:
            row[int(rng.integers(len(row)))] = repr(pick(rng, [n for n in NUMBERS if abs(n) < 1e300 or n != n]))
        elif kind == 2:
            row.extend([str(k) for k in range(int(rng.integers(1, 50)))])
        else:
            rows.append(list(row))
    return pick(rng, ["\n", "\r\n", "\r"]).join(",".join(row) for row in rows).encode("utf-8", "replace")


def of_idx(raw: bytes, rng: Generator) -> bytes:
    """Another type or shape in the header."""
    out = bytearray(raw)
    out[int(rng.integers(4))] = int(rng.integers(256))
    sizes = int(rng.integers(0, 40))
    if rng.random() < 0.5:
        out[3] = sizes
        out[4:4] = b"".join(struct.pack(">I", int(pick(rng, [0, 1, 2, 2**16, 2**32 - 1]))) for _ in range(sizes))
    return bytes(out)


DTYPES = ["<f8", ">f4", "<f2", "|b1", "<i8", "<u2", "<c16", "|S5", "<U3", "|O", "<M8[s]", "|V8", "<f16", "|S0", "|V0"]


def header(rng: Generator) -> bytes:
    """A header of npy, sound in itself, that asks for whatever it likes."""
    shape = tuple(int(pick(rng, [0, 1, 3, 6, -1, 10**9, 2**40, 2**63])) for _ in range(int(rng.integers(4))))
    entry: dict[str, Any] = {"descr": pick(rng, [*DTYPES, [("a", "<f8")], [("a", "|O")], "<f8" * 3, hostile(rng)])}
    entry |= {"fortran_order": pick(rng, [True, False, 1, "x"]), "shape": pick(rng, [shape, list(shape), 3, "(3,)"])}
    try:
        text = repr(entry)
    except ValueError:
        text = "{}"
    text = pick(
        rng, [text, text, text, "(" * 5000, "-" * 9000 + "1", "{" * 90, "__import__('os').system('false')", text[:-1]]
    )
    body = text.encode("latin1", "replace") + b"\n"
    version = int(pick(rng, [1, 1, 1, 2, 3, 9]))
    length = struct.pack("<H", len(body) % 65536) if version == 1 else struct.pack("<I", len(body))
    return b"\x93NUMPY" + bytes([version, 0]) + length + body


def of_npz(raw: bytes, rng: Generator) -> bytes:
    """Members of an archive dropped, renamed, repeated, exchanged for hostile arrays, or compressed differently."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    buffer = io.BytesIO()
    method = int(pick(rng, [zipfile.ZIP_STORED] * 4 + [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]))
    place, kind = int(rng.integers(len(members))), int(rng.integers(8))
    name, content = members[place]
    if kind == 0:
        del members[place]
    elif kind == 1:
        members[place] = (pick(rng, TEXTS).replace("\0", "") + ".npy", content)
    elif kind == 2:
        members[place] = name, header(rng) + rng.bytes(int(rng.integers(100)))
    elif kind == 3:
        members[place] = name, pick(rng, members)[1]
    elif kind == 4:
        members[place] = name, of_bytes(content, rng)
    elif kind == 5:
        members[place] = name, dumped(odd_array(rng))
    elif kind == 6:
        members[place] = name, np.lib.format.magic(1, 0) + struct.pack("<H", 60) + b" " * 59 + b"\n"
        members.append((name + ".npy", bytes(1 << 22)))  # much from little
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for item, part in members:
            with np.testing.suppress_warnings() as quiet:
                quiet.filter(UserWarning)  # names that come twice
                archive.writestr(item, part)
    return buffer.getvalue()


def dumped(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=True)  # what a hostile file may hold, we must not load
    return buffer.getvalue()


class Evil:
    """Would be executed by whoever unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("import builtins; builtins.meanfield_was_hacked = True",)


def odd_array(rng: Generator) -> np.ndarray:
    shape = tuple(int(pick(rng, [0, 1, 2, 3, 12])) for _ in range(int(rng.integers(4))))
    kind = int(rng.integers(7))
    if kind == 0:
        return np.array([Evil()], dtype=object)
    if kind == 1:
        return np.full(shape, pick(rng, TEXTS).replace("\0", "") or "x")
    if kind == 2:
        return np.full(shape, float(pick(rng, [np.nan, np.inf, 0.0, 1e308, -1.0, 1e-320])))
    if kind == 3:
        return np.full(shape, int(pick(rng, [0, -1, 1, 2**31, 2**62])))
    if kind == 4:
        return rng.normal(size=shape).astype(pick(rng, ["f2", "f4", "f8", "f16", "c8"]))
    if kind == 5:
        return np.zeros(shape, bool)
    return np.array(json.dumps(plainly(hostile(rng))))


def plainly(value: Any) -> Any:
    return value if not isinstance(value, int) or abs(value) < 10**300 else 10**300


def of_json(raw: bytes, rng: Generator) -> bytes:
    """A value somewhere in the tree replaced or taken out."""
    tree = json.loads(raw)
    for _ in range(int(rng.integers(1, 3))):
        node = tree
        while isinstance(node, dict) and node:
            key = pick(rng, list(node))
            if not isinstance(node[key], dict) or not node[key] or rng.random() < 0.4:
                node[key] = pick(rng, [hostile(rng), "\ud800", None, [None], {"a": "\ud800"}])
                if rng.random() < 0.2:
                    del node[key]
                break
            node = node[key]
    try:
        return json.dumps(tree).encode()
    except ValueError:  # an integer of too many digits
        return json.dumps(tree, default=str, skipkeys=True).encode() if rng.random() < 0 else of_bytes(raw, rng)


def of_records(raw: bytes, rng: Generator, write: Callable[[Any], bytes] = netcdf.dumps) -> bytes:
    """Variables, dimensions or attributes of records changed, and the checksum made anew."""
    data = netcdf.loads(raw)
    for _ in range(int(rng.integers(1, 3))):
        kind, name = int(rng.integers(8)), pick(rng, list(data.variables))
        if kind == 0:
            data = data.drop_vars(name)
        elif kind == 1:
            data = data.isel({pick(rng, list(data.sizes)): slice(0, int(rng.integers(2)))})
        elif kind == 2 and name not in data.indexes:
            values = data[name].values
            fill = pick(rng, [np.nan, np.inf, -np.inf, 0.0, -1.0, 1e300])
            values = np.full(values.shape, fill) if values.dtype.kind in "fiu" else values.astype(object).astype(str)
            data[name] = (data[name].dims, values)
        elif kind == 3 and name not in data.indexes:
            array = odd_array(rng)
            array = array if array.dtype.kind in "fiubU" and array.dtype.itemsize < 16 else np.zeros(2)
            data[name] = (tuple(f"odd_{k}_{size}" for k, size in enumerate(array.shape)), array)
        elif kind == 4 and len(data[name].dims) > 1:
            data[name] = data[name].transpose()
        elif kind == 5 and data.attrs:
            data.attrs.pop(pick(rng, list(data.attrs)))
        else:
            value = hostile(rng)
            value = (
                value
                if isinstance(value, (float, str)) or (isinstance(value, int) and abs(value) < 2**63)
                else [1.0, 2.0]
            )
            key = pick(rng, list(data.attrs) or ["title"])
            data.attrs[key] = value.replace("\0", "") if isinstance(value, str) else value
    try:
        return write(data)
    except Exception:  # noqa: BLE001  (no NetCDF has that)
        return of_bytes(raw, rng)


def of_foreign(raw: bytes, rng: Generator) -> bytes:
    """The same in a file without a checksum."""
    return of_records(raw, rng, unsealed)


def unsealed(data: Any) -> bytes:
    """A Dataset as another program would write it."""
    buffer = io.BytesIO()
    with h5netcdf.File(buffer, "w") as file:
        data.dump_to_store(H5NetCDFStore(file))
    return buffer.getvalue()
