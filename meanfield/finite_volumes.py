r"""The limit equation for one input by finite volumes: positive, of mass one, with an energy that falls.

Space: Scharfetter-Gummel fluxes on a uniform grid of cells (`markov`), second order. Time: over a step tau the
residual is replaced by a constant J, so that the chain is linear and its exponential exact, and J solves

    p' = exp(tau A(J)) p,      J = r + W (f(p') - f(p)),      W = 1 / (1 - e^-x) - 1 / x,  x = kappa H tau.

W is what makes J the mean over the step of the solution of (I1) with frozen H, as in the kernel schemes; it is 1/2 to
leading order, so the scheme is of second order, and it does not oscillate where kappa H tau is large. Since W >= 1/2
and L is convex, L(p') - L(p) <= <V_J, p' - p>, V_J the potential of J; and the chain lowers <V_J, p> + lam KL. Hence Q
falls in every step, however long, up to the accuracy of J.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from meanfield.errors import DivergedError, InputError
from meanfield.markov import Chain, bernoulli_pair
from meanfield.risk import Risk
from meanfield.schemes import mean_residual, phi1
from meanfield.solution import Moved, Reading

Array = np.ndarray
# J is accepted where its equation holds to this, relative to |r| + |y|, and to rounding, relative to alpha; so many
# corrections are tried.
ACCURACY, ROUNDING, MOST_CORRECTIONS = 1e-12, 2e-14, 40
SMALLEST, LARGEST, SAFETY = 0.2, 3.0, 0.8
FIRST = 1e-2


@dataclass(frozen=True, eq=False)
class Cells:
    """A grid of cells: the products of cells along theta and along u, or values of u that stay as they are.

    Attributes
    ----------
    theta, u : ndarray, shapes (N,) and (M,)
        Centres.
    share : ndarray, shape (M,)
        Mass of p0 in each row of u.
    widths : (float, float)
        Of a cell; the second is 0 where u is a list of values.
    """

    theta: Array
    u: Array
    share: Array
    widths: tuple[float, float]

    @cached_property
    def start(self) -> Array:
        """The masses of p0, shape (N, M): p0 at the centres, normalised."""
        return np.outer(normalised(np.exp(-0.5 * self.theta**2)), self.share)


def normalised(masses: Array) -> Array:
    """Return masses that add up to one."""
    return masses / masses.sum()


def centres(count: int, edge: float) -> Array:
    """Return the centres of `count` cells that fill [-edge, edge]."""
    return (np.arange(count) + 0.5) * (2 * edge / count) - edge


def plane(cells: tuple[int, int], box: tuple[float, float]) -> Cells:
    """Return a grid of (theta, u) over [-box[0], box[0]] x [-box[1], box[1]]."""
    theta, u = (centres(count, edge) for count, edge in zip(cells, box, strict=True))
    return Cells(theta, u, normalised(np.exp(-0.5 * u**2)), (2 * box[0] / cells[0], 2 * box[1] / cells[1]))


def lines(cells: int, box: float, u: Array, share: Array) -> Cells:
    """Return a grid of theta over [-box, box] for each value of u, which has the mass `share`."""
    return Cells(centres(cells, box), u, normalised(share), (2 * box / cells, 0.0))


@dataclass(frozen=True, eq=False)
class Volumes:
    """The finite-volume solver; see the module.

    Attributes
    ----------
    risk : Risk
        One input, the square loss.
    lam : float
    cells : Cells
    tolerance : float
        Largest error of a time step in total variation, estimated by halving it.
    train : str
        "both", "u" or "theta".
    """

    risk: Risk
    lam: float
    cells: Cells
    tolerance: float = 1e-6
    train: str = "both"
    sharpest: ClassVar[float] = 1e-10

    @cached_property
    def _features(self) -> tuple[Array, Array]:
        """h_i and x_i h'_i at the centres of theta, shapes (n, N)."""
        x = self.risk.inputs[:, 0]
        h, h1 = self.risk.unit.h.value_and_first(np.outer(x, self.cells.theta))
        return h, h1 * x[:, None]

    @cached_property
    def _decay(self) -> tuple[Array, Array]:
        """Differences of |z|^2 / 2 between neighbours along theta and u, shapes (N - 1,) and (M - 1,)."""
        return np.diff(0.5 * self.cells.theta**2), np.diff(0.5 * self.cells.u**2)

    def start(self) -> Array:
        """Return the masses of p0."""
        return self.cells.start

    # The equation -------------------------------------------------------------------------------------------------

    def prediction(self, p: Array) -> Array:
        """Return f, shape (n,)."""
        return self.risk.alpha * self._features[0] @ (p @ self.cells.u)

    def chain(self, residual: Array) -> Chain:
        """Return the chain whose potential is lam |z|^2 / 2 + (2 alpha / n) sum_i r_i psi_i at this residual."""
        g = -(self.risk.coefficients(residual) / self.lam) @ self._features[0]
        (theta, u), cells = self._decay, self.cells
        along_theta = theta[:, None] + np.outer(np.diff(g), cells.u) if self.train != "u" else None
        along_u = u + np.outer(g, np.diff(cells.u)) if self.train != "theta" else None
        rates = tuple(self.lam / width**2 if width else 0.0 for width in cells.widths)
        return Chain((along_theta, along_u), (rates[0], rates[1]), (len(cells.theta), len(cells.u)))

    def gram(self, p: Array) -> Array:
        """Return H, shape (n, n), over what is trained."""
        h, h1 = self._features
        gram = np.zeros((self.risk.n, self.risk.n))
        if self.train != "u":
            gram += (h1 * (p @ self.cells.u**2)) @ h1.T
        if self.train != "theta":
            gram += (h * p.sum(axis=1)) @ h.T
        return gram

    @cached_property
    def _generated(self) -> tuple[Array, Array]:
        """The generator of decay and noise on the grid at h_i and at u, shapes (n, N) and (M,)."""
        theta, u = self._decay
        h = np.array([_backward(row, theta, self.cells.widths[0]) for row in self._features[0]])
        still = np.zeros_like(self.cells.u)
        return (
            np.zeros_like(h) if self.train == "u" else h,
            still if self.train == "theta" else _backward(self.cells.u, u, self.cells.widths[1]),
        )

    def generator(self, p: Array) -> Array:
        """Return e, shape (n,): the grid's own, so that a kink of h is no obstacle."""
        along_theta, along_u = self._generated
        return along_theta @ (p @ self.cells.u) + self._features[0] @ (p @ along_u)

    def step(self, p: Array, tau: float) -> Array | None:
        """Return p after tau, or None where the mean residual is not found."""
        before = self.prediction(p)
        residual = before - self.risk.y
        values, vectors = np.linalg.eigh(self.gram(p))
        x = self.risk.kappa * np.maximum(values, 0.0) * tau
        forcing = self.risk.alpha * self.lam * self.generator(p)
        J = mean_residual((values, vectors), residual, np.ones(self.risk.n), forcing, self.risk.kappa, tau)
        share = (vectors * weight(x)) @ vectors.T
        # With H frozen the gap below has the slope I + W x = 1 / phi1(x) in J.
        broyden = Broyden((vectors * phi1(x)) @ vectors.T)
        enough = ACCURACY * float(np.linalg.norm(residual) + np.linalg.norm(self.risk.y)) + ROUNDING * self.risk.alpha
        for _ in range(MOST_CORRECTIONS):
            moved = self.chain(J).after(p, tau)
            gap = J - residual - share @ (self.prediction(moved) - before)
            if np.linalg.norm(gap) <= enough:
                return moved
            J = J + broyden.move(gap)
        return None

    def advance(self, state: Array, duration: float, tolerance: float | None = None) -> Moved:
        """Return the masses after `duration`, with time and Q after every step."""
        tolerance = self.tolerance if tolerance is None else tolerance
        done, tau = 0.0, FIRST / (self.lam + self.risk.kappa * float(np.linalg.eigvalsh(self.gram(state))[-1]))
        times: list[float] = []
        energies: list[float] = []
        while done < duration:
            h = min(tau, duration - done)
            if done + 0.5 * h == done:
                raise DivergedError(f"the solver stands still {done:.6g} after its start, at steps of {h:.3g}.")
            halves, error = self._halved(state, h)
            factor = min(max(SAFETY * (tolerance / max(error, 1e-300)) ** (1 / 3), SMALLEST), LARGEST)
            if error <= tolerance:
                times += [done + 0.5 * h, done + h]
                energies += [self.energy(p) for p in halves]
                state = halves[-1]
                done = duration if h == duration - done else done + h
            tau = h * factor
        return Moved(state, tuple(times), tuple(energies))

    def _halved(self, p: Array, h: float) -> tuple[tuple[Array, Array], float]:
        """Return p after one and two half steps, and the error of the second in total variation."""
        whole = self.step(p, h)
        first = None if whole is None else self.step(p, 0.5 * h)
        second = None if first is None else self.step(first, 0.5 * h)
        if whole is None or first is None or second is None:
            return (p, p), math.inf
        return (first, second), float(np.abs(second - whole).sum()) / 6

    # Readings -----------------------------------------------------------------------------------------------------

    def kl(self, p: Array) -> float:
        """Return the sum of p log(p / p0)."""
        return float((p * np.log(p / self.cells.start)).sum())

    def energy(self, p: Array) -> float:
        """Return Q = L + lam KL."""
        return float(((self.prediction(p) - self.risk.y) ** 2).mean()) + self.lam * self.kl(p)

    def fisher(self, p: Array) -> float:
        """Return the rate at which decay and noise alone lower KL on the grid, over lam: I to second order."""
        log = np.log(p / self.cells.start)
        total = 0.0
        for axis, (decay, width) in enumerate(zip(self._decay, self.cells.widths, strict=True)):
            if self.train == ("u", "theta")[axis]:
                continue
            forward, backward = bernoulli_pair(decay if axis else decay[:, None])
            lower, upper = (p[:-1], p[1:]) if axis == 0 else (p[:, :-1], p[:, 1:])
            total -= float(((forward * lower - backward * upper) * np.diff(log, axis=axis)).sum()) / width**2
        return total

    def read(self, state: Array) -> Reading:
        """Return what is read of the masses."""
        along = state.sum(axis=1), state.sum(axis=0)
        points = self.cells.theta, self.cells.u
        mean = np.array([mass @ where for mass, where in zip(along, points, strict=True)])
        theta, u = (where - centre for where, centre in zip(points, mean, strict=True))
        cross = theta @ state @ u
        covariance = np.array([[along[0] @ theta**2, cross], [cross, along[1] @ u**2]])
        return Reading(
            self.prediction(state), self.kl(state), self.fisher(state), mean, covariance, self.gram(state),
            self.generator(state), float((state / self.cells.start).min()), self._edge(along),
        )  # fmt: skip

    def _edge(self, along: tuple[Array, Array]) -> float:
        """Return the mass of the outermost cells of what is trained."""
        trained = (self.train != "u", self.train != "theta")
        return float(sum(mass[0] + mass[-1] for mass, moves in zip(along, trained, strict=True) if moves))

    def density(self, state: Array, theta: Array, u: Array) -> Array:
        """Return p at points: p / p0 interpolated between centres, times p0; 0 beyond the outermost centres.

        Where u is a list of values, it is the density in theta of what has that value.
        """
        from scipy.interpolate import RegularGridInterpolator

        ratio, cells = state / self.cells.start, self.cells
        if cells.widths[1]:
            read = RegularGridInterpolator((cells.theta, cells.u), ratio, bounds_error=False, fill_value=0.0)
            return read(np.stack([theta, u], axis=-1)) * np.exp(-0.5 * (theta**2 + u**2)) / (2 * math.pi)
        row = np.abs(u[..., None] - cells.u).argmin(axis=-1)
        if not np.array_equal(cells.u[row], u):
            raise InputError(f"u is frozen at {cells.u.tolist()}; there is no density elsewhere.")
        out = np.zeros(theta.shape)
        for k, share in enumerate(cells.share):
            here = np.interp(theta, cells.theta, ratio[:, k], left=0.0, right=0.0)
            out = np.where(row == k, share * here * np.exp(-0.5 * theta**2) / math.sqrt(2 * math.pi), out)
        return out


