"""Runs at the points of a grid as one Dataset: put together, read at their end, averaged over seeds.

    combine(axes, found)     one Dataset whose dimensions are the keys that were swept
    last(data)               what every point reads at its own end
    over(data, "cloud.seed") mean and standard error over points that differ in a seed alone

`sweep` calls the first; the others take what it returns, or `sweep.nc` read with xarray.
"""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from meanfield.errors import InputError

if TYPE_CHECKING:
    import xarray

Array = np.ndarray
# Dimension of the records of a run -> the same where the times differ between points, and how many a point has.
CLOCKS = {"time": ("record", "records"), "bound_time": ("bound", "bounds")}
# What describes the data alone: along the keys of [data], not along the others.
OF_DATA = ("label", "test_label")
# Attributes of a run that are variables here even where they are equal at all points.
ALWAYS = ("steps", "end", "alpha", "lam", "ntk_lambda", "ntk_lambda_max")
# What says how a run was made, and has no standard error.
DESCRIBED = (*ALWAYS, "records", "bounds", "time", "bound_time", "frozen_energy")


def coordinate(key: str, values: Sequence[Any]) -> Array:
    """Return the values of a key as a coordinate: numbers where all are, else words.

    Raises
    ------
    InputError
        If a value comes twice.
    """
    if all(isinstance(value, bool) for value in values):
        out = np.array(values)
    elif all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        out = np.array(values, dtype=np.float64 if any(isinstance(value, float) for value in values) else np.int64)
    else:
        words = [value if isinstance(value, str) else json.dumps(value) for value in values]
        out = np.array(words, dtype=object)
    if len(set(out.tolist())) < len(out):
        raise InputError(f"sweep.{key} = {list(values)!r} has a value twice: wanted different ones.")
    return out


def combine(
    axes: Mapping[str, Sequence[Any]],
    found: Sequence["xarray.Dataset | None"],
    words: Mapping[str, Sequence[str]] | None = None,
) -> "xarray.Dataset":
    """Return one Dataset of the records of every point, with the swept keys as the first dimensions.

    Times: where the `time` of every point is the beginning of the longest one, it stays a coordinate. Where points
    chose steps of their own, the dimension is `record`, the number of the record, and `time` is a variable along it;
    the same for `bound_time` and `bound`. `records` and `bounds` say how many a point has. What a point has not is
    NaN, or an empty word. Variables along samples and time (`prediction`) are kept at the last record alone.

    Parameters
    ----------
    axes : mapping
        Dotted key to its values; points are their product, the last key fastest.
    found : sequence of Dataset or None
        Records of each point, None where there are none.
    words : mapping, optional
        More variables of text, a word for each point.

    Raises
    ------
    InputError
        If a value comes twice along a key.
    """
    import xarray

    coords: dict[str, Any] = {key: coordinate(key, values) for key, values in axes.items()}
    grid = _Grid(tuple(axes), tuple(len(values) for values in axes.values()))
    runs = [None if run is None else prepared(run) for run in found]
    here = [run for run in runs if run is not None]
    variables: dict[str, Any] = {}
    for clock, (index, count) in CLOCKS.items():
        variables[count] = grid.numbers([0 if run is None else run.sizes.get(clock, 0) for run in runs])
        times = [run[clock].values for run in here if clock in run.variables]
        longest = max(times, key=len, default=np.zeros(0))
        if all(np.array_equal(t, longest[: len(t)]) for t in times):
            coords[clock] = longest
        else:
            runs = [None if run is None else run.rename_dims({clock: index}).reset_coords(clock) for run in runs]
    names = dict.fromkeys(str(name) for run in runs if run is not None for name in run.data_vars)
    variables |= {name: grid.variable(name, runs) for name in names}
    for name in ("replicate", "sample"):
        size = max((run.sizes.get(name, 0) for run in here), default=0)
        coords |= {name: np.arange(size)} if size else {}
    attrs, described = _attributes(grid, runs)
    texts = {
        name: (grid.keys, grid.filled(np.array(list(column), dtype=object))) for name, column in (words or {}).items()
    }
    return xarray.Dataset(variables | described | texts, coords, attrs)


