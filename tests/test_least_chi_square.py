"""The teacher of least chi-square and the complexity of a ball in KL: closed forms, brute force, duality."""

import itertools

import numpy as np
import pytest
from cases import P1_X, P1_Y
from scipy.optimize import brentq, minimize_scalar, nnls
from scipy.special import erf

from meanfield import complexity, quadrature, teacher
from meanfield.errors import InputError
from meanfield.estimate import student_factor
from meanfield.ntk import gram_parts
from meanfield.risk import Risk
from meanfield.units import Unit

AXIS = np.linspace(-9, 9, 1201)


def sphere(n: int, d: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


# --- the teacher


@pytest.mark.parametrize("alpha", [1.0, 4.0])
def test_small_labels_have_a_closed_form(alpha):
    """Where rho = 1 + c . psi stays positive but for a probability that underflows, chi^2 = y' K2^-1 y / alpha^2."""
    y = 0.01 * P1_Y
    found = teacher.least_chi_square(P1_X, y, "erf", alpha=alpha)
    K2 = gram_parts(Unit("erf").h, P1_X)[0]
    assert found.chi_square.value == pytest.approx(y @ np.linalg.solve(K2, y) / alpha**2, rel=1e-9)
    np.testing.assert_allclose(found.coefficients, np.linalg.solve(K2, y) / alpha, rtol=1e-8)
    np.testing.assert_allclose(found.prediction.value, y, atol=1e-14)


@pytest.mark.parametrize("y", [(0.05, 0.08), (0.5, 0.8), (0.8, 0.9)])
def test_primal_and_dual_agree_by_brute_force(y):
    """rho on a grid over (theta, u): feasible, and its chi^2 equals the dual value, so that it is the least."""
    found = teacher.least_chi_square(P1_X, y, "erf")
    theta, u = np.meshgrid(AXIS, AXIS, indexing="ij")
    psi = u[None] * erf(P1_X[:, 0, None, None] * theta)
    p0 = np.exp(-0.5 * (theta**2 + u**2)) * (AXIS[1] - AXIS[0]) ** 2 / (2 * np.pi)
    rho = np.maximum(found.mu + np.tensordot(found.coefficients, psi, 1), 0)
    assert (p0 * rho).sum() == pytest.approx(1, abs=2e-5)
    np.testing.assert_allclose((p0 * rho * psi).sum((1, 2)), y, atol=2e-5)
    square = (p0 * rho**2).sum()
    assert found.chi_square.value == pytest.approx(square - 1, rel=2e-5)
    assert found.dual.value == pytest.approx(2 * (found.mu + found.coefficients @ y) - square - 1, rel=2e-5)
    assert found.dual.value == pytest.approx(found.chi_square.value, rel=1e-9)
    assert found.chi_square.value >= np.array(y) @ np.linalg.solve(found.layer.kernel, y)


def test_least_chi_square_by_another_optimiser():
    """Nonnegative least squares over densities on a grid in (theta, u), theta > 0 (psi is even)."""
    theta, u = np.meshgrid(np.linspace(0.125, 5.875, 24), np.linspace(-6, 6, 49), indexing="ij")
    p0 = np.exp(-0.5 * (theta**2 + u**2)).ravel()
    p0 /= p0.sum()
    psi = u.ravel() * erf(P1_X * theta.ravel())
    heavy = 1e4
    system = np.vstack([np.diag(np.sqrt(p0)), heavy * p0, heavy * psi * p0])
    rho, _ = nnls(system, np.concatenate([np.zeros(len(p0)), [heavy], heavy * P1_Y]), maxiter=20_000)
    np.testing.assert_allclose(psi @ (p0 * rho), P1_Y, atol=1e-5)
    found = teacher.least_chi_square(P1_X, P1_Y, "erf")
    assert found.chi_square.value == pytest.approx(p0 @ rho**2 - 1, rel=5e-3)  # the grid's error


def test_samples_and_outputs_of_a_teacher():
    """Outputs at inputs across the span too; E_rho 1 / rho is the mass that rho leaves of p0."""
    x, there = np.array([[0.4, 0.0], [1.0, 0.0]]), np.array([[0.4, 0.0], [0.3, 0.8], [-0.6, 0.2]])
    found = teacher.least_chi_square(x, P1_Y, "erf")
    z = found.sample(50_000, seed=2)
    np.testing.assert_array_equal(z[:50], found.sample(50, seed=2))
    psi = z[:, -1:] * erf(z[:, :-1] @ there.T)
    known = found.predict(there)
    assert known.value[0] == pytest.approx(P1_Y[0], abs=1e-9)
    assert np.abs((psi.mean(0) - known.value) / (psi.std(0) / np.sqrt(len(z)))).max() < 4
    ratio = found.log_density_ratio(z)
    density = np.exp(ratio)  # E_rho rho = 1 + chi^2
    assert abs(density.mean() - 1 - found.chi_square.value) < 4 * density.std() / np.sqrt(len(z))
    fresh = np.random.default_rng(0).normal(size=(50_000, 3))
    mass = np.exp(found.log_density_ratio(fresh))
    assert abs(mass.mean() - 1) < 4 * mass.std() / np.sqrt(len(fresh))


def test_a_nearer_law_exists_for_larger_alpha():
    """The mixture (1 - 1/alpha) p0 + rho p0 / alpha has chi^2 / alpha^2; the best law at alpha is no worse."""
    one = teacher.least_chi_square(P1_X, P1_Y, "erf").chi_square.value
    for alpha in (1.5, 4.0):
        assert teacher.least_chi_square(P1_X, P1_Y, "erf", alpha=alpha).chi_square.value <= one / alpha**2


def test_teacher_by_quasi_monte_carlo(monkeypatch):
    x, y = sphere(3, 3), np.array([0.5, -0.3, 0.4])
    truth = teacher.least_chi_square(x, y, "tanh", nodes=1 << 15)
    monkeypatch.setattr(quadrature, "GRID_RANK", 0)
    found = [teacher.least_chi_square(x, y, "tanh", nodes=1 << 13, seed=seed) for seed in range(8)]
    t = student_factor(8, 0.975)
    above = np.array([(f.dual.value - truth.dual.value) / f.dual.se for f in found])
    assert np.mean(above > t) <= 0.05 and above.max() <= 2 * t
    off = np.abs(np.concatenate([(f.prediction.value - y) / f.prediction.se for f in found]))
    assert off.max() < 4 * t  # the outputs of the law are those of its own c, near y
    np.testing.assert_allclose(np.mean([f.prediction.value for f in found], axis=0), y, atol=5e-3)


def test_teacher_refuses():
    with pytest.raises(InputError, match="rows"):
        teacher.least_chi_square(P1_X, [1.0], "erf")
    with pytest.raises(InputError, match="alpha"):
        teacher.least_chi_square(P1_X, P1_Y, "erf", alpha=0.0)


# --- Rademacher complexity


def least(M: float) -> float:
    """inf_{0 < s < 1} (M - log(1 - s^2) / 2) / s."""
    return minimize_scalar(
        lambda s: (M - 0.5 * np.log1p(-s * s)) / s, bounds=(1e-9, 1 - 1e-9), method="bounded", options={"xatol": 1e-13}
    ).fun


@pytest.mark.parametrize(("n", "d", "M"), [(3, 1, 0.3), (5, 2, 0.01), (5, 2, 0.3), (6, 5, 0.05)])
def test_complexity_of_linear_networks(n, d, M):
    """Lambda(s) = -log(1 - s^2 |v|^2) / 2 with v = (alpha / n) X' sigma; all signs are taken."""
    x = sphere(n, d)
    found = complexity.rademacher_complexity(Risk(x, np.zeros(n), Unit("linear"), 2.0), M, nodes=1 << 14)
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=n)))
    expected = 2 / n * np.linalg.norm(signs @ x, axis=1).mean() * least(M)
    assert found.source.startswith("all signs")
    assert abs(found.value - expected) <= 1e-8 * expected + 5 * found.se and found.se < 1e-3 * expected


