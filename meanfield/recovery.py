"""What a run directory says before a run goes on in it: finished, to be gone on with, another's, or damaged.

The checkpoint, whose arrays carry checksums, has the last word: metadata and records that were lost or damaged are made
again from it, with a warning.
"""

import contextlib
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from meanfield import store
from meanfield.cloud import Cloud
from meanfield.errors import InputError, MeanfieldError


@contextlib.contextmanager
def understood(directory: Path) -> Iterator[None]:
    """Say of whatever goes wrong inside that the records of a directory are not those of a run."""
    try:
        yield
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, MemoryError, RuntimeError) as error:
        if isinstance(error, MeanfieldError):
            raise
        raise InputError(
            f"{directory} holds no records of a run as this version writes them: {type(error).__name__}: {error}"
        ) from error


def is_finished(directory: Path) -> bool:
    """Return whether a directory holds a finished run whose records are whole."""
    if not (directory / store.METADATA).exists():
        return False
    try:
        return store.read_metadata(directory).get("status") == "finished" and not damaged_records(directory)
    except InputError:
        return False


def damaged_records(directory: Path) -> str:
    """Return what is wrong with the records of a directory, or an empty string."""
    try:
        store.read_dataset(directory / store.RECORDS)
    except InputError as error:
        return str(error)
    return ""


def stands(directory: Path, identity: Mapping[str, Any], files: Collection[str]) -> bool:
    """Return whether a directory holds this run, finished and whole; warn of what will be made again.

    Parameters
    ----------
    identity : mapping
        All that determines the numbers of the run.
    files : collection of str
        Names that a directory may hold before a run has begun in it.

    Raises
    ------
    InputError
        If the directory holds another run or something else, or what is left of it is not enough to go on.
    """
    metadata, damage = _metadata(directory)
    if metadata is not None and not differences(metadata.get("identity", {}), identity):
        if metadata.get("status") != "finished":
            return False
        damage = damaged_records(directory)
        if damage:
            warnings.warn(f"{damage}; it is made again from the checkpoint", UserWarning, stacklevel=5)
        return not damage
    saved = _saved_identity(directory)
    if saved is not None and not differences(saved, identity):
        why = damage or f"{directory / store.METADATA} was changed, it names another run"
        warnings.warn(f"{why}; going by the checkpoint", UserWarning, stacklevel=5)
    elif metadata is not None:
        refuse_other(directory, metadata.get("identity", {}), identity)
    elif (directory / store.METADATA).exists():
        raise InputError(f"{damage}, and there is no checkpoint of this run; remove the directory to start again")
    else:
        store.refuse_strangers(directory, files)
    return False


def _metadata(directory: Path) -> tuple[dict[str, Any] | None, str]:
    """Return the metadata, or None and why there are none."""
    try:
        return store.read_metadata(directory), ""
    except InputError as error:
        return None, str(error)


def _saved_identity(directory: Path) -> Mapping[str, Any] | None:
    """Return the identity that the checkpoint keeps, or None where there is no whole one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the older checkpoint: said when it is used
        try:
            found = store.read_checkpoint(directory)
        except InputError:
            return None
    return None if found is None else found[2]["identity"]


def differences(other: Mapping[str, Any], identity: Mapping[str, Any]) -> list[str]:
    """Return the keys in which another identity differs."""
    return [key for key in identity if other.get(key) != identity[key]]


def refuse_other(directory: Path, other: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Refuse to go on with a run that something else determines.

    Raises
    ------
    InputError
        That names the first difference.
    """
    different = differences(other, identity)
    if different:
        key = different[0]
        raise InputError(
            f"{directory} holds another run: {key} was {other.get(key)!r} there and is {identity[key]!r} here "
            f"({len(different)} differ); nothing was overwritten, choose another directory"
        )


def check_clouds(directory: Path, clouds: Sequence[Cloud], start: Cloud, replicates: int) -> None:
    """Refuse clouds of a checkpoint that are not those of the run that it names.

    Raises
    ------
    InputError
        If their number, shape or dtype is another.
    """
    wanted = [(start.z.shape, start.z.dtype, start.reference is None)] * replicates
    if [(c.z.shape, c.z.dtype, c.reference is None) for c in clouds] != wanted:
        raise InputError(
            f"{directory / store.CHECKPOINT} does not hold the clouds of the run that it names; remove the directory "
            "to start again"
        )
