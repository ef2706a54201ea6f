"""What a pickle of weights may ask for by name, and the plain data that stands in for it.

No class or function of the tables below is ever the real one: a pickle that asks for `builtins.getattr` gets
`_attribute`, which joins two names, and one that asks for a config class of yacs gets a dict. Whatever stands in no
table is refused by name when it is asked for, before anything is made of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import torch

from maskrcnn.errors import InputError
from maskrcnn.weights.formats.leaves import (
    Array,
    Global,
    NumberType,
    Raw,
    Stand,
    Storage,
    View,
    key,
    printable,
    raw,
    sides,
    text,
)
from maskrcnn.weights.formats.mapped import array

EXPECTED = "tensors, arrays, containers and plain values, since nothing in a file is run"


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
    return array(raw(data).bools if dtype == torch.bool else raw(data).flat, dtype, ()).item()


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
    if not isinstance(storage, Storage) or not isinstance(kind, Global) or len(more) > 1:
        raise TypeError
    if kind.dtype is None or kind.dtype == torch.bool:  # which has a storage of its own
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
