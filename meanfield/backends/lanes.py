"""Vector loops over a block of particles, written as LLVM code: nothing is left to the vectoriser or to chance.

Particles of a block lie side by side in rows, and a vector (64 bytes; LLVM splits it where registers are shorter)
holds one coordinate of neighbouring particles. Accumulators stay in registers over the whole inner loop. Every product
goes through a fused multiply-add in the order written here, so these sums have the same bits in whatever kernel they
stand and on every processor that has the instruction.

    inner(x, i, tt, w)      w[s, j] = sum_k x[i + s, k] tt[k, j]
    back(cx, c, i, h, g, gt, gu)   gt[k, j] += sum_s cx[i + s, k] g[s, j],   gu[j] += sum_s c[i + s] h[s, j]
    weighted_sums(v, h, out, i)    out[i + s] = sum_j v[j] h[s, j] in float64

s runs over SAMPLES samples, j over the particles of a block, a multiple of the vector's length.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

SAMPLES = 4  # worked together
BYTES = 64  # of a vector
ABREAST = 2  # vectors in flight for each sample
INDEX = ir.IntType(64)


class Code:
    """A builder with the few operations that the loops below are made of."""

    def __init__(self, context: Any, builder: Any, number: Any) -> None:
        self.context, self.builder = context, builder
        self.number = context.get_data_type(number)
        self.lanes = BYTES * 8 // number.bitwidth
        self.vector = ir.VectorType(self.number, self.lanes)
        self.zero = ir.Constant(self.vector, [0.0] * self.lanes)
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        name = f"llvm.fma.v{self.lanes}f{number.bitwidth}"
        self.fused = cgutils.get_or_insert_function(builder.module, kind, name)

    def array(self, kind: Any, value: Any) -> Any:
        """Return a view of an array argument."""
        return self.context.make_array(kind)(self.context, self.builder, value)

    def add(self, a: Any, b: int) -> Any:
        """Return index a plus a number."""
        return self.builder.add(a, INDEX(b)) if b else a

    def at(self, array: Any, row: Any, column: Any) -> Any:
        """Return the address of an element of a C-contiguous matrix, or of a row if `row` is None."""
        place = column
        if row is not None:
            width = self.builder.extract_value(array.shape, 1)
            place = self.builder.add(self.builder.mul(row, width), column)
        return self.builder.gep(array.data, [place])

    def load(self, address: Any) -> Any:
        """Return the vector that starts at an element."""
        return self.builder.load(self.builder.bitcast(address, self.vector.as_pointer()), align=self.width)

    def store(self, value: Any, address: Any) -> None:
        """Write a vector from an element on."""
        self.builder.store(value, self.builder.bitcast(address, self.vector.as_pointer()), align=self.width)

    @property
    def width(self) -> int:
        """Bytes of an element, all the alignment that is relied on."""
        return BYTES // self.lanes

    def splat(self, address: Any) -> Any:
        """Return a vector filled with one element."""
        undefined = ir.Constant(self.vector, ir.Undefined)
        first = self.builder.insert_element(undefined, self.builder.load(address), ir.IntType(32)(0))
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, undefined, everywhere)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """Return a b + c, rounded once."""
        return self.builder.call(self.fused, [a, b, c])

    def variables(self, count: int) -> list[Any]:
        """Return vectors that keep their value between turns of a loop (LLVM turns them into registers)."""
        return [cgutils.alloca_once(self.builder, self.vector) for _ in range(count)]

    def chunks(self, matrix: Any) -> Any:
        """Loop over a block, the rows of a matrix, in steps of ABREAST vectors."""
        length = self.builder.extract_value(matrix.shape, 1)
        return cgutils.for_range_slice(self.builder, INDEX(0), length, INDEX(ABREAST * self.lanes), INDEX)


def _made(write: Callable[..., None]) -> Any:
    """Make an intrinsic that returns nothing from a function that writes its code."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        arrays = [kind for kind in signature.args if isinstance(kind, types.Array)]
        code = Code(context, builder, arrays[0].dtype)
        views = [
            code.array(k, v) if isinstance(k, types.Array) else v for k, v in zip(signature.args, values, strict=True)
        ]
        write(code, builder, *views)
        return context.get_dummy_value()

    return codegen


