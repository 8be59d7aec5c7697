"""What can be measured at every record: functions of (cloud, flow), or of (clouds, flow) over the replicates.

To add one, write a function here and decorate it with `observable`; the loop, the run directory and the tests find it.
In a script any function of (cloud, flow) works in a `Record`. `bounds` holds the costly ones, taken at bound times.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from meanfield import mapped, ntk, parallel, steps
from meanfield.cloud import Cloud, demand_finite
from meanfield.displacements import keeps_origin, mean_square, moments, remembered
from meanfield.displacements import origin as origin
from meanfield.errors import InputError, MeanfieldError, did_you_mean
from meanfield.flow import Flow
from meanfield.risk import Risk

Array = np.ndarray


class Unavailable(MeanfieldError):
    """The observable has no meaning for this configuration; the message is the reason that metadata.json keeps."""


@dataclass(frozen=True)
class Observable:
    """A named measurement.

    Attributes
    ----------
    name : str
        Name of the variable in `records.nc`.
    function : callable
        Of (cloud, flow) for each replicate, or of (clouds, flow) if `pooled`.
    dims : tuple of str
        Its dimensions beside `replicate` and the time ("sample", or none).
    costly : bool
        True: taken at bound times; False: at every record.
    pooled : bool
        Whether it takes all replicates at once.
    on_test : bool
        Whether it also takes `test`, the risk of the test set, or None where there is no test set.
    unit, text, zero : str
        Unit; one line on what it is; what it reads when the truth is zero.
    """

    name: str
    function: Callable[..., Any]
    dims: tuple[str, ...] = ()
    costly: bool = False
    pooled: bool = False
    on_test: bool = False
    unit: str = ""
    text: str = ""
    zero: str = ""


OBSERVABLES: dict[str, Observable] = {}
# Of a large cloud H r is taken from every THINNED-th particle, if so many are left.
THINNED, SAMPLED = 4, 1024


def observable(text: str, *, unit: str = "1", zero: str = "0", **options: Any) -> Callable[[Callable], Callable]:
    """Register the decorated function as an observable of its own name, which refuses clouds that are not finite."""

    def register(function: Callable) -> Callable:
        name = function.__name__

        @functools.wraps(function)
        def checked(clouds: Any, flow: Flow, **more: Any) -> Any:
            for cloud in (clouds,) if isinstance(clouds, Cloud) else clouds:
                if options.get("costly") and mapped.folder_of(cloud.z) is not None:
                    raise Unavailable("the clouds are on disk, and this needs them in memory: take fewer particles")
                remembered(cloud, "finite", functools.partial(demand_finite, cloud))
            return function(clouds, flow, **more)

        OBSERVABLES[name] = Observable(name, checked, unit=unit, text=text, zero=zero, **options)
        return checked

    return register


def network(flow: Flow) -> Risk:
    """Return the risk of the network that the flow trains, or say that there is none."""
    risk = getattr(flow.objective, "full", None)
    if not isinstance(risk, Risk):
        raise Unavailable("the objective is not the risk of a network")
    return risk


def coupled(cloud: Cloud) -> Array:
    """Return the coupled reference, or say why there is none."""
    if cloud.reference is None:
        raise Unavailable("the cloud has no coupled reference: it was not started from p0 (gaussian_cloud)")
    return cloud.reference


def accounted(cloud: Cloud, flow: Flow) -> Cloud:
    """Return the cloud if its steps keep an account, or say why they do not."""
    coupled(cloud)
    if not flow.accounts(cloud):
        raise Unavailable("the flow keeps no account (account=False, or its objective is not a network)")
    return cloud


def same_variance(cloud: Cloud) -> bool:
    """Return whether the reference has the law of the start; its variance is rounded at every step."""
    return math.isclose(cloud.reference_variance, cloud.start_std**2, rel_tol=1e-12)


# Every function below is called with each replicate's cloud. ---------------------------------------------------------


@observable("mean loss over the samples")
def loss(cloud: Cloud, flow: Flow) -> float:
    """Return the objective's value over all data (biased up by O(1/m) for the limit law: see loss_unbiased)."""
    if flow.accounts(cloud) and flow.objective.network is not None:
        # The next step asks for these sums, of which predictions are a part.
        flow.objective.network.measure(cloud, flow.train, gram=False)
    return flow.objective.full.value(cloud)


@observable("network output on the training inputs", dims=("sample",))
def prediction(cloud: Cloud, flow: Flow) -> Array:
    """Return f, shape (n,)."""
    return network(flow).prediction(cloud)


