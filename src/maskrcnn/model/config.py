"""Config trees: frozen dataclasses, checked when made, written out as plain JSON and read back.

Each part of the model defines its own config beside itself; this file only moves them to and from dictionaries.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from maskrcnn.errors import InputError

T = TypeVar("T")

MOST = 2**31 - 1  # of anything that is counted: more is a slip of the hand, and some libraries count no further
_WHOLE = 2**63  # seeds have 64 bits


def is_count(value: object, most: int = MOST) -> bool:
    """Whether `value` is a whole number from 1 to `most`, of Python or numpy."""
    return isinstance(value, Integral) and not isinstance(value, bool) and 1 <= int(value) <= most


def is_share(value: object) -> bool:
    """Whether `value` is a number from 0 to 1, of Python or numpy; NaN is none."""
    return 0 <= as_float(value) <= 1


def as_float(value: object) -> float:
    """A number of Python or numpy as Python's float, NaN for what is no number. Of 400 digits it is infinite."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def require(condition: bool, config: object, field: str, expected: str) -> None:
    """Raise an `InputError` that names the class, the field and its value unless `condition` holds."""
    if not condition:
        name = f"{type(config).__name__}.{field}"
        raise InputError("impossible value", field=name, found=repr(getattr(config, field)), expected=expected)


def to_dict(config: Any) -> dict[str, Any]:
    """A config tree as dictionaries, lists and scalars, ready for JSON."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def from_dict(cls: type[T], data: Mapping[str, Any], field: str = "") -> T:
    """The config `cls` that `to_dict` wrote. Fields left out keep their defaults.

    Errors: `InputError` that names the field for unknown fields, wrong types and impossible values.
    """
    if not isinstance(data, Mapping):
        raise InputError("not a config", field=field or cls.__name__, found=data, expected="a dictionary")
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - known)
    if unknown:
        expected = ", ".join(sorted(known))
        raise InputError("unknown field", field=field or cls.__name__, found=", ".join(unknown), expected=expected)
    hints = get_type_hints(cls)
    values = {name: _typed(hints[name], value, f"{field or cls.__name__}.{name}") for name, value in data.items()}
    try:
        return cls(**values)
    except TypeError as error:  # a field without default is missing
        raise InputError(str(error), field=field or cls.__name__) from error


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


def _typed(hint: Any, value: Any, field: str) -> Any:
    """`value` from JSON as the type that `hint` asks for."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _typed_union(hint, value, field)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_dict(hint, value, field)
    if origin is tuple:
        return _typed_tuple(get_args(hint), value, field)
    if origin is Literal:
        return _checked(value in get_args(hint), value, field, " or ".join(map(repr, get_args(hint))))
    if origin is not None and issubclass(origin, Mapping):
        return dict(_checked(isinstance(value, Mapping), value, field, "a dictionary"))
    if hint is float:
        return float(_checked(math.isfinite(as_float(value)), value, field, "a finite number"))
    if hint is int:
        is_whole = isinstance(value, Integral) and not isinstance(value, bool) and -_WHOLE <= int(value) < _WHOLE
        return int(_checked(is_whole, value, field, "a whole number of at most 64 bits"))
    if hint is bool:
        return bool(_checked(isinstance(value, bool | np.bool_), value, field, "true or false"))
    if hint is str:
        return _checked(isinstance(value, str), value, field, "text")
    return value


def _typed_union(hint: Any, value: Any, field: str) -> Any:
    options = [option for option in get_args(hint) if option is not type(None)]
    if value is None and type(None) in get_args(hint):
        return None
    for option in options[:-1]:
        try:
            return _typed(option, value, field)
        except InputError:
            continue
    return _typed(options[-1], value, field)


def _typed_tuple(args: tuple[Any, ...], value: Any, field: str) -> tuple[Any, ...]:
    _checked(isinstance(value, list | tuple), value, field, "a list")
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_typed(args[0], item, f"{field}[{i}]") for i, item in enumerate(value))
    _checked(len(value) == len(args), value, field, f"a list of {len(args)}")
    return tuple(_typed(arg, item, f"{field}[{i}]") for i, (arg, item) in enumerate(zip(args, value, strict=True)))


def _checked(condition: bool, value: Any, field: str, expected: str) -> Any:
    if not condition:
        raise InputError("wrong type", field=field, found=repr(value), expected=expected)
    return value
