"""Closures: reference values, the implementation of the test oracles, the identities by finite differences."""

import numpy as np
import pytest
from cases import P1_X, P1_Y, P2_X, P2_Y, Bilinear, Frozen, bilinear, gaussian_kl, gaussian_w2

from meanfield import closures
from meanfield.errors import InputError
from meanfield.risk import Risk
from meanfield.units import Unit

PROBLEM = bilinear(5, 3.0)
SIGNS = np.sign(PROBLEM.y)


def test_reference_values_of_frozen_features():
    """Case 4."""
    found = closures.frozen_closure(Risk(P1_X, P1_Y, Unit("erf"), 3.0), 0.1, [0.5])
    assert found.loss[0] == pytest.approx(0.0032090563, abs=1e-9)
    assert found.kl[0] == pytest.approx(0.0684490336, abs=1e-9)
    np.testing.assert_allclose(found.prediction[0], [0.43362844, 0.75513433], atol=1e-8)


def test_reference_values_of_the_gaussian_closure():
    """Case 5."""
    found = closures.gaussian_closure(Risk(P2_X, P2_Y, Unit("linear"), 2.0), 0.2, [1.0])
    assert found.loss[0] == pytest.approx(0.002492416, abs=1e-8)
    assert found.kl[0] == pytest.approx(0.074270028, abs=1e-8)
    assert found.w2_lower[0] == found.w2_upper[0] == pytest.approx(0.274832600, abs=1e-8)
    assert found.eigenvalue_min[0] == pytest.approx(0.871747217, abs=1e-8)


@pytest.mark.parametrize(("D", "alpha", "time"), [(6, 2.0, 0.5), (11, 2.0, 10.0), (21, 10.0, 0.05)])
def test_gaussian_closure_is_that_of_the_tests(D, alpha, time):
    """`cases.Bilinear` integrates all of S by its own lines, with another solver's state."""
    problem: Bilinear = bilinear(D, alpha)
    S = problem.covariance([time / 2, time])
    found = closures.gaussian_closure(problem.risk(), problem.lam, [time / 2, time])
    np.testing.assert_allclose(found.covariance, S, atol=1e-9)
    np.testing.assert_allclose(found.loss, [problem.loss(s) for s in S], atol=1e-9)
    np.testing.assert_allclose(found.gram, [problem.gram(s) for s in S], atol=1e-9)
    np.testing.assert_allclose(found.kl, [gaussian_kl(s) for s in S], atol=1e-9)
    np.testing.assert_allclose(found.w2_upper, [gaussian_w2(s) for s in S], atol=1e-8)


def test_frozen_closure_is_that_of_the_tests():
    """`cases.Frozen` takes a matrix exponential; here eigenpairs, of a kernel that is singular too."""
    x = np.array([[0.4, 0.1], [1.0, -0.3], [0.4, 0.1], [0.2, 0.9]])
    problem = Frozen(x, np.array([0.5, 0.8, 0.3, -0.2]), alpha=4.0, lam=0.3)
    times = [0.0, 0.1, 2.0]
    found = closures.frozen_closure(problem.risk(), 0.3, times)
    np.testing.assert_allclose(found.prediction, [problem.prediction(t) for t in times], atol=1e-11)
    np.testing.assert_allclose(found.kl, [problem.kl(t) for t in times], atol=1e-11)
    assert found.kl[0] == 0 and np.all(found.w2_lower[1:] < found.w2_upper[1:])


RISKS = {
    "gaussian": (closures.gaussian_closure, PROBLEM.risk()),
    "gaussian, logistic": (closures.gaussian_closure, Risk(PROBLEM.x, SIGNS, Unit("linear"), 3.0, loss="logistic")),
    "gaussian, bias": (closures.gaussian_closure, Risk(PROBLEM.x, PROBLEM.y, Unit("linear", bias=True), 3.0)),
    "frozen": (closures.frozen_closure, Risk(PROBLEM.x, PROBLEM.y, Unit("sigmoid"), 3.0)),
}


