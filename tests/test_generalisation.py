"""(5.2) to (5.5), Lemmas 5.5 and 5.6, Theorem 4.5 in explicit form: extremes, other routes, and what is refused."""

import math

import cases
import numpy as np
import pytest
import xarray
from scipy.optimize import minimize, minimize_scalar

from meanfield import minimiser, theory
from meanfield.errors import InputError
from meanfield.verdicts import HOLDS, INCONCLUSIVE, NOT_APPLICABLE, VIOLATED

# --- (5.2) to (5.5)


def test_the_mixture_on_finite_spaces():
    """p^ = (1 - 1/alpha) p0 + p_true / alpha: chi^2 falls as alpha^-2 exactly, and bounds KL through its logarithm."""
    rng = np.random.default_rng(0)
    for alpha in (1.0, 2.5, 20.0):
        p0, true = rng.dirichlet(np.ones(6)), rng.dirichlet(0.3 * np.ones(6))
        chi2 = float((true / p0 - 1) ** 2 @ p0)
        mixed = (1 - 1 / alpha) * p0 + true / alpha
        assert theory.mixture_chi2(alpha, chi2) == pytest.approx(float((mixed / p0 - 1) ** 2 @ p0))
        kl = float(mixed @ np.log(mixed / p0))
        assert kl <= theory.mixture_kl(alpha, chi2) <= theory.mixture_chi2(alpha, chi2)
        assert theory.minimiser_loss(alpha, 0.1, chi2) == 0.1 * theory.minimiser_kl(alpha, chi2)


def test_least_energy_of_frozen_features():
    """A closed form: against a numerical minimum, and where training of u alone ends."""
    problem = cases.Frozen(cases.P1_X, cases.P1_Y, alpha=3.0, lam=0.1)
    K2, y, n = problem.kernel, problem.y, 2
    found = theory.frozen_energy(K2, y, 3.0, 0.1)

    def energy(a):
        return float(np.sum((3.0 * K2 @ a - y) ** 2) / n + 0.1 * 0.5 * a @ K2 @ a)

    assert found == pytest.approx(minimize(energy, np.zeros(2), tol=1e-14).fun, rel=1e-8)
    assert found == pytest.approx(problem.loss(400.0) + 0.1 * problem.kl(400.0), rel=1e-10)


def test_the_minimiser_lies_below_frozen_features():
    """P1 at alpha = 1, lam = 0.2: min Q, its loss and its KL are known."""
    problem = cases.Frozen(cases.P1_X, cases.P1_Y, alpha=1.0, lam=0.2)
    bound = theory.frozen_energy(problem.kernel, problem.y, 1.0, 0.2)
    assert 0.1006539922 < bound < 1.1 * 0.1006539922
    assert bound > 0.0198755617 and bound / 0.2 > 0.4038921526


# --- Lemma 5.5


@pytest.mark.parametrize("M", [1e-8, 1e-3, 0.1, 0.5, 2.0, 50.0])
def test_complexity_is_the_infimum(M):
    found = minimize_scalar(
        lambda s: (M - 0.5 * math.log1p(-s * s)) / s, bounds=(1e-9, 1 - 1e-12), method="bounded",
        options={"xatol": 1e-12},
    )  # fmt: skip
    assert theory.rademacher_bound(M, 3.0, 25, 2.0) == pytest.approx(3.0 * 2.0 / 5 * found.fun, rel=1e-9)


def test_simple_form_of_the_complexity():
    for M in (0.0, 1e-6, 0.2, 0.5):
        assert theory.rademacher_simple(M, 1.0, 1, 1.0) >= theory.rademacher_bound(M, 1.0, 1, 1.0)
    assert 2 * math.sqrt(2.0) < theory.rademacher_bound(2.0, 1.0, 1, 1.0)  # why it stops at 1/2
    assert theory.rademacher_bound(1e-10, 1.0, 1, 1.0) == pytest.approx(math.sqrt(2e-10), rel=1e-4)


