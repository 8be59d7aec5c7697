"""The empirical risk of a two-layer network; `minibatch` and `linearised` hold what is made of it.

    f_i = alpha E_p psi_i,   psi_i(z) = u h(theta . x_i),   L(p) = (1/n) sum_i loss(f_i, y_i)

With r_i half the slope of the loss (f_i - y_i for the square loss), the drift is b = sum_i c_i grad psi_i with
c = -(2 alpha / n) r, and predictions obey df/dt = -kappa H r + alpha lam e, kappa = 2 alpha^2 / n (identity (I1) of
the documentation), H the NTK Gram matrix, e_i = E_p[Laplace psi_i - z . grad psi_i].
"""

import hashlib
import weakref
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from meanfield import backends, ntk
from meanfield.backends import Measurement, Motion, Moved, Particles
from meanfield.cloud import Cloud, Kernel, demand_values
from meanfield.errors import InputError, did_you_mean
from meanfield.objectives import Objective, Tangent
from meanfield.ranks import Share
from meanfield.spectrum import eigen
from meanfield.units import Unit

Array = np.ndarray
LOSSES = ("square", "logistic")
# Beyond this alpha and its inverse, squares and fourth powers of it leave double precision.
SMALLEST_ALPHA, LARGEST_ALPHA = 1e-30, 1e30
# A Gram matrix stands for later ones of the same cloud while rms kicks (and lam eta) since add up to at most this, in
# standard deviations of p0: particles have moved by a hundredth of their spread, and H by about as much of itself.
HELD = 0.01


