"""Donsker and Varadhan: tight for exact tilts, below the truth for everything else, whatever the tilt."""

import math

import numpy as np
import pytest

from meanfield import donsker, tilts
from meanfield.errors import InputError
from meanfield.units import ACTIVATIONS

TANH = ACTIVATIONS["tanh"]
PROBES = np.random.default_rng(100).standard_normal((20_000, 4))
X = np.array([[0.8, 0.3, 0.1], [-0.2, 0.9, 0.0], [0.1, -0.4, 0.7], [0.5, 0.5, -0.5]])


@pytest.fixture(scope="module")
def features():
    return tilts.probe_features(PROBES, X, TANH)


def references(*, replicates=4, m=1500, dimension=4, seed=1):
    return np.random.default_rng(seed).standard_normal((replicates, m, dimension))


def sheared(g, **options):
    """Clouds (theta, ubar + g(theta)), whose law has KL(p || p0) = E g^2 / 2 over theta ~ N(0, I)."""
    clouds = []
    for r in references(**options):
        z = r.copy()
        z[:, -1] += g(r[:, :-1])
        clouds.append((z, r, None))
    return clouds


def mean_square(g):
    return float((g(np.random.default_rng(9).standard_normal((400_000, 3))) ** 2).mean())


C = np.array([0.6, -0.4, 0.8, 0.3])


# --- the directions


def test_directions_are_orthonormal_and_their_gram_matrix_exact(features):
    sample = features.values.astype(np.float64)
    np.testing.assert_allclose(sample.T @ sample / len(sample), np.eye(8), atol=1e-5)
    theta = np.random.default_rng(2).standard_normal((100_000, 3))
    values = features.at(theta)
    products = values[:, :, None] * values[:, None, :]
    error = products.std(axis=0) / math.sqrt(len(theta))
    assert (np.abs(products.mean(axis=0) - features.gram) < 5 * error).all()


def test_first_directions_use_the_first_family_alone(features):
    assert features.simple == 4
    assert not features.transform[4:, :4].any()
    c = np.array([1.0, 2.0, -1.0])
    np.testing.assert_allclose(features.combination(PROBES[:9, :3], c), features.values[:9, :3] @ c, atol=1e-4)


@pytest.mark.parametrize("name", ["erf", "sin", "relu"])
def test_gram_matrix_agrees_with_closed_forms(name):
    activation = ACTIVATIONS[name]
    exact = tilts._exact_gram(activation, X, 1)
    if name == "relu":
        assert exact is None  # a kink: the series converges too slowly to be trusted
    else:
        np.testing.assert_allclose(exact, activation.gram(X @ X.T)[0], atol=1e-10)


def test_number_of_directions_is_limited():
    few = tilts.probe_features(PROBES[:1000], X, TANH, largest=3)
    assert few.values.shape == (1000, 3) and few.simple == 2
    twice = tilts.probe_features(PROBES[:1000], np.concatenate([X, X, 0 * X]), TANH)  # duplicates and zero inputs
    assert twice.values.shape[1] == 8


# --- known truth


@pytest.mark.parametrize("size", [0.1, 0.6, 1.5])
def test_tight_for_a_law_that_differs_in_u_alone(features, size):
    def g(theta):
        return size * np.tanh(theta @ X.T) @ C

    truth = 0.5 * mean_square(g)
    lower = donsker.donsker_varadhan(sheared(g), features)
    assert abs(lower.value - truth) < 4 * lower.se + 0.01 * truth
    assert lower.se < 0.1 * truth


