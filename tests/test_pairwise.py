"""Particles that act on one another: each pair once, as often as by the definition; the schedule of the pairs. 8 s."""

import itertools
import math
import threading
import time

import numpy as np
import pytest

from meanfield import interactions, parallel
from meanfield.interactions import ErfPair, Gaussian, ReluPair

pytest.importorskip("numba")
from numba import njit

from meanfield.backends import pairwise, tiles

KERNELS = [Gaussian(0.9), ErfPair(), ReluPair(), ReluPair("sphere")]
kernels = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: type(kernel).__name__.lower())
TOLERANCE = {np.float64: 1e-13, np.float32: 2e-6}


@pytest.fixture
def threads():
    yield parallel.set_threads
    parallel.set_threads(None)


def cloud(m, dimension, dtype=np.float64):
    rng = np.random.default_rng(m)
    return rng.normal(size=(m, dimension)).astype(dtype), rng.normal(size=m).astype(dtype)


def lanes(dtype):
    return tiles.ROW_BYTES // np.dtype(dtype).itemsize


def agree(found, exact, tolerance, own=0.0):
    """Up to so much of the largest value, or of a particle's own share, which is in sums and cancels in gradients."""
    for left, right in zip(found, exact, strict=True):
        assert left.shape == right.shape
        np.testing.assert_allclose(left, right, rtol=0, atol=tolerance * (np.abs(right).max() + own))


# --- what each of two paths gives


def test_two_particles():
    """By hand: unequal weights, and a particle's own share."""
    z = np.array([[0.0, 0], [3, 4]])
    k = math.exp(-25 / (2 * 16))
    value, gradient = pairwise.interact(Gaussian(4.0), z, z, np.array([2.0, -1]))
    np.testing.assert_allclose(value, [2 - k, 2 * k - 1], rtol=0, atol=1e-15)
    np.testing.assert_allclose(gradient, [-k / 16 * z[1], -2 * k / 16 * z[1]], rtol=0, atol=1e-15)


@kernels
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_both_paths_are_the_definition(kernel, dtype):
    """Fewer particles than a block, a whole one, one more, odd and even numbers of blocks and of groups; weights."""
    block = lanes(dtype)
    for m in (1, 2, 3, block - 1, block, block + 1, 3 * block, 5 * block + 6, 8 * block + 1):
        z, weights = cloud(m, 3, dtype)
        for mass in (None, weights):
            exact = interactions.interact(kernel, z.astype(float), z.astype(float), mass)
            own = np.abs(z).max() * (1 / m if mass is None else np.abs(mass).max())
            together = pairwise.interact(kernel, z, z, mass)
            apart = pairwise.interact(kernel, np.vstack([z, z[:1]]), z, mass)
            assert together[0].dtype == dtype
            agree(together, exact, TOLERANCE[dtype], own)
            agree([part[:m] for part in apart], exact, TOLERANCE[dtype], own)


@kernels
@pytest.mark.parametrize("dimension", [1, 2, 10, 33])
def test_dimensions(kernel, dimension):
    z, weights = cloud(450, dimension)
    exact = interactions.interact(kernel, z, z, weights)
    agree(pairwise.interact(kernel, z, z, weights), exact, 1e-13, np.abs(z).max() * np.abs(weights).max())


@kernels
def test_equal_points_are_the_particles(kernel):
    """A copy takes the same way, to the last bit."""
    z, weights = cloud(300, 3)
    for left, right in zip(pairwise.interact(kernel, z, z, weights), pairwise.interact(kernel, z.copy(), z, weights),
                           strict=True):  # fmt: skip
        np.testing.assert_array_equal(left, right)


def test_each_pair_is_worked_once(monkeypatch):
    """The tiles that are asked for cover every pair of blocks once, a block with itself included."""
    met, meet = [], tiles.meet

    def noted(form, face, first, last, start, end, totals):
        met.extend((a, b) for a in range(first, last) for b in range(max(start, a), end))
        meet(form, face, first, last, start, end, totals)

    monkeypatch.setattr(tiles, "meet", noted)
    z, _ = cloud(19 * lanes(np.float64), 2)
    pairwise.interact(Gaussian(1.0), z, z)
    assert sorted(met) == list(itertools.combinations_with_replacement(range(19), 2))
    monkeypatch.setattr(tiles, "meet", None)  # points that are not the particles go another way
    pairwise.interact(Gaussian(1.0), z[:-1], z)


