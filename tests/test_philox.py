"""The normals made by Numba: those of `noise` to the last bit, whatever is asked for and however."""

import subprocess
import sys

import numpy as np
import pytest
from numba import njit

from meanfield import noise, parallel
from meanfield.backends import philox
from meanfield.backends.philox import fill
from meanfield.errors import InputError
from meanfield.noise import Stream

SEED = 20240229
DTYPES = [np.float64, np.float32]
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def filled(seed, stream, *, step=0, replicate=0, first=0, count, width, first_block=0, dtype=np.float64):
    out = np.full((count, width), np.nan, dtype=dtype)
    fill(out, first, step, int(stream) << 24 | replicate, noise.round_keys(seed), first_block)
    return out


# --- known answers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (np.float64, "-0x1.eeb3cfb80fec7p-1 -0x1.ade89ab4c06a4p0 0x1.fa2deddb16198p-5 -0x1.cc23f2d6f52a8p0"),
        (np.float32, "-0x1.0d1984p+0 0x1.a0a4p+0 -0x1.a4c18p-2 0x1.17e26p-4"),
    ],
)  # fmt: skip
def test_the_known_normals_of_noise(dtype, expected):
    got = filled(SEED, Stream.DIFFUSION, step=7, replicate=2, first=5, count=1, width=4, dtype=dtype)
    assert got[0].tolist() == [float.fromhex(v) for v in expected.split()]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_words_equal_the_random123_known_answers(counter, key, expected):
    words = [np.uint64(word) for word in (*counter, *key)]

    @njit
    def block(a, b, c, d, low, high):
        return philox._philox(a, b, c, d, low, high, 0.0)

    first, second = (int(word) for word in block(*words))
    assert [first >> 32, first & 0xFFFFFFFF, second >> 32, second & 0xFFFFFFFF] == list(expected)


# --- against the definition --------------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("case", range(12))
def test_any_rectangle_of_normals_has_the_bits_of_noise(case, dtype):
    rng = np.random.default_rng(case)
    name = {
        "step": int(rng.integers(2**32)),
        "replicate": int(rng.integers(2**24)),
        "first": int(rng.integers(2**31)),
        "first_block": int(rng.integers(2**31)),
        "count": int(rng.integers(1, 400)),
        "width": int(rng.integers(1, 70)),
        "dtype": dtype,
    }
    seed, stream = int(rng.integers(2**63)) * 2 + 1, Stream(case % len(Stream))
    want = noise.normals(seed, stream, **name)
    for made in (filled, philox.normals):
        got = made(seed, stream, **name)
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, want)


@each_dtype
def test_every_small_width_and_odd_count(dtype):
    for width in range(1, 20):
        for count in (1, 2, 7, 33):
            name = {"step": 3, "count": count, "width": width, "dtype": dtype}
            np.testing.assert_array_equal(filled(SEED, 1, **name), noise.normals(SEED, 1, **name))


@each_dtype
@pytest.mark.parametrize("seed", [0, 2**32 - 1, 2**32, 2**64 - 1])
def test_counters_at_both_ends(seed, dtype):
    per_block = 2 if dtype == np.float64 else 4
    last = {"step": 2**32 - 1, "replicate": 2**24 - 1, "first": 2**32 - 60, "first_block": 2**32 - 3, "count": 60}
    for name in (last, {"step": 0, "replicate": 0, "first": 0, "first_block": 0, "count": 60}):
        asked = {**name, "width": 3 * per_block, "dtype": dtype}
        want = noise.normals(seed, Stream.PROBE, **asked)
        np.testing.assert_array_equal(filled(seed, Stream.PROBE, **asked), want)
        np.testing.assert_array_equal(philox.normals(seed, Stream.PROBE, **asked), want)


@each_dtype
@pytest.mark.parametrize("blocks", [philox.CHUNK - 1, philox.CHUNK, philox.CHUNK + 1, 2 * philox.CHUNK + 3])
def test_rows_as_wide_as_chunks(blocks, dtype):
    per_block = 2 if dtype == np.float64 else 4
    for width in (blocks * per_block, blocks * per_block - 1):
        name = {"step": 5, "first": 9, "count": 3, "width": width, "dtype": dtype}
        np.testing.assert_array_equal(filled(SEED, 2, **name), noise.normals(SEED, 2, **name))