@dataclass(frozen=True, eq=False)
class Risk(Objective):
    """The empirical risk L(p) of a two-layer network over n samples ([CCGZ20], section 3).

    Parameters
    ----------
    x : ndarray, shape (n, d)
        Inputs.
    y : ndarray, shape (n,)
        Labels; +-1 for the logistic loss.
    unit : Unit
        One neuron, psi(z, x) = u h(theta . x).
    alpha : float
        Scale of the output: 1 is the mean-field scaling, sqrt(m) the kernel scaling, m a conventional network.
    centred : bool
        True: f = alpha mean[psi(Z) - psi(Zbar)], the limit law, whose error falls as m^(-1/2) whatever alpha is.
        False: f = alpha mean psi(Z), the network of width m.
    loss : str
        "square", (f - y)^2, or "logistic", log(1 + exp(-y f)).
    backend : str
        Where contractions run: a name of `backends.MODULES`, or "auto", which `backends.choose` resolves.

    Raises
    ------
    InputError
        If shapes, labels or numbers make no sense.
    """

    x: Array
    y: Array
    unit: Unit = field(default_factory=lambda: Unit("tanh"))
    alpha: float = 1.0
    centred: bool = True
    loss: str = "square"
    backend: str = "auto"
    _memo: "weakref.WeakKeyDictionary[Cloud, dict]" = field(
        default_factory=weakref.WeakKeyDictionary, init=False, repr=False
    )

    preferred_scheme = "kernel"

    def __post_init__(self) -> None:
        unit = self.unit if isinstance(self.unit, Unit) else Unit(self.unit)
        for name, value in (("x", np.array(self.x, float)), ("y", np.array(self.y, float)), ("unit", unit)):
            object.__setattr__(self, name, value)
        _check(self)

    def __reduce__(self) -> tuple:
        """Pickle what the risk was made from; what it remembers stays behind."""
        return Risk, (self.x, self.y, self.unit, self.alpha, self.centred, self.loss, self.backend)

    @property
    def n(self) -> int:
        """The number of samples."""
        return len(self.y)

    @property
    def d(self) -> int:
        """The number of inputs."""
        return int(self.x.shape[1])

    @property
    def kappa(self) -> float:
        """2 alpha^2 / n, the rate of the kernel dynamics in units of H."""
        return 2 * self.alpha**2 / self.n

    @cached_property
    def inputs(self) -> Array:
        """The inputs as the neurons see them: with a column of ones if they have a bias, shape (n, D - 1)."""
        x = np.array(self.unit.inputs(self.x))
        x.flags.writeable = False  # so that a device may keep its copy
        return x

    def engine(self, m: int, share: Share | None = None) -> backends.Backend:
        """Return the backend that does the contractions over m particles, of which `share` may say which are here."""
        name = self.choice(m).name
        return backends.get(name) if share is None else backends.shared(name, share)

    def choice(self, m: int) -> backends.Choice:
        """Return the name of that backend, and why it was chosen."""
        if self.backend != backends.AUTO:
            return backends.Choice(self.backend, "it was asked for")
        return backends.choose(self.n, m)

    @property
    def network(self) -> "Risk":
        """The risk itself."""
        return self

    # Measurements -----------------------------------------------------------------------------------------------

    def measure(
        self, cloud: Cloud, train: str = "both", *, gram: bool = True, variance: float | None = None
    ) -> Measurement:
        """Return the sums over the cloud (see `backends.reference.measure`), remembered while the cloud lives."""
        for (t, g, v), found in self._measured(cloud):
            if t == train and g in (True, gram) and variance in (None, v):
                return found
        memo = self._memo.setdefault(cloud, {})
        far = memo.get(("reference", train)) if variance is None else None
        found = self.engine(cloud.m, cloud.share).measure(
            self.unit.h, self.inputs, cloud.z, None if far else cloud.reference, cloud.weights, train,
            gram=gram, variance=variance,
        )  # fmt: skip
        if far:
            found = found._replace(**far, gap=np.full(self.n, np.nan))
        memo[train, gram, variance] = found
        return found

    def remember(self, cloud: Cloud, twin: Cloud) -> None:
        """Let `cloud` have what was measured for `twin`, whose particles are the same."""
        if twin in self._memo:
            # A cloud that was gathered on one rank must not teach that rank alone what the ranks measure together.
            self._memo[cloud] = self._memo[twin] if cloud.share is twin.share else dict(self._memo[twin])

    def remember_reference(self, cloud: Cloud, twin: Cloud, train: str) -> None:
        """Let `cloud` have the sums over the reference that were measured for `twin`, whose reference is the same.

        What compares particles with their reference one by one, the gap, is then not known of `cloud`.
        """
        found = next((m for (t, *_), m in self._measured(twin) if t == train), None)
        if found is not None and cloud.reference is twin.reference:
            far = {name: getattr(found, name) for name in ("psi_reference", "laplacian_reference", "pull_reference")}
            self._memo.setdefault(cloud, {})["reference", train] = far

    def _measured(self, cloud: Cloud) -> list[tuple[tuple, Measurement]]:
        return [(key, m) for key, m in self._memo.get(cloud, {}).items() if isinstance(m, Measurement)]

    def prediction(self, cloud: Cloud, measured: Measurement | None = None) -> Array:
        """Return f, shape (n,), from what was measured of the cloud if anything was.

        Both ways give the same bits (a test says so), so that what is remembered never changes a run.
        """
        memo = self._memo.setdefault(cloud, {})
        if measured is None:
            measured = next((m for _, m in self._measured(cloud)), None)
        if measured is not None:
            psi = measured.psi - measured.psi_reference if self._centres(cloud) else measured.psi
            return self.alpha * psi
        if "prediction" not in memo:
            memo["prediction"] = self.predict(cloud, self.x)
        return memo["prediction"]

    def predict(self, cloud: Cloud, x: Array) -> Array:
        """Return f at other inputs x (k, d): shape (k,)."""
        inputs = self.unit.inputs(np.atleast_2d(np.asarray(x, dtype=np.float64)))
        psi = self.engine(cloud.m, cloud.share).predict(self.unit.h, inputs, cloud.z, cloud.weights)
        if self._centres(cloud):
            psi = psi - self.engine(cloud.m, cloud.share).predict(self.unit.h, inputs, cloud.reference, cloud.weights)
        return self.alpha * psi

    def _centres(self, cloud: Cloud) -> bool:
        if self.centred and cloud.reference is None:
            raise InputError(
                "centred=True needs a cloud with a coupled reference: start from gaussian_cloud(...), "
                "or write Risk(..., centred=False) for the network of width m"
            )
        return self.centred

    # Loss -------------------------------------------------------------------------------------------------------

    def losses(self, prediction: Array) -> Array:
        """Return the loss of each sample, shape (..., n)."""
        if self.loss == "square":
            return (prediction - self.y) ** 2
        return np.logaddexp(0.0, -self.y * prediction)

    def residual(self, prediction: Array) -> Array:
        """Return r, half the slope of the loss: f - y for the square loss, shape (n,)."""
        y = np.asarray(self.y, like=prediction)  # predictions may be arrays of a device
        if self.loss == "square":
            return prediction - y
        return -0.5 * y * np.exp(-np.logaddexp(0.0, y * prediction))

    def curvature(self, prediction: Array) -> Array:
        """Return dr/df: 1 for the square loss, shape (n,)."""
        if self.loss == "square":
            return np.ones(self.n)
        return 0.5 * np.exp(-np.logaddexp(0.0, prediction) - np.logaddexp(0.0, -prediction))

    def coefficients(self, residual: Array) -> Array:
        """Return c = -(2 alpha / n) r, the coefficients of the drift b = sum_i c_i grad psi_i."""
        return -(2 * self.alpha / self.n) * residual

    # Objective --------------------------------------------------------------------------------------------------

    def value(self, cloud: Cloud) -> float:
        """Return L, the mean loss over the samples; DivergedError for a cloud whose predictions are not finite."""
        return float(self.losses(self._finite_prediction(cloud)).mean())

    def first_variation(self, cloud: Cloud, points: Array) -> Array:
        """Return dL/dp = (2 alpha / n) sum_i r_i psi_i at points (k, D); DivergedError as `value`."""
        c = self.coefficients(self.residual(self._finite_prediction(cloud)))
        points = np.asarray(points)
        return -points[:, -1] * (self.unit.h.value(points[:, :-1] @ self.inputs.T) @ c)

    def gradient(self, cloud: Cloud) -> Array:
        """Return grad dL/dp at the particles, shape (m, D); DivergedError as `value`."""
        c = self.coefficients(self.residual(self._finite_prediction(cloud)))
        return -self.pullback(cloud, cloud.z, c)

    def pullback(self, cloud: Cloud, z: Array, c: Array, train: str = "both") -> Array:
        """Return sum_i c_i grad psi_i at points z, shape (len(z), D), with the backend of a cloud."""
        engine = self.engine(cloud.m, cloud.share)
        return engine.asnumpy(engine.pullback(self.unit.h, self.inputs, z, c, train))

    def _finite_prediction(self, cloud: Cloud) -> Array:
        return demand_values(self.prediction(cloud), f"the prediction of the cloud at step {cloud.step}")

    def generator(self, cloud: Cloud, train: str = "both", decay: float = 1.0) -> Array:
        """Return e_i = E_p[Laplace psi_i - decay z . grad psi_i], centred where the dynamics are, shape (n,)."""
        m = self.measure(cloud, train, gram=False)
        if self.centred:
            return (m.laplacian - m.laplacian_reference) - decay * (m.pull - m.pull_reference)
        return m.laplacian - decay * m.pull

    def tangent(self, cloud: Cloud, train: str = "both", decay: float = 1.0) -> Tangent:
        """Return (r, H, e): residual (n,), NTK Gram matrix of the cloud (n, n), generator (n,)."""
        gram, e = self.gram(cloud, train), self.generator(cloud, train, decay)
        return self.residual(self.prediction(cloud)), gram, e

    def held(self, cloud: Cloud, train: str) -> Kernel | None:
        """Return the kernel that a cloud carries if it may stand for the cloud's own: see `HELD`."""
        kernel = cloud.kernel
        return kernel if kernel is not None and kernel.age <= HELD and kernel.of == self.name(train) else None

    def name(self, train: str) -> str:
        """Return what tells this risk's Gram matrices from others': inputs, activation and trained layers."""
        return f"{self._digest}:{self.unit.h.name}:{train}"

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(self.inputs.tobytes()).hexdigest()[:16]

    def gram(self, cloud: Cloud, train: str = "both") -> Array:
        """Return H, shape (n, n): what the cloud carries while that may be, otherwise measured."""
        held = self.held(cloud, train)
        if held is not None:
            return held.gram
        gram = self.measure(cloud, train).gram
        assert gram is not None
        return demand_values(gram, f"the Gram matrix of the cloud at step {cloud.step}")

    def measured_gram(self, cloud: Cloud, train: str = "both") -> Array | None:
        """Return the cloud's own H if it has been measured already, else None."""
        found = (m.gram for (t, *_), m in self._measured(cloud) if t == train)
        return next((gram for gram in found if gram is not None), None)

    def spectrum(self, cloud: Cloud, train: str, curvature: Array) -> tuple[Array, Array]:
        """Return eigenvalues and eigenvectors of D^1/2 H D^1/2, D = diag(curvature), remembered while H lives."""
        return self.eigen(self.gram(cloud, train), curvature)

    def eigen(self, gram: Array, curvature: Array | None = None) -> tuple[Array, Array]:
        """Return eigenvalues and eigenvectors of D^1/2 H D^1/2 for a Gram matrix H, remembered while it lives."""
        curvature = np.ones(self.n) if curvature is None else curvature
        found = self._spectra.get(id(gram))
        if found is None or not np.array_equal(found[1], curvature):
            root = np.sqrt(curvature)
            spectra, key = self._spectra, id(gram)
            alive = weakref.ref(gram, lambda _: spectra.pop(key, None))
            values, vectors = eigen(root[:, None] * gram * root)
            found = (alive, curvature, (values, vectors))
            self._spectra[id(gram)] = found
        return found[2]

    def stiffness(self, cloud: Cloud, train: str = "both") -> float:
        """Return kappa max(dr/df) lambda_max(H) of the cloud."""
        return (
            self.kappa * float(self.curvature(np.zeros(self.n)).max()) * ntk.largest_eigenvalue(self.gram(cloud, train))
        )

    def stiffness_start(self, cloud: Cloud, train: str = "both") -> float | None:
        """Return kappa max(dr/df) lambda_max(H) at the Gaussian start, None where the start is another."""
        if cloud.start is not None:
            return None
        key = (cloud.start_std, train, "largest")
        if key not in self._start:
            self._start[key] = ntk.largest_eigenvalue(self.gram_start(cloud.start_std, train))
        return self.kappa * float(self.curvature(np.zeros(self.n)).max()) * self._start[key]

    def gram_start(self, std: float = 1.0, train: str = "both") -> Array:
        """Return H at the Gaussian start N(0, std^2 I), closed form or Mehler series."""
        key = (std, train)
        if key not in self._start:
            second, first = ntk.gram_parts(self.unit.h, self.inputs, std=std)
            parts = {"both": first + second, "u": second, "theta": first}
            # Both layers' matrix is asked for together with that of the outer layer.
            kept = ("both", "u") if train != "theta" else ("theta",)
            self._start.update({(std, name): parts[name] for name in kept})
        return self._start[key]

    @cached_property
    def _spectra(self) -> dict:
        return {}

    @cached_property
    def _start(self) -> dict:
        return {}

    def plain(self, cloud: Cloud) -> "Risk":
        """Return the risk itself: its steps without an account are single passes."""
        return self

    def move(
        self, cloud: Cloud, residual: Array | None, motion: Motion, train: str, out: Particles | None = None
    ) -> Particles:
        """Return particles and reference after kick, channel and kick with the residual frozen at `residual`.

        With None the kicks are along the residual of the cloud itself, found in the same call: an explicit step.
        `out` may be the cloud's own arrays.
        """
        engine = self.engine(cloud.m, cloud.share)
        z, reference = engine.asarray(cloud.z), None if cloud.reference is None else engine.asarray(cloud.reference)
        if z is not cloud.z:
            out = z, reference  # copies on a device, which nobody else has
        where = (self.unit.h, self.inputs, z, reference)
        if residual is not None:
            return engine.move(*where, self.coefficients(residual), motion, train, out=out)
        return engine.descend(
            *where, cloud.weights, lambda psi: self.coefficients(self.residual(self.alpha * psi)), motion, train,
            centred=self._centres(cloud), out=out,
        )  # fmt: skip

    def home(self, cloud: Cloud) -> Cloud:
        """Return a cloud with numpy arrays: itself, unless steps left it on a device."""
        if type(cloud.z) is np.ndarray:
            return cloud
        back = self.engine(cloud.m, cloud.share).asnumpy
        reference = None if cloud.reference is None else back(cloud.reference)
        found = cloud.replace(z=back(cloud.z), reference=reference, kernel=cloud.kernel)
        self.remember(found, cloud)
        return found

    def kick(self, cloud: Cloud, residual: Array | None, eps: float, train: str = "both", **options: object) -> Moved:
        """Return the particles moved for a length eps along b with the residual frozen at `residual`."""
        midpoint, engine = options.pop("midpoint", False), self.engine(cloud.m, cloud.share)
        c = self.coefficients(self.residual(self.prediction(cloud)) if residual is None else residual)
        arguments = (self.unit.h, self.inputs, cloud.z, cloud.reference, cloud.weights, c, eps, train)
        if not midpoint:
            options.pop("variance", None)
        moved = (engine.midpoint_kick if midpoint else engine.kick)(*arguments, **options)
        return moved._replace(z=engine.asnumpy(moved.z))  # noise comes to it on the host


