"""Elementary functions of the Numba kernels: accuracy, special values, same bits everywhere, vector code, cache."""

import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from llvmlite import binding
from numba import njit
from numba.core.errors import TypingError

from meanfield.backends import elementary, forms
from meanfield.backends.elementary import cos, erf, exp, fma, inline, log1p, logistic, sin, tanh

ULP = elementary.ULP | forms.ULP
EXTENDED = np.finfo(np.longdouble).nmant >= 63
DTYPES = [np.float64, np.float32]
LIMIT = {np.float64: 2.0**30, np.float32: 2.0**15}  # of sin and cos


@njit
def exp_loop(x, out):
    for i in range(x.size):
        out[i] = exp(x[i])


@njit
def tanh_loop(x, out):
    for i in range(x.size):
        out[i] = tanh(x[i])


@njit
def erf_loop(x, out):
    for i in range(x.size):
        out[i] = erf(x[i])


@njit
def sin_loop(x, out):
    for i in range(x.size):
        out[i] = sin(x[i])


@njit
def cos_loop(x, out):
    for i in range(x.size):
        out[i] = cos(x[i])


@njit
def log1p_loop(x, out):
    for i in range(x.size):
        out[i] = log1p(x[i])


@njit
def logistic_loop(x, out):
    for i in range(x.size):
        out[i] = logistic(x[i])[0]


decay, arcsin = inline(forms.decay), inline(forms.arcsin)


@njit
def decay_loop(x, out):
    for i in range(x.size):
        out[i] = decay(x[i])


@njit
def arcsin_loop(x, out):
    for i in range(x.size):
        out[i] = arcsin(x[i])