@kernels
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_equal_bits_for_any_number_of_threads(kernel, dtype, threads):
    z, weights = cloud(2500, 3, dtype)
    found = []
    for count in (1, 2, 3, 5):
        threads(count)
        found += [pairwise.interact(kernel, z, z, weights) for _ in range(2)]
    for other in found[1:]:
        for left, right in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("abreast", [1, 2])
def test_bits_do_not_depend_on_how_many_vectors_go_abreast(abreast, monkeypatch):
    """Which is fewer where a processor's registers are shorter."""
    z, weights = cloud(2 * lanes(np.float64) + 3, 3)
    known = pairwise.interact(Gaussian(1.0), z, z, weights)
    monkeypatch.setattr(tiles, "ABREAST", abreast)
    monkeypatch.setattr(tiles, "meet", njit(tiles.meet.py_func))
    for left, right in zip(pairwise.interact(Gaussian(1.0), z, z, weights), known, strict=True):
        np.testing.assert_array_equal(left, right)


def test_forces_on_one_another_cancel():
    """sum_i w_i grad k(z_i, z_j) w_j = 0 for a kernel of differences; the mass of float32 sums is that of float64."""
    z, _ = cloud(3000, 2, np.float32)
    value, gradient = pairwise.interact(Gaussian(1.0), z, z)
    assert np.abs(gradient.astype(float).mean(axis=0)).max() < 1e-8
    exact = interactions.interact(Gaussian(1.0), z.astype(float), z.astype(float))[0].mean()
    assert value.astype(float).mean() == pytest.approx(exact, rel=1e-7)


@kernels
def test_what_is_not_a_number_is_not_hidden(kernel):
    z, _ = cloud(200, 3)
    z[150, 1] = math.nan
    with np.errstate(invalid="ignore"):
        value, gradient = pairwise.interact(kernel, z, z)
    assert np.isnan(value).all() and np.isnan(gradient).any(axis=1).all()


def test_long_and_nearly_parallel():
    """arcsin near 1: the bound on 1 - s^2 is that of the shorter theta, for both of a pair."""
    z = np.array([[1e9, 0, 1], [3e9, 1e-7, 1], [1e-3, 0, 2]])
    agree(pairwise.interact(ErfPair(), z, z), interactions.interact(ErfPair(), z, z), 1e-13)


# --- the schedule


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 7, 16])
def test_a_tournament_has_every_pair_once(count):
    pairs = parallel.tournament(count)
    assert sorted(pairs) == list(itertools.combinations(range(count), 2))
    for turn in range(count - 1 if count % 2 == 0 else count):
        size = count // 2
        numbers = [number for pair in pairs[turn * size : (turn + 1) * size] for number in pair]
        assert len(numbers) == len(set(numbers))


@pytest.mark.parametrize("number", [1, 2, 5])
def test_meetings_of_one_number_are_in_one_order_and_one_at_a_time(number, threads):
    threads(number)
    busy, seen, guard = set(), {k: [] for k in range(7)}, threading.Lock()

    def meet(a, b):
        with guard:
            assert not busy & {a, b}
            busy.update((a, b))
        time.sleep(1e-4 * ((3 * a + b) % 5))
        with guard:
            busy.difference_update((a, b))
            for k in {a, b}:
                seen[k].append((a, b))

    parallel.each_pair(meet, 7)
    order = [(k, k) for k in range(7)] + parallel.tournament(7)
    assert seen == {k: [pair for pair in order if k in pair] for k in range(7)}


def test_a_meeting_that_fails_does_not_leave_others_waiting(threads):
    threads(3)

    def meet(a, b):
        if (a, b) == (1, 1):
            raise ValueError("one of them")

    with pytest.raises(ValueError, match="one of them"):
        parallel.each_pair(meet, 8)