@each_dtype
def test_many_normals_have_the_bits_of_noise(dtype):
    name = {"step": 1, "count": 100_000, "width": 5, "dtype": dtype}
    np.testing.assert_array_equal(philox.normals(SEED, 1, **name), noise.normals(SEED, 1, **name))


def test_nothing_asked_nothing_given():
    assert philox.normals(0, 0, step=0, count=0, width=3).shape == (0, 3)
    assert philox.normals(0, 0, step=0, count=3, width=0, dtype=np.float32).shape == (3, 0)


# --- however it is asked for -------------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("width", [1, 3, 4, 7])
def test_only_the_rows_asked_for_are_written(width, dtype):
    whole = np.full((50, width), np.nan, dtype=dtype)
    for count in (1, 5, 13):
        whole[:] = np.nan
        fill(whole[10 : 10 + count], 0, 0, 0, noise.round_keys(0), 0)
        written = np.zeros(50, dtype=bool)
        written[10 : 10 + count] = True
        assert np.all(np.isnan(whole[~written]))
        assert not np.any(np.isnan(whole[written]))


def test_a_kernel_may_fill_slices_and_use_fast_arithmetic():
    @njit(nogil=True, fastmath=True)
    def steps(xi, z, keys, last_word, first_block):
        for step in range(3):
            for top in range(0, z.shape[0], 32):
                count = min(32, z.shape[0] - top)
                fill(xi[:count], top, step, last_word, keys, first_block)
                for j in range(count):
                    for i in range(z.shape[1]):
                        z[top + j, i] += xi[j, i]

    z = np.zeros((75, 5))
    steps(np.empty((32, 5)), z, noise.round_keys(SEED), 1 << 24 | 4, 0)
    want = np.zeros_like(z)
    for step in range(3):
        want += noise.normals(SEED, 1, step=step, replicate=4, count=75, width=5)
    np.testing.assert_array_equal(z, want)


@each_dtype
def test_bits_do_not_depend_on_the_threads(dtype, monkeypatch):
    monkeypatch.setattr(philox, "PART", 64)
    want = noise.normals(SEED, 1, step=2, first=3, count=501, width=7, dtype=dtype)
    for threads in (1, 2, 3):
        parallel.set_threads(threads)
        try:
            got = philox.normals(SEED, 1, step=2, first=3, count=501, width=7, dtype=dtype)
        finally:
            parallel.set_threads(None)
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": -1}, {"seed": 2**64}, {"seed": 0.5}, {"step": 2**32}, {"replicate": 2**24}, {"stream": 9},
        {"first": 2**32}, {"count": -1}, {"first": 2**32 - 1, "count": 2}, {"width": -1},
        {"first_block": 2**32 - 1}, {"dtype": np.float16},
    ],
    ids=str,
)  # fmt: skip
def test_refusals_are_those_of_noise(change):
    sentences = []
    for made in (noise.normals, philox.normals):
        asked = {"seed": 0, "stream": 0, "step": 0, "count": 1, "width": 3, **change}
        with pytest.raises(InputError) as refusal:
            made(asked.pop("seed"), asked.pop("stream"), **asked)
        sentences.append(str(refusal.value))
    assert sentences[0] == sentences[1]


SCRIPT = """
import numpy as np
from meanfield import noise
from meanfield.backends.philox import fill

out = np.empty((9, 3))
fill(out, 0, 0, 0, noise.round_keys(1), 0)
print(sum(fill.stats.cache_hits.values()), sum(fill.stats.cache_misses.values()), out.tobytes().hex())
"""


def test_another_process_takes_fill_from_the_cache():
    here = filled(1, 0, count=9, width=3)
    printed = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True).stdout
    assert printed.split() == ["1", "0", here.tobytes().hex()]
