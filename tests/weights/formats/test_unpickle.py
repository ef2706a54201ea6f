"""Pickles read as data: equal to what pickle itself makes of sound ones, and nothing run of the others."""

from __future__ import annotations

import pickle
import pickletools
import struct
import sys
import time
from _compat_pickle import REVERSE_IMPORT_MAPPING  # names of modules in protocols that Python 2 reads
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import pytest

from maskrcnn.errors import InputError
from maskrcnn.weights.formats import leaves
from maskrcnn.weights.formats.leaves import settle
from maskrcnn.weights.formats.unpickle import parse

from .hostile import HARM, asks, called, peak_memory, program, text, value

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)

PLAIN = {
    "numbers": [0, 1, -1, 255, 256, 65536, -(2**31), 2**31, 2**63, -(2**100), 1.5, -0.0, float("inf"), 2j, True, None],
    "texts": ["", "a", "é€\n\t'\\", "x" * 300, "y" * 70_000, b"", b"\x00\xff", b"z" * 300],
    "lists": [[], [1], [[[]]], list(range(2000))],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
    "dicts": [{}, {"a": 1}, {2: 2, None: 3, (1, "b"): 4, 1.5: 5, b"c": 6, True: 7}],
    "sets": [set(), {1, "a"}, frozenset({1, 2})],
    "others": [OrderedDict(a=1), Counter("aab"), defaultdict(list, {"a": [1]})],
}


def unpickled(content: bytes | memoryview) -> Any:
    return settle(parse(memoryview(content))[0])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values_are_as_pickle_makes_them(protocol: int) -> None:
    content = pickle.dumps(PLAIN, protocol)
    assert unpickled(content) == pickle.loads(content) == PLAIN
    assert unpickled(pickletools.optimize(content)) == PLAIN


class OfPython2(pickle._Pickler):  # type: ignore[name-defined,misc]
    """Writes bytes as Python 2 wrote its `str`, and text of ASCII alone as well."""

    dispatch = pickle._Pickler.dispatch.copy()  # type: ignore[attr-defined]

    def save_str2(self, item: str | bytes) -> None:
        content = item if isinstance(item, bytes) else item.encode("latin-1")
        short = len(content) < 256
        head = pickle.SHORT_BINSTRING + struct.pack("<B", len(content)) if short else b""
        self.write((head or pickle.BINSTRING + struct.pack("<i", len(content))) + content)
        self.memoize(item)

    dispatch[bytes] = dispatch[str] = save_str2


def test_texts_of_python_2(tmp_path: Path) -> None:
    with (tmp_path / "x.pkl").open("wb") as stream:
        OfPython2(stream, 2).dump({"conv1_w": [1, "text"], "cfg": "A: 1\n" * 100, "raw": b"\xff\x00"})
    content = (tmp_path / "x.pkl").read_bytes()
    assert unpickled(content) == {"conv1_w": [1, "text"], "cfg": "A: 1\n" * 100, "raw": b"\xff\x00"}
    assert pickle.loads(content, encoding="bytes")[b"raw"] == b"\xff\x00"
    text_protocol = b"(dp1\nS'conv1_w'\np2\n(lp3\nI1\naI01\naL12L\naF1.5\naS'a\\x41\\n'\naVb\\u20ac\nas."
    assert unpickled(text_protocol) == pickle.loads(text_protocol) == {"conv1_w": [1, True, 12, 1.5, "aA\n", "b€"]}


def test_what_is_shared_stays_shared() -> None:
    inner = [1]
    found = unpickled(pickle.dumps({"a": inner, "b": inner, "c": [1]}))
    assert found["a"] is found["b"]
    assert found["a"] is not found["c"]


def test_where_a_pickle_ends() -> None:
    content = pickle.dumps(1) + pickle.dumps([2]) + b"rest"
    first, end = parse(memoryview(content))
    second, last = parse(memoryview(content), end)
    assert (first, second, content[last:]) == (1, [2], b"rest")


