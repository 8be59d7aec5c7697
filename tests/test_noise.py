"""Noise: known answers, an independent scalar version, accuracy, laws, invariances, refusals.

Tolerances of statistical tests are 4 standard errors (or a p-value of 1e-4) at seeds fixed in advance.
"""

import math

import numpy as np
import pytest
from scipy import stats

from meanfield import boxmuller, counters, noise
from meanfield.errors import InputError
from meanfield.noise import PRECISIONS, Stream, normals, philox, random_subset, uniforms

SEED = 20240229
DTYPES = [np.float64, np.float32]
EXTENDED = np.finfo(np.longdouble).nmant >= 63


@pytest.fixture(autouse=True)
def strict():
    with np.errstate(all="raise", under="ignore"):
        yield


# --- known answers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (np.float64, "-0x1.eeb3cfb80fec7p-1 -0x1.ade89ab4c06a4p0 0x1.fa2deddb16198p-5 -0x1.cc23f2d6f52a8p0"),
        (np.float32, "-0x1.0d1984p+0 0x1.a0a4p+0 -0x1.a4c18p-2 0x1.17e26p-4"),
    ],
)  # fmt: skip
def test_normals_of_today_are_the_normals_of_tomorrow(dtype, expected):
    got = normals(SEED, Stream.DIFFUSION, step=7, replicate=2, first=5, count=1, width=4, dtype=dtype)
    assert got[0].tolist() == [float.fromhex(v) for v in expected.split()]


# --- an independent route: one number at a time, in the order that the module documents --------------------


def scalar_words(seed, particle, block, step, stream, replicate):
    c = [particle, block, step, stream << 24 | replicate]
    k = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        p, q = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [q >> 32 ^ c[1] ^ k[0], q & 0xFFFFFFFF, p >> 32 ^ c[3] ^ k[1], p & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def horner(coefficients, z):
    real = type(z)
    value = real(coefficients[-1])
    for c in coefficients[-2::-1]:
        value = value * z + real(c)
    return value


def scalar_log(x, p):
    real = type(x)
    fraction, exponent = math.frexp(float(x))  # exact, fraction in [1/2, 1)
    if real(fraction) < real(math.sqrt(0.5)):
        fraction, exponent = 2 * fraction, exponent - 1
    f = real(fraction) - real(1)
    s = f / (f + real(2))
    z = s * s
    tail = s * (f - z * horner(p.log, z)) - real(exponent) * real(p.ln2[1])
    return (f - tail) + real(exponent) * real(p.ln2[0])


def scalar_pair(u, f, negative_x, negative_y, p):
    real = type(u)
    z = f * f
    cosine = real(1) + z * horner(p.cos, z)
    sine = f * horner(p.sin, z)
    radius = np.sqrt(-scalar_log(u, p))
    x, y = radius * (cosine - sine), radius * (cosine + sine)
    return (-x if negative_x else x), (-y if negative_y else y)


def scalar_block(dtype, *counter):
    w = scalar_words(*counter)
    p = PRECISIONS[np.dtype(dtype)]
    if dtype == np.float64:
        u = ((w[0] << 32 | w[1]) >> 12) * 2.0**-52 + 2.0**-53
        f = ((w[2] << 32 | w[3]) >> 12 & (1 << 50) - 1) * 2.0**-50 + (2.0**-51 - 0.5)
        return scalar_pair(np.float64(u), np.float64(f), w[2] >> 31, w[2] >> 30 & 1, p)
    out = []
    one = np.float32
    for a, b in (w[:2], w[2:]):
        u = min((one(a) + one(0.5)) * one(2.0**-32), one(1 - 2.0**-24))
        f = (one((b & (1 << 30) - 1) - (1 << 29)) + one(0.5)) * one(2.0**-30)
        out.extend(scalar_pair(u, f, b >> 31, b >> 30 & 1, p))
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", [0, SEED, 2**64 - 1])
def test_normals_equal_the_scalar_version_to_the_last_bit(dtype, seed):
    per_block = 2 if dtype == np.float64 else 4
    replicate, step, first, block = 2**24 - 1, 2**32 - 1, 2**32 - 60, 2**32 - 3
    got = normals(
        seed, Stream.PROBE, step=step, replicate=replicate, first=first, count=60, width=3 * per_block,
        first_block=block, dtype=dtype,
    )  # fmt: skip
    want = [
        [v for b in range(3) for v in scalar_block(dtype, seed, first + j, block + b, step, 4, replicate)]
        for j in range(60)
    ]
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, np.array(want, dtype=dtype))


