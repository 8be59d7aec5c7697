"""Pair kernels against closed values, quadrature and difference quotients; blocks, threads, Numba; neighbours. 10 s."""

import math
import tracemalloc

import numpy as np
import pytest

from meanfield import interactions, parallel
from meanfield.backends import reference
from meanfield.errors import InputError
from meanfield.interactions import ErfPair, Gaussian, ReluPair
from meanfield.units import ACTIVATIONS

QUARTER = math.pi / 2
KERNELS = [Gaussian(0.9), ErfPair(), ReluPair(), ReluPair("sphere")]
kernels = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: type(kernel).__name__.lower())


@pytest.fixture(params=["numpy", "numba"])
def route(request):
    """The definition, and what must equal it."""
    if request.param == "numpy":
        return interactions
    pytest.importorskip("numba")
    from meanfield.backends import pairwise

    return pairwise


def clouds(k, m, dimension, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=shape).astype(dtype) for shape in ((k, dimension), (m, dimension), m))


def one(route, kernel, p, q):
    """k(p, q) and its gradient in p."""
    value, gradient = route.interact(kernel, np.array([p], float), np.array([q], float), np.ones(1))
    return value[0], gradient[0]


# --- known values


def test_the_gaussian_kernel(route):
    value, gradient = one(route, Gaussian(2.0), [1.0, 2.0, 0.5], [0.0, 4.0, 0.5])
    assert value == pytest.approx(math.exp(-5 / 8), rel=1e-15)
    np.testing.assert_allclose(gradient, math.exp(-5 / 8) * np.array([-1, 2, 0]) / 4, rtol=1e-14, atol=1e-16)
    value, gradient = one(route, Gaussian(0.1), [7.0], [7.0])
    assert value == 1 and gradient[0] == 0
    assert one(route, Gaussian(1e-3), [0.0, 0.0], [3.0, 4.0])[0] < 1e-300


def test_special_angles(route):
    """Same, orthogonal and opposite directions, for weights 2 and 3 and lengths 0.5 and 4."""
    u, length = 2 * 3, 0.5 * 4
    a, same, across, back = [0.5, 0, 2], [4, 0, 3], [0, 4, 3], [-4, 0, 3]
    for inputs, factor in (("gaussian", 1.0), ("sphere", 0.5)):
        values = [one(route, ReluPair(inputs), a, b)[0] for b in (same, across, back)]
        np.testing.assert_allclose(values, factor * u * length * np.array([0.5, 0.5 / math.pi, 0]), atol=1e-15)
    top = u * (2 / math.pi) * math.asin(4 / math.sqrt(1.5 * 33))
    np.testing.assert_allclose(
        [one(route, ErfPair(), a, b)[0] for b in (same, across, back)], [top, 0, -top], atol=1e-14
    )


def test_a_pair_kernel_is_a_mean_over_inputs(route):
    """E_x psi psi' by quadrature, and its gradient by the pullback of a network over the nodes."""
    nodes, mass = np.polynomial.hermite_e.hermegauss(80)
    x = np.stack(np.meshgrid(nodes, nodes), axis=-1).reshape(-1, 2)
    mass = np.outer(mass, mass).ravel() / (2 * math.pi)
    points, z, weights = clouds(5, 4, 3)
    points, z = 0.4 * points, 0.4 * z  # flat enough for the quadrature
    erf = ACTIVATIONS["erf"]
    c = mass * reference.predict(erf, x, z, weights)
    value, gradient = route.interact(ErfPair(), points, z, weights)
    np.testing.assert_allclose(value, [c @ reference.predict(erf, x, p[None]) for p in points], atol=1e-13)
    np.testing.assert_allclose(gradient, reference.pullback(erf, x, points, c), atol=1e-13)


def test_a_relu_pair_is_a_mean_over_the_circle(route):
    """Gauss-Legendre between the kinks, across theta and theta'; the Gaussian mean is twice it, E |x|^2 = 2."""
    nodes, mass = np.polynomial.legendre.leggauss(20)
    relu = ACTIVATIONS["relu"]
    for p, q in zip(*clouds(6, 6, 3)[:2], strict=True):
        kinks = np.sort(
            [(math.atan2(*v[1::-1]) + side) % (2 * math.pi) for v in (p, q) for side in (-QUARTER, QUARTER)]
        )
        ends = np.append(kinks, kinks[0] + 2 * math.pi)
        half = np.diff(ends) / 2
        angle = (ends[:-1] + half)[:, None] + half[:, None] * nodes
        x = np.stack([np.cos(angle), np.sin(angle)], axis=-1).reshape(-1, 2)
        c = (half[:, None] * mass).ravel() / (2 * math.pi) * reference.predict(relu, x, q[None])
        for kernel, factor in ((ReluPair("sphere"), 1), (ReluPair(), 2)):
            value, gradient = one(route, kernel, p, q)
            assert value == pytest.approx(factor * c @ reference.predict(relu, x, p[None]), abs=1e-14)
            np.testing.assert_allclose(gradient, factor * reference.pullback(relu, x, p[None], c)[0], atol=1e-14)


