"""Population risks against means over inputs and runs on samples; rates, backends, memory, refusals. Cost: 8 s."""

import math
import pickle
import tracemalloc

import cases
import numpy as np
import pytest

import meanfield as mf
from meanfield import backends, interactions, parallel, population
from meanfield.cloud import cloud_at
from meanfield.errors import InputError
from meanfield.estimate import student_factor
from meanfield.population import CLOSED, Pairwise
from meanfield.units import ACTIVATIONS, Activation, Unit

every = pytest.mark.parametrize(("activation", "inputs"), CLOSED, ids=lambda part: part)
ALPHA, M, D = 1.5, 6, 3
RNG = np.random.default_rng(11)
TEACHER = cloud_at(RNG.normal(size=(4, D + 1)), weights=np.array([1.0, 2.0, 3.0, 1.0]))
START = cloud_at(RNG.normal(size=(M, D + 1)), weights=np.arange(1.0, M + 1))


def drawn(n, inputs, seed):
    """Inputs, one a row."""
    x = np.random.default_rng(seed).normal(size=(n, D))
    return x / np.linalg.norm(x, axis=1, keepdims=True) if inputs == "sphere" else x


def outputs(activation, x, cloud):
    """E_p psi at each input."""
    values = ACTIVATIONS[activation].value(x @ cloud.z[:, :-1].T) * cloud.z[:, -1]
    return values.mean(axis=1) if cloud.weights is None else values @ cloud.weights


# --- values and gradients


@every
def test_value_and_gradient_are_means_over_inputs(activation, inputs):
    """Within 3 standard errors of 200,000 inputs: the risk, and every coordinate of every particle's gradient."""
    objective = population.risk(activation, TEACHER, inputs=inputs, alpha=ALPHA)
    x = drawn(200_000, inputs, seed=1)
    gap = ALPHA * outputs(activation, x, START) - outputs(activation, x, TEACHER)
    theta, u = START.z[:, :-1], START.z[:, -1]
    h, h1 = ACTIVATIONS[activation].value_and_first(x @ theta.T)
    samples = [gap**2]
    samples += [2 * ALPHA * gap * u[j] * h1[:, j] * x[:, k] for j in range(M) for k in range(D)]
    samples += [2 * ALPHA * gap * h[:, j] for j in range(M)]
    gradient = objective.gradient(START)
    truth = np.concatenate([[objective.value(START)], gradient[:, :-1].ravel(), gradient[:, -1]])
    assert cases.standard_errors(np.transpose(samples), truth) < 3
    size = np.std(samples, axis=1) / math.sqrt(len(x))
    assert np.median(np.abs(truth) / size) > 10  # the errors are small beside what is compared


@every
def test_a_network_that_is_its_teacher_has_no_risk(activation, inputs):
    objective = population.risk(activation, TEACHER, inputs=inputs)
    assert abs(objective.value(TEACHER)) < 1e-14
    # Near a theta of its own a kernel's angle is known to half its digits.
    assert np.abs(objective.gradient(TEACHER)).max() < 1e-7
    assert population.risk(activation, None, inputs=inputs).value(TEACHER) == pytest.approx(objective.constant)


@every
def test_a_run_is_that_of_many_samples(activation, inputs):
    """Without noise, predictions and risk at the end agree with those of runs on 10^5 samples: eight runs, Student."""
    at = drawn(5, inputs, seed=3)

    def ran(objective):
        flow = mf.Flow(objective, lam=0.0, scheme="euler", eta=0.2, allow_unstable=True)
        cloud = START
        for _ in range(5):
            cloud = flow.step(cloud)
        return [*outputs(activation, at, cloud), exact.value(cloud)]

    exact = population.risk(activation, TEACHER, inputs=inputs)
    sampled = []
    for one in range(8):
        x = drawn(100_000, inputs, seed=(21, one))
        sampled.append(
            ran(mf.Risk(x, outputs(activation, x, TEACHER), Unit(activation), centred=False, backend="numpy"))
        )
    found = ran(exact)
    assert cases.standard_errors(sampled, found) < student_factor(8, 0.9995)
    assert found[-1] < 0.8 * exact.value(START)
    np.testing.assert_allclose(np.mean(sampled, axis=0), found, rtol=0.05, atol=3e-3)


