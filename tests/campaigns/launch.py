"""How tests and campaigns start commands under mpirun, and without."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

BESIDE = Path(sys.executable).with_name("mpirun")
MPIRUN = str(BESIDE) if BESIDE.exists() else shutil.which("mpirun")
MISSING = MPIRUN is None or importlib.util.find_spec("mpi4py") is None
WHY = 'mpi4py or mpirun is missing: pip install "meanfield-nn[mpi]"'


def environment(**more: str) -> dict[str, str]:
    """An environment in which Open MPI starts any number of ranks on any machine, as whoever runs the tests."""
    ours = {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    return {**os.environ, **ours, **more}


def line(ranks: int, *words: object) -> list[str]:
    """The command line that starts this python with such arguments on so many ranks, 0 for a process on its own."""
    start = [str(MPIRUN), "-n", str(ranks), "--oversubscribe"] if ranks else []
    return [*start, sys.executable, *map(str, words)]
