"""Identities that hold for every objective of `cases.OBJECTIVES`, and what is refused. Cost: 2 s."""

import itertools

import cases
import numpy as np
import pytest
from cases import OBJECTIVES, network

from meanfield.cloud import cloud_at, gaussian_cloud
from meanfield.errors import InputError
from meanfield.flow import Flow
from meanfield.linearised import Linearised
from meanfield.minibatch import Minibatch
from meanfield.objectives import Objective, Potential
from meanfield.risk import Risk
from meanfield.units import Unit

every = pytest.mark.parametrize("name", OBJECTIVES)


def close(a, b, tolerance):
    """Equal to `tolerance` of the larger one's size."""
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


# --- values, first variations, gradients


@every
def test_gradient_is_that_of_the_first_variation(name):
    cloud = OBJECTIVES[name].cloud()
    objective = OBJECTIVES[name].build(cloud)
    step, quotient = 1e-5, np.empty_like(cloud.z)
    for k in range(cloud.dimension):
        shift = step * np.eye(cloud.dimension)[k]
        ahead, behind = (objective.first_variation(cloud, cloud.z + s) for s in (shift, -shift))
        quotient[:, k] = (ahead - behind) / (2 * step)
    close(objective.gradient(cloud), quotient, 1e-8)


@every
def test_first_variation_is_the_slope_of_the_value_along_mixtures(name):
    """(1 - s) p + s q has the particles of both; those of q are matched to the same references and frozen particles."""
    p = OBJECTIVES[name].cloud()
    objective = OBJECTIVES[name].build(p)
    mass = np.full(p.m, 1 / p.m) if p.weights is None else p.weights
    points = np.concatenate([p.z, cases.displaced(p.z, 0.7)])

    def mixture(s):
        weights = np.concatenate([(1 - s) * mass, s * mass])
        return p.replace(z=points, reference=np.concatenate([p.reference] * 2), weights=weights)

    s, step = 0.3, 1e-4
    quotient = (objective.value(mixture(s + step)) - objective.value(mixture(s - step))) / (2 * step)
    variation = objective.first_variation(mixture(s), points)
    assert mass @ (variation[p.m :] - variation[: p.m]) == pytest.approx(quotient, rel=1e-7)


@pytest.mark.parametrize(("name", "scheme"), cases.PAIRS)
def test_a_particle_split_into_two_of_half_the_weight_gives_the_same_flow(name, scheme):
    case = OBJECTIVES[name]
    whole = case.cloud()
    mass = np.full(whole.m, 1 / whole.m) if whole.weights is None else whole.weights
    rows = np.append(np.arange(whole.m), 2)
    halves = mass[rows] * np.where(rows == 2, 0.5, 1.0)
    split = whole.replace(z=whole.z[rows], reference=whole.reference[rows], weights=halves)

    def moved(cloud):
        # The literal scheme has 1/m in its gradient, with m the number of particles and not a sum of weights.
        eta = 0.01 * (cloud.m if scheme == "euler_literal" else 1)
        flow = Flow(case.build(cloud), lam=0.0, scheme=scheme, allow_unstable=True)
        for _ in range(3):
            cloud = flow.step(cloud, eta)
        return cloud

    one, two = moved(whole), moved(split)
    assert np.abs(one.z - whole.z).max() > 1e-3
    close(two.z, one.z[rows], 1e-12)


@pytest.mark.parametrize("name", cases.TANGENT)
def test_drift_and_tangent_agree(name):
    """df/dt = -kappa H r along the drift."""
    cloud = OBJECTIVES[name].cloud()
    objective = OBJECTIVES[name].build(cloud)
    for train, columns in (("both", slice(None)), ("u", slice(-1, None)), ("theta", slice(None, -1))):
        r, gram, _ = objective.tangent(cloud, train)
        step, drift = 1e-5, np.zeros_like(cloud.z)
        drift[:, columns] = -objective.gradient(cloud)[:, columns]
        ahead, behind = (objective.prediction(cloud.replace(z=cloud.z + s * drift)) for s in (step, -step))
        close((ahead - behind) / (2 * step), -objective.kappa * gram @ r, 1e-8)
        assert np.linalg.eigvalsh(gram)[0] > -1e-12 * np.trace(gram)