def test_the_risk_falls_as_fast_as_its_gradient_says():
    """dF/dt = -E|grad dF/dp|^2 along the flow without noise: the energy spent in a fine run is what was lost."""
    objective = population.risk("erf", TEACHER)
    flow, cloud = mf.Flow(objective, lam=0.0, scheme="euler", eta=2e-3), START
    values, speeds = [], []
    for _ in range(201):
        values.append(objective.value(cloud))
        speeds.append(float(cloud.mean((objective.gradient(cloud) ** 2).sum(axis=1))))
        cloud = flow.step(cloud)
    spent = 2e-3 * (sum(speeds) - (speeds[0] + speeds[-1]) / 2)
    assert values[0] - values[-1] == pytest.approx(spent, rel=2e-3)
    assert max(np.diff(values)) < 0


def test_simulate_takes_a_population():
    objective = population.risk("relu", TEACHER)
    run = mf.simulate(mf.Flow(objective, lam=0.01), mf.gaussian_cloud(64, Unit("relu"), D), 0.5, replicates=2,
                      observables=["loss"], bounds=0, quiet=True)  # fmt: skip
    assert run.data.loss.values[:, -1].mean() < 0.9 * run.data.loss.values[:, 0].mean()
    assert objective.value(run.clouds[0]) == run.data.loss.values[0, -1]


# --- rates


@every
def test_rates_are_eigenvalues_over_inputs(activation, inputs):
    """E_x d psi d psi' for theta, at most 3 x 3, and E_x h^2, from samples."""
    x = drawn(200_000, inputs, seed=5)
    inner, outer = CLOSED[activation, inputs].rates(START.z)
    for j, z in enumerate(START.z):
        h, h1 = ACTIVATIONS[activation].value_and_first(x @ z[:-1])
        outward = z[-1] ** 2 * (x * (h1**2)[:, None]).T @ x / len(x)
        assert inner[j] == pytest.approx(np.linalg.eigvalsh(outward)[-1], rel=0.02)
        assert outer[j] == pytest.approx((h**2).mean(), rel=0.02)


@every
@pytest.mark.parametrize("train", ["both", "u", "theta"])
def test_the_stability_limit_is_safe_and_near(activation, inputs, train):
    """Against 2 alpha^2 lambda_max of the tangent kernel over many inputs; exact for equal neurons."""
    x = drawn(20_000, inputs, seed=6)
    columns = {"both": slice(None), "u": slice(-1, None), "theta": slice(None, -1)}[train]
    objective = population.risk(activation, None, inputs=inputs, alpha=2.0)
    for cloud, slack in ((START, 2), (cloud_at(START.z[:1]), 2 if train == "both" else 1)):
        h, h1 = ACTIVATIONS[activation].value_and_first(x @ cloud.z[:, :-1].T)
        slopes = np.concatenate([(h1 * cloud.z[:, -1])[:, :, None] * x[:, None], h[:, :, None]], axis=2)[:, :, columns]
        mass = np.full(cloud.m, 1 / cloud.m) if cloud.weights is None else cloud.weights
        flat = (slopes * np.sqrt(mass)[:, None]).reshape(len(x), -1)
        largest = np.linalg.eigvalsh(flat.T @ flat / len(x))[-1]
        stated = objective.stiffness(cloud, train)
        assert 0.97 * 8 * largest <= stated <= 1.03 * slack * 8 * largest


def test_without_rates_nothing_is_known_of_a_step():
    objective = Pairwise(cases.quartic(), interactions.Gaussian(1.0), alpha=2.0)
    assert objective.stiffness(START) == 2 * 2 * 30
    with pytest.raises(InputError, match="give eta as a number"):
        mf.Flow(Pairwise(None, interactions.Gaussian(1.0)), lam=0.0).step(START)
    with pytest.raises(InputError, match="above the stability limit"):
        mf.Flow(population.risk("relu", TEACHER), lam=0.0, eta=10.0).step(START)


