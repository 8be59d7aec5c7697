"""Observables that the identities (I2) to (I4), the Gram matrices and the reference are checked by.

`drift_square` and `entropy_input` are the B and S of (I2): products of a residual of one replicate with a mean over
another, so that their expectation has no bias from sampling, for any number of particles (d E r = E[-kappa H r +
alpha lam e] dt holds exactly for each). Their mean over replicates is the estimate; its standard error is that of the
jackknife, for each replicate stands in all pairs that it is part of (`balances.jackknife`).
"""

import math
from collections.abc import Sequence

import numpy as np

from meanfield import ntk, steps
from meanfield.account import FOLDED, NOT_CERTIFIED
from meanfield.bounds import gram_of_reference
from meanfield.cloud import Cloud
from meanfield.displacements import kept_origins, mean_square
from meanfield.flow import Flow
from meanfield.observables import (
    Unavailable,
    accounted,
    coupled,
    kernel_residual,
    moments,
    network,
    observable,
    origin,
)
from meanfield.risk import Risk

Array = np.ndarray


def _limit_law(clouds: Sequence[Cloud], flow: Flow) -> Risk:
    """Return the risk of a run whose rates (I2) relates, or say why there is none."""
    risk = network(flow)
    if len(clouds) < 2:
        raise Unavailable("a rate without bias from sampling needs at least two replicates")
    if risk.loss != "square" or not risk.centred:
        raise Unavailable("the rates of (I2) are those of the limit law (centred) under the square loss")
    if flow.objective.network is not flow.objective:
        raise Unavailable("minibatches move by a gradient of their own, which (I2) does not know")
    return risk


def _paired(residuals: Sequence[Array], others: Sequence[Array]) -> Array:
    """Return for each replicate the mean of r_a . v_b and r_b . v_a over the other replicates b, shape (R,)."""
    r, v = np.array(residuals), np.array(others)
    rest_r, rest_v = ((w.sum(0) - w) / (len(w) - 1) for w in (r, v))
    return 0.5 * (np.einsum("ri,ri->r", r, rest_v) + np.einsum("ri,ri->r", rest_r, v))


def _residuals(clouds: Sequence[Cloud], risk: Risk) -> list[Array]:
    return [risk.residual(risk.prediction(cloud)) for cloud in clouds]


@observable(
    "B = (4 alpha^2 / n^2) r' H r without bias, the rate at which the drift lowers the loss", unit="1 / time",
    dims=("replicate",), pooled=True,
)  # fmt: skip
def drift_square(clouds: Sequence[Cloud], flow: Flow) -> Array:
    """Return each replicate's share of B, from products across replicates; shape (R,)."""
    risk = _limit_law(clouds, flow)
    moved = [kernel_residual(cloud, flow) for cloud in clouds]
    return 4 * risk.alpha**2 / risk.n**2 * _paired(_residuals(clouds, risk), moved)


@observable(
    "S = (2 alpha / n) r . e without bias, the source of relative entropy", unit="1 / time",
    dims=("replicate",), pooled=True,
)  # fmt: skip
def entropy_input(clouds: Sequence[Cloud], flow: Flow) -> Array:
    """Return each replicate's share of S, from products across replicates; shape (R,)."""
    risk = _limit_law(clouds, flow)
    if not steps.smooth(flow.dynamics):
        raise Unavailable(f"e needs a second derivative of h, which {risk.unit.h.name} has not")
    e = [risk.generator(cloud, flow.train, flow.decay) for cloud in clouds]
    return 2 * risk.alpha / risk.n * _paired(_residuals(clouds, risk), e)


@observable("mean square distance of the reference from its start", unit="length^2", zero="2 D (1 - e^(-lam t))")
def reference_travelled(cloud: Cloud, flow: Flow) -> float:
    """Return E|Zbar_t - Z_0|^2, which depends on lam and the time alone (certificate C0)."""
    coupled(cloud)
    return moments(cloud, flow).reference_travelled


@observable("standard error of reference_travelled", unit="length^2", zero="not zero: it is an error bar")
def reference_travelled_se(cloud: Cloud, flow: Flow) -> float:
    """Return sqrt(2 sum w_j^2 / D) times E|Zbar_t - Z_0|^2: its displacements are independent Gaussians."""
    mass = 1 / cloud.m if cloud.weights is None else float(cloud.weights @ cloud.weights)
    columns = np.arange(cloud.dimension)[steps.trained(flow.train)]
    return reference_travelled(cloud, flow) * math.sqrt(2 * mass / len(columns))


@observable("share of its start that the reference keeps, Zbar_t . Z_0 / |Z_0|^2 over all particles", zero="e^(-lam t)")
def reference_overlap(cloud: Cloud, flow: Flow) -> float:
    """Return sum w Zbar_t . Z_0 / sum w |Z_0|^2 over the trained coordinates: given Z_0, normal about e^(-lam t)."""
    return _overlap(cloud, flow)[0]


