"""Solutions of the limit equation without particles: what is read of a law, and the record of all readings.

A solver is a `Model`: it starts a state, moves it, reads it. `hermite` and `finite_volumes` hold the two there are,
`fokker_planck` runs them. The law is that of z = (theta, u) with one input, theta in R.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import numpy as np

from meanfield import parallel
from meanfield.errors import InputError
from meanfield.risk import Risk
from meanfield.transport import gelbrich

if TYPE_CHECKING:
    import xarray

Array = np.ndarray
TRAINED = ("both", "u", "theta")


class Reading(NamedTuple):
    """What is read of a law p; in `Solution.series` every entry has a leading axis of times.

    Attributes
    ----------
    prediction : ndarray, shape (n,)
        f_i = alpha E_p psi_i.
    kl, fisher : float
        KL(p || p0) in nats and I = E_p |grad log(p / p0)|^2.
    mean, covariance : ndarray, shapes (2,) and (2, 2)
        Of (theta, u).
    gram, generator : ndarray, shapes (n, n) and (n,)
        H_ij = E_p <grad psi_i, grad psi_j> and e_i = E_p[Laplace psi_i - z . grad psi_i], over what is trained.
    lowest : float
        Smallest p / p0 on the solver's grid: negative where an expansion has failed.
    tail : float
        The solver's own indicator of what it leaves out.
    """

    prediction: Array
    kl: Any
    fisher: Any
    mean: Array
    covariance: Array
    gram: Array
    generator: Array
    lowest: Any
    tail: Any


class Model(Protocol):
    """A solver: states are arrays, moves are pure; `sharpest` is the smallest tolerance that short moves should ask."""

    sharpest: ClassVar[float]

    @property
    def risk(self) -> Risk:
        """The risk that is minimised."""

    @property
    def lam(self) -> float:
        """The strength of noise and decay."""

    @property
    def train(self) -> str:
        """What is trained: "both", "u" or "theta"."""

    def start(self) -> Array:
        """Return the state of p0."""

    def advance(self, state: Array, duration: float, tolerance: float | None = None) -> "Moved":
        """Return the state after `duration`; `tolerance` replaces the model's own."""

    def read(self, state: Array) -> Reading:
        """Return what is read of a state."""

    def density(self, state: Array, theta: Array, u: Array) -> Array:
        """Return the density of the law at points, which broadcast."""