@observable("rms defect of identity (I1), measured minus integrated prediction (certificate C3)")
def residual_defect(cloud: Cloud, flow: Flow) -> float:
    """Return the rms over samples of f minus what (I1) integrated along the steps expects."""
    return float(np.sqrt(np.mean(_defect(cloud, flow)[0] ** 2)))


@observable("what the defect of (I1) may be: sampling noise and integration error", zero="not zero: it is an error bar")
def residual_defect_se(cloud: Cloud, flow: Flow) -> float:
    """Return the rms over samples of the standard error of `residual_defect` plus the integration rule's slack."""
    _, error = _defect(cloud, flow)
    return float(np.sqrt(np.mean(error**2)))


def _defect(cloud: Cloud, flow: Flow) -> tuple[Array, Array]:
    risk = network(flow)
    accounted(cloud, flow)
    if flow.objective.network is not flow.objective:
        raise Unavailable("(I1) is not integrated for minibatches, whose residual is not the network's")
    if not steps.smooth(flow.dynamics):
        raise Unavailable(f"(I1) needs a second derivative of h, which {risk.unit.h.name} has not")
    if not len(cloud.account.prediction):
        return np.zeros(risk.n), np.zeros(risk.n)
    account = cloud.account
    error = np.sqrt(account.prediction_variance) + account.prediction_slack
    # Means over single-precision particles are rounded, and so is every kick, to the grid of its coordinates: there
    # an error of either sign for each adds up over the steps. Often nothing else is left of the defect.
    eps = float(np.finfo(cloud.z.dtype).eps)
    slope = math.sqrt(1 + float((risk.inputs**2).sum(1).max()))
    rounding = risk.alpha * eps * (8 + (cloud.step + 1) * slope / math.sqrt(cloud.m))
    return risk.prediction(cloud) - account.prediction, error + rounding


@observable("E|Z|^2 / D", zero="1 at p0")
def second_moment(cloud: Cloud, flow: Flow) -> float:
    """Return the mean square of a coordinate over the cloud."""
    # One pass or several, the bits are the same.
    square = moments(cloud, flow).square if keeps_origin(cloud, flow) else mean_square(cloud, cloud.z)
    return square / cloud.dimension


@observable("rms drift sqrt(E|b|^2) of a particle", unit="length / time")
def drift_rms(cloud: Cloud, flow: Flow) -> float:
    """Return sqrt(E|b|^2), the mean over particles of the cloud: for a network (2 alpha / n) sqrt(r . H r).

    H r is found without H (`kernel_residual`), so that no Gram matrix of an earlier step enters; for a large cloud of
    equal weights from a quarter of its particles.
    """
    objective = flow.objective.full
    if isinstance(objective, Risk):
        r = objective.residual(objective.prediction(cloud))
        return 2 * objective.alpha / objective.n * math.sqrt(max(float(r @ kernel_residual(cloud, flow)), 0.0))
    return math.sqrt(mean_square(cloud, objective.gradient(cloud)))


