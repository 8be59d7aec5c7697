"""Philox4x32-10 [Salmon11] over rectangles of counters: the bits that `noise` makes numbers of.

A round with the key (k0, k1) turns the words (c0, c1, c2, c3) of 32 bits into

    (hi(q) ^ c1 ^ k0, lo(q), hi(p) ^ c3 ^ k1, lo(p)),   p = M0 c0, q = M1 c2

where p and q have 64 bits. Two words are kept in one number, s = (c0 | c1, c2 | c3), so that a round is five passes
in place: s' = (q, p) ^ ((s << 32) ^ (k << 32)). The key of the next round may go into the lower halves before their
time, because products are made of upper halves alone: then two rounds want one pass for their keys.

In a rectangle, step and last word are constants, and particles and blocks lie along different axes, so that the first
three rounds need but four passes over it.
"""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from meanfield.workspace import WorkSpace

CHUNK = 1 << 17  # counters at a time: passes long enough that threads seldom meet between them; six arrays of 1 MiB
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)  # of words 0 and 2
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
ARRAYS = 6  # of work space: the words, and four that are free

Array = npt.NDArray[Any]
# Arrays without dimensions: turning a Python number into one would cost as much as a short pass.
_LOW, _32, _M0, _M1 = (np.array(number, np.uint64) for number in (0xFFFFFFFF, 32, *MULTIPLIERS))
_own = WorkSpace()


def philox(counter: npt.ArrayLike, key: npt.ArrayLike) -> npt.NDArray[np.uint32]:
    """Return Philox4x32-10 of every counter [Salmon11].

    Parameters
    ----------
    counter : uint32 array, shape (4, N)
    key : two words of 32 bits, the low one first

    Returns
    -------
    uint32 array, shape (4, N)
    """
    words = np.asarray(counter, dtype=np.uint64)
    low, high = (int(word) for word in np.asarray(key, dtype=np.uint64))
    even, odd = words[0::2] << _32 | words[1::2]
    first, second = np.empty_like(words[:2])
    _rounds(even, odd, first, second, _keyed(round_keys(high << 32 | low)), ROUNDS)
    return np.stack([even >> _32, even, odd >> _32, odd]).astype(np.uint32)


def round_keys(seed: int) -> Array:
    """Return the key of every round, low word first, shape (ROUNDS, 2, 1)."""
    halves = seed & 0xFFFFFFFF, seed >> 32
    steps = list(zip(halves, KEY_INCREMENTS, strict=True))
    pairs = [[half + i * by & 0xFFFFFFFF for half, by in steps] for i in range(ROUNDS)]
    return np.array(pairs, dtype=np.uint64)[:, :, None]


def chunks(
    seed: int, step: int, last: int, particles: tuple[int, int], blocks: tuple[int, int]
) -> Iterator[tuple[slice, slice, Array]]:
    """Yield slices of rows and blocks, and work space whose first two arrays hold w0 | w1 and w2 | w3 of them.

    Parameters
    ----------
    seed : int
        The key, 64 bits.
    step, last : int
        The third and the fourth word of the counters.
    particles, blocks : first and count
        The rectangle.

    Yields
    ------
    rows, columns : slice
        The part of the rectangle, counted from its first particle and block.
    work : uint64 array, shape (ARRAYS, columns rows)
        Block after block; the thread's own, to be used up before the next part.
    """
    first_keys, rest = _schedule(seed)
    across = max(1, min(blocks[1], CHUNK))
    down = CHUNK // across
    for top in range(0, particles[1], down):
        rows = slice(top, min(top + down, particles[1]))
        for left in range(0, blocks[1], across):
            columns = slice(left, min(left + across, blocks[1]))
            p, b = (
                np.arange(first + part.start, first + part.stop, dtype=np.uint64)
                for first, part in ((particles[0], rows), (blocks[0], columns))
            )
            work = _own.array("words", (ARRAYS, len(p) * len(b)), np.uint64)
            _rectangle(p, b, step, last, first_keys, work[0], work[1])
            _rounds(work[0], work[1], work[2], work[3], rest, ROUNDS - 3)
            yield rows, columns, work


def _rectangle(p: Array, b: Array, step: int, last: int, keys: list[Array], even: Array, odd: Array) -> None:
    """Write the joined words after three rounds, a row a block, from particles p and blocks b."""
    k0, k1, k2, k3, k4, k5 = keys
    shape = len(b), len(p)
    even, odd = even.reshape(shape), odd.reshape(shape)
    q = _M1 * np.uint64(step)  # the first round: particles and blocks have not met
    c0 = b ^ (q >> _32 ^ k0)
    product = p * _M0
    c2, c3 = product >> _32 ^ (np.uint64(last) ^ k1), product & _LOW
    product, q_row = c0 * _M0, c2 * _M1  # the second
    c0, c1 = q_row >> _32 ^ (q & _LOW ^ k2), (q_row ^ k4) << _32
    np.bitwise_xor((product >> _32 ^ k3)[:, None], c3, out=even)  # c2
    even *= _M1  # the third: q
    even ^= c1
    np.bitwise_xor(((product ^ k5) << _32)[:, None], c0 * _M0, out=odd)


@functools.lru_cache(maxsize=64)
def _schedule(seed: int) -> tuple[list[Array], list[tuple[Array, Array]]]:
    """Return the keys of the first three rounds, and those of the others as `_rounds` wants them."""
    keys = round_keys(seed)
    return [np.array(key) for key in keys[:3].reshape(-1)], _keyed(keys[3:])


def _keyed(keys: Array) -> list[tuple[Array, Array]]:
    """Return what is added to c1 | and c3 | in each round: keys of even rounds with those of the next below them."""
    below = np.concatenate([keys[1:], np.zeros_like(keys[:1])])
    return [(np.array(low), np.array(high)) for low, high in (keys << _32 | below)[::2, :, 0]]


def _rounds(even: Array, odd: Array, p: Array, q: Array, keys: list[tuple[Array, Array]], count: int) -> None:
    """Apply rounds to the joined words c0 | c1 and c2 | c3 in place; p and q are work space."""
    for i in range(count):
        np.right_shift(even, _32, out=p)
        np.right_shift(odd, _32, out=q)
        even <<= _32
        odd <<= _32
        if i % 2 == 0:
            low, high = keys[i // 2]
            even ^= low
            odd ^= high
        p *= _M0
        q *= _M1
        even ^= q
        odd ^= p