# --- properties of all


@kernels
@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_gradients_are_difference_quotients(route, kernel, dimension):
    points, z, weights = clouds(6, 30, dimension)
    step = 1e-5
    columns = [
        route.interact(kernel, points + e, z, weights)[0] - route.interact(kernel, points - e, z, weights)[0]
        for e in step * np.eye(dimension)
    ]
    gradient = route.interact(kernel, points, z, weights)[1]
    np.testing.assert_allclose(gradient, np.transpose(columns) / (2 * step), atol=1e-8)


@kernels
def test_a_kernel_is_symmetric_and_positive(route, kernel):
    z = clouds(25, 1, 4)[0]
    gram = np.column_stack([route.interact(kernel, z, z[j : j + 1], np.ones(1))[0] for j in range(25)])
    np.testing.assert_allclose(gram, gram.T, atol=1e-13)
    assert np.linalg.eigvalsh(gram)[0] > -1e-12 * np.abs(gram).max()


@kernels
def test_masses(route, kernel):
    """No weights are equal ones; a particle cut in two of half the weight changes nothing."""
    points, z, weights = clouds(9, 33, 3)
    whole = route.interact(kernel, points, z, weights)
    halves = route.interact(kernel, points, np.concatenate([z, z[:7]]), np.concatenate([weights, weights[:7] / 2])
                            - np.pad(weights[:7] / 2, (0, 33)))  # fmt: skip
    plain, equal = route.interact(kernel, points, z), route.interact(kernel, points, z, np.full(33, 1 / 33))
    for left, right in zip((*whole, *plain), (*halves, *equal), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-13)


@kernels
@pytest.mark.parametrize("dimension", [1, 2, 10, 21])
def test_blocks_and_routes_agree(route, kernel, dimension):
    """Sizes around the edges of blocks, against one dense block; both dtypes."""
    for k, m in ((1, 1), (3, 2), (127, 515), (260, 1021)):
        points, z, weights = clouds(k, m, dimension)
        dense = kernel.sums(points, z, weights)
        for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 1e-5)):
            given = (array.astype(dtype) for array in (points, z, weights))
            for found, exact in zip(route.interact(kernel, *given), dense, strict=True):
                assert found.dtype == dtype and found.shape == exact.shape
                scale = np.abs(exact).max() + 0.1 * np.abs(weights).sum() / math.sqrt(m)
                np.testing.assert_allclose(found, exact, rtol=0, atol=tolerance * scale)


@kernels
def test_where_an_angle_has_no_derivative(route, kernel):
    """Coincident, opposite, zero and very long thetas: numbers, and at theta = 0 of a ReLU what the network gives."""
    theta = np.array([[1.0, 2], [1, 2], [-1, -2], [0, 0], [3e5, 6e5], [3e5, 6e5 + 1], [1e-200, 0]])
    z = np.column_stack([theta, [1.0, 2, 1, 1, 1, -1, 1]])
    for part in route.interact(kernel, z, z):
        assert np.isfinite(part).all()
    if isinstance(kernel, ReluPair):
        value, gradient = one(route, kernel, [0, 0, 2], [1, 0, 3])
        assert value == 0 and not gradient.any()
    near, twin = one(route, kernel, [1, 2, 1 + 1e-9], [1, 2, 1]), one(route, kernel, [1, 2, 1], [1, 2, 1])
    np.testing.assert_allclose(near[1], twin[1], atol=1e-7)


@kernels
def test_equal_bits_for_any_number_of_threads(route, kernel):
    points, z, weights = clouds(700, 900, 3)
    found = []
    try:
        for count in (1, 2, 3):
            parallel.set_threads(count)
            found.append((*route.interact(kernel, points, z, weights), route.neighbours(points, z, 4)))
    finally:
        parallel.set_threads(None)
    for other in found[1:]:
        for left, right in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(left, right)


def test_a_cloud_far_from_the_origin(route):
    points, z, weights = clouds(40, 50, 3)
    exact = route.interact(Gaussian(1.0), points, z, weights)
    for found, wanted in zip(route.interact(Gaussian(1.0), points + 1e6, z + 1e6, weights), exact, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-8)


