"""Numba kernels of `sums`: what a chunk of blocks adds to means, Gram matrices and the account of a kick.

Products of n x n or n x r numbers a particle are left to BLAS: kernels write the factors of a chunk, rows of samples
and columns of particles, into scratch that the caller lends. The rest are passes over four samples of a block, written
as vector code with the tools of `lanes`, so that sums have the same bits in every kernel:

    means     sum_j v h,  v h'',  v w h'
    gaps      sum_j s (u h' - ubar hbar')^2,  s (h - hbar)^2
    spans     sqrt(mass) u h' and sqrt(mass) h, for the Gram matrix
    centred   mass (A psi(Z) - A psi(Zbar)) and its sum
    scaled    c h^(k)
    pushes    sum_j of the first three derivatives of psi along b
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from meanfield.backends.fused import BLOCK, climb, collect, compiled, load, masses
from meanfield.backends.fused import field as plain_field
from meanfield.backends.lanes import ABREAST, INDEX, SAMPLES, Code, _halves, _made, back, inner
from meanfield.backends.rows import call5

MEANS, GAPS, CENTRED = 3, 2, 1  # sums of each pass
ROWS = 2 * MEANS + GAPS + CENTRED


class Sweep:
    """A pass over SAMPLES rows of a block: `formula(self)` is written once for each vector of each row.

    It reads with `row` and `column`, adds to the running sums with `gather`, and writes with `put`; sum number q of
    sample s ends in out[base + q, i + s].
    """

    def __init__(self, code: Code, builder: Any, i: Any) -> None:
        self.code, self.builder, self.i = code, builder, i

    def run(self, like: Any, formula: Callable[[], None], sums: int = 0, out: Any = None, base: Any = None) -> None:
        """Write the code of the pass; `like` is any of its rows."""
        code, builder = self.code, self.builder
        for self.sample in range(SAMPLES):
            self.totals = code.variables(sums * ABREAST)
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
        return self.code.add(self.i, self.sample)

    def row(self, rows: Any) -> Any:
        """Return the vector of a row of samples."""
        return self.code.load(self.code.at(rows, INDEX(self.sample), self.place))

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
        # Both products are rounded, so that equal particles differ by nothing.
        slope = builder.fmul(sweep.column(u), sweep.row(h1))
        slope = builder.fsub(slope, builder.fmul(sweep.column(ufar), sweep.row(far1)))
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

    def generator(factor: Any, w: Any, h: Any, h1: Any, h2: Any) -> Any:
        drift = builder.fmul(code.splat(code.at(rates, None, INDEX(1))), sweep.row(h))
        along = builder.fmul(sweep.row(w), sweep.row(h1))
        drift = code.fma(code.splat(code.at(rates, None, INDEX(0))), along, drift)
        laplacian = builder.fmul(code.splat(code.at(norms, None, sweep.row_number)), sweep.row(h2))
        return builder.fmul(sweep.column(factor), builder.fsub(laplacian, drift))

    def formula() -> None:
        a = builder.fsub(generator(u, w, h, h1, h2), generator(u_far, w_far, far, far1, far2))
        share = sweep.column(mass)
        sweep.gather(0, share, a)
        sweep.put(builder.fmul(share, a), target, first)

    sweep.run(h, formula, CENTRED, out, base)


def _scaled(code: Code, builder: Any, h: Any, c: Any, i: Any, target: Any, first: Any) -> None:
    sweep = Sweep(code, builder, i)

    def formula() -> None:
        sweep.put(builder.fmul(code.splat(code.at(c, None, sweep.row_number)), sweep.row(h)), target, first)

    sweep.run(h, formula)


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

    sweep.run(h, formula, 3, out, INDEX(0))


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
def scaled(typing, h, c, i, target, first):  # type: ignore[no-untyped-def]
    """Write c_i h of a block from column `first` on."""
    return types.void(h, c, types.int64, target, types.int64), _made(_scaled)


@intrinsic
def pushes(typing, along, h, h1, h2, h3, mass_u, mass_b, i, out):  # type: ignore[no-untyped-def]
    """Set out[k - 1] to sum_j mass of the k-th derivative of psi along b, `along` = b_theta . x_i, k = 1, 2, 3."""
    return types.void(along, h, h1, h2, h3, mass_u, mass_b, types.int64, out), _made(_pushes)


@compiled
def shares(weights, inverse, first, count, mass):
    """Set the masses of a block; missing particles have none."""
    for j in range(BLOCK):
        mass[j] = inverse if j < count else 0
    if weights.shape[0]:
        for j in range(count):
            mass[j] = weights[first + j]


@compiled
def measure(x, z, far, weights, inverse, first, last, jet, wanted, norms, rates, spanned, tree, out):
    """Write the first-order sums of blocks first .. last - 1 into out (ROWS, n), and factors into `spanned`.

    `wanted` says whether h and h' are to be written for the Gram matrix, and A psi for the covariance; `spanned` is
    (values, slopes, seconds), each (n, particles of the chunk). A reference `far` of no length is none.
    """
    n, d = x.shape
    dtype = z.dtype
    tt, u, v, w = np.empty((d, BLOCK), dtype), np.empty(BLOCK, dtype), np.empty(BLOCK, dtype), np.empty((SAMPLES, BLOCK), dtype)
    tf, uf, vf, wf = np.empty((d, BLOCK), dtype), np.zeros(BLOCK, dtype), np.empty(BLOCK, dtype), np.zeros((SAMPLES, BLOCK), dtype)
    h, h1, h2, h3 = np.empty_like(w), np.empty_like(w), np.empty_like(w), np.empty_like(w)
    f, f1, f2 = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w)
    mass, square = np.empty(BLOCK, dtype), np.empty(BLOCK, dtype)
    root, root_u = np.empty(BLOCK, dtype), np.empty(BLOCK, dtype)
    values, slopes, seconds = spanned
    gram, second = wanted
    pair = far.shape[0] > 0
    flat = tree.reshape((tree.shape[0], ROWS * n))
    flat[0] = 0
    for b in range(first, last):
        count, column = load(z, b * BLOCK, tt, u), (b - first) * BLOCK
        masses(u, weights, inverse, b * BLOCK, count, v)
        shares(weights, inverse, b * BLOCK, count, mass)
        for j in range(BLOCK):
            square[j] = mass[j] * mass[j]
            root[j] = np.sqrt(mass[j])
            root_u[j] = root[j] * u[j]
        if pair:
            load(far, b * BLOCK, tf, uf)
            masses(uf, weights, inverse, b * BLOCK, count, vf)
        for i in range(0, n, SAMPLES):
            if pair:
                inner(x, i, tf, wf)
                call5(jet, wf, f, f1, f2, h3)
                means(wf, f, f1, f2, vf, i, tree[0], MEANS)
            inner(x, i, tt, w)
            call5(jet, w, h, h1, h2, h3)
            means(w, h, h1, h2, v, i, tree[0], 0)
            gaps(h, h1, f, f1, u, uf, square, i, tree[0], 2 * MEANS)
            if gram:
                spans(h, h1, root, root_u, i, values, slopes, column)
            if second:
                centred(
                    w, h, h1, h2, wf, f, f1, f2, u, uf, mass, norms, rates, i, seconds, column, tree[0], 2 * MEANS + GAPS
                )
        climb(flat, b - first)
    collect(flat, last - first, out)


@compiled
def fields(x, cx, c, z, first, last, start, jet, pair, rows, q2, q3):
    """Set gt, gu and u of a chunk's blocks (`rows`), and write c h'' and c h''' into q2 and q3 if they have room.

    Particles are those of `z` from row `start` on.
    """
    n, d = x.shape
    dtype = z.dtype
    gt, gu, u = rows
    tt, w = np.empty((d, BLOCK), dtype), np.empty((SAMPLES, BLOCK), dtype)
    h, h1, h2, h3 = np.empty_like(w), np.empty_like(w), np.empty_like(w), np.empty_like(w)
    none = np.empty((0, BLOCK), dtype)
    for b in range(last - first):
        load(z, start + b * BLOCK, tt, u[b])
        if not q2.shape[0]:
            plain_field(x, cx, c, tt, pair, 0, none, w, h, h1, gt[b], gu[b])
            continue
        gt[b] = 0
        gu[b] = 0
        for i in range(0, n, SAMPLES):
            inner(x, i, tt, w)
            call5(jet, w, h, h1, h2, h3)
            back(cx, c, i, h, h1, gt[b], gu[b])
            scaled(h2, c, i, q2, b * BLOCK)
            if q3.shape[0]:
                scaled(h3, c, i, q3, b * BLOCK)


@compiled
def displace(z, rows, first, last, eps, train, target, start):
    """Write z + eps b of blocks first .. last - 1 into `target` from row `start` on."""
    gt, gu, u = rows
    d = gt.shape[1]
    theta, outer = train
    tt, own = np.empty((d, BLOCK), z.dtype), np.empty(BLOCK, z.dtype)
    for b in range(last - first):
        count = load(z, (first + b) * BLOCK, tt, own)
        if theta:
            for k in range(d):
                for j in range(BLOCK):
                    tt[k, j] += eps * u[b, j] * gt[b, k, j]
        if outer:
            for j in range(BLOCK):
                own[j] += eps * gu[b, j]
        for j in range(count):
            for k in range(d):
                target[start + b * BLOCK + j, k] = tt[k, j]
            target[start + b * BLOCK + j, d] = own[j]


@compiled
def squares(p, count, out):
    """Set out_j to the sum of the squares of the first `count` rows of p."""
    out[:] = 0
    for k in range(count):
        for j in range(out.shape[0]):
            out[j] += p[k, j] * p[k, j]


@compiled
def curvatures(rows, bend, b, train, out):
    """Set out_j to |Db|_F^2 of the particles of block b, from `bend` = q'(G o G) q without u^2."""
    gt, _, u = rows
    theta, outer = train
    out[:] = 0
    if theta and outer:
        for k in range(gt.shape[1]):
            for j in range(BLOCK):
                out[j] += gt[b, k, j] * gt[b, k, j]
    if theta:
        for j in range(BLOCK):
            out[j] = u[b, j] * u[b, j] * bend[b * BLOCK + j] + 2 * out[j]


