"""Arrays, numpy scalars and objects of well-known classes, as plain data equal to the real ones."""

from __future__ import annotations

import argparse
import io
import pathlib
import pickle
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from maskrcnn.errors import InputError
from maskrcnn.weights.formats import admitted
from maskrcnn.weights.formats.leaves import settle
from maskrcnn.weights.formats.unpickle import parse

from .hostile import asks, called, program, value

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
DTYPES = "? i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 c8 c16".split()


def unpickled(content: bytes | memoryview) -> Any:
    return settle(parse(memoryview(content))[0])


def round_trip(item: Any, protocol: int = 4) -> Any:
    return unpickled(pickle.dumps(item, protocol))


def test_no_name_stands_for_anything_but_our_own_functions() -> None:
    for name, found in admitted.ADMITTED.items():
        assert found.name == name
        if found.make is not None:
            assert isinstance(found.make, types.FunctionType)
            assert found.make.__module__ == admitted.__name__, name


# --- numpy ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_of_every_dtype(dtype: str, protocol: int) -> None:
    numbers = (np.random.default_rng(0).random((3, 4, 5)) * 100).astype(dtype)
    found = round_trip(numbers, protocol)
    assert isinstance(found, torch.Tensor)
    assert found.numpy().dtype == numbers.dtype
    np.testing.assert_array_equal(found.numpy(), numbers)


LAYOUTS = {
    "c": np.arange(24.0).reshape(2, 3, 4),
    "fortran": np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)),
    "transposed": np.arange(24.0).reshape(2, 3, 4).transpose(1, 0, 2),
    "turned": np.arange(120.0).reshape(2, 3, 4, 5).transpose(2, 0, 3, 1),
    "strided": np.arange(48.0).reshape(6, 8)[::2, ::-1],
    "single": np.array(3.0),
    "empty": np.zeros((0, 3)),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_of_every_layout(layout: str, protocol: int) -> None:
    found = round_trip({"a": LAYOUTS[layout]}, protocol)["a"]
    assert found.shape == LAYOUTS[layout].shape
    np.testing.assert_array_equal(found.numpy(), LAYOUTS[layout])


def test_arrays_as_numpy_1_and_python_2_name_them() -> None:
    """numpy 2 writes `numpy._core`, the zoo's files say `numpy.core`."""
    numbers = np.arange(6, dtype="f4").reshape(2, 3)
    content = pickle.dumps(numbers, 2)
    assert b"numpy._core.multiarray" in content
    older = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    for written in (content, older):
        np.testing.assert_array_equal(unpickled(written).numpy(), numbers)
    of_python_2 = (
        called("numpy.core.multiarray._reconstruct", asks("numpy.ndarray"), value((0,)), b"U\x01b")
        + b"(K\x01K\x02K\x03\x86"
        + called("numpy.dtype", b"U\x02f4", b"K\x00", b"K\x01")
        + b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        + b"\x89U\x18"
        + numbers.tobytes()
        + b"tb"
    )
    np.testing.assert_array_equal(unpickled(program(of_python_2)).numpy(), numbers)
    np.testing.assert_array_equal(pickle.loads(program(of_python_2), encoding="latin1"), numbers)


def test_arrays_that_share_bytes_share_memory_and_can_be_written() -> None:
    numbers = np.arange(100.0)
    found = round_trip({"a": numbers, "b": numbers, "c": numbers.copy()})
    assert found["a"] is found["b"]
    found["a"][0] = 7
    assert found["c"][0] == 0


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numpy_scalars_are_numbers(protocol: int) -> None:
    scalars = [np.float32(2.5), np.float64(1e300), np.int64(-7), np.uint8(200), np.bool_(True), np.complex64(1j)]
    found = round_trip(scalars, protocol)
    assert found == [scalar.item() for scalar in scalars]
    assert [type(number) for number in found] == [float, float, int, int, bool, complex]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (np.array([{"a": 1}, None], dtype=object), "array of Python objects; found dtype O"),
        (np.arange(3, dtype=">f4"), "array of big-endian numbers; found >f4; expected little-endian"),
        (np.arange(3, dtype=">i8"), "array of big-endian numbers; found >i8"),
        (np.array(["a", "bc"]), "array of text; found dtype U2"),
        (np.array([b"a", b"bc"]), "array of text; found dtype S2"),
        (np.zeros(2, dtype=[("x", "f4"), ("y", "i4")]), "structured V8|array of records"),
        (np.array(["2020-01-01"], dtype="M8[D]"), "array of no plain numbers; found dtype M8"),
        (np.arange(3, dtype=np.longdouble), "array of no plain numbers; found dtype f(16|12)|torch.float64"),
    ],
    ids=["objects", "big-endian", "big-endian integers", "texts", "bytes", "records", "dates", "long doubles"],
)
def test_arrays_of_anything_else_are_refused(numbers: np.ndarray, message: str, protocol: int) -> None:
    if numbers.dtype == np.float64:
        pytest.skip("a long double is a double here")
    with pytest.raises(InputError, match=message):
        round_trip({"model": numbers}, protocol)