class Broyden:
    """Corrections of the root of a gap, -C gap, C the inverse slope as far as it is known [Broyden65]."""

    def __init__(self, inverse: Array) -> None:
        self.inverse = inverse
        self.last: tuple[Array, Array] | None = None

    def move(self, gap: Array) -> Array:
        """Return the next correction; the inverse then maps the last change of the gap to what made it."""
        if self.last is not None:
            moved, old = self.last
            seen = self.inverse @ (gap - old)
            size = float(moved @ seen)
            if size:
                self.inverse = self.inverse + np.outer(moved - seen, moved @ self.inverse) / size
        move = -self.inverse @ gap
        self.last = (move, gap)
        return move


def weight(x: Array) -> Array:
    """Return 1 / (1 - e^-x) - 1 / x, from 1/2 at 0 to 1 at infinity."""
    small = x < 1e-2
    safe = np.where(small, 1.0, x)
    return np.where(small, 0.5 + x / 12 - x**3 / 720, 1 / -np.expm1(-safe) - 1 / safe)


def _backward(values: Array, decay: Array, width: float) -> Array:
    """Return the backward generator of decay and noise, over lam, at values on a line of cells."""
    forward, backward = bernoulli_pair(decay)
    step = np.diff(values) / width**2
    return np.append(forward * step, 0.0) - np.append(0.0, backward * step)