LOOPS = {
    "exp": exp_loop,
    "tanh": tanh_loop,
    "erf": erf_loop,
    "sin": sin_loop,
    "cos": cos_loop,
    "log1p": log1p_loop,
    "logistic": logistic_loop,
    "decay": decay_loop,
    "arcsin": arcsin_loop,
}
ALONE = {name: getattr(elementary, name) for name in LOOPS if name not in ("logistic", *forms.ULP)}
each_function = pytest.mark.parametrize("name", LOOPS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def values(name, x):
    out = np.empty_like(x)
    LOOPS[name](x, out)
    return out


# --- accuracy against extended precision -------------------------------------------------------------------


def extended_erf(x):
    """The series of erf with positive terms below 2.5, the continued fraction of erfc above."""
    a = np.minimum(np.abs(x), 9)
    root_pi = np.sqrt(4 * np.arctan(np.longdouble(1)))
    near = np.minimum(a, 2.5)
    term = series = near
    for k in range(1, 90):
        term = term * 2 * near * near / (2 * k + 1)
        series = series + term
    far = np.maximum(a, 2.5)
    fraction = far
    for k in range(120, 0, -1):
        fraction = far + k / (2 * fraction)
    inside, outside = 2 / root_pi * np.exp(-near * near) * series, 1 - np.exp(-far * far) / (fraction * root_pi)
    return np.copysign(np.where(a < 2.5, inside, outside), x)


REFERENCES = {
    "exp": np.exp,
    "tanh": np.tanh,
    "erf": extended_erf,
    "sin": np.sin,
    "cos": np.cos,
    "log1p": np.log1p,
    "logistic": lambda x: 1 / (1 + np.exp(-x)),
    "decay": lambda x: np.exp2(-x),
    "arcsin": np.arcsin,
}


def arguments(name, dtype, n):
    """Dense and random points of the whole domain, tiny ones, and ones next to the seams of the range reductions."""
    rng = np.random.default_rng(3)
    double = dtype == np.float64
    tiny = 2.0 ** rng.uniform(-1022 if double else -126, 0, n)
    jitter = 1 + rng.choice([-1, 1], n) * 2.0 ** rng.uniform(-50, -4, n)
    seams = (rng.integers(-30, 31, n) + 0.5) * np.log(2) / 2 * jitter
    if name == "log1p":
        return np.concatenate([np.linspace(0, 1, n), rng.random(n), tiny, 1 - tiny]).astype(dtype)
    if name == "arcsin":
        near_half = 0.5 * jitter
        ones = np.concatenate([rng.uniform(0, 1, n), tiny, 1 - tiny, near_half[near_half <= 1]])
        return np.concatenate([ones, -ones]).astype(dtype)
    if name == "decay":
        most = 1022 if double else 126
        seams = np.minimum(rng.integers(0, most, n) + 0.5 * jitter, most)
        return np.concatenate([rng.uniform(0, most, n), np.linspace(0, 3, n), tiny, seams]).astype(dtype)
    if name in ("sin", "cos"):
        limit = LIMIT[dtype]
        zeros = np.pi / 2 * rng.integers(-int(limit / 2), int(limit / 2), n)
        near = np.pi / 4 * rng.integers(-99, 99, n) * jitter
        return np.concatenate([np.linspace(-7, 7, n), rng.uniform(-limit, limit, n), tiny, zeros, near]).astype(dtype)
    low, high = {"exp": (-708, 709.7), "logistic": (-708, 60)}.get(name, (-23, 23))
    if not double:
        low, high = max(low, -87), min(high, 88.7)
    dense = np.linspace(-3, 3, n)
    return np.concatenate([rng.uniform(low, high, n), dense, tiny, -tiny, seams, 2 * seams]).astype(dtype)


@pytest.mark.skipif(not EXTENDED, reason="needs a long double of 64 bits or more")
@each_dtype
@each_function
def test_errors_stay_below_the_stated_ulps(name, dtype):
    x = arguments(name, dtype, 5_000 if name == "erf" else 25_000)
    got = values(name, x)
    with np.errstate(all="ignore"):
        exact = REFERENCES[name](x.astype(np.longdouble))
        error = np.abs(got - exact) / np.spacing(np.abs(exact).astype(dtype))
    worst = int(np.argmax(np.where(np.isnan(error), np.inf, error)))
    assert got.dtype == dtype
    assert error[worst] <= ULP[name][np.dtype(dtype)] <= 3, x[worst]


def test_the_reference_of_erf_is_that_of_the_tables():
    x = np.array([0.0, 0.5, 1.0, 2.4, 2.6, 4.0, -1.0], dtype=np.longdouble)
    known = [0.0, 0.5204998778130465, 0.8427007929497149, 0.9993114861033549, 0.9997639655834707, 0.9999999845827421,
             -0.8427007929497149]  # fmt: skip
    np.testing.assert_allclose(extended_erf(x).astype(np.float64), known, rtol=3e-16)


@pytest.mark.skipif(not EXTENDED, reason="needs a long double of 64 bits or more")
@each_dtype
@pytest.mark.parametrize("name", ["exp", "logistic"])
def test_subnormal_results_are_right_to_their_last_place(name, dtype):
    low, high = (-745.5, -708.0) if dtype == np.float64 else (-104.5, -87.0)
    x = np.linspace(low, high, 20_001).astype(dtype)
    got = values(name, x)
    with np.errstate(all="ignore"):
        error = np.abs(got - REFERENCES[name](x.astype(np.longdouble)))
        unit = np.spacing(np.abs(got))
    assert np.count_nonzero(got < np.finfo(dtype).tiny) > 10_000
    assert np.all(error <= 3 * unit)


# --- special values ----------------------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize(
    ("name", "x", "expected"),
    [
        ("exp", [0.0, -0.0, np.inf, -np.inf, 800.0, -800.0], [1.0, 1.0, np.inf, 0.0, np.inf, 0.0]),
        ("tanh", [0.0, -0.0, np.inf, -np.inf, 23.0, -1e30], [0.0, -0.0, 1.0, -1.0, 1.0, -1.0]),
        ("erf", [0.0, -0.0, np.inf, -np.inf, 6.0, -1e30], [0.0, -0.0, 1.0, -1.0, 1.0, -1.0]),
        ("sin", [0.0, -0.0, np.inf, -np.inf, 2e9, -2e9], [0.0, -0.0, np.nan, np.nan, np.nan, np.nan]),
        ("cos", [0.0, -0.0, np.inf, -np.inf, 2e9, -2e9], [1.0, 1.0, np.nan, np.nan, np.nan, np.nan]),
        ("log1p", [0.0, -0.0, -1e-30, 1.001, np.inf, -np.inf], [0.0, -0.0, np.nan, np.nan, np.nan, np.nan]),
        ("logistic", [0.0, -0.0, np.inf, -np.inf, 800.0, -800.0], [0.5, 0.5, 1.0, 0.0, 1.0, 0.0]),
        ("decay", [0.0, -0.0, np.inf, 1.0, 1e30, 2000.0], [1.0, 1.0, 0.0, 0.5, 0.0, 0.0]),
        ("arcsin", [0.0, -0.0, 0.5, np.inf, 1.001, 2.0], [0.0, -0.0, np.pi / 6, np.nan, np.nan, np.nan]),
    ],
)
def test_special_values(name, x, expected, dtype):
    got = values(name, np.array([*x, np.nan], dtype=dtype))
    want = np.array([*expected, np.nan], dtype=dtype)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(np.signbit(got[:-1]), np.signbit(np.nan_to_num(want[:-1])) & ~np.isnan(want[:-1]))


