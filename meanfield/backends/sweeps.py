"""Passes over four samples of a block, and products of rows, as LLVM code: `passes` and `kicks` are made of them.

    means     sum_j v h,  v h'',  v w h'
    gaps      sum_j s (u h' - ubar hbar')^2,  s (h - hbar)^2
    spans     sqrt(mass) h and sqrt(mass) u h', the rows of the Gram matrix
    centred   mass (A psi(Z) - A psi(Zbar)) and its sum
    pushes    sum_j of the first three derivatives of psi along b
    tile      TILE x TILE inner products of rows

Vectors, lanes and fused multiply-adds are those of `lanes`, so sums have the same bits in every kernel.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from meanfield.backends.lanes import ABREAST, INDEX, SAMPLES, Code, _halves, _made

MEANS, GAPS, CENTRED, PUSHES = 3, 2, 1, 3  # sums of each pass
# Running sums of a tile fill the registers. Each is summed on its own, so its bits don't depend on this.
TILE = 4 if binding.get_host_cpu_features().get("avx512f") else 2


class Sweep:
    """A pass over SAMPLES rows of a block: `formula()` is written once for each vector in flight.

    It reads with `row` and `column`, adds to the running sums with `gather`, and writes with `put`; sum number q of
    sample s ends in out[base + q, i + s].
    """

    def __init__(self, code: Code, builder: Any, i: Any) -> None:
        self.code, self.builder, self.i = code, builder, i

    def run(self, like: Any, formula: Callable[[], None], sums: int = 0, out: Any = None, base: Any = None) -> None:
        """Write the code of the pass; `like` is any of its rows."""
        code, builder = self.code, self.builder
        self.totals = code.variables(sums * ABREAST)
        with cgutils.for_range(builder, INDEX(SAMPLES), intp=INDEX) as turn:
            self.sample = turn.index
            for total in self.totals:
                builder.store(code.zero, total)
            with code.chunks(like) as (j, _):
                for self.lane in range(ABREAST):
                    self.place = code.add(j, self.lane * code.lanes)
                    formula()
            for q in range(sums):
                total = builder.load(self.totals[q * ABREAST])
                for a in range(1, ABREAST):
                    total = builder.fadd(total, builder.load(self.totals[q * ABREAST + a]))
                number = _halves(code, builder, total)
                if code.number != ir.DoubleType():
                    number = builder.fpext(number, ir.DoubleType())
                builder.store(number, code.at(out, builder.add(base, INDEX(q)), self.row_number))

    @property
    def row_number(self) -> Any:
        """The number of the sample."""
        return self.builder.add(self.i, self.sample)

    def row(self, rows: Any) -> Any:
        """Return the vector of a row of samples."""
        return self.code.load(self.code.at(rows, self.sample, self.place))

    def column(self, numbers: Any) -> Any:
        """Return the vector of what is one number a particle."""
        return self.code.load(self.code.at(numbers, None, self.place))

    def gather(self, q: int, factor: Any, value: Any) -> None:
        """Add a product to sum q."""
        total = self.totals[q * ABREAST + self.lane]
        self.builder.store(self.code.fma(factor, value, self.builder.load(total)), total)

    def put(self, value: Any, target: Any, first: Any) -> None:
        """Write a vector to the sample's row of a matrix, `first` columns further on."""
        place = self.builder.add(first, self.place)
        self.code.store(value, self.code.at(target, self.row_number, place))


def _means(code: Code, builder: Any, w: Any, h: Any, h1: Any, h2: Any, v: Any, i: Any, out: Any, base: Any) -> None:
    sweep = Sweep(code, builder, i)

    def formula() -> None:
        mass = sweep.column(v)
        sweep.gather(0, mass, sweep.row(h))
        sweep.gather(1, mass, sweep.row(h2))
        sweep.gather(2, mass, builder.fmul(sweep.row(w), sweep.row(h1)))

    sweep.run(h, formula, MEANS, out, base)


def _gaps(
    code: Code, builder: Any, h: Any, h1: Any, far: Any, far1: Any, u: Any, ufar: Any, square: Any, i: Any, out: Any,
    base: Any,
) -> None:  # fmt: skip
    sweep = Sweep(code, builder, i)

    def formula() -> None:
        mass = sweep.column(square)
        # Products of differences, so that equal particles differ by nothing.
        slope = builder.fmul(builder.fsub(sweep.column(u), sweep.column(ufar)), sweep.row(h1))
        slope = code.fma(sweep.column(ufar), builder.fsub(sweep.row(h1), sweep.row(far1)), slope)
        value = builder.fsub(sweep.row(h), sweep.row(far))
        sweep.gather(0, builder.fmul(mass, slope), slope)
        sweep.gather(1, builder.fmul(mass, value), value)

    sweep.run(h, formula, GAPS, out, base)


def _spans(
    code: Code, builder: Any, h: Any, h1: Any, root: Any, root_u: Any, i: Any, values: Any, slopes: Any, first: Any
) -> None:
    sweep = Sweep(code, builder, i)

    def formula() -> None:
        sweep.put(builder.fmul(sweep.column(root), sweep.row(h)), values, first)
        sweep.put(builder.fmul(sweep.column(root_u), sweep.row(h1)), slopes, first)

    sweep.run(h, formula)


