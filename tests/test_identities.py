"""(I1) to (I5) and their integrals on solutions that are known, certificates C0, C3 and C5, and the exit time."""

import math

import cases
import numpy as np
import pytest

from meanfield import theory
from meanfield.errors import InputError
from meanfield.units import ACTIVATIONS

PROBLEM = cases.bilinear(4, alpha=3.0, lam=0.2)


def quantities(times):
    """f, r, L, H, e, KL, Fisher information, B = tr(A S A) and S of the bilinear problem, by their definitions."""
    p, rows = PROBLEM, []
    n = len(p.y)
    for cov in p.covariance(times):
        f = p.prediction(cov)
        r = f - p.y
        drift = np.zeros_like(cov)
        drift[:-1, -1] = drift[-1, :-1] = -2 * p.alpha / n * p.x.T @ r
        fisher = np.trace(cov) - 2 * len(cov) + np.trace(np.linalg.inv(cov))
        b = float(np.trace(drift @ cov @ drift))
        rows.append((f, r, float(r @ r) / n, p.gram(cov), -2 * f / p.alpha, cases.gaussian_kl(cov), fisher, b))
    return rows


@pytest.mark.parametrize("t", [0.05, 0.4, 3.0])
def test_rates_against_differences(t):
    h = 1e-4 * max(t, 0.1)
    before, now, after = quantities([t - h, t, t + h])
    p, (_, r, L, H, e, KL, fisher, b) = PROBLEM, now

    def difference(k):
        return (after[k] - before[k]) / (2 * h)

    B, S = theory.drift_square(H, r, alpha=p.alpha), theory.entropy_input(r, e, alpha=p.alpha)
    assert pytest.approx(b, rel=1e-10) == B
    np.testing.assert_allclose(theory.prediction_rate(H, r, e, alpha=p.alpha, lam=p.lam), difference(0), atol=1e-6)
    assert theory.loss_rate(B, S, p.lam) == pytest.approx(difference(2), abs=1e-6)
    assert theory.entropy_rate(S, p.lam, 0.0, fisher) == pytest.approx(difference(5), abs=1e-6)
    assert theory.entropy_rate(S, p.lam, KL) >= difference(5) - 1e-6
    fall = -(difference(2) + p.lam * difference(5))
    assert pytest.approx(fall, abs=1e-6) == B - 2 * p.lam * S + p.lam**2 * fisher
    assert 0 <= theory.dissipation(B, S, p.lam) <= fall + 1e-6
    assert L > 0 and fisher >= 2 * KL and fisher >= S**2 / B


def test_the_distance_to_the_reference():
    """One coordinate with the drift b = -k z: Z - Zbar is Gaussian with the moments of a linear equation."""
    k, lam, t, h = 0.7, 0.3, 1.1, 1e-5

    def distance(t):
        # Z = e^{-(k + lam) t} Z0 + noise; both share it.
        fast, slow = k + lam, lam
        start = (math.exp(-fast * t) - math.exp(-slow * t)) ** 2
        noise = [-math.expm1(-2 * fast * t) / (2 * fast), -math.expm1(-2 * slow * t) / (2 * slow)]
        return start + 2 * lam * (sum(noise) - 2 * -math.expm1(-(fast + slow) * t) / (fast + slow))

    def pull(t):
        # E (Z - Zbar) b = -k E (Z - Zbar) Z
        fast, slow = k + lam, lam
        start = math.exp(-2 * fast * t) - math.exp(-(fast + slow) * t)
        noise = -math.expm1(-2 * fast * t) / (2 * fast) + math.expm1(-(fast + slow) * t) / (fast + slow)
        return -k * (start + 2 * lam * noise)

    rate = (distance(t + h) - distance(t - h)) / (2 * h)
    assert float(theory.distance_rate(pull(t), distance(t), lam)) == pytest.approx(rate, abs=1e-8)


# --- integrals


@pytest.mark.parametrize("grid", [np.linspace(0, 4, 30), np.concatenate(([0], np.geomspace(1e-3, 4, 25)))])
def test_integral_and_what_it_may_be_off_by(grid):
    for rate in (0.1, 2.0, 500.0):
        found, slack = theory.integral(grid, np.stack([np.exp(-rate * grid), -np.exp(-rate * grid)]))
        exact = -np.expm1(-rate * grid) / rate
        assert np.all(np.abs(found[0] - exact) <= slack[0] + 1e-15) and np.allclose(found[1], -found[0])
        assert np.all(slack >= 0) and found.shape == slack.shape == (2, len(grid))


def test_entropy_bound_of_a_constant_source():
    grid, lam = np.linspace(0, 3, 7), 0.4
    found, slack = theory.entropy_bound(grid, np.full(7, 1.5), lam, KL0=0.3)
    expected = 0.3 * np.exp(-2 * lam * grid) + 1.5 * -np.expm1(-2 * lam * grid) / (2 * lam)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert np.all(slack == 0)
    plain, _ = theory.entropy_bound(grid, np.full(7, 1.5), 0.0)
    np.testing.assert_allclose(plain, 1.5 * grid, rtol=1e-12)


