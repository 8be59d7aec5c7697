"""The fixed point and its dual: reference values, closed forms, brute force on a grid, two rules for one integral."""

import numpy as np
import pytest
from cases import P1_X, P1_Y, P2_X, P2_Y
from scipy.optimize import brentq
from scipy.special import erf

from meanfield import closures, exponential_family, gibbs, newton, parallel, pareto, quadrature, teacher
from meanfield.errors import DivergedError, InputError
from meanfield.estimate import Estimate, student_factor
from meanfield.risk import Risk
from meanfield.units import Unit

P1 = Risk(P1_X, P1_Y, Unit("erf"), alpha=1.0)
ENERGY = 0.1006539922  # Q* of P1 at lam = 0.2


def sphere(n: int, d: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


# --- known answers


def test_reference_values_of_the_fixed_point():
    """Case 3."""
    point = gibbs.fixed_point(P1, 0.2)
    np.testing.assert_allclose(point.prediction.value, [0.38271856, 0.63876667], atol=1e-7)
    assert point.loss.value == pytest.approx(0.0198755617, abs=1e-9)
    assert point.kl.value == pytest.approx(0.4038921526, abs=2e-9)  # printed after a gap of 1e-9
    assert point.energy.value == pytest.approx(ENERGY, abs=1e-10)
    assert point.dual.value == pytest.approx(ENERGY, abs=1e-10)
    assert max(e.se for e in (point.loss, point.kl, point.energy, point.dual)) < 1e-12
    assert 0 <= point.gap.value < 1e-20


def test_linear_networks_end_where_their_gaussian_closure_ends():
    risk = Risk(P2_X, P2_Y, Unit("linear"), alpha=2.0)
    end = closures.gaussian_closure(risk, 0.2, [300.0])
    point = gibbs.fixed_point(risk, 0.2)
    np.testing.assert_allclose(point.prediction.value, end.prediction[0], atol=1e-9)
    assert point.kl.value == pytest.approx(end.kl[0], abs=1e-9)
    assert point.energy.value == pytest.approx(end.energy[0], abs=1e-9)
    mean, second = point.law.moments()
    np.testing.assert_allclose(mean.value, 0, atol=1e-12)
    np.testing.assert_allclose(second.value, end.covariance[0], atol=1e-9)
    v = P2_X.T @ point.coefficients
    assert point.law.log_normaliser.value == pytest.approx(-0.5 * np.log1p(-v @ v), abs=1e-9)


@pytest.mark.parametrize("target", [0.1, 0.7, 3.0])
def test_interpolation_by_a_linear_neuron(target):
    """max c t + log(1 - c^2) / 2, where t = c / (1 - c^2)."""
    c = brentq(lambda c: c / (1 - c * c) - target, 0, 1 - 1e-12, xtol=1e-15)
    found = gibbs.interpolation(Risk([[1.0]], [2 * target], Unit("linear"), alpha=2.0))
    assert found.law.coefficients[0] == pytest.approx(c, abs=1e-7)
    assert found.dual.value == pytest.approx(c * target + 0.5 * np.log1p(-c * c), abs=1e-7)


def test_interpolation_lies_between_the_fixed_point_and_chi_square():
    """KL* <= Q* / lam <= KL_interp <= alpha^-2 chi^2, and the left side is attained as lam vanishes."""
    for alpha in (1.0, 5.0):
        risk = Risk(P1_X, P1_Y, Unit("erf"), alpha)
        chi = teacher.least_chi_square(P1_X, P1_Y, "erf").chi_square.value
        interpolating = gibbs.interpolation(risk)
        np.testing.assert_allclose(interpolating.law.prediction.value, P1_Y, atol=1e-10)
        assert interpolating.law.kl.value == pytest.approx(interpolating.dual.value, abs=1e-10)
        points = [gibbs.fixed_point(risk, lam) for lam in (1.0, 0.1, 1e-5)]
        bounds = [[p.kl.value, p.energy.value / p.lam, interpolating.dual.value] for p in points]
        assert all(np.all(np.diff(row) > 0) for row in bounds) and interpolating.dual.value < chi / alpha**2
        assert bounds[-1][1] == pytest.approx(interpolating.dual.value, rel=1e-3)


# --- against brute force: the density e^{c . psi} p0 on a grid over (theta, u), d = 1

AXIS = np.linspace(-9, 9, 721)


def brute(c, x, h):
    theta, u = np.meshgrid(AXIS, AXIS, indexing="ij")
    psi = u[None] * h(x[:, 0, None, None] * theta)
    mass = np.exp(np.tensordot(c, psi, 1) - 0.5 * (theta**2 + u**2)) * (AXIS[1] - AXIS[0]) ** 2 / (2 * np.pi)
    return theta, u, psi, mass


@pytest.mark.parametrize("name", ["erf", "sigmoid", "tanh"])
def test_expectations_of_a_gibbs_law(name):
    unit, c = Unit(name), np.array([1.2, -0.7])
    theta, u, psi, mass = brute(c, P1_X, unit.h.value)
    Z = mass.sum()
    law = exponential_family.law_at(Risk(P1_X, P1_Y, unit, alpha=3.0), c)
    assert law.log_normaliser.value == pytest.approx(np.log(Z), abs=1e-11)
    expected = (psi * mass).sum((1, 2)) / Z
    np.testing.assert_allclose(law.prediction.value, 3 * expected, atol=1e-10)
    assert law.kl.value == pytest.approx(c @ expected - np.log(Z), abs=1e-11)
    mean, second = law.moments()
    np.testing.assert_allclose(mean.value, [(theta * mass).sum() / Z, (u * mass).sum() / Z], atol=1e-10)
    products = [[(a * b * mass).sum() / Z for b in (theta, u)] for a in (theta, u)]
    np.testing.assert_allclose(second.value, products, atol=1e-10)
    z = np.array([[0.3, -1.0], [2.0, 0.5]])
    np.testing.assert_allclose(
        law.log_density_ratio(z), z[:, 1] * (unit.h.value(z[:, :1] @ P1_X.T) @ c) - np.log(Z), atol=1e-11
    )


def test_outputs_elsewhere():
    """Within the span, and across it, where theta has a component that the training never saw."""
    x = np.array([[0.4, 0.0], [1.0, 0.0]])
    law = exponential_family.law_at(Risk(x, P1_Y, Unit("erf"), alpha=2.0), np.array([1.2, -0.7]))
    there = np.array([[0.4, 0.0], [-0.7, 0.0], [0.3, 0.8], [0.0, 0.5]])
    _, u, _, mass = brute(law.coefficients, P1_X, erf)
    marginal = (u * mass).sum(1) / mass.sum()
    second, weight = np.polynomial.hermite_e.hermegauss(60)
    outputs = [
        2 * marginal @ (erf(x1 * AXIS[:, None] + x2 * second) @ (weight / np.sqrt(2 * np.pi))) for x1, x2 in there
    ]
    np.testing.assert_allclose(law.predict(there).value, outputs, atol=1e-10)
    np.testing.assert_allclose(law.predict(x).value, law.prediction.value, atol=1e-13)


# --- duality


@pytest.mark.parametrize("c", [(0.0, 0.0), (1.0, 1.0), (-0.5, 2.0)])
def test_gap_at_any_coefficients(c):
    """D(c) <= Q* <= Q(p_c); the gap is a square; Q(p) - Q* = |f - f*|^2 / n + lam KL(p || p*)."""
    best = gibbs.fixed_point(P1, 0.2)
    point = gibbs.FixedPoint(exponential_family.law_at(P1, np.array(c)), 0.2)
    assert point.dual.value < best.energy.value < point.energy.value
    assert point.energy.value - point.dual.value == pytest.approx(point.gap.value, rel=1e-10)
    f, star = point.prediction.value, best.prediction.value
    kl = (np.array(c) - best.coefficients) @ f - point.law.log_normaliser.value + best.law.log_normaliser.value
    excess = np.mean((f - star) ** 2) + 0.2 * kl
    assert point.energy.value - best.energy.value == pytest.approx(excess, rel=1e-9)
    assert excess <= point.gap.value


def test_certificate_of_a_solution_of_the_equation():
    """C5 at the law of case 2, of which five digits are known, and at the fixed point."""
    r = np.array([0.289496, 0.504201]) - P1_Y
    found = gibbs.certificate(P1, 0.2, r, Estimate(0.0659045 + 0.2 * 0.269960, 1e-6))
    assert found.lower.value < ENERGY < found.upper.value
    assert found.kl.value == pytest.approx((found.upper.value - found.lower.value) / 0.2)
    replicates = gibbs.certificate(P1, 0.2, np.stack([r - 0.01, r + 0.01]), found.upper)
    assert replicates.lower.value == pytest.approx(found.lower.value, abs=1e-12)
    end = gibbs.fixed_point(P1, 0.2)
    closed = gibbs.certificate(P1, 0.2, end.prediction.value - P1_Y, end.energy)
    assert abs(closed.gap.value) < 1e-13
    assert np.all(closed.law.coefficients == pytest.approx(end.coefficients, rel=1e-7))


def test_two_samples_need_two_dimensions():
    turned = np.linalg.qr(np.random.default_rng(1).normal(size=(50, 50)))[0]
    wide = np.zeros((2, 50))
    wide[:, :2] = P2_X
    flat, deep = (gibbs.fixed_point(Risk(x, P2_Y, Unit("tanh"), 2.0), 0.1) for x in (P2_X, wide @ turned))
    assert deep.law.layer.rule.kind == quadrature.GRID and deep.law.layer.rule.points.shape[2] == 2
    assert deep.energy.value == pytest.approx(flat.energy.value, abs=1e-13)
    lifted = np.eye(51)
    small = flat.law.moments()[1].value - np.eye(3)
    for a, row in enumerate((0, 1, 50)):
        for b, column in enumerate((0, 1, 50)):
            lifted[row, column] += small[a, b]
    turn = np.eye(51)
    turn[:-1, :-1] = turned
    np.testing.assert_allclose(deep.law.moments()[1].value, turn.T @ lifted @ turn, atol=1e-11)


# --- quasi-Monte-Carlo against quadrature


def test_quasi_monte_carlo_agrees_with_quadrature_within_its_errors(monkeypatch):
    """Three dimensions by both rules; 12 seeds, Student's factor for 8 copies; D never above Q* beyond it."""
    risk = Risk(sphere(3, 3), np.array([0.5, -0.3, 0.4]), Unit("tanh"), alpha=2.0)
    truth = gibbs.fixed_point(risk, 0.1, nodes=1 << 17)
    assert truth.energy.se < 1e-6 * truth.energy.value
    monkeypatch.setattr(quadrature, "GRID_RANK", 0)
    points = [gibbs.fixed_point(risk, 0.1, nodes=1 << 14, seed=seed) for seed in range(12)]
    assert all(p.law.layer.rule.kind == quadrature.SOBOL and p.law.copies == 8 for p in points)
    t = student_factor(8, 0.975)
    above = [(p.dual.value - truth.energy.value) / p.dual.se for p in points]
    below = [(truth.energy.value - p.energy.value) / p.energy.se for p in points]
    assert np.mean(np.array([above, below]) > t) <= 0.05 and np.max([above, below]) <= 2 * t
    at = [exponential_family.law_at(risk, truth.coefficients, nodes=1 << 14, seed=seed) for seed in range(12)]
    off = [(law.prediction.value - truth.prediction.value) / law.prediction.se for law in at]
    off += [[(law.log_normaliser.value - truth.law.log_normaliser.value) / law.log_normaliser.se] for law in at]
    off += [[(law.kl.value - truth.kl.value) / law.kl.se] for law in at]
    off = np.abs(np.concatenate(off))
    assert np.mean(off > t) <= 0.08 and off.max() <= 2 * t


def test_a_moved_rule_integrates_the_same():
    covariance = np.array([[2.0, 0.5], [0.5, 1.5]])
    for k, tolerance in ((2, 1e-12), (4, 4e-3)):
        C = np.eye(k)
        C[:2, :2] = covariance
        rule = quadrature.gaussian_rule(k, 1 << 14, covariance=C)
        second = np.einsum("ri,rik,ril->kl", rule.weights, rule.points, rule.points) / rule.copies
        np.testing.assert_allclose(second, np.eye(k), atol=tolerance)
        assert rule.weights.sum() / rule.copies == pytest.approx(1, abs=tolerance)


def test_laws_are_functions_of_the_seed_and_not_of_threads_or_memory():
    risk = Risk(sphere(6, 5), np.array([0.5, -0.5, 0.3, 0.1, -0.2, 0.4]), Unit("tanh"), alpha=4.0)
    first = gibbs.fixed_point(risk, 0.1, nodes=1 << 12, seed=3)
    try:
        parallel.set_threads(1)
        parallel.set_memory(1 << 18)
        again = gibbs.fixed_point(risk, 0.1, nodes=1 << 12, seed=3)
    finally:
        parallel.set_threads(None)
        parallel.set_memory(None)
    np.testing.assert_array_equal(first.coefficients, again.coefficients)
    assert first.energy == again.energy
    assert first.energy != gibbs.fixed_point(risk, 0.1, nodes=1 << 12, seed=4).energy


# --- samples


@pytest.mark.parametrize(("name", "d"), [("erf", 1), ("sigmoid", 3)])
def test_samples_have_the_moments_of_the_law(name, d):
    x = np.pad(P1_X, ((0, 0), (0, d - 1)))
    law = gibbs.fixed_point(Risk(x, P1_Y, Unit(name), alpha=1.0), 0.05).law
    z = law.sample(20_000, seed=7)
    np.testing.assert_array_equal(z[:100], law.sample(100, seed=7))
    for drawn, known in zip((z, z[:, :, None] * z[:, None, :]), law.moments(), strict=True):
        assert np.abs((drawn.mean(0) - known.value) / (drawn.std(0) / np.sqrt(len(z)))).max() < 4
    psi = z[:, -1:] * law.risk.unit.h.value(z[:, :-1] @ x.T)
    assert np.abs((psi.mean(0) - law.prediction.value) / (psi.std(0) / np.sqrt(len(z)))).max() < 4
    back = np.exp(-law.log_density_ratio(z))  # E_p p0 / p = 1
    assert abs(back.mean() - 1) < 4 * back.std() / np.sqrt(len(z))


# --- where it must not be believed


def test_a_law_too_far_from_the_start_is_refused():
    x = sphere(30, 10)
    risk = Risk(x, 0.8 * np.sign(x[:, 0]), Unit("tanh"), alpha=3.0)
    with pytest.raises(InputError, match=r"too far from p0 .* more nodes="):
        gibbs.fixed_point(risk, 0.01, nodes=1 << 13)
    early = gibbs.certificate(risk, 0.01, -risk.y, 0.64, nodes=1 << 13)
    assert early.lower.value == -np.inf and early.lower.source


def test_a_heavy_tail_is_warned_of(monkeypatch):
    """The error bar is then too small: what few nodes far out would have said is missing."""
    monkeypatch.setattr(quadrature, "GRID_RANK", 0)
    risk = Risk(sphere(4, 3), np.array([0.8, -0.8, 0.8, 0.4]), Unit("tanh"), alpha=2.0)
    with pytest.warns(UserWarning, match="tail of shape"):
        gibbs.fixed_point(risk, 0.1, nodes=1 << 14)


def test_an_infinite_normaliser_is_seen():
    risk = Risk(P2_X, P2_Y, Unit("linear"), alpha=2.0)
    for size, finite in ((0.99, True), (1.01, False)):
        c = np.linalg.solve(P2_X.T, size * np.array([0.6, 0.8]))
        assert (exponential_family.law_at(risk, c).doubt == "") is finite
    relu = Risk(P2_X, P2_Y, Unit("relu"), alpha=2.0)
    angles = np.linspace(0, 2 * np.pi, 100_001)
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for c in np.random.default_rng(0).normal(size=(5, 2)):
        law = exponential_family.law_at(relu, c / 10)
        expected = np.abs(np.maximum(directions @ P2_X.T, 0) @ (c / 10)).max()
        assert exponential_family.growth(law.layer, c / 10) == pytest.approx(expected, rel=1e-5)


def test_refusals():
    with pytest.raises(InputError, match="square"):
        gibbs.fixed_point(Risk(P1_X, [1.0, -1.0], Unit("erf"), loss="logistic"), 0.1)
    with pytest.raises(InputError, match="lam"):
        gibbs.fixed_point(P1, 0.0)
    with pytest.raises(InputError, match=r"shape \(2,\)"):
        gibbs.certificate(P1, 0.1, np.zeros(3), 0.5)
    with pytest.raises(InputError, match="nodes"):
        gibbs.fixed_point(P1, 0.1, nodes=3)
    with pytest.raises(InputError, match="coefficients"):
        exponential_family.law_at(P1, np.array([1.0, np.nan]))
    with pytest.raises(DivergedError, match="not attained"):
        gibbs.interpolation(Risk([[1.0], [1.0]], [0.5, -0.5], Unit("erf")))


# --- the tools


def test_newton_climbs_to_the_top_and_stays_inside():
    A = np.array([[3.0, 1.0], [1.0, 2.0]])
    peak = newton.maximise(lambda c: (-0.5 * c @ A @ c + c.sum(), 1 - A @ c, -A), np.zeros(2))
    np.testing.assert_allclose(peak.point, np.linalg.solve(A, np.ones(2)), atol=1e-14)

    def barrier(c):
        if c[0] <= -1 or c[0] >= 1:
            return -np.inf, np.zeros(1), -np.eye(1)
        return (
            np.log1p(-c[0]) + 3 * np.log1p(c[0]),
            3 / (1 + c) - 1 / (1 - c),
            np.diag(-3 / (1 + c) ** 2 - 1 / (1 - c) ** 2),
        )

    assert newton.maximise(barrier, np.array([5.0])).point[0] == pytest.approx(0.5, abs=1e-13)
    with pytest.raises(DivergedError):
        newton.maximise(lambda c: (float(np.arctan(c[0])), 1 / (1 + c**2), np.diag(-1 / (1 + c**2))), np.ones(1))


@pytest.mark.parametrize("k", [-0.3, 0.2, 0.6, 0.9])
def test_shape_of_a_tail(k):
    """Weights of a generalised Pareto law, 2^17 of them; the estimate's error is about (1 + k) / sqrt(1086)."""
    u = np.random.default_rng(2).random(1 << 17)
    assert pareto.tail_shape(np.log1p((u**-k - 1) / k)) == pytest.approx(k, abs=4 * (1 + k) / np.sqrt(1086))
    assert pareto.tail_shape(np.zeros(1000)) == -np.inf
