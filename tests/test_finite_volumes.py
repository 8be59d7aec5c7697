"""Finite volumes, minimising movements and the optimal map: closed forms, independent routes, rates. Cost: 8 s."""

import numpy as np
import pytest
from cases import P1_X, P1_Y, Bilinear, Frozen, gaussian_kl, gaussian_w2
from scipy.integrate import solve_ivp
from scipy.linalg import expm

from meanfield import fokker_planck, markov, monge
from meanfield.errors import DivergedError, InputError
from meanfield.finite_volumes import Volumes, lines, plane, weight
from meanfield.quantiles import Functional, kl
from meanfield.risk import Risk
from meanfield.units import Unit

LINEAR = Bilinear(np.array([[1.0], [0.5]]), np.array([0.5, 0.3]), alpha=2.0, lam=0.2)


def p1(activation="erf", alpha=1.0):
    return Risk(P1_X, P1_Y, Unit(activation), alpha)


def pushed(u, times):
    """The mean of theta ~ N(m, 1) with h(w) = w and u fixed: m' = sum_i c_i u x_i - lam m, linear in m."""
    x, y, alpha, lam = LINEAR.x[:, 0], LINEAR.y, LINEAR.alpha, LINEAR.lam
    rate = lam + alpha**2 * u**2 * (x @ x)  # 2 / n = 1
    return alpha * u * (x @ y) / rate * -np.expm1(-rate * np.asarray(times)), rate


# --- the chain


def test_bernoulli_function():
    d = np.array([-800.0, -3.0, -1e-9, 0.0, 1e-9, 1e-5, 3.0, 800.0])
    forward, backward = markov.bernoulli_pair(d)
    np.testing.assert_array_equal(backward, markov.bernoulli_pair(-d)[0])
    np.testing.assert_allclose(backward - forward, d, rtol=1e-12, atol=1e-15)  # B(-d) - B(d) = d
    np.testing.assert_allclose(forward[[1, 6]], [-3 / np.expm1(-3), 3 / np.expm1(3)], rtol=1e-14)
    assert forward[3] == 1 and 0 < forward[2] - 1 < 1e-9


def test_the_exponential_of_a_chain():
    """Against a dense exponential; of positive terms, of mass one, at rest in exp(-V / lam)."""
    rng = np.random.default_rng(0)
    V = rng.normal(size=(5, 4))
    chain = markov.Chain((np.diff(V, axis=0), np.diff(V, axis=1)), (3.0, 2.0), (5, 4))
    generator = chain.leaving.max() * (chain._stochastic(chain.leaving.max()).toarray() - np.eye(20))
    p = rng.random((5, 4))
    p /= p.sum()
    np.testing.assert_allclose(chain.after(p, 0.3).ravel(), expm(0.3 * generator) @ p.ravel(), rtol=1e-12)
    rest = np.exp(-V) / np.exp(-V).sum()
    np.testing.assert_allclose(chain.after(rest, 7.0), rest, rtol=1e-12)
    np.testing.assert_allclose(chain.after(p, 300.0), rest, rtol=1e-12)  # several Poisson mixtures
    corner = np.zeros((5, 4))
    corner[0, 0] = 1.0
    late = chain.after(corner, 1e-3)
    assert late.min() > 0 and late.sum() == pytest.approx(1, abs=1e-15)
    assert chain.after(p, 0.0) is p


# --- closed forms


def test_without_a_loss_the_law_stays_p0():
    still = fokker_planck.volumes(Risk(P1_X, 0 * P1_Y, Unit("erf"), 3.0), 0.2, [1.0, 9.0], cells=24, estimate=False)
    assert np.abs(still.kl).max() < 1e-13 and np.abs(still.loss).max() < 1e-25
    line = fokker_planck.frozen(p1(), 0.2, [2.0], u=0.0, cells=100)
    assert abs(line.kl[0]) < 1e-13 and line.loss[0] == pytest.approx((P1_Y**2).mean(), abs=1e-14)
    moves = fokker_planck.proximal(p1(), 0.2, 1.0, 5, u=0.0, m=50)
    np.testing.assert_allclose(moves.quantiles, moves.quantiles[:1].repeat(6, axis=0), atol=1e-10)


