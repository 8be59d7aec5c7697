"""What inputs x (n, d) and labels y (n,) must be: checks, and scaling to Assumption 4.1 of [CCGZ20].

The assumption is |x_i| <= 1 and |y_i| <= 1.  Two inputs whose neurons are proportional make the kernel
singular, Lambda = 0, and Theorem 4.4 of [CCGZ20] empty; `validate` looks for them.  Read next: `datasets`.
"""

import warnings
from typing import Any, NamedTuple

import numpy as np

from meanfield.errors import InputError

LARGEST = 1e100  # squares of larger numbers would not be finite
SAME_DIRECTION = 1e-12  # of 1 - |cos|, far above rounding


class Scale(NamedTuple):
    """The numbers that x and y are divided by, and the sentence that says so."""

    x: float
    y: float
    note: str


def checked(x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return x (n, d) and y (n,) as float64.

    Raises
    ------
    InputError
        If they are not finite numbers, empty, or of other shapes.
    """
    x, y = _numbers("x", x), _numbers("y", y)
    if x.ndim != 2:
        cure = " Type x[:, None] if each input is one number." if x.ndim == 1 else ""
        raise InputError(f"x has shape {x.shape}: wanted (n, d), a row for each input.{cure}")
    if y.ndim != 1:
        cure = " Type y[:, 0]." if y.ndim == 2 and y.shape[1] == 1 else ""
        raise InputError(f"y has shape {y.shape}: wanted (n,), a number for each input.{cure}")
    if x.size == 0:
        raise InputError(f"x has shape {x.shape}, so it is empty: wanted at least one row and one column.")
    if len(x) != len(y):
        raise InputError(f"x has {len(x)} rows and y has {len(y)} numbers: wanted as many of both.")
    for name, array in (("x", x), ("y", y[:, None])):
        bad = np.argwhere(~(np.abs(array) <= LARGEST))
        if len(bad):
            row, column = bad[0]
            raise InputError(
                f"{name} holds {array[row, column]:g} in row {row} (counted from 0): wanted finite numbers "
                f"up to {LARGEST:g}. Take the row out or mend it."
            )
    return x, y


def validate(x: Any, y: Any) -> tuple[str, ...]:
    """Check data and return, and warn of, what makes Lambda = 0; O(n d log n).

    Raises
    ------
    InputError
        As `checked` does, and if all labels are +1 or all are -1.
    """
    x, y = checked(x, y)
    if len(y) > 1 and abs(y[0]) == 1 and np.all(y == y[0]):
        raise InputError(
            f"all {len(y)} labels are {y[0]:+g}, one class only: wanted both +1 and -1. Take more rows or "
            "other classes."
        )
    return doubts(x)


def doubts(x: np.ndarray) -> tuple[str, ...]:
    """Return, and warn of, what makes Lambda = 0: inputs that are zero, equal or parallel; O(n d log n)."""
    notes = tuple(note for find in (_zero, _equal, _parallel) for note in find(x))
    for note in notes:
        warnings.warn(note, UserWarning, stacklevel=3)
    return notes


def scaling(x: np.ndarray, y: np.ndarray, wanted: bool) -> Scale:
    """Return what to divide x and y by so that the largest |x_i| and |y_i| are 1, or ones if not `wanted`.

    Raises
    ------
    InputError
        If it is wanted and x is zero.
    """
    norm, label = float(np.linalg.norm(x, axis=1).max()), float(np.abs(y).max())
    if not wanted:
        fits = max(norm, label) <= 1 + 1e-12
        verdict = "holds" if fits else "fails and its theorems do not apply; data.scale = true would mend it"
        done = f"x and y are left as they are, largest |x| = {norm:.4g}, largest |y| = {label:.4g}"
        return Scale(1.0, 1.0, f"{done}: Assumption 4.1 {verdict}")
    if norm == 0:
        raise InputError("all inputs are zero: wanted inputs that differ.")
    done = f"x is divided by its largest norm {norm:.6g}, y "
    if label in (0.0, 1.0):
        return Scale(norm, 1.0, f"{done}is left as it is: Assumption 4.1 holds")
    return Scale(norm, label, f"{done}by its largest |y| {label:.6g}: Assumption 4.1 holds")


def _numbers(name: str, values: Any) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError:
        raise InputError(f"{name} is ragged: wanted rows of one length.") from None
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name} is of type {array.dtype}: wanted real numbers.")
    return array.astype(np.float64)


def _zero(x: np.ndarray) -> list[str]:
    rows = np.flatnonzero(~x.any(axis=1))
    where = "without bias, Lambda = 0 for every activation with h(0) = 0 (tanh, erf, sin, relu, linear)"
    return [f"input {row} is zero: {where} and Theorem 4.4 does not apply" for row in rows[:1]]


def _equal(x: np.ndarray) -> list[str]:
    _, first, inverse = np.unique(x, axis=0, return_index=True, return_inverse=True)
    keeper = first[inverse.ravel()]
    copies = [(int(keeper[j]), int(j)) for j in np.flatnonzero(keeper != np.arange(len(x)))]
    return _first_of(copies, "equal", "Lambda = 0 for every activation", "; take one of them out")


def _parallel(x: np.ndarray) -> list[str]:
    """Say which is the first pair with x_j = -x_i, and with x_j = c x_i for another c but 1."""
    opposite, stretched = [], []
    for i, j in _same_line(x):
        if np.linalg.norm(x[i] + x[j]) <= SAME_DIRECTION * np.linalg.norm(x[i]):
            opposite.append((i, j))
        elif not np.array_equal(x[i], x[j]):
            stretched.append((i, j))
    odd = "without bias, Lambda = 0 for odd and even activations (tanh, erf, sin, linear)"
    homogeneous = "without bias, Lambda = 0 for linear units, and for relu if they point the same way,"
    return [
        *_first_of(opposite, "opposite", odd, "; network.bias = true mends it"),
        *_first_of(stretched, "parallel", homogeneous, "; other activations are not concerned"),
    ]


def _first_of(pairs: list[tuple[int, int]], word: str, effect: str, cure: str) -> list[str]:
    if not pairs:
        return []
    i, j = min(pairs)
    more = f" (and {len(pairs) - 1} more such pairs)" if len(pairs) > 1 else ""
    return [f"inputs {i} and {j} are {word}{more}: {effect} and Theorem 4.4 does not apply{cure}"]


def _same_line(x: np.ndarray) -> list[tuple[int, int]]:
    """Return pairs (i, j), i < j, on one line through 0: neighbours in the order of a projection."""
    norms = np.linalg.norm(x, axis=1)
    rows = np.flatnonzero(norms)
    unit = x[rows] / norms[rows, None]
    projection = unit @ np.sin(np.arange(1.0, x.shape[1] + 1))
    unit *= np.where(projection < 0, -1.0, 1.0)[:, None]  # one of the two directions of each line
    order = np.argsort(np.abs(projection), kind="stable")
    distance = np.linalg.norm(np.diff(unit[order], axis=0), axis=1)
    near = np.flatnonzero(distance <= SAME_DIRECTION)
    return [(int(min(pair)), int(max(pair))) for pair in zip(rows[order[near]], rows[order[near + 1]], strict=True)]
