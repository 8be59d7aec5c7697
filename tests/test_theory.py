"""The bounds of the kernel theorem: reference values, orders of magnitude, known solutions."""

import math

import numpy as np
import pytest

from meanfield import theory
from meanfield.errors import InputError

TANH = (1.0, 1.0, 0.769800, 1.0, 2.0)
ERF = (1.0, 1.128379, 0.967883, 1.128379, 2.256758)


def erf_kernel(x):
    """Tangent kernel of erf at p0, closed form."""
    gram = x @ x.T
    size = np.outer(1 + 2 * np.diag(gram), 1 + 2 * np.diag(gram))
    return 2 / np.pi * np.arcsin(2 * gram / np.sqrt(size)) + 4 / np.pi / np.sqrt(size - 4 * gram**2) * gram


P1_LAMBDA = float(np.linalg.eigvalsh(erf_kernel(np.array([[0.4], [1.0]])))[0])


def test_printed_constants():
    assert theory.A1(2.0, 5) == pytest.approx(43.595918, abs=1e-6)
    assert theory.A2(2.0, 5) == pytest.approx(86.383672, abs=1e-6)
    assert theory.common_bound(TANH) == 2.0


@pytest.mark.parametrize(
    ("n", "d", "Lambda", "alpha"), [(5, 5, 0.10168, 2e7), (500, 50, 0.09473, 7e11)], ids=["small", "large"]
)
def test_threshold_orders_of_magnitude(n, d, Lambda, alpha):
    """Lambda: tanh, inputs uniform on the sphere (seed 0, Mehler series)."""
    assert theory.threshold(Lambda, n, d, 0.01, TANH) == pytest.approx(alpha, rel=0.15)


def test_printed_bounds_on_a_problem_that_is_known():
    """d = 1, erf, alpha = 10, lam = 0.1: sqrt L = .0042 and KL = .00804 in truth."""
    symbols = dict(alpha=10.0, lam=0.1, Lambda=P1_LAMBDA, n=2, d=1, G=max(ERF))
    assert theory.loss_floor(**symbols) == pytest.approx(18.7, abs=0.05)
    assert theory.kl_bound(**symbols) == pytest.approx(1.1e6, rel=0.03)
    assert theory.root_loss_bound(20.0, **symbols) >= theory.loss_floor(**symbols)


def test_theorem_is_the_square_of_the_lemma():
    symbols = dict(alpha=10.0, lam=1e-4, Lambda=P1_LAMBDA, n=2, d=1, G=max(ERF))
    t = np.linspace(0, 20, 30)
    assert np.all(theory.loss_bound(t, **symbols) >= theory.root_loss_bound(t, **symbols) ** 2)
    assert theory.loss_bound(t, **symbols)[-1] == pytest.approx(2 * theory.loss_floor(**symbols) ** 2, rel=1e-3)


def test_threshold_closes_the_chain():
    """At the threshold the bound on KL, through Lemma 5.4 as printed, is half the radius."""
    n, d, Lambda, lam = 5, 5, 0.1, 0.01
    alpha = theory.threshold(Lambda, n, d, lam, TANH)
    KL = theory.kl_bound(alpha, lam, Lambda, n, d, max(TANH))
    assert theory.talagrand(KL, printed=True) == pytest.approx(theory.radius(Lambda, n, d, TANH) / 2)


@pytest.mark.parametrize("Lambda", [1e-6, 0.1, 5.0])
def test_radius_halves_the_kernel(Lambda):
    R = theory.radius(Lambda, 5, 5, TANH)
    assert theory.kernel_floor(Lambda, 5, R, TANH) == pytest.approx(Lambda / 2, rel=1e-9)


def test_radius_is_capped():
    assert theory.radius(1e6, 1, 3, TANH) == 2.0