def test_frozen_inner_weights():
    problem = Frozen(P1_X, P1_Y, alpha=3.0, lam=0.1)
    found = fokker_planck.volumes(problem.risk(), 0.1, [0.5], train="u", cells=(60, 80))
    assert abs(found.kl[0] - problem.kl(0.5)) <= found.error["kl"][0] < 2e-3
    assert abs(found.loss[0] - problem.loss(0.5)) <= found.error["loss"][0] < 2e-3
    a = problem.coefficients(0.5)
    theta, u = np.array([-1.2, 0.1, 2.0]), np.array([-1.0, 0.5, 0.4])
    centre = problem.unit.h.value(np.outer(theta, P1_X[:, 0])) @ a
    exact = np.exp(-0.5 * theta**2 - 0.5 * (u - centre) ** 2) / (2 * np.pi)
    np.testing.assert_allclose(found.density(theta, u), exact, rtol=0.02)


def test_frozen_outer_weights_of_a_linear_network():
    times = [0.1, 1.0]
    m, _ = pushed(1.5, times)
    found = fokker_planck.frozen(LINEAR.risk(), LINEAR.lam, times, u=1.5, cells=200)
    np.testing.assert_allclose(found.series.mean[:, 0], m, atol=1e-3)
    exact = np.column_stack([m**2 / 2, m])
    distance = fokker_planck.wasserstein(found)
    for k, (values, errors) in enumerate([(found.kl, found.error["kl"]), (distance.value, distance.error)]):
        assert (np.abs(values - exact[:, k]) <= errors).all() and (errors < 4e-3).all(), (values, exact[:, k], errors)
    both = fokker_planck.frozen(LINEAR.risk(), LINEAR.lam, times, u=(1.5, -1.5), share=(3.0, 1.0), cells=100)
    np.testing.assert_allclose(both.series.mean[:, 0], m / 2, atol=2e-3)  # m and -m
    assert both.density(m[1], 1.5) == pytest.approx(0.75 / np.sqrt(2 * np.pi), rel=5e-3)


def test_bilinear_network_and_its_distance():
    """Closed form: N(0, S_t), W2 by Bures; inside the estimated errors, of second order."""
    times, gaps = [0.5, 3.0], []
    S = LINEAR.covariance(times)
    exact = {
        "kl": [gaussian_kl(s) for s in S],
        "loss": [LINEAR.loss(s) for s in S],
        "fisher": [np.trace(s) - 4 + np.trace(np.linalg.inv(s)) for s in S],
    }
    truth = np.array([gaussian_w2(s) for s in S])
    for cells in (56, 80):
        found = fokker_planck.volumes(LINEAR.risk(), LINEAR.lam, times, cells=cells, tolerance=2e-6)
        distance = fokker_planck.wasserstein(found)
        assert (distance.value >= found.w2_lower - distance.error).all()
        gaps.append(np.abs(found.fisher - exact["fisher"]))
    for name, values in exact.items():
        assert (np.abs(found.data[name] - values) <= found.error[name]).all(), name
    assert (np.abs(distance.value - truth) <= distance.error).all() and (distance.error < 2e-4).all()
    order = np.log(np.divide(*gaps)) / np.log(80 / 56)
    np.testing.assert_allclose(order, 2.0, atol=0.2)


# --- independent routes


@pytest.mark.parametrize("activation", ["erf", "sigmoid"])
def test_finite_volumes_against_the_spectral_solution(activation):
    times = [0.3, 1.0, 4.0]
    truth = fokker_planck.spectral(p1(activation), 0.2, times, modes=(96, 32), estimate=False)
    found = fokker_planck.volumes(p1(activation), 0.2, times, cells=100, box=6.5)
    for name in ("loss", "prediction", "kl", "ntk_eigenvalue_min", "second_moment", "energy"):
        gap = np.abs(found.data[name] - truth.data[name])
        assert (gap < 2e-3).all() and (gap <= found.error[name] + 1e-6).all(), (name, gap)
    for name in ("loss", "kl", "ntk_eigenvalue_min"):  # extrapolated to cells of no size
        order_two = (4 * found.data[name] - found.coarser.data[name]) / 3
        assert (np.abs(order_two - truth.data[name]) < 1e-3).all(), name
    theta, u = np.array([-1.0, 0.5, 2.0]), np.array([0.4, -1.0, 1.0])
    np.testing.assert_allclose(found.density(theta, u), truth.density(theta, u), rtol=0.02)


