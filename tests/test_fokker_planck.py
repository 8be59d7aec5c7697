"""The limit equation solved by Hermite polynomials: closed forms, reference values, identities, refusals. Cost: 5 s."""

import numpy as np
import pytest
from cases import P1_X, P1_Y, Bilinear, Frozen, gaussian_kl, gaussian_w2
from scipy.integrate import solve_ivp

from meanfield import extrapolation, fokker_planck
from meanfield.errors import DivergedError, InputError
from meanfield.objectives import Potential
from meanfield.risk import Risk
from meanfield.units import Activation, Unit

P1 = Risk(P1_X, P1_Y, Unit("erf"), 1.0)
# Small enough that p / p0 is square integrable under p0: the covariance stays well below 2.
LINEAR = Bilinear(np.array([[1.0], [0.5]]), np.array([0.5, 0.3]), alpha=2.0, lam=0.2)


def p1(activation="erf", alpha=1.0):
    return Risk(P1_X, P1_Y, Unit(activation), alpha)


# --- closed forms


def test_without_a_loss_the_law_stays_p0():
    still = fokker_planck.spectral(Risk(P1_X, 0 * P1_Y, Unit("erf"), 3.0), 0.2, [0.0, 1.0, 30.0], modes=(24, 12))
    assert np.abs(still.kl).max() < 1e-14 and np.abs(still.prediction).max() < 1e-14
    np.testing.assert_allclose(still.states[-1], still.states[0], atol=1e-14)
    np.testing.assert_allclose(still.density(0.3, [-1.0, 2.0]), np.exp([-0.545, -2.045]) / (2 * np.pi), rtol=1e-12)


@pytest.mark.parametrize("alpha, lam", [(3.0, 0.1), (30.0, 0.5)])
def test_frozen_inner_weights(alpha, lam):
    """Closed form: u | theta ~ N(a . h(theta), 1)."""
    problem = Frozen(P1_X, P1_Y, alpha, lam)
    times = np.array([0.02, 0.5, 4.0])
    found = fokker_planck.spectral(problem.risk(), lam, times, train="u", modes=(96, 30))
    for k, t in enumerate(times):
        np.testing.assert_allclose(found.prediction[k], problem.prediction(t), atol=1e-8)
        np.testing.assert_allclose(found.series.gram[k], problem.kernel, atol=1e-12)
        assert found.loss[k] == pytest.approx(problem.loss(t), abs=1e-8)
        assert found.kl[k] == pytest.approx(problem.kl(t), abs=1e-8)
        a = problem.coefficients(t)
        assert found.fisher[k] == pytest.approx(a @ problem.kernel @ a, abs=2e-7)
    theta, u = np.meshgrid([-1.2, 0.1, 2.0], [-1.0, 0.5], indexing="ij")
    centre = problem.unit.h.value(np.multiply.outer(theta, P1_X[:, 0])) @ a
    exact = np.exp(-0.5 * theta**2 - 0.5 * (u - centre) ** 2) / (2 * np.pi)
    np.testing.assert_allclose(found.density(theta, u), exact, atol=1e-6)


def test_frozen_outer_weights_of_a_linear_network():
    """With h(w) = w and theta trained, theta | u ~ N(u m, 1) and m obeys the linear equation that a does above."""
    x = LINEAR.x
    rate = 2 * LINEAR.alpha**2 / 2 * (x[:, 0] @ x[:, 0]) + LINEAR.lam
    times = np.array([0.1, 1.0])
    m = 2 * LINEAR.alpha / 2 * (x[:, 0] @ LINEAR.y) / rate * -np.expm1(-rate * times)
    found = fokker_planck.spectral(LINEAR.risk(), LINEAR.lam, times, train="theta", modes=(30, 30))
    np.testing.assert_allclose(found.prediction, LINEAR.alpha * np.outer(m, x[:, 0]), atol=1e-9)
    np.testing.assert_allclose(found.kl, m**2 / 2, atol=1e-9)


def test_bilinear_network():
    """Closed form: N(0, S_t) [the Gaussian closure]."""
    times = np.array([0.05, 0.5, 3.0])
    found = fokker_planck.spectral(LINEAR.risk(), LINEAR.lam, times, modes=40)
    for k, S in enumerate(LINEAR.covariance(times)):
        np.testing.assert_allclose(found.prediction[k], LINEAR.prediction(S), atol=1e-7)
        np.testing.assert_allclose(found.series.covariance[k], S, atol=1e-7)
        np.testing.assert_allclose(found.series.gram[k], LINEAR.gram(S), atol=1e-7)
        assert found.kl[k] == pytest.approx(gaussian_kl(S), abs=1e-7)
        assert found.w2_lower[k] == pytest.approx(gaussian_w2(S), abs=1e-7)
        assert found.fisher[k] == pytest.approx(np.trace(S) - 4 + np.trace(np.linalg.inv(S)), abs=1e-6)
        assert found.second_moment[k] == pytest.approx(np.trace(S) / 2, abs=1e-7)
    np.testing.assert_allclose(found.series.generator, -2 * found.prediction / LINEAR.alpha, atol=1e-12)
    assert (found.w2_upper >= found.w2_lower).all() and np.abs(found.series.mean).max() < 1e-12