@observable("standard error of reference_overlap", zero="not zero: it is an error bar")
def reference_overlap_se(cloud: Cloud, flow: Flow) -> float:
    """Return the standard error of a regression coefficient, v^(1/2) (sum w^2 |Z_0|^2)^(1/2) / sum w |Z_0|^2.

    v is the mean square of a coordinate of what is left, Zbar_t - c Z_0 with c the overlap.
    """
    return _overlap(cloud, flow)[1]


def _overlap(cloud: Cloud, flow: Flow) -> tuple[float, float]:
    """Return the overlap 1 + b, b = E[(Zbar - Z_0) . Z_0] / E|Z_0|^2, and its standard error.

    What is left, Zbar - Z_0 - b Z_0, has the mean square E|Zbar - Z_0|^2 - b E[(Zbar - Z_0) . Z_0].
    """
    coupled(cloud)
    moved, along = moments(cloud, flow)[3:]
    square, spread = _squares_of_origin(cloud, flow)
    size = len(np.arange(cloud.dimension)[steps.trained(flow.train)])
    left = max(moved - along * along / square, 0.0) / size
    return 1 + along / square, math.sqrt(left * spread) / square


def _squares_of_origin(cloud: Cloud, flow: Flow) -> tuple[float, float]:
    """Return sum w |Z_0|^2 and sum w^2 |Z_0|^2 over the trained coordinates, remembered while the start is kept."""
    start, kept = origin(cloud, flow), kept_origins(cloud, flow)
    name = f"squares {cloud.replicate} {flow.train}"
    if name in kept and kept.get(cloud.replicate) is start:
        return kept[name]
    some = start[:, steps.trained(flow.train)]
    first = mean_square(cloud, some)
    if cloud.weights is None:
        found = first, first / cloud.m
    else:
        squared = cloud.replace(weights=cloud.weights**2)
        found = first, mean_square(squared, some)
    if kept.get(cloud.replicate) is start:
        kept[name] = found
    return found


@observable("variance s^2 of a coordinate of the reference, as the scheme knows it", zero="1 but for Euler's steps")
def reference_variance(cloud: Cloud, flow: Flow) -> float:
    """Return s^2: that of p0, which an exact Ornstein-Uhlenbeck step keeps."""
    coupled(cloud)
    return cloud.reference_variance


@observable("whether the kicks were one-to-one: 0 certified, 1 not certified, 2 one was seen to fold", zero="0")
def kick_fault(cloud: Cloud, flow: Flow) -> float:
    """Return what the account says of its kicks; the KL account is void from the first that is not one-to-one."""
    accounted(cloud, flow)
    reason = steps.unaccountable(flow.dynamics)
    if reason:
        raise Unavailable(reason)
    return float(("", NOT_CERTIFIED, FOLDED).index(cloud.account.reason))


@observable("relative defect of H r: the measured Gram matrix against a pass without one", costly=True, zero="rounding")
def gram_defect(cloud: Cloud, flow: Flow) -> float:
    """Return max_i |(H r)_i - E <grad psi_i, sum_k r_k grad psi_k>| over |H| |r| / sqrt(n), norms of Frobenius."""
    risk = network(flow)
    r = risk.residual(risk.prediction(cloud))
    gram = risk.measure(cloud, flow.train).gram
    assert gram is not None
    direct = ntk.product(risk.unit.h, risk.inputs, cloud.z, r, cloud.weights, flow.train)
    scale = float(np.linalg.norm(gram) * np.linalg.norm(r)) / math.sqrt(risk.n)
    return float(np.abs(gram @ r - direct).max()) / max(scale, np.finfo(np.float64).tiny)


@observable("v' H(p0) v in closed form against the reference's particles, in standard errors; v = r at p0", costly=True)
def gram_start_score(cloud: Cloud, flow: Flow) -> float:
    """Return (mean |sum_i v_i grad psi_i(Zbar)|^2 - v' H v) over its standard error, H in closed form, v = r at f = 0.

    H is that at the reference's law, N(0, s^2 I). The particles of the reference are independent, and v is fixed (the
    residual of later times was fitted to them), so this is a standard normal but for the skewness of few particles.
    """
    risk = network(flow)
    v = risk.residual(np.zeros(risk.n))
    field = risk.pullback(cloud, coupled(cloud), v, flow.train).astype(np.float64)
    squares = np.einsum("ij,ij->i", field, field)
    gap = squares - float(v @ gram_of_reference(risk, cloud, flow.train) @ v)
    mass = np.full(cloud.m, 1 / cloud.m) if cloud.weights is None else cloud.weights
    spread = math.sqrt(float((mass * mass) @ (gap - mass @ gap) ** 2))
    return float(mass @ gap) / max(spread, np.finfo(np.float64).tiny)