# --- harm -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", HARM)
def test_nothing_is_run(kind: str, protocol: int, tmp_path: Path) -> None:
    mark = tmp_path / "harm"
    name, payload = HARM[kind]
    content = pickle.dumps(payload(mark), protocol)
    with pytest.raises(InputError, match="asks for ") as caught:
        unpickled(content)
    message = str(caught.value)
    asked = {name, "importlib.import_module"}  # what stands first
    asked |= {REVERSE_IMPORT_MAPPING.get(one.rpartition(".")[0], "") + "." + one.rpartition(".")[2] for one in asked}
    assert any(f"asks for {one};" in message for one in asked), message
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["system", "eval", "exec", "open", "attributes", "torch", "deep"])
@pytest.mark.filterwarnings("ignore")
def test_the_harm_is_real(kind: str, tmp_path: Path) -> None:
    """Python's own pickle runs what was refused above."""
    mark = tmp_path / "harm"
    pickle.loads(pickle.dumps(HARM[kind][1](mark)))
    assert mark.exists()


@pytest.mark.parametrize(
    "name",
    [
        *("os.system", "posix.system", "nt.system", "pty.spawn", "runpy.run_path", "shutil.rmtree", "sys.exit"),
        *("builtins.eval", "__builtin__.eval", "builtins.__import__", "builtins.map", "builtins.print", "_io.open"),
        *("functools.partial", "operator.attrgetter", "operator.methodcaller", "types.CodeType", "types.FunctionType"),
        *("torch.load", "torch.hub.load", "torch._utils._rebuild_qtensor", "torch._utils._rebuild_sparse_tensor"),
        *("torch.QUInt8Storage", "torch.storage._load_from_bytes", "torch.jit.load", "torch.nn.modules.conv.Conv2d"),
        *("numpy.load", "numpy.ndarray.tofile", "numpy.testing._private.utils.runstring", "numpy.matrix"),
        *("collections.OrderedDict.fromkeys", "argparse.ArgumentParser", "yacs.config.load", "yacs.config"),
        *("mmengine.config.config.Config.fromfile", "__main__.Evil", "torchvision.models.detection.mask_rcnn.MaskRCNN"),
    ],
)
def test_what_is_not_admitted_is_named(name: str) -> None:
    before = set(sys.modules)
    module, _, attribute = name.rpartition(".")
    calls = (
        called(name, value("x")),
        asks(name),
        text(module) + text(attribute) + b"\x93)R",
        b"(" + text("x") + b"i" + asks(name)[1:],
        b"(" + asks(name) + text("x") + b"o",
        asks(name) + b")\x81",
    )
    for instructions in calls:
        with pytest.raises(InputError, match=f"^asks for {name}; expected tensors, arrays"):
            unpickled(program(instructions))
    assert set(sys.modules) == before  # nor is its module imported