@pytest.mark.parametrize("name", RISKS)
def test_identities_along_a_closure(name):
    """(I1) to (I4) of every closure, by central differences of the fourth order."""
    solve, risk = RISKS[name]
    lam, h = 0.2, 2e-3
    found = solve(risk, lam, 0.4 + h * np.arange(-2, 3))

    def slope(values):
        return (values[0] - 8 * values[1] + 8 * values[3] - values[4]) / (12 * h)

    r, H, e = found.residual[2], found.gram[2], found.generator[2]
    np.testing.assert_allclose(slope(found.prediction), -risk.kappa * H @ r + risk.alpha * lam * e, atol=1e-7)
    assert slope(found.loss) == pytest.approx(-found.drift_square[2] + lam * found.source[2], abs=1e-7)
    assert slope(found.kl) == pytest.approx(-lam * found.fisher[2] + found.source[2], abs=1e-7)
    assert slope(found.energy) == pytest.approx(-found.dissipation[2], abs=1e-7)
    assert found.dissipation[2] > 0 and found.fisher[2] >= 2 * found.kl[2] - 1e-12


def test_frozen_closure_ends_at_kernel_ridge_regression():
    risk = Risk(PROBLEM.x, PROBLEM.y, Unit("tanh"), 3.0)
    end = closures.frozen_closure(risk, 0.2, [1e4])
    K2 = risk.gram_start(train="u")
    ridge = K2 @ np.linalg.solve(K2 + 0.2 * risk.n / (2 * 9) * np.eye(risk.n), risk.y)
    np.testing.assert_allclose(end.prediction[0], ridge, atol=1e-11)
    still = closures.frozen_closure(risk, 0.0, [1e9])  # no decay: interpolation
    np.testing.assert_allclose(still.prediction[0], risk.y, atol=1e-8)


@pytest.mark.parametrize("name", ["sigmoid", "relu", "erf"])
def test_moments_of_frozen_features(name):
    """Against quadrature over theta in d = 1, on either side of the kink."""
    unit = Unit(name)
    found = closures.frozen_closure(Risk(P1_X, P1_Y, unit, 3.0), 0.1, [0.5])
    f = found.prediction[0] / 3.0
    a = np.linalg.lstsq(found.gram[0], f, rcond=1e-10)[0]
    half = np.linspace(0, 12, 120_001)
    theta = np.concatenate([-half[::-1], half])
    weight = np.exp(-0.5 * theta**2) * (half[1] - half[0]) / np.sqrt(2 * np.pi)
    weight[[120_000, 120_001]] /= 2
    g = unit.h.value(theta[:, None] * P1_X[:, 0]) @ a
    np.testing.assert_allclose(found.mean[0], [0, weight @ g], atol=1e-8)
    np.testing.assert_allclose(
        found.covariance[0], [[1, weight @ (theta * g)], [weight @ (theta * g), 1 + weight @ g**2]], atol=1e-7
    )


def test_samples_in_many_dimensions_and_both_solvers_agree(monkeypatch):
    wide = np.zeros((2, 40))
    wide[:, 7], wide[:, 30] = P2_X.T
    flat, deep = (closures.gaussian_closure(Risk(x, P2_Y, Unit("linear"), 2.0), 0.2, [0.0, 1.0]) for x in (P2_X, wide))
    np.testing.assert_allclose(deep.prediction, flat.prediction, atol=1e-10)
    np.testing.assert_allclose(deep.kl, flat.kl, atol=1e-10)
    monkeypatch.setattr(closures, "STIFF", 0.0)
    implicit = closures.gaussian_closure(Risk(P2_X, P2_Y, Unit("linear"), 2.0), 0.2, [0.0, 1.0])
    np.testing.assert_allclose(implicit.covariance, flat.covariance, atol=1e-9)


def test_refusals():
    risk = Risk(P2_X, P2_Y, Unit("linear"), 2.0)
    with pytest.raises(InputError, match="'tanh'"):
        closures.gaussian_closure(Risk(P2_X, P2_Y, Unit("tanh")), 0.1, [1.0])
    with pytest.raises(InputError, match="square"):
        closures.frozen_closure(Risk(P2_X, [1.0, -1.0], Unit("erf"), loss="logistic"), 0.1, [1.0])
    for lam, time in ((-0.1, [1.0]), (0.1, [1.0, 1.0]), (0.1, [-1.0]), (0.1, []), (0.1, [np.nan])):
        with pytest.raises(InputError):
            closures.gaussian_closure(risk, lam, time)
