"""What a kick does to volumes: its Jacobian, the bounds on log-determinants, where it is injective. Cost: 3 s.

Theorems all: bounds are tested as inequalities on random instances, Jacobians against difference quotients.
"""

import math

import numpy as np
import pytest

from meanfield.account import injective_height
from meanfield.backends import blocks, reference
from meanfield.units import ACTIVATIONS

SMOOTH = ("tanh", "erf", "sigmoid", "softplus", "sin", "linear")
TRAIN = ("both", "u", "theta")
smooth = pytest.mark.parametrize("name", SMOOTH)
trained = pytest.mark.parametrize("train", TRAIN)


def problem(name, seed=0, n=5, d=3):
    """Inputs, coefficients and particles, some of them far out."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) / math.sqrt(d)
    z = rng.normal(size=(12, d + 1)) * np.repeat([1.0, 3.0], 6)[:, None]
    return ACTIVATIONS[name], x, rng.normal(size=n), z


def jacobian(function, z, step=1e-6):
    """The Jacobian of a map of points (m, D), shape (m, D, D), by central differences."""
    columns = [(function(z + step * e) - function(z - step * e)) / (2 * step) for e in np.eye(z.shape[1])]
    return np.stack(columns, axis=-1)


def field(activation, x, c, train):
    return lambda z: reference.pullback(activation, x, z, c, train)


def derivative(activation, x, c, z, train):
    """Db in closed form: [[X' diag(u h'' c) X, X' (h' c)], [(X' (h' c))', 0]], the rows that are trained."""
    w, u = z[:, :-1] @ x.T, z[:, -1:]
    _, h1, h2, _ = activation.jet(w)
    out = np.zeros((len(z), z.shape[1], z.shape[1]))
    if train != "u":
        out[:, :-1, :-1] = np.einsum("mi,ia,ib->mab", u * h2 * c, x, x)
        out[:, :-1, -1] = (h1 * c) @ x
    if train != "theta":
        out[:, -1, :-1] = (h1 * c) @ x
    return out


def moving(train):
    """The coordinates that move: the others are passed through, and leave the determinant to these."""
    return {"both": slice(None), "u": slice(-1, None), "theta": slice(None, -1)}[train]


# --- the bounds on the log-determinant


def test_the_remainder_bounds_the_log_determinant():
    """tr A - log det(I + A) <= f^2 / (2 (1 - f)) for random symmetric A with |A|_F = f < 1, and not by much."""
    rng = np.random.default_rng(0)
    for size in (1, 2, 5, 20):
        for f in (1e-3, 0.1, 0.5, 0.9, 0.999):
            a = rng.normal(size=(200, size, size))
            a = a + np.swapaxes(a, 1, 2)
            a *= f / np.linalg.norm(a, axis=(1, 2), keepdims=True)
            sign, value = np.linalg.slogdet(np.eye(size) + a)
            exact = np.trace(a, axis1=1, axis2=2) - value
            bound = float(blocks.remainder(np.array([f]))[0])
            assert np.all(sign > 0) and np.all(exact <= bound * (1 + 1e-9) + 1e-15)
            if f <= 0.1:
                assert np.all(exact >= 0.85 * f * f / 2)
    np.testing.assert_array_equal(blocks.remainder(np.array([1.0, 1.5])), [np.inf, np.inf])


@smooth
@trained
def test_the_derivative_of_the_field(name, train):
    activation, x, c, z = problem(name)
    exact = derivative(activation, x, c, z, train)
    np.testing.assert_allclose(jacobian(field(activation, x, c, train), z), exact, atol=1e-7)


@smooth
@trained
@pytest.mark.parametrize("eps", [0.02, 0.1])
def test_a_kick_reports_a_bound_on_its_log_determinant(name, train, eps):
    """Particle by particle: eps tr Db - log det(I + eps Db) is at most `remainder`."""
    activation, x, c, z = problem(name, seed=1)
    db = derivative(activation, x, c, z, train)
    exact = eps * np.trace(db, axis1=1, axis2=2) - np.linalg.slogdet(np.eye(4) + eps * db)[1]
    for j in range(len(z)):
        moved = reference.kick(activation, x, z[j : j + 1], None, None, c, eps, train, account=True)
        assert exact[j] <= moved.remainder + 1e-12


@smooth
@trained
@pytest.mark.parametrize(("eps", "variance"), [(0.02, 1.0), (0.1, 1.0), (0.1, 1.7)])
def test_a_midpoint_kick_reports_a_bound_on_its_log_determinant(name, train, eps, variance):
    """The bound is on eps z . (b_mid - b) / s^2 + eps tr Db - log det DT, with DT by difference quotients too."""
    activation, x, c, z = problem(name, seed=2)
    b = field(activation, x, c, train)

    def midpoint(points):
        return points + eps * b(points + 0.5 * eps * b(points))

    middle = z + 0.5 * eps * b(z)
    here, there = derivative(activation, x, c, z, train), derivative(activation, x, c, middle, train)
    whole = np.eye(4) + eps * there @ (np.eye(4) + 0.5 * eps * here)
    np.testing.assert_allclose(jacobian(midpoint, z), whole, atol=1e-7)
    exact = eps * np.trace(here, axis1=1, axis2=2) - np.linalg.slogdet(whole)[1]
    exact += eps / variance * np.sum(z * (b(middle) - b(z)), axis=1)
    gains = []
    for j in range(len(z)):
        moved = reference.midpoint_kick(
            activation, x, z[j : j + 1], None, None, c, eps, train, account=True, variance=variance
        )
        np.testing.assert_allclose(moved.z[0], midpoint(z)[j], rtol=1e-13)
        assert exact[j] <= moved.remainder + 1e-12
        gains.append(moved.remainder - exact[j])
    if eps < 0.05:
        # To second order the only loss is |Db|^2 in place of tr Db^2, equal for a symmetric Db.
        size = eps * np.linalg.norm(here[:, moving(train), moving(train)], axis=(1, 2))
        assert np.all(np.array(gains) <= 2 * size**3 / (1 - np.minimum(size, 0.9)) + 1e-12)


@smooth
@trained
def test_a_kick_reports_the_derivatives_of_predictions_along_it(name, train):
    """E psi (z + s b) at s = 0: three derivatives by differences of the predictions."""
    activation, x, c, z = problem(name, seed=3)
    eps = 0.05
    for kick, middle in ((reference.kick, z), (reference.midpoint_kick, None)):
        moved = kick(activation, x, z, None, None, c, eps, train, account=True)
        b = (moved.z - z) / eps
        if middle is not None:
            np.testing.assert_allclose(b, field(activation, x, c, train)(z), atol=1e-13)
        step = 2e-3
        at = {k: reference.predict(activation, x, z + k * step * b) for k in (-2, -1, 0, 1, 2)}
        first = (8 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12 * step)
        second = (16 * (at[1] + at[-1]) - (at[2] + at[-2]) - 30 * at[0]) / (12 * step**2)
        third = (at[2] - at[-2] - 2 * (at[1] - at[-1])) / (2 * step**3)
        for found, exact, tolerance in zip(
            (moved.push, moved.push2, moved.push3), (first, second, third), (1e-6, 1e-5, 1e-3), strict=True
        ):
            np.testing.assert_allclose(found, exact, atol=tolerance * max(1.0, np.abs(exact).max()))
        assert moved.speed == pytest.approx(np.mean(np.sum(b * b, axis=1)), rel=1e-12)


@smooth
@trained
def test_the_roughness_of_a_field(name, train):
    """Mean squares of the first three derivatives of phi = c . psi over the trained coordinates, by differences."""
    activation, x, c, z = problem(name, seed=4)
    weights = np.arange(1.0, len(z) + 1)
    weights /= weights.sum()
    columns = moving(train)
    one = field(activation, x, c, "both")(z)[:, columns]

    def second(points):
        return derivative(activation, x, c, points, "both")[:, columns, columns]

    flat = jacobian(lambda points: second(points).reshape(len(points), -1), z)[..., columns]
    exact = [weights @ np.sum(a.reshape(len(z), -1) ** 2, axis=1) for a in (one, second(z), flat)]
    np.testing.assert_allclose(reference.roughness(activation, x, z, weights, c, train), exact, rtol=1e-6, atol=1e-12)


# --- injectivity


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("train", ["both", "theta"])
@pytest.mark.parametrize("midpoint", [False, True])
def test_kicks_are_injective_below_their_height(name, train, midpoint):
    """On the slab |u| < U every eps |Db| < 1 (I + eps Db positive), and pairs of points stay apart, at random."""
    rng = np.random.default_rng(5)
    proved = 0
    for seed in range(25):
        activation, x, c, _ = problem(name, seed=seed)
        eps = float(rng.uniform(0.01, 0.15))
        height = injective_height(c, eps, x, activation.suprema, train, midpoint=midpoint)
        if height == 0:
            continue
        proved += 1
        z = rng.normal(size=(60, 4))
        z[:, -1] = rng.uniform(-1, 1, size=60) * min(height, 50.0)
        b = field(activation, x, c, train)
        moved = z + eps * (b(z + 0.5 * eps * b(z)) if midpoint else b(z))
        here = derivative(activation, x, c, z, train)
        change = eps * here
        if midpoint:
            change = eps * derivative(activation, x, c, z + 0.5 * eps * b(z), train) @ (np.eye(4) + 0.5 * eps * here)
        change = change[:, moving(train), moving(train)]
        assert np.linalg.norm(change, 2, axis=(1, 2)).max() < 1
        assert np.linalg.eigvalsh(np.eye(change.shape[1]) + 0.5 * (change + change.swapaxes(1, 2))).min() > 0
        # With theta alone moving, points of different u stay apart anyway.
        if train == "both":
            apart = np.einsum("ijk,ijk->ij", z[:, None] - z[None], moved[:, None] - moved[None])
            assert np.all(apart[~np.eye(60, dtype=bool)] > 0)
    assert proved > 10 or (name == "softplus" and midpoint and train == "both")


def test_the_height_is_sharp_where_one_sample_bends_the_field():
    """n = 1, sin at its most curved: eps |u| |h''| c x^2 reaches 1 at U when the mixed term is small."""
    suprema = ACTIVATIONS["sin"].suprema
    height = injective_height(np.array([1.0]), 0.05, np.array([[1.0]]), suprema, "theta")
    assert height == pytest.approx(20.0)
    z = np.array([[math.pi / 2, 1.01 * height]])
    assert 1 + 0.05 * derivative(ACTIVATIONS["sin"], np.array([[1.0]]), np.array([1.0]), z, "theta")[0, 0, 0] < 0


def test_the_height_takes_no_matrix_of_all_inputs_where_samples_are_few():
    """Inputs in 10^6 more dimensions, all zero, change nothing; a matrix of these would take 8 TB."""
    x, c, suprema = np.random.default_rng(3).normal(size=(4, 3)), np.array([0.5, -1.0, 2.0, 0.1]), (1.0, 1.0, 0.8)
    padded = np.hstack([x, np.zeros((4, 10**6))])
    heights = [injective_height(c, 0.05, inputs, suprema, "theta") for inputs in (x, padded)]
    assert heights[0] == pytest.approx(heights[1], rel=1e-12) and 0 < heights[0] < np.inf


def test_where_nothing_or_everything_is_proved():
    x, c = np.eye(3), np.ones(3)
    tanh, relu, softplus, linear = (ACTIVATIONS[name].suprema for name in ("tanh", "relu", "softplus", "linear"))
    assert injective_height(c, 0.1, x, tanh, "u") == math.inf
    assert injective_height(c, 0.0, x, tanh, "both") == math.inf
    assert injective_height(0 * c, 0.1, x, tanh, "both") == math.inf
    assert injective_height(c, 0.1, x, linear, "both") == math.inf
    assert injective_height(c, 0.1, x, relu, "both") == 0
    assert injective_height(c, 10.0, x, tanh, "both") == 0
    assert injective_height(c, 0.1, x, softplus, "both", midpoint=True) == 0
    assert injective_height(c, 0.1, x, tanh, "both", midpoint=True) < injective_height(c, 0.1, x, tanh, "both")
