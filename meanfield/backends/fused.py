"""Numba kernels of the fused CPU backend: predict and move, block by block, with nothing larger than a block held.

A block is `BLOCK` particles with their coordinates in rows, so that a vector holds one coordinate of neighbouring
particles and a sample's inputs are scalars. Samples are worked four at a time: inner products, a call of the compiled
row function of the activation (an address; see `rows`), then sums over the block or the pullback. Everything between
two blocks stays in the first- and second-level caches.

Sums over particles run in fixed lanes within a block, then in float64 in a dyadic tree over block numbers, and
are written with explicit fused multiply-adds: kernels that form the same sum form the same bits.
"""

import numpy as np
from numba import njit

from meanfield.backends.lanes import SAMPLES, back, inner, weighted_sums
from meanfield.backends.philox import fill
from meanfield.backends.rows import call2, call3

BLOCK = 128

compiled = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})


@compiled
def load(z, first, tt, u):
    """Turn up to BLOCK particles from row `first` into rows of coordinates; missing ones are zero. Return how many."""
    d = tt.shape[0]
    count = min(BLOCK, z.shape[0] - first)
    for j in range(count):
        for k in range(d):
            tt[k, j] = z[first + j, k]
        u[j] = z[first + j, d]
    for j in range(count, BLOCK):
        for k in range(d):
            tt[k, j] = 0
        u[j] = 0
    return count


@compiled
def masses(u, weights, inverse, first, count, v):
    """Set v_j = w_j u_j; without weights (an empty array) w_j is `inverse`."""
    for j in range(BLOCK):
        v[j] = inverse * u[j]
    if weights.shape[0]:
        for j in range(count):
            v[j] = weights[first + j] * u[j]


@compiled
def climb(tree, block):
    """Add tree[0] as number `block` of a dyadic sum: tree[l] holds the last finished node of level l - 1."""
    level = 1
    while block & 1:
        for i in range(tree.shape[1]):
            tree[0, i] = tree[level, i] + tree[0, i]
        block >>= 1
        level += 1
    for i in range(tree.shape[1]):
        tree[level, i] = tree[0, i]


@compiled
def collect(tree, blocks, out):
    """Write the sum of the first `blocks` numbers into out: finished nodes, the latest first."""
    first, level = True, 1
    while blocks:
        if blocks & 1:
            for i in range(tree.shape[1]):
                out[i] = tree[level, i] if first else tree[level, i] + out[i]
            first = False
        blocks >>= 1
        level += 1


@compiled
def predict(x, z, weights, inverse, first, last, value, kept, out):
    """Write sum_j w_j psi_i(z_j) over blocks first .. last - 1 into out, and h into `kept` if it has room.

    `kept`, shape (blocks, n, BLOCK) or of no length, holds h of every block of the cloud.
    """
    n, d = x.shape
    tt, u, v = np.empty((d, BLOCK), z.dtype), np.empty(BLOCK, z.dtype), np.empty(BLOCK, z.dtype)
    w, own = np.empty((SAMPLES, BLOCK), z.dtype), np.empty((SAMPLES, BLOCK), z.dtype)
    levels = 2
    while last - first >= 1 << (levels - 1):
        levels += 1
    tree = np.empty((levels, n))
    for b in range(first, last):
        count = load(z, b * BLOCK, tt, u)
        masses(u, weights, inverse, b * BLOCK, count, v)
        for i in range(0, n, SAMPLES):
            inner(x, i, tt, w)
            h = kept[b, i : i + SAMPLES] if kept.shape[0] else own
            call2(value, w, h)
            weighted_sums(v, h, tree[0], i)
        climb(tree, b - first)
    collect(tree, last - first, out)


@compiled
def field(x, cx, c, tt, pair, slope, kept, w, own, h1, gt, gu):
    """Set gt = sum_i c_i h'_i x_i and gu = sum_i c_i h_i of a block, from kept h where there are any."""
    gt[:] = 0
    gu[:] = 0
    for i in range(0, x.shape[0], SAMPLES):
        if kept.shape[0]:
            h = kept[i : i + SAMPLES]
            call2(slope, h, h1)
        else:
            h = own
            inner(x, i, tt, w)
            call3(pair, w, h, h1)
        back(cx, c, i, h, h1, gt, gu)


