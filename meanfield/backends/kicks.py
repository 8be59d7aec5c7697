"""Numba kernels of `sums`: kicks of a group of blocks, and what the account wants to know of them.

Blocks, rows and row functions are those of `fused`; a group's scratch is lent by the caller. The quadratic forms of a
kick's curvature are inner products with a factor of G o G, as `lanes.inner` forms them.
"""

import numpy as np

from meanfield.backends.fused import BLOCK, compiled, load
from meanfield.backends.lanes import SAMPLES, back, inner
from meanfield.backends.passes import shares
from meanfield.backends.rows import call3, call5
from meanfield.backends.sweeps import PUSHES, pushes


@compiled
def jets(x, cx, c, tt, jet, w, kept, gt, gu):
    """Set gt = sum_i c_i h'_i x_i and gu = sum_i c_i h_i of a block, and `kept` to h and its derivatives."""
    h, h1, h2, h3 = kept
    gt[:] = 0
    gu[:] = 0
    for i in range(0, x.shape[0], SAMPLES):
        here = slice(i, i + SAMPLES)
        inner(x, i, tt, w)
        call5(jet, w, h[here], h1[here], h2[here], h3[here])
        back(cx, c, i, h[here], h1[here], gt, gu)


@compiled
def forms(left, a, b, w, v, out):
    """Set rows of out to |left a_j|^2, and with another matrix b of particles to |left b_j|^2 and their product."""
    out[:] = 0
    for k in range(0, left.shape[0], SAMPLES):
        inner(left, k, a, w)
        for s in range(SAMPLES):
            for j in range(BLOCK):
                out[0, j] += w[s, j] * w[s, j]
        if b.shape[0]:
            inner(left, k, b, v)
            for s in range(SAMPLES):
                for j in range(BLOCK):
                    out[1, j] += v[s, j] * v[s, j]
                    out[2, j] += w[s, j] * v[s, j]


@compiled
def rounded_form(left, a, single, w, out):
    """Set out to an upper bound on |left a_j|^2, worked in float32, a half of the time of `forms`.

    `left` is (matrix in float32, its Frobenius norm F, scale). A float32 inner product of length n is off by at most
    gamma |x| |y|, gamma = n 2^-24 / (1 - n 2^-24), with two roundings more for its factors; |left a| by gamma F |a|.
    Particles are worked over |a|, so that what squares lose below the normal numbers is far less than that.
    """
    matrix, size, scale = left
    squares, lengths = out
    squares[:] = 0
    lengths[:] = 0
    for i in range(a.shape[0]):
        for j in range(BLOCK):
            lengths[j] += float(a[i, j]) * a[i, j]
    for j in range(BLOCK):
        lengths[j] = np.sqrt(lengths[j])
    for i in range(a.shape[0]):
        for j in range(BLOCK):
            single[i, j] = a[i, j] / lengths[j] if lengths[j] else 0
    for k in range(0, matrix.shape[0], SAMPLES):
        inner(matrix, k, single, w)
        for s in range(SAMPLES):
            for j in range(BLOCK):
                squares[j] += w[s, j] * w[s, j]
    count = (matrix.shape[0] + a.shape[0] + 8) * 2.0**-24
    slack = count / (1 - count)
    for j in range(BLOCK):
        root = scale * lengths[j] * ((1 + slack) * np.sqrt(float(squares[j])) + slack * size)
        lengths[j] = root * root


@compiled
def curvature(gt, u, bend, train):
    """Turn q'(G o G) q without u^2 of a block, `bend`, into |Db|_F^2."""
    theta, outer = train
    for j in range(BLOCK):
        bend[j] = u[j] * u[j] * bend[j] if theta else 0
    if theta and outer:
        for k in range(gt.shape[0]):
            for j in range(BLOCK):
                bend[j] += 2 * gt[k, j] * gt[k, j]


@compiled
def trained_field(gt, gu, u, train, bt, bu):
    """Set bt = u gt and bu = gu, zero where a coordinate is not trained."""
    theta, outer = train
    bt[:] = 0
    bu[:] = 0
    if theta:
        for k in range(gt.shape[0]):
            for j in range(BLOCK):
                bt[k, j] = u[j] * gt[k, j]
    if outer:
        bu[:] = gu