def test_names_are_fit_to_print() -> None:
    with pytest.raises(InputError) as caught:
        unpickled(program(text("a\x1b[31m\nb") + text("c" * 500) + b"\x93"))
    assert str(caught.value).startswith("asks for a?[31m?b.ccc")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("instructions", "message"),
    [
        (called("collections.OrderedDict", value(5)), "calls collections.OrderedDict with arguments that it does not"),
        (called("collections.OrderedDict", value([1, 2])), "calls collections.OrderedDict with arguments"),
        (called("builtins.set", value(5)), "calls builtins.set with arguments"),
        (called("builtins.set", value([[1]])), "is no key of a dict; found list"),
        (called("builtins.bytearray", value(10**12)), "calls builtins.bytearray with arguments"),
        (called("builtins.complex", value("1")), "calls builtins.complex with arguments"),
        (called("builtins.list", value("abc")), "calls builtins.list with arguments"),
        (called("_codecs.encode", value("x"), value("rot13")), "calls _codecs.encode with arguments"),
        (called("_codecs.encode", value("x"), value("latin1"), value("z")), "calls _codecs.encode with arguments"),
        (called("_codecs.encode", value("€"), value("latin1")), "calls _codecs.encode with arguments"),
        (called("pathlib.PosixPath", value(1)), "calls pathlib.PosixPath with arguments"),
        (
            called("builtins.getattr", asks("collections.OrderedDict"), value("x")),
            "builtins.getattr of collections.Ord",
        ),
        (
            called("builtins.getattr", asks("numpy.ndarray"), value("tofile")),
            "builtins.getattr of numpy.ndarray; found",
        ),
        (
            called("builtins.getattr", value({}), value("__class__")),
            "asks for builtins.getattr of dict; found __class__",
        ),
        (called("torch._utils._rebuild_tensor_v2", value("x")), "calls torch._utils._rebuild_tensor_v2 with arguments"),
        (called("torch._utils._rebuild_parameter", value(1)), "calls torch._utils._rebuild_parameter with arguments"),
        (called("copyreg._reconstructor", asks("builtins.int"), asks("builtins.object")), "makes an object; found bui"),
        (called("copyreg._reconstructor", asks("builtins.getattr"), asks("builtins.object")), "makes an object; found"),
        (called("builtins.int", value("5")), "calls builtins.int; expected"),
        (called("numpy.ndarray", value((5,))), "calls numpy.ndarray; expected"),
        (called("torch.FloatStorage", value(10**12)), "calls torch.FloatStorage; expected"),
        (value("os.system") + value(("true",)) + b"R", "calls a str; expected"),
        (asks("collections.OrderedDict") + value([1]) + b"R", "collections.OrderedDict without arguments"),
        (asks("argparse.Namespace") + b")}" + value("a") + value(1) + b"s\x92", "calls argparse.Namespace with keyw"),
        (called("yacs.config.CfgNode.load_cfg", value("x")), "calls yacs.config.CfgNode.load_cfg; expected"),
        (called("mmengine.logging.history_buffer.HistoryBuffer.min"), "calls mmengine.logging.history_buffer.History"),
        (value([1]) + value({"a": 1}) + b"b", "sets the state of what has none; found list"),
        (asks("collections.OrderedDict") + value({"a": 1}) + b"b", "sets the state of what has none; found Global"),
        (called("numpy.dtype", value("f4")) + value(5) + b"b", "impossible state of a NumberType"),
        (b"\x82\x01", "asks for an extension code of copyreg"),
        (b"\x83\x01\x00", "asks for an extension code of copyreg"),
        (b"\x84\x01\x00\x00\x00", "asks for an extension code of copyreg"),
        (b"\x97", "refers to what stands outside of the file; found a buffer"),
        (b"Pname\n", "refers to what stands outside of the file; found a persistent id"),
        (value(("storage", 1, "0", "cpu", 5)) + b"Q", "refers to what stands outside of the file; found a persistent"),
    ],
)
def test_admitted_calls_take_what_they_should(instructions: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        unpickled(program(instructions))


def test_state_of_plain_containers_is_passed_over() -> None:
    """torch hangs `_metadata` on the OrderedDict of a state; nobody needs it."""
    kept = OrderedDict(a=1)
    kept._metadata = {"version": 1}  # type: ignore[attr-defined]
    assert unpickled(pickle.dumps(kept)) == {"a": 1}
    assert type(unpickled(pickle.dumps(kept))) is dict


# --- bombs ------------------------------------------------------------------------------------------------------------


def laughs(levels: int, kind: bytes) -> memoryview:
    """A list, or a tuple, of ten of the list before, of ten of the list before: 10 ** levels in a few bytes."""
    tuples = kind == b"t"
    parts = [value("ha") + b"q\x00"]
    for level in range(levels):
        again = b"h" + bytes([level])
        parts.append((b"(" if tuples else b"](") + again * 10 + (b"t" if tuples else b"e") + b"q" + bytes([level + 1]))
    return program(*parts)


BOMBS: dict[str, tuple[bytes | memoryview, str]] = {
    "lists of lists": (laughs(30, b"e"), "asks for too much; found more than 10000000 values"),
    "tuples of tuples": (laughs(200, b"t"), "asks for too much|nested too deeply"),
    "long text many times": (
        program(text("x" * 50_000) + b"q\x00]q\x01(" + b"h\x00" * 100_000 + b"e"),
        "asks for too much; found more than 10000000 values",
    ),
    "encoded many times": (
        program(
            text("x" * 1_000_000) + b"q\x00" + (asks("_codecs.encode") + b"h\x00" + text("latin1") + b"\x86R") * 5000
        ),
        "asks for too much; found more text for _codecs.encode than the file holds",
    ),
    "copied many times": (
        program(value(list(range(10_000))) + b"q\x00" + (asks("builtins.list") + b"h\x00\x85R") * 5000),
        "asks for too much; found more than 2000000 values",
    ),
    "steps": (program(b"]" * 2_000_001), "asks for too much; found more than 2000000 values"),
    "nested lists": (program(b"]" * 3000 + b"a" * 2999), "is nested too deeply"),
    "nested tuples as a key": (program(b"}N" + b"\x85" * 500_000 + b"Ns"), "is no key of a dict; found tuple"),
    "nested tuples in a set": (program(b"\x8f(N" + b"\x85" * 500_000 + b"\x90"), "is no key of a dict; found tuple"),
    "list within itself": (program(b"]q\x00h\x00a"), "contains itself; found list"),
    "dict within itself": (program(b"}q\x00" + value("a") + b"h\x00s"), "contains itself; found dict"),
    "place to keep": (
        program(b"Nr\xff\xff\xff\xff]j\xff\xff\xff\xffa" * 2 + b"j\x00\x00\x00\x7f"),
        "nothing is kept as",
    ),
    "length of bytes": (program(b"\x8e" + b"\xff" * 7 + b"\x7f"), "bytes where 9223372036854775807 are promised"),
    "length of a bytearray": (program(b"\x96" + b"\xff" * 8), "bytes where 18446744073709551615 are promised"),
    "length of text": (program(b"\x8d" + b"\x00" * 6 + b"\x10\x00"), "bytes where 4503599627370496 are promised"),
    "length of a string": (program(b"T\xff\xff\xff\x7f"), "bytes where 2147483647 are promised"),
    "length of a number": (
        program(b"\x8b\x00\x00\x00\x01" + bytes(1 << 24)),
        "number of absurd size; found 16777216 by",
    ),
    "negative length": (program(b"\x8b\xff\xff\xff\xff"), "bytes where 4294967295 are promised"),
    "digits": (program(b"L" + b"9" * 100_000 + b"L\n"), "number of absurd size; found 100001 digits"),
    "line without end": (memoryview(b"\x80\x02c" + b"a" * 1_000_000), "a line without end"),
    "frame": (memoryview(b"\x80\x04\x95" + b"\xff" * 8), "0 bytes where 1 are promised"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(name: str) -> None:
    """Refused within seconds, in memory of the size of the instructions."""
    content, message = BOMBS[name]
    start = time.perf_counter()

    def work() -> None:
        with pytest.raises(InputError, match=message):
            unpickled(content)

    assert peak_memory(work) < 200 << 20
    assert time.perf_counter() - start < 60


def test_containers_up_to_the_limits_are_read() -> None:
    depth = leaves.DEPTH
    nested = unpickled(program(b"]" * depth + b"a" * (depth - 1)))
    for _ in range(depth - 1):
        (nested,) = nested
    assert nested == []
    assert len(unpickled(laughs(5, b"e"))) == 10


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes where 1 are promised"),
        (b"\x80\x02", "0 bytes where 1 are promised"),
        (b"\x80\x06N.", "protocol 6"),
        (b"\x80\x02.", "pop from empty list"),
        (b"\x80\x02\xffN.", "unknown instruction 0xff"),
        (b"\x80\x02t.", "pop from empty list"),
        (b"\x80\x02Na.", "list index out of range"),
        (b"\x80\x02NNa.", "a NoneType where a list is filled"),
        (b"\x80\x02NNNs.", "a NoneType where a dict is filled"),
        (b"\x80\x02}(Nu.", "argument"),
        (b"\x80\x02N(N\x90.", "a NoneType where a set is filled"),
        (b"\x80\x02X\x02\x00\x00\x00\xff\xff.", "can't decode byte"),
        (b"\x80\x02Ix\n.", "invalid literal"),
        (b"\x80\x02Sx\n.", "text without quotes"),
        (b"\x80\x02h\x05.", "nothing is kept as 5"),
        (b"\x80\x02K\x01K\x02\x93.", "is truncated or damaged"),
        (b"\x80\x02}]Ns.", "is no key of a dict; found list"),
    ],
)
def test_damage_is_an_input_error(content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        unpickled(content)
    assert "\n" not in str(caught.value)