def _check(risk: Risk) -> None:
    x, y = risk.x, risk.y
    backends.check_name(risk.backend)
    if x.ndim != 2 or not x.size:
        raise InputError(f"x must have shape (n, d) with at least one sample, got shape {x.shape}")
    if y.shape != (len(x),):
        raise InputError(f"y must have shape ({len(x)},), one label for each row of x, got {y.shape}")
    for name, values in (("x", x), ("y", y)):
        if not np.isfinite(values).all():
            raise InputError(f"{name} holds NaN or infinity; remove or fill those samples first")
    number = isinstance(risk.alpha, int | float | np.number)
    if not (number and SMALLEST_ALPHA <= risk.alpha <= LARGEST_ALPHA):
        raise InputError(
            f"alpha must be a number from {SMALLEST_ALPHA:g} to {LARGEST_ALPHA:g}, got {risk.alpha!r}; "
            "for the kernel scaling give m**0.5"
        )
    if risk.loss not in LOSSES:
        raise InputError(f"loss must be 'square' or 'logistic', got {risk.loss!r}.{did_you_mean(risk.loss, LOSSES)}")
    if risk.loss == "logistic" and not np.isin(y, (-1.0, 1.0)).all():
        raise InputError("the logistic loss needs labels +1 and -1; for other values take loss='square'")
