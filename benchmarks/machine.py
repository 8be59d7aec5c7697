"""What was measured on: processor, system, compiler, versions."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

PACKAGES = ("numpy", "scipy", "numba", "matplotlib")


def describe(threads: int) -> dict[str, object]:
    """Return the machine as a dict of numbers and texts."""
    return {
        "processor": _line(Path("/proc/cpuinfo"), "model name") or platform.processor() or platform.machine(),
        "vector units": _vectors(),
        "cores": os.cpu_count(),
        "threads used": threads,
        "memory_gb": round(int((_line(Path("/proc/meminfo"), "MemTotal") or "0").split()[0] or 0) / 2**20, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "compiler": _compiler(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "command": "python -m benchmarks " + " ".join(sys.argv[1:]),
    }


def versions() -> dict[str, str]:
    """Return package -> version of what is always looked at."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def _line(path: Path, field: str) -> str:
    if not path.exists():
        return ""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith(field)]
    return lines[0].partition(":")[2].strip() if lines else ""


def _vectors() -> str:
    flags = _line(Path("/proc/cpuinfo"), "flags").split()
    return next((name for name in ("avx512f", "avx2", "avx", "sse2") if name in flags), "")


def _compiler() -> str:
    try:
        done = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.splitlines()[0]