def test_fitted_order_in_the_cells():
    truth = fokker_planck.spectral(p1(), 0.2, [1.0], modes=(96, 32), estimate=False)
    counts, errors = np.array([40, 56, 80]), []
    for cells in counts:
        found = fokker_planck.volumes(p1(), 0.2, [1.0], cells=int(cells), box=6.5, tolerance=1e-6, estimate=False)
        errors.append([abs(found.data[name][0] - truth.data[name][0]) for name in ("loss", "kl", "noise_work")])
    orders = np.polyfit(np.log(1 / counts), np.log(errors), 1)[0]
    np.testing.assert_allclose(orders, 2.0, atol=0.2)


def test_fitted_order_in_the_time_step():
    """Fixed steps of one chain: second order, against very short ones."""
    model = Volumes(p1(alpha=2.0), 0.2, plane((16, 16), (6.0, 6.0)))

    def arrive(steps):
        p = model.start()
        for _ in range(steps):
            p = model.step(p, 1.0 / steps)
        return p

    best = arrive(256)
    errors = [np.abs(arrive(steps) - best).sum() for steps in (8, 16, 32)]
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    np.testing.assert_allclose(orders, 2.0, atol=0.2)


def test_a_kink_is_no_obstacle():
    """relu, whose h'' is no function: identities of the grid close, to an order between one and two."""
    gaps = []
    for cells in (40, 80):
        found = fokker_planck.volumes(p1("relu"), 0.3, [0.4], cells=cells, estimate=False, tolerance=1e-6)
        gaps.append([identity.gap[0] for identity in fokker_planck.identities(found).values()])
    assert np.max(gaps[1]) < 0.02 and (np.divide(*gaps) > 2.0).all(), gaps


def test_the_long_time_law_of_frozen_outer_weights_is_a_gibbs_law():
    """p ~ exp(c . psi) p0 with c = -(2 alpha / (n lam)) r, exactly on the cells."""
    risk = p1(alpha=2.0)
    found = fokker_planck.frozen(risk, 0.5, [40.0], u=(-1.0, 2.0), cells=60, estimate=False)
    psi = risk.unit.h.value(np.outer(found.model.cells.theta, P1_X[:, 0]))
    tilt = np.exp(np.multiply.outer(psi @ risk.coefficients(found.residual[0]) / 0.5, found.model.cells.u))
    gibbs = found.model.cells.start * tilt
    gibbs *= found.model.cells.share / gibbs.sum(axis=0)  # u is frozen: each value keeps its mass
    assert np.abs(found.states[0] - gibbs).sum() < 1e-7


# --- structure


@pytest.mark.parametrize("alpha, lam", [(1.0, 0.2), (100.0, 0.01)])
@pytest.mark.parametrize("train", ["both", "u", "theta"])
@pytest.mark.parametrize("tau", [1e-3, 0.3, 20.0])
def test_positive_of_mass_one_and_the_energy_falls(alpha, lam, train, tau):
    """However long the step, and far above the stability limit of explicit ones, 2 / (kappa lambda_max) = 2e-4."""
    model = Volumes(p1("tanh", alpha), lam, plane((20, 18), (6.0, 6.0)), train=train)
    p = model.start()
    for _ in range(4):
        moved = model.step(p, tau)
        assert moved is not None and moved.min() > 0 and abs(moved.sum() - 1) < 1e-13
        assert model.energy(moved) < model.energy(p)
        p = moved


def test_the_energy_falls_along_a_solution():
    found = fokker_planck.volumes(p1(alpha=10.0), 0.1, [0.01, 1.0], cells=32, estimate=False)
    assert len(found.path_times) == len(found.path_energies) > 20
    assert (np.diff(found.path_times) > 0).all() and found.path_times[-1] == 1.0
    assert (np.diff(found.path_energies) < 0).all()
    assert found.path_energies[-1] == pytest.approx(found.energy[-1], abs=1e-15)
    assert (found.series.lowest > 0).all() and abs(found.states[-1].sum() - 1) < 1e-13


def test_the_largest_box_loses_no_mass_to_underflow():
    wide = fokker_planck.volumes(p1(alpha=10.0), 0.1, [0.1], cells=40, box=15.0, estimate=False)
    assert wide.series.lowest[0] > 0 and np.isfinite(wide.kl).all() and (np.diff(wide.path_energies) < 0).all()