def _centred(
    code: Code, builder: Any, w: Any, h: Any, h1: Any, h2: Any, w_far: Any, far: Any, far1: Any, far2: Any, u: Any,
    u_far: Any, mass: Any, norms: Any, rates: Any, i: Any, target: Any, first: Any, out: Any, base: Any,
) -> None:  # fmt: skip
    sweep = Sweep(code, builder, i)

    def generator(w: Any, h: Any, h1: Any, h2: Any) -> Any:
        drift = builder.fmul(code.splat(code.at(rates, None, INDEX(1))), sweep.row(h))
        along = builder.fmul(sweep.row(w), sweep.row(h1))
        drift = code.fma(code.splat(code.at(rates, None, INDEX(0))), along, drift)
        laplacian = builder.fmul(code.splat(code.at(norms, None, sweep.row_number)), sweep.row(h2))
        return builder.fsub(laplacian, drift)

    def formula() -> None:
        here, there = generator(w, h, h1, h2), generator(w_far, far, far1, far2)
        a = builder.fmul(builder.fsub(sweep.column(u), sweep.column(u_far)), here)
        a = code.fma(sweep.column(u_far), builder.fsub(here, there), a)
        share = sweep.column(mass)
        sweep.gather(0, share, a)
        sweep.put(builder.fmul(share, a), target, first)

    sweep.run(h, formula, CENTRED, out, base)


def _pushes(
    code: Code, builder: Any, along: Any, h: Any, h1: Any, h2: Any, h3: Any, mass_u: Any, mass_b: Any, i: Any, out: Any
) -> None:
    sweep = Sweep(code, builder, i)
    two, three = (ir.Constant(code.vector, [number] * code.lanes) for number in (2.0, 3.0))

    def formula() -> None:
        way, outer, bias = sweep.row(along), sweep.column(mass_u), sweep.column(mass_b)
        slope, bend = builder.fmul(sweep.row(h1), way), builder.fmul(way, way)
        cube = builder.fmul(sweep.row(h3), builder.fmul(bend, way))
        bend = builder.fmul(sweep.row(h2), bend)
        sweep.gather(0, outer, slope)
        sweep.gather(0, bias, sweep.row(h))
        sweep.gather(1, outer, bend)
        sweep.gather(1, builder.fmul(two, bias), slope)
        sweep.gather(2, outer, cube)
        sweep.gather(2, builder.fmul(three, bias), bend)

    sweep.run(h, formula, PUSHES, out, INDEX(0))


def _tile(code: Code, builder: Any, a: Any, i: Any, k: Any, first: Any, last: Any, out: Any) -> None:
    sums = code.variables(TILE * TILE)
    for total in sums:
        builder.store(code.zero, total)
    with cgutils.for_range_slice(builder, first, last, INDEX(code.lanes), INDEX) as (j, _):
        left = [code.load(code.at(a, code.add(i, s), j)) for s in range(TILE)]
        for t in range(TILE):
            right = code.load(code.at(a, code.add(k, t), j))
            for s in range(TILE):
                total = sums[s * TILE + t]
                builder.store(code.fma(left[s], right, builder.load(total)), total)
    for s in range(TILE):
        for t in range(TILE):
            number = _halves(code, builder, builder.load(sums[s * TILE + t]))
            if code.number != ir.DoubleType():
                number = builder.fpext(number, ir.DoubleType())
            place = code.at(out, code.add(i, s), code.add(k, t))
            builder.store(builder.fadd(builder.load(place), number), place)


@intrinsic
def means(typing, w, h, h1, h2, v, i, out, base):  # type: ignore[no-untyped-def]
    """Set rows base, .. of out to sum_j v h, sum_j v h'' and sum_j v w h'."""
    return types.void(w, h, h1, h2, v, types.int64, out, types.int64), _made(_means)


@intrinsic
def gaps(typing, h, h1, far, far1, u, ufar, square, i, out, base):  # type: ignore[no-untyped-def]
    """Set rows base, .. of out to the sums of s (u h' - ubar hbar')^2 and s (h - hbar)^2, s = `square`."""
    return types.void(h, h1, far, far1, u, ufar, square, types.int64, out, types.int64), _made(_gaps)


@intrinsic
def spans(typing, h, h1, root, root_u, i, values, slopes, first):  # type: ignore[no-untyped-def]
    """Write `root` h and `root_u` h' of a block from column `first` on."""
    return types.void(h, h1, root, root_u, types.int64, values, slopes, types.int64), _made(_spans)


@intrinsic
def centred(  # type: ignore[no-untyped-def]
    typing, w, h, h1, h2, w_far, far, far1, far2, u, u_far, mass, norms, rates, i, target, first, out, base
):
    """Write mass (A psi(Z) - A psi(Zbar)) from column `first` on and set row `base` of out to its sum.

    A psi = u (norms h'' - rates[0] w h' - rates[1] h).
    """
    whole = types.int64
    arrays = (w, h, h1, h2, w_far, far, far1, far2, u, u_far, mass, norms, rates)
    return types.void(*arrays, whole, target, whole, out, whole), _made(_centred)


@intrinsic
def pushes(typing, along, h, h1, h2, h3, mass_u, mass_b, i, out):  # type: ignore[no-untyped-def]
    """Set out[k - 1] to sum_j mass of the k-th derivative of psi along b, `along` = b_theta . x_i, k = 1, 2, 3."""
    return types.void(along, h, h1, h2, h3, mass_u, mass_b, types.int64, out), _made(_pushes)


@intrinsic
def tile(typing, a, i, k, first, last, out):  # type: ignore[no-untyped-def]
    """Add sum_j a[i + s, j] a[k + t, j] over columns first .. last - 1 to out[i + s, k + t] for a tile."""
    whole = types.int64
    return types.void(a, whole, whole, whole, whole, out), _made(_tile)