# --- where pairs are worked


@every
def test_backends_agree(activation, inputs):
    cloud = mf.gaussian_cloud(300, dimension=D + 1)
    known = population.risk(activation, TEACHER, inputs=inputs, backend="numpy")
    for name in ("auto", "cpu", "keops"):
        if name != "auto" and backends.unavailable(name):
            continue
        other = population.risk(activation, TEACHER, inputs=inputs, backend=name)
        assert other.value(cloud) == pytest.approx(known.value(cloud), rel=1e-12)
        size = np.abs(known.gradient(cloud)).max()
        np.testing.assert_allclose(other.gradient(cloud), known.gradient(cloud), rtol=0, atol=1e-12 * size)


def test_a_kernel_of_your_own_and_its_dtype():
    """k = z . z' on 32-bit particles: F = |E z|^2, gradient 2 E z, worked in numpy however many pairs there are."""

    class Inner:
        def sums(self, points, z, mass):
            return points @ (mass @ z), np.broadcast_to(mass @ z, points.shape)

    cloud = mf.gaussian_cloud(400, dimension=2, dtype="float32")
    objective = Pairwise(None, Inner(), constant=3.0)
    mean = cloud.z.astype(float).mean(axis=0)
    assert objective.value(cloud) == pytest.approx(3 + mean @ mean, rel=1e-5)
    assert objective.gradient(cloud).dtype == np.float32
    np.testing.assert_allclose(objective.gradient(cloud), np.broadcast_to(2 * mean, cloud.z.shape), atol=1e-6)


@pytest.mark.parametrize("backend", ["numpy", "auto"])
def test_no_array_of_all_pairs(backend):
    objective = population.risk("relu", TEACHER, backend=backend)
    objective.gradient(mf.gaussian_cloud(300, dimension=D + 1))  # what is loaded once is not counted
    cloud = mf.gaussian_cloud(4000, dimension=D + 1)
    tracemalloc.start()
    objective.gradient(cloud)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4000 * 4000 * 8 / 8


def test_equal_bits_for_any_number_of_threads():
    found = []
    try:
        for count in (1, 2, 3):
            parallel.set_threads(count)
            objective = population.risk("relu", TEACHER)
            found.append(objective.gradient(mf.gaussian_cloud(700, dimension=D + 1)))
    finally:
        parallel.set_threads(None)
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)


def test_an_objective_can_be_sent_to_another_process():
    objective = population.risk("erf", TEACHER, alpha=2.0)
    twin = pickle.loads(pickle.dumps(objective))
    assert twin.value(START) == objective.value(START)
    np.testing.assert_array_equal(twin.gradient(START), objective.gradient(START))


# --- what is refused


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: population.risk("erf", TEACHER, inputs="sphere"),
            "no closed form here for 'erf' and inputs uniform",
        ),
        (lambda: population.risk("tanh", TEACHER), "'tanh' and Gaussian inputs: take one of erf, relu"),
        (lambda: population.risk(Activation("relu", ACTIVATIONS["relu"].jet)), "'relu of your own'"),
        (lambda: population.risk("relu", inputs="cube"), "'gaussian' or 'sphere', got 'cube'"),
        (lambda: population.risk(Unit("relu", bias=True)), "with a bias"),
        (lambda: population.risk("rleu"), "Did you mean 'relu'"),
        (lambda: population.risk("relu", np.ones(3)), r"shape \(m, D\), got shape \(3,\)"),
        (lambda: population.risk("relu", TEACHER, backend="cpux"), "Did you mean 'cpu'"),
        (lambda: population.risk("relu", alpha=0.0), "alpha must be a number from"),
        (lambda: Pairwise(lambda z: z, interactions.ReluPair()), "V of Pairwise is a Potential"),
        (lambda: Pairwise(None, "relu"), "U of Pairwise is a kernel"),
        (lambda: Pairwise(None, interactions.ReluPair(), math.nan), "constant of Pairwise must be a finite number"),
        (lambda: population.risk("relu", TEACHER).gradient(cloud_at(np.ones((2, 3)))), "points"),
    ],
)
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(InputError, match=words):
        call()