@pytest.mark.parametrize("name", [name for name in cases.TANGENT if "relu" not in name])
@pytest.mark.parametrize("train", ["both", "u", "theta"])
def test_generator_is_the_rate_of_decay_and_noise(name, train):
    """alpha e is df/ds along z -> e^-s z + noise of variance 2 s: by differences in z, exact in the noise."""
    cloud = OBJECTIVES[name].cloud()
    objective = OBJECTIVES[name].build(cloud)
    e = objective.tangent(cloud, train, 1.0)[2]
    moving = {"both": range(cases.D), "u": [cases.D - 1], "theta": range(cases.D - 1)}[train]
    columns = np.isin(np.arange(cases.D), list(moving))
    total, step = np.zeros(5), 1e-4

    def prediction(shift):
        # One and the same shift of particle and reference: they share their noise, not their decay.
        return objective.prediction(cloud.replace(z=cloud.z + shift, reference=cloud.reference + shift))

    for k in moving:
        total += (
            prediction(step * np.eye(cases.D)[k]) - 2 * prediction(0.0) + prediction(-step * np.eye(cases.D)[k])
        ) / step**2

    def decayed(s):
        return objective.prediction(
            cloud.replace(z=cloud.z * (1 - s * columns), reference=cloud.reference * (1 - s * columns))
        )

    total += (decayed(step) - decayed(-step)) / (2 * step)
    close(objective.alpha * e, total, 2e-6)


# --- sums and multiples


def test_objectives_add_and_scale():
    cloud = OBJECTIVES["sum"].cloud()
    a, b, c = network(), cases.quartic(), network("erf")
    combined = a + 2.0 * b + c * 0.5
    expected = a.value(cloud) + 2 * b.value(cloud) + 0.5 * c.value(cloud)
    assert combined.value(cloud) == pytest.approx(expected, rel=1e-14)
    assert len(combined.terms) == 3
    assert combined.stiffness(cloud) == pytest.approx(a.stiffness(cloud) + 60 + 0.5 * c.stiffness(cloud))
    assert combined.network is None and combined.tangent(cloud) is None
    for nonsense in (lambda: a + 1, lambda: a * b, lambda: "2" * a):
        with pytest.raises(TypeError):
            nonsense()


def test_what_is_recorded_of_a_sum_is_over_all_data():
    cloud = OBJECTIVES["sum"].cloud()
    combined = 2.0 * (Minibatch(network(), 2) + cases.quartic())
    assert combined.full.value(cloud) == pytest.approx(2 * (network().value(cloud) + cases.quartic().value(cloud)))


# --- minibatches


@pytest.mark.parametrize("size", [1, 2, 4, 5])
def test_gradients_of_all_batches_average_to_the_full_one(size):
    risk, cloud = network(loss="logistic"), OBJECTIVES["minibatch"].cloud()
    batches = Minibatch(risk, size)
    gradients = [batches.on(np.array(rows)).gradient(cloud) for rows in itertools.combinations(range(5), size)]
    close(np.mean(gradients, axis=0), risk.gradient(cloud), 1e-13)


def test_batches_are_drawn_uniformly_step_by_step():
    """All ten pairs of five samples equally often, and the mean gradient right, within 4 standard errors."""
    cloud, batches = OBJECTIVES["minibatch"].cloud(), Minibatch(network(), 2)
    steps = [cloud.replace(step=k) for k in range(1500)]
    drawn = [tuple(batches.batch(at)) for at in steps]
    counts = np.array([drawn.count(pair) for pair in itertools.combinations(range(5), 2)])
    assert counts.sum() == len(drawn)
    assert np.all(np.abs(counts - 150) <= 4 * np.sqrt(150 * 0.9))
    lookup = {pair: batches.on(np.array(pair)).gradient(cloud) for pair in set(drawn)}
    gradients = [lookup[pair] for pair in drawn]
    assert cases.standard_errors(gradients, batches.risk.gradient(cloud)) < 4


def test_batches_differ_between_steps_and_replicates_and_are_repeatable():
    cloud, batches = OBJECTIVES["minibatch"].cloud(), Minibatch(network(), 3)

    def series(replicate):
        return [tuple(batches.batch(cloud.replace(step=k, replicate=replicate))) for k in range(12)]

    assert len(set(series(0))) > 4
    assert series(0) == series(0) != series(1)
    assert batches.batch(cloud).tolist() == sorted(set(batches.batch(cloud)))


def test_a_batch_of_everything_is_the_risk():
    cloud, risk = OBJECTIVES["minibatch"].cloud(), network()
    np.testing.assert_array_equal(Minibatch(risk, 5).gradient(cloud), risk.gradient(cloud))
    one, two = (Flow(o, lam=0.1, scheme="euler").step(cloud, 0.01) for o in (risk, Minibatch(risk, 5)))
    close(two.z, one.z, 1e-14)


