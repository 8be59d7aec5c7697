"""Pairs of potentials: the inequality by quadrature, their measurement from draws, gradients by differences."""

import itertools

import numpy as np
import pytest

from meanfield import potentials
from meanfield.moments import Pair
from meanfield.potentials import Family, Losses, Potential
from meanfield.units import ACTIVATIONS

X = np.array([[1.0], [-0.7], [0.4]])
C = np.array([0.5, 0.3, -0.4])
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(120)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def g(theta, c, name="tanh"):
    return ACTIVATIONS[name].value(np.multiply.outer(theta, X[:, 0])) @ c


def exact_pair(theta, u, c, sigma, name="tanh"):
    """T and Phi in d = 1 at arrays of theta and u, the averages over xi by quadrature."""
    values = g(theta[..., None] + sigma * NODES, c, name)
    v = np.linspace(-10, 10, 2001)
    clipped, gap = np.clip(v, -potentials.CLIP, potentials.CLIP), -0.5 * (v - u[..., None]) ** 2
    # The supremum over v itself, not the formula for it: on a mesh, which is from below.
    inner = np.max(clipped * values[..., None] + gap[..., None, :], axis=-1)
    top = inner.max(axis=-1, keepdims=True)
    phi = top[..., 0] + sigma**2 * np.log(np.exp((inner - top) / sigma**2) @ WEIGHTS)
    return np.clip(u, -potentials.CLIP, potentials.CLIP) * (values @ WEIGHTS), phi


def at(theta, u):
    z = np.column_stack([theta, u])
    return Pair(z, z)


def many(family, potential, theta, u, copies):
    """The mean loss at each point over fresh draws, and its standard error."""
    pair = at(np.repeat(theta, copies), np.repeat(u, copies))
    found = potentials.losses(
        family, potential, pair, lambda rows: potentials.draws(family, (9, 0), rows, potentials.PAIRS)
    )
    values = found.values.reshape(-1, copies)
    return values.mean(axis=1), values.std(axis=1, ddof=1) / np.sqrt(copies)


