"""Data (x, y), scaled to Assumption 4.1 of [CCGZ20], |x_i| <= 1 and |y_i| <= 1, and words on what was done.

In a script call a source: ``x, y = datasets.digits(classes=(3, 8), n=100)``; with `n_test` above 0 it returns
(x, y, x_test, y_test), the test rows scaled like the others.  A run calls `load` with its section
``[data]`` and keeps the notes too.  Recipe for another source: one function here, decorated with `_source`,
that returns ``_prepare(...)``; its parameters are the keys of ``[data]`` that it understands.
"""

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np

from meanfield import readers
from meanfield.config import DataConfig
from meanfield.errors import InputError, did_you_mean
from meanfield.inputs import checked, scaling, validate
from meanfield.noise import Stream, normals
from meanfield.readers import read_csv, read_idx, read_npz

__all__ = ["SOURCES", "Data", "breast_cancer", "check", "csv", "diabetes", "digits", "load", "mnist", "npz",
           "sine", "sphere", "validate"]  # fmt: skip

PathLike = str | os.PathLike[str]
Arrays = tuple[np.ndarray, ...]
P = ParamSpec("P")

SINE_STEP = 0.5  # radians from one value of the sine to the next; no whole number of steps is a period
TEACHER_NEURONS = 5


@dataclass(frozen=True, eq=False)
class Data:
    """Inputs x (n, d), labels y (n,), test rows or None, notes on selection and scaling, input names."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray | None = None
    y_test: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    sha256: str | None = None  # of the files that they were read from

    def arrays(self) -> Arrays:
        """Return (x, y), or (x, y, x_test, y_test) if there are test rows."""
        arrays = (self.x, self.y, self.x_test, self.y_test)
        return tuple(array for array in arrays if array is not None)


SOURCES: dict[str, Callable[..., Data]] = {}


def load(config: DataConfig) -> Data:
    """Return the data that the section ``[data]`` asks for.

    Raises
    ------
    InputError
        If the source is unknown, a key is missing or means nothing to it, its file or numbers are unfit, or the file
        is not the one of ``data.sha256``.
    """
    arguments = check(config)
    data = SOURCES[config.source](**arguments)
    if config.path is None:
        return data
    path = Path(config.path)
    found = readers.sha256(readers.idx_pair(path) if config.source == "mnist" else (path,))
    if config.sha256 not in (None, found):
        raise InputError(
            f"'{path}' is another file than when this configuration was written: its SHA-256 is {found}, wanted "
            f"{config.sha256}. Bring that file back, or type --set data.sha256= to take this one as it is."
        )
    return dataclasses.replace(data, sha256=found)


def check(config: DataConfig) -> dict[str, Any]:
    """Return the arguments of the source, or raise InputError, without touching any data."""
    if config.source not in SOURCES:
        names = ", ".join(f'"{name}"' for name in SOURCES)
        near = did_you_mean(config.source, SOURCES)
        raise InputError(f"data.source = '{config.source}' is unknown: wanted one of {names}.{near}")
    parameters = inspect.signature(SOURCES[config.source]).parameters
    given = {key: value for key in config.keys() if (value := getattr(config, key)) is not None}
    for key, value in given.items():
        if key == "sha256" and "path" in parameters:
            continue
        if key not in (*parameters, "source", "seed") and value != 0:
            raise InputError(
                f"data.{key} = {value!r} means nothing to the source '{config.source}': wanted only "
                f"{', '.join(parameters)}. Take it away."
            )
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in given:
            raise InputError(f"data.{key} did not come: the source '{config.source}' wants it. Type data.{key} = ...")
    return {key: value for key, value in given.items() if key in parameters}


def _source(read: Callable[P, Data]) -> Callable[P, Arrays]:
    """Register a source; the public function checks its arguments as a configuration and returns arrays."""
    signature = inspect.signature(read)
    SOURCES[read.__name__] = read

    @functools.wraps(read)
    def public(*args: P.args, **kwargs: P.kwargs) -> Arrays:
        arguments = signature.bind(*args, **kwargs).arguments
        return load(DataConfig(source=read.__name__, **arguments)).arrays()

    public.__signature__ = signature.replace(return_annotation=Arrays)  # type: ignore[attr-defined]
    return public


@_source
def digits(classes: tuple[int, int] = (3, 8), n: int = 100, n_test: int = 0, seed: int = 0, scale: bool = True) -> Data:
    """Return 8 x 8 images of two handwritten digits (scikit-learn); the first class is +1, the second -1.

    The rows of both classes are permuted by ``numpy.random.default_rng(seed)``; the first n are taken, the
    next n_test are test rows.  x has d = 64 columns.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x, y, note = _two_classes(bunch.data, bunch.target, classes, "digit")
    return _prepare(x, y, [f"digits: {note}"], _pixels(x), scale, n=n, n_test=n_test, seed=seed)