def test_an_array_of_objects_runs_nothing(tmp_path: Any) -> None:
    from .hostile import HARM

    mark = tmp_path / "harm"
    numbers = np.array([HARM["system"][1](mark)], dtype=object)
    with pytest.raises(InputError, match=r"asks for (posix|nt)\.system"):
        round_trip(numbers)
    assert not mark.exists()


F4 = called("numpy.dtype", value("f4"), value(False), value(True)) + value((3, "<", None, None, None, -1, -1, 0)) + b"b"
EMPTY = called("numpy.core.multiarray._reconstruct", asks("numpy.ndarray"), value((0,)), value(b"b"))


def array_of(shape: bytes, data: bytes, dtype: bytes = F4) -> memoryview:
    return program(EMPTY, b"(K\x01", shape, dtype, b"\x89", data, b"tb")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            array_of(value((2,)), value(b"1234567")),
            "array and its bytes do not agree; found 7 bytes for .2. of torch.fl",
        ),
        (array_of(value((2**40, 2**20)), value(b"1234")), "absurd size|do not agree"),
        (array_of(value((2**62,)), value(b"1234")), "impossible shape"),
        (array_of(value((-1,)), value(b"1234")), "impossible shape"),
        (array_of(value((2**70, 0)), value(b"")), "impossible shape"),
        (array_of(value((1,) * 33), value(b"1234")), "impossible state of a Array"),
        (array_of(value((1.0,)), value(b"1234")), "impossible state of a Array"),
        (array_of(value((1,)), value([1])), "impossible state of a Array"),
        (array_of(value((1,)), value(b"1234"), value("f4")), "impossible state of a Array"),
        (program(EMPTY), "array without content"),
        (program(EMPTY, value((1, 2)), b"b"), "impossible state of a Array"),
        (
            program(called("numpy.core.multiarray._reconstruct", asks("builtins.dict"), value((0,)), value(b"b"))),
            "of its",
        ),
        (program(called("numpy.core.multiarray.scalar", F4, value(b"12345"))), "array and its bytes do not agree"),
        (program(called("numpy.core.multiarray.scalar", F4, value("1234"))), "numpy.core.multiarray.scalar with argum"),
        (program(called("numpy.dtype", value("f4,i4"))), "array of no plain numbers; found dtype f4,i4"),
        (program(called("numpy.dtype", value(5))), "calls numpy.dtype with arguments"),
        (program(called("numpy.dtype", asks("numpy.ndarray"))), "calls numpy.dtype with arguments"),
        (
            program(called("numpy.core.numeric._frombuffer", value(b"12345678"), F4, value((2,)), value("K"))),
            "calls numpy.core.numeric._frombuffer with arguments",
        ),
        (
            program(
                called("numpy.core.numeric._frombuffer", value(b"1234"), F4, value((1, 1)), value("K"), value((0, 0)))
            ),
            "calls numpy.core.numeric._frombuffer with arguments",
        ),
    ],
)
def test_arrays_whose_parts_do_not_fit(content: memoryview, message: str) -> None:
    with pytest.raises(InputError, match=message):
        unpickled(content)


def test_a_bool_is_true_or_false() -> None:
    good = pickle.dumps(np.array([True, False]), 4)
    assert unpickled(good).tolist() == [True, False]
    with pytest.raises(InputError, match="holds a bool that is neither true nor false"):
        unpickled(good.replace(b"\x01\x00", b"\x01\x02"))


# --- objects of classes that checkpoints carry ------------------------------------------------------------------------


def remembered(self: Any, *arguments: Any) -> None:
    raise AssertionError("code of a foreign class was run")


def items_as_arguments(self: dict[Any, Any]) -> tuple[Any, ...]:
    return tuple(self.items())


