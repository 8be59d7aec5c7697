"""The measured half of the fused CPU backend: its sums, its kicks' accounts, their bits, their memory. Cost: 15 s.

Every activation has its own row functions and every size its own cuts, hence the grid; the definition is `reference`.
"""

import itertools
import math
import tracemalloc

import numpy as np
import pytest

from meanfield import backends, parallel
from meanfield.backends import reference
from meanfield.units import ACTIVATIONS, Activation

if backends.unavailable("cpu"):
    pytest.skip(str(backends.unavailable("cpu")), allow_module_level=True)

from meanfield.backends import cpu, sums
from meanfield.backends.fused import BLOCK
from meanfield.backends.rows import rows_for

CLOSE = {"float64": 1e-11, "float32": 1e-4}
TRAIN = ("both", "u", "theta")
EPS = 0.02  # length of the kicks
BOUND = 2e-5  # what single precision in the remainder may add, relative, for so few samples
dtypes = pytest.mark.parametrize("dtype", CLOSE)
activations = pytest.mark.parametrize("name", ACTIVATIONS)


class Problem:
    """A cloud, a reference nearby, weights, inputs and coefficients."""

    def __init__(self, n: int = 7, d: int = 3, m: int = 301, dtype: str = "float64") -> None:
        rng = np.random.default_rng(100 * n + 10 * d + m)
        self.x, self.c = rng.standard_normal((n, d)) / math.sqrt(d), rng.standard_normal(n)
        self.z = rng.standard_normal((m, d + 1)).astype(dtype)
        self.far = self.z + rng.standard_normal(self.z.shape).astype(dtype) / 4
        self.weights = rng.random(m)
        self.weights /= self.weights.sum()

    def calls(self, engine, h: Activation, train: str, far, weights) -> dict:
        """What the functions of the record return, by name; infinities as None."""
        where, kick = (h, self.x, self.z, far, weights), (self.c, EPS, train)
        found = {
            "measure": engine.measure(*where, train, variance=0.7),
            "first-order": engine.measure(*where, train, gram=False),
            "moved": (engine.kick(*where, *kick).z, engine.kick(*where, *kick, at=self.far).z),
            "kick": engine.kick(*where, *kick, account=True),
            "kick at": engine.kick(*where, *kick, account=True, at=self.far),
            "midpoint moved": engine.midpoint_kick(*where, *kick)[:1],
            "midpoint": engine.midpoint_kick(*where, *kick, account=True, variance=0.7),
            "roughness": engine.roughness(h, self.x, self.z, weights, self.c, train),
        }
        return {f"{name} {k}": value for name, parts in found.items() for k, value in enumerate(parts)}


def same(found: dict, wanted: dict, close: float) -> None:
    for key, value in wanted.items():
        assert (found[key] is None) == (value is None), key
        if value is not None:
            if key in ("kick 3", "kick at 3"):
                # A bound, whose rounding is taken to the safe side.
                assert (1 - close) * value <= found[key] <= (1 + BOUND) * value, key
                continue
            # What is left of a midpoint's remainder is small against its terms, which are of first order in eps.
            scale = max(float(np.abs(value).max()), EPS / 100 if key == "midpoint 3" else 0.0)
            np.testing.assert_allclose(found[key], value, rtol=0, atol=close * scale, err_msg=key)


# --- known answers


def test_a_linear_network_has_its_gram_matrix_and_no_curvature() -> None:
    p, h = Problem(n=6, d=2, m=500), ACTIVATIONS["linear"]
    theta, u = p.z[:, :-1], p.z[:, -1]
    found = sums.measure(h, p.x, p.z, p.far, p.weights)
    mean_square = float(p.weights @ u**2)
    second = (theta * p.weights[:, None]).T @ theta
    np.testing.assert_allclose(found.gram, p.x @ (mean_square * np.eye(2) + second) @ p.x.T, rtol=0, atol=1e-13)
    np.testing.assert_array_equal(found.laplacian, 0.0)
    np.testing.assert_allclose(found.pull, 2 * found.psi, rtol=0, atol=1e-14)
    # b = (u v, theta . v), v = X' c: |D^2 phi|^2 = 2 |v|^2 and nothing above.
    v = p.x.T @ p.c
    one, two, three = sums.roughness(h, p.x, p.z, p.weights, p.c)
    assert one == pytest.approx(mean_square * v @ v + p.weights @ (theta @ v) ** 2, rel=1e-12)
    assert two == pytest.approx(2 * v @ v, rel=1e-12) and three == 0


