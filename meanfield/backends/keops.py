"""The KeOps backend: predictions, fields and pair interactions as formulas that KeOps compiles when first used.

KeOps [Charlier21] writes a loop for each formula, dimension and dtype and compiles it with the C++ compiler: 6 seconds
once, kept on disk. It serves as an independent route, and for kernels on a GPU that KeOps sees; on a CPU the numpy and
Numba backends are faster. `predict`, `pullback`, kicks without account, `move` and `descend` run here. What KeOps has
no reduction for, outer products of a particle's values (Gram matrices, covariances) and the bounds of the account, is
the numpy backend's: `measure`, `roughness`, and kicks with account.

KeOps has no tanh, which is 1 - 2 / (1 + exp 2w) here, and no erf; activations are the built-in ones but `erf` and
`erf_sqrt2`. Its `use_fast_math` is off and sums are float64.
"""

import atexit
import contextlib
import importlib
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from meanfield import interactions, noise, parallel
from meanfield.backends import Backend, Motion, Moved, Particles, reference
from meanfield.errors import InputError
from meanfield.interactions import ErfPair, Gaussian, Kernel, ReluPair
from meanfield.noise import Stream
from meanfield.units import ACTIVATIONS, Activation

Array = np.ndarray
BLOCK = 1024  # particles in a block of noise

# h and h' of w in KeOps' words
_ONE, _TWO = "IntCst(1)", "IntCst(2)"
_TANH, _SIGMOID = f"({_ONE} - {_TWO} / ({_ONE} + Exp({_TWO} * w)))", f"({_ONE} / ({_ONE} + Exp(Minus(w))))"
WORDS = {
    "tanh": (_TANH, f"({_ONE} - Square({_TANH}))"),
    "sigmoid": (_SIGMOID, f"({_SIGMOID} * ({_ONE} - {_SIGMOID}))"),
    "relu": ("ReLU(w)", f"({_ONE} - Step(Minus(w)))"),
    "softplus": (f"(ReLU(w) + Log({_ONE} + Exp(Minus(Abs(w)))))", _SIGMOID),
    "sin": ("Sin(w)", "Cos(w)"),
    "linear": ("w", f"({_ONE} + IntCst(0) * w)"),
}
# Pair kernels as sums over j of (value, vector): p and q the points' and particles' vectors, m masses, a numbers of p.
_COSINE = "Clamp((p|q), IntCst(-1), IntCst(1))"
_SINE2 = f"(({_ONE} - {_COSINE}) * ({_ONE} + {_COSINE}))"
_REST = f"(a + Asin({_COSINE}))"
PAIRS: dict[type, str] = {
    Gaussian: "(m * Exp(Minus(a) * SqDist(p, q))) * Concat(IntCst(1), q - p)",
    ErfPair: f"m * Concat(Asin({_COSINE}), Rsqrt(a + ReLU({_SINE2} - a)) * (q - {_COSINE} * p))",
    ReluPair: f"m * Concat(Sqrt({_SINE2}) + {_REST} * {_COSINE}, {_REST} * q + Sqrt({_SINE2}) * p)",
}


def unavailable() -> str:
    """Return why this backend cannot run here, as a sentence; empty if it can."""
    if find_spec("pykeops") is None:
        return 'pykeops is not installed: pip install "meanfield-nn[keops]"'
    compilers = (os.environ.get("CXX", ""), "g++", "clang++" if sys.platform == "darwin" else "")
    if not any(name and shutil.which(name) for name in compilers):
        return "KeOps needs a C++ compiler, g++ or the one named by CXX, and there is none on the path."
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        return "KeOps compiles against Python's headers (Python.h), and they are not installed."
    return ""


# --- one reduction


