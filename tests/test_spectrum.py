"""Tangent kernels at clouds and between inputs, their eigenvalues by every way, and their change beside Lemma 5.1."""

import cases
import numpy as np
import pytest

from meanfield import gram, ntk, parallel, spectrum, theory
from meanfield.cloud import gaussian_cloud
from meanfield.errors import InputError
from meanfield.units import ACTIVATIONS

TANH, ERF, RELU = (ACTIVATIONS[name] for name in ("tanh", "erf", "relu"))


def sphere(n, d, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def moved():
    """A cloud away from its reference, of unequal masses."""
    cloud = gaussian_cloud(700, dimension=5, seed=3, weights=np.arange(1.0, 701.0))
    return cloud.replace(z=cases.displaced(cloud.z, 0.3))


# --- matrices


def test_reference_values_of_p2():
    values, slopes = ntk.gram_parts(ERF, cases.P2_X)
    np.testing.assert_allclose([values[0, 0], values[0, 1]], [0.4645590544, 0.2619797609], atol=1e-9)
    np.testing.assert_allclose([slopes[0, 0], slopes[0, 1]], [0.5694100347, 0.2778436472], atol=1e-9)
    assert ntk.smallest_at_start(ERF, cases.P2_X).value == pytest.approx(0.4941456810, abs=1e-9)


@pytest.mark.parametrize("name", ["tanh", "erf", "relu", "sin"])
@pytest.mark.parametrize("train", ["both", "u", "theta"])
def test_kernel_between_two_sets_is_a_part_of_a_gram_matrix(name, train, monkeypatch):
    monkeypatch.setattr(gram, "TILE", 4)
    activation, x = ACTIVATIONS[name], 0.9 * sphere(11, 3)
    whole = ntk.gram_gaussian(activation, x, std=1.3, train=train)
    np.testing.assert_allclose(
        ntk.kernel(activation, x[:6], x[2:], std=1.3, train=train), whole[:6, 2:], rtol=1e-9, atol=1e-10
    )


def test_kernel_of_a_series_against_a_closed_form():
    """erf without its closed form: coinciding and zero inputs included."""
    x = np.vstack([sphere(5, 3), np.zeros((1, 3)), 3 * sphere(2, 3, seed=1)])
    series = ACTIVATIONS["erf"].__class__("erf by series", ERF.jet, ERF.suprema, parity="odd")
    np.testing.assert_allclose(ntk.kernel(series, x, x[2:7]), ntk.kernel(ERF, x, x[2:7]), atol=1e-11)


def test_gram_matrix_of_a_cloud_by_its_definition(moved):
    x, z, mass = sphere(6, 4), moved.z, moved.weights
    h, slope = TANH.value_and_first(z[:, :-1] @ x.T)
    gradients = np.concatenate([z[:, -1:, None] * slope[:, :, None] * x, h[:, :, None]], axis=2)
    parts = {"both": gradients, "theta": gradients[:, :, :-1], "u": gradients[:, :, -1:]}
    for train, part in parts.items():
        expected = np.einsum("m,mia,mka->ik", mass, part, part)
        np.testing.assert_allclose(ntk.gram_at_cloud(TANH, x, moved, train=train), expected, rtol=1e-11)
        v = np.arange(1.0, 7.0)
        np.testing.assert_allclose(ntk.product(TANH, x, z, v, mass, train), expected @ v, rtol=1e-11)


@pytest.mark.parametrize("memory", [None, 100])
def test_products_at_the_start_by_tiles(monkeypatch, memory):
    monkeypatch.setattr(gram, "TILE", 7)
    x, v = sphere(20, 3), np.linspace(-1, 1, 20)
    parallel.set_memory(memory)
    try:
        for activation in (ERF, TANH):
            expected = ntk.gram_gaussian(activation, x) @ v
            np.testing.assert_allclose(spectrum.start_operator(activation, x)(v), expected, rtol=1e-9)
    finally:
        parallel.set_memory(None)


# --- eigenvalues


@pytest.mark.parametrize("products", [8, 25, 60])
def test_lanczos_says_how_far_it_is(products):
    values = np.concatenate([np.geomspace(0.01, 10, 58), [20.0, 50.0]])
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(60, 60)))[0]
    matrix = (q * values) @ q.T
    low, high = spectrum.lanczos(lambda v: matrix @ v, 60, products=products)
    assert low.value >= 0.01 - 1e-12  # a Rayleigh quotient
    for found in (low, high):
        assert np.abs(values - found.value).min() <= found.error + 1e-12
    assert high.value == pytest.approx(50.0, abs=high.error + 1e-10)
    if products == 60:
        assert low.value == pytest.approx(0.01, abs=1e-10) and low.error < 1e-8