def prepared(run: "xarray.Dataset") -> "xarray.Dataset":
    """Return the records without index variables, and at the last record what is along samples and time.

    What `combine` keeps of a run; doing it twice changes nothing.
    """
    run = run.drop_vars([name for name in ("replicate", "sample") if name in run.coords])
    run = run.drop_indexes([clock for clock in CLOCKS if clock in run.xindexes])
    late = [n for n, v in run.data_vars.items() if "sample" in v.dims and "time" in v.dims and run.sizes["time"]]
    return run.assign({name: run[name].isel(time=-1, drop=True) for name in late})


class _Grid:
    """The keys of a sweep and how many values each has."""

    def __init__(self, keys: tuple[str, ...], shape: tuple[int, ...]) -> None:
        self.keys, self.shape = keys, shape

    def filled(self, column: Array) -> Array:
        return column.reshape(self.shape)

    def numbers(self, column: Sequence[int]) -> tuple[tuple[str, ...], Array]:
        return self.keys, self.filled(np.array(column, dtype=np.int64))

    def variable(self, name: str, runs: Sequence[Any]) -> tuple[tuple[str, ...], Array, dict[str, Any]]:
        """Return a variable of the points as (dimensions, values, attributes), padded where points have less."""
        having = [run[name].variable for run in runs if run is not None and name in run]
        first = having[0]
        own = [k for k, key in enumerate(self.keys) if name not in OF_DATA or key.startswith("data.")]
        sizes = tuple(max(one.sizes[dim] for one in having) for dim in first.dims)
        text = first.dtype.kind not in "biuf"
        out = np.full(
            (*(self.shape[k] for k in own), *sizes), "" if text else math.nan, dtype=object if text else np.float64
        )
        done: set[tuple[int, ...]] = set()
        for index, run in zip(itertools.product(*map(range, self.shape)), runs, strict=True):
            place = tuple(index[k] for k in own)
            if run is not None and name in run and place not in done:
                done.add(place)
                values = run[name].values
                out[place + tuple(slice(size) for size in values.shape)] = values
        return (*(self.keys[k] for k in own), *map(str, first.dims)), out, dict(first.attrs)


