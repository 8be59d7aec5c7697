"""Who is measured, one file a package.

A candidate is a class, derived from `Candidate`, whose methods are tasks: `step`, `pairs`, `gram`, `noise`, `w2`, ...
Each takes a case (a dict of plain numbers, see `data`) and returns a `Job`. What a candidate does not have, it is not
asked for; what it cannot do at that size, it refuses by raising `Refused` with the reason. Its package is imported in
`load`, and an ImportError there is reported as that the candidate is missing. To add one: write the class, name it in
the CANDIDATES of its file, and the file in MODULES.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

MODULES = ("ours", "cpp", "plain_numpy", "pytorch", "jax_grad", "keops", "transport")


class Refused(Exception):
    """The candidate cannot do that case; the message says why."""


class Job(NamedTuple):
    """One repetition of a task, and how to look at what came out.

    `run` may return before the work is done where `finish` waits for it. `state` returns what a check compares.
    """

    run: Callable[[], Any]
    finish: Callable[[], Any] = lambda: None
    state: Callable[[], Any] = lambda: None
    note: str = ""


class Candidate:
    """What stays the same over the cases: the package, and how many threads there are."""

    package = ""  # the distribution whose version is reported
    own_noise = False  # whether its noise is that of `meanfield.noise`
    openmp = False  # whether its threads are OpenMP's alone: they are then bound to their cores

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def load(self) -> None:
        """Import what is needed, called once before any task; an ImportError says what is missing."""


def everyone() -> dict[str, Callable[[int], Candidate]]:
    """Return name -> constructor of every candidate; nothing heavy is imported."""
    found: dict[str, Callable[[int], Candidate]] = {}
    for name in MODULES:
        found.update(import_module(f"benchmarks.candidates.{name}").CANDIDATES)
    return found


def is_ours(name: str) -> bool:
    """Return whether a candidate is this library."""
    return name.split(",")[0] == "meanfield"


def is_peer(name: str) -> bool:
    """Return whether a candidate is neither this library nor the ceiling."""
    return not is_ours(name) and name != "C++ ceiling"