@compiled
def displace(z, first, count, gt, gu, u, eps, train, tt, own, target):
    """Write z + eps (u gt, gu) of a block into target; `tt` and `own` are scratch."""
    theta, outer = train
    d = tt.shape[0]
    load(z, first, tt, own)
    if theta:
        for k in range(d):
            for j in range(BLOCK):
                tt[k, j] += eps * u[j] * gt[k, j]
    if outer:
        for j in range(BLOCK):
            own[j] += eps * gu[j]
    for j in range(count):
        for k in range(d):
            target[first + j, k] = tt[k, j]
        target[first + j, d] = own[j]


@compiled
def along(x, tt, u, mass, kept, bt, bu, w, way, part, out):
    """Add the means of the first three derivatives of psi along (bt, bu) at a block to rows of out."""
    h, h1, h2, h3 = kept
    numbers = np.empty((2, BLOCK), x.dtype)
    mass_u, mass_b = numbers[0], numbers[1]
    for j in range(BLOCK):
        mass_u[j] = mass[j] * u[j]
        mass_b[j] = mass[j] * bu[j]
    for i in range(0, x.shape[0], SAMPLES):
        here = slice(i, i + SAMPLES)
        inner(x, i, bt, way)
        pushes(way, h[here], h1[here], h2[here], h3[here], mass_u, mass_b, i, part)
    for q in range(PUSHES):
        for i in range(x.shape[0]):
            out[q, i] += part[q, i]


@compiled
def totals(z, far, first, count, bt, bu, mass, rest, out):
    """Add the means of |b|^2, (z - far) . b, or |b|^2 if `far` has no length, and `rest` to out[0], out[1], out[2]."""
    d = bt.shape[0]
    for j in range(count):
        speed, pull = float(bu[j]) * bu[j], 0.0
        for k in range(d):
            speed += float(bt[k, j]) * bt[k, j]
        if far.shape[0]:
            pull = float(bu[j]) * (z[first + j, d] - far[first + j, d])
            for k in range(d):
                pull += float(bt[k, j]) * (z[first + j, k] - far[first + j, k])
        out[0] += mass[j] * speed
        out[1] += mass[j] * (pull if far.shape[0] else speed)
        out[2] += mass[j] * rest[j]


@compiled
def kick(x, cx, c, left, clouds, weights, inverse, first, last, jet, eps, train, scratch, out):
    """Kick blocks first .. last - 1 and add their account to out: rows of derivatives, then speed, pull, remainder.

    `clouds` is (z, points, far, target): the field is that of `points`; `left` is that of `rounded_form`.
    """
    d, (z, points, far, target), (kept, part, single) = x.shape[1], clouds, scratch
    matrices = np.empty((4, d, BLOCK), z.dtype)
    tt, gt, bt, tz = matrices[0], matrices[1], matrices[2], matrices[3]
    numbers = np.empty((5, BLOCK), z.dtype)
    u, gu, bu, mass, own = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]
    rows = np.empty((2, SAMPLES, BLOCK), z.dtype)
    w, way = rows[0], rows[1]
    narrow, squares = np.empty((SAMPLES, BLOCK), np.float32), np.empty(BLOCK, np.float32)
    bends, rest = np.empty(BLOCK), np.empty(BLOCK)
    size = z.dtype.type(eps)
    for b in range(first, last):
        row = b * BLOCK
        count = load(points, row, tt, u)
        shares(weights, inverse, row, count, mass)
        jets(x, cx, c, tt, jet, w, kept, gt, gu)
        rounded_form(left, kept[2], single, narrow, (squares, bends))
        curvature(gt, u, bends, train)
        for j in range(BLOCK):
            f = eps * np.sqrt(bends[j])
            rest[j] = f * f / (2 * (1 - f)) if f < 1 else np.inf
        trained_field(gt, gu, u, train, bt, bu)
        along(x, tt, u, mass, kept, bt, bu, w, way, part, out)
        totals(z, far, row, count, bt, bu, mass, rest, out[PUSHES])
        displace(z, row, count, gt, gu, u, size, train, tz, own, target)