@_source
def breast_cancer(n: int | None = None, n_test: int = 0, seed: int = 0, scale: bool = True) -> Data:
    """Return 30 measurements of cell nuclei (scikit-learn, 569 rows); benign is +1, malignant -1."""
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    y = np.where(bunch.target == 1, 1.0, -1.0)
    notes = ["breast_cancer: benign is +1, malignant is -1"]
    return _prepare(bunch.data, y, notes, tuple(map(str, bunch.feature_names)), scale, n=n, n_test=n_test, seed=seed)


@_source
def diabetes(n: int | None = None, n_test: int = 0, seed: int = 0, scale: bool = True) -> Data:
    """Return 10 measurements of patients and the progression of their disease (scikit-learn, 442 rows)."""
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes()
    notes = ["diabetes: y is the progression after one year"]
    return _prepare(
        bunch.data,
        bunch.target,
        notes,
        tuple(map(str, bunch.feature_names)),
        scale,
        n=n,
        n_test=n_test,
        seed=seed,
    )


@_source
def sphere(
    n: int = 100, d: int = 10, teacher: str = "linear", n_test: int = 0, seed: int = 0, scale: bool = False
) -> Data:
    """Return inputs uniform on the unit sphere with labels of a teacher; n is a prefix of 2 n.

    ``linear``: y = w . x, |w| = 1.  ``network``: y = (1/5) sum_j (-1)^j relu(b_j . x), |b_j| = 1.
    ``random``: y = +1 or -1 with equal chances.
    """
    if teacher not in TEACHERS:
        near = did_you_mean(teacher, TEACHERS)
        raise InputError(f"data.teacher = '{teacher}' is unknown: wanted one of {', '.join(TEACHERS)}.{near}")
    _fits(n + n_test, d)
    x = _directions(seed, 0, n + n_test, d)
    notes = [f"sphere: uniform inputs in dimension {d}, labels of the teacher '{teacher}'"]
    return _prepare(x, TEACHERS[teacher](x, seed), notes, _numbered("x", d), scale, n=n, n_test=n_test)


@_source
def sine(n: int = 200, lags: int = 8, noise: float = 0.1, n_test: int = 0, seed: int = 0, scale: bool = True) -> Data:
    """Return windows of s_t = sin(t/2) + noise xi_t: x holds `lags` values in a row, y is the next one."""
    _fits(n + n_test + lags, lags)
    t = np.arange(n + n_test + lags)
    xi = normals(seed, Stream.DATA, step=0, count=len(t), width=1)[:, 0]
    x, y = _windows(np.sin(SINE_STEP * t) + noise * xi, lags)
    notes = [f"sine: noise of standard deviation {noise:g}, {lags} lagged values predict the next"]
    return _prepare(x, y, notes, _lagged("s", lags), scale, n=n, n_test=n_test)


