"""The state: m particles z_j = (theta_j, u_j), frozen, with the coupled reference that shows how far their law moved.

The reference Zbar starts where the cloud starts and gets the same noise, but no loss: its law stays that of the
start (p0, or N(0, s^2 I) for the Euler schemes, with s^2 known exactly). Differences Z - Zbar carry the signal of the
law's motion without the sampling noise of the start. What to read next: `flow` for how a cloud moves.
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from meanfield import backends, mapped, noise, parallel
from meanfield.account import Account
from meanfield.errors import DivergedError, InputError
from meanfield.noise import Stream
from meanfield.ranks import Share
from meanfield.units import Unit

Array = np.ndarray
DTYPES = {"float64": np.float64, "float32": np.float32}
BLOCK = 1 << 20  # numbers looked at together when a cloud is checked: for fewer, threads cost more than they save
DRAWN = 1 << 15  # particles of a cloud on disk drawn at a time


@dataclass(frozen=True)
class Gaussian:
    """The prior p0 = N(0, std^2 I), from which particles start and to which weight decay draws them.

    Parameters
    ----------
    std : float
        Standard deviation of every coordinate.
    """

    std: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.std) and self.std > 0):
            raise InputError(f"std of the prior must be positive and finite, got {self.std}")

    @property
    def variance(self) -> float:
        """The variance of one coordinate."""
        return self.std**2


class Kernel(NamedTuple):
    """The Gram matrix of a cloud some steps ago, carried until kicks have moved the cloud too far from there.

    `gram` is H, shape (n, n); `covariance`, of the same shape or None, that of the centred generator's mean; `age` the
    sum of rms kicks and of lam eta since; `of` names the inputs, the activation and the layers that it belongs to.
    """

    gram: Array
    covariance: Array | None
    age: float
    of: str

    def older(self, kick: float) -> "Kernel":
        """Return the kernel after a kick of that rms length."""
        return self._replace(age=self.age + kick)


@dataclass(frozen=True, eq=False)
class Cloud:
    """m weighted particles in R^D at one time, with all that the next step needs.

    Attributes
    ----------
    z : ndarray, shape (m, D)
        Particles; the last column is u, the others are theta.
    weights : ndarray, shape (m,), or None
        Masses that sum to one; None means 1/m each.
    reference : ndarray, shape (m, D), or None
        The coupled reference Zbar; None where the start is not Gaussian.
    reference_variance : float
        s^2, the variance of one coordinate of the reference.
    start : ndarray, shape (m, D), or None
        Where the particles started; None where the seed tells it (`origin` regenerates it).
    start_std : float
        Standard deviation of the Gaussian start.
    step, time, eta : int, float, float
        Steps done, time of equation (3.4) of [CCGZ20], length of the last step.
    seed, replicate : int
        The integers that name the cloud's noise.
    account : Account
        The running KL account and the checks that ride with it.
    kernel : Kernel or None
        A Gram matrix that still stands for the cloud's own (`risk.HELD`).
    share : Share or None
        Which rows of the cloud this process holds, where ranks hold it together: arrays are those rows, `m` is the
        number of all. Who looks at arrays sees these rows alone; `spread.gathered` collects them.
    """

    z: Array
    weights: Array | None = None
    reference: Array | None = None
    reference_variance: float = 1.0
    start: Array | None = None
    start_std: float = 1.0
    step: int = 0
    time: float = 0.0
    eta: float = 0.0
    seed: int = 0
    replicate: int = 0
    account: Account = dataclasses.field(default_factory=Account)
    kernel: Kernel | None = None
    share: Share | None = None

    @property
    def m(self) -> int:
        """The number of particles."""
        return int(self.z.shape[0]) if self.share is None else self.share.m

    @property
    def first(self) -> int:
        """The number of the first particle that this process holds."""
        return 0 if self.share is None else self.share.first

    @property
    def nbytes(self) -> int:
        """The bytes of the particles that this process holds, or the largest of several: all ranks say the same."""
        return int(self.z.nbytes) if self.share is None else self.share.most * self.dimension * self.z.itemsize

    @property
    def dimension(self) -> int:
        """D, the number of coordinates of a particle."""
        return int(self.z.shape[1])

    def replace(self, **changes: object) -> "Cloud":
        """Return a copy with some fields changed; other particles or masses carry no Gram matrix unless it is given."""
        if "z" in changes or "weights" in changes:
            changes.setdefault("kernel", None)
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def farthest(self) -> float:
        """Return the largest |u|."""
        here = float(np.abs(self.z[:, -1]).max())
        return here if self.share is None else self.share.communicator.largest(here)

    def mean(self, values: Array) -> Array:
        """Return the weighted mean over particles of `values`, shape (m, ...), in float64."""
        if self.weights is None:
            return np.asarray(values, dtype=np.float64).mean(axis=0)
        return np.tensordot(self.weights, np.asarray(values, dtype=np.float64), axes=1)

    def origin(self) -> Array:
        """Return where the particles started, shape (m, D); regenerated from the seed where it can be."""
        return self.start if self.start is not None else _draw(self)

    def replicated(self, replicate: int) -> "Cloud":
        """Return the cloud at its start with the noise of another replicate (and its own Gaussian start)."""
        if self.step:
            raise InputError("replicates are made from a cloud at its start, not after steps")
        cloud = self.replace(replicate=int(replicate))
        if self.start is not None or replicate == self.replicate:
            return cloud
        z = _draw(cloud)
        return cloud.replace(z=z, reference=None if self.reference is None else z)

    def __repr__(self) -> str:
        """Say size, time and seed; arrays are too long to be read."""
        return (
            f"Cloud(m={self.m}, D={self.dimension}, step={self.step}, time={self.time:.6g}, seed={self.seed}, "
            f"replicate={self.replicate}, dtype={self.z.dtype.name})"
        )


def gaussian_cloud(
    m: int,
    unit: Unit | None = None,
    d: int | None = None,
    seed: int = 0,
    *,
    dimension: int | None = None,
    std: float = 1.0,
    replicate: int = 0,
    dtype: str = "float64",
    reference: bool = True,
    weights: Array | None = None,
    folder: str | Path | None = None,
    share: Share | None = None,
) -> Cloud:
    """Return m particles drawn from p0 = N(0, std^2 I), with their coupled reference.

    The cloud of m particles is the prefix of the cloud of 2m with the same seed.

    Parameters
    ----------
    m : int
        Number of particles.
    unit, d : Unit, int
        The neuron and the number of inputs, from which D follows; or give `dimension` = D.
    seed : int
        64-bit name of the noise.
    std : float
        Standard deviation of the start; must agree with the prior of the flow.
    reference : bool
        False saves the memory of the reference and gives up everything measured against it.
    weights : ndarray, shape (m,), optional
        Positive masses; they are scaled to sum to one.
    folder : path, optional
        Where particles are kept in files instead of in memory: clouds larger than it, in steps without an account.
    share : Share, optional
        The rows that this process is to hold, where ranks hold the cloud together (`ranks.split`).

    Raises
    ------
    InputError
        If sizes, dtype or weights make no sense, or the folder has no room.
    """
    if dimension is None:
        if d is None:
            raise InputError("gaussian_cloud needs d (the number of inputs) and unit, or dimension=D")
        dimension = (unit or Unit("tanh")).dimension(int(d))
    if not (isinstance(m, int | np.integer) and m >= 1):
        raise InputError(f"m must be a positive whole number of particles, got {m!r}")
    if dtype not in DTYPES:
        raise InputError(f"dtype must be 'float64' or 'float32', got {dtype!r}")
    if folder is not None and share is not None:
        raise InputError("clouds on disk are those of one process: leave folder (cloud.on_disk) or the ranks out")
    shape, kind = (int(m), dimension), np.dtype(DTYPES[dtype])
    shell = Cloud(
        z=_room(shape if share is None else (share.count, dimension), kind, folder),
        weights=None if weights is None else normalised(weights, int(m)),
        reference_variance=Gaussian(std).variance,
        start_std=std,
        seed=int(seed),
        replicate=replicate,
        share=share,
    )
    z = _draw(shell, shell.z)
    return shell.replace(z=z, reference=z if reference else None)


def _room(shape: tuple[int, int], dtype: np.dtype, folder: str | Path | None) -> Array:
    return np.empty(shape, dtype) if folder is None else mapped.empty(folder, shape, dtype)


def cloud_at(z: Array, *, weights: Array | None = None, seed: int = 0, replicate: int = 0) -> Cloud:
    """Return a cloud started at given particles: no reference, so only what needs none can be measured."""
    z = np.array(z, dtype=np.float32 if np.asarray(z).dtype == np.float32 else np.float64, order="C")
    if z.ndim != 2 or not z.size:
        raise InputError(f"particles must come as an array of shape (m, D), got shape {z.shape}")
    if not np.isfinite(z).all():
        raise InputError("particles must be finite, but NaN or infinity came")
    w = None if weights is None else normalised(weights, len(z))
    return Cloud(z=z, weights=w, start=z, seed=seed, replicate=replicate)


def silent_cloud(m: int, unit: Unit, d: int, seed: int = 0, *, replicate: int = 0) -> Cloud:
    """Return m particles with theta ~ N(0, I / d) and u = 0, the start of [Wu21] at which the network's output is 0.

    theta is 1 / sqrt(d) times that of `gaussian_cloud` with the same seed and replicate, so that the cloud of m is the
    prefix of that of 2 m. There is no reference: the law of the start is no prior.
    """
    z = gaussian_cloud(m, unit, d, seed, replicate=replicate, reference=False).z / math.sqrt(d)
    z[:, -1] = 0.0
    return cloud_at(z, seed=seed, replicate=replicate)


def normalised(weights: Array, m: int) -> Array:
    """Return weights scaled to sum to one; refuse a wrong shape or a negative mass."""
    w = np.array(weights, dtype=np.float64)
    if w.shape != (m,):
        raise InputError(f"weights must have shape ({m},), one for each particle, got {w.shape}")
    if not np.isfinite(w).all() or (w < 0).any() or w.sum() <= 0:
        raise InputError("weights must be finite, not negative, and not all zero")
    w /= w.sum()
    w.flags.writeable = False  # so that a device may keep its copy
    return w


def finite(z: Array) -> bool:
    """Return whether all numbers of an array are finite (and their sums are); no array is made for it."""
    with np.errstate(all="ignore"):
        rows = 1 + BLOCK // z.shape[1]
        return bool(np.isfinite(float(parallel.sum_groups(lambda part: z[part].sum(), len(z), rows))))


def everywhere(here: bool, share: Share | None) -> bool:
    """Return whether something holds on all ranks that share a cloud; without a share, whether it does here."""
    return here if share is None else not share.communicator.largest(not here)


def demand_finite(cloud: Cloud) -> None:
    """Raise DivergedError if particles or their reference are not finite."""
    for what, z in (("particles", cloud.z), ("the particles of the reference", cloud.reference)):
        if z is not None and not everywhere(finite(z), cloud.share):
            raise DivergedError(
                f"{what} hold NaN or infinity at step {cloud.step} (time {cloud.time:.6g}): nothing can be measured of "
                "them; go back to a cloud before, and take a smaller eta if steps brought it there"
            )


def demand_values(array: Array, what: str) -> Array:
    """Return what was measured of a cloud; raise DivergedError if it is not finite.

    Of a Gram matrix the diagonal is looked at: |H_ij|^2 <= H_ii H_jj.
    """
    if not np.isfinite(np.diagonal(array) if array.ndim == 2 else array).all():
        raise DivergedError(
            f"{what} is not finite: particles hold NaN or infinity, or are too large for their dtype; go back to a "
            "cloud before, and take a smaller eta if steps brought it there"
        )
    return array


def _draw(cloud: Cloud, into: Array | None = None) -> Array:
    """Return the particles of the start: on disk where those of the cloud are, in the array `into` if there is one."""
    std = cloud.z.dtype.type(cloud.start_std)
    if mapped.folder_of(cloud.z) is None:
        return cloud_noise(cloud, Stream.INIT, step=0) * std
    out = mapped.like(cloud.z) if into is None else into

    def fill(part: slice) -> None:
        place = {"step": 0, "replicate": cloud.replicate, "first": part.start, "count": part.stop - part.start}
        drawn = backends.normals(cloud.seed, Stream.INIT, width=cloud.dimension, dtype=out.dtype, **place)
        np.multiply(drawn, std, out=out[part])

    parallel.each_block(fill, cloud.m, DRAWN)
    return out


def cloud_noise(cloud: Cloud, stream: Stream, *, step: int, first_block: int = 0) -> Array:
    """Return the standard normals of a cloud at one step, shape (m, D); any split over threads gives the same."""
    place: dict[str, Any] = {"step": step, "replicate": cloud.replicate, "first_block": first_block}
    place["dtype"] = cloud.z.dtype
    start = cloud.first
    if cloud.z.size >= backends.MANY_NORMALS:
        return backends.normals(cloud.seed, stream, first=start, count=len(cloud.z), width=cloud.dimension, **place)
    out = np.empty_like(cloud.z)

    def fill(part: slice) -> None:
        out[part] = noise.normals(
            cloud.seed, stream, first=start + part.start, count=part.stop - part.start, width=cloud.dimension, **place
        )  # fmt: skip

    parallel.each_block(fill, len(cloud.z), 4096)
    return out