@compiled
def midpoint_rest(bends, traces, tilt, eps, variance, rest):
    """Set the bound of `blocks.midpoint_remainder`, plus eps z . (b_mid - b) / variance.

    Rows of `bends` are |Db|_F^2 in the middle, at z, and tr Db(z_mid) Db(z); those of `traces` tr Db likewise.
    """
    for j in range(BLOCK):
        a2, b2, cross = float(bends[0, j]), float(bends[1, j]), float(bends[2, j])
        size = np.sqrt(b2)
        whole = eps * np.sqrt(a2) * (1 + 0.5 * eps * size)
        tail = whole**3 / (3 * (1 - whole)) if whole < 1 else np.inf
        square = a2 * (1 + eps * size + 0.25 * eps * eps * b2)
        rest[j] = eps * (traces[1, j] - traces[0, j]) + 0.5 * eps**2 * (square - cross) + tail
        rest[j] += eps / variance * tilt[j]


@compiled
def trace(factors, h2, u, theta, out):
    """Set out_j to tr Db = u sum_i factors_i h''_i of a block, zero where theta is frozen."""
    out[:] = 0
    if theta:
        for i in range(h2.shape[0]):
            for j in range(BLOCK):
                out[j] += factors[i] * h2[i, j]
        for j in range(BLOCK):
            out[j] *= u[j]


@compiled
def products(tt, u, bt, bu, bt_mid, bu_mid, gt, gt_mid, u_mid, train, cross, tilt):
    """Turn q_mid'(G o G) q without u's into tr Db(z_mid) Db(z), and set `tilt` to z . (b_mid - b)."""
    theta, outer = train
    for j in range(BLOCK):
        cross[j] = u_mid[j] * u[j] * cross[j] if theta else 0
        tilt[j] = u[j] * (bu_mid[j] - bu[j])
    for k in range(tt.shape[0]):
        for j in range(BLOCK):
            tilt[j] += tt[k, j] * (bt_mid[k, j] - bt[k, j])
        if theta and outer:
            for j in range(BLOCK):
                cross[j] += 2 * gt_mid[k, j] * gt[k, j]


@compiled
def midpoint(x, cx, c, left, clouds, weights, inverse, first, last, jet, lengths, train, scratch, out):
    """Kick blocks by the midpoint rule and add their account to out, as `kick` does.

    `lengths` is (eps, variance), `scratch` (kept, kept in the middle, part, c_i |x_i|^2).
    """
    d, (z, _, far, target), (kept, kept_mid, part, factors) = x.shape[1], clouds, scratch
    matrices = np.empty((7, d, BLOCK), z.dtype)
    tt, gt, bt, tm = matrices[0], matrices[1], matrices[2], matrices[3]
    gm, bm, tz = matrices[4], matrices[5], matrices[6]
    numbers = np.empty((9, BLOCK), z.dtype)
    u, gu, bu, um, um_field = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]
    bum, mass, own, tilt = numbers[5], numbers[6], numbers[7], numbers[8]
    rows = np.empty((2, SAMPLES, BLOCK), z.dtype)
    w, way = rows[0], rows[1]
    bends, traces, rest = np.zeros((3, BLOCK), z.dtype), np.zeros((2, BLOCK), z.dtype), np.empty(BLOCK)
    (eps, variance), (theta, _) = lengths, train
    size, half = z.dtype.type(eps), z.dtype.type(0.5 * eps)
    for b in range(first, last):
        row = b * BLOCK
        count = load(z, row, tt, u)
        shares(weights, inverse, row, count, mass)
        jets(x, cx, c, tt, jet, w, kept, gt, gu)
        trained_field(gt, gu, u, train, bt, bu)
        for k in range(d):
            for j in range(BLOCK):
                tm[k, j] = tt[k, j] + half * bt[k, j]
        for j in range(BLOCK):
            um[j] = u[j] + half * bu[j]
        jets(x, cx, c, tm, jet, w, kept_mid, gm, um_field)
        trained_field(gm, um_field, um, train, bm, bum)
        forms(left, kept_mid[2], kept[2], w, way, bends)
        curvature(gm, um, bends[0], train)
        curvature(gt, u, bends[1], train)
        products(tt, u, bt, bu, bm, bum, gt, gm, um, train, bends[2], tilt)
        trace(factors, kept_mid[2], um, theta, traces[0])
        trace(factors, kept[2], u, theta, traces[1])
        midpoint_rest(bends, traces, tilt, eps, variance, rest)
        along(x, tt, u, mass, kept, bm, bum, w, way, part, out)
        totals(z, far, row, count, bm, bum, mass, rest, out[PUSHES])
        displace(z, row, count, gm, um_field, um, size, train, tz, own, target)