@_source
def csv(
    path: PathLike,
    target: str | None = None,
    columns: Sequence[str] | None = None,
    lags: int | None = None,
    n: int | None = None,
    n_test: int = 0,
    seed: int = 0,
    scale: bool = True,
) -> Data:
    """Return rows of a CSV file with a header, y the column `target`, x the `columns` (default: all others).

    Rows are permuted by `seed` as in `digits`.  With `lags` the target is a time series: x holds `lags`
    values in a row, y the next one, and rows keep their order.
    """
    if lags is not None:
        return _time_series(path, target, columns, lags, scale, n=n, n_test=n_test)
    if target is None:
        raise InputError("data.target did not come: the source 'csv' wants the name of the column to predict.")
    table = read_csv(path, None if columns is None else (*columns, target))
    if target not in table:
        near = did_you_mean(target, table)
        raise InputError(f"'{path}' has no column '{target}': wanted one of {', '.join(table)}.{near}")
    y = table.pop(target)
    x = np.stack(list(table.values()), axis=1) if table else np.empty((len(y), 0))
    notes = [f"csv: '{target}' from {', '.join(table)} in {Path(path).name}"]
    return _prepare(x, y, notes, tuple(table), scale, n=n, n_test=n_test, seed=seed)


@_source
def npz(path: PathLike, n: int | None = None, n_test: int | None = None, scale: bool = False) -> Data:
    """Return the first rows of arrays x (n, d), y (n,) and, where the file has them, of x_test and y_test."""
    arrays = read_npz(path)
    if not {"x", "y"} <= arrays.keys() or ("x_test" in arrays) != ("y_test" in arrays):
        raise InputError(
            f"'{path}' holds {', '.join(arrays) or 'nothing'}: wanted arrays x and y, with x_test and y_test "
            "or neither of them."
        )
    x, y = checked(arrays["x"], arrays["y"])
    data = _select(x, y, n, 0, None)
    if n_test is None:
        n_test = len(np.atleast_1d(arrays["y_test"])) if "y_test" in arrays else 0
    if n_test > 0:
        x_test, y_test = checked(arrays.get("x_test", x[:0]), arrays.get("y_test", y[:0]))
        test = _select(x_test, y_test, n_test, 0, None)
        data = dataclasses.replace(data, x_test=test.x, y_test=test.y)
    return _scaled(data, [f"npz: {Path(path).name}"], _numbered("x", x.shape[1]), scale)


@_source
def mnist(
    path: PathLike,
    classes: tuple[int, int] = (3, 8),
    n: int | None = None,
    n_test: int = 0,
    seed: int = 0,
    scale: bool = True,
) -> Data:
    """Return images of two digits from IDX files, plain or .gz; chosen and labelled as in `digits`.

    `path` is the file of images, whose labels lie beside it, or a folder with the usual names, in which the
    training set is preferred to the test set.
    """
    images, labels = readers.idx_pair(Path(path))
    x, targets = read_idx(images), read_idx(labels)
    if targets.ndim != 1 or len(x) != len(targets) or x.ndim < 2:
        raise InputError(
            f"'{images}' and '{labels}' hold arrays of shapes {x.shape} and {targets.shape}: wanted as many "
            "images as labels."
        )
    x, y, note = _two_classes(x.reshape(len(x), -1), targets, classes, "digit")
    return _prepare(x, y, [f"mnist: {note} in {images.name}"], _pixels(x), scale, n=n, n_test=n_test, seed=seed)


def _prepare(
    x: np.ndarray,
    y: np.ndarray,
    notes: list[str],
    names: tuple[str, ...],
    scale: bool,
    *,
    n: int | None,
    n_test: int,
    seed: int | None = None,
) -> Data:
    """Check, select and scale; without `seed` the rows keep their order."""
    x, y = checked(x, y)
    return _scaled(_select(x, y, n, n_test, seed), notes, names, scale)


def _select(x: np.ndarray, y: np.ndarray, n: int | None, n_test: int, seed: int | None) -> Data:
    rows = len(x)
    n = max(rows - n_test, 1) if n is None else n
    if n + n_test > rows:
        test = f" and data.n_test = {n_test}" if n_test else ""
        raise InputError(f"data.n = {n}{test} came: wanted at most {rows} rows, all that the source has.")
    order = np.arange(rows) if seed is None else np.random.default_rng(seed).permutation(rows)
    first, rest = order[:n], order[n : n + n_test]
    how = "in their order" if seed is None else f"permuted by seed {seed}"
    taken = f"all {n}" if n == rows else f"the first {n} of {rows}"
    note = f"rows {how}, {taken} taken" + (f", the next {n_test} to test" if n_test else "")
    x_test, y_test = (x[rest], y[rest]) if n_test else (None, None)
    return Data(x[first], y[first], x_test, y_test, (note,))


