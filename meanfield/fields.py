"""Records whose fields carry their own rule: type, default, the values that make sense and words for them.

A key of the configuration is one line such as ``lam: float = above(0, 0.01, or_equal=True)``; `Section`
converts and checks it when the record is made.  Read next: `config`, which is written in these terms.
"""

import dataclasses
import json
import math
import numbers
import os
import types
import typing
from collections.abc import Callable
from typing import Any, ClassVar

from meanfield.errors import InputError, did_you_mean, shown

LARGEST_INTEGER = 2**64


def entry(
    default: Any,
    wanted: str = "",
    allows: Callable[[Any], bool] = lambda value: True,
    names: tuple[str, ...] = (),
) -> Any:
    """Return a field with the values it allows, words for them, and names to guess a misspelling from."""
    return dataclasses.field(default=default, metadata={"wanted": wanted, "allows": allows, "names": names})


def choice(*names: str) -> Any:
    """Return a field that takes one of `names`; the first is the default."""
    wanted = "one of " + ", ".join(f'"{name}"' for name in names)
    return entry(names[0], wanted, lambda value: value in names, names)


def above(limit: float, default: Any, or_equal: bool = False) -> Any:
    """Return a field for a number above `limit`, or equal to it."""
    words = f"<kind> of at least {limit:g}" if or_equal else f"<kind> above {limit:g}"
    return entry(default, words, lambda value: value > limit or (or_equal and value == limit))


class Section:
    """Base of the frozen records; `section` is what stands between the brackets in the file.

    Raises
    ------
    InputError
        When a record is made with a value of the wrong type or outside its rule.
    """

    section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            came = getattr(self, field.name)
            try:
                value = _convert(came, hints[field.name])
            except (TypeError, OverflowError):
                raise InputError(self._refusal(field, came, hints[field.name])) from None
            if value is not None and not field.metadata["allows"](value):
                raise InputError(self._refusal(field, came, hints[field.name]))
            object.__setattr__(self, field.name, value)

    @classmethod
    def keys(cls) -> list[str]:
        """Return the names of the fields."""
        return [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]

    def _refusal(self, field: "dataclasses.Field[Any]", came: Any, hint: Any) -> str:
        wanted = field.metadata["wanted"].replace("<kind>", _words(hint)) or _words(hint)
        near = did_you_mean(came, field.metadata["names"])
        default = "" if field.default is None else f" Without the key it is {json.dumps(field.default)}."
        return f"{self.section}.{field.name} = {shown(came)} is not possible: wanted {wanted}.{near or default}"


def is_deep(tree: Any, most: int) -> bool:
    """Return whether there are tables or lists in more than `most` others."""
    level = [tree]
    for _ in range(most):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
    return bool(level)


def _words(hint: Any) -> str:
    names = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}
    arms = [arm for arm in typing.get_args(hint) or (hint,) if arm not in (type(None), Ellipsis)]
    several = "a list, each item " if typing.get_origin(hint) is tuple else ""
    return several + " or ".join(names.get(arm, "a list") for arm in arms)


def _convert(value: Any, hint: Any) -> Any:
    """Return `value` as the type of `hint`, or raise TypeError."""
    if isinstance(hint, types.UnionType):
        return _convert_to_any(value, typing.get_args(hint))
    if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        return tuple(_convert(item, typing.get_args(hint)[0]) for item in value)
    if hint is str and isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if hint is type(None) and value is None:
        return None
    if hint is bool and isinstance(value, bool):
        return value
    if hint in (int, float) and not isinstance(value, bool) and isinstance(value, numbers.Real):
        return _convert_number(float(value) if hint is float else value, hint)
    raise TypeError


def _convert_to_any(value: Any, hints: tuple[Any, ...]) -> Any:
    for hint in hints:
        try:
            return _convert(value, hint)
        except TypeError:
            continue
    raise TypeError


def _convert_number(value: Any, hint: type) -> Any:
    """Return a finite number; a float that is whole, as 1e4, passes for an integer."""
    if isinstance(value, numbers.Integral) and hint is int and abs(int(value)) < LARGEST_INTEGER:
        return int(value)
    if not math.isfinite(value) or (hint is int and not (abs(value) < LARGEST_INTEGER and value == int(value))):
        raise TypeError
    return hint(value)