def gibbs(c, x, *, count, rng):
    """Exact samples of p ~ e^{u g} p0 in d = 1 by rejection (theta ~ p0 e^{g^2/2}, u | theta ~ N(g, 1)), and its KL."""
    nodes = np.linspace(-9, 9, 20_001)
    g = np.tanh(np.outer(nodes, x)) @ c
    gauss = np.exp(-0.5 * nodes**2)
    tilted = gauss * np.exp(0.5 * g * g)
    normaliser = tilted.sum() / gauss.sum()
    kl = (tilted * g * g).sum() / tilted.sum() - math.log(normaliser)  # E u g = E g^2
    theta = np.empty(0)
    while len(theta) < count:
        draws = rng.standard_normal(4 * count)
        value = np.tanh(np.outer(draws, x)) @ c
        theta = np.append(theta, draws[rng.random(len(draws)) < np.exp(0.5 * (value**2 - (g * g).max()))])
    theta = theta[:count]
    u = np.tanh(np.outer(theta, x)) @ c + rng.standard_normal(count)
    return np.column_stack([theta, u]), kl


def test_tight_for_a_gibbs_law_also_without_coupling():
    x, c, rng = np.array([0.7, 1.6]), np.array([-0.5, 1.4]), np.random.default_rng(3)
    samples = [gibbs(c, x, count=6000, rng=rng) for _ in range(4)]
    clouds = [(z, rng.standard_normal(z.shape), None) for z, _ in samples]
    lower = donsker.donsker_varadhan(clouds, tilts.probe_features(PROBES, x[:, None], TANH))
    truth = samples[0][1]
    assert truth > 0.1
    assert lower.value - 4 * lower.se < truth
    assert lower.value + 4 * lower.se > 0.98 * truth


def test_below_the_truth_for_a_shear_of_theta(features):
    """theta moves with u: KL = b^2 E sin(u)^2 / 2, only partly seen by tilts u g(theta)."""
    clouds = [(r + 0.8 * np.sin(r[:, -1:]) * [1, 0, 0, 0], r, None) for r in references()]
    truth = 0.5 * 0.64 * 0.5 * (1 - math.exp(-2))
    lower = donsker.donsker_varadhan(clouds, features)
    assert 0.3 * truth < lower.value - 4 * lower.se and lower.value + 4 * lower.se < truth


def test_below_the_truth_for_a_mixture(features):
    """A part of the particles is carried away; KL by quadrature along the shift."""
    a, part = 2.0, 0.3
    s = np.linspace(-9, 9 + a, 40_001)
    density = np.exp(-0.5 * s**2) / math.sqrt(2 * math.pi)
    ratio = 1 - part + part * np.exp(a * s - 0.5 * a * a)
    truth = float((density * ratio * np.log(ratio)).sum() * (s[1] - s[0]))
    direction = a * np.array([0.8, 0.0, 0.0, 0.6])
    rng = np.random.default_rng(4)
    clouds = [(r + (rng.random((len(r), 1)) < part) * direction, r, None) for r in references()]
    lower = donsker.donsker_varadhan(clouds, features)
    assert lower.value - 4 * lower.se < truth


@pytest.mark.parametrize("size", [4.0, 10.0])
def test_heavy_tilts_stay_valid_and_useful(features, size):
    def g(theta):
        return size * np.tanh(theta @ X.T) @ C

    truth = 0.5 * mean_square(g)
    lower = donsker.donsker_varadhan(sheared(g), features)
    assert 0.5 * truth < lower.value < truth + 4 * lower.se


def test_tilts_of_an_unbounded_activation_stay_valid():
    """With relu E e^{g^2/2} is infinite for large g: the clipped tilt must not claim more than there is."""
    relu = ACTIVATIONS["relu"]
    features = tilts.probe_features(PROBES, X, relu)
    assert features.gram is None and features.simple == 4

    def g(theta):
        return 1.5 * np.maximum(theta @ X.T, 0) @ np.abs(C)

    truth = 0.5 * mean_square(g)
    lower = donsker.donsker_varadhan(sheared(g), features)
    assert 0.7 * truth < lower.value < truth + 4 * lower.se


def test_variance_of_u_is_seen(features):
    clouds = [(r * [1, 1, 1, 1.4], r, None) for r in references()]
    truth = 0.5 * (1.96 - 1 - math.log(1.96))
    lower = donsker.donsker_varadhan(sheared(lambda theta: 0.3 * np.tanh(theta @ X.T) @ C), features)
    assert lower.value > 0
    lower = donsker.donsker_varadhan(clouds, features)
    assert lower.value < truth + 4 * lower.se


