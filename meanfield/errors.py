"""What can go wrong, each with the exit code that the command line gives it."""

import difflib
import itertools
from collections.abc import Iterable

LONGEST = 100  # characters of a name that is worth a guess


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


def did_you_mean(name: object, names: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest of `names`, or for those that begin with it, or an empty string."""
    # What comes may be long, and there may be many of them: a guess is not worth waiting for.
    if not isinstance(name, str) or len(name) > LONGEST:
        return ""
    few = [other for other in itertools.islice(names, 1000) if len(other) <= LONGEST]
    known, given = {other.casefold(): other for other in few}, name.casefold()
    close = difflib.get_close_matches(given, list(known), n=1, cutoff=0.5)
    close = close or [other for other in known if given and other.startswith(given)][:4]
    return f" Did you mean {' or '.join(repr(known[other]) for other in close)}?" if close else ""


def shown(value: object) -> str:
    """Return a value as Python writes it, cut where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, lists in lists in lists
        text = f"something too long to show ({type(value).__name__})"
    return text if len(text) <= 2 * LONGEST else f"{text[: 2 * LONGEST]}..."


def printable(text: str) -> str:
    """Return a text as one line that a terminal shows and does not obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
