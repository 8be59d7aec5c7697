"""What can go wrong, each with the exit code that the command line gives it."""

import difflib
from collections.abc import Iterable


class MeanfieldError(Exception):
    """Base of every error that is a message for the user, never a traceback."""

    exit_code = 2


class InputError(MeanfieldError, ValueError):
    """Bad input or usage: says what came, what was wanted and what to type."""


class Uninformative(MeanfieldError):
    """A figure that would read the same if the truth were zero: refused, so that nobody takes it for one."""


class DivergedError(MeanfieldError, ArithmeticError):
    """The dynamics left the region where its numbers mean something."""

    exit_code = 3


class Interrupted(MeanfieldError):
    """A signal stopped the run after its state was saved."""

    exit_code = 130


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest of `names`, or for those that begin with it, or an empty string."""
    known, given = {other.casefold(): other for other in names}, str(name).casefold()
    close = difflib.get_close_matches(given, list(known), n=1, cutoff=0.5)
    close = close or [other for other in known if given and other.startswith(given)][:4]
    return f" Did you mean {' or '.join(repr(known[other]) for other in close)}?" if close else ""
