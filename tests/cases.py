"""Problems whose answers are known, and the objectives over which identities are tested; no tests stand here.

Exact: the bilinear network, whose law stays Gaussian (`Bilinear`), and the network with frozen inner weights, whose
outer weight stays Gaussian given theta (`Frozen`). `Closure` carries the law of a scheme itself, without sampling
error: the library's own step is given sigma points in place of particles and noise.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple
from unittest import mock

import numpy as np
from scipy.integrate import solve_ivp
from scipy.linalg import expm

from meanfield import interactions, parallel, population, steps
from meanfield.cloud import Cloud, gaussian_cloud
from meanfield.flow import Flow
from meanfield.linearised import Linearised
from meanfield.minibatch import Minibatch
from meanfield.objectives import Objective, Potential
from meanfield.population import Pairwise
from meanfield.risk import Risk
from meanfield.schemes import SCHEMES
from meanfield.units import Unit

# --- the two small problems of the reference values

P1_X, P1_Y = np.array([[0.4], [1.0]]), np.array([0.5, 0.8])
P2_X, P2_Y = np.array([[1.0, 0.0], [0.6, 0.8]]), np.array([0.5, -0.3])


# --- bilinear networks: h(w) = w, both layers trained, p_t = N(0, S_t)


@dataclass(frozen=True)
class Bilinear:
    """f_i = alpha x_i . S_theta_u with dS/dt = -(lam I + B) S - S (lam I + B) + 2 lam I, B = [[0, v], [v', 0]]."""

    x: np.ndarray
    y: np.ndarray
    alpha: float
    lam: float

    @property
    def dimension(self) -> int:
        return self.x.shape[1] + 1

    def risk(self, **options) -> Risk:
        return Risk(self.x, self.y, Unit("linear"), self.alpha, **options)

    def prediction(self, S):
        return self.alpha * self.x @ S[:-1, -1]

    def loss(self, S):
        return float(np.mean((self.prediction(S) - self.y) ** 2))

    def gram(self, S):
        return S[-1, -1] * self.x @ self.x.T + self.x @ S[:-1, :-1] @ self.x.T

    def limit(self):
        """Return the stability limit of explicit steps at the start, n / (alpha^2 lambda_max(H))."""
        return len(self.y) / self.alpha**2 / np.linalg.eigvalsh(self.gram(np.eye(self.dimension)))[-1]

    def _rate(self, _, flat):
        D = self.dimension
        S = flat.reshape(D, D)
        v = 2 * self.alpha / len(self.y) * self.x.T @ (self.prediction(S) - self.y)
        A = self.lam * np.eye(D)
        A[:-1, -1] += v
        A[-1, :-1] += v
        return (2 * self.lam * np.eye(D) - A @ S - S @ A).ravel()

    def covariance(self, times):
        """Return S at the times, shape (len(times), D, D), to 1e-10."""
        times = np.atleast_1d(np.asarray(times, dtype=float))
        start = np.eye(self.dimension)
        found = solve_ivp(
            self._rate, (0, times[-1]), start.ravel(), t_eval=times, rtol=1e-11, atol=1e-13, method="DOP853"
        )
        assert found.success
        return found.y.T.reshape(-1, *start.shape)


def bilinear(D, alpha, lam=0.2, *, seed=0, n=None):
    """The generator of problems in D = d + 1 dimensions: normalised normal rows, a linear teacher scaled to 0.9."""
    rng = np.random.default_rng(seed)
    d = D - 1
    x = rng.normal(size=(n or max(2, d), d))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    w = rng.normal(size=d)
    w /= np.linalg.norm(w)
    y = x @ w
    return Bilinear(x, 0.9 * y / np.abs(y).max(), alpha, lam)


def gaussian_kl(S):
    """KL(N(0, S) || N(0, I))."""
    return 0.5 * (np.trace(S) - len(S) - np.linalg.slogdet(S)[1])


def gaussian_w2(S):
    """W2(N(0, S), N(0, I))."""
    return float(np.sqrt(np.sum((np.sqrt(np.linalg.eigvalsh(S)) - 1) ** 2)))


# --- frozen inner weights: u | theta ~ N(a . h(theta), 1)


@dataclass(frozen=True)
class Frozen:
    """a' = -(2 alpha / n) r - lam a, r = alpha K2 a - y: loss, KL and predictions in closed form."""

    x: np.ndarray
    y: np.ndarray
    alpha: float
    lam: float
    unit: Unit = Unit("erf")

    def risk(self, **options) -> Risk:
        return Risk(self.x, self.y, self.unit, self.alpha, **options)

    @property
    def kernel(self):
        return self.risk().gram_start(train="u")

    def coefficients(self, t):
        """Return a(t) from a(0) = 0."""
        n, K2 = len(self.y), self.kernel
        rate = 2 * self.alpha**2 / n * K2 + self.lam * np.eye(n)
        return np.linalg.solve(rate, (np.eye(n) - expm(-rate * t)) @ (2 * self.alpha / n * self.y))

    def prediction(self, t):
        return self.alpha * self.kernel @ self.coefficients(t)

    def loss(self, t):
        return float(np.mean((self.prediction(t) - self.y) ** 2))

    def kl(self, t):
        a = self.coefficients(t)
        return float(0.5 * a @ self.kernel @ a)


# --- the law of a scheme without sampling error


class Closure:
    """The second moments of (Z, Zbar) under the steps of a flow whose drift is linear in z, given its moments.

    Each step of the library moves 8 D sigma points, whose joint second moments with the two independent noises of a
    step are exact; the points are made anew from the moments that come out. Valid where every map is linear: the
    linear activation. The account rides along, without the correction for sampling.
    """

    def __init__(self, flow: Flow, dimension: int) -> None:
        self.flow, self.dimension = flow, dimension
        self.moments = np.kron(np.ones((2, 2)), np.eye(dimension))
        self.cloud = self._points(Cloud(np.zeros((1, dimension)), reference=np.zeros((1, dimension))))

    @property
    def covariance(self):
        """E Z Z'."""
        return self.moments[: self.dimension, : self.dimension]

    @property
    def coupled_distance(self):
        """E|Z - Zbar|^2."""
        D = self.dimension
        cross = self.moments[:D, D:]
        return float(np.trace(self.covariance) + np.trace(self.moments[D:, D:]) - 2 * np.trace(cross))

    def _points(self, cloud: Cloud) -> Cloud:
        D = self.dimension
        corners = np.sqrt(4 * D) * np.eye(4 * D)
        corners = np.concatenate([corners, -corners])
        with parallel.single_threaded_blas():
            values, vectors = np.linalg.eigh(self.moments)
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        pairs = corners[:, : 2 * D] @ root.T
        self._noises = corners[:, 2 * D : 3 * D], corners[:, 3 * D :]
        return cloud.replace(z=pairs[:, :D], reference=pairs[:, D:])

    def _noise(self, cloud, stream, *, step, first_block=0):
        return self._noises[1 if first_block else 0]

    def step(self, eta: float) -> "Closure":
        """Make one step."""
        with (
            parallel.single_threaded_blas(),
            mock.patch.object(steps, "cloud_noise", self._noise),
            mock.patch.object(Risk, "measure", exact_measure),
            mock.patch.object(Risk, "plain", lambda risk, cloud: None),  # single passes draw their own noise
        ):
            moved = self.flow.step(self.cloud, eta)
        both = np.concatenate([moved.z, moved.reference], axis=1)
        self.moments = both.T @ both / len(both)
        self.cloud = self._points(moved)
        return self


_measure = Risk.measure


def exact_measure(self, *arguments, **options):
    """Return what `Risk.measure` does, with the means taken as exact: they have no covariance."""
    found = _measure(self, *arguments, **options)
    return found if found.covariance is None else found._replace(covariance=0 * found.covariance)


# --- objectives over which the identities are tested


class Case(NamedTuple):
    """An objective as a function of the cloud it meets (a linearisation is about that cloud's reference)."""

    build: Callable[[Cloud], Objective]
    weighted: bool = False

    def cloud(self, m: int = 6, dtype: str = "float64") -> Cloud:
        """Return a cloud some way from its reference, with unequal weights where the case wants them."""
        weights = np.arange(1.0, m + 1) if self.weighted else None
        cloud = gaussian_cloud(m, dimension=D, seed=3, weights=weights, dtype=dtype)
        return cloud.replace(z=displaced(cloud.z, 0.4))


D = 4
_RNG = np.random.default_rng(7)
X = _RNG.normal(size=(5, 3)) / 2
Y = np.array([0.9, -0.4, 0.2, -0.8, 0.5])
SIGNS = np.array([1.0, -1.0, 1.0, 1.0, -1.0])
TEACHER = np.column_stack([X[:3], Y[:3]])


def displaced(z, size):
    """Return particles moved smoothly by about `size`, in the dtype they have."""
    return z + z.dtype.type(size) * np.sin(2 * z[:, ::-1] + 1).astype(z.dtype)


def network(activation="tanh", **options) -> Risk:
    """Return a risk whose neurons have D = 4 coordinates."""
    unit = Unit(activation, bias=options.pop("bias", False))
    x = X[:, :-1] if unit.bias else X
    return Risk(x, SIGNS if options.get("loss") == "logistic" else Y, unit, options.pop("alpha", 3.0), **options)


def quartic() -> Potential:
    """Return V = |z|^4 / 4."""

    def square(z):
        return np.einsum("ij,ij->i", z, z)

    return Potential(lambda z: square(z) ** 2 / 4, lambda z: square(z)[:, None] * z, rate=30.0)


def about(cloud: Cloud) -> Cloud:
    """Return the cloud of the reference's particles, to linearise at."""
    return cloud.replace(z=cloud.reference)


OBJECTIVES: dict[str, Case] = {
    "square": Case(lambda cloud: network()),
    "square, plain": Case(lambda cloud: network(centred=False)),
    "square, weighted": Case(lambda cloud: network("erf"), weighted=True),
    "square, bias": Case(lambda cloud: network("sigmoid", bias=True)),
    "square, relu": Case(lambda cloud: network("relu", centred=False), weighted=True),
    "logistic": Case(lambda cloud: network(loss="logistic")),
    "logistic, plain, bias": Case(lambda cloud: network("softplus", loss="logistic", centred=False, bias=True)),
    "minibatch": Case(lambda cloud: Minibatch(network(), 2)),
    "minibatch, logistic, weighted": Case(lambda cloud: Minibatch(network(loss="logistic"), 3), weighted=True),
    "potential": Case(lambda cloud: quartic(), weighted=True),
    "linearised": Case(lambda cloud: Linearised(network(), about(cloud))),
    "linearised, plain, weighted": Case(
        lambda cloud: Linearised(network("sin", centred=False), about(cloud)), weighted=True
    ),
    "linearised, logistic": Case(lambda cloud: Linearised(network(loss="logistic"), about(cloud))),
    "sum": Case(lambda cloud: network() + 0.3 * quartic(), weighted=True),
    "sum with a minibatch": Case(
        lambda cloud: Minibatch(network(), 2) + quartic() + Linearised(network(), about(cloud))
    ),
    "multiple": Case(lambda cloud: 0.7 * network("erf", centred=False)),
    "population, erf": Case(lambda cloud: population.risk("erf", TEACHER, alpha=2.0)),
    "population, relu, weighted": Case(lambda cloud: population.risk("relu", TEACHER), weighted=True),
    "population, relu, sphere": Case(lambda cloud: population.risk("relu", TEACHER, inputs="sphere", alpha=3.0)),
    "pairs": Case(lambda cloud: Pairwise(quartic(), interactions.Gaussian(1.5)) + 0.2 * quartic(), weighted=True),
}


# What a scheme can be asked of: the kernel schemes need a tangent.
TANGENT = [name for name, case in OBJECTIVES.items() if case.build(case.cloud()).tangent(case.cloud()) is not None]
ACCOUNT = [name for name, case in OBJECTIVES.items() if case.build(case.cloud()).network is not None]
PAIRS = [(name, scheme) for name in OBJECTIVES for scheme in SCHEMES if SCHEMES[scheme].explicit or name in TANGENT]


# --- replicates


def replicates(cloud: Cloud, count: int) -> list[Cloud]:
    """Return the cloud with the noise of `count` replicates."""
    return [cloud.replicated(r) for r in range(count)]


def travel(flow: Flow, cloud: Cloud, times) -> Iterator[Cloud]:
    """Yield the cloud after each step of a time grid that starts at 0."""
    for eta in np.diff(times):
        cloud = flow.step(cloud, float(eta))
        yield cloud


def standard_errors(values, truth) -> float:
    """Return how many standard errors the mean over replicates (axis 0) lies off the truth, at worst."""
    values = np.asarray(values, dtype=float)
    se = values.std(axis=0, ddof=1) / np.sqrt(len(values))
    return float(np.max(np.abs(values.mean(axis=0) - truth) / se))
