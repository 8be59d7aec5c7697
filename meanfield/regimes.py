"""Kernel regime or feature learning: how far the tangent kernel and the outputs move, and how the test set fares.

    kernel_drift        |H(p_t) - H(p_0)|_F / |H(p_0)|_F                0 in the kernel regime
    kernel_alignment    <H, y y'> / (|H|_F |y|^2)                       grows where features turn towards the labels
    output_change       rms over samples of f_t - f_0
    test_loss           mean loss over the test set

They are observables, taken at bound times. Squares of noisy matrices are biased up by O(1/m); products of different
replicates are not, so that two replicates or more remove it. Where the risk is that of a network of width m
(`centred = false`) the kernel is the network's own, with nothing to be removed.
"""

import hashlib
import math
from collections.abc import Callable, Sequence

import numpy as np

from meanfield.bounds import at_start, centred_gram
from meanfield.cloud import Cloud
from meanfield.estimate import Estimate, mean_estimate
from meanfield.flow import Flow
from meanfield.observables import Unavailable, network, observable, origin, remembered
from meanfield.risk import Risk

Array = np.ndarray
PAIRS, SINGLE, OWN = "cross products", "one replicate: biased up", "the network's own kernel"


@observable("relative change of the tangent kernel since the start, Frobenius norm", costly=True, pooled=True,
            zero="0 within its error; with one replicate its noise, of order (E|Z - Zbar|^2 / m)^1/2")  # fmt: skip
def kernel_drift(clouds: Sequence[Cloud], flow: Flow) -> Estimate:
    """Return |H(p_t) - H(p_0)|_F / |H(p_0)|_F.

    For the limit law the change of replicate r is D_r = H(cloud) - H(reference), and |E D|^2 is the mean of <D_r, D_s>
    over pairs r != s, at least 0; its error is a jackknife's over replicates (NaN for two). For a network of width m
    the change is that of its own kernel, which noise alone moves by O(m^-1/2): mean and error over replicates.
    """
    risk = network(flow)
    if not risk.centred:
        return mean_estimate([_own_drift(risk, cloud, flow) for cloud in clouds], OWN)
    start = risk.gram_start(clouds[0].start_std, flow.train)
    moved = [centred_gram(cloud, flow) - start for cloud in clouds]
    scale = float(np.linalg.norm(start))
    if at_start(clouds):
        return Estimate(0.0, 0.0, "start")
    if len(clouds) == 1:
        return Estimate(float(np.linalg.norm(moved[0])) / scale, math.nan, SINGLE)
    square, error = jackknife(moved, off_diagonal_mean)
    value = math.sqrt(max(square, 0.0))
    return Estimate(value / scale, (math.sqrt(max(square, 0.0) + error) - value) / scale, PAIRS)


def _own_drift(risk: Risk, cloud: Cloud, flow: Flow) -> float:
    start = _of_start("kernel", cloud, flow, lambda first: _plain_gram(risk, first, flow.train))
    return float(np.linalg.norm(_plain_gram(risk, cloud, flow.train) - start) / np.linalg.norm(start))


def _of_start(name: str, cloud: Cloud, flow: Flow, function: Callable[[Cloud], Array]) -> Array:
    """Return a function of the cloud at its own start, kept for the flow's life by what that start is."""
    z = np.ascontiguousarray(origin(cloud, flow))
    key = f"{name} at {hashlib.sha256(z.view(np.uint8).data).hexdigest()}"
    weights = [] if cloud.weights is None else [cloud.weights]
    return remembered(flow, key, lambda: function(cloud.replace(z=z, reference=None)), weights)


def _plain_gram(risk: Risk, cloud: Cloud, train: str) -> Array:
    gram = risk.measure(cloud, train).gram
    assert gram is not None
    return gram


@observable("alignment of the tangent kernel with the labels, a cosine", costly=True, pooled=True,
            zero="tr H / (n |H|_F) for labels that know nothing of the kernel")  # fmt: skip
