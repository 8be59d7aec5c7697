"""Weak order of every scheme, free of sampling error; stiffness; the stability limit. Cost: 7 s.

Two kinds of noise-free dynamics: the second moments of the bilinear network under the library's own steps
(`cases.Closure`) against their differential equation, and particles without noise (lam = 0) against theirs.
"""

import cases
import numpy as np
import pytest
from cases import Closure, bilinear, gaussian_kl, gaussian_w2
from scipy.integrate import solve_ivp

from meanfield.cloud import gaussian_cloud
from meanfield.flow import Flow
from meanfield.schemes import SCHEMES, phi1, phi2, plan

ORDERS = {"euler": (1, 0.15), "exponential": (1, 0.15), "kernel": (1, 0.15), "kernel2": (2, 0.3)}
each_scheme = pytest.mark.parametrize("scheme", ORDERS)
FRACTIONS = (0.5, 0.25, 0.125, 0.0625)  # of the stability limit


def slope(lengths, errors):
    return np.polyfit(np.log(lengths), np.log(errors), 1)[0]


def closure(problem, scheme, times, **options):
    law = Closure(Flow(problem.risk(), lam=problem.lam, scheme=scheme, account=False, **options), problem.dimension)
    for eta in np.diff(times):
        law.step(float(eta))
    return law


@each_scheme
@pytest.mark.parametrize(("D", "alpha", "time"), [(4, 10.0, 0.05), (11, 2.0, 1.0)])
def test_weak_order_of_second_moments(scheme, D, alpha, time):
    """Covariance, KL and W2 at one time, with steps from half the limit down to a sixteenth."""
    problem = bilinear(D, alpha)
    exact = problem.covariance(time)[0]
    lengths, errors = [], []
    for fraction in FRACTIONS:
        count = int(np.ceil(time / (fraction * problem.limit())))
        S = closure(problem, scheme, np.linspace(0, time, count + 1)).covariance
        lengths.append(time / count)
        errors.append(
            [
                np.linalg.norm(S - exact),
                abs(gaussian_kl(S) - gaussian_kl(exact)),
                abs(gaussian_w2(S) - gaussian_w2(exact)),
            ]
        )
    order, tolerance = ORDERS[scheme]
    for column in np.transpose(errors):
        assert slope(lengths, column) == pytest.approx(order, abs=tolerance)


@each_scheme
@pytest.mark.parametrize(("activation", "alpha"), [("tanh", 3.0), ("erf", 10.0), ("sigmoid", 3.0)])
def test_order_of_nonlinear_particles_without_noise(scheme, activation, alpha):
    """Five particles, lam = 0, to 1e-11 by an eighth-order solver."""
    risk = cases.network(activation, alpha=alpha)
    start = gaussian_cloud(5, dimension=cases.D, seed=1)
    time = 8 * 2 / risk.stiffness(start)

    def rate(_, flat):
        return -risk.gradient(start.replace(z=flat.reshape(start.z.shape))).ravel()

    found = solve_ivp(rate, (0, time), start.z.ravel(), rtol=1e-11, atol=1e-13, method="DOP853")
    exact = found.y[:, -1].reshape(start.z.shape)
    flow = Flow(risk, lam=0.0, scheme=scheme, account=False)
    counts = (16, 32, 64, 128)
    errors = []
    for count in counts:
        for cloud in cases.travel(flow, start, np.linspace(0, time, count + 1)):
            end = cloud
        errors.append(np.abs(end.z - exact).max())
    order, tolerance = ORDERS[scheme]
    assert -slope(counts, errors) == pytest.approx(order, abs=tolerance)


# --- stiffness

STIFF = bilinear(4, 10.0, seed=3, n=4)


def test_kernel2_is_right_at_a_hundred_times_the_limit():
    """Case 8: seven steps of 100 limits and what is left of T = 5."""
    long = 100 * STIFF.limit()
    times = np.append(long * np.arange(8), 5.0)
    law = closure(STIFF, "kernel2", times)
    assert gaussian_kl(law.covariance) == pytest.approx(gaussian_kl(STIFF.covariance(5.0)[0]), rel=1e-3)
    law = closure(STIFF, "kernel2", times[:-1])
    assert gaussian_kl(law.covariance) == pytest.approx(gaussian_kl(STIFF.covariance(times[-2])[0]), rel=1e-3)


@pytest.mark.parametrize("scheme", ["euler", "exponential"])
def test_explicit_schemes_go_wrong_above_the_limit(scheme):
    """Case 8: at 1.5 limits KL is wrong by more than ten times, and settles there; just below it is right to 1 %."""
    exact = gaussian_kl(STIFF.covariance(5.0)[0])
    for fraction, right in ((0.95, True), (1.5, False)):
        count = int(np.ceil(5.0 / (fraction * STIFF.limit())))
        law = closure(STIFF, scheme, np.linspace(0, 5.0, count + 1), allow_unstable=True)
        ratio = gaussian_kl(law.covariance) / exact
        assert abs(ratio - 1) < 0.01 if right else ratio > 10


def test_stiffness_does_not_harm_the_kernel_schemes():
    """At 100 limits the error of KL falls with alpha: at alpha = 50 those are steps of 0.03, lam eta = 0.006."""
    problem = bilinear(4, 50.0, seed=3, n=4)
    count = int(np.ceil(5.0 / (100 * problem.limit())))
    exact = gaussian_kl(problem.covariance(5.0)[0])
    for scheme, tolerance in (("kernel", 1e-5), ("kernel2", 1e-6)):
        law = closure(problem, scheme, np.linspace(0, 5.0, count + 1))
        assert gaussian_kl(law.covariance) == pytest.approx(exact, rel=tolerance)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("decay", [0.0, 0.25, 1.0])
def test_a_channel_is_an_ornstein_uhlenbeck_flow_over_its_stated_times(scheme, decay):
    """c = e^-t, sigma^2 = v (1 - c^2), t = decay_time and v t = noise_time: what (I1) integrates along it."""
    parts = plan(SCHEMES[scheme], 0.3, 0.7, decay, 5, 1.3)
    c, sigma2, time = parts.channel.decay, parts.channel.sigma**2, parts.decay_time
    assert c == pytest.approx(np.exp(-time), rel=1e-14)
    mean = 2 * parts.noise_time if time == 0 else parts.noise_time / time * (1 - c * c)
    assert sigma2 == pytest.approx(mean, rel=1e-13)
    assert parts.channel.variance_after == pytest.approx(c * c * 1.3 + sigma2, rel=1e-14)


def test_the_functions_of_the_mean_residual():
    """phi1 and phi2 against their integrals over [0, 1] of e^-xs and (1 - e^-xs) / x, at all sizes of x."""
    x = np.concatenate(([0.0], np.geomspace(1e-12, 300, 60)))
    nodes, weights = np.polynomial.legendre.leggauss(200)
    s = 0.5 * (nodes + 1)
    decay = np.exp(-np.outer(x, s))
    np.testing.assert_allclose(phi1(x), decay @ (0.5 * weights), rtol=1e-11)
    inner = np.where(x[:, None] > 0, -np.expm1(-np.outer(x, s)) / np.where(x > 0, x, 1)[:, None], s)
    np.testing.assert_allclose(phi2(x), inner @ (0.5 * weights), rtol=1e-11)
