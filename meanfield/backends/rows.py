"""Activations compiled to row functions: machine code that maps a contiguous row of w to rows of h and its derivatives.

A row function is known by its address, so that a kernel is compiled once for all activations: `call2` and `call3`
call one inside a kernel. The eight built-in activations have forms in `jets` whose loops LLVM vectorises; any other
record is compiled from its own Python source, `pair` or `jet` applied to one number at a time. What Numba cannot
compile has no rows (`rows` returns None), and the caller goes through numpy.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.core.errors import NumbaError
from numba.extending import intrinsic

from meanfield.backends import jets
from meanfield.units import ACTIVATIONS, Activation

Dtype = np.dtype[Any]
SIN_REACH = {np.dtype(np.float64): 2.0**30, np.dtype(np.float32): 2.0**15}  # beyond, `elementary.sin` gives NaN


class Rows(NamedTuple):
    """Addresses of an activation's row functions: h; h and h'; all four; h' from h (0 where that cannot be)."""

    value: int
    pair: int
    jet: int
    slope: int
    owners: tuple  # keeps the machine code alive


@functools.cache
def rows(activation: Activation, dtype: Dtype) -> Rows | None:
    """Return the row functions of an activation in float64 or float32, None where it cannot be compiled."""
    known = ACTIVATIONS.get(activation.name) is activation
    cache = known
    try:
        forms: tuple[Any, Any, Any] = jets.JETS[activation.name] if known else _scalars(activation, dtype)
        pair, jet, slope = forms
        whole = _rest(pair, jet, dtype) if known and activation.name in jets.RESTS else _jet(jet, dtype, cache)
        made = [_value(pair, dtype, cache), _pair(pair, dtype, cache), whole]
        made += [_slope(slope, dtype, cache)] if slope is not None else []
    except Exception:  # noqa: BLE001  whatever the compiler says of a user's function, numpy may well run it
        if known:
            raise
        return None
    addresses = [function.address for function in made] + [0]
    return Rows(*addresses[:4], tuple(made))


def rows_for(activation: Activation, x: np.ndarray, z: np.ndarray) -> Rows | None:
    """Return the row functions for particles z and inputs x; None where they would leave the domain of `sin`."""
    if activation is ACTIVATIONS["sin"]:
        theta = z[:, :-1]  # whose absolute values would be an array of the cloud's size
        farthest = np.maximum(theta.max(initial=0.0), -theta.min(initial=0.0))  # NaN where there is one
        reach = float(np.abs(x).sum(axis=1).max()) * float(farthest)
        if not reach <= SIN_REACH[z.dtype]:
            return None
    return rows(activation, z.dtype)


def _scalars(activation: Activation, dtype: Dtype) -> tuple[Callable, Callable, None]:
    """Return a user's pair and jet compiled for one number; NumbaError where they don't map numbers to numbers."""
    number = types.float32 if dtype == np.float32 else types.float64
    jet = njit(error_model="numpy")(activation.jet)
    _demand_numbers(jet, number, 4)
    if activation.pair is None:

        @njit(error_model="numpy")
        def pair(w):
            h, h1, _, _ = jet(w)
            return h, h1

        return pair, jet, None
    pair = njit(error_model="numpy")(activation.pair)
    _demand_numbers(pair, number, 2)
    return pair, jet, None


def _demand_numbers(function: Any, number: Any, count: int) -> None:
    function.compile((number,))
    returned = function.overloads[(number,)].signature.return_type
    parts = getattr(returned, "types", ()) or getattr(returned, "dtype", None) and [returned.dtype] * len(returned)
    if not parts or len(parts) != count or not all(isinstance(part, types.Float | types.Integer) for part in parts):
        raise NumbaError(f"a jet of numbers should be {count} numbers, Numba finds {returned}")


def _function(inputs: int, outputs: int, dtype: Dtype, cache: bool) -> Callable[[Callable], Any]:
    number = types.float32 if dtype == np.float32 else types.float64
    signature = types.void(*[types.CPointer(number)] * (inputs + outputs), types.int64)
    return cfunc(signature, cache=cache, error_model="numpy", fastmath={"contract"})


def _value(pair: Callable, dtype: Dtype, cache: bool) -> Any:
    def value(source, h, count):
        w, a = carray(source, count), carray(h, count)
        for i in range(count):
            a[i] = pair(w[i])[0]

    return _function(1, 1, dtype, cache)(value)


def _pair(pair: Callable, dtype: Dtype, cache: bool) -> Any:
    def value_and_first(source, h, h1, count):
        w, a, b = carray(source, count), carray(h, count), carray(h1, count)
        for i in range(count):
            a[i], b[i] = pair(w[i])

    return _function(1, 2, dtype, cache)(value_and_first)


def _jet(jet: Callable, dtype: Dtype, cache: bool) -> Any:
    def whole(source, h, h1, h2, h3, count):
        w, a, b = carray(source, count), carray(h, count), carray(h1, count)
        e, f = carray(h2, count), carray(h3, count)
        for i in range(count):
            a[i], b[i], e[i], f[i] = jet(w[i])

    return _function(1, 4, dtype, cache)(whole)


def _rest(pair: Callable, rest: Callable, dtype: Dtype) -> Any:
    def in_two_loops(source, h, h1, h2, h3, count):
        w, a, b = carray(source, count), carray(h, count), carray(h1, count)
        e, f = carray(h2, count), carray(h3, count)
        for i in range(count):
            a[i], b[i] = pair(w[i])
        for i in range(count):
            e[i], f[i] = rest(w[i], a[i], b[i])

    return _function(1, 4, dtype, True)(in_two_loops)


def _slope(slope: Callable, dtype: Dtype, cache: bool) -> Any:
    def first(h, h1, count):
        a, b = carray(h, count), carray(h1, count)
        for i in range(count):
            b[i] = slope(a[i])

    return _function(1, 1, dtype, cache)(first)


def _codegen(context, builder, signature, arguments):
    """Call the function at the address that comes first with the data of the arrays and the length of the first."""
    address, *values = arguments
    made = [context.make_array(ty)(context, builder, v) for ty, v in zip(signature.args[1:], values, strict=True)]
    pointers = [array.data for array in made]
    kind = ir.FunctionType(ir.VoidType(), [p.type for p in pointers] + [ir.IntType(64)])
    builder.call(builder.inttoptr(address, kind.as_pointer()), [*pointers, made[0].nitems])
    return context.get_dummy_value()


@intrinsic
def call2(typing, address, a, b):
    """Call a row function from one array to one."""
    return types.void(address, a, b), _codegen


@intrinsic
def call3(typing, address, a, b, c):
    """Call a row function from one array to two."""
    return types.void(address, a, b, c), _codegen


@intrinsic
def call5(typing, address, a, b, c, d, e):
    """Call a row function from one array to four."""
    return types.void(address, a, b, c, d, e), _codegen
