"""Predictions of tangent kernels: closed forms, limits in time and in alpha, and the nonlinear dynamics themselves."""

import cases
import numpy as np
import pytest
import small
from scipy.linalg import expm

from meanfield import ntk
from meanfield.errors import InputError
from meanfield.simulate import simulate
from meanfield.units import ACTIVATIONS

TANH, ERF, LINEAR = (ACTIVATIONS[name] for name in ("tanh", "erf", "linear"))
X, Y = small.data(8, 3)
NEW = small.data(5, 3, seed=9)[0]


def test_kernel_regression_interpolates_and_shrinks():
    np.testing.assert_allclose(ntk.kernel_regression(TANH, X, Y, X), Y, atol=1e-9)
    H, across = ntk.gram_gaussian(TANH, X), ntk.kernel(TANH, NEW, X)
    for ridge in (0.0, 0.3):
        expected = across @ np.linalg.solve(H + ridge * np.eye(8), Y)
        np.testing.assert_allclose(ntk.kernel_regression(TANH, X, Y, NEW, ridge), expected, rtol=1e-8)
    assert np.abs(ntk.kernel_regression(TANH, X, Y, NEW, 1e9)).max() < 1e-7
    u = ntk.kernel_regression(TANH, X, Y, NEW, 0.1, train="u")
    np.testing.assert_allclose(
        u, ntk.kernel(TANH, NEW, X, train="u") @ np.linalg.solve(ntk.gram_parts(TANH, X)[0] + 0.1 * np.eye(8), Y)
    )


@pytest.mark.parametrize("predict", [ntk.frozen_prediction, ntk.lazy_prediction])
def test_shapes_and_the_start(predict):
    symbols = dict(alpha=3.0, lam=0.1)
    assert np.array_equal(predict(TANH, X, Y, 0.0, **symbols), np.zeros(8))
    found = predict(TANH, X, Y, [[0.0, 0.1], [0.2, 0.3]], x_test=NEW, **symbols)
    assert found.shape == (2, 2, 5) and found.dtype == np.float64
    np.testing.assert_allclose(found[1, 0], predict(TANH, X, Y, 0.2, x_test=NEW, **symbols), rtol=1e-10)
    np.testing.assert_allclose(
        predict(TANH, X, Y, 0.2, x_test=X, **symbols), predict(TANH, X, Y, 0.2, **symbols), rtol=1e-9, atol=1e-11
    )


def test_frozen_prediction_solves_its_equation():
    alpha, lam, t = 4.0, 0.3, 0.7
    kappa, H, across = 2 * alpha**2 / 8, ntk.gram_gaussian(TANH, X), ntk.kernel(TANH, NEW, X)
    whole = np.vstack([H, across])
    # (f, f_new, 1)' = A (f, f_new, 1)
    A = np.zeros((14, 14))
    A[:13, :8] = -kappa * whole
    A[:13, :13] -= lam * np.eye(13)
    A[:13, 13] = kappa * whole @ Y
    expected = (expm(A * t) @ np.eye(14)[13])[:13]
    found = ntk.frozen_prediction(TANH, X, Y, t, alpha=alpha, lam=lam, x_test=np.vstack([X, NEW]))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)
    late = ntk.frozen_prediction(TANH, X, Y, 1e3, alpha=alpha, lam=lam, x_test=NEW)
    np.testing.assert_allclose(late, ntk.kernel_regression(TANH, X, Y, NEW, lam / kappa), rtol=1e-9)


@pytest.mark.parametrize("train", ["both", "u", "theta"])
def test_without_decay_both_are_gradient_flow_of_the_kernel(train):
    times = [1e-3, 0.1, 5.0]
    symbols = dict(alpha=20.0, lam=0.0, x_test=NEW, train=train)
    frozen = ntk.frozen_prediction(TANH, X, Y, times, **symbols)
    np.testing.assert_allclose(ntk.lazy_prediction(TANH, X, Y, times, **symbols), frozen, atol=1e-9)


