"""Numba kernels of `sums`: what a group of blocks adds to means and Gram matrices.

Blocks, rows and row functions are those of `fused`; a group's scratch is lent by the caller. A Gram matrix is
multiplied from rows of samples and columns of a whole group's particles.
"""

import numpy as np

from meanfield.backends.fused import BLOCK, climb, collect, compiled, load, masses
from meanfield.backends.lanes import SAMPLES, inner
from meanfield.backends.rows import call5
from meanfield.backends.sweeps import CENTRED, GAPS, MEANS, TILE, centred, gaps, means, spans, tile

ROWS = 2 * MEANS + GAPS + CENTRED
COLUMNS = 512  # of a Gram matrix's factor, multiplied together: a few rows of so many stay in the first-level cache


@compiled
def shares(weights, inverse, first, count, mass):
    """Set the masses of a block; missing particles have none."""
    for j in range(BLOCK):
        mass[j] = inverse if j < count else 0
    if weights.shape[0]:
        for j in range(count):
            mass[j] = weights[first + j]


@compiled
def multiply(a, width, out):
    """Add A A' to the tiles of out on and above the diagonal, from the first `width` columns of A."""
    for first in range(0, width, COLUMNS):
        for i in range(0, a.shape[0], TILE):
            for k in range(i, a.shape[0], TILE):
                tile(a, i, k, first, min(first + COLUMNS, width), out)


@compiled
def measure(x, z, far, weights, inverse, first, last, jet, wanted, scales, spanned, tree, out):
    """Write the first-order sums of blocks first .. last - 1 into out (ROWS * n), and rows of factors into `spanned`.

    `wanted` says whether h and h' are to be written for the Gram matrix, and A psi for the covariance; `scales` is
    (|x_i|^2, rates of `centred`), `spanned` (values, slopes, seconds), each of n rows. A reference `far` of no length
    is none.
    """
    n, d = x.shape
    tt, tf = np.empty((d, BLOCK), z.dtype), np.empty((d, BLOCK), z.dtype)
    numbers = np.zeros((8, BLOCK), z.dtype)
    u, v, uf, vf = numbers[0], numbers[1], numbers[2], numbers[3]
    mass, square, root, root_u = numbers[4], numbers[5], numbers[6], numbers[7]
    rows = np.zeros((9, SAMPLES, BLOCK), z.dtype)
    w, h, h1, h2, h3 = rows[0], rows[1], rows[2], rows[3], rows[4]
    wf, f, f1, f2 = rows[5], rows[6], rows[7], rows[8]
    (values, slopes, seconds), (norms, rates), (gram, second) = spanned, scales, wanted
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
        if far.shape[0]:
            load(far, b * BLOCK, tf, uf)
            masses(uf, weights, inverse, b * BLOCK, count, vf)
        for i in range(0, n, SAMPLES):
            if far.shape[0]:
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
                last_row = 2 * MEANS + GAPS
                centred(w, h, h1, h2, wf, f, f1, f2, u, uf, mass, norms, rates, i, seconds, column, tree[0], last_row)
        climb(flat, b - first)
    collect(flat, last - first, out)


@compiled
def gram(values, slopes, width, train, total, more):
    """Add the products of rows of the Gram matrix, on and above the diagonal: u h' to total, h to more.

    Without theta those of h go to total.
    """
    theta, outer = train
    if theta:
        multiply(slopes, width, total)
        if outer:
            multiply(values, width, more)
    else:
        multiply(values, width, total)


@compiled
def hadamard(total, gramian, more):
    """Multiply `total` by X X' entry by entry, on and above the diagonal, and add `more` if it has room."""
    for i in range(total.shape[0]):
        for k in range(i, total.shape[0]):
            total[i, k] *= gramian[i, k]
            if more.shape[1]:
                total[i, k] += more[i, k]