@kernels
def test_no_array_of_all_pairs(route, kernel):
    points, z, weights = clouds(3000, 4000, 3)
    route.interact(kernel, points[:10], z[:10], weights[:10])  # what is loaded once is not counted
    route.neighbours(points, z, 3)
    tracemalloc.start()
    route.interact(kernel, points, z, weights)
    route.neighbours(np.tile(points, 5), np.tile(z, 5), 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3000 * 4000 * 8 / 5


def test_a_kernel_of_your_own():
    """Any record with `sums`: here p . z, whose sum is a matrix product."""

    class Linear:
        def sums(self, points, z, mass):
            return points @ (mass @ z), np.broadcast_to(mass @ z, points.shape)

    points, z, weights = clouds(200, 700, 3)
    value, gradient = interactions.interact(Linear(), points, z, weights)
    np.testing.assert_allclose(value, points @ (weights @ z), rtol=1e-12)
    np.testing.assert_allclose(gradient[5], weights @ z, rtol=1e-12)
    pytest.importorskip("numba")
    from meanfield.backends import pairwise

    with pytest.raises(InputError, match="fused pair kernels are Gaussian"):
        pairwise.interact(Linear(), points, z)


def test_what_is_not_a_number_is_not_hidden():
    pytest.importorskip("numba")
    from meanfield.backends import pairwise

    points, z, weights = clouds(3, 10, 3)
    points[1, 0] = math.nan
    for kernel in KERNELS:
        with np.errstate(invalid="ignore"):
            gradient = pairwise.interact(kernel, points, z, weights)[1]
        assert np.isnan(gradient[1]).any() and np.isfinite(gradient[[0, 2]]).all()


def test_refusals(route):
    points, z, weights = clouds(3, 5, 2)
    with pytest.raises(InputError, match="particles"):
        route.interact(Gaussian(1.0), points, z[:, :1], weights)
    with pytest.raises(InputError, match="as many weights"):
        route.interact(Gaussian(1.0), points, z, weights[:4])
    with pytest.raises(InputError, match="at least 1"):
        route.interact(Gaussian(1.0), points, z[:0])
    with pytest.raises(InputError, match="positive"):
        Gaussian(0.0)
    with pytest.raises(InputError, match="'sphere'"):
        ReluPair("cube")
    with pytest.raises(InputError, match="k is from 1 to 4"):
        route.neighbours(z, z, 5, exclude=True)
    with pytest.raises(InputError, match="exclude"):
        route.neighbours(points, z, 1, exclude=True)


# --- nearest neighbours


def exact_neighbours(points, z, k, exclude):
    distance = ((points[:, None].astype(float) - z[None]) ** 2).sum(axis=2)
    if exclude:
        np.fill_diagonal(distance, math.inf)
    return np.sort(distance, axis=1)[:, :k]


@pytest.fixture(params=["numpy", "tree", "pairs", "numba"])
def search(request, monkeypatch):
    """The rule, and each way it chooses from."""
    if request.param == "numba":
        pytest.importorskip("numba")
        from meanfield.backends import pairwise

        monkeypatch.setattr(pairwise, "TREE_DIMENSION", 0)
        return pairwise.neighbours
    if request.param != "numpy":
        monkeypatch.setattr(interactions, "TREE_DIMENSION", {"tree": 100, "pairs": 0}[request.param])
    return interactions.neighbours


@pytest.mark.parametrize("dimension", [1, 2, 10, 21])
def test_neighbours_are_the_nearest(search, dimension):
    for number, m, k in ((1, 1, 1), (70, 3, 3), (200, 601, 7), (5, 4500, 13)):
        points, z, _ = clouds(number, m, dimension)
        np.testing.assert_allclose(search(points, z, k), exact_neighbours(points, z, k, False), rtol=1e-13)
    z = z[:300]
    np.testing.assert_allclose(search(z, z, 5, exclude=True), exact_neighbours(z, z, 5, True), rtol=1e-13)
    assert search(z.astype(np.float32), z.astype(np.float32), 2).dtype == np.float32


def test_neighbours_with_ties_and_copies(search):
    """A lattice, where many are equally near, each point of it thrice; and all points in one place."""
    lattice = np.stack(np.meshgrid(*3 * [np.arange(5.0)]), axis=-1).reshape(-1, 3)
    z = np.concatenate([lattice] * 3)
    np.testing.assert_array_equal(search(z, z, 9, exclude=True), exact_neighbours(z, z, 9, True))
    np.testing.assert_array_equal(search(lattice, z, 9), exact_neighbours(lattice, z, 9, False))
    whole = search(lattice.astype(int), (3 * z).astype(int), 4)
    np.testing.assert_array_equal(whole, exact_neighbours(lattice, 3 * z, 4, False))
    assert whole.dtype == np.float64
    assert not search(np.ones((50, 3)), np.ones((50, 3)), 20, exclude=True).any()


def test_neighbours_where_expanded_squares_know_nothing(search):
    """Two clusters of width 1e-4 at a distance of 1e6: rounding of |z|^2 is larger than any distance within one."""
    points, z, _ = clouds(60, 150, 3)
    points, z = 1e-4 * points, 1e-4 * z
    points[::2] += 1e6
    z[::2] += 1e6
    np.testing.assert_allclose(search(points, z, 6), exact_neighbours(points, z, 6, False), rtol=1e-13)