def test_entropy_bound_holds_and_is_no_formality():
    times = 3 * np.linspace(0, 1, 201) ** 2
    rows = quantities(times)
    S = np.array([theory.entropy_input(r[1], r[4], alpha=PROBLEM.alpha) for r in rows])
    KL = np.array([r[5] for r in rows])
    bound, slack = theory.entropy_bound(times, S, PROBLEM.lam)
    assert np.all(bound + slack >= KL) and np.all(bound[10:] <= 1.02 * KL[10:] * (1 + 2 * PROBLEM.lam * times[10:]))
    assert slack[-1] < 0.02 * bound[-1]


def test_residual_from_recorded_kernels_is_of_fourth_order():
    errors = []
    for count in (17, 33, 65, 129):
        times = 2.0 * np.linspace(0, 1, count) ** 2
        rows = quantities(times)
        r, H, e = (np.array([row[k] for row in rows]) for k in (1, 3, 4))
        found = theory.residual_from(times, H, e, r[0], alpha=PROBLEM.alpha, lam=PROBLEM.lam)
        errors.append(np.abs(found - r).max())
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert errors[-1] < 3e-8 and np.all(orders[1:] > 3.4), (errors, orders)


def test_residual_from_is_stable_however_stiff():
    times, n = np.linspace(0, 1, 5), 2
    H = np.broadcast_to(np.diag([1.0, 1e6]), (5, n, n))
    found = theory.residual_from(times, H, np.zeros((5, n)), np.ones(n), alpha=1.0, lam=0.1)
    np.testing.assert_allclose(found[:, 0], np.exp(-times), rtol=1e-10)
    assert np.all(np.abs(found[1:, 1]) < 1e-12)
    with pytest.raises(InputError, match="need H"):
        theory.residual_from(times, H[:, :1], np.zeros((5, n)), np.ones(n), alpha=1.0, lam=0.1)


# --- C0, C1, C4, C5, t*


def test_scores_of_normal_increments():
    xi, place = np.random.default_rng(0).normal(size=(2, 40_000))
    sums = (len(xi), xi.sum(), (xi**2).sum(), (xi**4).sum(), xi @ place)
    assert all(0 <= score < 4 for score in theory.noise_scores(*sums).values())
    loud = 1.05 * xi
    scores = theory.noise_scores(len(xi), loud.sum(), (loud**2).sum(), (loud**4).sum(), loud @ place)
    assert scores["variance"] > 10 and scores["mean"] < 4
    assert theory.noise_scores(*sums[:4], 300.0 + sums[4])["decay"] > 1


def test_travel_of_the_reference():
    rng, a = np.random.default_rng(1), math.exp(-0.3 * 2.0)
    z0 = rng.normal(size=200_000)
    z = a * z0 + math.sqrt(1 - a * a) * rng.normal(size=len(z0))
    assert float(theory.reference_travelled(2.0, 0.3)) == pytest.approx(np.mean((z - z0) ** 2), rel=0.01)
    assert float(theory.reference_travelled(2.0, 0.3, 1.1, 0.5)) == pytest.approx(1.1)
    assert float(theory.kernel_margin(0.7, 1.0)) == pytest.approx(0.2)
    assert theory.bracket_margin([1.0], [1.5]).tolist() == [0.5]


def test_the_dual_at_the_known_minimiser():
    """P1, alpha = 1, lam = 0.2: D is min Q at its coefficients and below at others."""
    y, lam = cases.P1_Y, 0.2
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    h = ACTIVATIONS["erf"].value(np.outer(nodes, cases.P1_X[:, 0]))

    def dual(c):
        log_partition = math.log(weights @ np.exp(0.5 * (h @ c) ** 2) / weights.sum())
        return theory.dual_energy(c, y, log_partition, alpha=1.0, lam=lam)

    c = theory.dual_coefficients(np.array([0.38271856, 0.63876667]) - y, 1.0, lam)
    assert dual(c) == pytest.approx(0.1006539922, abs=1e-9)
    for shift in ([0.1, 0.0], [-0.05, 0.2], [0.0, -0.3]):
        assert dual(c + shift) < dual(c)


def test_exit_time():
    times = [0.0, 1.0, 2.0, 3.0]
    assert theory.exit_time(times, [0, 0.1, 0.2, 0.3], [0, 0.2, 0.3, 0.4], 1.0) == (3.0, math.inf)
    assert theory.exit_time(times, [0, 0.1, 0.4, 0.3], [0, 0.2, 0.5, 0.2], 0.35) == (1.0, 2.0)
    assert theory.exit_time(times, [0, 0.1, 0.2, 0.3], [0.5, 0.2, 0.5, 0.2], 0.35) == (0.0, math.inf)


def test_radii_and_thresholds():
    G = (1.0, 1.0, 0.7698, 1.0, 2.0)
    assert theory.radius_printed(0.1, 5, 3, 40.0) == pytest.approx(0.1 / 5 / 40)
    assert theory.radius_printed(0.1, 5, 3, 1e-6) == 2.0
    explicit = theory.threshold_explicit(0.1, 5, 5, 0.01, G)
    # At the explicit threshold Talagrand's inequality reaches R with the bound on KL.
    kl = theory.kl_bound(explicit, 0.01, 0.1, 5, 5, 2.0)
    assert theory.talagrand(kl) == pytest.approx(theory.radius(0.1, 5, 5, G))
    assert theory.threshold(0.1, 5, 5, 0.01, G) == pytest.approx(2 * math.sqrt(2) * explicit)