# --- the normaliser


@pytest.mark.parametrize("omega", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("size", [0.2, 1.0, 3.0])
def test_normaliser_against_quadrature(size, omega):
    x = np.array([[1.2], [0.5]])
    probes = np.random.default_rng(11).standard_normal((20_000, 2))
    features = tilts.probe_features(probes, x, TANH)
    c = size * np.array([0.7, -0.3, 0.2, 0.1])[: features.values.shape[1]]
    tilt = donsker.Tilt(c, 1.2, omega)
    nodes = np.linspace(-10, 10, 20_001)
    weights = np.exp(-0.5 * nodes**2) / np.exp(-0.5 * nodes**2).sum()
    level = donsker._ceiling(omega, len(probes))
    square = np.clip(features.combination(nodes[:, None], c), -level, level) ** 2
    exact = math.log(weights @ np.exp(0.5 * (1 - omega) * square)) + 0.5 * omega * float(weights @ square)
    exact -= math.log(1.2) + 0.5 * (1 - 1.44)
    value, error = donsker._log_normaliser(tilt, features.values, features.gram)
    plain, plain_error = donsker._log_normaliser(tilt, features.values, None)
    assert abs(value - exact) < 5 * error + 1e-5
    assert abs(plain - exact) < 5 * plain_error + 1e-5
    assert error < (0.1 if size < 1 else 0.9) * plain_error


def test_no_probe_carries_more_than_its_share():
    for omega in (0.0, 0.5):
        level = donsker._ceiling(omega, 50_000)
        assert math.exp(0.5 * (1 - omega) * level**2) == pytest.approx(500)
    assert donsker._ceiling(1.0, 50_000) == math.inf


# --- zero, invariances, bad input


def test_equal_clouds_read_exactly_zero(features):
    z = references(replicates=1)[0]
    assert donsker.donsker_varadhan([(z, z, None)] * 4, features)[:2] == (0.0, 0.0)


def test_independent_copies_read_zero(features):
    values = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        clouds = [tuple(rng.standard_normal((2, 1000, 4))) + (None,) for _ in range(4)]
        lower = donsker.donsker_varadhan(clouds, features)
        assert lower.value < 4 * lower.se + 1e-12
        values.append(lower.value)
    assert abs(np.mean(values)) < 0.01


def small(theta):
    return 0.5 * np.tanh(theta @ X.T) @ C


def test_order_weights_scale_and_one_replicate(features):
    clouds = sheared(small)
    plain = donsker.donsker_varadhan(clouds, features)
    order = np.random.default_rng(5).permutation(len(clouds[0][0]))
    shuffled = donsker.donsker_varadhan([(z[order], r[order], None) for z, r, _ in clouds], features)
    assert shuffled.value == pytest.approx(plain.value, rel=1e-2)
    weighted = donsker.donsker_varadhan([(z, r, np.full(1500, 1 / 1500)) for z, r, _ in clouds], features)
    assert weighted.value == pytest.approx(plain.value, rel=1e-6)
    scaled = donsker.donsker_varadhan([(z, 0.9 * r, None) for z, r, _ in clouds], features, scale=0.9)
    assert scaled.value == pytest.approx(plain.value, rel=1e-6)
    single = donsker.donsker_varadhan(clouds[:1], features)
    assert math.isnan(single.se) and single.value == pytest.approx(plain.value, rel=0.2)


def test_bad_input(features):
    with pytest.raises(InputError, match="need particles in"):
        donsker.donsker_varadhan([(PROBES[:50, :3], PROBES[:50, :3], None)], features)
    with pytest.raises(InputError, match="at least 4 particles"):
        donsker.donsker_varadhan([(PROBES[:3], PROBES[:3], None)], features)
    for probes, x in ((PROBES[:10], X), (PROBES[:, :2], X), (PROBES, X[0])):
        with pytest.raises(InputError, match="probes"):
            tilts.probe_features(probes, x, TANH)