def test_many_samples():
    x = np.linspace(-1, 1, 40)[:, None]
    risk = Risk(x, np.sin(2 * x[:, 0]), Unit("tanh"), 2.0)
    found = fokker_planck.volumes(risk, 0.3, [0.5], cells=64, box=6.5)
    truth = fokker_planck.spectral(risk, 0.3, [0.5], modes=(64, 24), estimate=False)
    for name in ("loss", "kl", "ntk_eigenvalue_max"):
        value = float(truth.data[name][0])
        assert abs(found.data[name][0] - value) <= found.error[name][0] < 0.05 * value, name


def test_weight_of_the_end_of_a_step():
    x = np.array([0.0, 1e-3, 9.999e-3, 1.0001e-2, 1.0, 700.0])
    exact = [0.5, 0.5 + 1e-3 / 12, 0.5 + 9.999e-3 / 12, 0.5 + 1.0001e-2 / 12, 1 / -np.expm1(-1) - 1, 1 - 1 / 700]
    np.testing.assert_allclose(weight(x), exact, rtol=1e-8)
    assert (weight(x) >= 0.5).all()


# --- minimising movements


def test_movements_of_a_linear_network_are_implicit_euler_steps():
    """A law that is only pushed: (m' - m) / eta = a - rate m', exactly."""
    moves = fokker_planck.proximal(LINEAR.risk(), LINEAR.lam, 0.1, 10, u=1.5, m=60)
    equilibrium, rate = pushed(1.5, [1e6])
    m = equilibrium * (1 - (1 + 0.1 * rate) ** -np.arange(11.0))
    np.testing.assert_allclose(moves.quantiles.mean(axis=1), m, atol=1e-9)
    np.testing.assert_allclose(moves.kl, m**2 / 2, atol=1e-9)
    np.testing.assert_allclose(moves.w2, np.abs(m), atol=1e-9)
    np.testing.assert_allclose(moves.times, 0.1 * np.arange(11))


def test_fitted_order_of_movements():
    """Against the gradient flow of the same quantiles, X' = -m grad Q, by a stiff integrator."""
    risk, lam, end = p1("tanh", 2.0), 0.2, 0.5
    start = fokker_planck.proximal(risk, lam, 1e-9, 1, m=24).quantiles[0]
    functional = Functional(risk, lam, 1.0)
    flow = solve_ivp(
        lambda t, X: -functional.derivatives(X)[0], (0, end), start, method="BDF", rtol=1e-9, atol=1e-11
    ).y[:, -1]
    steps = np.array([20, 40, 80])
    errors = []
    for count in steps:
        moves = fokker_planck.proximal(risk, lam, end / count, int(count), m=24)
        errors.append(np.sqrt(((moves.quantiles[-1] - flow) ** 2).mean()))
        assert (np.diff(moves.energy) < 0).all() and (np.diff(moves.quantiles, axis=1) > 0).all()
    order = np.polyfit(np.log(end / steps), np.log(errors), 1)[0]
    assert order == pytest.approx(1.0, abs=0.1)


def test_movements_against_finite_volumes():
    risk, lam = p1(alpha=2.0), 0.2
    truth = fokker_planck.frozen(risk, lam, [0.5], cells=200, estimate=False)
    coarse, fine = (fokker_planck.proximal(risk, lam, 0.5 / k, k, m=1000) for k in (20, 40))
    for name, value in (
        ("loss", truth.loss[0]),
        ("kl", truth.kl[0]),
        ("w2", fokker_planck.wasserstein(truth).value[0]),
    ):
        extrapolated = 2 * getattr(fine, name)[-1] - getattr(coarse, name)[-1]
        assert extrapolated == pytest.approx(value, rel=4e-3), name


def test_gradient_and_curvature_of_quantiles():
    X = np.sort(np.random.default_rng(1).normal(size=7))
    functional = Functional(p1("sigmoid", 3.0), 0.3, -1.2)
    gradient, diagonal, neighbours, spread = functional.derivatives(X)
    hessian = np.diag(diagonal) + np.diag(neighbours, 1) + np.diag(neighbours, -1) + spread.T @ spread
    for j, direction in enumerate(np.eye(7)):
        up, down = X + 1e-6 * direction, X - 1e-6 * direction
        assert 7 * (functional.value(up) - functional.value(down)) / 2e-6 == pytest.approx(gradient[j], abs=1e-6)
        slope = (functional.derivatives(up)[0] - functional.derivatives(down)[0]) / 2e-6
        np.testing.assert_allclose(slope, hessian[j], rtol=1e-5, atol=1e-5)
    assert kl(2 * X) - kl(X) == pytest.approx(1.5 * (X**2).mean() - 6 / 7 * np.log(2), abs=1e-12)