class Moved(NamedTuple):
    """A state and, where they were asked of the model, the times since it left and Q after each step on the way."""

    state: Array
    times: tuple[float, ...] = ()
    energies: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Solution:
    """A solution of (3.4) of [CCGZ20] from p0, read at given times.

    Attributes
    ----------
    model : Model
        The solver, with the risk and lam.
    times : ndarray, shape (T,)
    series : Reading
        Readings, each with a leading axis of length T.
    states : tuple
        The solver's states at the times; `density` reads them.
    coarser : Solution or None
        The same with fewer modes or cells, for `error`.
    path_times, path_energies : ndarray
        Time and Q at the end of every step of the finite volumes; empty for the spectral solver.
    """

    model: Model
    times: Array
    series: Reading
    states: tuple[Array, ...]
    coarser: "Solution | None" = None
    path_times: Array = field(default_factory=lambda: np.empty(0))
    path_energies: Array = field(default_factory=lambda: np.empty(0))

    @property
    def risk(self) -> Risk:
        """The risk that is minimised."""
        return self.model.risk

    @property
    def lam(self) -> float:
        """The strength of noise and decay."""
        return self.model.lam

    @property
    def prediction(self) -> Array:
        """Predictions f, shape (T, n)."""
        return self.series.prediction

    @property
    def residual(self) -> Array:
        """Residuals r = f - y, shape (T, n)."""
        return self.prediction - self.risk.y

    @property
    def loss(self) -> Array:
        """The loss L = |r|^2 / n, shape (T,)."""
        return (self.residual**2).mean(axis=1)

    @property
    def kl(self) -> Array:
        """KL(p_t || p0) in nats, shape (T,)."""
        return np.asarray(self.series.kl)

    @property
    def energy(self) -> Array:
        """Q = L + lam KL, shape (T,)."""
        return self.loss + self.lam * self.kl

    @property
    def eigenvalues(self) -> Array:
        """Eigenvalues of H, ascending, shape (T, n)."""
        return np.linalg.eigvalsh(self.series.gram)

    @property
    def drift_square(self) -> Array:
        """B = E|b|^2 = (4 alpha^2 / n^2) r' H r, shape (T,)."""
        r, scale = self.residual, 2 * self.risk.alpha / self.risk.n
        return scale**2 * np.einsum("ti,tij,tj->t", r, self.series.gram, r)

    @property
    def noise_work(self) -> Array:
        """S = (2 alpha / n) r . e, shape (T,)."""
        return 2 * self.risk.alpha / self.risk.n * np.einsum("ti,ti->t", self.residual, self.series.generator)

    @property
    def fisher(self) -> Array:
        """I = E_p |grad log(p / p0)|^2, shape (T,)."""
        return np.asarray(self.series.fisher)

    @property
    def dissipation(self) -> Array:
        """-dQ/dt = B - 2 lam S + lam^2 I, shape (T,)."""
        return self.drift_square - 2 * self.lam * self.noise_work + self.lam**2 * self.fisher

    @property
    def second_moment(self) -> Array:
        """E|z|^2 / D, shape (T,)."""
        square = (self.series.mean**2).sum(axis=1) + np.trace(self.series.covariance, axis1=1, axis2=2)
        return square / self.series.mean.shape[1]

    @property
    def w2_lower(self) -> Array:
        """Gelbrich's lower bound on W2(p_t, p0), exact for Gaussian laws, shape (T,); of theta where u is frozen."""
        kept = slice(0, 1 if self.model.train == "theta" else 2)
        pairs = zip(self.series.mean[:, kept], self.series.covariance[:, kept, kept], strict=True)
        return np.sqrt([gelbrich(mean, covariance) for mean, covariance in pairs])

    @property
    def w2_upper(self) -> Array:
        """Talagrand's upper bound sqrt(2 KL) on W2(p_t, p0), shape (T,)."""
        return np.sqrt(2 * np.maximum(self.kl, 0.0))

    def density(self, theta: Any, u: Any, at: int = -1) -> Array:
        """Return the density of p at points (which broadcast) at the time `times[at]`."""
        theta, u = np.broadcast_arrays(np.asarray(theta, dtype=np.float64), np.asarray(u, dtype=np.float64))
        return self.model.density(self.states[at], theta, u)

    @cached_property
    def error(self) -> dict[str, Array]:
        """Estimated numerical errors by name of `data`: what the coarser solution changes. Estimates, not bounds.

        Empty if they were not asked for.
        """
        if self.coarser is None:
            return {}
        found = {name: (get(self), get(self.coarser)) for name, (_, get) in QUANTITIES.items()}
        return {name: np.abs(fine - coarse) for name, (fine, coarse) in found.items() if name not in INDICATORS}

    @property
    def data(self) -> "xarray.Dataset":
        """Everything that was read, under the names of the records of a run; `<name>_error` where it is estimated."""
        import xarray

        coords = {"time": self.times, "sample": np.arange(self.risk.n)}
        variables: dict[str, Any] = {}
        for name, (text, get) in QUANTITIES.items():
            values = get(self)
            dims = ("time", "sample")[: values.ndim]
            variables[name] = (dims, values, {"long_name": text})
            if name in self.error:
                note = {"long_name": f"estimated numerical error of {name}"}
                variables[f"{name}_error"] = (dims, self.error[name], note)
        variables["label"] = (("sample",), self.risk.y, {"long_name": "label y"})
        attrs = {
            "alpha": self.risk.alpha,
            "lam": self.lam,
            "train": self.model.train,
            "activation": self.risk.unit.h.name,
        }
        return xarray.Dataset(variables, coords, attrs)


