"""The sections of a configuration: one frozen record each, whose fields carry their own rule.

A key is added in one line: name, type, default, the values that make sense and the words that say so. Activations, data
sources, backends and observables are checked by the modules that hold their tables. Read next: `config`.
"""

import math
import os
import re
from dataclasses import dataclass
from typing import Any

from meanfield.errors import InputError, shown
from meanfield.fields import Section, above, choice, entry

MOST_TIMES = 1000  # dyadic times of bounds
SCHEMES = ("auto", "kernel", "kernel2", "exponential", "euler", "euler_literal")


def _are_times(value: Any) -> bool:
    return isinstance(value, tuple) and all(time >= 0 for time in value)


@dataclass(frozen=True)
class DataConfig(Section):
    """``[data]``: where (x, y) come from; None leaves a value to the source (see `datasets`).

    `sha256` is that of the files at `path`: a run writes it down, and a run that is given it refuses other files.
    """

    section = "data"

    source: str = entry("digits")
    path: str | None = entry(None, "the path of a file", lambda value: value != "" and "\0" not in value)
    classes: tuple[int, ...] | None = entry(
        None, "two different labels, as [3, 8]", lambda value: len(value) == 2 == len(set(value))
    )
    n: int | None = above(1, None, or_equal=True)
    n_test: int | None = above(0, None, or_equal=True)
    d: int | None = above(1, None, or_equal=True)
    seed: int = entry(0, "an integer from 0 to 2^64 - 1", lambda value: 0 <= value < 2**64)
    teacher: str | None = entry(None)
    lags: int | None = above(1, None, or_equal=True)
    noise: float | None = above(0, None, or_equal=True)
    target: str | None = entry(None)
    columns: tuple[str, ...] | None = entry(
        None, "different column names", lambda value: 0 < len(value) == len(set(value))
    )
    scale: bool | None = entry(None)
    sha256: str | None = entry(
        None, "64 hexadecimal digits", lambda value: re.fullmatch("[0-9a-f]{64}", value) is not None
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path is not None:  # absolute, so that the resolved text means the same from every folder
            object.__setattr__(self, "path", os.path.abspath(os.path.expanduser(self.path)))


@dataclass(frozen=True)
class NetworkConfig(Section):
    """``[network]``: the unit, the loss and the scale alpha; `centred` is the limit law, else a network."""

    section = "network"

    activation: str = entry("tanh")
    bias: bool = entry(False)
    loss: str = choice("square", "logistic")
    alpha: float | str = entry(
        1.0, 'a number above 0, "1", "sqrt(m)" or "m^0.3"', lambda value: resolve_alpha(value, 2) > 0
    )
    centred: bool = entry(True)


@dataclass(frozen=True)
class CloudConfig(Section):
    """``[cloud]``: how many particles, how many independent replicates, and where they start.

    `backend` is where contractions run; a run writes down what "auto" came to, for another rounds otherwise.
    `on_disk` keeps them in files of the run directory, for clouds larger than memory; then there is no KL account and
    no bound, and the other numbers are those of a flow without account.
    """

    section = "cloud"

    m: int = entry(1024, "an integer from 1 to 2^32", lambda value: 1 <= value <= 2**32)
    seed: int = entry(0, "an integer from 0 to 2^64 - 1", lambda value: 0 <= value < 2**64)
    replicates: int = entry(4, "an integer from 1 to 2^24", lambda value: 1 <= value <= 2**24)
    dtype: str = choice("float64", "float32")
    backend: str = entry("auto")
    initial: str = choice("gaussian")
    on_disk: bool = entry(False)


@dataclass(frozen=True)
class FlowConfig(Section):
    """``[flow]``: the dynamics; `time` is the time of equation (3.4), `batch` = 0 takes all samples."""

    section = "flow"

    lam: float = above(0, 0.01, or_equal=True)
    eta: float | str = entry(
        "auto",
        '"auto" or a number above 0',
        lambda value: value == "auto" if isinstance(value, str) else value > 0,
    )
    scheme: str = choice(*SCHEMES)
    time: float | None = above(0, None)
    steps: int | None = above(1, None, or_equal=True)
    batch: int = above(0, 0, or_equal=True)
    train: str = choice("both", "u", "theta")
    allow_unstable: bool = entry(False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.time is not None and self.steps is not None:
            raise InputError(
                f"flow.time = {self.time:g} and flow.steps = {self.steps} both came: wanted one of them. "
                "Take one away (on the command line: --set flow.steps=)."
            )


@dataclass(frozen=True)
class RecordConfig(Section):
    """``[record]``: what is saved and when; no `observables` means the usual ones."""

    section = "record"

    observables: tuple[str, ...] = entry(())
    every: int = above(1, 1, or_equal=True)
    bounds_every: int | str | tuple[float, ...] = entry(
        "auto",
        f'"auto", a number of dyadic times from 1 to {MOST_TIMES}, or a list of times',
        lambda value: 1 <= value <= MOST_TIMES if isinstance(value, int) else value == "auto" or _are_times(value),
    )
    snapshots: tuple[float, ...] = entry((), "a list of times of at least 0", _are_times)


@dataclass(frozen=True)
class OutputConfig(Section):
    """``[output]``: how results are kept; nothing here changes a number."""

    section = "output"

    checkpoint_seconds: float = above(0, 30.0, or_equal=True)
    memory_mb: int = above(1, 512, or_equal=True)
    title: str = entry("", "a text of one line", str.isprintable)


SECTIONS: dict[str, type[Section]] = {
    record.section: record
    for record in (DataConfig, NetworkConfig, CloudConfig, FlowConfig, RecordConfig, OutputConfig)
}


def resolve_alpha(alpha: float | str, m: int) -> float:
    """Return the number that `alpha` means for m particles: 20.0, "1", "sqrt(m)", "m" or "m^0.3".

    Raises
    ------
    InputError
        If it is none of these, or not a finite number above 0.
    """
    text = str(alpha).replace(" ", "")
    power = re.fullmatch(r"m(?:\^(.+))?", text)
    try:
        if text == "sqrt(m)":
            value = math.sqrt(m)
        elif power:
            value = float(m) ** float(power[1] or 1)
        else:
            value = float(text)
    except (ValueError, OverflowError):
        value = math.nan
    if not 1e-30 <= value <= 1e30:
        raise InputError(
            f'network.alpha = {shown(alpha)} is not possible: wanted a number from 1e-30 to 1e30, "1", "sqrt(m)" or '
            '"m^0.3". Type for example --set network.alpha=20.'
        )
    return value