def test_complexity_of_one_neuron_by_brute_force():
    """n = 1: the supremum is attained by a tilt e^{s u G} p0 of KL M, here on a grid over (theta, u)."""
    M, alpha = 0.4, 3.0
    theta, u = np.meshgrid(AXIS[::3], AXIS[::3], indexing="ij")
    G, p0 = alpha * u * erf(0.7 * theta), np.exp(-0.5 * (theta**2 + u**2))
    p0 /= p0.sum()

    def tilted(s):
        p = p0 * np.exp(s * G)
        p /= p.sum()
        mean = (p * G).sum()
        return s * mean - np.log((p0 * np.exp(s * G)).sum()), mean

    s = brentq(lambda s: tilted(s)[0] - M, 1e-3, 1.0)
    found = complexity.rademacher_complexity(Risk([[0.7]], [1.0], Unit("erf"), alpha), M)
    assert found.value == pytest.approx(tilted(s)[1], rel=1e-7)


def test_complexity_lies_below_its_bound_and_is_exact_for_small_balls():
    """R_n <= (alpha G1 / sqrt n) inf_s (M - log(1 - s^2) / 2) / s; for small M it is E sqrt(2 M E G^2)."""
    risk = Risk(sphere(20, 5), np.zeros(20), Unit("tanh"), 4.0)
    few = {M: complexity.rademacher_complexity(risk, M, signs=32, nodes=1 << 13) for M in (1e-6, 0.1, 0.5)}
    for M, found in few.items():
        assert found.source.startswith("32 random signs")
        assert found.value + 3 * found.se < 4.0 / np.sqrt(20) * least(M)
    small = complexity.rademacher_complexity(risk, 1e-6, signs=1024, nodes=1 << 10)
    signs = np.where(np.random.default_rng(0).random((20_000, 20)) < 0.5, -1.0, 1.0)
    size = np.sqrt(2e-6 * (4 / 20) ** 2 * np.einsum("si,ij,sj->s", signs, risk.gram_start(train="u"), signs))
    assert abs(small.value - size.mean()) < 4 * small.se
    assert few[1e-6].value < few[0.1].value < few[0.5].value


def test_complexity_refuses():
    risk = Risk(P1_X, P1_Y, Unit("erf"))
    with pytest.raises(InputError, match="M must"):
        complexity.rademacher_complexity(risk, 0.0)
    with pytest.raises(InputError, match="signs"):
        complexity.rademacher_complexity(risk, 0.1, signs=1)
    with pytest.raises(InputError, match="more nodes="):
        complexity.rademacher_complexity(Risk(sphere(20, 10), np.zeros(20), Unit("tanh")), 5.0, signs=4, nodes=1 << 12)