@compiled
def kick(tt, u, gt, gu, eps, theta, outer):
    """Move a block along its field: theta += eps u gt, u += eps gu, where they are trained."""
    if theta:
        for k in range(tt.shape[0]):
            for j in range(BLOCK):
                tt[k, j] += eps * u[j] * gt[k, j]
    if outer:
        for j in range(BLOCK):
            u[j] += eps * gu[j]


@compiled
def diffuse(tt, u, xi, decay, sigma, count, theta, outer):
    """Apply z <- decay z + sigma xi to a block's trained coordinates; xi has a row a particle."""
    d = tt.shape[0]
    if theta:
        for k in range(d):
            for j in range(count):
                tt[k, j] = decay * tt[k, j] + sigma * xi[j, k]
    if outer:
        for j in range(count):
            u[j] = decay * u[j] + sigma * xi[j, d]


@compiled
def follow(reference, target, xi, first, count, decay, sigma, theta, outer):
    """Apply the channel to the reference's rows of a block."""
    d = reference.shape[1] - 1
    for j in range(count):
        for k in range(d):
            old = reference[first + j, k]
            target[first + j, k] = decay * old + sigma * xi[j, k] if theta else old
        old = reference[first + j, d]
        target[first + j, d] = decay * old + sigma * xi[j, d] if outer else old


@compiled
def note(tt, u, flaws):
    """Make `flaws` NaN where a number of the block is not finite; it is 0 before."""
    for k in range(tt.shape[0]):
        for j in range(BLOCK):
            flaws[j] += tt[k, j] - tt[k, j]
    for j in range(BLOCK):
        flaws[j] += u[j] - u[j]


@compiled
def move(x, cx, c, z, out, reference, target, first, last, lengths, names, keys, train, pair, slope, kept):
    """Move blocks first .. last - 1 of cloud and reference by kick, channel, kick; return whether all is finite.

    `cx` is c_i x_i, `lengths` (before, decay, sigma, after) in the dtype of z, `names` (step, last word of the
    counters, whether anything is drawn, the number of the first particle), `train` whether theta
    and whether u move; a reference of no length is none.
    """
    d, dtype = x.shape[1], z.dtype
    tt, u = np.empty((d, BLOCK), dtype), np.empty(BLOCK, dtype)
    gt, gu = np.empty((d, BLOCK), dtype), np.empty(BLOCK, dtype)
    w, own, h1 = np.empty((SAMPLES, BLOCK), dtype), np.empty((SAMPLES, BLOCK), dtype), np.empty((SAMPLES, BLOCK), dtype)
    flaws = np.zeros(BLOCK, dtype)
    xi, none = np.zeros((BLOCK, d + 1), dtype), np.empty((0, 0, BLOCK), dtype)[:, 0]
    before, decay, sigma, after = lengths
    step, last_word, drawn, start = names
    theta, outer = train
    for b in range(last - 1, first - 1, -1):
        count = load(z, b * BLOCK, tt, u)
        if before != 0:
            field(x, cx, c, tt, pair, slope, kept[b] if kept.shape[0] else none, w, own, h1, gt, gu)
            kick(tt, u, gt, gu, before, theta, outer)
        if drawn:
            fill(xi[:count], start + b * BLOCK, step, last_word, keys, np.int64(0))
        diffuse(tt, u, xi, decay, sigma, count, theta, outer)
        if after != 0:
            field(x, cx, c, tt, pair, slope, none, w, own, h1, gt, gu)
            kick(tt, u, gt, gu, after, theta, outer)
        note(tt, u, flaws)
        for j in range(count):
            for k in range(d):
                out[b * BLOCK + j, k] = tt[k, j]
            out[b * BLOCK + j, d] = u[j]
        if reference.shape[0]:
            follow(reference, target, xi, b * BLOCK, count, decay, sigma, theta, outer)
    return not np.isnan(flaws).any()
