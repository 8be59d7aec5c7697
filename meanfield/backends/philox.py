"""The normals of `noise` for Numba kernels, equal to its own to the last bit.

`fill` runs inside a kernel and needs no GIL; `normals` is `noise.normals` on all threads.

    keys = noise.round_keys(seed)
    last_word = Stream.DIFFUSION << 24 | replicate

    @njit(cache=True, nogil=True)
    def kernel(xi, first, step, last_word, keys):
        fill(xi, first, step, last_word, keys, 0)

Counters are worked in chunks that stay in the first-level cache, in three loops that LLVM vectorises: Philox, radii,
directions. Their formulas are those of `noise`, in its order, every operation rounded by itself: nothing is fused, and
options of the calling kernel (fastmath) do not reach inside.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types

from meanfield import noise, parallel
from meanfield.backends.elementary import Real, emitted, inline
from meanfield.errors import InputError
from meanfield.noise import KEY_INCREMENTS, MULTIPLIERS, PRECISIONS, ROUNDS, Stream

Array = npt.NDArray[Any]
CHUNK = 512  # counters at a time: words and normals together take 16 KiB
PART = 1 << 17  # numbers that a thread makes at a time
_compiled: Any = njit  # its stub lacks an option
# fastmath is named because a function that leaves it out takes it from its caller.
_inner = _compiled(fastmath=False, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
_LOW = 0xFFFFFFFF
_LONG = ir.IntType(64)


def _words(builder: ir.IRBuilder, counter: list[ir.Value], low: ir.Value, high: ir.Value) -> list[ir.Value]:
    """Emit Philox4x32-10 of a counter of four words, each in the lower half of 64 bits; results likewise."""

    def long(number: int) -> ir.Constant:
        return ir.Constant(_LONG, number)

    def lower(value: ir.Value) -> ir.Value:
        return builder.and_(value, long(_LOW))

    a, b, c, d = counter
    for i in range(ROUNDS):
        keys = [builder.add(key, long(i * step)) for key, step in zip((low, high), KEY_INCREMENTS, strict=True)]
        p = builder.mul(lower(a), long(MULTIPLIERS[0]))
        q = builder.mul(lower(c), long(MULTIPLIERS[1]))
        a = builder.xor(builder.xor(builder.lshr(q, long(32)), b), keys[0])
        c = builder.xor(builder.xor(builder.lshr(p, long(32)), d), keys[1])
        b, d = q, p
    return [lower(word) for word in (a, b, c, d)]


@emitted
def _philox(context: Any, particle: Any, block: Any, step: Any, last: Any, low: Any, high: Any, kind: Any) -> Any:
    """Return the words of a counter in two 64-bit numbers: what `_radius` and `_signed` of the type `kind` want."""
    double = kind == types.float64

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: list[ir.Value]) -> ir.Value:
        w0, w1, w2, w3 = _words(builder, list(values[:4]), *values[4:6])

        def joined(high: ir.Value, low: ir.Value) -> ir.Value:
            return builder.or_(builder.shl(high, ir.Constant(_LONG, 32)), low)

        made = [joined(w0, w1), joined(w2, w3)] if double else [joined(w2, w0), joined(w3, w1)]
        return context.make_tuple(builder, signature.return_type, made)

    return types.UniTuple(types.uint64, 2)(*[types.uint64] * 6, kind), generate


def _series(coefficients: tuple[float, ...], z: Real) -> Real:
    """Return c[0] + z (c[1] + z (...)), every operation rounded."""
    value = z * coefficients[-1]
    for c in coefficients[-2:0:-1]:
        value = (value + c) * z
    return value + coefficients[0]


def _radius(even: Real) -> Real:
    """Return sqrt(-log u) of the bits w0 | w1 (float64) or w0 or w2 (float32); the operations of `noise.logarithm`."""
    builder, p = even.builder, _precision(even)
    if even.integer.width == 64:
        u = _fraction(even, builder.lshr(even.bits(), ir.Constant(_LONG, 12))) - (1.0 - 2.0**-53)
    else:
        u = (Real(builder, builder.uitofp(even.bits(), even.value.type)) + 0.5) * 2.0**-32
        u = u.at_most(1.0 - 2.0**-24)
    sqrt_half = ir.Constant(u.integer, p.sqrt_half)
    bits = builder.sub(u.bits(), sqrt_half)
    power = builder.ashr(bits, ir.Constant(u.integer, p.mantissa))
    exponent = Real(builder, builder.sitofp(power, u.value.type))
    bits = builder.and_(bits, ir.Constant(u.integer, (1 << p.mantissa) - 1))
    f = u.from_bits(builder.add(bits, sqrt_half)) - 1.0
    s = f / (f + 2.0)
    z = s * s
    tail = (f - _series(p.log, z) * z) * s - exponent * p.ln2[1]
    return (-((f - tail) + exponent * p.ln2[0])).root()


def _directions(odd: Real) -> tuple[Real, Real]:
    """Return cos -+ sin with their signs, of the bits w2 | w3 (float64) or w1 or w3 (float32)."""
    builder, p = odd.builder, _precision(odd)
    bits = odd.bits()
    if odd.integer.width == 64:
        lower = builder.and_(builder.lshr(bits, ir.Constant(_LONG, 10)), ir.Constant(_LONG, (1 << 52) - 4))
        angle = _fraction(odd, lower) - (1.5 - 2.0**-51)
    else:
        lower = builder.and_(bits, ir.Constant(odd.integer, (1 << 30) - 1))
        centred = builder.sub(lower, ir.Constant(odd.integer, 1 << 29))
        angle = (Real(builder, builder.sitofp(centred, odd.value.type)) + 0.5) * 2.0**-30
    z = angle * angle
    cosine = _series(p.cos, z) * z + 1.0
    sine = _series(p.sin, z) * angle
    top = ir.Constant(odd.integer, 1 << odd.integer.width - 1)
    signs = bits, builder.shl(bits, ir.Constant(odd.integer, 1))
    x, y = (
        odd.from_bits(builder.xor(value.bits(), builder.and_(sign, top)))
        for value, sign in zip((cosine - sine, cosine + sine), signs, strict=True)
    )
    return x, y


def _fraction(like: Real, bits: ir.Value) -> Real:
    """Return 1 + k 2^-52 of an integer k below 2^52."""
    return like.from_bits(like.builder.or_(bits, ir.Constant(_LONG, 0x3FF << 52)))


def _precision(x: Real) -> noise.Precision:
    return PRECISIONS[np.dtype(np.float64 if x.integer.width == 64 else np.float32)]


_inline_radius, _inline_directions = inline(_radius), inline(_directions, 2)


@_inner
def _count(even: Any, odd: Any, count: Any, across: Any, name: Any, key: Any) -> Any:
    """Write the words of `count` counters into `even` and `odd`, 64 bits a counter, `across` blocks a particle.

    `name` is that of the first counter (particle, block, step, last word), `key` the two words of the seed.
    """
    particle, block, step, last = name
    low, high = key
    reciprocal = np.uint64((2**31 + across - 1) // across)
    wide, kind, half = np.uint64(across), even[0], np.uint64(_LOW)
    e, o = even.view(np.uint64), odd.view(np.uint64)
    for i in range(count):
        row = (np.uint64(i) * (reciprocal & half)) >> np.uint64(31)  # i // across, exact since i across < 2^31
        column = np.uint64(i) - (row & half) * (wide & half)
        e[i], o[i] = _philox(particle + row, block + column, step, last, low, high, kind)


@_inner
def _pairs(even: Any, odd: Any, count: Any, target: Any) -> Any:
    """Turn words into pairs of normals, in two loops: together they wait longer for one another than they save."""
    for i in range(count):
        even[i] = _inline_radius(even[i])
    for i in range(count):
        x, y = _inline_directions(odd[i])
        target[2 * i] = x * even[i]
        target[2 * i + 1] = y * even[i]


@emitted
def _copy_eight(context: Any, target: Any, at: Any, source: Any, start: Any) -> Any:
    """Copy source[start : start + 8] to target[at : at + 8]."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: list[ir.Value]) -> ir.Value:
        number = context.get_data_type(target.dtype)
        pointers = [
            builder.bitcast(
                builder.gep(context.make_array(kind)(context, builder, array).data, [index]),
                ir.VectorType(number, 8).as_pointer(),
            )
            for kind, array, index in ((target, *values[:2]), (source, *values[2:]))
        ]
        eight = builder.load(pointers[1], align=target.dtype.bitwidth // 8)
        builder.store(eight, pointers[0], align=target.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(target, types.intp, source, types.intp), generate


@_inner
def _spread(source: Any, stride: Any, target: Any, at: Any, step: Any, length: Any, rows: Any) -> Any:
    """Copy rows of `length` numbers, `stride` apart, to places `step` apart, in this order.

    Eight numbers at a time: what is written beyond a row belongs to later ones, which overwrite it.
    """
    start = 0
    for _ in range(rows):
        if at + length + 7 <= target.size:
            for i in range(0, length, 8):
                _copy_eight(target, at + i, source, start + i)
        else:
            for i in range(length):
                target[at + i] = source[start + i]
        start += stride
        at += step


@_compiled(cache=True, nogil=True, fastmath=False, error_model="numpy")
def fill(out: Any, first: Any, step: Any, last_word: Any, round_keys: Any, first_block: Any) -> Any:
    """Fill the rows of `out` with the normals of particles first, first + 1, ...

    Parameters
    ----------
    out : float64 or float32 array, shape (B, width), contiguous
    first, step, first_block : int
    last_word : int, stream << 24 | replicate
    round_keys : uint64 array, shape (10, 2, 1)
        `noise.round_keys(seed)`, of which the first pair is read.
    """
    count, width = out.shape
    per_block = 16 // out.itemsize
    blocks = (width + per_block - 1) // per_block
    if count == 0 or width == 0:
        return
    key = round_keys[0, 0, 0], round_keys[0, 1, 0]
    across = min(blocks, CHUNK)
    down = min(CHUNK // across, count)
    # Whole vectors are worked: up to 15 counters more than wanted, and the copy reads up to 7 numbers more.
    size = (down * across + 15) // 16 * 16 * per_block
    work = np.empty(2 * size + 8, out.dtype)
    even, odd, pairs = work[: size // 2], work[size // 2 : size], work[size:]
    flat = out.reshape(out.size)
    for top in range(0, count, down):
        rows = min(down, count - top)
        for left in range(0, blocks, across):
            wide = min(across, blocks - left)
            padded = (rows * wide + 15) // 16 * 16
            name = np.uint64(first + top), np.uint64(first_block + left), np.uint64(step), np.uint64(last_word)
            _count(even, odd, padded, wide, name, key)
            at, stride = top * width + left * per_block, wide * per_block
            full = stride == width
            direct = full and padded == rows * wide
            _pairs(even, odd, padded * per_block // 2, flat[at:] if direct else pairs)
            if full and not direct:
                _spread(pairs, 0, flat, at, 0, rows * width, 1)
            elif not direct:
                _spread(pairs, stride, flat, at, width, min(stride, width - left * per_block), rows)


def normals(
    seed: int,
    stream: Stream | int,
    *,
    step: int,
    replicate: int = 0,
    first: int = 0,
    count: int,
    width: int,
    dtype: npt.DTypeLike = np.float64,
    first_block: int = 0,
) -> Array:
    """Return what `noise.normals` returns for the same arguments, with the same errors, made by all threads."""
    kind = np.dtype(dtype)
    if kind not in PRECISIONS:
        raise InputError(f"normals come in float64 or float32, not {kind}.")
    width = noise._whole("width", width, 32)
    blocks = -(-width // (16 // kind.itemsize))
    name = noise._Counters(seed, stream, step, replicate, (first, count), (first_block, blocks))
    out, keys = np.empty((name.count, width), dtype=kind), noise.round_keys(name.seed)

    def work(part: slice) -> None:
        fill(out[part], name.first + part.start, name.step, name.last_word, keys, name.first_block)

    parallel.each_block(work, name.count, max(1, PART // max(width, 1)))
    return out