@each_dtype
@pytest.mark.parametrize("name", ["tanh", "sin", "log1p", "arcsin"])
def test_tiny_and_subnormal_arguments_come_back(name, dtype):
    info = np.finfo(dtype)
    x = np.array([info.smallest_subnormal, 5 * info.smallest_subnormal, info.tiny, info.eps**2], dtype=dtype)
    np.testing.assert_array_equal(values(name, x), x)


@each_dtype
def test_a_decay_falls_to_nothing(dtype):
    """Below the normal numbers 2^-x is replaced by 2 2^-x - (the smallest of them), and by 0 where that is negative."""
    most = 1022 if dtype == np.float64 else 126
    x = most + np.linspace(0, 2, 2001).astype(dtype)
    got = values("decay", x) / np.finfo(dtype).tiny
    assert got[0] == 1 and np.all(np.diff(got) <= 0) and np.all(got[x >= most + 1] == 0)
    np.testing.assert_allclose(got, np.maximum(2 * np.exp2(most - x) - 1, 0), atol=4 * np.finfo(dtype).eps)


@each_dtype
def test_erf_of_subnormal_numbers(dtype):
    k = np.array([1, 2, 7, 100, 12345])
    unit = np.finfo(dtype).smallest_subnormal
    got = values("erf", (k * unit).astype(dtype)) / unit
    assert np.all(np.abs(got - 2 / np.sqrt(np.pi) * k) <= 1.5)


@each_dtype
@pytest.mark.parametrize("name", ["tanh", "erf"])
def test_sigmoids_are_odd_bounded_and_saturate(name, dtype):
    x = np.linspace(0, 25, 200_001).astype(dtype)
    got = values(name, x)
    np.testing.assert_array_equal(values(name, -x), -got)
    assert got.max() == 1.0
    assert np.all(got[x >= (20 if name == "tanh" else 6)] == 1.0)


@each_dtype
def test_logistic_gives_both_sides(dtype):
    for x in np.array([-100.0, -3.0, -0.0, 0.5, 40.0], dtype=dtype):
        here, there = logistic(x)
        assert (there, here) == logistic(-x)
        assert abs(here + there - 1) <= np.finfo(dtype).eps


def test_fma_rounds_once():
    @njit
    def residual(x):
        y = x * x
        return fma(x, x, -y)

    x = 1 + 2.0**-30
    assert residual(x) == 2.0**-60
    assert residual(np.float32(1 + 2.0**-13)) == 2.0**-26


def test_whole_numbers_are_refused():
    with pytest.raises(TypingError):
        tanh(1)


# --- the same bits in every loop ---------------------------------------------------------------------------


