"""What a distance between samples reads for equal laws, and whether it says more than that.

`judged` measures a figure, measures it again for fresh samples of p0 of the same sizes, and refuses it where the two
are as large. Read next: `distances`, the figures.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from meanfield import noise
from meanfield.errors import InputError, Uninformative
from meanfield.estimate import student_factor

Array = npt.NDArray[Any]
Samples = Array | Sequence[Array]
# Fresh samples of p0 at which a figure is measured again; groups of particles that the jackknife deletes.
NULLS, GROUPS = 10, 6
FIRST, SECOND = 3, 4  # steps of the PROBE stream (see `directions`)


@dataclass(frozen=True)
class Distance:
    """A squared distance between samples, beside what it reads for equal laws.

    Attributes
    ----------
    value : float
        The plug-in figure, mean over replicates; length^2.
    null : float
        What it reads for samples of p0 of the same sizes, mean over fresh draws.
    spread : float
        Standard deviation of value - null for equal laws.
    se : float
        Standard error of `debiased`, from replicates; for a single one from deleted groups of its particles,
        which takes them as independent: those of one run are not, and the error is then off by up to 15 times.
    source : str
    replicates : int
    epsilon : float, optional
        Regularisation of the Sinkhorn divergence, length^2.
    """

    value: float
    null: float
    spread: float
    se: float
    source: str
    replicates: int
    epsilon: float | None = None

    @property
    def debiased(self) -> float:
        """Return value - null."""
        return self.value - self.null

    @property
    def informative(self) -> bool:
        """Return whether the value lies above what equal laws read, by Student's two-sigma factor times the spread."""
        return self.debiased > student_factor(NULLS) * self.spread


def several(samples: Any) -> bool:
    """Return whether these are samples of several replicates, rather than one."""
    return not (isinstance(samples, np.ndarray) and samples.ndim == 2) and np.ndim(samples[0]) == 2


def drawn(count: int, width: int, seed: int, step: int, name: int) -> Array:
    """Return fresh samples of p0, a function of the integers."""
    return noise.normals(seed, noise.Stream.PROBE, step=step, replicate=name, count=count, width=width)


def judged(
    source: str,
    measured: Callable[[Array, Array | None, int], float],
    first: Samples,
    second: Samples | None,
    seed: int,
    force: bool,
    epsilon: float | None = None,
) -> Distance:
    """Return the figure of `measured` (of two samples, and an integer that names fresh ones) beside its null."""
    pairs = _pairs(first, second)
    a, b = pairs[0]
    count, width = len(pairs), a.shape[1]
    values = [measured(a, b, r) for r, (a, b) in enumerate(pairs)]
    nulls = []
    for k in range(NULLS):
        other = None if b is None else drawn(len(b), width, seed, SECOND, count + k)
        nulls.append(measured(drawn(len(a), width, seed, FIRST, k), other, count + k))
    scatter = float(np.var(nulls, ddof=1))
    variance = np.var(values, ddof=1) / count if count > 1 else _jackknife(measured, a, b)
    found = Distance(
        value=float(np.mean(values)),
        null=float(np.mean(nulls)),
        spread=math.sqrt(scatter * (1 / count + 1 / NULLS)),
        se=math.sqrt(variance + scatter / NULLS),
        source=source,
        replicates=count,
        epsilon=epsilon,
    )
    if not (found.informative or force):
        raise Uninformative(
            f"the plug-in figure W2^2 = {found.value:.4g} ({source}) says nothing: samples of p0 of the same sizes "
            f"({len(a)} and {len(a) if b is None else len(b)}, D = {width}) read {found.null:.4g}, and the difference "
            f"may be {student_factor(NULLS) * found.spread:.2g} by chance. Take bounds from coupled clouds "
            "(transport.coupled_upper, transport.gelbrich_lower) or more particles; force=True returns it all the same."
        )
    return found


def _pairs(first: Samples, second: Samples | None) -> list[tuple[Array, Array | None]]:
    ones = [_sample(one) for one in (first if several(first) else (first,))]
    others: list[Array | None] = [None] * len(ones)
    if second is not None:
        others = [_sample(other) for other in (second if several(second) else (second,))]
    pairs = list(zip(ones, others, strict=False))
    shapes = {(a.shape, None if b is None else b.shape) for a, b in pairs}
    if len(ones) != len(others) or len(shapes) > 1 or any(b and a[1] != b[1] for a, b in shapes):
        raise InputError(
            f"wanted as many samples (k, D) as samples (m, D), with one m, k and D for all replicates; got "
            f"{[one.shape for one in ones]} and {[None if other is None else other.shape for other in others]}."
        )
    return pairs


def _sample(values: Any) -> Array:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 2 or len(sample) < 2 * GROUPS or not sample.shape[1] or not np.isfinite(sample).all():
        broken = np.count_nonzero(~np.isfinite(sample))
        raise InputError(
            f"a sample has shape (m, D), m >= {2 * GROUPS}, and finite entries; got shape {sample.shape}, "
            f"{broken} entries not finite."
        )
    return sample


def _jackknife(measured: Callable[[Array, Array | None, int], float], a: Array, b: Array | None) -> float:
    """Return the variance of a figure from deleted groups of particles, those of both samples at a time."""

    def without(sample: Array, g: int) -> Array:
        return sample[np.arange(len(sample)) % GROUPS != g]

    values = [measured(without(a, g), None if b is None else without(b, g), 0) for g in range(GROUPS)]
    return float((GROUPS - 1) * np.var(values))
