"""Numbers known in advance: closed forms to their last digit, particles within standard errors. Cost: 10 s."""

import cases
import numpy as np
import pytest
from cases import P1_X, P1_Y, P2_X, P2_Y, Bilinear, Frozen, gaussian_kl, gaussian_w2

from meanfield import ntk, theory
from meanfield.cloud import gaussian_cloud
from meanfield.estimate import student_factor
from meanfield.flow import Flow
from meanfield.objectives import Potential
from meanfield.risk import Risk
from meanfield.units import ACTIVATIONS, Unit

# Errors are judged by replicates: within 4 of their standard errors, or by the Student factor where it is said.
FROZEN = Frozen(P1_X, P1_Y, alpha=3.0, lam=0.1)
BILINEAR = Bilinear(P2_X, P2_Y, alpha=2.0, lam=0.2)


def ends(risk, lam, time, *, m, count, steps, train="both"):
    """The flow and the clouds of all replicates at `time`, by the second-order scheme."""
    flow = Flow(risk, lam=lam, scheme="kernel2", train=train)
    times = time * (np.arange(steps + 1) / steps) ** 1.5
    start = gaussian_cloud(m, risk.unit, risk.d, seed=0)
    return flow, [list(cases.travel(flow, cloud, times))[-1] for cloud in cases.replicates(start, count)]


# --- closed forms


def test_gram_matrices_of_two_samples():
    """Case 1: erf at p0, the arcsine kernel and its tangent, by closed form and by Mehler's series."""
    erf = ACTIVATIONS["erf"]
    second, first = ntk.gram_parts(erf, P2_X)
    np.testing.assert_allclose(second[0], [0.4645590544, 0.2619797609], atol=1e-9)
    np.testing.assert_allclose(first[0], [0.5694100347, 0.2778436472], atol=1e-9)
    assert np.linalg.eigvalsh(first + second)[0] == pytest.approx(0.4941456810, abs=1e-9)
    np.testing.assert_allclose(ntk.mehler(erf, P2_X, (0, 0)), second, atol=1e-9)
    np.testing.assert_allclose(ntk.mehler(erf, P2_X, (1, 1)) * (P2_X @ P2_X.T), first, atol=1e-9)


def test_frozen_inner_weights_in_closed_form():
    """Case 4."""
    assert FROZEN.loss(0.5) == pytest.approx(0.0032090563, abs=1e-8)
    assert FROZEN.kl(0.5) == pytest.approx(0.0684490336, abs=1e-8)
    np.testing.assert_allclose(FROZEN.prediction(0.5), [0.43362844, 0.75513433], atol=1e-8)


def test_bilinear_network_in_closed_form():
    """Case 5."""
    S = BILINEAR.covariance(1.0)[0]
    assert BILINEAR.loss(S) == pytest.approx(0.002492416, abs=1e-7)
    assert gaussian_kl(S) == pytest.approx(0.074270028, abs=1e-7)
    assert gaussian_w2(S) == pytest.approx(0.274832600, abs=1e-7)
    assert np.linalg.eigvalsh(BILINEAR.gram(S))[0] == pytest.approx(0.871747217, abs=1e-7)


def test_printed_constants():
    """Case 7."""
    assert theory.A1(2.0, 5) == pytest.approx(43.595918, abs=1e-6)
    assert theory.A2(2.0, 5) == pytest.approx(86.383672, abs=1e-6)


# --- particles


