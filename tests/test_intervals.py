"""Intervals for KL and the Fisher information: closed forms, coverage, what is chosen, what is refused."""

import math

import numpy as np
import pytest
from scipy import optimize

from meanfield import concave, entropy, families, intervals
from meanfield.errors import InputError, MeanfieldError
from meanfield.network_families import Network, NetworkScore
from meanfield.tilts import probe_features
from meanfield.units import resolve

A = np.array([[1.3, 0.2, 0.0], [0.2, 0.9, -0.1], [0.0, -0.1, 1.1]])
SHIFT = np.array([0.3, 0.0, -0.2])
X = np.array([[0.8, 0.6], [-0.6, 0.8], [1.0, 0.0]])
COEFFICIENTS = np.array([0.5, -0.4, 0.3])


def references(m, dimension, *, replicates=8, seed=0):
    return np.random.default_rng(seed).standard_normal((replicates, m, dimension))


def gaussians(m=500, scale=1.0, **options):
    return [(z @ A + SHIFT, scale * z, None) for z in references(m, 3, **options)]


def shears(m=500, coefficients=COEFFICIENTS, **options):
    """u given theta is N(g, 1), g = sum c_i tanh(w_i); KL = E g^2 / 2."""
    clouds = []
    for z in references(m, 3, **options):
        moved = z.copy()
        moved[:, -1] += np.tanh(z[:, :-1] @ X.T) @ coefficients
        clouds.append((moved, z, None))
    return clouds


def shear_kl():
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    theta = np.stack(np.meshgrid(nodes, nodes), axis=-1).reshape(-1, 2)
    g = np.tanh(theta @ X.T) @ COEFFICIENTS
    return 0.5 * float(np.outer(weights, weights).ravel() @ g**2) / weights.sum() ** 2


def gibbs(v, m=500, **options):
    """p ~ e^{u v . theta} p0, a Gaussian: the Gibbs law of linear neurons."""
    precision = np.eye(len(v) + 1)
    precision[-1, :-1] = precision[:-1, -1] = -v
    values, vectors = np.linalg.eigh(precision)
    return np.linalg.inv(precision), [
        (z @ (vectors / np.sqrt(values)) @ vectors.T, z, None) for z in references(m, len(v) + 1, **options)
    ]


def fisher(mean, covariance):
    return mean @ mean + np.trace(covariance - 2 * np.eye(len(mean)) + np.linalg.inv(covariance))


def features(name="tanh", x=X, probes=20_000):
    return probe_features(np.random.default_rng(99).standard_normal((probes, x.shape[1] + 1)), x, resolve(name))


def covers(found, truth):
    return found.low <= truth <= found.high


# --- closed forms


@pytest.mark.parametrize("scale", [1.0, 0.8])
def test_quadratic_fields_are_exact_for_gaussians(scale):
    found = intervals.kl_interval(gaussians(2000, scale), scale=scale)
    exact = entropy.gaussian_kl(SHIFT, A @ A)
    assert abs(found.value - exact) < 4 * found.se < 0.1 * exact
    assert found.low < found.value < found.high and found.size == 9 and found.replicates == 8


def test_quadratic_scores_give_the_fisher_information_of_gaussians():
    found = intervals.fisher_interval(gaussians(2000))
    exact = fisher(SHIFT, A @ A)
    assert abs(found.value - exact) < 4 * found.se < 0.1 * exact


def test_a_gibbs_law_of_linear_neurons():
    v = np.array([0.4, -0.3])
    covariance, clouds = gibbs(v, 2000)
    inputs = features("linear", np.eye(2))
    for found, exact in (
        (intervals.kl_interval(clouds, Network(inputs)), entropy.gaussian_kl(np.zeros(3), covariance)),
        (intervals.fisher_interval(clouds, NetworkScore(inputs)), fisher(np.zeros(3), covariance)),
    ):
        assert abs(found.value - exact) < 4 * found.se < 0.15 * exact
        assert found.form == 0.0 and found.size == 2
    quadratic = intervals.kl_interval(clouds)
    assert quadratic.value == pytest.approx(intervals.kl_interval(clouds, Network(inputs)).value, rel=0.05)


def test_a_network_of_which_u_alone_was_trained():
    clouds, exact = shears(2000), shear_kl()
    found = intervals.kl_interval(clouds, Network(features()))
    assert abs(found.value - exact) < 4 * found.se < 0.1 * exact
    assert found.form == 1.0
    gaussian = intervals.kl_interval(clouds)  # which does not contain this law: a lower bound
    assert gaussian.value + 2 * gaussian.se < exact