# Name in the Dataset -> (what it is, how it is found).
QUANTITIES: dict[str, tuple[str, Callable[[Solution], Array]]] = {
    "loss": ("mean loss over the samples", lambda s: s.loss),
    "prediction": ("network output on the training inputs", lambda s: s.prediction),
    "kl": ("KL(p_t || p0) in nats", lambda s: s.kl),
    "energy": ("Q = L + lam KL", lambda s: s.energy),
    "fisher": ("E_p |grad log(p / p0)|^2", lambda s: s.fisher),
    "second_moment": ("E|z|^2 / D", lambda s: s.second_moment),
    "drift_rms": ("rms drift sqrt(E|b|^2)", lambda s: np.sqrt(np.maximum(s.drift_square, 0.0))),
    "noise_work": ("S = (2 alpha / n) r . e", lambda s: s.noise_work),
    "dissipation": ("-dQ/dt", lambda s: s.dissipation),
    "generator": ("e_i = E_p[Laplace psi_i - z . grad psi_i]", lambda s: s.series.generator),
    "ntk_eigenvalue_min": ("smallest eigenvalue of H", lambda s: s.eigenvalues[:, 0]),
    "ntk_eigenvalue_max": ("largest eigenvalue of H", lambda s: s.eigenvalues[:, -1]),
    "w2_lower": ("Gelbrich's lower bound on W2(p_t, p0)", lambda s: s.w2_lower),
    "w2_upper": ("Talagrand's upper bound on W2(p_t, p0)", lambda s: s.w2_upper),
    "lowest_ratio": ("smallest p / p0 on the grid", lambda s: np.asarray(s.series.lowest)),
    "tail": ("the solver's own indicator of what it leaves out", lambda s: np.asarray(s.series.tail)),
}

INDICATORS = ("lowest_ratio", "tail")


def solve(model: Model, times: Array) -> Solution:
    """Return the solution of a model from p0, read at ascending times."""
    state, now = model.start(), 0.0
    states, readings = [], []
    path: list[Array] = []
    with parallel.single_threaded_blas():  # the matrices are small
        for time in times:
            moved = model.advance(state, float(time) - now)
            path.append(np.column_stack([now + np.asarray(moved.times), moved.energies]).reshape(-1, 2))
            state, now = moved.state, float(time)
            states.append(state)
            readings.append(model.read(state))
    series = Reading(*(np.array(values) for values in zip(*readings, strict=True)))
    steps = np.concatenate(path)
    return Solution(model, times, series, tuple(states), path_times=steps[:, 0], path_energies=steps[:, 1])


# --- what can be solved


def checked_times(times: Any) -> Array:
    """Return times as an array, or say what is wrong with them."""
    found = np.atleast_1d(np.asarray(times, dtype=np.float64))
    if found.ndim != 1 or not found.size or not np.isfinite(found).all() or found[0] < 0 or (np.diff(found) <= 0).any():
        raise InputError(f"times must be ascending, finite and not negative, such as [0.1, 1.0]; got {times!r}.")
    return found


def check_problem(risk: Any, lam: float, train: str) -> None:
    """Refuse what the solvers of one input cannot solve."""
    if not isinstance(risk, Risk):
        raise InputError(f"the equation is solved for a Risk, got {type(risk).__name__}; write mf.Risk(x, y, ...).")
    width = risk.inputs.shape[1]
    if width != 1:
        raise InputError(
            f"these solvers have one inner weight: x of shape (n, 1) and no bias; here are {width}. "
            "Give one column of x and Unit(..., bias=False), or use particles: mf.simulate."
        )
    if risk.loss != "square":
        raise InputError(f"these solvers have the square loss, got '{risk.loss}'; write mf.Risk(..., loss='square').")
    if not (np.isfinite(lam) and lam > 0):
        raise InputError(f"lam must be positive and finite, got {lam!r}: without noise there is no density.")
    if train not in TRAINED:
        raise InputError(f"train must be one of {', '.join(map(repr, TRAINED))}; got {train!r}.")


def whole(name: str, value: Any, least: int, example: str) -> tuple[int, int]:
    """Return a pair of whole numbers of at least `least` from a number or a pair."""
    pair = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(pair) != 2 or not all(isinstance(v, int | np.integer) and v >= least for v in pair):
        raise InputError(
            f"{name} is a whole number of at least {least} or a pair of them, as {example}; got {value!r}."
        )
    return int(pair[0]), int(pair[1])