def test_lazy_prediction_is_exact_where_u_alone_is_trained():
    found = ntk.lazy_prediction(ERF, cases.P1_X, cases.P1_Y, 0.5, alpha=3.0, lam=0.1, train="u")
    np.testing.assert_allclose(found, [0.43362844, 0.75513433], atol=1e-8)
    wide = ntk.lazy_prediction(ERF, cases.P1_X, cases.P1_Y, 0.5, alpha=3.0, lam=0.1, train="u", std=2.0)
    flow = small.flow(n=2, d=1)  # the prior N(0, 4): features of twice the weights, decay a quarter
    assert flow.decay == 1
    scaled = ntk.lazy_prediction(ERF, 2 * cases.P1_X, cases.P1_Y, 0.5, alpha=3.0, lam=0.025, train="u")
    np.testing.assert_allclose(wide, scaled, rtol=1e-9)


def test_lazy_prediction_is_the_limit_of_bilinear_networks():
    """The error falls as alpha^-2 at fixed alpha^2 t; the frozen kernel's does not: the noise renews the features."""
    errors, kept = [], []
    for alpha in (10.0, 20.0, 40.0, 80.0):
        # lam alpha^-2 t fixed too: decay then acts on the scale of learning.
        problem, t = cases.bilinear(4, alpha, lam=0.3 * alpha**2), 3 / alpha**2
        truth = problem.prediction(problem.covariance([t])[0])
        symbols = dict(alpha=alpha, lam=problem.lam)
        errors.append(np.abs(ntk.lazy_prediction(LINEAR, problem.x, problem.y, t, **symbols) - truth).max())
        kept.append(np.abs(ntk.frozen_prediction(LINEAR, problem.x, problem.y, t, **symbols) - truth).max())
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(orders, 2.0, atol=0.15)
    assert kept[-1] > 0.9 * kept[0] > 0.02


def test_in_the_end_the_outer_kernel_alone_predicts():
    """f -> ridge regression with H2, not H: at rest the law is that of Gibbs, to leading order in 1 / alpha."""
    alpha, lam = 30.0, 0.5
    late = ntk.lazy_prediction(TANH, X, Y, 200.0, alpha=alpha, lam=lam, x_test=NEW)
    ridge = 8 * lam / (2 * alpha**2)
    np.testing.assert_allclose(late, ntk.kernel_regression(TANH, X, Y, NEW, ridge, train="u"), rtol=1e-6)
    assert np.abs(late - ntk.kernel_regression(TANH, X, Y, NEW, ridge)).max() > 0.02


def test_nonlinear_dynamics_tend_to_the_lazy_prediction():
    """tanh, alpha = 50, noise that acts while the loss falls: the simulated limit law tells the two apart."""
    flow = small.flow("kernel2", n=8, d=3, alpha=50.0, lam=100.0)
    run = simulate(flow, small.cloud(flow, 3000), 0.01, replicates=8, observables=["prediction"], bounds=0)
    symbols = dict(alpha=50.0, lam=100.0)
    along = run.data.label.values / 8
    found = run.data.prediction.values[:, -1] @ along
    lazy, frozen = (
        float(along @ predict(TANH, flow.objective.x, flow.objective.y, 0.01, **symbols))
        for predict in (ntk.lazy_prediction, ntk.frozen_prediction)
    )
    assert cases.standard_errors(found, lazy) < 4
    assert cases.standard_errors(found, frozen) > 8


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ntk.kernel_regression(TANH, X, Y[:3], X), r"must fit, got \(8, 3\), \(3,\)"),
        (lambda: ntk.kernel_regression(TANH, X, Y, X, -1.0), "ridge must be finite"),
        (lambda: ntk.kernel_regression(TANH, X[[0, 0]], Y[:2], X), "take ridge > 0"),
        (lambda: ntk.frozen_prediction(TANH, X, Y, -1.0, alpha=1.0, lam=0.1), "times must be finite"),
        (lambda: ntk.lazy_prediction(TANH, X, Y, 1.0, alpha=0.0, lam=0.1), "alpha and std must be positive"),
        (lambda: ntk.kernel(TANH, X, X[:, :2]), "two sets of inputs"),
    ],
)
def test_what_is_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()
