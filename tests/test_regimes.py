"""What tells the kernel regime from feature learning: closed forms, exact zeros, biases that are gone, rates."""

import dataclasses
import math

import numpy as np
import pytest
import small

from meanfield import regimes
from meanfield.bounds import centred_gram
from meanfield.cloud import cloud_at, gaussian_cloud
from meanfield.errors import InputError
from meanfield.flow import Flow
from meanfield.linearised import Linearised
from meanfield.lockstep import distance_to_linearised
from meanfield.minibatch import Minibatch
from meanfield.observables import OBSERVABLES, Unavailable
from meanfield.risk import Risk
from meanfield.simulate import simulate
from meanfield.units import Unit


def replicates(flow, count=3, steps=4, **options):
    clouds = [small.cloud(flow, replicate=r, **options) for r in range(count)]
    for _ in range(steps):
        clouds = [flow.step(cloud, 0.02) for cloud in clouds]
    return clouds


def read(name, clouds, flow, **more):
    return OBSERVABLES[name].function(clouds, flow, **more)


# --- the kernel


@pytest.mark.parametrize("count", [1, 3])
def test_nothing_has_moved_at_the_start(count):
    flow = small.flow()
    clouds = replicates(flow, count, steps=0)
    assert read("kernel_drift", clouds, flow)[:2] == (0.0, 0.0)
    start, y = flow.objective.gram_start(), flow.objective.y
    value, error, _ = read("kernel_alignment", clouds, flow)
    assert error == 0 and value == pytest.approx(y @ start @ y / (y @ y * np.linalg.norm(start)), rel=1e-12)


@pytest.mark.parametrize("centred", [True, False])
def test_frozen_features_have_a_kernel_that_cannot_move(centred):
    flow = small.flow(train="u", centred=centred)
    value, error, _ = read("kernel_drift", replicates(flow), flow)
    assert value == pytest.approx(0.0, abs=1e-14) and error == pytest.approx(0.0, abs=1e-7)


def test_a_linear_unit_has_the_kernel_of_its_second_moments():
    """psi = u theta . x: H = E[u^2] X X' + X E[theta theta'] X', from the cloud's moments without any kernel code."""
    flow = small.flow(unit="linear", alpha=8.0)
    (cloud,) = replicates(flow, 1)
    x = flow.objective.inputs

    def kernel(z):
        return (z[:, -1] ** 2).mean() * x @ x.T + x @ (z[:, :-1].T @ z[:, :-1] / len(z)) @ x.T

    moved = kernel(cloud.z) - kernel(cloud.reference)
    value, error, source = read("kernel_drift", [cloud], flow)
    assert value == pytest.approx(np.linalg.norm(moved) / np.linalg.norm(2 * x @ x.T), rel=1e-10)
    assert math.isnan(error) and "biased" in source and value > 1e-3


def test_a_network_of_width_m_has_its_own_kernel():
    flow = small.flow(unit="linear", centred=False)
    clouds = replicates(flow, 2)
    x = flow.objective.inputs

    def kernel(z):
        return (z[:, -1] ** 2).mean() * x @ x.T + x @ (z[:, :-1].T @ z[:, :-1] / len(z)) @ x.T

    starts = [kernel(cloud.origin()) for cloud in clouds]
    each = [
        np.linalg.norm(kernel(c.z) - start) / np.linalg.norm(start) for c, start in zip(clouds, starts, strict=True)
    ]
    value, error, _ = read("kernel_drift", clouds, flow)
    assert value == pytest.approx(np.mean(each), rel=1e-10) and error == pytest.approx(abs(each[0] - each[1]) / 2)
    y = flow.objective.y
    along = [y @ kernel(c.z) @ y / (y @ y * np.linalg.norm(kernel(c.z))) for c in clouds]
    assert read("kernel_alignment", clouds, flow).value == pytest.approx(np.mean(along), rel=1e-10)


def test_a_start_of_ones_own_is_not_taken_for_another():
    """Two clouds of one flow with one seed, moved by the same shift from other starts."""
    flow = small.flow(centred=False)
    for seed in (0, 1):
        z = np.random.default_rng(seed).normal(size=(64, 4))
        cloud = cloud_at(z).replace(z=z + 0.1, step=1)
        before, after = (flow.objective.gram(cloud_at(v)) for v in (z, z + 0.1))
        wanted = np.linalg.norm(after - before) / np.linalg.norm(before)
        assert read("kernel_drift", [cloud], flow).value == pytest.approx(wanted, rel=1e-10)
        change = flow.objective.prediction(cloud_at(z + 0.1)) - flow.objective.prediction(cloud_at(z))
        assert read("output_change", cloud, flow) == pytest.approx(np.sqrt((change**2).mean()), rel=1e-10)