def test_particles_of_a_nonlinear_network():
    """Case 2: d = 1, erf, alpha = 1, lam = 0.2 at t = 1, where a solver of the limit equation gives five digits."""
    from meanfield import bounds

    risk = Risk(P1_X, P1_Y, Unit("erf"), alpha=1.0)
    flow, clouds = ends(risk, 0.2, 1.0, m=20_000, count=4, steps=8)
    predictions = [risk.prediction(cloud) for cloud in clouds]
    np.testing.assert_allclose(predictions, 4 * [[0.289496, 0.504201]], atol=5e-3)
    assert cases.standard_errors(predictions, [0.289496, 0.504201]) < 4
    lowest = [np.linalg.eigvalsh(risk.tangent(cloud)[1])[0] for cloud in clouds]
    assert cases.standard_errors(lowest, 0.0356732) < 4
    lower, upper = bounds.kl_lower(clouds, flow), bounds.kl_upper(clouds, flow)
    factor = student_factor(len(clouds))
    assert lower.value - factor * lower.se <= 0.269960 <= upper.value + factor * upper.se
    assert upper.value < 1.1 * 0.269960 and lower.value > 0.269960 / 1.1


def test_particles_with_frozen_inner_weights():
    """Case 4: here Stein's field is the score itself and a kick a shear, so the account is no bound but the KL."""
    _, clouds = ends(FROZEN.risk(), 0.1, 0.5, m=2000, count=16, steps=12, train="u")
    predictions = np.array([FROZEN.risk().prediction(cloud) for cloud in clouds])
    assert cases.standard_errors(predictions, [0.43362844, 0.75513433]) < 4
    r = predictions - P1_Y
    # Products across replicates have no bias.
    products = (r.sum(0) * r - r * r).mean(1) / (len(r) - 1)
    assert abs(products.mean() - 0.0032090563) < 4 * 2 * products.std(ddof=1) / np.sqrt(len(r))
    assert cases.standard_errors([cloud.account.kl for cloud in clouds], 0.0684490336) < 4


def test_particles_of_a_bilinear_network():
    """Case 5: predictions, every centred second moment, KL and W2 from above."""
    S = BILINEAR.covariance(1.0)[0]
    flow, clouds = ends(BILINEAR.risk(), 0.2, 1.0, m=2000, count=16, steps=12)
    predictions = [flow.objective.prediction(cloud) for cloud in clouds]
    assert cases.standard_errors(predictions, BILINEAR.prediction(S)) < 4
    moments = [np.eye(3) + (c.z.T @ c.z - c.reference.T @ c.reference) / c.m for c in clouds]
    assert cases.standard_errors(moments, S) < 4
    kl = np.array([cloud.account.kl for cloud in clouds])
    error = kl.std(ddof=1) / 4
    assert 0.074270028 - 4 * error < kl.mean() < 1.05 * 0.074270028 + 4 * error
    coupled = np.array([np.sum((c.z - c.reference) ** 2) / c.m for c in clouds])
    assert coupled.mean() > 0.2748326**2 - 4 * coupled.std(ddof=1) / 4


# --- no loss, long time

NOTHING = Potential(lambda z: np.zeros(len(z)), np.zeros_like)


@pytest.mark.parametrize(
    ("scheme", "eta", "m", "variance"),
    [
        ("euler", 0.5, 2000, 1 / (1 - 0.25)),
        ("euler", 0.1, 2000, 1 / (1 - 0.05)),
        ("euler_literal", 40.0, 50, 50 / (1 - 40 / 100)),
        ("euler_literal", 5.0, 50, 50 / (1 - 5 / 100)),
        ("exponential", 0.5, 2000, 1.0),
    ],
)
def test_variance_without_loss(scheme, eta, m, variance):
    """Case 6, lam = 1, 20,000 coordinates; the variance settles as c^2k, the literal one m times slower."""
    cloud = gaussian_cloud(m, dimension=20_000 // m, seed=6)
    flow = Flow(NOTHING, lam=1.0, scheme=scheme, allow_unstable=True)
    for _ in range(60):
        cloud = flow.step(cloud, eta)
    assert cloud.reference_variance == pytest.approx(variance, rel=1e-4)
    assert abs(np.mean(cloud.z**2) / variance - 1) < 4 * np.sqrt(2 / 20_000)
    np.testing.assert_array_equal(cloud.z, cloud.reference)