def kernel_alignment(clouds: Sequence[Cloud], flow: Flow) -> Estimate:
    """Return <H, y y'>_F / (|H|_F |y|^2), at most 1, which is reached where H is a multiple of y y'.

    For the limit law |H|^2 is the mean of <H_r, H_s> over pairs of replicates, with a jackknife's error (NaN for two).
    """
    risk = network(flow)
    square = float(risk.y @ risk.y)
    if square == 0:
        raise Unavailable("all labels are zero: nothing to be aligned with")
    if risk.centred:
        kernels = [centred_gram(cloud, flow) for cloud in clouds]
    else:
        kernels = [_plain_gram(risk, cloud, flow.train) for cloud in clouds]
    along = np.array([float(risk.y @ kernel @ risk.y) / square for kernel in kernels])
    norms = np.array([np.linalg.norm(kernel) for kernel in kernels])
    if not risk.centred:
        return mean_estimate(along / norms, OWN)
    if at_start(clouds):
        return Estimate(float(along[0] / norms[0]), 0.0, "start")
    if len(clouds) == 1:
        return Estimate(float(along[0] / norms[0]), math.nan, SINGLE.replace("up", "down"))

    def cosine(products: Array, kept: Array) -> float:
        square = off_diagonal_mean(products, kept)
        return float(along[kept].mean() / math.sqrt(square)) if square > 0 else math.nan

    value, error = jackknife(kernels, cosine)
    return Estimate(min(value, 1.0), error, PAIRS)


def jackknife(matrices: Sequence[Array], function: Callable[[Array, Array], float]) -> tuple[float, float]:
    """Return a function of the inner products <A_r, A_s>_F and of the replicates kept, and its jackknife error.

    The error sqrt((R - 1)/R sum_r (value without r - their mean)^2) asks for three replicates; NaN for two.
    """
    count = len(matrices)
    everyone = np.arange(count)
    products = np.array([[np.vdot(a, b) for b in matrices] for a in matrices])  # no copies of large matrices
    value = function(products, everyone)
    if count < 3:
        return value, math.nan
    without = np.array([function(products, np.delete(everyone, r)) for r in everyone])
    return value, math.sqrt((count - 1) / count * float(((without - without.mean()) ** 2).sum()))


def off_diagonal_mean(products: Array, kept: Array) -> float:
    """Return the mean of the products of different replicates among those kept."""
    part = products[np.ix_(kept, kept)]
    return float((part.sum() - np.trace(part)) / (len(kept) * (len(kept) - 1)))


@observable("rms over samples of the change of the network output since the start", costly=True)
def output_change(cloud: Cloud, flow: Flow) -> float:
    """Return sqrt(mean_i (f_i(t) - f_i(0))^2); f(0) = 0 for the limit law, for a network that of its own start."""
    risk = network(flow)
    change = risk.prediction(cloud)
    if not risk.centred:
        change = change - _of_start("output", cloud, flow, risk.prediction)
    return float(np.sqrt(np.mean(change**2)))


@observable("mean loss over the test set", costly=True, on_test=True)
def test_loss(cloud: Cloud, flow: Flow, test: Risk | None = None) -> float:
    """Return the replicate's loss on the test set (for the limit law biased up by O(1/m): see test_loss_unbiased)."""
    return _tested(test).value(cloud)


@observable("unbiased loss on the test set: products of residuals across replicates", costly=True, pooled=True,
            on_test=True)  # fmt: skip
def test_loss_unbiased(clouds: Sequence[Cloud], flow: Flow, test: Risk | None = None) -> Estimate:
    """Return the mean over samples and pairs r != s of residuals' products, with its jackknife error."""
    risk = _tested(test)
    if len(clouds) < 2 or risk.loss != "square" or not risk.centred:
        raise Unavailable("an unbiased test loss needs two replicates of the limit law and the square loss")
    residuals = [risk.residual(risk.prediction(cloud)) / math.sqrt(risk.n) for cloud in clouds]
    return Estimate(*jackknife(residuals, off_diagonal_mean), PAIRS)


def _tested(test: Risk | None) -> Risk:
    if test is None:
        raise Unavailable("there is no test set: data.n_test, or test=(x, y) of simulate, gives one")
    return test
