"""The neural tangent kernel: Gram matrices, spectra, how far they move, and what they predict.

    H = H1 + H2,   H1_ij = E[u^2 h'(w_i) h'(w_j)] <x_i, x_j>,   H2_ij = E[h(w_i) h(w_j)],   w_i = theta . x_i

    at p0            `gram_gaussian`, `gram_parts`, `kernel` between two sets of inputs       (`gram`)
    at any cloud     `gram_at_cloud`, `product` H v without H                                 (`products`)
    eigenvalues      `smallest_at_start`, `smallest_at_cloud`, `lanczos`, `against_n`, `between`      (`spectrum`)
    its change       `change`: beside the explicit Lemma 5.1 of [CCGZ20]                      here
    predictions      `kernel_regression`, `frozen_prediction`, `lazy_prediction`              (`regression`)

Functions take an `Activation` (`Unit.h`) and inputs as the neurons see them (`Unit.inputs`).
"""

from typing import NamedTuple

import numpy as np

from meanfield import theory
from meanfield.cloud import Cloud
from meanfield.errors import InputError
from meanfield.gram import gram_gaussian as gram_gaussian
from meanfield.gram import gram_parts as gram_parts
from meanfield.gram import hermite_coefficients as hermite_coefficients
from meanfield.gram import kernel as kernel
from meanfield.gram import mehler as mehler
from meanfield.products import gram_at_cloud as gram_at_cloud
from meanfield.products import product as product
from meanfield.regression import frozen_prediction as frozen_prediction
from meanfield.regression import kernel_regression as kernel_regression
from meanfield.regression import lazy_prediction as lazy_prediction
from meanfield.spectrum import DENSE as DENSE
from meanfield.spectrum import against_n as against_n
from meanfield.spectrum import between as between
from meanfield.spectrum import eigenvalue_range as eigenvalue_range
from meanfield.spectrum import lanczos as lanczos
from meanfield.spectrum import largest_eigenvalue as largest_eigenvalue
from meanfield.spectrum import smallest as smallest
from meanfield.spectrum import smallest_at_cloud as smallest_at_cloud
from meanfield.spectrum import smallest_at_start as smallest_at_start
from meanfield.units import Activation

Array = np.ndarray


class Change(NamedTuple):
    """How far H has moved from H(p0), and how far Lemma 5.1 lets it: entries, and the smallest eigenvalue."""

    entries: float
    entries_bound: float
    lambda_min: float
    lambda_min_floor: float
    Lambda: float


def change(activation: Activation, x: Array, cloud: Cloud, W2: float) -> Change:
    """Return the change of H at a cloud beside the explicit Lemma 5.1 at W2(p, p0) = W2.

    max |H_ij(p) - H_ij(p0)| <= Ac W2^2 + Bc W2 (`theory.kernel_constants`), lambda_min(H(p)) >= Lambda - n times
    that. H(p) is measured around its closed form where the cloud has a coupled reference, H(p0) + [H(cloud) -
    H(reference)].

    Parameters
    ----------
    activation : Activation
        Its suprema must be finite (Assumption 4.2).
    x : ndarray, shape (n, d)
        Inputs as the neurons see them, of norm at most 1 (Assumption 4.1).
    cloud : Cloud
        Started at N(0, I).
    W2 : float
        Distance of its law from p0, or an upper bound on it.

    Raises
    ------
    InputError
        If an assumption fails, or the start is not N(0, I).
    """
    x = np.asarray(x, dtype=np.float64)
    if np.linalg.norm(x, axis=1).max() > 1 + 1e-12:
        raise InputError("Lemma 5.1 is for inputs of norm at most 1 (Assumption 4.1): scale them")
    if cloud.start_std != 1:
        raise InputError(f"Lemma 5.1 is for the start N(0, I), this cloud started at std = {cloud.start_std}")
    Ac, Bc = theory.kernel_constants(activation.suprema)
    start = gram_gaussian(activation, x)
    moved = gram_at_cloud(activation, x, cloud) - start
    if cloud.reference is not None:
        far = cloud.replace(z=cloud.reference, reference=None)
        moved = moved + start - gram_at_cloud(activation, x, far)
    low = eigenvalue_range(start)[0]
    floor = float(theory.kernel_floor(low, len(x), W2, activation.suprema))
    return Change(float(np.abs(moved).max()), Ac * W2**2 + Bc * W2, eigenvalue_range(start + moved)[0], floor, low)
