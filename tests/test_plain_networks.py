"""Networks as practice has them: not centred, no noise, no decay, started at u = 0."""

import numpy as np
import pytest

from meanfield.cloud import gaussian_cloud, silent_cloud
from meanfield.flow import Flow
from meanfield.risk import Risk
from meanfield.units import Unit

RELU, D, N = Unit("relu"), 3, 4


def conventional(m: int) -> Risk:
    """sum_j a_j relu(b_j . x), which is alpha = m."""
    rng = np.random.default_rng(1)
    return Risk(rng.standard_normal((N, D)), rng.standard_normal(N), RELU, alpha=float(m), centred=False)


def exact_flow(risk: Risk, z: np.ndarray, time: float) -> np.ndarray:
    """dz/dt = -(2 alpha / n) sum_i r_i grad psi_i by another solver, written out."""
    from scipy.integrate import solve_ivp

    def drift(_, flat):
        b, a = flat.reshape(z.shape)[:, :-1], flat.reshape(z.shape)[:, -1]
        hidden = np.maximum(b @ risk.x.T, 0)
        c = -(2 * risk.alpha / N) * (risk.alpha * (a @ hidden) / len(a) - risk.y)
        return np.column_stack([(a[:, None] * (hidden > 0) * c) @ risk.x, hidden @ c]).ravel()

    found = solve_ivp(drift, (0, time), z.ravel(), method="DOP853", rtol=1e-10, atol=1e-12, max_step=time / 200)
    return found.y[:, -1].reshape(z.shape)


def test_a_silent_cloud_says_nothing_and_is_a_prefix():
    small, large = (silent_cloud(m, RELU, D, seed=5) for m in (10, 20))
    np.testing.assert_array_equal(small.z, large.z[:10])
    np.testing.assert_array_equal(small.z[:, -1], 0)
    np.testing.assert_allclose(small.z[:, :-1] * D**0.5, gaussian_cloud(10, RELU, D, seed=5).z[:, :-1], rtol=1e-15)
    assert small.reference is None and not np.array_equal(small.z, silent_cloud(10, RELU, D, seed=5, replicate=1).z)
    risk = conventional(10)
    np.testing.assert_array_equal(risk.prediction(small), 0)
    # Where u = 0 nothing pulls at theta: the tangent kernel is that of the outer layer.
    np.testing.assert_allclose(risk.gram(small), risk.gram(small, "u"), rtol=1e-14)


@pytest.mark.parametrize(("train", "tolerance"), [("both", 1e-5), ("u", 1e-9)])
def test_a_step_without_noise_or_decay_follows_gradient_flow(train, tolerance):
    m, time, steps = 6, 0.2, 128
    risk = conventional(m)
    start = cloud = silent_cloud(m, RELU, D, seed=2)
    flow = Flow(risk, lam=0.0, prior=None, scheme="kernel2", train=train)
    for _ in range(steps):
        cloud = flow.step(cloud, time / steps)
    if train == "both":
        wanted = exact_flow(risk, start.z, time)
        np.testing.assert_allclose(cloud.z, wanted, atol=tolerance * np.abs(wanted - start.z).max())
    else:
        # Linear: a(t) = sum over modes of H2, whatever the step.
        np.testing.assert_array_equal(cloud.z[:, :-1], start.z[:, :-1])
        gram = risk.gram(start, "u")
        values, vectors = np.linalg.eigh(gram)
        left = vectors @ (np.exp(-risk.kappa * values * time) * (vectors.T @ -risk.y))
        np.testing.assert_allclose(risk.residual(risk.prediction(cloud)), left, atol=tolerance)
    assert risk.value(cloud) < 0.9 * risk.value(start)
