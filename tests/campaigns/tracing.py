"""Which lines of the package ran, without another package: a trace function over its files alone."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import meanfield

PACKAGE = Path(meanfield.__file__).parent
# What stands between a file and a result.
WATCHED = (
    "cli config fields datasets inputs readers netcdf store recovery experiment report survey verdicts statements "
    "certificates coupling balances minimiser readings grid"
).split()


class Lines:
    """The lines that ran while it watched, by file."""

    def __init__(self) -> None:
        self.files = {str(PACKAGE / f"{name}.py"): set[int]() for name in WATCHED}

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self._call)
        try:
            yield
        finally:
            sys.settrace(before)

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._line if frame.f_code.co_filename in self.files else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        self.files[frame.f_code.co_filename].add(frame.f_lineno)
        return self._line

    def found(self) -> dict[str, list[int]]:
        return {Path(path).stem: sorted(lines) for path, lines in self.files.items()}


def executable(name: str) -> set[int]:
    """The lines inside the functions of a module, their heads and docstrings left out."""
    path = PACKAGE / f"{name}.py"
    code = compile(path.read_text(encoding="utf-8"), str(path), "exec")
    lines: set[int] = set()
    waiting = [part for part in code.co_consts if isinstance(part, CodeType)]
    while waiting:
        part = waiting.pop()
        inner = [item for item in part.co_consts if isinstance(item, CodeType)]
        waiting += inner
        if part.co_flags & 2:  # a function, no class
            lines |= {line for _, _, line in part.co_lines() if line} - {part.co_firstlineno}
    return lines