@compiled
def remainders(rows, bend, eps, train, out):
    """Set out_j to the bound f^2 / (2 (1 - f)) on eps tr Db - log det(I + eps Db), f = eps |Db|_F; see `blocks`."""
    size = np.empty(BLOCK, bend.dtype)
    for b in range(rows[1].shape[0]):
        curvatures(rows, bend, b, train, size)
        for j in range(BLOCK):
            f = eps * np.sqrt(size[j])
            out[b * BLOCK + j] = f * f / (2 * (1 - f)) if f < 1 else np.inf


@compiled
def midpoint_remainders(near, middle, pa, pb, bends, z, first, eps, variance, train, out):
    """Set out_j to the bound of `blocks.midpoint_remainder`, plus eps z . (b_mid - b) / variance.

    `near` and `middle` are the rows at z and in the middle, pb and pa the products of their c h'' with the factor of
    G o G and, last, with |x_i|^2; `bends` are the squares of pa and pb.
    """
    theta, outer = train
    d, r = near[0].shape[1], pa.shape[0] - 1
    gt_a, gu_a, u_a = middle
    gt_b, gu_b, u_b = near
    size_a, size_b = np.empty(BLOCK, out.dtype), np.empty(BLOCK, out.dtype)
    for b in range(gu_a.shape[0]):
        curvatures(middle, bends[0], b, train, size_a)
        curvatures(near, bends[1], b, train, size_b)
        for j in range(min(BLOCK, z.shape[0] - (first + b) * BLOCK)):
            at, place = b * BLOCK + j, (first + b) * BLOCK + j
            a2, b2 = float(size_a[j]), float(size_b[j])
            a, bb = np.sqrt(a2), np.sqrt(b2)
            trace, cross, tilt = 0.0, 0.0, 0.0
            ua, ub = float(u_a[b, j]), float(u_b[b, j])
            if theta:
                trace = ub * pb[r, at] - ua * pa[r, at]
                for k in range(r):
                    cross += pa[k, at] * pb[k, at]
                cross *= ua * ub
                for k in range(d):
                    tilt += z[place, k] * (ua * gt_a[b, k, j] - ub * gt_b[b, k, j])
            if outer:
                tilt += z[place, d] * (gu_a[b, j] - gu_b[b, j])
            if theta and outer:
                for k in range(d):
                    cross += 2.0 * gt_a[b, k, j] * gt_b[b, k, j]
            whole = eps * a * (1 + 0.5 * eps * bb)
            rest = whole**3 / (3 * (1 - whole)) if whole < 1 else np.inf
            rest += eps * trace - 0.5 * eps**2 * cross + 0.5 * eps**2 * a2 * (1 + eps * bb + 0.25 * eps * eps * b2)
            out[at] = rest + eps / variance * tilt