# classes of the real names that pickle as the real ones do: by items, by state, by items as arguments of __new__ with
# the object as its own state (addict), by a call with a dict (mmengine)
KINDS: dict[str, dict[str, Any]] = {
    "yacs.config.CfgNode": {},
    "detectron2.config.config.CfgNode": {},
    "fvcore.common.config.CfgNode": {},
    "easydict.EasyDict": {},
    "mmcv.utils.config.ConfigDict": {"__getnewargs__": items_as_arguments, "__getstate__": lambda self: self},
    "addict.addict.Dict": {"__getnewargs__": items_as_arguments, "__getstate__": lambda self: self},
    "mmengine.config.config.ConfigDict": {
        "__reduce_ex__": lambda self, protocol: (type(self), (dict(self),), None, None, None, None)
    },
}


@pytest.fixture
def foreign() -> Iterator[Any]:
    """Makes classes that can be found by name while something is pickled, and forgets them."""
    before: dict[str, types.ModuleType | None] = {}

    def make(name: str, base: type, members: dict[str, Any]) -> Any:
        module, _, attribute = name.rpartition(".")
        parts = module.split(".")
        for one in (".".join(parts[: i + 1]) for i in range(len(parts))):
            before.setdefault(one, sys.modules.get(one))
            sys.modules[one] = types.ModuleType(one)
        kind = type(attribute, (base,), {"__module__": module, "__qualname__": attribute, **members})
        setattr(sys.modules[module], attribute, kind)
        return kind

    def forget() -> None:
        for module, was in before.items():
            if was is None:
                sys.modules.pop(module, None)
            else:
                sys.modules[module] = was

    make.forget = forget  # type: ignore[attr-defined]
    yield make
    forget()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", KINDS)
def test_config_dicts_are_dicts(name: str, protocol: int, foreign: Any) -> None:
    kind = foreign(name, dict, KINDS[name])
    inner = kind({"B": [1, kind({"C": (2, "x")})]})
    config = kind({"A": inner, "D": None})
    if not KINDS[name]:
        config.__dict__["__immutable__"] = True  # housekeeping of yacs
    content = pickle.dumps({"cfg": config}, protocol)
    foreign.forget()
    modules = set(sys.modules)
    found = unpickled(content)
    assert set(sys.modules) == modules
    assert found == {"cfg": {"A": {"B": [1, {"C": (2, "x")}]}, "D": None}}
    assert type(found["cfg"]) is type(found["cfg"]["A"]) is dict


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_the_history_of_mmengine(protocol: int, foreign: Any) -> None:
    """Its state names methods of its own: texts here, and never functions."""

    def method(self: Any) -> None: ...

    method.__module__, method.__qualname__ = "mmengine.logging.history_buffer", "HistoryBuffer.min"
    kind = foreign("mmengine.logging.history_buffer.HistoryBuffer", object, {"min": method, "__setstate__": remembered})
    history = kind()
    history.__dict__.update(_log_history=np.arange(3.0), max_length=10, statistics_methods={"min": method})
    content = pickle.dumps({"loss": history, "again": history}, protocol)
    assert (b"getattr" in content) == (protocol < 4)
    foreign.forget()
    found = unpickled(content)
    assert found["loss"] is found["again"]
    assert found["loss"].pop("_log_history").tolist() == [0, 1, 2]
    name = "mmengine.logging.history_buffer.HistoryBuffer.min"
    assert found["loss"] == {"max_length": 10, "statistics_methods": {"min": name}}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_namespaces_and_paths(protocol: int) -> None:
    arguments = argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("/runs/a"), names=["x"], root=pathlib.Path("."))
    found = round_trip({"args": arguments, "simple": types.SimpleNamespace(a=1)}, protocol)
    assert found["args"] == {"lr": 0.1, "out": "/runs/a", "names": ["x"], "root": "."}
    assert found["simple"] == {"a": 1}


def test_a_class_of_another_name_is_refused(foreign: Any) -> None:
    kind = foreign("yacs.config.CfgLoader", dict, {})
    content = pickle.dumps(kind({"a": 1}))
    with pytest.raises(InputError, match="asks for yacs.config.CfgLoader"):
        unpickled(content)


def test_plain_things_of_torch_and_numpy() -> None:
    buffer = io.BytesIO()
    things = {
        "device": torch.device("cuda:1"),
        "cpu": torch.device("cpu"),
        "dtype": torch.bfloat16,
        "size": torch.Size([2, 3]),
        "layout": torch.strided,
        "numpy": np.dtype("f4"),
        "objects": np.dtype("O"),
    }
    pickle.Pickler(buffer, 4).dump(things)
    assert unpickled(buffer.getvalue()) == {
        "device": "cuda:1",
        "cpu": "cpu",
        "dtype": "torch.bfloat16",
        "size": (2, 3),
        "layout": "torch.strided",
        "numpy": "float32",
        "objects": "O8",
    }