def test_lemma_5_1_holds_for_a_shift():
    """W2 of a translation is its length; H moves less than the constants allow, e less than Le W2."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 3))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    z = rng.normal(size=(100_000, 4))

    def kernel_and_e(z):
        w, u = z[:, :-1] @ x.T, z[:, -1:]
        h = np.tanh(w)
        h1 = 1 - h**2
        H = (u * h1).T @ (u * h1) / len(z) * (x @ x.T) + h.T @ h / len(z)
        return H, (u * (-2 * h * h1 - h - w * h1)).mean(0)

    H0, e0 = kernel_and_e(z)
    Ac, Bc = theory.kernel_constants(TANH)
    for shift in (np.eye(4)[3] * 0.5, np.eye(4)[0] * 0.3, np.full(4, 0.4)):
        W = float(np.linalg.norm(shift))
        H, e = kernel_and_e(z + shift)
        assert np.abs(H - H0).max() <= Ac * W**2 + Bc * W
        assert np.abs(e - e0).max() <= theory.Le(TANH, W) * W


def test_talagrand_is_sharp_for_a_shift():
    assert theory.talagrand(0.5 * 3.0**2) == pytest.approx(3.0)
    assert theory.talagrand(1.0, printed=True) == 2.0


def linear_residual(t, *, alpha, lam, n, rate, L0, e):
    """Residual of dr/dt = -kappa H r + alpha lam e with everything along one direction."""
    x = theory.kappa(alpha, n) * rate
    return np.exp(-x * t) * math.sqrt(L0) + alpha * lam * e / x * (1 - np.exp(-x * t))


@pytest.mark.parametrize("grid", [np.linspace(0, 3, 50), np.concatenate(([0], np.geomspace(1e-4, 3, 20)))])
def test_certificate_is_exact_for_constant_coefficients(grid):
    symbols = dict(alpha=3.0, lam=0.05, n=4)
    rate, e, L0 = 0.3, 0.7, 0.9
    bound = theory.loss_certificate(grid, np.full(len(grid), e), [0.0, 3.0], [rate, rate], L0=L0, **symbols)
    np.testing.assert_allclose(bound, linear_residual(grid, rate=rate, L0=L0, e=e, **symbols), rtol=1e-12)


def bilinear(alpha=4.0, lam=0.2, T=2.0, steps=4000, n=3, d=3):
    """Bilinear closure h(w) = w by fine Runge-Kutta: times, sqrt L, e_rms, lambda_min(H), KL, E abs(b)^2."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, d))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    w = rng.normal(size=d)
    y = 0.9 * x @ w / np.abs(x @ w).max()
    eye = np.eye(d + 1)

    def drift_matrix(S):
        v = 2 * alpha / n * x.T @ (alpha * x @ S[:d, d] - y)
        B = np.zeros((d + 1, d + 1))
        B[:d, d] = B[d, :d] = v
        return B

    def rhs(S):
        A = lam * eye + drift_matrix(S)
        return -A @ S - S @ A + 2 * lam * eye

    S, dt, rows = eye.copy(), T / steps, []
    for k in range(steps + 1):
        f = alpha * x @ S[:d, d]
        H = S[d, d] * x @ x.T + x @ S[:d, :d] @ x.T
        B = drift_matrix(S)
        KL = 0.5 * (np.trace(S) - d - 1 - np.linalg.slogdet(S)[1])
        root = math.sqrt(np.mean((f - y) ** 2))
        e_rms = math.sqrt(np.mean((2 * f / alpha) ** 2))
        rows.append((k * dt, root, e_rms, np.linalg.eigvalsh(H)[0], KL, np.trace(B @ S @ B)))
        k1 = rhs(S)
        k2 = rhs(S + dt / 2 * k1)
        k3 = rhs(S + dt / 2 * k2)
        S = S + dt / 6 * (k1 + 2 * k2 + 2 * k3 + rhs(S + dt * k3))
    return np.array(rows).T, alpha, lam, n


def test_certificates_hold_on_the_bilinear_solution():
    (t, root, e, low, KL, b2), alpha, lam, n = bilinear()
    keep = np.arange(0, len(t), 40)
    bound = theory.loss_certificate(
        t[keep], e[keep], t[keep][::5], low[keep][::5], alpha=alpha, lam=lam, n=n, L0=root[0] ** 2
    )
    assert np.all(bound >= root[keep] * (1 - 1e-9))
    assert bound[-1] <= 20 * root[-1]  # a certificate, not a formality
    girsanov = theory.girsanov(t[keep], np.sqrt(b2[keep]), lam)
    energy = theory.energy_kl(lam, root[0] ** 2, root**2)
    assert np.all(girsanov >= KL[keep]) and np.all(energy >= KL - 1e-9)
    assert np.all(theory.energy_kl(lam, root[800] ** 2, root[800:] ** 2, KL[800]) >= KL[800:] - 1e-9)


def test_safe_minimum_looks_at_both_neighbours():
    low = theory.safe_minimum([0, 1, 2, 3, 4.5], [0, 2, 4], [3.0, 1.0, -0.5])
    np.testing.assert_array_equal(low, [1.0, 1.0, 0.0, 0.0])


def test_reference_travels_as_the_ornstein_uhlenbeck_process():
    rng = np.random.default_rng(1)
    a = math.exp(-0.3 * 2.0)
    z0 = rng.normal(size=(200_000, 3))
    z = a * z0 + math.sqrt(1 - a * a) * rng.normal(size=z0.shape)
    assert theory.travelled(2.0, 3, 0.3) == pytest.approx(((z - z0) ** 2).sum(1).mean(), rel=0.01)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: theory.lambda0(0.0, 5), "parallel"),
        (lambda: theory.lambda0(float("nan"), 5), "Lambda"),
        (lambda: theory.A1(math.inf, 5), "G must"),
        (lambda: theory.radius(0.1, 5, 5, (1, 1, math.inf, 1, 1)), "Assumption 4.2"),
        (lambda: theory.threshold(0.1, 5, 5, 0.0, TANH), "lam"),
        (lambda: theory.girsanov([0, 2, 1], [1, 1, 1], 0.1), "increasing"),
        (lambda: theory.girsanov([0, 1], [1, 1, 1], 0.1), "drift_rms"),
        (lambda: theory.talagrand(-1.0), "KL"),
    ],
)
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(InputError, match=words):
        call()
