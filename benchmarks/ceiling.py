"""The ceiling and the floor: fused C++ loops built on the spot, and the rates that bound them.

The floor of a step is the larger of what its arithmetic costs at the rates measured here and of what reading and
writing the cloud costs; it charges one tanh for each neuron and sample.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

HERE = Path(__file__).parent
SOURCES = (HERE / "fused.cpp", HERE / "lanes.h")
# Sums are written out, and rounding to whole numbers relies on the order of two additions: nothing to reassociate.
# -ffast-math by its parts: as a whole it would, when the library is loaded, flush small numbers of the process to zero.
FAST = ("-fno-math-errno", "-ffinite-math-only", "-fno-signed-zeros", "-fno-trapping-math", "-freciprocal-math")
FLAGS = ("-std=c++17", "-O3", "-march=native", *FAST, "-fno-strict-aliasing",
         "-mprefer-vector-width=512", "-mno-recip", "-fopenmp", "-shared", "-fPIC")  # fmt: skip
STREAM_BYTES = 256 << 20  # far larger than the caches

_p, _l, _d, _i = ctypes.c_void_p, ctypes.c_long, ctypes.c_double, ctypes.c_int
_SIGNATURES = {
    "euler": (None, [_p] * 4 + [_l] * 4 + [_d] * 3 + [ctypes.c_uint64, ctypes.c_uint32, _i]),
    "pairs": (_i, [_i, _p, _p, _p, _l, _d, _i]),
    "normals": (None, [_p, _l, _l, ctypes.c_uint64, ctypes.c_uint32, _i]),
    "tanh": (None, [_p, _p, _l]),
    "rates": (None, [_i, _d, _p, _l, _p]),
}


class Rates(NamedTuple):
    """What the machine does in a second: flops in fused multiply-adds, tanh, exp, normals, bytes read and written."""

    flops: float
    tanh: float
    exp: float
    normals: float
    bandwidth: float


def missing() -> str:
    """Return why the loops cannot be built here, or ''."""
    return "" if shutil.which("g++") else "no g++ on this machine"


@functools.cache
def library() -> ctypes.CDLL:
    """Return the loops, compiled where this text, compiler flags and processor have not been compiled yet."""
    command = ["g++", *FLAGS]
    target = subprocess.run([*command, "-Q", "--help=target"], capture_output=True, check=True).stdout
    name = hashlib.sha256(b"".join(path.read_bytes() for path in SOURCES) + repr(FLAGS).encode() + target).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "meanfield-benchmarks"
    cache.mkdir(parents=True, exist_ok=True)
    built = cache / f"fused-{name[:16]}.so"
    if not built.exists():
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            fresh = Path(folder) / built.name
            subprocess.run([*command, "-o", str(fresh), str(SOURCES[0])], check=True)
            fresh.replace(built)
    loaded = ctypes.CDLL(str(built))
    for kind in ("float64", "float32"):
        for function, (returned, arguments) in _SIGNATURES.items():
            entry = getattr(loaded, f"{function}_{kind}")
            entry.restype, entry.argtypes = returned, arguments
    return loaded


def aligned(count: int, dtype: np.dtype) -> np.ndarray:
    """Return an empty array whose first byte lies on a cache line."""
    raw = np.empty(count * dtype.itemsize + 64, np.uint8)
    first = -raw.ctypes.data % 64
    return raw[first : first + count * dtype.itemsize].view(dtype)


def _entry(name: str, dtype: np.dtype):
    return getattr(library(), f"{name}_{dtype.name}")


def room(n: int, keep: int, dtype: np.dtype) -> np.ndarray:
    """Return the array that holds the activations of `keep` particles, rounded up to whole tiles."""
    return aligned((keep + 64) // 64 * 64 * n if keep else 0, dtype)


def euler_step(x, y, z, alpha, lam, eta, seed, step, *, keep=0, kept=None, threads=2) -> None:
    """Make one Euler step with noise on z (m, d + 1) in place, in the precision of z.

    Parameters
    ----------
    x, y : ndarray, shapes (n, d) and (n,), C-contiguous, of the dtype of z
    keep : int
        Activations of so many particles are kept from the prediction (0: all are computed twice; m: none is).
    kept : ndarray, optional
        Where: what `room(n, keep, dtype)` returned. Made anew in every call otherwise, which costs.
    """
    n, d = x.shape
    if kept is None:
        kept = room(n, keep, z.dtype)
    _entry("euler", z.dtype)(
        x.ctypes.data, y.ctypes.data, z.ctypes.data, kept.ctypes.data, n, d, len(z), keep,
        alpha, lam, eta, seed, step, threads,
    )  # fmt: skip


def stepper(x, y, z, alpha, lam, eta, seed, *, keep=0, threads=2):
    """Return a function that makes one step on a copy of z at each call, and that copy; dtypes and room are settled."""
    z = np.array(z, order="C")
    x, y = np.ascontiguousarray(x, z.dtype), np.ascontiguousarray(y, z.dtype)
    kept = room(len(x), keep, z.dtype)
    entry, at = _entry("euler", z.dtype), [0]
    pointers = [a.ctypes.data for a in (x, y, z, kept)]
    sizes = (len(x), x.shape[1], len(z), keep, alpha, lam, eta, seed)

    alive = x, y, z, kept

    def step() -> None:
        entry(*pointers, *sizes, at[0], threads)
        at[0] += len(alive) // 4  # counts steps, and holds the arrays that the pointers belong to

    return step, z


def pairs(z: np.ndarray, scale: float, value: np.ndarray, gradient: np.ndarray, threads: int = 2) -> None:
    """Write (1/m) sum_k exp(-|z_j - z_k|^2 / (2 s^2)) and its gradient in z_j into (m,) and (m, D).

    The straightforward loop over all m^2 pairs: that the kernel is symmetric, and half of them would do, is not used.
    """
    pointers = [a.ctypes.data for a in (z, value, gradient)]
    if _entry("pairs", z.dtype)(z.shape[1], *pointers, len(z), scale, threads):
        raise ValueError(f"fused.cpp has no pairs for D = {z.shape[1]}; add a case to pairs_of")


def normals(out: np.ndarray, seed: int, step: int, threads: int = 2) -> None:
    """Fill (m, D) with standard normals, those of meanfield.noise up to rounding."""
    _entry("normals", out.dtype)(out.ctypes.data, *out.shape, seed, step, threads)


def tanh(w: np.ndarray) -> np.ndarray:
    """Return tanh w by the polynomial that the loops use."""
    h = np.empty_like(w)
    _entry("tanh", w.dtype)(w.ctypes.data, h.ctypes.data, w.size)
    return h


def rates(dtype, threads: int = 2, seconds: float = 0.05, rounds: int = 5) -> Rates:
    """Measure the machine: the best of some rounds, for a floor must not rise when something else runs meanwhile."""
    dtype = np.dtype(dtype)
    stream, best = np.ones(STREAM_BYTES // dtype.itemsize, dtype), np.zeros(5)
    for _ in range(rounds):
        out = np.empty(5)
        _entry("rates", dtype)(threads, seconds, stream.ctypes.data, stream.size, out.ctypes.data)
        best = np.maximum(best, out)
    return Rates(*map(float, best))


def step_floor(n: int, d: int, m: int, dtype, rates: Rates) -> float:
    """Return the floor of an Euler step with noise in seconds: one tanh for each neuron and sample."""
    arithmetic = n * m * (4 * d + 7) / rates.flops + n * m / rates.tanh + m * (d + 1) / rates.normals
    return max(arithmetic, 2 * m * (d + 1) * np.dtype(dtype).itemsize / rates.bandwidth)


def pairs_floor(m: int, width: int, rates: Rates) -> float:
    """Return the floor of the pair interaction over all m^2 pairs in seconds; who works each pair once may be below."""
    return m * m * ((5 * width + 2) / rates.flops + 1 / rates.exp)


def gram_floor(n: int, d: int, m: int, rates: Rates) -> float:
    """Return the floor of forming H in seconds: inner products, one tanh, and two symmetric products."""
    return n * m * (2 * d + 5 + 2 * (n + 1)) / rates.flops + n * m / rates.tanh