@compiled
def along(z, far, points, x, weights, inverse, first, last, start, jet, rows, rest, train, out):
    """Add to out what the account of a kick wants: rows 0 to 2 the derivatives along b, row 3 speed, pull and rest.

    The derivatives are at `points` from row `start` on; pull is against z - far, or b itself if `far` has no length.
    """
    n, d = x.shape
    dtype = z.dtype
    gt, gu, u = rows
    theta, outer = train
    tt, own, w = np.empty((d, BLOCK), dtype), np.empty(BLOCK, dtype), np.empty((SAMPLES, BLOCK), dtype)
    bt, bu, way = np.zeros((d, BLOCK), dtype), np.zeros(BLOCK, dtype), np.empty_like(w)
    h, h1, h2, h3 = np.empty_like(w), np.empty_like(w), np.empty_like(w), np.empty_like(w)
    mass, mass_u, mass_b = np.empty(BLOCK, dtype), np.empty(BLOCK, dtype), np.empty(BLOCK, dtype)
    part = np.empty((3, n))
    for b in range(last - first):
        row = (first + b) * BLOCK
        count = load(points, start + b * BLOCK, tt, own)
        shares(weights, inverse, row, count, mass)
        if theta:
            for k in range(d):
                for j in range(BLOCK):
                    bt[k, j] = u[b, j] * gt[b, k, j]
        if outer:
            bu[:] = gu[b]
        for j in range(BLOCK):
            mass_u[j] = mass[j] * own[j]
            mass_b[j] = mass[j] * bu[j]
        for i in range(0, n, SAMPLES):
            inner(x, i, tt, w)
            inner(x, i, bt, way)
            call5(jet, w, h, h1, h2, h3)
            pushes(way, h, h1, h2, h3, mass_u, mass_b, i, part)
        for q in range(3):
            for i in range(n):
                out[q, i] += part[q, i]
        for j in range(count):
            speed, pull = float(bu[j]) * bu[j], 0.0
            for k in range(d):
                speed += float(bt[k, j]) * bt[k, j]
            if far.shape[0]:
                pull = float(bu[j]) * (z[row + j, d] - far[row + j, d])
                for k in range(d):
                    pull += float(bt[k, j]) * (z[row + j, k] - far[row + j, k])
            out[3, 0] += mass[j] * speed
            out[3, 1] += mass[j] * (pull if far.shape[0] else speed)
            out[3, 2] += mass[j] * rest[b * BLOCK + j]


@compiled
def rough(rows, second, third, weights, inverse, first, m, train, out):
    """Add the weighted sums of |grad phi|^2, |grad^2 phi|^2 and |grad^3 phi|^2 of a chunk to out.

    `second` and `third` are q_2' (G o G) q_2 and q_3' (G o G o G) q_3 without u.
    """
    gt, gu, u = rows
    theta, outer = train
    bends = np.empty(BLOCK, second.dtype)
    for b in range(gu.shape[0]):
        curvatures(rows, second, b, train, bends)
        for j in range(min(BLOCK, m - (first + b) * BLOCK)):
            at, place = b * BLOCK + j, (first + b) * BLOCK + j
            size, u2 = 0.0, float(u[b, j]) * u[b, j]
            for k in range(gt.shape[1]):
                size += float(gt[b, k, j]) * gt[b, k, j]
            first_order, third_order = 0.0, 0.0
            if theta:
                first_order += u2 * size
                third_order += u2 * third[at]
            if outer:
                first_order += float(gu[b, j]) * gu[b, j]
            if theta and outer:
                third_order += 3 * second[at]
            mass = weights[place] if weights.shape[0] else inverse
            out[0] += mass * first_order
            out[1] += mass * bends[j]
            out[2] += mass * third_order