def test_scores_of_a_network_are_below_the_fisher_information():
    """Of the shear it is E|grad (u g - g^2 / 2)|^2 = E|grad g|^2 + E g^2; the score (u - g) grad g is in no span."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    theta = np.stack(np.meshgrid(nodes, nodes), axis=-1).reshape(-1, 2)
    slope = ((1 - np.tanh(theta @ X.T) ** 2) * COEFFICIENTS) @ X
    exact = float(np.outer(weights, weights).ravel() @ (slope**2).sum(axis=1)) / weights.sum() ** 2 + 2 * shear_kl()
    found = intervals.fisher_interval(shears(2000), NetworkScore(features()))
    assert 2 * shear_kl() < found.held_out.value + 4 * found.held_out.se
    assert 0.5 * exact < found.value < exact + 4 * found.se


def test_functions_of_yours():
    """phi = b . z for a shift: KL = |b|^2 / 2, the normaliser from samples of p0."""
    probes = np.random.default_rng(98).standard_normal((20_000, 3))
    clouds = [(z + SHIFT, z, None) for z in references(500, 3)]
    found = intervals.kl_interval(clouds, families.Functions(lambda z: z, probes))
    assert abs(found.value - 0.5 * SHIFT @ SHIFT) < 4 * found.se < 0.01


def test_references_may_be_strangers():
    clouds = [(z, r, None) for (z, _, _), r in zip(gaussians(2000), references(2000, 3, seed=1), strict=True)]
    found, coupled = intervals.kl_interval(clouds), intervals.kl_interval(gaussians(2000))
    assert abs(found.value - entropy.gaussian_kl(SHIFT, A @ A)) < 4 * found.se
    assert found.se > coupled.se


def test_equal_laws_read_zero():
    clouds = [(z, z, None) for z in references(200, 3)]
    for fields in ("quadratic", Network(features())):
        found = intervals.kl_interval(clouds, fields)
        assert (found.low, found.high) == pytest.approx((0.0, 0.0), abs=1e-12)


def test_particles_of_half_the_weight_count_as_one():
    clouds = gaussians(200)
    split = [(np.repeat(z, 2, axis=0), np.repeat(r, 2, axis=0), np.full(400, 1 / 400)) for z, r, _ in clouds]
    for fields in ("quadratic", Network(features())):
        assert intervals.kl_interval(split, fields).value == pytest.approx(
            intervals.kl_interval(clouds, fields).value, rel=1e-9
        )
    scores = NetworkScore(features())
    one, other = (intervals.fisher_interval(c, scores).value for c in (clouds, split))
    assert one == pytest.approx(other, rel=1e-9)


# --- coverage: 95 % intervals, 200 replications, so 190 hits expected with a standard deviation of 3.1


@pytest.mark.parametrize("D", [2, 6, 21])
def test_intervals_cover_gaussians(D):
    rng = np.random.default_rng(D)
    B = rng.standard_normal((D, D))
    matrix, shift = np.eye(D) + 0.15 * (B + B.T) / math.sqrt(2 * D), 0.3 / math.sqrt(D) * np.ones(D)
    exact = entropy.gaussian_kl(shift, matrix @ matrix)
    hits = sum(
        covers(intervals.kl_interval([(z @ matrix + shift, z, None) for z in references(100, D, seed=k)]), exact)
        for k in range(200)
    )
    assert 180 <= hits <= 198


def test_intervals_cover_shears_with_the_number_of_fields_chosen():
    family, exact = Network(features(probes=1000), omegas=(1.0,)), shear_kl()
    hits = sum(covers(intervals.kl_interval(shears(100, seed=k), family), exact) for k in range(200))
    assert 180 <= hits <= 198


def test_intervals_cover_mixtures():
    """Z = Zbar +- v: log dp/dp0 = log cosh(v . z) - |v|^2 / 2, KL by quadrature; fresh samples of p0 every time."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    exact = float(weights @ np.log(np.cosh(nodes + 1))) / weights.sum() - 0.5

    def field(z):
        return np.log(np.cosh(z[:, :1]))

    hits = 0
    for k in range(200):
        rng = np.random.default_rng([k, 1])
        clouds = []
        for z in references(100, 2, seed=k):
            signs = np.where(rng.random(len(z)) < 0.5, 1.0, -1.0)
            clouds.append((z + np.outer(signs, [1.0, 0.0]), z, None))
        fields = families.Functions(field, rng.standard_normal((4000, 2)))
        hits += covers(intervals.kl_interval(clouds, fields), exact)
    assert 180 <= hits <= 198


def test_the_level_is_that_of_student():
    clouds = gaussians(200)
    narrow, wide = intervals.kl_interval(clouds, level=0.5), intervals.kl_interval(clouds, level=0.95)
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(2.3646 / 0.7111, rel=1e-3)