def test_products_of_replicates_have_no_bias():
    """Matrices M + noise: the mean over trials of the pairs' mean is |M|^2; the plain square has |noise|^2 more."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(5, 5))
    found, errors, plain = [], [], []
    for _ in range(2000):
        matrices = list(truth + rng.normal(size=(4, 5, 5)))
        value, error = regimes.jackknife(matrices, regimes.off_diagonal_mean)
        found.append(value)
        errors.append(error**2)
        plain.append((matrices[0] ** 2).sum())
    square = (truth**2).sum()
    spread = np.std(found) / math.sqrt(len(found))
    assert abs(np.mean(found) - square) < 4 * spread < 1 < np.mean(plain) - square
    assert 1 < np.mean(errors) / np.var(found) < 1.6  # a jackknife is on the safe side (Efron and Stein)


def test_noise_alone_is_no_drift():
    """Independent clouds of p0 in place of the trained: the truth is zero, one replicate reads the noise of m."""
    flow = small.flow()
    values, single = [], []
    for k in range(20):
        clouds = []
        for r in range(4):
            cloud = small.cloud(flow, 256, seed=2 * k, replicate=r)
            other = small.cloud(flow, 256, seed=2 * k + 1, replicate=r).z
            clouds.append(cloud.replace(z=other, step=1))
        value, error, _ = read("kernel_drift", clouds, flow)
        values.append((value, error))
        single.append(read("kernel_drift", clouds[:1], flow).value)
    inside = sum(value <= 2 * error for value, error in values)
    assert inside >= 15 and min(single) > 0.03 and np.median([v for v, _ in values]) < np.median(single) / 2


def test_a_rank_one_kernel_along_the_labels_is_aligned():
    x = np.array([[1.0], [-0.5], [0.25]])
    risk = Risk(x, 0.8 * x[:, 0], Unit("linear"), 3.0)
    flow = Flow(risk, 0.05, 0.02)
    for steps in (0, 3):
        clouds = replicates(flow, 3, steps)
        assert read("kernel_alignment", clouds, flow).value == pytest.approx(1.0, rel=1e-9)
    crossed = dataclasses.replace(risk, y=np.array([0.5, 1.0, 0.0]))  # orthogonal to x
    assert read("kernel_alignment", clouds, Flow(crossed, 0.05)).value == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(Unavailable, match="labels are zero"):
        read("kernel_alignment", clouds, Flow(dataclasses.replace(risk, y=np.zeros(3)), 0.05))


def test_alignment_is_a_cosine_that_grows_as_features_are_learned():
    flow = small.flow(alpha=1.0, lam=0.0, seed=3)
    clouds = replicates(flow, 3, m=512)
    for _ in range(40):
        clouds = [flow.step(cloud, 1.0) for cloud in clouds]
    late, first = read("kernel_alignment", clouds, flow), read("kernel_alignment", replicates(flow, 3, 0, m=512), flow)
    assert first.value + 3 * late.se < late.value < 1
    kernels = [centred_gram(cloud, flow) for cloud in clouds]
    y = flow.objective.y
    mean = np.mean(kernels, axis=0)
    assert late.value == pytest.approx(y @ mean @ y / (y @ y * np.linalg.norm(mean)), abs=0.02)


# --- outputs and test sets


def test_the_output_has_changed_from_its_start():
    for centred in (True, False):
        flow = small.flow(centred=centred)
        (cloud,) = replicates(flow, 1)
        f, before = flow.objective.prediction(cloud), 0.0
        if not centred:
            before = flow.objective.prediction(cloud.replace(z=cloud.origin(), reference=None))
        assert read("output_change", cloud, flow) == pytest.approx(np.sqrt(((f - before) ** 2).mean()), rel=1e-12)


def test_the_training_set_as_test_set_has_the_training_loss():
    flow = small.flow()
    risk = flow.objective
    names = ["loss", "loss_unbiased", "test_loss", "test_loss_unbiased"]
    run = simulate(flow, small.cloud(flow), 0.2, replicates=3, observables=names, bounds=2, test=(risk.x, risk.y))
    at = run.data.sel(time=run.data.bound_time.values)
    np.testing.assert_allclose(run.data.test_loss, at.loss, rtol=1e-12)
    np.testing.assert_allclose(run.data.test_loss_unbiased, at.loss_unbiased, rtol=1e-10)
    assert (run.data.test_loss_unbiased_se[1:] > 0).all()


def test_without_a_test_set_nothing_is_said_of_one():
    flow = small.flow()
    run = simulate(flow, small.cloud(flow), 0.1, replicates=2, observables=["test_loss", "loss"], bounds=1)
    assert "test_loss" not in run.data and "no test set" in run.metadata["absent"]["test_loss"]


@pytest.mark.parametrize("loss", ["square", "logistic"])
def test_a_test_set_has_the_loss_of_the_risk(loss):
    flow, (x, y) = small.flow(loss=loss), small.data(7, 3, seed=8)
    (cloud,) = replicates(flow, 1)
    f = flow.objective.predict(cloud, x)
    wanted = ((f - y) ** 2).mean() if loss == "square" else np.log1p(np.exp(-y * f)).mean()
    held_out = dataclasses.replace(flow.objective, x=x, y=y)
    assert read("test_loss", cloud, flow, test=held_out) == pytest.approx(wanted, rel=1e-12)


# --- beside the linearisation


@pytest.mark.parametrize(("unit", "centred"), [("tanh", True), ("relu", False)])
def test_what_is_linear_in_what_is_trained_is_its_linearisation(unit, centred):
    flow = small.flow(unit=unit, centred=centred, train="u")
    found = distance_to_linearised(flow, small.cloud(flow, 64), 1.0, replicates=2)
    assert found.distance.max() < 1e-12 and found.loss[0, -1] < 0.9 * found.loss[0, 0]
    np.testing.assert_allclose(found.loss, found.loss_linearised, rtol=1e-10)


def test_both_are_the_runs_that_simulate_makes():
    """On a fixed grid: the network's run, and the run of `Linearised` with the same seed."""
    flow = small.flow("kernel", 0.05)
    cloud = small.cloud(flow, 64)
    found = distance_to_linearised(flow, cloud, 0.23, replicates=1)
    whole = simulate(flow, cloud, 0.23, replicates=1, observables=["loss", "prediction"], bounds=0)
    linear = Linearised(flow.objective, cloud)
    other = simulate(dataclasses.replace(flow, objective=linear), cloud, 0.23, replicates=1, observables=["loss"])
    np.testing.assert_allclose(found.time, whole.data.time, rtol=1e-12)
    np.testing.assert_allclose(found.loss, whole.data.loss, rtol=1e-12)
    np.testing.assert_allclose(found.loss_linearised, other.data.loss, rtol=1e-10)
    gap = whole.data.prediction[0, -1] - linear.prediction(other.clouds[0])
    np.testing.assert_allclose(found.difference[0, -1], gap, atol=1e-12)
    assert np.isnan(found.distance_unbiased).all()


def test_the_distance_falls_as_one_over_alpha():
    """Particles move by O(1/alpha) until the loss has fallen; the second order of alpha psi is then O(1/alpha)."""
    alphas, read = np.array([20.0, 40.0, 80.0]), []
    for alpha in alphas:
        flow = small.flow(alpha=alpha, lam=0.0)
        found = distance_to_linearised(flow, small.cloud(flow, 256), 40 / alpha**2, replicates=2, every=100)
        read.append(float(found.distance[:, -1].mean()))
    order = np.polyfit(np.log(alphas), np.log(read), 1)[0]
    assert order == pytest.approx(-1.0, abs=0.15)


def test_what_has_no_linearisation_is_refused():
    flow = small.flow()
    batches = dataclasses.replace(flow, objective=Minibatch(flow.objective, 4), eta=0.01)
    with pytest.raises(InputError, match="a flow of a Risk, got Minibatch"):
        distance_to_linearised(batches, small.cloud(flow), 1.0)
    with pytest.raises(InputError, match="positive"):
        distance_to_linearised(flow, gaussian_cloud(8, Unit("tanh"), 3), 0.0)
