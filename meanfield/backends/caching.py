"""Compiled kernels on disk: thrown away when any source beside them has changed.

Numba knows a compiled function by its own file alone; that a function of another file, compiled into it, has changed
would go unseen.
"""

import contextlib
import hashlib
from pathlib import Path

FOLDER = Path(__file__).parent


def discard_stale(cache: Path, folder: Path = FOLDER) -> bool:
    """Delete the compiled kernels in a cache unless they are of the sources in a folder; say whether it was done."""
    total = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        total.update(path.name.encode() + path.read_bytes())
    mark = cache / f"compiled-{total.hexdigest()[:16]}"
    if mark.exists():
        return False
    with contextlib.suppress(OSError):  # a folder that cannot be written to holds no kernels either
        cache.mkdir(parents=True, exist_ok=True)
        for old in [*cache.glob("*.nbi"), *cache.glob("*.nbc"), *cache.glob("compiled-*")]:
            old.unlink(missing_ok=True)
        mark.touch()
    return True
