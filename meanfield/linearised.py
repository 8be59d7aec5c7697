"""The risk of a network linearised about given particles: the NTK dynamics, particle by particle.

    f_i = f_i(at) + alpha sum_j w_j <grad psi_i(z0_j), z_j - z0_j>              (plain, network of width m)
    f_i = alpha sum_j w_j <grad psi_i(z0_j), z_j - Zbar_j>                      (centred)

The drift of particle j is spanned by the frozen gradients grad psi_i(z0_j), so the tangent kernel never changes.
Particle j of a larger cloud is linearised about particle j mod m of `at`.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from meanfield import ntk, parallel
from meanfield.backends import Moved
from meanfield.cloud import Cloud
from meanfield.errors import InputError
from meanfield.objectives import Objective, Tangent
from meanfield.risk import Risk
from meanfield.spectrum import eigen

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Linearised(Objective):
    """The empirical risk of the network linearised about the particles of `at`.

    Parameters
    ----------
    risk : Risk
        The network and its data; `risk.centred` chooses the formula above.
    at : Cloud
        Where the network is linearised.
    """

    risk: Risk
    at: Cloud

    preferred_scheme = "kernel"

    def __post_init__(self) -> None:
        if not isinstance(self.risk, Risk):
            raise InputError(f"Linearised takes a Risk, got {type(self.risk).__name__}")
        if self.at.dimension != self.risk.inputs.shape[1] + 1:
            raise InputError(
                f"the cloud to linearise at has D = {self.at.dimension}, the network needs "
                f"D = {self.risk.inputs.shape[1] + 1}"
            )

    @property
    def alpha(self) -> float:
        """The scale of the output."""
        return self.risk.alpha

    @property
    def kappa(self) -> float:
        """The rate of the kernel dynamics."""
        return self.risk.kappa

    def curvature(self, prediction: Array) -> Array:
        """Return dr/df of the loss, shape (n,)."""
        return self.risk.curvature(prediction)

    def _centre(self, cloud: Cloud) -> Array:
        """Return the frozen particles matched to those of the cloud, shape (m, D)."""
        z0 = self.at.z
        return z0 if len(z0) == cloud.m else z0[np.arange(cloud.m) % len(z0)]

    def _shift(self, cloud: Cloud) -> Array:
        if not self.risk.centred:
            return cloud.z - self._centre(cloud)
        if cloud.reference is None:
            raise InputError("a centred Linearised needs a cloud with a coupled reference: start from gaussian_cloud")
        return cloud.z - cloud.reference

    def _push(self, cloud: Cloud, shift: Array) -> Array:
        """Return sum_j w_j <grad psi_i(z0_j), shift_j>, shape (n,)."""
        x, z0, m = self.risk.inputs, self._centre(cloud), cloud.m

        def part_sum(part: slice) -> Array:
            h, h1 = self.risk.unit.h.jet(z0[part, :-1] @ x.T)[:2]
            mass = np.full(len(h), 1.0 / m) if cloud.weights is None else cloud.weights[part]
            along = (z0[part, -1:] * h1) * (shift[part, :-1] @ x.T) + h * shift[part, -1:]
            return np.asarray(mass @ along, dtype=np.float64)

        return parallel.sum_blocks(part_sum, m, parallel.block_size(len(x)))

    def prediction(self, cloud: Cloud) -> Array:
        """Return the linearised predictions, shape (n,)."""
        f = self.alpha * self._push(cloud, self._shift(cloud))
        if self.risk.centred:
            return f
        return f + self.alpha * self.risk.engine(cloud.m).predict(
            self.risk.unit.h, self.risk.inputs, self._centre(cloud), cloud.weights
        )

    def losses(self, prediction: Array) -> Array:
        """Return the loss of each sample, shape (n,)."""
        return self.risk.losses(prediction)

    def value(self, cloud: Cloud) -> float:
        """Return the mean loss of the linearised network."""
        return float(self.losses(self.prediction(cloud)).mean())

    def _field(self, cloud: Cloud, residual: Array) -> Array:
        c = self.risk.coefficients(residual)
        return self.risk.pullback(cloud, self._centre(cloud), c)

    def first_variation(self, cloud: Cloud, points: Array) -> Array:
        """Return (2 alpha / n) sum_i r_i <grad psi_i(z0_j), points_j>: one point for each particle, shape (m,)."""
        points = np.asarray(points)
        if points.shape != cloud.z.shape:
            raise InputError(
                f"the first variation of Linearised is a function of each particle: give points of shape "
                f"{cloud.z.shape}, got {points.shape}"
            )
        field = self._field(cloud, self.risk.residual(self.prediction(cloud)))
        return -np.einsum("ij,ij->i", field, points)

    def gradient(self, cloud: Cloud) -> Array:
        """Return the gradient at the particles, which does not depend on where they are but through r."""
        return -self._field(cloud, self.risk.residual(self.prediction(cloud)))

    @cached_property
    def _grams(self) -> dict:
        return {}

    def _gram(self, cloud: Cloud, train: str) -> Array:
        weights = None if cloud.weights is None else cloud.weights.tobytes()
        key = (train, cloud.m, weights)
        if key not in self._grams:
            frozen = cloud.replace(z=self._centre(cloud), reference=None)
            self._grams[key] = self.risk.gram(frozen, train)
        return self._grams[key]

    def tangent(self, cloud: Cloud, train: str = "both", decay: float = 1.0) -> Tangent:
        """Return (r, H, e); here e_i = -decay sum_j w_j <grad psi_i(z0_j), z_j (- Zbar_j)> exactly."""
        shift = self._shift(cloud) if self.risk.centred else cloud.z.copy()
        if train == "u":
            shift[:, :-1] = 0
        elif train == "theta":
            shift[:, -1] = 0
        e = -decay * self._push(cloud, shift)
        return self.risk.residual(self.prediction(cloud)), self._gram(cloud, train), e

    def spectrum(self, cloud: Cloud, train: str, curvature: Array) -> tuple[Array, Array]:
        """Return eigenvalues and eigenvectors of D^1/2 H D^1/2, D = diag(curvature)."""
        root = np.sqrt(curvature)
        return eigen(root[:, None] * self._gram(cloud, train) * root)

    def stiffness(self, cloud: Cloud, train: str = "both") -> float:
        """Return kappa max(dr/df) lambda_max(H)."""
        top = ntk.largest_eigenvalue(self._gram(cloud, train))
        return self.kappa * float(self.curvature(np.zeros(self.risk.n)).max()) * top

    def kick(self, cloud: Cloud, residual: Array | None, eps: float, train: str = "both", **options: object) -> Moved:
        """Return the particles moved along the frozen field for a length eps."""
        field = self._field(cloud, self.risk.residual(self.prediction(cloud)) if residual is None else residual)
        if train == "u":
            field[:, :-1] = 0
        elif train == "theta":
            field[:, -1] = 0
        return Moved((cloud.z + eps * field).astype(cloud.z.dtype, copy=False))