def test_lanczos_ends_where_nothing_new_comes():
    low, high = spectrum.lanczos(lambda v: 3.0 * v, 40)
    assert low.value == pytest.approx(3.0) == pytest.approx(high.value) and "1 products" in low.method
    with pytest.raises(InputError, match="finite numbers"):
        spectrum.lanczos(lambda v: v[:3], 5)


def test_both_ways_to_the_smallest_eigenvalue(moved):
    x = sphere(40, 4)
    for find in (
        lambda dense: ntk.smallest_at_start(ERF, x, dense=dense),
        lambda dense: ntk.smallest_at_cloud(TANH, x, moved, dense=dense),
    ):
        solved, by_products = find(2000), find(10)
        assert solved.method == "dense" and by_products.method.startswith("Lanczos")
        assert abs(solved.value - by_products.value) <= solved.error + by_products.error + 1e-10
        assert by_products.error < 1e-3 * solved.value


def test_lanczos_at_size():
    """The lowest eigenvalues of 600 inputs are close together and 1e-4 of the largest: the kernel is formed once."""
    x = sphere(600, 10)
    expected = np.linalg.eigvalsh(ntk.gram_gaussian(ERF, x))[0]
    found = ntk.smallest_at_start(ERF, x, dense=10)
    assert found.value == pytest.approx(expected, rel=1e-8) and found.error < 1e-4 * expected


def test_eigenvalues_against_n():
    x = sphere(30, 4)
    table = ntk.against_n(ERF, x)
    assert table.n.tolist() == [1, 2, 4, 8, 16, 30]
    assert np.all(np.diff(table.lambda_min) <= 1e-12) and np.all(np.diff(table.lambda_max) >= 0)
    for n, low, high in zip(table.n, table.lambda_min, table.lambda_max, strict=True):
        expected = np.linalg.eigvalsh(ntk.gram_gaussian(ERF, x[:n]))[[0, -1]]
        np.testing.assert_allclose([low, high], expected, atol=1e-12)
    expected = [theory.lambda0(low, n) for low, n in zip(table.lambda_min, table.n, strict=True)]
    np.testing.assert_allclose(table.lambda0, expected)
    mixed = ntk.against_n(ERF, x, [10, 30], dense=20)
    np.testing.assert_allclose(mixed.lambda_min[1], table.lambda_min[-1], atol=mixed.error[1] + 1e-12)
    assert mixed.error[0] < 1e-12 and mixed.error[1] < 1e-3 * mixed.lambda_min[1]
    with pytest.raises(InputError, match="between 1 and n = 30"):
        ntk.against_n(ERF, x, [31])


def test_eigenvalues_of_replicates_enclose_the_truth():
    """Wishart matrices about diag(1, .., 2): one estimate is biased down, the other up, both tend to 1."""
    rng, truth = np.random.default_rng(4), np.linspace(1, 2, 6)
    for samples, off in ((100, 0.6), (30_000, 0.03)):
        grams = [np.cov(rng.normal(size=(6, samples)) * np.sqrt(truth)[:, None]) for _ in range(12)]
        low, high = ntk.between(grams)
        assert low.value < 1 + 2 * low.se and high.value > 1 - 2 * high.se
        assert high.value - low.value < off
    with pytest.raises(InputError, match="at least two"):
        ntk.between(grams[:1])


# --- change


def test_change_beside_lemma_5_1():
    """A translation of the whole law: its W2 is its length."""
    x, start = sphere(6, 4), gaussian_cloud(20_000, dimension=5, seed=1)
    assert ntk.change(TANH, x, start, 0.0).entries < 1e-12
    for length in (0.05, 0.5):
        shift = length * np.ones(5) / np.sqrt(5)
        found = ntk.change(TANH, x, start.replace(z=start.z + shift), length)
        assert 1e-4 < found.entries < found.entries_bound
        assert found.lambda_min_floor < found.lambda_min and found.Lambda == ntk.smallest_at_start(TANH, x).value
        assert found.entries_bound == pytest.approx(np.polyval([*theory.kernel_constants(TANH.suprema), 0], length))


def test_change_is_refused_outside_the_assumptions():
    cloud = gaussian_cloud(50, dimension=3)
    with pytest.raises(InputError, match="norm at most 1"):
        ntk.change(TANH, np.array([[2.0, 0.0]]), cloud, 0.1)
    with pytest.raises(InputError, match="Assumption 4.2"):
        ntk.change(RELU, np.array([[1.0, 0.0]]), cloud, 0.1)
    with pytest.raises(InputError, match="std = 2"):
        ntk.change(TANH, np.array([[1.0, 0.0]]), gaussian_cloud(50, dimension=3, std=2.0), 0.1)