@pytest.mark.parametrize("M", [0.05, 0.7])
def test_complexity_of_a_ball_is_below_its_bound(M):
    """sup over KL <= M of E_p phi is inf over gamma of (M + log E e^(gamma phi)) / gamma: d = 1, all signs."""
    n, alpha = 6, 2.0
    x = np.linspace(-1, 1, n)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    h = np.tanh(np.outer(nodes, x))
    total = 0.0
    for index in range(1 << n):
        signs = np.array([1 if index >> k & 1 else -1 for k in range(n)])
        g = alpha / n * h @ signs

        def excess(log_gamma, g=g):
            # u integrates out: E e^(gamma u g) = e^(gamma^2 g^2 / 2)
            gamma = math.exp(log_gamma)
            square = 0.5 * gamma**2 * g**2
            return (M + square.max() + math.log(weights @ np.exp(square - square.max()))) / gamma

        total += minimize_scalar(excess, bounds=(-4, 5), method="bounded").fun
    complexity, bound = total / (1 << n), theory.rademacher_bound(M, alpha, n, 1.0)
    assert 0.3 * bound < complexity < bound


# --- Lemma 5.6


def test_losses_and_their_order():
    rng = np.random.default_rng(1)
    y, f = rng.choice([-1.0, 1.0], 500), 2 * rng.normal(size=500)
    wrong, ramp = theory.zero_one(y, f), theory.ramp(y, f)
    assert np.array_equal(wrong == 1, np.sign(f) != y)
    assert np.all(wrong <= ramp) and np.all(ramp <= np.abs(f - y))
    assert np.all(np.abs(theory.ramp(y, f + 0.1) - ramp) <= 0.1 + 1e-12)
    assert ramp.mean() <= math.sqrt(np.mean((f - y) ** 2))


@pytest.mark.parametrize("loss", [theory.zero_one, theory.ramp])
def test_a_prediction_that_is_nan_is_neither_right_nor_wrong(loss):
    with pytest.raises(InputError, match="1 predictions are NaN"):
        loss([1.0, -1.0], [math.nan, -1.0])


def test_the_bound_on_new_data_covers():
    """One function alone has no complexity: Hoeffding's inequality, violated in at most a share delta of samples."""
    rng = np.random.default_rng(2)
    n, delta = 50, 0.1
    f = 1.5 * rng.normal(size=(4000, n)) + 0.8
    bound = [theory.zero_one_bound(float(theory.ramp(np.ones(n), row).mean()), 0.0, n, delta) for row in f]
    truth = 0.5 * math.erfc(0.8 / 1.5 / math.sqrt(2))
    assert np.mean(np.array(bound) < truth) <= delta


# --- Theorem 4.5


def test_theorem_4_5_for_small_chi2():
    alpha, lam, n, G1, chi = 50.0, 0.01, 400, 1.0, 0.1
    room = math.sqrt(math.log(10) / (2 * n))
    leading = (math.sqrt(lam) / alpha + 2 * math.sqrt(2) * G1 / math.sqrt(n)) * chi
    assert theory.classification_bound(chi**2, alpha, lam, n, 0.1, G1) == pytest.approx(leading + room, rel=1e-5)


def test_theorem_4_5_as_a_rate_is_weaker():
    for chi2 in (0.1, 2.0, 40.0):
        for alpha in (10.0, 100.0):
            symbols = (chi2, alpha, 0.05, 300, 0.05, 1.2)
            assert theory.classification_simple(*symbols) >= theory.classification_bound(*symbols)
    with pytest.raises(InputError, match="take classification_bound"):
        theory.classification_simple(400.0, 10.0, 0.05, 300, 0.05, 1.0)
    with pytest.raises(InputError, match="sqrt\\(n lam\\)"):
        theory.classification_simple(0.1, 2.0, 0.05, 300, 0.05, 1.0)