def test_a_cloud_on_its_reference_has_no_gap_and_no_covariance() -> None:
    p = Problem(n=9, d=4, m=700)
    for h in ACTIVATIONS.values():
        found = sums.measure(h, p.x, p.z, p.z.copy(), p.weights, variance=0.7)
        for value in (found.gap, found.covariance, found.psi - found.psi_reference, found.pull - found.pull_reference):
            assert value is not None
            np.testing.assert_array_equal(value, 0.0)


def test_a_kick_of_one_layer_pushes_psi_along_its_gram_matrix() -> None:
    """The first derivative of E psi along b is H c, and E|b|^2 = c' H c."""
    p, h = Problem(n=10, d=3, m=900), ACTIVATIONS["softplus"]
    for train in TRAIN:
        gram = sums.measure(h, p.x, p.z, None, p.weights, train).gram
        moved = sums.kick(h, p.x, p.z, None, p.weights, p.c, 0.01, train, account=True)
        np.testing.assert_allclose(moved.push, gram @ p.c, rtol=0, atol=1e-12 * np.abs(moved.push).max())
        assert moved.speed == pytest.approx(p.c @ gram @ p.c, rel=1e-12) and moved.pull == moved.speed
        assert (moved.remainder == 0) == (train == "u")


@pytest.mark.parametrize("power", [2, 3])
@pytest.mark.parametrize(("n", "d"), [(1, 1), (5, 9), (40, 3)])
def test_a_factor_is_one_of_as_few_rows_as_can_be(n: int, d: int, power: int) -> None:
    x = Problem(n, d).x
    left, wanted = sums.factor(x, power), (x @ x.T) ** power
    np.testing.assert_allclose(left.T @ left, wanted, rtol=0, atol=1e-12 * wanted.max())
    assert len(left) == min(n, math.comb(d + power - 1, power))
    assert sums.factor(x.copy(), power) is left and sums.factor(2 * x, power) is not left


def test_a_tree_is_the_dyadic_sum_whatever_the_order() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, 3, 7, 16, 37):
        values, wanted = rng.standard_normal((count, 5)), parallel.DyadicSum()
        for value in values:
            wanted.add(value.copy())
        for _ in range(3):
            tree = parallel.Tree()
            for k in rng.permutation(count):
                tree.add(int(k), (values[k].copy(),))
            np.testing.assert_array_equal(tree.total()[0], wanted.total())


# --- against the definition


@dtypes
@activations
def test_sums_and_kicks_are_those_of_the_definition(name: str, dtype: str) -> None:
    h = ACTIVATIONS[name]
    for p in (Problem(7, 3, 301, dtype), Problem(1, 1, 5, dtype)):
        for train, far, weights in itertools.product(TRAIN, (p.far, None), (p.weights, None)):
            wanted = p.calls(reference.BACKEND, h, train, far, weights)
            same(p.calls(cpu.BACKEND, h, train, far, weights), wanted, CLOSE[dtype])


@dtypes
def test_several_strips_and_chunks_make_the_same_sums(dtype: str, monkeypatch) -> None:
    monkeypatch.setattr(sums, "STRIP", 1)
    monkeypatch.setattr(sums, "NARROW", BLOCK)
    p, h = Problem(150, 2, 11 * BLOCK + 5, dtype), ACTIVATIONS["sin"]
    assert sums.strip_size(150) == 1 and sums.chunk_size(150) == 2
    for train in TRAIN:
        wanted = p.calls(reference.BACKEND, h, train, p.far, p.weights)
        same(p.calls(cpu.BACKEND, h, train, p.far, p.weights), wanted, CLOSE[dtype])


@pytest.mark.parametrize(("name", "w"), [("erf", 7.5), ("erf", 8.0), ("sigmoid", 60.0), ("softplus", 100.0)])
def test_a_remainder_stays_a_bound_where_squares_leave_single_precision(name: str, w: float) -> None:
    """Neurons that are nearly saturated, under a field large enough that their curvature counts."""
    h, rng = ACTIVATIONS[name], np.random.default_rng(0)
    x, z = np.ones((40, 2)), np.full((256, 3), w / 2)
    z[:, :2] += 0.01 * rng.standard_normal((256, 2))
    c = np.full(40, 1 / (40 * abs(float(h.jet(np.array([w]))[2][0]))))
    arguments = (h, x, z, None, None, c, EPS, "theta")
    wanted = reference.kick(*arguments, account=True).remainder
    assert 1e-4 < wanted <= cpu.BACKEND.kick(*arguments, account=True).remainder <= (1 + BOUND) * wanted