# --- reference values


def test_reference_value_at_time_one():
    found = fokker_planck.spectral(p1(), 0.2, [1.0])
    assert found.loss[0] == pytest.approx(0.0659045, abs=1e-7)
    assert found.kl[0] == pytest.approx(0.269960, abs=1e-6)
    assert found.eigenvalues[0, 0] == pytest.approx(0.0356732, abs=1e-7)
    np.testing.assert_allclose(found.prediction[0], [0.289496, 0.504201], atol=1e-6)
    assert found.error["kl"][0] < 1e-7 and found.error["loss"][0] < 1e-9


def test_the_long_time_law_is_the_gibbs_law():
    """Reference: the dual of the Gibbs law, without time."""
    found = fokker_planck.spectral(p1(), 0.2, [50.0], modes=(96, 28), tolerance=1e-9, estimate=False)
    np.testing.assert_allclose(found.prediction[0], [0.38271856, 0.63876667], atol=1e-7)
    assert found.loss[0] == pytest.approx(0.0198755617, abs=1e-7)
    assert found.kl[0] == pytest.approx(0.4038921526, abs=1e-7)
    assert found.energy[0] == pytest.approx(0.1006539922, abs=1e-7)
    assert abs(found.dissipation[0]) < 1e-7


@pytest.mark.parametrize("alpha, kl", [(3.0, 0.076951), (10.0, 0.008044)])
def test_laws_that_move_little(alpha, kl):
    found = fokker_planck.spectral(p1(alpha=alpha), 0.1, [0.5 / alpha, 20.0], modes=(96, 32))
    assert found.kl[-1] == pytest.approx(kl, abs=1e-6)
    assert (found.error["kl"] < 1e-6).all() and (found.error["prediction"] < 1e-7).all()


# --- independent routes


@pytest.mark.parametrize("alpha, lam", [(1.0, 0.2), (3.0, 0.1), (10.0, 0.1)])
def test_identities_of_p1(alpha, lam):
    times = [0.0, 0.3 / alpha**2, 1.0, 10.0]
    found = fokker_planck.spectral(p1(alpha=alpha), lam, times, modes=(96, 32), estimate=False)
    for name, identity in fokker_planck.identities(found).items():
        assert identity.gap.max() < 1e-6, (name, identity.gap)
        assert identity.rate.shape == identity.formula.shape
    assert (found.fisher >= 2 * found.kl - 1e-9).all()  # log-Sobolev


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "softplus", "sin", "erf_sqrt2", "linear"])
@pytest.mark.parametrize("train", ["both", "u", "theta"])
def test_identities_of_every_smooth_activation(activation, train):
    risk = Risk([[0.4], [-0.7], [0.9]], [0.5, 0.1, 0.3], Unit(activation), 1.5)
    found = fokker_planck.spectral(risk, 0.3, [0.4], train=train, modes=(72, 32), estimate=False)
    gaps = {name: identity.gap.max() for name, identity in fokker_planck.identities(found).items()}
    assert max(gaps.values()) < 1e-6, gaps


def test_identities_see_a_wrong_reading(monkeypatch):
    found = fokker_planck.spectral(p1(), 0.2, [0.5], modes=(64, 20), estimate=False)
    wrong = found.series._replace(generator=1.01 * found.series.generator)
    object.__setattr__(found, "series", wrong)
    gaps = {name: identity.gap[0] for name, identity in fokker_planck.identities(found).items()}
    assert min(gaps.values()) > 1e-4


def test_more_modes_converge_and_the_estimate_covers():
    best = fokker_planck.spectral(p1(alpha=10.0), 0.1, [0.05], modes=(120, 30), estimate=False)
    errors = []
    for modes in (32, 48, 64):
        found = fokker_planck.spectral(p1(alpha=10.0), 0.1, [0.05], modes=(modes, 24))
        errors.append(abs(found.kl[0] - best.kl[0]))
        assert errors[-1] <= found.error["kl"][0]
        assert abs(found.loss[0] - best.loss[0]) <= found.error["loss"][0]
    # Exponential: seen are factors of 0.06 and 0.09 for 16 modes more; of second order they would be 0.44 and 0.56.
    assert errors[1] < 0.1 * errors[0] and errors[2] < 0.15 * errors[1]


