"""What a run will take of a machine's memory and disk, as far as that is known before anything is allocated."""

import math
from pathlib import Path

import numpy as np

from meanfield import limits
from meanfield.config import RunConfig
from meanfield.errors import InputError
from meanfield.ranks import Communicator

GIGABYTE = 1e9
# Copies of a cloud that a step holds at once: state, reference, noise, and what is being made of them.
COPIES = 8
# Matrices of n x n float64 numbers at once, of all replicates and of each, without and with bounds: as measured
# between n = 1200 and 2000, 25 of four replicates without, 16 of one and 47 of four with them.
SQUARES, CARRIED, BOUNDED = 10, 4, 10
# Numbers of a coordinate that bounds hold at once: of fresh samples of p0, and rows of D x D matrices of second
# moments, of each replicate's groups of particles and in all.
FRESH, GROUPS, MOMENTS = 2 * 10**5, 8, 6
# Of a cloud on disk: state, reference, start; state and reference in the checkpoint and in the one before it.
FILES, KEPT = 3, 4


def check_memory(
    config: RunConfig, n: int, d: int, communicator: Communicator | None = None, *, bounds: bool = False
) -> None:
    """Refuse a configuration with n samples of d inputs that would not fit into the machine's memory.

    Ranks on other machines take their rows with them; matrices of n x n numbers are on all. `bounds` says whether
    costly observables are recorded, which hold fresh samples of p0 and second moments of D = d + 1 coordinates.

    Raises
    ------
    InputError
        With what is too large, and what would make it fit.
    """
    cloud, ranks, size = config.cloud, 1, 1
    if communicator is not None:
        size = communicator.size
        ranks = getattr(communicator, "neighbours", size)
    state = cloud.replicates * cloud.m * (d + 1) * np.dtype(cloud.dtype).itemsize * ranks / size
    matrix = 8 * ranks * (SQUARES + (BOUNDED if bounds and not cloud.on_disk else CARRIED) * cloud.replicates)
    have = limits.machine_memory()
    here = f"this machine has {have / GIGABYTE:.1f} GB"
    if matrix * n**2 > have:
        raise InputError(
            f"matrices of n x n numbers (Gram matrices and what is made of them) take about "
            f"{matrix * n**2 / GIGABYTE:.1f} GB with n = {n} samples and {cloud.replicates} replicates, {here}; take a "
            f"smaller data.n (at most {math.isqrt(int(have / matrix))}) or fewer cloud.replicates"
        )
    if bounds and not cloud.on_disk:
        wide = 8 * (d + 1) * (FRESH + (GROUPS * cloud.replicates + MOMENTS) * (d + 1))
        if wide > have:
            raise InputError(
                f"bounds on clouds with d = {d} inputs take about {wide / GIGABYTE:.1f} GB with {cloud.replicates} "
                f"replicates, {here}; take fewer inputs (data.columns, data.d, data.lags) or fewer cloud.replicates, "
                "or record no bounds (--set record.observables='[\"loss\"]')"
            )
    if not cloud.on_disk and COPIES * state + matrix * n**2 > have:
        more = f"cloud.on_disk = true, which needs about {(FILES + KEPT) * state / GIGABYTE:.1f} GB of disk"
        raise InputError(
            f"{cloud.replicates} clouds of m = {cloud.m} particles need about {COPIES * state / GIGABYTE:.1f} GB, "
            f"{here}; take a smaller cloud.m, fewer cloud.replicates, cloud.dtype = "
            f"'float32', or {more if size == 1 else 'ranks on more machines'}"
        )


def check_disk(config: RunConfig, d: int, folder: Path) -> None:
    """Refuse clouds on disk that, with their checkpoints, would not fit where the run directory is.

    Raises
    ------
    InputError
        With what they need, what there is, and what would make them fit.
    """
    cloud = config.cloud
    need = (FILES + KEPT) * cloud.replicates * cloud.m * (d + 1) * np.dtype(cloud.dtype).itemsize
    have = limits.disk(folder) + sum(path.stat().st_size for path in folder.glob("checkpoint*.npz"))
    if need > have:
        raise InputError(
            f"{cloud.replicates} clouds of m = {cloud.m} particles on disk and their checkpoints need about "
            f"{need / GIGABYTE:.1f} GB, {folder} has {have / GIGABYTE:.1f} GB; take a smaller cloud.m, fewer "
            "cloud.replicates, cloud.dtype = 'float32', or a directory on a larger disk with --out"
        )
