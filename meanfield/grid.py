"""The points of a sweep: the product of the lists in [sweep], checked before anything runs, each with its name.

The name of a point is made of its resolved configuration, its data and the version of the package, so that equal
points are one and an edited configuration makes new ones.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from meanfield import __version__, datasets, ensemble, experiment
from meanfield import config as configuration
from meanfield.config import RunConfig
from meanfield.errors import InputError

MOST_POINTS = 100_000


@dataclass(frozen=True)
class Point:
    """One point of the grid: the values of the swept keys, the configuration of its run, the name of its directory."""

    values: Mapping[str, Any]
    config: RunConfig
    name: str

    @property
    def label(self) -> str:
        """The values in words."""
        return _label(self.values)


def plan(config: RunConfig) -> list[Point]:
    """Return the points of a sweep, the last key fastest, every one checked as far as that needs no step.

    Raises
    ------
    InputError
        That names the first point with bad input.
    """
    count = math.prod(len(values) for values in config.sweep.values())
    if count > MOST_POINTS:
        raise InputError(f"the table [sweep] has {count:,} points: wanted at most {MOST_POINTS:,}; take shorter lists")
    for key, values in config.sweep.items():
        ensemble.coordinate(key, values)
    loaded: dict[Any, tuple[datasets.Data, str]] = {}
    points = []
    for chosen in itertools.product(*config.sweep.values()):
        named = dict(zip(config.sweep, chosen, strict=True))
        try:
            one = configuration.at(config, named | {"output.title": _title(config, named)})
            if one.data not in loaded:
                data = datasets.load(one.data)
                loaded[one.data] = data, _digest(data)
            experiment.check(one, loaded[one.data][0])
        except InputError as error:
            raise InputError(f"the point {_label(named)}: {error}") from error
        text = json.dumps([configuration.digest(one), loaded[one.data][1], __version__])
        points.append(Point(named, one, hashlib.sha256(text.encode()).hexdigest()[:16]))
    return points


def _label(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in values.items())


def _title(config: RunConfig, values: Mapping[str, Any]) -> str:
    return f"{config.output.title}: {_label(values)}" if config.output.title else _label(values)


def _digest(data: datasets.Data) -> str:
    arrays = [np.ascontiguousarray(a) for a in (data.x, data.y, data.x_test, data.y_test) if a is not None]
    total = hashlib.sha256(str([a.shape for a in arrays]).encode())
    for array in arrays:
        total.update(array.view(np.uint8).data)
    return total.hexdigest()


def coupling(config: RunConfig) -> list[str]:
    """Return what keeps the points of one cloud.seed from sharing their start or their noise, a sentence each."""
    keys, out = set(config.sweep), []
    shape = sorted(keys & {"data.source", "data.d", "data.lags", "data.columns", "data.path", "network.bias"})
    if shape:
        out.append(f"{', '.join(shape)} may change the number of coordinates, and with it start and noise")
    if "cloud.dtype" in keys:
        out.append("cloud.dtype: single precision draws other noise")
    grid = keys - {key for key in keys if key.startswith(("record.", "output."))} - {"cloud.seed"}
    if grid and (config.flow.eta == "auto" or "auto" in config.sweep.get("flow.eta", ())):
        out.append('flow.eta = "auto" lets every point choose its steps: they share their start, not their noise')
    elif "flow.eta" in keys:
        out.append("flow.eta differs: points of different steps share their start, not their noise")
    return out