def _scaled(data: Data, notes: list[str], names: tuple[str, ...], wanted: bool) -> Data:
    """Scale the test rows with the others, and check what comes out."""
    scale = scaling(data.x, data.y, wanted)
    x, y = data.x / scale.x, data.y / scale.y
    warnings = validate(x, y)
    x_test = None if data.x_test is None else data.x_test / scale.x
    y_test = None if data.y_test is None else data.y_test / scale.y
    return Data(x, y, x_test, y_test, (*notes, *data.notes, scale.note, *warnings), names)


def _two_classes(x: np.ndarray, labels: np.ndarray, classes: tuple[int, int], word: str) -> Any:
    """Return the rows of both classes in the order they have, y = +1 for the first and -1 for the second."""
    for label in classes:
        if not np.any(labels == label):
            raise InputError(
                f"data.classes = {list(classes)} came, but no row has the label {label}: wanted two of "
                f"{', '.join(str(label) for label in np.unique(labels))}."
            )
    rows = np.isin(labels, classes)
    note = f"{word} {classes[0]} is +1, {word} {classes[1]} is -1"
    return x[rows], np.where(labels[rows] == classes[0], 1.0, -1.0), note


def _time_series(
    path: PathLike, target: str | None, columns: Sequence[str] | None, lags: int, scale: bool, **counts: Any
) -> Data:
    names = {*([target] if target else []), *(columns or ())}
    if len(names) != 1:
        raise InputError(
            f"data.lags = {lags} wants one column, the time series, as data.target; "
            f"{' and '.join(sorted(names)) or 'none'} came."
        )
    (name,) = names
    x, y = _windows(read_csv(path, (name,))[name], lags)
    notes = [f"csv: {lags} lagged values of '{name}' in {Path(path).name} predict the next"]
    return _prepare(x, y, notes, _lagged(name, lags), scale, **counts)


def _fits(rows: int, columns: int) -> None:
    """Refuse inputs that would take more memory than a file of data may."""
    need = 8 * rows * (columns + 1)
    if need > readers.BUDGET:
        raise InputError(
            f"data of {rows:,} rows and {columns:,} columns take {need / 2**30:,.1f} GB of memory: wanted at most "
            f"{readers.BUDGET / 2**30:g} GB. Take a smaller data.n, data.d or data.lags."
        )


def _windows(series: np.ndarray, lags: int) -> Arrays:
    if len(series) <= lags:
        raise InputError(f"data.lags = {lags} came with {len(series)} values: wanted fewer lags than values.")
    _fits(len(series) - lags, lags)
    windows = np.lib.stride_tricks.sliding_window_view(series, lags + 1)
    return windows[:, :-1], windows[:, -1]


def _directions(seed: int, step: int, count: int, d: int) -> np.ndarray:
    """Return points uniform on the unit sphere, shape (count, d)."""
    points = normals(seed, Stream.DATA, step=step, count=count, width=d)
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def _linear(x: np.ndarray, seed: int) -> np.ndarray:
    return np.einsum("ij,j->i", x, _directions(seed, 1, 1, x.shape[1])[0])


def _network(x: np.ndarray, seed: int) -> np.ndarray:
    neurons = np.einsum("ij,kj->ki", x, _directions(seed, 1, TEACHER_NEURONS, x.shape[1]))
    return sum((-1) ** k * np.maximum(neuron, 0) for k, neuron in enumerate(neurons)) / TEACHER_NEURONS


def _random(x: np.ndarray, seed: int) -> np.ndarray:
    return _directions(seed, 1, len(x), 1)[:, 0]


TEACHERS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "linear": _linear,
    "network": _network,
    "random": _random,
}


def _numbered(name: str, d: int) -> tuple[str, ...]:
    return tuple(f"{name}{j}" for j in range(d))


def _pixels(x: np.ndarray) -> tuple[str, ...]:
    return _numbered("pixel ", x.shape[1])


def _lagged(name: str, lags: int) -> tuple[str, ...]:
    return tuple(f"{name}, {lag} before" for lag in range(lags, 0, -1))