def test_uniforms_come_from_the_first_two_words():
    got = uniforms(SEED, Stream.DATA, step=3, replicate=1, first=10, count=50)
    words = [scalar_words(SEED, 10 + j, 0, 3, 3, 1) for j in range(50)]
    np.testing.assert_array_equal(got, [((w[0] << 32 | w[1]) >> 12) * 2.0**-52 + 2.0**-53 for w in words])


# --- accuracy against extended precision -------------------------------------------------------------------


def ulps(got, exact):
    return float(np.max(np.abs(got - exact) / np.spacing(np.abs(exact).astype(got.dtype))))


def arguments(dtype):
    """Uniform ones, tiny ones, ones next to 1 and ones on both sides of the range reduction."""
    rng = np.random.default_rng(0)
    tiny, near = (-53.0, -53.0) if dtype == np.float64 else (-33.0, -24.0)
    n = 300_000
    sets = [
        rng.random(n),
        2 ** rng.uniform(tiny, 0, n),
        1 - 2 ** rng.uniform(near, -1, n),
        rng.uniform(0.69, 0.73, n),
    ]
    x = np.concatenate(sets).astype(dtype)
    return x[(x > 0) & (x < 1)]


@pytest.mark.skipif(not EXTENDED, reason="needs a long double of 64 bits or more")
@pytest.mark.parametrize("dtype", DTYPES)
def test_logarithm_is_within_one_ulp(dtype):
    x = arguments(dtype)
    assert noise.logarithm(np.ones(1, dtype=dtype))[0] == 0.0
    assert ulps(noise.logarithm(x), np.log(x.astype(np.longdouble))) < 1.0


@pytest.mark.skipif(not EXTENDED, reason="needs a long double of 64 bits or more")
@pytest.mark.parametrize("dtype", DTYPES)
def test_cosine_and_sine_are_within_their_stated_ulps(dtype):
    rng = np.random.default_rng(0)
    f = np.concatenate([rng.uniform(-0.5, 0.5, 500_000), 2 ** rng.uniform(-50, -1, 100_000), [0.5, -0.5]])
    f = f.astype(dtype)
    cosine, sine = noise.cosine_sine(f)
    angle = f.astype(np.longdouble) * (2 * np.arctan(np.longdouble(1)))
    assert ulps(cosine, np.cos(angle)) < 1.4
    assert ulps(sine, np.sin(angle)) < 1.8


@pytest.mark.skipif(not EXTENDED, reason="needs a long double of 64 bits or more")
@pytest.mark.parametrize("dtype", DTYPES)
def test_normals_are_box_and_mullers_formula_of_the_words(dtype):
    n, big = 100_000, np.longdouble
    counter = np.zeros((4, n), dtype=np.uint32)
    counter[0], counter[2], counter[3] = np.arange(n), 5, 1 << 24
    w = philox(counter, (SEED, 0)).astype(np.uint64)
    if dtype == np.float64:
        u = ((w[0] << 20 | w[1] >> 12).astype(big) + big(0.5)) / big(2**52)
        v = ((w[2] << 20 | w[3] >> 12).astype(big) + big(0.5)) / big(2**50)
    else:
        u, v = (w[0].astype(big) + big(0.5)) / big(2**32), (w[1].astype(big) + big(0.5)) / big(2**30)
    half_pi = 2 * np.arctan(big(1))
    radius, angle = np.sqrt(-2 * np.log(u)), half_pi * (v % 1)
    x = radius * np.cos(angle) * np.where(v >= 2, -1, 1)
    y = radius * np.sin(angle) * np.where(np.floor(v) % 2 == 1, -1, 1)
    got = normals(SEED, Stream.DIFFUSION, step=5, count=n, width=2, dtype=dtype)
    # For u next to 1 the rounding of u itself counts in float32: d(radius) = du / radius.
    rounding = 0.0 if dtype == np.float64 else 2.0**-25 / radius
    error = np.maximum(np.abs(got[:, 0] - x), np.abs(got[:, 1] - y)) - rounding
    assert float(np.max(error / radius)) < 2 * np.finfo(dtype).eps


@pytest.mark.parametrize(("dtype", "reach"), [(np.float64, 8.5716), (np.float32, 6.7637)])
def test_the_extreme_words_give_finite_normals(dtype, reach):
    corners = np.array(np.meshgrid(*[[0, 1, 2**31, 2**32 - 1]] * 4), dtype=np.uint64).reshape(4, -1)
    work = np.empty((counters.ARRAYS, corners.shape[1]), dtype=np.uint64)
    work[:2] = corners[0::2] << 32 | corners[1::2]
    values = np.array(boxmuller.pairs(work, np.dtype(dtype)))
    assert values.dtype == dtype
    assert np.all(np.isfinite(values))
    assert abs(np.max(np.abs(values)) - reach) < 1e-3


