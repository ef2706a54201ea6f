"""What a pickle of weights may ask for by name, and the plain data that stands in for it.

No class or function of the tables below is ever the real one: a pickle that asks for `builtins.getattr` gets
`_attribute`, which joins two names, and one that asks for a config class of yacs gets a dict. Whatever stands in no
table is refused by name when it is asked for, before anything is made of it.

What is made first is a `Leaf` where more is to come: the state of an array, the bytes of a tensor, which in the older
format of torch.save stand after the pickle. `Leaf.plain` gives the value in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import torch
from torch import Tensor

from maskrcnn.errors import InputError
from maskrcnn.weights.mapped import MAX_DIMS, array, flat, num_bytes, numbers

EXPECTED = "tensors, arrays, containers and plain values, since nothing in a file is run"

_ROOM = 1 << 24  # bytes that a tensor may name beyond those of its storage: small ones may be expanded, none absurdly

Load = Callable[["Storage"], Tensor]  # a storage's bytes, (n,) uint8, exactly as many as it claims


class Leaf:
    """What a pickle has made and what becomes plain once all of it is read."""

    def build(self, state: object) -> None:
        """Take the state that the pickle sets."""
        raise InputError("sets the state of what has none", found=type(self).__name__)

    def plain(self, load: Load) -> Any:
        raise NotImplementedError


# --- leaves -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Raw(Leaf):
    """Bytes where they stand in the file. maybe_text: from a `str` of Python 2, which may be either."""

    view: memoryview
    maybe_text: bool = False

    @cached_property
    def flat(self) -> Tensor:
        """As a tensor: one, however many arrays share the bytes."""
        return flat(self.view)

    def value(self) -> bytes | str:
        content = bytes(self.view)
        if self.maybe_text:
            try:
                return content.decode("utf-8")
            except UnicodeDecodeError:
                pass
        return content

    def plain(self, load: Load) -> bytes | str:
        return self.value()


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
    """A numpy dtype. code: "f4". order: of bytes, "<", "=" or "|"."""

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
        return array(data.flat, dtype, stored).permute(order)


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
        return torch.as_strided(numbers(self.storage.part(load), self.dtype), self.size, self.stride, self.offset)


# --- arguments --------------------------------------------------------------------------------------------------------
# Where one is not as it should be, a TypeError: the caller names whose argument it was.


def text(value: object) -> str:
    found = value.value() if isinstance(value, Raw) else value
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
    found = value.value() if isinstance(value, Raw) else value.name if isinstance(value, Global) else value
    if found is None or type(found) in (str, bytes, int, float, bool, complex):
        return found
    if type(found) is tuple and len(found) <= MAX_DIMS and not any(isinstance(part, tuple) for part in found):
        return tuple(key(part) for part in found)
    raise InputError("is no key of a dict", found=type(found).__name__, expected="text or a number")


def _whole(value: object) -> int:
    if type(value) is not int or value < 0:
        raise TypeError
    return value


# --- what calls give --------------------------------------------------------------------------------------------------


def _dict(content: object = ()) -> dict[Any, Any]:
    if isinstance(content, dict):
        return dict(content)
    if not isinstance(content, list | tuple) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in content):
        raise TypeError
    return {key(name): value for name, value in content}


def _defaultdict(factory: object = None, content: object = ()) -> dict[Any, Any]:
    return _dict(content)


def _items(content: object) -> Iterable[Any]:
    if not isinstance(content, list | tuple | set | frozenset):
        raise TypeError
    return content


def _list(content: object = ()) -> list[Any]:
    return list(_items(content))


def _tuple(content: object = ()) -> tuple[Any, ...]:
    return tuple(_items(content))


def _set(content: object = ()) -> set[Any]:
    return {key(item) for item in _items(content)}


def _frozenset(content: object = ()) -> frozenset[Any]:
    return frozenset(_set(content))


def _complex(real: object, imaginary: object = 0.0) -> complex:
    if not isinstance(real, int | float) or not isinstance(imaginary, int | float):
        raise TypeError
    return complex(real, imaginary)


def _bytes(content: object = None, encoding: object = None) -> Raw:
    """`bytes()`, `bytearray(b"...")` and `bytearray("...", "latin-1")`, as the older protocols write them."""
    if content is None:
        return Raw(memoryview(b""))
    return raw(content) if encoding is None else _encode(content, encoding)


def _encode(content: object, encoding: object = "latin1") -> Raw:
    """Bytes that protocol 2 wrote as text: one character a byte."""
    if text(encoding).replace("-", "").lower() not in ("latin1", "iso88591"):
        raise TypeError
    return Raw(memoryview(bytearray(text(content), "latin-1")))


def _path(*parts: object) -> str:
    return str(PurePosixPath(*(text(part) for part in parts)))


def _attribute(owner: object, name: object) -> Global:
    """`HistoryBuffer.min`, as protocols before 4 name what stands within a class: a name, never a function."""
    if not isinstance(owner, Global) or owner.name not in _STANDS:
        raise InputError(f"asks for builtins.getattr of {_name(owner)}", found=printable(name), expected=EXPECTED)
    return Global(f"{owner.name}.{text(name)[:100]}")


def _instance(kind: object, base: object, content: object = None) -> Stand:
    """`copyreg._reconstructor`: an object as protocols 0 and 1 begin one."""
    if not isinstance(kind, Global) or not isinstance(base, Global) or kind.name not in _STANDS or kind.make is None:
        raise InputError("makes an object", found=_name(kind), expected=EXPECTED)
    made: Stand = kind.make() if content is None else kind.make(content)
    return made


def _stand(fields: bool) -> Callable[..., Stand]:
    def make(*content: object) -> Stand:
        """content: nothing, one dict, or pairs of name and value (addict)."""
        stand = Stand(fields)
        stand.update(_dict(content[0] if len(content) == 1 and isinstance(content[0], dict) else content))
        return stand

    return make


def _name(value: object) -> str:
    return value.name if isinstance(value, Global) else type(value).__name__


# numpy


def _dtype(code: object, align: object = False, copy: object = False) -> NumberType:
    name = text(code)
    if not name or not name.isascii() or not name.isalnum():
        raise InputError("array of no plain numbers", found=f"dtype {name}", expected="numbers")
    return NumberType(name)


def _empty_array(kind: object, shape: object, code: object) -> Array:
    if not isinstance(kind, Global) or kind.name != "numpy.ndarray":
        raise InputError("makes an array of its own kind", found=_name(kind), expected="numpy.ndarray")
    return Array()


def _array_of_buffer(data: object, kind: object, shape: object, order: object, axes: object = None) -> Array:
    """`numpy._core.numeric._frombuffer`: an array of protocol 5. order: "C", "F", or "K" and the axes."""
    made = Array()
    if text(order) == "F" and isinstance(shape, tuple):
        made.fill(kind, shape, data, fortran=True)
    elif text(order) == "C" or (text(order) == "K" and axes is not None):
        made.fill(kind, shape, data, axes=axes)
    else:
        raise TypeError
    return made


def _scalar(kind: object, data: object) -> Any:
    if not isinstance(kind, NumberType):
        raise TypeError
    dtype = kind.dtype
    return array(raw(data).flat, dtype, ()).item()


# torch


def _tensor(storage: object, offset: object, size: object, stride: object, *more: object) -> View:
    """`_rebuild_tensor` and `_rebuild_tensor_v2`, which adds: needs gradient, hooks, and marks such as conjugated."""
    if not isinstance(storage, Storage) or len(more) > 3:
        raise TypeError
    _require_plain_marks(more[2:])
    return View(storage, storage.dtype, _whole(offset), sides(size), sides(stride))


def _tensor_v3(
    storage: object,
    offset: object,
    size: object,
    stride: object,
    grad: object,
    hooks: object,
    kind: object,
    *more: object,
) -> View:
    if not isinstance(storage, Storage) or not isinstance(kind, Global) or kind.dtype is None or len(more) > 1:
        raise TypeError
    _require_plain_marks(more)
    return View(storage, kind.dtype, _whole(offset), sides(size), sides(stride))


def _require_plain_marks(marks: tuple[object, ...]) -> None:
    for mark in marks:
        if isinstance(mark, Mapping) and any(mark.values()):
            raise InputError("tensor stored conjugated or negated", found=", ".join(map(str, list(mark)[:4])))


def _parameter(tensor: object, *more: object) -> View:
    if not isinstance(tensor, View):
        raise TypeError
    return tensor


def _tensor_with_fields(function: object, kind: object, arguments: object, state: object) -> View:
    """A tensor to which somebody attached fields: the tensor."""
    allowed = isinstance(function, Global) and function.make in (_tensor, _tensor_v3, _parameter)
    if not allowed or not isinstance(kind, Global) or kind.name not in _TENSORS or not isinstance(arguments, tuple):
        raise InputError(
            "makes a tensor of its own kind", found=f"{_name(function)} of {_name(kind)}", expected=EXPECTED
        )
    assert isinstance(function, Global) and function.make is not None
    made: View = function.make(*arguments)
    return made


def _device(kind: object, index: object = None) -> str:
    return text(kind) if index is None else f"{text(kind)}:{_whole(index)}"


def _layout(name: object) -> str:
    return text(name)


# --- the tables -------------------------------------------------------------------------------------------------------

_TENSORS = ("torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter")

_STORAGES = {
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}

_DTYPES = (
    *dict.fromkeys([*_STORAGES.values(), torch.uint16, torch.uint32, torch.uint64]),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
)

_STANDS = {  # harmless classes that checkpoints carry: whether their content is their state, or their items
    "argparse.Namespace": True,
    "types.SimpleNamespace": True,
    "yacs.config.CfgNode": False,
    "fvcore.common.config.CfgNode": False,
    "detectron2.config.config.CfgNode": False,
    "addict.addict.Dict": False,
    "easydict.EasyDict": False,
    "mmcv.utils.config.ConfigDict": False,
    "mmengine.config.config.ConfigDict": False,
    "mmengine.logging.history_buffer.HistoryBuffer": True,
    "pytorch_lightning.utilities.parsing.AttributeDict": False,
    "lightning.pytorch.utilities.parsing.AttributeDict": False,
    "lightning_fabric.utilities.data.AttributeDict": False,
}

_CALLS: dict[str, Callable[..., Any]] = {
    "builtins.dict": _dict,
    "builtins.list": _list,
    "builtins.tuple": _tuple,
    "builtins.set": _set,
    "builtins.frozenset": _frozenset,
    "builtins.complex": _complex,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytes,
    "builtins.getattr": _attribute,
    "_codecs.encode": _encode,
    "copyreg._reconstructor": _instance,
    "collections.OrderedDict": _dict,
    "collections.Counter": _dict,
    "collections.defaultdict": _defaultdict,
    "numpy.dtype": _dtype,
    "numpy.core.multiarray._reconstruct": _empty_array,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _array_of_buffer,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _tensor_with_fields,
    "torch.Size": _tuple,
    "torch.device": _device,
    "torch.serialization._get_layout": _layout,
}

_NAMES = (  # values that are mentioned and never called
    *_TENSORS,
    "numpy.ndarray",
    *(f"builtins.{name}" for name in ("object", "int", "float", "str", "bool")),
)


def _all_globals() -> Iterator[Global]:
    for name, make in _CALLS.items():
        yield Global(name, make)
    for name in _NAMES:
        yield Global(name)
    for name, fields in _STANDS.items():
        yield Global(name, _stand(fields))
    for kind in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path", "PurePath"):
        for module in ("pathlib", "pathlib._local"):
            yield Global(f"{module}.{kind}", _path)
    for dtype in _DTYPES:
        yield Global(str(dtype), dtype=dtype)
    for kind, dtype in _STORAGES.items():
        yield Global(f"torch.{kind}", dtype=dtype)
        yield Global(f"torch.cuda.{kind}", dtype=dtype)
    for kind in ("UntypedStorage", "_UntypedStorage"):
        yield Global(f"torch.storage.{kind}", dtype=torch.uint8)


ADMITTED = {found.name: found for found in _all_globals()}

_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # in Python 3


def find(module: str, name: str) -> Global:
    """What stands in for `module.name`. Errors: `InputError` that names it where nothing does."""
    home = _RENAMED.get(module, module).replace("numpy._core", "numpy.core")  # of numpy 2, and of numpy 1
    if admitted := ADMITTED.get(f"{home}.{name}"):
        return admitted
    owner, _, attribute = f"{home}.{name}".rpartition(".")
    if owner in _STANDS:  # protocol 4 names so what stands within a class
        return Global(f"{owner}.{attribute[:100]}")
    raise InputError(f"asks for {printable(f'{module}.{name}')}", expected=EXPECTED)


def printable(name: object) -> str:
    """A name from a file, fit for a message."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(name)[:200])
