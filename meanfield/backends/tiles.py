"""Tiles of pairs, written as LLVM code: a block of particles against TOGETHER particles of another at a time.

A pair kernel is two numbers of a pair, A and B, both symmetric (`forms`). What is wanted are, at every particle p,

    sum_q A(p, q) w_q q   and   sum_q B(p, q) w_q,

and A and B of one pair serve both of its particles. Lanes of a vector are particles of one block; those of the other
are scalars. A, B and what they are multiplied by stay in registers. Sums of the one block are kept in its rows; those
of the other, TOGETHER at a time, lane by lane in a few rows, whose lanes are added up at the end. Every product goes
through a fused multiply-add, in an order that is written here.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from meanfield.backends.elementary import Real
from meanfield.backends.lanes import BYTES, INDEX, Code

Array = np.ndarray
ROW_BYTES = 1024  # of a block's row: with all its rows it stays in a core's first cache up to D = 10
TOGETHER = 4  # particles whose lanes are added up in one go
# Vectors worked abreast, so many that their pairs fill the registers. Sums are lane by lane: no bit depends on it.
ABREAST = 4 if binding.get_host_cpu_features().get("avx512f") else 1

compiled = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
inlined: Any = intrinsic  # for mypy, which would count the typing context among the arguments


# --- the code of a tile


class Tile:
    """Code for ABREAST vectors from lane i of block `here` on and TOGETHER particles from lane j of block `there` on.

    A block is its views of (place, pull, floor), `form` a class such as GaussianForm.
    """

    def __init__(self, form: Any, code: Code, here: Sequence[Any], there: Sequence[Any]) -> None:
        self.form, self.code, self.builder = form, code, code.builder
        self.here, self.there = here, there
        self.pairs = [(k, v) for k in range(TOGETHER) for v in range(ABREAST)]
        self.measures = code.variables(len(self.pairs))

    def addresses(self, array: Any, row: Any, i: Any) -> list[Any]:
        """Return where the vectors of a row stand."""
        return [self.code.at(array, row, self.code.add(i, v * self.code.lanes)) for v in range(ABREAST)]

    def loaded(self, addresses: list[Any]) -> list[Real]:
        """Return vectors."""
        return [Real(self.builder, self.code.load(address)) for address in addresses]

    def scalars(self, array: Any, row: Any, j: Any) -> list[Real]:
        """Return numbers of a row, each in all lanes of a vector."""
        code = self.code
        return [Real(self.builder, code.splat(code.at(array, row, code.add(j, k)))) for k in range(TOGETHER)]

    def rows(self, array: Any, fewer: int = 0) -> Any:
        """Loop over the rows of an array, the last few left out."""
        count = self.code.add(self.builder.extract_value(array.shape, 0), -fewer)
        return cgutils.for_range(self.builder, count, intp=INDEX)

    def values(self, i: Any, j: Any) -> tuple[list[Real], list[Real]]:
        """Return A and B of all pairs."""
        builder, ((place, _, floor), (other, _, other_floor)) = self.builder, (self.here, self.there)
        for measure in self.measures:
            builder.store(self.code.zero, measure)
        with self.rows(place) as turn:
            p, q = self.loaded(self.addresses(place, turn.index, i)), self.scalars(other, turn.index, j)
            for (k, v), measure in zip(self.pairs, self.measures, strict=True):
                one, two = self.form.factors(p[v], q[k])
                builder.store(one.fma(two, Real(builder, builder.load(measure))).value, measure)
        p, q = self.loaded(self.addresses(floor, INDEX(0), i)), self.scalars(other_floor, INDEX(0), j)
        found = [
            self.form.of(Real(builder, builder.load(measure)), p[v].at_least(q[k]))
            for (k, v), measure in zip(self.pairs, self.measures, strict=True)
        ]
        return [a for a, _ in found], [b for _, b in found]

    def gather(self, values: list[Real], row: Any, i: Any, j: Any, sums: Any) -> None:
        """Add to a row of this block's sums what the other's particles pull."""
        self.add(values, self.scalars(self.there[1], row, j), self.addresses(sums, row, i), side=1)

    def give(self, values: list[Real], row: Any, i: Any, part: Any) -> None:
        """Add to a row of the other's sums, lane by lane, what this block's particles pull."""
        self.add(values, self.loaded(self.addresses(self.here[1], row, i)), self.kept(part, row), side=0)

    def add(self, values: list[Real], factors: list[Real], addresses: list[Any], side: int) -> None:
        """Add to the vector of each particle (k, side 0) or lanes (v, side 1) the values times the others' factors."""
        totals = self.loaded(addresses)
        for pair, value in zip(self.pairs, values, strict=True):
            totals[pair[side]] = value.fma(factors[pair[1 - side]], totals[pair[side]])
        for total, address in zip(totals, addresses, strict=True):
            self.code.store(total.value, address)

    def kept(self, part: Any, row: Any) -> list[Any]:
        """Return the addresses of the other's sums of a row: TOGETHER vectors side by side."""
        return [self.code.at(part, row, INDEX(k * self.code.lanes)) for k in range(TOGETHER)]

    def clear(self, part: Any) -> None:
        """Begin the other's sums."""
        with self.rows(part) as turn:
            for address in self.kept(part, turn.index):
                self.code.store(self.code.zero, address)

    def collect(self, part: Any, j: Any, total: Any) -> None:
        """Add up the lanes of the other's sums and add them to its totals, in float64."""
        builder, four = self.builder, ir.VectorType(ir.DoubleType(), TOGETHER)
        with self.rows(part) as turn:
            sums = _lane_sums(builder, [row.value for row in self.loaded(self.kept(part, turn.index))])
            if sums.type != four:
                sums = builder.fpext(sums, four)
            address = builder.bitcast(self.code.at(total, turn.index, j), four.as_pointer())
            builder.store(builder.fadd(builder.load(address, align=8), sums), address, align=8)