def test_tolerance_of_time_steps():
    loose, tight = (
        fokker_planck.spectral(p1(alpha=3.0), 0.1, [2.0], modes=(48, 20), tolerance=tolerance, estimate=False)
        for tolerance in (1e-6, 1e-11)
    )
    gap = np.abs(loose.states[0] - tight.states[0]).max()
    assert 1e-11 < gap < 1e-5


def test_the_integrator_on_a_stiff_linear_system():
    """y' = M y + g(y) with the stiff part of M given and the rest left out: exact to the tolerance."""
    stiff, rest = np.array([-1e6, -1.0, -30.0]), np.array([[0.0, 1.0, 0.5], [0.2, 0.0, -1.0], [0.1, 1.0, 0.0]])

    def rate(y):
        return stiff * y + rest @ y + np.array([1e6, 0.0, 1.0])

    system = extrapolation.System(rate, lambda y: lambda tau: lambda b: b / (1 - tau * stiff))
    start = np.array([2.0, 1.0, -1.0])
    exact = solve_ivp(
        lambda t, y: rate(y), (0, 2), start, method="Radau", rtol=1e-12, atol=1e-13, jac=np.diag(stiff) + rest
    )
    found = extrapolation.advance(system, start, 2.0, step=1e-3, tolerance=1e-9)
    np.testing.assert_allclose(found, exact.y[:, -1], rtol=1e-8)


# --- contracts


def test_data_has_the_names_of_a_run():
    found = fokker_planck.spectral(p1(), 0.2, [0.0, 0.5], modes=(64, 20))
    data = found.data
    assert data.prediction.dims == ("time", "sample") and data.prediction_error.dims == ("time", "sample")
    names = ["loss", "kl", "energy", "second_moment", "drift_rms", "ntk_eigenvalue_min", "ntk_eigenvalue_max"]
    assert all(data[name].dims == ("time",) and data[f"{name}_error"].dims == ("time",) for name in names)
    assert data.attrs["alpha"] == 1.0 and data.attrs["lam"] == 0.2 and "tail_error" not in data
    np.testing.assert_allclose(data.energy, data.loss + 0.2 * data.kl)
    assert not fokker_planck.spectral(p1(), 0.2, [0.1], modes=(48, 16), estimate=False).error


def test_density_has_the_moments_that_are_reported():
    found = fokker_planck.spectral(p1(), 0.2, [0.5], modes=(64, 24), estimate=False)
    z = np.linspace(-9, 9, 181)
    p = found.density(z[:, None], z) * 0.1**2
    assert p.sum() == pytest.approx(1, abs=1e-12)
    assert z @ p @ z == pytest.approx(found.series.covariance[0, 0, 1], abs=1e-10)
    assert p.sum(axis=0) @ z**2 == pytest.approx(found.series.covariance[0, 1, 1], abs=1e-10)


# --- refusals


@pytest.mark.parametrize(
    "change, words",
    [
        ({"risk": Risk([[1.0, 2.0]], [0.5], Unit("erf"))}, "one inner weight"),
        ({"risk": Risk([[1.0]], [0.5], Unit("erf", bias=True))}, "no bias"),
        ({"risk": Risk([[1.0]], [1.0], Unit("erf"), loss="logistic")}, "square"),
        ({"risk": Potential(lambda z: z[:, 0], lambda z: z)}, "mf.Risk"),
        ({"risk": Risk([[1.0]], [0.5], Unit("relu"))}, "volumes"),
        ({"lam": 0.0}, "lam must be positive"),
        ({"times": [1.0, 0.5]}, "ascending"),
        ({"times": []}, "ascending"),
        ({"times": [-1.0]}, "not negative"),
        ({"modes": 4}, "at least 8"),
        ({"modes": (10.5, 3)}, "modes=\\(128, 40\\)"),
        ({"train": "all"}, "'both'"),
    ],
)
def test_what_is_refused(change, words):
    arguments = {"risk": p1(), "lam": 0.2, "times": [1.0], **change}
    with pytest.raises(InputError, match=words):
        fokker_planck.spectral(arguments.pop("risk"), **arguments)


def test_an_activation_whose_derivative_is_wrong_is_refused():
    def jet(w):
        return np.sin(w), 0.9 * np.cos(w), -np.sin(w), -np.cos(w)

    with pytest.raises(InputError, match="integration by parts"):
        fokker_planck.spectral(p1(Activation("askew", jet)), 0.2, [1.0])


def test_a_law_too_wide_for_the_expansion_is_refused():
    """A variance above 2: p / p0 is not square integrable under p0."""
    wide = Risk([[1.0]], [3.0], Unit("linear"), 1.0)
    with pytest.raises(DivergedError, match="volumes"):
        fokker_planck.spectral(wide, 0.1, [3.0], modes=32)


def test_a_doubtful_tail_warns():
    with pytest.warns(UserWarning, match="more modes"):
        fokker_planck.spectral(p1(), 0.2, [1.0], modes=(40, 20), estimate=False)