def folder() -> Path:
    """Return where compiled formulas are kept: KEOPS_CACHE_FOLDER, or a folder of ours among the user's caches."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "meanfield", "keops")
    path = Path(os.environ.get("KEOPS_CACHE_FOLDER") or cache)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        path = Path(tempfile.mkdtemp(prefix="meanfield-keops-"))
        atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


_state: dict[str, Any] = {"folder": None, "build": None, "openmp": None, "ready": {}}


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Let one process at a time compile: KeOps writes its libraries in place, and another might load half of one."""
    import fcntl

    with open(_state["folder"] / "lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _load() -> None:
    """Import pykeops silently, with its cache where `folder` says; one that was imported before stays as it is.

    KeOps also keeps an index of formulas, which every process writes at its end and reads at its start, unprotected.
    It is not kept here: what is found again is found by the names of the libraries.
    """
    if _state["folder"] is not None:
        return
    reason = unavailable()
    if reason:
        raise InputError(reason)
    _state["folder"] = folder()
    if "pykeops" in sys.modules:
        return
    ours = {"PYKEOPS_VERBOSE": "0", "KEOPS_VERBOSE": "0", "KEOPS_CACHE_FOLDER": str(_state["folder"])}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        with _alone():
            io = importlib.import_module("pykeops.common.keops_io")
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
    dll = importlib.import_module("keopscore.get_keops_dll")
    for index in (dll.get_keops_dll, *io.keops_binder.values()):
        atexit.unregister(index.save_cache)
    if not before["KEOPS_CACHE_FOLDER"]:
        _state["build"] = importlib.import_module("keopscore.config").config.get_build_folder()


def reduce(formula: str, *variables: tuple[str, Any]) -> Any:
    """Return the sum over j of a formula, one row for every i, of the kind and dtype of its variables.

    Parameters
    ----------
    formula : str
        In KeOps' words.
    variables : pairs of a kind and an array of rows
        The kind is a name with i or j before it: ("i x", array of shape (n, d)). Arrays of numpy, or tensors of torch:
        then the sum runs where they are.
    """
    _load()
    arrays = [array for _, array in variables]
    binding = "torch" if type(arrays[0]).__module__.startswith("torch") else "numpy"
    aliases = []
    for kind, array in variables:
        index, name = kind.split()
        aliases.append(f"{name} = V{index}({array.shape[1]})")
    key = (binding, formula, *aliases, str(arrays[0].dtype))
    if key not in _state["ready"]:
        genred = importlib.import_module(f"pykeops.{binding}").Genred
        reduction = genred(formula, aliases, axis=1, dtype_acc="float64", use_fast_math=False)
        with _alone():
            _compile(reduction, arrays)
        _state["ready"][key] = reduction
    with _openmp():
        return _state["ready"][key](*arrays)


def _compile(reduction: Callable[..., Any], arrays: list[Any]) -> None:
    """Run a reduction on one row of each, which compiles it, under a mark that stays if the process is killed here.

    To load half a library can end the process; so a mark that is found empties the folder first.
    """
    mark, rows = Path(_state["folder"], "compiling"), [array[:1] for array in arrays]
    if mark.exists():
        _clear()
    mark.touch()
    try:
        reduction(*rows)
    except (ImportError, OSError) as error:
        folder = _state["folder"]
        raise InputError(f"KeOps cannot compile or load a formula; empty {folder} and try again. {error}") from error
    mark.unlink(missing_ok=True)


def _clear() -> None:
    """Empty the folder of compiled formulas, if it is ours; those that are loaded go on working."""
    if _state["build"] is not None:
        for path in Path(_state["build"]).iterdir():
            if "nvrtc" not in path.name:  # what KeOps compiles for GPUs when it is imported
                path.unlink()


def _openmp() -> contextlib.AbstractContextManager:
    """Return the limit on KeOps' threads: that of `parallel`."""
    if _state["openmp"] is None:
        from threadpoolctl import ThreadpoolController

        _state["openmp"] = ThreadpoolController()
    return _state["openmp"].limit(limits=parallel.threads(), user_api="openmp")


# --- the contract


def words(activation: Activation) -> tuple[str, str]:
    """Return h and h' of w in KeOps' words; InputError for an activation that they cannot say."""
    if ACTIVATIONS.get(activation.name) is not activation or activation.name not in WORDS:
        known = ", ".join(WORDS)
        raise InputError(
            f"KeOps has no words for the activation '{activation.name}'; it has for {known}. Use another backend."
        )
    return WORDS[activation.name]


def _rows(array: Array, dtype: np.dtype) -> Array:
    return np.ascontiguousarray(array.reshape(len(array), -1), dtype)


def predict(activation: Activation, x: Array, z: Array, weights: Array | None = None) -> Array:
    """Return sum_j w_j psi_i(z_j), shape (n,). O(n d) a particle."""
    h, _ = words(activation)
    mass = 1.0 / len(z) if weights is None else weights
    theta, v = _rows(z[:, :-1], z.dtype), _rows(mass * z[:, -1], z.dtype)
    psi = reduce(f"v * {h}".replace("w", "(x|t)"), ("i x", _rows(x, z.dtype)), ("j t", theta), ("j v", v))
    return psi[:, 0].astype(np.float64)


def pullback(activation: Activation, x: Array, z: Array, c: Array, train: str = "both") -> Array:
    """Return sum_i c_i grad psi_i(z_j), shape (m, D), zero where a coordinate is not trained. O(n d) a particle."""
    h, h1 = words(activation)
    formula = f"c * Concat({h1} * x, {h})".replace("w", "(x|t)")
    variables = ("i t", _rows(z[:, :-1], z.dtype)), ("j x", _rows(x, z.dtype)), ("j c", _rows(c, z.dtype))
    b = reduce(formula, *variables)
    b[:, :-1] *= 0 if train == "u" else z[:, -1:]
    if train == "theta":
        b[:, -1] = 0
    return b


def kick(
    activation: Activation,
    x: Array,
    z: Array,
    reference_cloud: Array | None,
    weights: Array | None,
    c: Array,
    eps: float,
    train: str = "both",
    *,
    account: bool = False,
    at: Array | None = None,
) -> Moved:
    """Return z + eps b(z); with `account` it is the numpy backend's. See `reference.kick`."""
    if account:
        return reference.kick(activation, x, z, reference_cloud, weights, c, eps, train, account=True, at=at)
    return Moved(z + z.dtype.type(eps) * pullback(activation, x, z if at is None else at, c, train))


def midpoint_kick(
    activation: Activation,
    x: Array,
    z: Array,
    reference_cloud: Array | None,
    weights: Array | None,
    c: Array,
    eps: float,
    train: str = "both",
    *,
    account: bool = False,
    variance: float = 1.0,
) -> Moved:
    """Return z + eps b(z + eps b(z) / 2); with `account` it is the numpy backend's. See `reference.midpoint_kick`."""
    if account:
        return reference.midpoint_kick(
            activation, x, z, reference_cloud, weights, c, eps, train, account=True, variance=variance
        )
    middle = kick(activation, x, z, None, None, c, 0.5 * eps, train).z
    return kick(activation, x, z, None, None, c, eps, train, at=middle)


def move(
    activation: Activation,
    x: Array,
    z: Array,
    reference_cloud: Array | None,
    c: Array,
    motion: Motion,
    train: str = "both",
    *,
    out: Particles | None = None,
) -> Particles:
    """Return cloud and reference after kick, channel and kick along b = sum_i c_i grad psi_i; see `reference.move`."""
    there, far = out or (np.empty_like(z), None if reference_cloud is None else np.empty_like(reference_cloud))
    columns = {"both": slice(None), "u": slice(-1, None), "theta": slice(None, -1)}[train]
    here = z + z.dtype.type(motion.before) * pullback(activation, x, z, c, train) if motion.before else z.copy()
    decay, sigma = z.dtype.type(motion.decay), z.dtype.type(motion.sigma)
    if far is not None:
        far[:] = reference_cloud

    def channel(part: slice) -> None:
        xi = noise.normals(
            motion.seed, Stream.DIFFUSION, step=motion.step, replicate=motion.replicate, first=part.start,
            count=part.stop - part.start, width=z.shape[1], dtype=z.dtype,
        )[:, columns]  # fmt: skip
        here[part, columns] = decay * here[part, columns] + sigma * xi
        if far is not None:
            far[part, columns] = decay * far[part, columns] + sigma * xi

    parallel.each_block(channel, len(z), BLOCK)
    if motion.after:
        here += z.dtype.type(motion.after) * pullback(activation, x, here, c, train)
    there[:] = here
    return there, far


def descend(
    activation: Activation,
    x: Array,
    z: Array,
    reference_cloud: Array | None,
    weights: Array | None,
    coefficients: Callable[[Array], Array],
    motion: Motion,
    train: str = "both",
    *,
    centred: bool = False,
    out: Particles | None = None,
) -> Particles:
    """Return cloud and reference after an explicit step: `predict`, then `move`; see `reference.descend`."""
    psi = predict(activation, x, z, weights)
    if centred and reference_cloud is not None:
        psi = psi - predict(activation, x, reference_cloud, weights)
    return move(activation, x, z, reference_cloud, coefficients(psi), motion, train, out=out)


def interact(kernel: Kernel, points: Any, z: Any, weights: Any = None) -> tuple[Any, Any]:
    """Return sum_j w_j k(p, z_j) and its gradient in p, of the kind of `points`; see `interactions.interact`.

    Points that are tensors of torch give tensors, and the sum runs where they are. InputError for a kernel that is not
    written here.
    """
    if type(kernel) not in PAIRS:
        known = ", ".join(kind.__name__ for kind in PAIRS)
        raise InputError(f"pair kernels in KeOps' words are {known}, got {kernel!r}; interactions takes any record.")
    if type(points).__module__.startswith("torch"):
        import torch

        device, masses = points.device, None if weights is None else weights.detach().cpu().numpy()
        here, there = (array.detach().cpu().numpy() for array in (points, z))
        pair = _interact(kernel, here, there, masses, lambda array: torch.from_numpy(array).to(device))
        return torch.from_numpy(pair[0]).to(device), torch.from_numpy(pair[1]).to(device)
    return _interact(kernel, points, z, weights, np.asarray)


def _interact(kernel: Any, points: Array, z: Array, weights: Array | None, kind: Any) -> tuple[Array, Array]:
    points, z, mass = interactions.checked(points, z, weights)
    u, p, q, one = points[:, -1], points[:, :-1], z[:, :-1], np.ones(len(points))
    if isinstance(kernel, Gaussian):
        centre = z.mean(axis=0)
        p, q, a = points - centre, z - centre, one * (0.5 / kernel.bandwidth**2)
    elif isinstance(kernel, ErfPair):
        (length, p), q, mass = interactions.shortened(p), interactions.shortened(q)[1], mass * z[:, -1]
        a = 0.5 / length**2
    else:
        (length, p), (other, q) = interactions.polar(p), interactions.polar(q)
        mass, a = mass * z[:, -1] * other, one * (0.5 * np.pi)
    named = ("i p", p), ("j q", q), ("j m", mass), ("i a", a)
    sums = reduce(PAIRS[type(kernel)], *((name, kind(_rows(array, points.dtype))) for name, array in named))
    sums = np.asarray(sums.cpu() if hasattr(sums, "cpu") else sums)
    if isinstance(kernel, Gaussian):
        return sums[:, 0], sums[:, 1:] / points.dtype.type(kernel.bandwidth**2)
    value, gradient = kernel.finished(u, length, sums[:, 1:], sums[:, 0])
    return value.astype(points.dtype, copy=False), gradient.astype(points.dtype, copy=False)


BACKEND = Backend(
    "keops", predict, pullback, reference.measure, kick, midpoint_kick, reference.roughness, move, descend,
    np.asarray, np.asarray,
)  # fmt: skip
