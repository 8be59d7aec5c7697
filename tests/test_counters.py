"""Philox: known answers, and rectangles of counters against counters one by one."""

import numpy as np
import pytest

from meanfield import counters
from meanfield.counters import philox


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
def test_philox_equals_the_random123_known_answers(counter, key, expected):
    words = philox(np.array(counter, dtype=np.uint32)[:, None], key)
    assert words.dtype == np.uint32
    assert words[:, 0].tolist() == list(expected)


def test_rectangles_of_counters_have_the_words_of_philox(monkeypatch):
    seed, step, last = 2**64 - 5, 2**32 - 2, 4 << 24 | 7
    p, b = np.arange(2**32 - 60, 2**32), np.arange(2**32 - 9, 2**32)
    everyone = np.array([[j, k, step, last] for k in b for j in p], dtype=np.uint32)
    w = philox(everyone.T, (seed & 0xFFFFFFFF, seed >> 32)).astype(np.uint64)
    wanted = np.array([w[0] << 32 | w[1], w[2] << 32 | w[3]]).reshape(2, 9, 60)
    for chunk in (counters.CHUNK, 100, 4):
        monkeypatch.setattr(counters, "CHUNK", chunk)
        found = np.zeros_like(wanted)
        for rows, columns, work in counters.chunks(seed, step, last, (2**32 - 60, 60), (2**32 - 9, 9)):
            found[:, columns, rows] = work[:2].reshape(2, columns.stop - columns.start, -1)
        np.testing.assert_array_equal(found, wanted)


def test_the_tree_of_sums_of_rows_is_that_of_numbered_sums():
    from meanfield.dyadic import DyadicSum, tree_sum

    for count in range(1, 40):
        rows = np.random.default_rng(count).standard_normal((count, 3))
        total = DyadicSum()
        for row in rows:
            total.add(row)
        np.testing.assert_array_equal(tree_sum(rows), total.total())
