"""What this process may take of the machine's memory and disks: the machine's own, or what a scheduler granted."""

import contextlib
import math
import os
import shutil
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def machine_memory() -> float:
    """Return the bytes that this process may have: the machine's, or less in a container or a job; infinity if unknown.

    A job of SLURM, a container and `ulimit -v` grant less than the machine has; who takes more is killed, or refused.
    """
    found = [math.inf]
    with contextlib.suppress(AttributeError, ValueError, OSError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in _granted():
        with contextlib.suppress(OSError, ValueError):  # no file, or the word "max"
            found.append(int(path.read_text()))
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        addresses = resource.getrlimit(resource.RLIMIT_AS)[0]
        found += [addresses] if addresses != resource.RLIM_INFINITY else []
    return min(found)


def _granted() -> list[Path]:
    """Return the files that hold the limits of the control groups around this process, of both versions of Linux's."""
    files = [GROUPS / "memory.max"]
    with contextlib.suppress(OSError, ValueError):
        for line in MEMBERSHIP.read_text().splitlines():
            _, kinds, name = line.split(":", 2)
            if kinds and "memory" not in kinds.split(","):
                continue
            base, word = (GROUPS / "memory", "memory.limit_in_bytes") if kinds else (GROUPS, "memory.max")
            inner = base / name.lstrip("/")
            files += [group / word for group in (inner, *inner.parents) if group.is_relative_to(base)]
    return files


def disk(folder: Path) -> float:
    """Return the bytes that are free where a folder is or would be made; infinity if nobody tells."""
    folder = folder.absolute()
    with contextlib.suppress(OSError):
        while not folder.exists():
            folder = folder.parent
        return float(shutil.disk_usage(folder).free)
    return math.inf