# --- laws ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_normals_have_the_moments_and_the_law_of_normals(dtype):
    x = normals(SEED, Stream.DIFFUSION, step=11, count=50_000, width=8, dtype=dtype).astype(np.float64).ravel()
    n = x.size
    assert abs(x.mean()) < 4 / math.sqrt(n)
    assert abs(np.mean(x**2) - 1) < 4 * math.sqrt(2 / n)
    assert abs(np.mean(x**3)) < 4 * math.sqrt(15 / n)
    assert abs(np.mean(x**4) - 3) < 4 * math.sqrt(96 / n)
    beyond = 2 * stats.norm.sf(3.5)
    assert abs(np.mean(np.abs(x) > 3.5) - beyond) < 4 * math.sqrt(beyond / n)
    assert stats.kstest(x, "norm").pvalue > 1e-4


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_column_is_normal_and_columns_are_uncorrelated(dtype):
    x = normals(SEED, Stream.INIT, step=0, count=40_000, width=9, dtype=dtype).astype(np.float64)
    assert min(stats.kstest(column, "norm").pvalue for column in x.T) > 1e-4
    for f in (x, x**2 - 1, np.abs(x)):
        correlation = np.corrcoef(f.T) - np.eye(9)
        assert np.abs(correlation).max() < 4 / math.sqrt(len(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_pair_is_independent_in_radius_and_angle(dtype):
    x, y = normals(SEED, Stream.INIT, step=1, count=100_000, width=2, dtype=dtype).T.astype(np.float64)
    assert stats.kstest((x**2 + y**2) / 2, "expon").pvalue > 1e-4
    assert stats.kstest(np.arctan2(y, x) / (2 * math.pi) + 0.5, "uniform").pvalue > 1e-4
    quadrants = np.histogram2d(x > 0, y > 0, bins=2)[0].ravel()
    assert stats.chisquare(quadrants).pvalue > 1e-4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "other",
    [
        {"seed": SEED + 1}, {"seed": SEED + (1 << 32)}, {"stream": Stream.INIT}, {"stream": Stream.PROBE},
        {"step": 4}, {"replicate": 1}, {"first_block": 25}, {"first": 2000},
    ],
    ids=str,
)  # fmt: skip
def test_another_name_gives_independent_numbers(dtype, other):
    name = {"seed": SEED, "stream": Stream.DIFFUSION, "step": 3, "replicate": 0, "first": 0, "first_block": 0}
    shape = {"count": 2000, "width": 50, "dtype": dtype}
    x, y = (
        normals(n.pop("seed"), n.pop("stream"), **n, **shape).astype(np.float64)
        for n in (dict(name), {**name, **other})
    )
    for f in (lambda v: v, lambda v: v**2 - 1):
        a, b = f(x), f(y)
        scale = np.sqrt(np.mean(a**2) * np.mean(b**2) / a.size)
        assert abs(np.mean(a * b)) < 4 * scale


def test_neighbouring_particles_and_steps_are_uncorrelated():
    x = np.stack([normals(SEED, 1, step=k, count=3000, width=4) for k in range(20)])
    n = x.size
    assert abs(np.mean(x[1:] * x[:-1])) < 4 / math.sqrt(n)
    assert abs(np.mean(x[:, 1:] * x[:, :-1])) < 4 / math.sqrt(n)
    assert stats.kstest(x.sum(axis=0).ravel() / math.sqrt(20), "norm").pvalue > 1e-4


def test_uniforms_are_uniform_and_inside_the_open_interval():
    u = uniforms(SEED, Stream.DATA, step=0, count=200_000)
    assert u.dtype == np.float64
    assert 0 < u.min() and u.max() < 1
    assert stats.kstest(u, "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 4 / math.sqrt(len(u))


# --- the numbers do not know how they were asked for --------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_do_not_depend_on_the_split(dtype, monkeypatch):
    whole = normals(SEED, 1, step=2, count=301, width=7, dtype=dtype)
    for cut in (1, 100, 300):
        parts = [
            normals(SEED, 1, step=2, first=a, count=b - a, width=7, dtype=dtype) for a, b in ((0, cut), (cut, 301))
        ]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    for chunk in (1, 3, 50):
        monkeypatch.setattr(counters, "CHUNK", chunk)
        np.testing.assert_array_equal(normals(SEED, 1, step=2, count=301, width=7, dtype=dtype), whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_columns_do_not_depend_on_the_width(dtype):
    wide = normals(SEED, 1, step=2, count=20, width=13, dtype=dtype)
    for width in range(14):
        np.testing.assert_array_equal(normals(SEED, 1, step=2, count=20, width=width, dtype=dtype), wide[:, :width])
    per_block = 2 if dtype == np.float64 else 4
    later = normals(SEED, 1, step=2, count=20, width=5, first_block=2, dtype=dtype)
    np.testing.assert_array_equal(later, wide[:, 2 * per_block : 2 * per_block + 5])


def test_a_row_wider_than_a_chunk():
    wide = normals(SEED, 1, step=0, count=2, width=3 * counters.CHUNK + 1)
    block = counters.CHUNK + 17
    there = normals(SEED, 1, step=0, first=1, count=1, width=2, first_block=block)
    np.testing.assert_array_equal(there[0], wide[1, 2 * block : 2 * block + 2])


def test_uniforms_do_not_depend_on_the_split(monkeypatch):
    whole = uniforms(SEED, 1, step=2, count=100)
    np.testing.assert_array_equal(uniforms(SEED, 1, step=2, first=40, count=60), whole[40:])
    monkeypatch.setattr(counters, "CHUNK", 7)
    np.testing.assert_array_equal(uniforms(SEED, 1, step=2, count=100), whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_asked_nothing_given(dtype):
    assert normals(0, 0, step=0, count=0, width=3, dtype=dtype).shape == (0, 3)
    assert normals(0, 0, step=0, count=3, width=0, dtype=dtype).shape == (3, 0)
    assert uniforms(0, 0, step=0, count=0).shape == (0,)
    assert normals(0, 0, step=0, count=1, width=1, dtype=dtype).dtype == dtype


# --- subsets ------------------------------------------------------------------------------------------------


def test_subsets_are_sorted_and_distinct():
    for n, size in ((1, 1), (10, 3), (10, 10), (20_000, 64)):
        chosen = random_subset(SEED, step=0, n=n, size=size)
        assert chosen.dtype == np.intp
        assert chosen.shape == (size,)
        assert np.all(np.diff(chosen) > 0) and 0 <= chosen[0] and chosen[-1] < n
    assert random_subset(SEED, step=0, n=5, size=0).shape == (0,)


def test_every_subset_is_equally_likely():
    draws = 3000
    found = [tuple(random_subset(SEED, step=k, n=5, size=2).tolist()) for k in range(draws)]
    counts = [found.count((i, j)) for i in range(5) for j in range(i + 1, 5)]
    assert sum(counts) == draws
    assert stats.chisquare(counts).pvalue > 1e-4


def test_subsets_of_steps_and_replicates_differ():
    subsets = [random_subset(SEED, step=k, replicate=r, n=1000, size=50) for k in range(2) for r in range(2)]
    assert len({s.tobytes() for s in subsets}) == 4
    assert max(len(np.intersect1d(subsets[0], s)) for s in subsets[1:]) < 2.5 + 4 * math.sqrt(2.5)


def test_equal_keys_are_ranked_by_index(monkeypatch):
    def constant(even, odd, *others):
        even[...], odd[...] = 1, 1

    monkeypatch.setattr(counters, "_rounds", constant)
    np.testing.assert_array_equal(random_subset(0, step=0, n=9, size=4), np.arange(4))


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": -1}, "seed"), ({"seed": 2**64}, "seed"), ({"seed": 0.5}, "whole number"),
        ({"step": 2**32}, "step"), ({"step": -1}, "step"), ({"replicate": 2**24}, "replicate"),
        ({"stream": 9}, "stream"), ({"first": 2**32}, "particles"), ({"count": -1}, "particles"),
        ({"first": 2**32 - 1, "count": 2}, "particles"), ({"width": -1}, "width"),
        ({"first_block": 2**32 - 1}, "blocks"),
        ({"dtype": np.float16}, "float64 or float32"), ({"dtype": np.int64}, "float64 or float32"),
    ],
    ids=str,
)  # fmt: skip
def test_impossible_names_are_refused_with_a_sentence(change, says):
    asked = {"seed": 0, "stream": 0, "step": 0, "count": 1, "width": 3, **change}
    with pytest.raises(InputError, match=says):
        normals(asked.pop("seed"), asked.pop("stream"), **asked)


def test_a_subset_larger_than_the_set_is_refused():
    with pytest.raises(InputError, match="size 6 does not fit into n = 5"):
        random_subset(0, step=0, n=5, size=6)
