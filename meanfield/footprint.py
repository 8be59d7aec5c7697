"""What a run will take of a machine's memory, as far as that is known before anything is allocated."""

import math

import numpy as np

from meanfield import parallel
from meanfield.config import RunConfig
from meanfield.errors import InputError
from meanfield.ranks import Communicator

GIGABYTE = 1e9
# Copies of a cloud that a step holds at once: state, reference, noise, and what is being made of them.
COPIES = 8
# Matrices of n x n float64 numbers at once, of all replicates and of each.
SQUARES, CARRIED = 10, 4
FILES = 3  # of a cloud on disk: state, reference, start


def check_memory(config: RunConfig, n: int, d: int, communicator: Communicator | None = None) -> None:
    """Refuse a configuration with n samples of d inputs that would not fit into the machine's memory.

    Ranks on other machines take their rows with them; matrices of n x n numbers are on all.

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
    matrix = 8 * ranks * (SQUARES + CARRIED * cloud.replicates)
    have = parallel.machine_memory()
    here = f"this machine has {have / GIGABYTE:.1f} GB"
    if matrix * n**2 > have:
        raise InputError(
            f"matrices of n x n numbers (Gram matrices and what is made of them) take about "
            f"{matrix * n**2 / GIGABYTE:.1f} GB with n = {n} samples and {cloud.replicates} replicates, {here}; take a "
            f"smaller data.n (at most {math.isqrt(int(have / matrix))}) or fewer cloud.replicates"
        )
    if not cloud.on_disk and COPIES * state + matrix * n**2 > have:
        raise InputError(
            f"{cloud.replicates} clouds of m = {cloud.m} particles need about {COPIES * state / GIGABYTE:.1f} GB, "
            f"{here}; take a smaller cloud.m, fewer cloud.replicates, cloud.dtype = "
            f"'float32', or cloud.on_disk = true, which needs about {FILES * state / GIGABYTE:.1f} GB of disk"
        )