def test_a_kick_too_long_has_no_finite_remainder() -> None:
    p, h = Problem(), ACTIVATIONS["tanh"]
    for kick in (sums.kick, sums.midpoint_kick):
        assert kick(h, p.x, p.z, p.far, None, p.c, 50.0, account=True).remainder == math.inf


def test_an_activation_that_cannot_be_compiled_goes_through_numpy() -> None:
    table = {0: np.tanh}
    tanh = ACTIVATIONS["tanh"]
    h = Activation(**{**vars(tanh), "name": "closed over", "jet": lambda w: tanh.jet(table[0](w)), "pair": None})
    p = Problem(n=3, d=2, m=40)
    same(p.calls(cpu.BACKEND, h, "both", p.far, None), p.calls(reference.BACKEND, h, "both", p.far, None), 0.0)


# --- bits


@dtypes
@activations
def test_psi_has_the_bits_of_predict_for_any_size_of_chunks(name: str, dtype: str, monkeypatch) -> None:
    """What is remembered of a measurement never changes a run."""
    p, h = Problem(11, 4, 9 * BLOCK + 77, dtype), ACTIVATIONS[name]
    for weights, strip in itertools.product((p.weights, None), (1, 1 << 16)):
        monkeypatch.setattr(sums, "STRIP", strip)
        found = sums.measure(h, p.x, p.z, p.far, weights)
        np.testing.assert_array_equal(found.psi, cpu.predict(h, p.x, p.z, weights))
        np.testing.assert_array_equal(found.psi_reference, cpu.predict(h, p.x, p.far, weights))


@dtypes
def test_any_number_of_threads_gives_the_same_bits(dtype: str, monkeypatch) -> None:
    monkeypatch.setattr(sums, "STRIP", 1)
    p, h, found = Problem(20, 3, 4000, dtype), ACTIVATIONS["tanh"], []
    for threads in (1, 2, 3):
        parallel.set_threads(threads)
        try:
            found.append(p.calls(cpu.BACKEND, h, "both", p.far, p.weights))
        finally:
            parallel.set_threads(None)
    for other in found[1:]:
        for key, value in found[0].items():
            np.testing.assert_array_equal(other[key], value, err_msg=key)


@dtypes
def test_a_kick_moves_particles_alike_with_and_without_its_account(dtype: str) -> None:
    p = Problem(9, 3, 500, dtype)
    for h, train in itertools.product(ACTIVATIONS.values(), TRAIN):
        plain, kept = (sums.kick(h, p.x, p.z, p.far, None, p.c, 0.1, train, account=a).z for a in (False, True))
        np.testing.assert_allclose(plain, kept, rtol=0, atol=2 * np.finfo(dtype).eps * np.abs(plain).max())


# --- memory


def test_nothing_of_samples_times_particles_is_held() -> None:
    p, h = Problem(n=200, d=2, m=50_000), ACTIVATIONS["tanh"]
    p.calls(cpu.BACKEND, h, "both", p.far, None)
    tracemalloc.start()
    try:
        sums.measure(h, p.x, p.z, p.far, None, variance=0.7)
        for kick in (sums.kick, sums.midpoint_kick):
            kick(h, p.x, p.z, p.far, None, p.c, EPS, account=True)
        sums.roughness(h, p.x, p.z, None, p.c)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200 * 50_000 * 8 / 4


def test_asking_for_the_reach_of_sines_makes_no_array_of_the_size_of_the_cloud() -> None:
    p, h = Problem(n=2, d=20, m=50_000), ACTIVATIONS["sin"]
    assert rows_for(h, p.x, p.z) is not None
    tracemalloc.start()
    try:
        rows_for(h, p.x, p.z)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < p.z.nbytes / 20
    p.z[7, 3] = np.nan
    assert rows_for(h, p.x, p.z) is None
    p.z[7, 3] = -1e12
    assert rows_for(h, p.x, p.z) is None