def _inner(code: Code, builder: Any, x: Any, i: Any, tt: Any, w: Any) -> None:
    sums = code.variables(SAMPLES * ABREAST)
    with code.chunks(tt) as (j, _):
        for total in sums:
            builder.store(code.zero, total)
        with cgutils.for_range(builder, builder.extract_value(tt.shape, 0), intp=INDEX) as turn:
            k = turn.index
            rows = [code.load(code.at(tt, k, code.add(j, v * code.lanes))) for v in range(ABREAST)]
            for s in range(SAMPLES):
                factor = code.splat(code.at(x, code.add(i, s), k))
                for v in range(ABREAST):
                    total = sums[s * ABREAST + v]
                    builder.store(code.fma(factor, rows[v], builder.load(total)), total)
        for s in range(SAMPLES):
            for v in range(ABREAST):
                code.store(builder.load(sums[s * ABREAST + v]), code.at(w, INDEX(s), code.add(j, v * code.lanes)))


def _back(code: Code, builder: Any, cx: Any, c: Any, i: Any, h: Any, g: Any, gt: Any, gu: Any) -> None:
    def columns(array: Any, row: Any, j: Any) -> list[Any]:
        return [code.at(array, row, code.add(j, v * code.lanes)) for v in range(ABREAST)]

    def accumulate(factors: list[Any], rows: list[list[Any]], targets: list[Any]) -> None:
        for v, target in enumerate(targets):
            total = code.load(target)
            for s in range(SAMPLES):
                total = code.fma(factors[s], rows[s][v], total)
            code.store(total, target)

    with code.chunks(gt) as (j, _):
        factors = [code.splat(code.at(c, None, code.add(i, s))) for s in range(SAMPLES)]
        values = [[code.load(p) for p in columns(h, INDEX(s), j)] for s in range(SAMPLES)]
        accumulate(factors, values, columns(gu, None, j))
        slopes = [[code.load(p) for p in columns(g, INDEX(s), j)] for s in range(SAMPLES)]
        with cgutils.for_range(builder, builder.extract_value(gt.shape, 0), intp=INDEX) as turn:
            k = turn.index
            factors = [code.splat(code.at(cx, code.add(i, s), k)) for s in range(SAMPLES)]
            accumulate(factors, slopes, columns(gt, k, j))


def _weighted_sums(code: Code, builder: Any, v: Any, h: Any, out: Any, i: Any) -> None:
    sums = code.variables(SAMPLES * ABREAST)
    for total in sums:
        builder.store(code.zero, total)
    with code.chunks(h) as (j, _):
        for a in range(ABREAST):
            place = code.add(j, a * code.lanes)
            factor = code.load(code.at(v, None, place))
            for s in range(SAMPLES):
                total = sums[s * ABREAST + a]
                row = code.load(code.at(h, INDEX(s), place))
                builder.store(code.fma(factor, row, builder.load(total)), total)
    for s in range(SAMPLES):
        total = builder.load(sums[s * ABREAST])
        for a in range(1, ABREAST):
            total = builder.fadd(total, builder.load(sums[s * ABREAST + a]))
        number = _halves(code, builder, total)
        if code.number != ir.DoubleType():
            number = builder.fpext(number, ir.DoubleType())
        builder.store(number, code.at(out, None, code.add(i, s)))


def _halves(code: Code, builder: Any, total: Any) -> Any:
    """Return the sum of a vector's lanes: its halves, their halves, and so on."""
    lanes = code.lanes
    while lanes > 1:
        lanes //= 2
        kind = ir.VectorType(ir.IntType(32), lanes)
        low = builder.shuffle_vector(total, total, ir.Constant(kind, list(range(lanes))))
        high = builder.shuffle_vector(total, total, ir.Constant(kind, list(range(lanes, 2 * lanes))))
        total = builder.fadd(low, high)
    return builder.extract_element(total, ir.IntType(32)(0))


@intrinsic
def inner(typing, x, i, tt, w):
    """Set w[s, j] = sum_k x[i + s, k] tt[k, j] for SAMPLES samples."""
    return types.void(x, types.int64, tt, w), _made(_inner)


@intrinsic
def back(typing, cx, c, i, h, g, gt, gu):
    """Add sum_s cx[i + s, k] g[s, j] to gt[k, j] and sum_s c[i + s] h[s, j] to gu[j]."""
    return types.void(cx, c, types.int64, h, g, gt, gu), _made(_back)


@intrinsic
def weighted_sums(typing, v, h, out, i):
    """Set out[i + s] = sum_j v[j] h[s, j] in float64 for SAMPLES samples."""
    return types.void(v, h, out, types.int64), _made(_weighted_sums)
