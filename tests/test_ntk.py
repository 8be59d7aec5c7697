"""Gram matrices over the Gaussian start: series against quadrature and closed forms, long inputs too. About 5 s."""

import numpy as np
import pytest
from scipy.integrate import quad

from meanfield import ntk
from meanfield.units import ACTIVATIONS, Activation

TANH, ERF = ACTIVATIONS["tanh"], ACTIVATIONS["erf"]


@pytest.mark.parametrize("norm", [0.5, 1.0, 3.0, 10.0, 30.0])
@pytest.mark.parametrize("name", ["tanh", "sigmoid", "softplus"])
def test_diagonal_against_adaptive_quadrature(name, norm):
    activation = ACTIVATIONS[name]
    for order in (0, 1):
        found = ntk.mehler(activation, np.array([[norm, 0.0]]), (order, order))[0, 0]

        def integrand(g, order=order):
            value = float(activation.jet(np.array([norm * g]))[order][0])
            return value**2 * np.exp(-0.5 * g * g) / np.sqrt(2 * np.pi)

        expected = sum(quad(integrand, a, b, epsabs=1e-13, limit=300)[0] for a, b in ((-12, -1), (-1, 1), (1, 12)))
        assert found == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("length", [0.7, 3.0, 9.0])
def test_series_against_the_closed_form_of_erf(length):
    x = np.random.default_rng(0).standard_normal((8, 20))
    x *= length / np.linalg.norm(x, axis=1, keepdims=True)
    values, slopes = ERF.gram(x @ x.T)
    np.testing.assert_allclose(ntk.mehler(ERF, x, (0, 0)), values, atol=1e-12)
    np.testing.assert_allclose(ntk.mehler(ERF, x, (1, 1)), slopes, atol=1e-12)


def test_pairs_of_tanh_against_two_dimensional_quadrature():
    x = np.array([[3.0, 0.0], [1.2, 1.6]])
    nodes, weights = np.polynomial.hermite_e.hermegauss(180)
    weights = weights / weights.sum()
    theta = np.stack(np.meshgrid(nodes, nodes, indexing="ij"), axis=-1).reshape(-1, 2)
    mass = np.outer(weights, weights).ravel()
    h, h1 = TANH.jet(theta @ x.T)[:2]
    assert ntk.mehler(TANH, x, (0, 0))[0, 1] == pytest.approx(float(mass @ (h[:, 0] * h[:, 1])), abs=1e-6)
    assert ntk.mehler(TANH, x, (1, 1))[0, 1] == pytest.approx(float(mass @ (h1[:, 0] * h1[:, 1])), abs=1e-4)


def test_std_scales_the_inputs():
    x = np.random.default_rng(1).standard_normal((4, 3))
    values, slopes = ntk.gram_parts(TANH, x, std=2.0)
    again, steeper = ntk.gram_parts(TANH, 2 * x)
    np.testing.assert_allclose(values, again, rtol=1e-12)
    np.testing.assert_allclose(slopes, steeper, rtol=1e-12)


def test_long_inputs_keep_the_matrix_positive():
    x = 1.25 * np.random.default_rng(2).standard_normal((30, 64))
    assert ntk.eigenvalue_range(ntk.gram_gaussian(TANH, x))[0] > 1.0


def test_a_kink_warns_of_its_accuracy():
    def jet(w):
        return np.abs(w), np.sign(w), np.zeros_like(w), np.zeros_like(w)

    with pytest.warns(UserWarning, match="scale the inputs"):
        ntk.mehler(Activation("abs", jet), np.array([[1.0, 0.0], [0.999, 0.01]]), (1, 1))