@compiled
def shift(x, cx, c, clouds, first, last, pair, lengths, train):
    """Write z + eps b(points) of blocks first .. last - 1, or with `half` not zero z + eps b(points + half b(points)).

    `clouds` is (z, points, target), `lengths` (eps, half).
    """
    d, (z, points, target), (eps, half) = x.shape[1], clouds, lengths
    matrices = np.empty((4, d, BLOCK), z.dtype)
    tt, gt, bt, tz = matrices[0], matrices[1], matrices[2], matrices[3]
    numbers = np.empty((4, BLOCK), z.dtype)
    u, gu, bu, own = numbers[0], numbers[1], numbers[2], numbers[3]
    rows = np.empty((3, SAMPLES, BLOCK), z.dtype)
    w, h, h1 = rows[0], rows[1], rows[2]
    for b in range(first, last):
        count = load(points, b * BLOCK, tt, u)
        for turn in range(2):
            gt[:] = 0
            gu[:] = 0
            for i in range(0, x.shape[0], SAMPLES):
                inner(x, i, tt, w)
                call3(pair, w, h, h1)
                back(cx, c, i, h, h1, gt, gu)
            if turn or half == 0:
                break
            trained_field(gt, gu, u, train, bt, bu)
            for k in range(d):
                for j in range(BLOCK):
                    tt[k, j] += half * bt[k, j]
            for j in range(BLOCK):
                u[j] += half * bu[j]
        displace(z, b * BLOCK, count, gt, gu, u, eps, train, tz, own, target)


@compiled
def rough(x, cx, c, lefts, z, weights, inverse, first, last, jet, train, kept, out):
    """Add the means of |grad phi|^2, |grad^2 phi|^2 and |grad^3 phi|^2 over blocks first .. last - 1 to out.

    `lefts` are the factors of G o G and G o G o G times c.
    """
    d, (theta, outer), (left2, left3) = x.shape[1], train, lefts
    matrices = np.empty((3, d, BLOCK), z.dtype)
    tt, gt, bt = matrices[0], matrices[1], matrices[2]
    numbers = np.empty((4, BLOCK), z.dtype)
    u, gu, bu, mass = numbers[0], numbers[1], numbers[2], numbers[3]
    rows = np.empty((2, SAMPLES, BLOCK), z.dtype)
    w, way = rows[0], rows[1]
    bends, thirds, none = np.zeros((3, BLOCK), z.dtype), np.zeros((3, BLOCK), z.dtype), np.empty((0, BLOCK), z.dtype)
    for b in range(first, last):
        count = load(z, b * BLOCK, tt, u)
        shares(weights, inverse, b * BLOCK, count, mass)
        jets(x, cx, c, tt, jet, w, kept, gt, gu)
        forms(left2, kept[2], none, w, way, bends)
        forms(left3, kept[3], none, w, way, thirds)
        for j in range(BLOCK):
            thirds[0, j] = u[j] * u[j] * thirds[0, j] if theta else 0
            if theta and outer:
                thirds[0, j] += 3 * bends[0, j]
        curvature(gt, u, bends[0], train)
        trained_field(gt, gu, u, train, bt, bu)
        totals(z, z[:0], b * BLOCK, count, bt, bu, mass, bends[0], out[0])
        for j in range(count):
            out[1, 0] += mass[j] * thirds[0, j]