# --- the optimal map


def test_distance_on_a_line():
    """Quantiles of Gaussians: |shift| exactly, scales to the square of a cell."""
    cells = lines(200, 8.0, np.ones(1), np.ones(1))
    z, p = cells.theta, cells.start[:, 0]
    assert monge.line_distance(np.roll(p, 5), p, 0.08) == pytest.approx(0.4, abs=1e-9)
    wide = np.exp(-0.5 * (z / 1.25) ** 2)
    assert monge.line_distance(wide / wide.sum(), p, 0.08) == pytest.approx(0.25, abs=1e-3)


def test_distance_of_shifted_and_sheared_gaussians():
    """Closed form: |mean|^2 and Bures; second order in the cells."""
    mean, S = np.array([0.3, -0.2]), np.array([[1.4, 0.3], [0.3, 0.8]])
    exact, gaps = np.sqrt(mean @ mean + gaussian_w2(S) ** 2), []
    for count in (32, 48):
        cells = plane((count, count), (8.0, 8.0))
        z = np.stack(np.meshgrid(cells.theta, cells.u, indexing="ij"), axis=-1) - mean
        p = np.exp(-0.5 * np.einsum("...i,ij,...j->...", z, np.linalg.inv(S), z))
        value, potential = monge.plane_distance(cells, p / p.sum())
        gaps.append(abs(value - exact))
    assert gaps[1] < 1e-6, gaps
    again, _ = monge.plane_distance(cells, p / p.sum(), potential)
    assert again == pytest.approx(value, abs=1e-9)


def test_distance_of_a_nonlinear_network_lies_in_its_bracket():
    found = fokker_planck.volumes(p1(), 0.2, [0.2, 1.0], cells=48)
    distance = fokker_planck.wasserstein(found)
    assert (found.w2_lower + 0.01 * distance.value < distance.value).all()  # not Gaussian
    assert (distance.value < found.w2_upper).all() and (distance.error < 0.06 * distance.value).all()


def test_a_map_that_is_not_found_says_so():
    cells = plane((16, 16), (6.0, 6.0))
    rough = cells.start * np.exp(3 * np.random.default_rng(0).normal(size=(16, 16)))
    with pytest.raises(DivergedError, match="more cells"):
        monge.plane_distance(cells, rough / rough.sum())


# --- refusals


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: fokker_planck.volumes(p1(), 0.2, [1.0], cells=3), "at least 8"),
        (lambda: fokker_planck.volumes(p1(), 0.2, [1.0], box=-1.0), "box"),
        (lambda: fokker_planck.volumes(p1(), 0.2, [1.0], box=(7.0, 40.0)), "at most 15"),
        (lambda: fokker_planck.volumes(p1(), -0.2, [1.0]), "lam"),
        (lambda: fokker_planck.frozen(p1(), 0.2, [1.0], u=(1.0, 1.0)), "different"),
        (lambda: fokker_planck.frozen(p1(), 0.2, [1.0], u=(1.0, -1.0), share=(1.0,)), "share"),
        (lambda: fokker_planck.frozen(p1(), 0.2, [1.0, 1.0]), "ascending"),
        (lambda: fokker_planck.proximal(p1(), 0.2, 0.0, 5), "eta"),
        (lambda: fokker_planck.proximal(p1(), 0.2, 0.1, 2.5), "whole number"),
        (lambda: fokker_planck.proximal(p1(), 0.2, 0.1, 5, u=np.inf), "u, the output"),
        (lambda: fokker_planck.proximal(p1(), 0.2, 0.1, 5, m=3), "quantiles"),
    ],
)
def test_what_is_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()


def test_distances_that_are_not_solved_for_are_refused():
    spectral = fokker_planck.spectral(p1(), 0.2, [0.1], modes=(64, 16), estimate=False)
    with pytest.raises(InputError, match="volumes"):
        fokker_planck.wasserstein(spectral)
    two = fokker_planck.frozen(p1(), 0.2, [0.1], u=(1.0, -1.0), cells=40, estimate=False)
    with pytest.raises(InputError, match="one value"):
        fokker_planck.wasserstein(two)
    with pytest.raises(InputError, match="frozen at"):
        two.density(0.0, 0.5)


def test_a_box_too_small_warns():
    with pytest.warns(UserWarning, match="wider box"):
        fokker_planck.volumes(p1(), 0.2, [0.1], cells=16, box=3.0, estimate=False)