def _attributes(grid: _Grid, runs: Sequence[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the attributes that all points share, and as variables the numbers and words that differ."""
    shared, variables = {}, {}
    every = [{} if run is None else run.attrs for run in runs]
    here = [attrs for attrs, run in zip(every, runs, strict=True) if run is not None]
    for name in dict.fromkeys(name for attrs in here for name in attrs if name not in ("title", "status")):
        values = [_plain(attrs[name]) for attrs in here if name in attrs]
        same = len(values) == len(here) and all(_equal(value, values[0]) for value in values)
        if same and name not in ALWAYS:
            shared[name] = values[0]
        elif all(isinstance(value, str) for value in values):
            column = np.array([attrs.get(name, "") for attrs in every], dtype=object)
            variables[name] = grid.keys, grid.filled(column)
        elif all(isinstance(value, int | float) for value in values):
            column = np.array([float(attrs.get(name, math.nan)) for attrs in every])
            variables[name] = grid.keys, grid.filled(column)
    return shared, variables


def _plain(value: Any) -> Any:
    """Return an attribute as it was before it was stored: netCDF gives numpy's scalars and arrays."""
    return value.item() if isinstance(value, np.generic) else value


def _equal(a: Any, b: Any) -> bool:
    """Return whether two attributes are equal; NaN equals NaN."""
    return bool(np.array_equal(a, b)) or (isinstance(a, float) and isinstance(b, float) and a != a and b != b)


def last(data: "xarray.Dataset") -> "xarray.Dataset":
    """Return what every point reads at its own last record, and at its own last bounds; NaN where it has none."""
    import xarray

    ends: dict[str, Any] = {}
    for clock, (index, count) in CLOCKS.items():
        if clock in data.dims:
            times = xarray.DataArray(data[clock].values, dims=clock)
            ends[clock] = _end(times.broadcast_like(data[count]), clock, data[count])
        for dim in {clock, index} & set(data.dims):
            ends |= {str(n): _end(v, dim, data[count]) for n, v in data.data_vars.items() if dim in v.dims}
    clocks = {dim for clock, (index, _) in CLOCKS.items() for dim in (clock, index)}
    return data.drop_dims(clocks & set(data.dims)).assign(ends)


def _end(variable: "xarray.DataArray", dim: str, count: "xarray.DataArray") -> "xarray.DataArray":
    """Return the entries at count - 1 along a dimension."""
    import xarray

    rest = [d for d in variable.dims if d not in count.dims and d != dim]
    values = variable.transpose(*count.dims, *rest, dim).values
    empty = math.nan if values.dtype.kind in "biuf" else ""
    at = count.values.reshape(*count.shape, *(1,) * (len(rest) + 1))
    if not values.shape[-1]:
        values = np.full((*values.shape[:-1], 1), empty, dtype=values.dtype)
    ends = np.take_along_axis(values, np.maximum(at - 1, 0), axis=-1)[..., 0]
    ends = np.where(at[..., 0] > 0, ends, empty)
    return xarray.DataArray(ends, dims=(*count.dims, *rest), attrs=variable.attrs)


def over(data: "xarray.Dataset", *keys: str) -> "xarray.Dataset":
    """Return mean and standard error over the points along keys such as "cloud.seed", and over "replicate" if named.

    x -> mean of x, and x_se -> sqrt(sum (x - mean)^2 / (k (k - 1))) over the k points, which takes the place of the
    errors x_se within runs: NaN for k = 1. What is along none of the keys keeps its error. Points that have no x,
    because they diverged or did not run, make its mean NaN: a mean over those that are left would be of another law.
    Select first (`data.sel`) where that is wanted.

    Left out, and named in the attribute `left_out`: descriptions that differ, and variables along `record` or `bound`,
    whose times differ between points (`last` first, or fix flow.eta).

    Raises
    ------
    InputError
        If a key is no dimension.
    """
    import xarray

    for key in keys:
        if key not in data.dims:
            raise InputError(f"{key!r} is no dimension of this Dataset: it has {', '.join(map(str, data.dims))}")
    out, errors, left, empty = {}, {}, [], xarray.DataArray()
    for name, variable in data.data_vars.items():
        text, dims = str(name), [key for key in keys if key in variable.dims]
        first = variable.isel(dict.fromkeys(dims, 0), drop=True)
        plain = variable.dtype.kind in "biuf" and text not in DESCRIBED
        if text.endswith("_se") and set(keys) & set(data.get(text.removesuffix("_se"), empty).dims):
            continue
        if not dims or (not plain and bool((variable == first).all())):
            out[text] = first
        elif not plain or {index for index, _ in CLOCKS.values()} & set(variable.dims):
            left.append(text)
        else:
            out[text] = variable.mean(dims, skipna=False, keep_attrs=True)
            errors[f"{text}_se"] = _standard_error(variable, dims)
    reduced = data.drop_vars([*data.data_vars, *(key for key in keys if key in data.coords)])
    return reduced.assign(out | errors).assign_attrs(data.attrs | {"mean_over": list(keys), "left_out": left})


def _standard_error(variable: "xarray.DataArray", dims: Sequence[str]) -> "xarray.DataArray":
    k = math.prod(variable.sizes[dim] for dim in dims)
    gap = variable.std(dims, ddof=1, skipna=False) / math.sqrt(k) if k > 1 else variable.mean(dims) * math.nan
    return gap.assign_attrs(long_name=f"standard error over {', '.join(dims)}")