@pytest.mark.parametrize("account", [True, False])
def test_the_residual_that_stands_for_a_batch_gives_its_kick(account):
    cloud, batches = OBJECTIVES["minibatch"].cloud(), Minibatch(network(), 2)
    moved = Flow(batches, lam=0.0, account=account).step(cloud, 0.01)
    close(moved.z, cloud.z - 0.01 * batches.gradient(cloud), 1e-14)


# --- linearisation


def test_a_linearised_network_is_tangent_to_the_network():
    """At the particles it is the network; away from them it differs by the square of the distance."""
    cloud, risk = OBJECTIVES["linearised"].cloud(), network(centred=False)
    straight = Linearised(risk, cloud)
    np.testing.assert_allclose(straight.prediction(cloud), risk.prediction(cloud), rtol=1e-14)
    gaps = []
    for size in (1e-2, 1e-3):
        away = cloud.replace(z=cases.displaced(cloud.z, size))
        gaps.append(np.abs(straight.prediction(away) - risk.prediction(away)).max())
    assert gaps[0] / gaps[1] == pytest.approx(100, rel=0.05)
    for one, two in zip(straight.tangent(cloud)[:2], risk.tangent(cloud)[:2], strict=True):
        close(one, two, 1e-13)


def test_a_linearised_flow_has_the_kernel_it_started_with():
    cloud = gaussian_cloud(64, dimension=cases.D, seed=1)
    straight = Linearised(network(alpha=20.0), cloud)
    flow = Flow(straight, lam=0.0, scheme="kernel")
    start, gram, _ = straight.tangent(cloud)
    rates, modes = np.linalg.eigh(gram)
    for _ in range(4):
        cloud = flow.step(cloud, 0.02)
        left = modes @ (np.exp(-straight.kappa * rates * cloud.time) * (modes.T @ start))
        close(straight.tangent(cloud)[0], left, 1e-11)
        close(straight.tangent(cloud)[1], gram, 1e-14)


# --- what is refused

X, Y = cases.X, cases.Y
COUPLED = gaussian_cloud(4, dimension=cases.D, seed=0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Risk(X[0], Y), r"x must have shape \(n, d\).*got shape \(3,\)"),
        (lambda: Risk(X[:0], Y[:0]), "at least one sample"),
        (lambda: Risk(X, Y[:-1]), r"y must have shape \(5,\).*got \(4,\)"),
        (lambda: Risk(X * np.nan, Y), "x holds NaN or infinity"),
        (lambda: Risk(X, np.where(Y > 0, np.inf, Y)), "y holds NaN or infinity"),
        (lambda: Risk(X, Y, alpha=0.0), "alpha must be a number from"),
        (lambda: Risk(X, Y, alpha=np.nan), "alpha must be a number from"),
        (lambda: Risk(X, Y, unit=Unit("tahn")), "Did you mean 'tanh'"),
        (lambda: Risk(X, Y, loss="logistics"), "Did you mean 'logistic'"),
        (lambda: Risk(X, Y, loss="logistic"), r"labels \+1 and -1"),
        (lambda: Risk(X, Y, backend="nunpy"), "Did you mean 'numpy'"),
        (lambda: Minibatch(network() + network(), 2), "Minibatch takes a Risk, got Sum"),
        (lambda: Minibatch(network(), 0), "between 1 and n = 5, got 0"),
        (lambda: Minibatch(network(), 6), "between 1 and n = 5, got 6"),
        (lambda: Linearised(Minibatch(network(), 2), COUPLED), "Linearised takes a Risk, got Minibatch"),
        (lambda: Linearised(network(bias=True), gaussian_cloud(4, dimension=3)), "has D = 3, the network needs D = 4"),
        (
            lambda: Linearised(network(), COUPLED).first_variation(COUPLED, np.zeros((3, 4))),
            "function of each particle",
        ),
        (lambda: Linearised(network(), COUPLED).value(cloud_at(COUPLED.z)), "needs a cloud with a coupled reference"),
        (lambda: network().value(cloud_at(COUPLED.z)), "centred=True needs a cloud with a coupled reference"),
        (lambda: Potential(lambda z: z, lambda z: z).value(COUPLED), r"potential .* must return shape \(4,\)"),
        (lambda: Potential(lambda z: z[:, 0], lambda z: z[:, 0]).gradient(COUPLED), r"slope .* shape \(4, 4\)"),
    ],
)
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(InputError, match=words):
        call()


def test_the_interface_itself_computes_nothing():
    for call in (Objective().value, Objective().gradient, lambda c: Objective().first_variation(c, c.z)):
        with pytest.raises(NotImplementedError):
            call(COUPLED)