def _lane_sums(builder: Any, vectors: list[Any]) -> Any:
    """Return the sums of the lanes of some vectors as one vector: halves on halves, two vectors in one."""
    width = vectors[0].type.count  # lanes that belong to one sum
    while width > 1:
        firsts, seconds = vectors[::2], vectors[1::2] or vectors
        lanes = range(firsts[0].type.count * (2 if len(vectors) > 1 else 1))
        low = [lane for lane in lanes if lane % width < width // 2]
        kind = ir.VectorType(ir.IntType(32), len(low))
        halves = [ir.Constant(kind, [lane + by for lane in low]) for by in (0, width // 2)]
        vectors = [
            builder.fadd(*(builder.shuffle_vector(first, second, half) for half in halves))
            for first, second in zip(firsts, seconds, strict=True)
        ]
        width //= 2
    return vectors[0]


def _write(tile: Tile, code: Code, count: Any, sums: Any, part: Any = None, total: Any = None) -> None:
    """Write the loops over the lanes of two blocks; the other's sums are formed where there is room for them."""
    builder = code.builder
    height, lanes = builder.extract_value(sums.shape, 0), builder.extract_value(sums.shape, 1)

    def spread(values: list[Real], row: Any, i: Any, j: Any) -> None:
        tile.gather(values, row, i, j, sums)
        if part:
            tile.give(values, row, i, part)

    with cgutils.for_range_slice(builder, INDEX(0), count, INDEX(TOGETHER), INDEX) as (j, _):
        if part:
            tile.clear(part)
        with cgutils.for_range_slice(builder, INDEX(0), lanes, INDEX(ABREAST * code.lanes), INDEX) as (i, _):
            a, b = tile.values(i, j)
            with tile.rows(sums, fewer=1) as turn:
                spread(a, turn.index, i, j)
            spread(b, code.add(height, -1), i, j)
        if part:
            tile.collect(part, j, total)


def _made(form: Any) -> Any:
    """Return the code generator of a tile of a form."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        _, here, there, _, *more = signature.args
        code = Code(context, builder, here[0].dtype)
        blocks = [
            [code.array(kind, builder.extract_value(value, k)) for k, kind in enumerate(kinds)]
            for kinds, value in zip((here, there), values[1:3], strict=True)
        ]
        arrays = [code.array(kind, value) for kind, value in zip(more, values[4:], strict=True)]
        _write(Tile(form.instance_class, code, *blocks), code, values[3], *arrays)
        return context.get_dummy_value()

    return codegen


@inlined
def _one_sided(typing: Any, form: Any, here: Any, there: Any, count: Any, sums: Any) -> Any:
    """Add to sums[r, i] the sum over `count` particles j of A w_j q_j, to its last row that of B w_j."""
    return types.void(form, here, there, types.int64, sums), _made(form)


@inlined
def _two_sided(typing: Any, form: Any, here: Any, there: Any, count: Any, sums: Any, part: Any, total: Any) -> Any:
    """Do the same, and add to total[r, j] the sum over i of A w_i p_i; `part` is room for TOGETHER sums by lanes."""
    return types.void(form, here, there, types.int64, sums, part, total), _made(form)


# --- blocks


class Face(NamedTuple):
    """Particles in blocks of `ROW_BYTES` a row; after the last there are some of weight zero."""

    number: int
    place: Array  # (blocks, D, lanes)
    pull: Array  # (blocks, D + 1, lanes)
    floor: Array  # (blocks, 1, lanes)


@compiled
def _block(face: Face, b: int) -> tuple[Array, Array, Array]:
    return face.place[b], face.pull[b], face.floor[b]


@compiled
def _count(face: Face, b: int) -> int:
    """Return how many particles of a block are worked: those there are, rounded up."""
    lanes = face.place.shape[2]
    return min(lanes, (face.number - b * lanes + TOGETHER - 1) // TOGETHER * TOGETHER)


@compiled
def _bank(sums: Array, total: Array) -> None:
    """Add a block's sums to its totals in float64, and clear them."""
    for d in range(sums.shape[0]):
        for i in range(sums.shape[1]):
            total[d, i] += sums[d, i]
            sums[d, i] = 0


@compiled
def attract(form: Any, points: Face, a: int, face: Face, total: Array) -> None:
    """Add to total (D + 1, lanes) what all particles do to a block of points."""
    here = _block(points, a)
    sums = np.zeros(total.shape, face.pull.dtype)
    for b in range(len(face.place)):
        _one_sided(form, here, _block(face, b), _count(face, b), sums)
        _bank(sums, total)


@compiled
def meet(form: Any, face: Face, first: int, last: int, start: int, end: int, totals: Array) -> None:
    """Add to totals (blocks, D + 1, lanes) what blocks first to last and start to end do to each other, each pair once.

    The two groups are one and the same, or the second lies behind the first.
    """
    width, lanes = face.pull.shape[1:]
    sums = np.zeros((width, lanes), face.pull.dtype)
    part = np.zeros((width, TOGETHER * BYTES // face.pull.itemsize), face.pull.dtype)
    spare = np.zeros((width, lanes))
    for a in range(first, last):
        here = _block(face, a)
        for b in range(max(start, a), end):
            # Within a block every pair is met from both sides; what the second gives goes nowhere.
            total = spare if b == a else totals[b]
            _two_sided(form, here, _block(face, b), _count(face, b), sums, part, total)
            _bank(sums, totals[a])