@each_dtype
@each_function
def test_bits_do_not_depend_on_the_loop(name, dtype):
    x = arguments(name, dtype, 37)
    whole = values(name, x)
    for first, count in ((0, 1), (1, 3), (2, 7), (3, 16), (5, 31), (7, 101)):
        np.testing.assert_array_equal(values(name, x[first : first + count]), whole[first : first + count])
    np.testing.assert_array_equal(values(name, x[::3]), whole[::3])
    if name in ALONE:
        np.testing.assert_array_equal(np.array([ALONE[name](v) for v in x], dtype=dtype), whole)


def test_options_of_the_caller_do_not_reach_inside():
    @njit(fastmath=True, error_model="python")
    def loose(x, out, total):
        for i in range(x.size):
            out[i] = tanh(x[i]) + (erf(x[i]) - erf(x[i]))
            total += exp(-x[i] * x[i]) * sin(x[i])
        return total

    x = np.linspace(-5, 5, 1001)
    out = np.empty_like(x)
    loose(x, out, 0.0)
    np.testing.assert_array_equal(out, values("tanh", x))


# --- vector code, and the cache ----------------------------------------------------------------------------


def machine_code(loop, dtype):
    """The assembly of a loop over a contiguous array."""
    texts = [
        text for (x, *_), text in loop.inspect_asm().items() if x.dtype.name == np.dtype(dtype).name and x.layout == "C"
    ]
    assert len(texts) == 1
    return texts[0]


def calls(text, name):
    return re.search(rf"(call\w*|movabsq)\s+\*?\$?{name}f?\b", text) is not None


@pytest.mark.skipif(not binding.get_host_cpu_features().get("avx2"), reason="looks for instructions of AVX2")
@each_dtype
@each_function
def test_loops_become_vector_code_without_calls(name, dtype):
    values(name, np.ones(1, dtype=dtype))
    text = machine_code(LOOPS[name], dtype)
    assert re.search(rf"vfn?m(add|sub)\d+p{'d' if dtype == np.float64 else 's'}\s.*%[yz]mm", text)
    assert not calls(text, name)


def test_a_call_of_the_library_would_be_seen():
    @njit
    def library(x, out):
        for i in range(x.size):
            out[i] = math.tanh(x[i])

    library(np.ones(1), np.ones(1))
    assert calls(machine_code(library, np.float64), "tanh")


SCRIPT = """
import numpy as np
from numba import njit
from meanfield.backends.elementary import erf, sin, tanh

@njit(cache=True, nogil=True)
def kernel(x, out):
    for i in range(x.size):
        out[i] = tanh(x[i]) + erf(x[i]) * sin(x[i])

x = np.linspace(-2, 2, 99)
out = np.empty_like(x)
kernel(x, out)
hits, misses = kernel.stats.cache_hits, kernel.stats.cache_misses
print(sum(hits.values()), sum(misses.values()), sum(tanh.stats.cache_misses.values()), out.tobytes().hex())
"""


def run(script, cache, **environment):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), **environment}
    done = subprocess.run([sys.executable, str(script)], env=environment, check=True, capture_output=True, text=True)
    return done.stdout.split()


@pytest.fixture(scope="module")
def first_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("process")
    script = folder / "script.py"
    script.write_text(SCRIPT)
    return script, folder / "cache", run(script, folder / "cache")


def test_a_second_process_takes_kernels_from_the_cache(first_process):
    script, cache, first = first_process
    assert first[:3] == ["0", "1", "1"]
    assert run(script, cache) == ["1", "0", "0", first[3]]


@pytest.mark.skipif(not binding.get_process_triple().startswith("x86_64"), reason="names features of x86-64")
def test_a_processor_without_fused_operations_gives_the_same_bits(first_process):
    script, cache, first = first_process
    plain = run(script, cache, NUMBA_CPU_NAME="x86-64", NUMBA_CPU_FEATURES="+sse2,-avx,-avx512f,-fma")
    assert plain == first