def test_after_training_every_ball_has_its_share():
    """The shares delta / ((k + 1) (k + 2)) sum to delta; the first ball takes half, and each ball doubles."""
    assert sum(1 / ((k + 1) * (k + 2)) for k in range(10_000)) == pytest.approx(1, abs=2e-4)
    alpha, n = 3.0, 200
    first = theory.zero_one_bound(0.2, theory.rademacher_bound(1e-3, alpha, n, 1.0), n, 0.05 / 2)
    assert theory.classification_after(0.2, 0.0, alpha, n, 0.05, 1.0) == first
    assert theory.classification_after(0.2, 1e-3, alpha, n, 0.05, 1.0) == first
    third = theory.zero_one_bound(0.2, theory.rademacher_bound(4e-3, alpha, n, 1.0), n, 0.05 / 12)
    assert theory.classification_after(0.2, 3e-3, alpha, n, 0.05, 1.0) == third
    assert theory.classification_after(0.2, math.inf, alpha, n, 0.05, 1.0) == math.inf


def ended_at(KL, *, replicates=4, se=0.01, wrong=0.1, label=1.0):
    """Records of a run of 10,000 samples, all fitted, that misses a share of 1000 new ones."""
    new = np.where(np.arange(1000) < 1000 * wrong, -0.5, 0.5)
    return xarray.Dataset(
        {
            "prediction": (("replicate", "time", "sample"), np.full((replicates, 1, 10_000), 0.9)),
            "label": ("sample", np.full(10_000, label)),
            "test_prediction": (("replicate", "test"), np.tile(new, (replicates, 1))),
            "test_label": ("test", np.ones(1000)),
            "kl_upper": ("bound_time", [KL]),
            "kl_upper_se": ("bound_time", [se]),
        },
        {"time": [2.0], "bound_time": [2.0]},
        {"suprema": [1.0] * 5, "alpha": 3.0, "decay": 1.0, "centred": 1, "scheme": "kernel"},
    )


def test_the_line_of_verify():
    """Its parts add up to the bound; errors beyond it violate; one replicate and KL without a bound prove nothing."""
    (line,) = minimiser.theorem_4_5(ended_at(0.1), [])
    kl = 0.1 + 0.01 * 3.1824
    assert line.verdict == HOLDS and line.measured == pytest.approx(0.1)
    assert line.bound == pytest.approx(theory.classification_after(0.1, kl, 3.0, 10_000, 0.05, 1.0), rel=1e-9)
    parts = [float(word) for word in line.note.split(",")[0].split(" + ")]
    assert sum(parts) == pytest.approx(line.bound, abs=2e-3) and "M = 0.256 nats" in line.note
    assert minimiser.theorem_4_5(ended_at(0.1, wrong=0.6), [])[0].verdict == VIOLATED
    assert minimiser.theorem_4_5(ended_at(0.1, replicates=1, se=np.nan), [])[0].verdict == INCONCLUSIVE
    assert minimiser.theorem_4_5(ended_at(0.1, label=0.5), [])[0].verdict == NOT_APPLICABLE
    assert "above 1 says nothing" in minimiser.theorem_4_5(ended_at(50.0), [])[0].note
    (line,) = minimiser.theorem_4_5(ended_at(np.inf, se=0.0), [])
    assert line.bound == np.inf and "no upper bound" in line.note
    M, share = theory.ball(kl, 0.05)
    assert M == 0.256 and share == 0.05 / 90


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: theory.mixture_chi2(0.5, 1.0), "alpha must be at least 1"),
        (lambda: theory.rademacher_simple(0.6, 1.0, 5, 1.0), "take rademacher_bound"),
        (lambda: theory.zero_one([0.5], [1.0]), r"labels \+1 and -1"),
        (lambda: theory.zero_one_bound(0.1, 0.1, 10, 1.0), "delta must be a probability"),
        (lambda: theory.rademacher_bound(-1.0, 1.0, 5, 1.0), "M must not be negative"),
        (lambda: theory.frozen_energy(np.eye(2), np.ones(3), 1.0, 0.1), "3 labels need K2"),
    ],
)
def test_what_is_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()
