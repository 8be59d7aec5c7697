"""Without data the particles keep their law: p0, or N(0, s^2 I) for the Euler schemes, s^2 known. Cost: 6 s.

Every statistic is judged at 4 standard errors of m = 10,000 independent particles; a Kolmogorov-Smirnov distance at
the probability of 4 standard errors, 6e-5. The seed was fixed beforehand.
"""

import math

import numpy as np
import pytest
from scipy.stats import kstest

from meanfield import accounting
from meanfield.cloud import gaussian_cloud
from meanfield.flow import Flow
from meanfield.objectives import Potential
from meanfield.risk import Risk
from meanfield.units import Unit

M, STEPS, ETA, LAM = 10_000, 8, 0.25, 1.0
FOUR_ERRORS = math.erfc(4 / math.sqrt(2))


def silent(D, kind):
    """An objective that does nothing: a potential of zero, or a centred risk whose labels are all zero."""
    if kind == "potential":
        return Potential(lambda z: np.zeros(len(z)), np.zeros_like)
    x = np.random.default_rng(1).normal(size=(3, D - 1)) / D
    return Risk(x, np.zeros(3), Unit("tanh"))


def euler_variance(steps):
    """s_k^2 = v + (1 - eta lam)^2k (1 - v), v = 1 / (1 - eta lam / 2)."""
    v = 1 / (1 - 0.5 * ETA * LAM)
    return v + (1 - ETA * LAM) ** (2 * steps) * (1 - v)


def assert_normal(z, variance):
    """Mean, covariance, fourth moments and distribution of every coordinate are those of N(0, variance I)."""
    z = z / math.sqrt(variance)
    error = 4 / math.sqrt(len(z))
    D = z.shape[1]
    assert np.abs(z.mean(0)).max() < error
    deviation = z.T @ z / len(z) - np.eye(D)
    assert np.abs(np.diag(deviation)).max() < error * math.sqrt(2)
    assert np.abs(deviation - np.diag(np.diag(deviation))).max() < error
    assert np.abs((z**4).mean(0) - 3).max() < error * math.sqrt(96)
    assert min(kstest(column, "norm").pvalue for column in z.T) > FOUR_ERRORS


@pytest.mark.parametrize("D", [2, 6, 21])
@pytest.mark.parametrize(
    ("scheme", "kind"),
    [("kernel", "risk"), ("kernel2", "risk"), ("exponential", "potential"), ("euler", "potential"), ("euler", "risk")],
)
def test_the_law_stays(D, scheme, kind):
    """Particles and reference are one and the same all along; increments have variance 1 and forget the state."""
    flow = Flow(silent(D, kind), lam=LAM, scheme=scheme)
    cloud = start = gaussian_cloud(M, dimension=D, seed=11)
    assert_normal(cloud.z, 1.0)
    for _ in range(STEPS):
        before, cloud = cloud, flow.step(cloud, ETA)
    np.testing.assert_array_equal(cloud.z, cloud.reference)
    variance = euler_variance(STEPS) if scheme == "euler" else 1.0
    assert cloud.reference_variance == pytest.approx(variance, rel=1e-12)
    assert_normal(cloud.z, variance)
    c = 1 - ETA * LAM if scheme == "euler" else math.exp(-ETA * LAM)
    sigma = math.sqrt(2 * ETA * LAM) if scheme == "euler" else math.sqrt(1 - c * c)
    increments = (cloud.z - c * before.z) / sigma
    assert_normal(increments, 1.0)
    # Independent of the state before, and of the start: D^2 correlations, judged by their mean square.
    for past in (before.z / math.sqrt(before.reference_variance), start.z):
        correlations = increments.T @ past / math.sqrt(M)
        assert abs(np.mean(correlations**2) - 1) < 4 * math.sqrt(2) / D


@pytest.mark.parametrize("train", ["u", "theta"])
def test_the_law_stays_when_one_layer_is_frozen(train):
    flow = Flow(silent(6, "risk"), lam=LAM, train=train)
    cloud = gaussian_cloud(M, dimension=6, seed=11)
    for _ in range(STEPS):
        cloud = flow.step(cloud, ETA)
    assert_normal(cloud.z, 1.0)


def test_float32_keeps_the_law():
    cloud = gaussian_cloud(M, dimension=6, seed=11, dtype="float32")
    flow = Flow(silent(6, "risk"), lam=LAM)
    for _ in range(STEPS):
        cloud = flow.step(cloud, ETA)
    assert_normal(cloud.z.astype(float), 1.0)


def test_the_account_of_nothing_is_nothing():
    """No kick, no entropy: the account stays zero, and what rides with it sees right noise and no defect."""
    flow = Flow(silent(6, "risk"), lam=LAM)
    cloud = gaussian_cloud(M, dimension=6, seed=11)
    for _ in range(STEPS):
        cloud = flow.step(cloud, ETA)
    account = cloud.account
    assert account.kl == account.distance == account.mass_outside == account.work == 0
    assert not account.prediction.any() and not account.prediction_variance.any() and not account.prediction_slack.any()
    count, total, square, fourth, cross = account.noise
    turns = -(-M // accounting.TOGETHER)
    assert turns > 1
    looked_at = [min(accounting.TOGETHER, M - k % turns * accounting.TOGETHER) for k in range(STEPS)]
    assert count == sum(looked_at) * 6
    assert abs(total) < 4 * math.sqrt(count) and abs(cross) < 4 * math.sqrt(count)
    assert abs(square / count - 1) < 4 * math.sqrt(2 / count)
    assert abs(fourth / count - 3) < 4 * math.sqrt(96 / count)