# --- bias, and the number of fields


def test_the_jackknife_takes_the_bias_off():
    """The supremum at the means is biased up by 27 / (2 R m); what is held out lies below the truth by as much."""
    matrix = np.diag([1.2, 1, 0.9, 1, 1, 1.1])
    exact = entropy.gaussian_kl(np.zeros(6), matrix @ matrix)
    raw, found = [], []
    for k in range(60):
        strangers = references(50, 6, replicates=4, seed=k)
        clouds = [(z @ matrix, r, None) for z, r in zip(strangers, references(50, 6, seed=1000 + k), strict=False)]
        statistics = np.mean([families.Quadratic().statistics(pair) for pair in intervals.coupled_pairs(clouds)], 0)
        family, choice = families.Quadratic(), families.Choice(27)
        member = family.fit(statistics, choice, slice(None), None)
        raw.append(family.measured(member, statistics, choice, slice(None)))
        found.append(intervals.kl_interval(clouds))
    bias = np.mean(raw) - exact
    error = np.std([one.value for one in found]) / math.sqrt(60)
    assert bias > 0.05
    assert abs(np.mean([one.value for one in found]) - exact) < 4 * error + 0.1 * bias
    assert np.mean([one.held_out.value for one in found]) < exact - 0.5 * bias


def test_held_out_replicates_choose_how_many_fields():
    """The first field is the law's; fifty more only fit noise."""
    probes = np.random.default_rng(97).standard_normal((10_000, 3))
    waves = np.random.default_rng(96).standard_normal((3, 50)) * 3

    def fields(z):
        return np.column_stack([z[:, 0], np.cos(z @ waves)])

    clouds = [(z + [0.5, 0, 0], r, None) for z, r in zip(references(100, 3), references(100, 3, seed=2), strict=True)]
    found = intervals.kl_interval(clouds, families.Functions(fields, probes, (1, 51)))
    assert found.size == 1 and covers(found, 0.125)
    everything = intervals.kl_interval(clouds, families.Functions(fields, probes, (51,)))
    assert everything.held_out.value < found.held_out.value


def test_what_is_held_out_is_a_lower_bound_for_every_law():
    rng = np.random.default_rng(5)
    clouds = [(z + 0.6 * np.sin(2 * z[:, ::-1]) * [1, 0], z, None) for z in rng.standard_normal((8, 2000, 2))]
    truth = 0.5 * 0.36 * 0.5 * (1 - math.exp(-8))
    found = intervals.kl_interval(clouds)
    assert 0 < found.held_out.value < found.value + 1e-3 < 0.5 * truth


# --- the concave maximum


@pytest.mark.parametrize("squared", [False, True])
def test_the_maximum_is_that_of_another_optimiser(squared):
    rng = np.random.default_rng(6)
    table, push = 0.5 * rng.standard_normal((400, 3)), np.array([0.1, -0.05, 0.08])

    def negative(a):
        g = table @ a
        return concave.log_mean(0.5 * g * g if squared else g) - a @ push

    wanted = optimize.minimize(negative, np.zeros(3), tol=1e-12)
    found = concave.maximised(push, table, squared, None)
    np.testing.assert_allclose(found, wanted.x, atol=1e-5)
    assert negative(found) <= wanted.fun + 1e-12
    np.testing.assert_allclose(concave.maximised(push, table, squared, found + 0.1), found, atol=1e-6)


# --- what is refused


def test_a_law_beyond_the_samples_is_refused():
    probes = np.random.default_rng(95).standard_normal((1000, 2))
    clouds = [(z + [6.0, 0.0], z, None) for z in references(100, 2)]
    with pytest.raises(MeanfieldError, match="too far from p0"):
        intervals.kl_interval(clouds, families.Functions(lambda z: z, probes))


def test_a_singular_law_is_refused():
    clouds = [(z * [1.0, 0.0], z, None) for z in references(100, 2)]
    with pytest.raises(MeanfieldError, match="singular"):
        intervals.kl_interval(clouds)


PROBES = np.zeros((10, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: intervals.kl_interval(gaussians(20, replicates=2)), "at least 3"),
        (lambda: intervals.kl_interval(gaussians(20), level=1.0), "level"),
        (lambda: intervals.kl_interval(gaussians(20), "cubic"), "quadratic"),
        (lambda: intervals.kl_interval(gaussians(20), Network(features(x=np.eye(4), probes=100))), "do not fit"),
        (lambda: Network(features(probes=100), omegas=(0.5,)), "omega"),
        (lambda: families.Functions(lambda z: z[:, 0], PROBES), "shape"),
        (lambda: families.Functions(lambda z: z, PROBES, (4,)), "sizes"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