@pytest.mark.parametrize("size", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("sigma", [0.2, 0.6, 1.5])
@pytest.mark.parametrize("name", ["tanh", "relu", "sin"])
def test_every_pair_satisfies_the_inequality(size, sigma, name):
    rng = np.random.default_rng(0)
    one, other = 2 * rng.standard_normal((2, 2, 60))
    T, _ = exact_pair(*one, size * C, sigma, name)
    _, phi = exact_pair(*other, size * C, sigma, name)
    cost = 0.5 * ((one[:, :, None] - other[:, None, :]) ** 2).sum(axis=0)
    assert (T[:, None] - phi <= cost + 1e-6).all()  # 1e-6: the mesh in v
    assert (T[:, None] - phi > cost - 2).any()


def test_the_bracket_is_the_supremum_inside_and_above_it_outside():
    u, v = np.linspace(-4, 4, 81), np.linspace(-12, 12, 24001)
    for height in (-1.5, -0.2, 0.0, 0.4, 2.0):
        supremum = (np.clip(v, -2.5, 2.5) * height - 0.5 * (v - u[:, None]) ** 2).max(axis=1)
        s = np.clip(u + height, -2.5, 2.5)
        bracket = s * height - 0.5 * (s - u) ** 2 + 0.5 * np.maximum(np.abs(u) - 2.5, 0) ** 2
        assert (bracket > supremum - 1e-6).all()
        inside = np.abs(u) <= 2.5 - abs(height)
        assert bracket[inside] == pytest.approx(supremum[inside], abs=1e-6)


@pytest.mark.parametrize("name", ["tanh", "relu"])
def test_losses_are_those_of_quadrature(name):
    """At single points, from above: |u| < U, where nothing is given away but the variance of weights."""
    family, sigma, rng = Family(ACTIVATIONS[name], X, 3), 0.4, np.random.default_rng(1)
    theta, u = rng.standard_normal(12), np.clip(rng.standard_normal(12), -1.5, 1.5)
    for size in (0.2, 0.6):
        _, phi = exact_pair(theta, u, size * C, sigma, name)
        exact = phi - u * g(theta, size * C, name)
        mean, se = many(family, Potential(size * C, sigma), theta, u, 4000)
        assert (mean > exact - 4 * se - 1e-6).all()
        assert (mean < exact + 4 * se + 0.02 * np.abs(exact) + 2e-4).all()


@pytest.mark.parametrize("sigma", [0.3, 0.6, 1.2])
def test_losses_are_bounds_where_weights_are_unequal(sigma):
    """Strong potentials: the exponent has two tops at some points, weights differ by orders of magnitude.

    Over p0 the loss is on the safe side. At a point where a lesser top is overlooked at most sigma^2 log 2 is missing.
    """
    family, rng = Family(ACTIVATIONS["tanh"], X, 5), np.random.default_rng(2)
    theta, u = rng.standard_normal(150), np.clip(rng.standard_normal(150), -2.4, 2.4)
    _, phi = exact_pair(theta, u, 4 * C, sigma)
    mean, se = many(family, Potential(4 * C, sigma), theta, u, 300)
    exact = phi - u * g(theta, 4 * C)
    assert (mean > exact - 5 * se - sigma**2 * np.log(2)).all()
    assert mean.mean() > exact.mean() - 3 * np.sqrt((se**2).sum()) / len(se)
    assert mean.mean() < 1.15 * exact.mean()


@pytest.mark.parametrize("values", [(1.0, 3.0), (1e-4, 1.0), (1.0, 1e6)])
def test_the_mean_of_the_logarithm_errs_upwards(values):
    """All outcomes of three independent draws with two values, weighted by their probabilities."""
    for share in (0.02, 0.5, 0.9):
        total = 0.0
        for picks in itertools.product((0, 1), repeat=3):
            probability = np.prod([share if p else 1 - share for p in picks])
            total += probability * potentials._log_mean(np.array([[values[p] for p in picks]]))[0]
        exact = np.log(share * values[1] + (1 - share) * values[0])
        assert total > exact
    assert potentials._log_mean(np.full((1, 5), 7.0))[0] == pytest.approx(np.log(7.0), rel=1e-12)


def test_no_potential_has_no_loss():
    family, z = Family(ACTIVATIONS["tanh"], X, 0), 2 * np.random.default_rng(3).standard_normal((50, 2))
    found = potentials.losses(
        family,
        Potential(np.zeros(3), 0.5),
        Pair(z, z),
        lambda rows: potentials.draws(family, (9, 0), rows, potentials.PAIRS),
    )
    np.testing.assert_allclose(found.values, 0, atol=1e-7)
    np.testing.assert_array_equal(found.quadratic, 0)


def total(found: Losses, pair: Pair) -> tuple[float, float]:
    return float(pair.mean(found.values)), float(pair.mean(found.quadratic))


def test_slopes_are_derivatives_of_the_means(monkeypatch):
    """With many draws: the slope is that of the logarithm of the mean, to which the bound on it tends."""
    monkeypatch.setattr(potentials, "PAIRS", 400)
    rng = np.random.default_rng(4)
    x = rng.standard_normal((5, 3)) / 2
    family, z = Family(ACTIVATIONS["erf"], x, 1), rng.standard_normal((40, 4))
    pair, c = Pair(z, z, rng.dirichlet(np.ones(40))), 0.2 * rng.standard_normal(5)

    def at_c(c):
        drawn = lambda rows: potentials.draws(family, (9, 0), rows, potentials.PAIRS)  # noqa: E731
        return potentials.losses(family, Potential(c, 0.6), pair, drawn)

    found = at_c(c)
    for k in range(5):
        step = 1e-2 * np.eye(5)[k]
        above, below = total(at_c(c + step), pair), total(at_c(c - step), pair)
        assert found.quadratic_slope[k] == pytest.approx((above[1] - below[1]) / 0.02, rel=1e-3, abs=1e-5)
        assert found.slope[k] == pytest.approx((above[0] - below[0]) / 0.02, rel=1e-2, abs=2e-3)


def test_pull_is_the_smoothed_centred_mean():
    rng = np.random.default_rng(5)
    z, reference = rng.standard_normal((2, 3000, 2))
    family = Family(ACTIVATIONS["tanh"], X, 2)
    for sigma in (0.0, 0.7):
        smooth = [np.tanh((t[:, :1] + sigma * NODES)[:, :, None] * X[:, 0]).transpose(0, 2, 1) @ WEIGHTS
                  for t in (z, reference)]  # fmt: skip
        values = [
            np.clip(t[:, 1:], -potentials.CLIP, potentials.CLIP) * s
            for t, s in zip((z, reference), smooth, strict=True)
        ]
        difference = values[0] - values[1]
        found = potentials.pull(family, sigma, Pair(z, reference), (9, 1))
        tolerance = 1e-6 if sigma == 0 else 5 * 0.5 / np.sqrt(3000)
        np.testing.assert_allclose(found, difference.mean(axis=0), atol=tolerance)
    # Z and its reference get the same draws: nothing is left where they are equal.
    np.testing.assert_array_equal(potentials.pull(family, 0.7, Pair(z, z), (9, 1)), 0)


def test_draws_do_not_depend_on_blocks_or_calls(monkeypatch):
    family, z = Family(ACTIVATIONS["tanh"], X, 7), np.random.default_rng(6).standard_normal((300, 2))
    pair, potential = Pair(z, z), Potential(C, 0.4)
    drawn = lambda rows: potentials.draws(family, (4, 0), rows, potentials.PAIRS)  # noqa: E731
    whole = potentials.losses(family, potential, pair, drawn)
    monkeypatch.setattr(potentials, "BLOCK", 1000)
    cut = potentials.losses(family, potential, pair, drawn)
    np.testing.assert_allclose(cut.values, whole.values, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(cut.slope, whole.slope, rtol=1e-4, atol=1e-6)
