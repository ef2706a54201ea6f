"""What a pickle has made while it is read, and the plain values that it becomes in the end.

A value that is whole at once, a number or a list, is itself. A `Leaf` stands where more is to come: the state of an
array, or the bytes of a tensor, which in the older format of torch.save stand after the pickle. `settle` turns leaves
into plain values wherever they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from maskrcnn.errors import InputError
from maskrcnn.weights.formats.mapped import MAX_DIMS, array, flat, num_bytes, numbers, require_bools

WEIGHT = 10_000_000  # values, counted wherever they appear; 64 characters of text count as one
DEPTH = 100  # containers within one another

_ROOM = 1 << 24  # bytes that a tensor may name beyond those of its storage: small ones may be expanded, none absurdly

Load = Callable[["Storage"], Tensor]  # a storage's bytes, (n,) uint8, exactly as many as it claims


class Leaf:
    """What a pickle has made and what becomes plain once all of it is read."""

    def build(self, state: object) -> None:
        """Take the state that the pickle sets."""
        raise InputError("sets the state of what has none", found=type(self).__name__)

    def plain(self, load: Load) -> Any:
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Raw(Leaf):
    """Bytes where they stand in the file. maybe_text: from a `str` of Python 2, which may be either."""

    view: memoryview
    maybe_text: bool = False

    @cached_property
    def flat(self) -> Tensor:
        """As a tensor: one, however many arrays share the bytes."""
        return flat(self.view)

    @cached_property
    def bools(self) -> Tensor:
        return require_bools(self.flat)

    @cached_property
    def value(self) -> bytes | str:
        content = bytes(self.view)
        if self.maybe_text:
            try:
                return content.decode("utf-8")
            except UnicodeDecodeError:
                pass
        return content

    def plain(self, load: Load) -> bytes | str:
        return self.value


@dataclass(frozen=True, eq=False)
class Global(Leaf):
    """A name that a pickle asked for. make: what a call of it gives; None where it is a value and no call."""

    name: str
    make: Callable[..., Any] | None = None
    dtype: torch.dtype | None = None  # of a storage class, or the dtype itself

    def plain(self, load: Load) -> str:
        return self.name


class Stand(dict[Any, Any]):
    """In place of an object of a harmless class: its items, or the fields that its state sets.

    fields: whether the state is its content. Subclasses of dict keep their content as items, and only
    housekeeping in their state.
    """

    __slots__ = ("fields",)

    def __init__(self, fields: bool) -> None:
        super().__init__()
        self.fields = fields

    def build(self, state: object) -> None:
        if not self.fields:
            return
        parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)  # __dict__, and __slots__
        for part in parts:
            self.update(part if isinstance(part, dict) else {} if part is None else {"state": part})


@dataclass(eq=False)
class NumberType(Leaf):
    """A numpy dtype. code: "f4", or whatever else numpy calls what it can hold."""

    code: str

    _DTYPES = {
        "b1": torch.bool,
        "i1": torch.int8,
        "i2": torch.int16,
        "i4": torch.int32,
        "i8": torch.int64,
        "u1": torch.uint8,
        "u2": torch.uint16,
        "u4": torch.uint32,
        "u8": torch.uint64,
        "f2": torch.float16,
        "f4": torch.float32,
        "f8": torch.float64,
        "c8": torch.complex64,
        "c16": torch.complex128,
    }

    def build(self, state: object) -> None:
        """(version, byte order, subtype, names, fields, item size, alignment, flags, ...), as numpy writes it."""
        if not isinstance(state, tuple) or len(state) < 5:
            raise TypeError
        order = text(state[1])
        if order == ">":
            raise InputError("array of big-endian numbers", found=f">{self.code}", expected="little-endian")
        if order not in ("<", "=", "|") or any(part is not None for part in state[2:5]):
            raise InputError("array of no plain numbers", found=f"a structured {self.code}")

    @property
    def dtype(self) -> torch.dtype:
        if self.code not in self._DTYPES:
            kind = {"O": "Python objects", "S": "text", "U": "text", "V": "records"}.get(
                self.code[:1], "no plain numbers"
            )
            raise InputError(f"array of {kind}", found=f"dtype {self.code}", expected="numbers")
        return self._DTYPES[self.code]

    def plain(self, load: Load) -> str:
        return str(self._DTYPES.get(self.code, self.code)).removeprefix("torch.")


class Array(Leaf):
    """A numpy array, empty until its state is set. It becomes a tensor over the same bytes."""

    def __init__(self) -> None:
        self.content: tuple[torch.dtype, tuple[int, ...], tuple[int, ...], Raw] | None = None

    def build(self, state: object) -> None:
        """(version, shape, dtype, whether in Fortran's order, bytes); the first numpys wrote no version."""
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise TypeError
        shape, kind, fortran, data = state[-4:]
        self.fill(kind, shape, data, fortran=bool(fortran))

    def fill(self, kind: object, shape: object, data: object, *, fortran: bool = False, axes: object = None) -> None:
        """Take the content. axes: axis i of the array is axis axes[i] of `shape`, which is as in memory."""
        if not isinstance(kind, NumberType):
            raise TypeError
        stored, order = sides(shape), tuple(range(len(sides(shape))))
        if fortran:
            stored, order = stored[::-1], order[::-1]
        elif axes is not None:
            if sorted(sides(axes)) != list(order):
                raise TypeError
            order = sides(axes)
        self.content = kind.dtype, stored, order, raw(data)

    def plain(self, load: Load) -> Tensor:
        if self.content is None:
            raise InputError("array without content")
        dtype, stored, order, data = self.content
        return array(data.bools if dtype == torch.bool else data.flat, dtype, stored).permute(order)


@dataclass(frozen=True, eq=False)
class Storage(Leaf):
    """The memory of tensors. Several may share one, as tied weights do.

    key: its name in the file. count: numbers in the whole. first, length: the part that is meant, in numbers.
    """

    key: str
    dtype: torch.dtype
    count: int
    first: int
    length: int

    @property
    def num_bytes(self) -> int:
        return self.count * self.dtype.itemsize

    def plain(self, load: Load) -> Tensor:
        return numbers(self.part(load), self.dtype)

    def part(self, load: Load) -> Tensor:
        item = self.dtype.itemsize
        return load(self)[self.first * item : (self.first + self.length) * item]


@dataclass(frozen=True, eq=False)
class View(Leaf):
    """A tensor: numbers of a storage, from `offset` on, `stride` apart along each axis."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        room = self.storage.length * self.storage.dtype.itemsize
        wanted = num_bytes(self.size, self.dtype)
        if len(self.size) != len(self.stride) or min(self.stride, default=0) < 0:
            raise InputError("impossible tensor", found=f"{list(self.size)} with strides {list(self.stride)}")
        last = self.offset + sum((side - 1) * step for side, step in zip(self.size, self.stride, strict=True))
        if wanted and (last + 1) * self.dtype.itemsize > room:
            found = f"{list(self.size)} with strides {list(self.stride)} from {self.offset} in {room} bytes"
            raise InputError("tensor larger than its storage", found=found)
        if wanted > max(room, _ROOM):
            raise InputError("tensor of absurd size", found=f"{list(self.size)} of {self.dtype} in {room} bytes")

    def plain(self, load: Load) -> Tensor:
        if 0 in self.size:
            return torch.empty(self.size, dtype=self.dtype)
        content = numbers(self.storage.part(load), self.dtype)
        return torch.as_strided(content, self.size, self.stride, content.storage_offset() + self.offset)


# --- arguments --------------------------------------------------------------------------------------------------------
# Where one is not as it should be, a TypeError: the caller names whose argument it was.


def text(value: object) -> str:
    found = value.value if isinstance(value, Raw) else value
    if not isinstance(found, str):
        raise TypeError
    return found


def raw(value: object) -> Raw:
    if not isinstance(value, Raw):
        raise TypeError
    return value


def sides(value: object) -> tuple[int, ...]:
    """A shape, strides, or an order of axes."""
    if not isinstance(value, tuple) or len(value) > MAX_DIMS or not all(type(side) is int for side in value):
        raise TypeError
    return value


def key(value: object) -> Any:
    """A key of a dict or an item of a set: a plain value, or a tuple of such."""
    found = value.value if isinstance(value, Raw) else value.name if isinstance(value, Global) else value
    if found is None or type(found) in (str, bytes, int, float, bool, complex):
        return found
    if type(found) is tuple and len(found) <= MAX_DIMS and not any(isinstance(part, tuple) for part in found):
        return tuple(key(part) for part in found)
    raise InputError("is no key of a dict", found=type(found).__name__, expected="text or a number")


def printable(name: object) -> str:
    """A name from a file, fit for a message."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(name)[:200])


# --- plain values -----------------------------------------------------------------------------------------------------


def settle(made: Any, load: Load | None = None) -> Any:
    """Plain values, tensors among them, of what `parse` made. What it made once is one object here too.

    Args:
        load: bytes of a storage. None: there are none.

    Errors: `InputError` where bytes and shapes do not agree, for what contains itself, and for what passes a limit.
    """
    return _Settling(load or _no_storage).settle(made)[0]


def _no_storage(storage: Storage) -> Tensor:
    raise InputError("refers to a storage", found=printable(storage.key))


class _Settling:
    """Each object once, however often it is named. Weights are counted as often as it is named."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.done: dict[int, tuple[Any, int]] = {}
        self.open: set[int] = set()

    def settle(self, item: Any) -> tuple[Any, int]:
        """The plain value, and its weight."""
        if not isinstance(item, Leaf | list | tuple | dict | set | frozenset):
            return item, _weight(item)
        if id(item) in self.done:
            return self.done[id(item)]
        if id(item) in self.open:
            raise InputError("contains itself", found=type(item).__name__)
        if len(self.open) > DEPTH:
            raise InputError("is nested too deeply", expected=f"at most {DEPTH} containers within one another")
        self.open.add(id(item))
        plain, weight = self._settle(item)
        self.open.remove(id(item))
        if weight > WEIGHT:
            raise InputError("asks for too much", found=f"more than {WEIGHT} values", expected="a file of weights")
        self.done[id(item)] = plain, weight
        return plain, weight

    def _settle(self, item: Any) -> tuple[Any, int]:
        if isinstance(item, Leaf):
            value = item.plain(self.load)
            return value, _weight(value)
        if isinstance(item, set | frozenset):  # of plain values only
            return item, 1 + sum(map(_weight, item))
        parts = [self.settle(part) for part in (item.values() if isinstance(item, dict) else item)]
        values = [part[0] for part in parts]
        weight = 1 + sum(part[1] for part in parts)
        if isinstance(item, dict):
            return dict(zip(item, values, strict=True)), weight + sum(map(_weight, item))
        return (tuple(values) if isinstance(item, tuple) else values), weight


def _weight(value: Any) -> int:
    return 1 + (len(value) // 64 if isinstance(value, str | bytes) else 0)