def kernel_residual(cloud: Cloud, flow: Flow) -> Array:
    """Return H r of the cloud, shape (n,): from its Gram matrix if a step has measured it, else in a pass of O(n d).

    Of equal weights and a Gaussian start, particles are independent but for the law they share. Then the pass goes over
    every k-th, other ones from step to step, k <= `THINNED` such that at least `SAMPLED` are left: all of them would
    cost an eighth of a step, and the error of sampling is at most twice the cloud's own.
    """
    risk = network(flow)

    def make() -> Array:
        r = risk.residual(risk.prediction(cloud))
        gram = risk.measured_gram(cloud, flow.train)
        if gram is not None:
            return gram @ r
        alike = cloud.weights is None and cloud.start is None
        k = max(1, min(THINNED, cloud.m // SAMPLED)) if alike else 1
        k = 1 << (k.bit_length() - 1)  # so that every rank begins at the same place
        some = slice(cloud.step % k, None, k)
        dtype = np.float64 if k == 1 else np.float32  # rounding is nothing beside what thinning does
        share = None if cloud.share is None else cloud.share.thinned(cloud.step % k, k)
        with parallel.sharing(share):
            return ntk.product(risk.unit.h, risk.inputs, cloud.z[some], r, cloud.weights, flow.train, dtype=dtype)

    return remembered(cloud, "kernel residual", make, [flow])


@observable("rms over samples of e_i = E_p[Laplace psi_i - z . grad psi_i]")
def generator_rms(cloud: Cloud, flow: Flow) -> float:
    """Return the rms of e, which drives predictions back to those of p0."""
    risk = network(flow)
    if not steps.smooth(flow.dynamics):
        raise Unavailable(f"e needs a second derivative of h, which {risk.unit.h.name} has not")
    return float(np.sqrt(np.mean(risk.generator(cloud, flow.train, flow.decay) ** 2)))


@observable("mean square distance travelled, E|Z_t - Z_0|^2", unit="length^2")
def travelled(cloud: Cloud, flow: Flow) -> float:
    """Return E|Z_t - Z_0|^2, which is O(1) however little the law moves."""
    return moments(cloud, flow).travelled


@observable("mean square distance to the coupled reference, E|Z - Zbar|^2: an upper bound on W2^2", unit="length^2")
def coupled_distance(cloud: Cloud, flow: Flow) -> float:
    """Return E|Z - Zbar|^2, as (I5) has it (no rescaling of the Euler schemes' reference)."""
    far = coupled(cloud)
    if keeps_origin(cloud, flow):
        return moments(cloud, flow).distance
    return remembered(cloud, "distance", lambda: mean_square(cloud, cloud.z, far))


@observable("defect of identity (I5): measured minus integrated E|Z - Zbar|^2", unit="length^2", zero="rounding error")
def coupling_defect(cloud: Cloud, flow: Flow) -> float:
    """Return E|Z - Zbar|^2 minus what (I5) integrated along the steps expects; rounding if they share their noise."""
    accounted(cloud, flow)
    return coupled_distance(cloud, flow) - cloud.account.distance


@observable("discrete account: upper bound on KL(p_t || p0) per replicate", unit="nats")
def kl_account(cloud: Cloud, flow: Flow) -> float:
    """Return the account's bound, turned from the reference's law N(0, s^2 I) to p0."""
    accounted(cloud, flow)
    reason = steps.unaccountable(flow.dynamics)
    if reason:
        raise Unavailable(reason)
    return account_bound(cloud, flow)


def account_bound(cloud: Cloud, flow: Flow) -> float:
    """Return KL(p || q_s) + (1/v - 1/s^2) E|Z|^2 / 2 - D log(s / std), q_s = N(0, s^2 I), p0 = N(0, v I), v = std^2.

    E|Z|^2 = D s^2 + mean(|Z|^2 - |Zbar|^2) over the trained coordinates, centred on the reference.
    """
    s2, v = cloud.reference_variance, cloud.start_std**2
    if same_variance(cloud):
        return cloud.account.kl
    columns = steps.trained(flow.train)
    z, reference = cloud.z[:, columns], coupled(cloud)[:, columns]
    size = z.shape[1]
    square = size * s2 + mean_square(cloud, z) - mean_square(cloud, reference)
    return cloud.account.kl + 0.5 * (1 / v - 1 / s2) * square - 0.5 * size * math.log(s2 / v)


# Functions of all replicates at once. --------------------------------------------------------------------------------


@observable("unbiased loss: products of residuals across replicates (may be negative)", pooled=True)
def loss_unbiased(clouds: Sequence[Cloud], flow: Flow) -> float:
    """Return the square loss with the O(1/m) bias of r^2 removed: mean over pairs r != s of r_i^(r) r_i^(s)."""
    risk = network(flow)
    if len(clouds) < 2:
        raise Unavailable("an unbiased loss needs at least two replicates")
    if risk.loss != "square":
        raise Unavailable("the unbiased loss is a product of residuals, for the square loss alone")
    if not risk.centred:
        raise Unavailable("the loss of a network of width m is what it is: only the limit law's is biased")
    return cross_product(np.array([risk.residual(risk.prediction(c)) for c in clouds]))


def cross_product(residuals: Array) -> float:
    """Return the mean over samples and pairs of distinct replicates of r^(r) r^(s); residuals of shape (R, n)."""
    replicates = len(residuals)
    pairs = replicates * (replicates - 1)
    return float(np.mean((residuals.sum(0) ** 2 - (residuals**2).sum(0)) / pairs))


def select(names: Sequence[str] | None) -> list[Observable]:
    """Return the observables of those names (all of them for None, none for an empty list).

    Raises
    ------
    InputError
        If a name is unknown; the nearest is named.
    """
    if names is None:
        return list(OBSERVABLES.values())
    for name in names:
        if name not in OBSERVABLES:
            raise InputError(f"no observable is called {name!r}.{did_you_mean(name, OBSERVABLES)}")
    return [OBSERVABLES[name] for name in dict.fromkeys(names)]
