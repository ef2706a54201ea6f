"""Pickles read as data: what one names is never imported, and what it would call is never called.

A pickle is a program for a small stack machine whose instructions import and call. This is that machine without those
two: every instruction is interpreted here, and the few names that weights need (`admitted.py`) stand for
functions of our own that make plain data of plain data. Anything else is refused by its name.

Why not `pickle.Unpickler` with a `find_class` of our own? Its C core still calls what `find_class` hands it, and
`__setstate__` and `append` of whatever came of that; it looks up extension codes; it sets aside memory for any length
or memo index that the file claims, before a byte of it is seen; and a tuple nested deep enough, used as a key, ends the
process. Here each of these is a check. Text and numbers cost more than in C, but weights are mostly bytes, which are
left where they stand: a hundred megabytes are read in the time of their few thousand instructions.

Limits, far above any checkpoint seen: `STEPS` instructions here; in `leaves.py`, `WEIGHT` values once shared
ones are counted wherever they appear (a list of lists of lists can name itself billions of times over), and `DEPTH`
containers within one another.
"""

from __future__ import annotations

import codecs
import pickle
import struct
from collections.abc import Callable
from typing import Any, NoReturn

from maskrcnn.errors import InputError
from maskrcnn.weights.formats.admitted import EXPECTED, find
from maskrcnn.weights.formats.leaves import Global, Leaf, Raw, Stand, Storage, key, printable, text

STEPS = 2_000_000
MAX_INT = 255  # bytes
SPARE = 16 << 20  # characters of text that calls may take beyond what the file holds

Op = Callable[["_Machine"], None]


def parse(data: memoryview, start: int = 0, storages: list[Storage] | None = None) -> tuple[Any, int]:
    """One pickle of `data`: what it makes, still with leaves, and where it ends.

    Args:
        start: byte at which it begins.
        storages: takes every mention of memory beside the pickle, as those of torch.save have. None: it may have none.

    Errors: `InputError`, without the file's name: for a pickle that asks for what is not admitted, is damaged or ends
    early, or passes a limit.
    """
    machine = _Machine(data, start, storages)
    try:
        return machine.run(), machine.at
    except InputError:
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError, struct.error, RecursionError) as error:
        raise InputError("is truncated or damaged", found=f"{_reason(error)} at byte {machine.at}") from error


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


# --- the machine ------------------------------------------------------------------------------------------------------


class _Machine:
    def __init__(self, data: memoryview, start: int, storages: list[Storage] | None) -> None:
        self.data = data
        self.at = start
        self.storages = storages
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each open mark
        self.memo: dict[int, Any] = {}
        self.steps = 0
        self.encoded = 0  # characters of text that calls took

    def run(self) -> Any:
        while (code := self.take(1)[0]) != pickle.STOP[0]:
            op = _OPS.get(code)
            if op is None:
                self.fail(f"unknown instruction {code:#04x}")
            self.spend(1)
            op(self)
        return self.stack.pop()

    def fail(self, reason: str) -> NoReturn:
        raise InputError("is truncated or damaged", found=f"{reason} at byte {self.at}")

    def spend(self, steps: int) -> None:
        self.steps += steps
        if self.steps > STEPS:
            raise InputError("asks for too much", found=f"more than {STEPS} values", expected="a file of weights")

    # reading

    def take(self, count: int) -> memoryview:
        """The next bytes, which are there or it is an error: nothing is set aside for them."""
        found = self.data[self.at : self.at + count]
        if len(found) < count:
            self.fail(f"{len(found)} bytes where {count} are promised")
        self.at += count
        return found

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> bytes:
        """Up to the next newline, without it."""
        size = 64
        while True:
            chunk = bytes(self.data[self.at : self.at + size])
            if (end := chunk.find(b"\n")) >= 0:
                self.at += end + 1
                return chunk[:end]
            if len(chunk) < size:
                self.fail("a line without end")
            size *= 8

    # the stack

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        return self.stack.pop()

    def kept(self, number: int) -> Any:
        if number not in self.memo:
            self.fail(f"nothing is kept as {number}")
        return self.memo[number]

    def marked(self) -> list[Any]:
        """All that was pushed since the last mark."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            self.fail(f"a {type(self.stack[-1]).__name__} where a {kind.__name__} is filled")
        return self.stack[-1]

    def set_items(self, items: list[Any]) -> None:
        target: dict[Any, Any] = self.top(dict)
        for name, value in zip(items[::2], items[1::2], strict=True):
            target[key(name)] = value

    # what would import and call in Python's own

    def call(self, function: Any, arguments: Any) -> Any:
        """What one of our own functions makes of arguments: the only calls there are."""
        name = printable(function.name) if isinstance(function, Global) else f"a {type(function).__name__}"
        if not isinstance(function, Global) or function.make is None:
            raise InputError(f"calls {name}", expected=EXPECTED)
        if not isinstance(arguments, tuple):
            self.fail(f"{name} without arguments")
        self.spend(sum(len(part) for part in arguments if isinstance(part, list | tuple | dict | set | frozenset)))
        self.encoded += sum(len(part) for part in arguments if isinstance(part, str))
        if self.encoded > len(self.data) + SPARE:  # the same text over and over
            raise InputError("asks for too much", found=f"more text for {name} than the file holds")
        try:
            return function.make(*arguments)
        except InputError:
            raise
        except (TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise InputError(f"calls {name} with arguments that it does not take", expected=EXPECTED) from error

    def build(self, target: Any, state: Any) -> None:
        """Set the state of what was made. Fields that somebody set on an OrderedDict are passed over."""
        if isinstance(target, Stand):
            self.spend(len(state) if isinstance(state, dict) else 1)
            target.build(state)
        elif isinstance(target, Leaf):
            try:
                target.build(state)
            except TypeError:
                self.fail(f"impossible state of a {type(target).__name__}")
        elif type(target) is not dict:
            raise InputError("sets the state of what has none", found=type(target).__name__, expected=EXPECTED)

    def storage(self, reference: Any) -> Storage:
        """torch.save: ("storage", class, key, device, numbers) and, in the older format, what part of it is meant."""
        if self.storages is None:
            raise InputError("refers to what stands outside of the file", found="a persistent id", expected=EXPECTED)
        if not isinstance(reference, tuple) or len(reference) not in (5, 6) or text(reference[0]) != "storage":
            raise InputError("refers to what is no storage of a tensor", expected=EXPECTED)
        kind, name, _, count, *part = reference[1:]
        if not isinstance(kind, Global) or kind.dtype is None:
            raise InputError("storage of an unknown kind", found=getattr(kind, "name", None), expected=EXPECTED)
        first, length = (0, count) if not part or part[0] is None else part[0][1:]
        if any(type(value) is not int or value < 0 for value in (count, first, length)) or first + length > count:
            self.fail("impossible storage")
        self.storages.append(Storage(text(name), kind.dtype, count, first, length))
        return self.storages[-1]


def _decoded(data: memoryview) -> str:
    return str(data, "utf-8", "surrogatepass")


def _bounded_int(data: memoryview | bytes) -> int:
    if len(data) > MAX_INT:
        raise InputError("number of absurd size", found=f"{len(data)} bytes", expected=f"at most {MAX_INT}")
    return int.from_bytes(data, "little", signed=True)


def _int_of_line(line: bytes) -> int | bool:
    if len(line) > MAX_INT:
        raise InputError("number of absurd size", found=f"{len(line)} digits", expected=f"at most {MAX_INT}")
    return {b"00": False, b"01": True}[line] if line in (b"00", b"01") else int(line.removesuffix(b"L"))


def _quoted(line: bytes) -> Raw:
    """A `str` of Python 2 as protocol 0 writes it: quoted, with escapes."""
    if len(line) < 2 or line[:1] not in b"'\"" or line[-1:] != line[:1]:
        raise ValueError("text without quotes")
    content: bytes = codecs.escape_decode(line[1:-1])[0]
    return Raw(memoryview(bytearray(content)), maybe_text=True)


# --- the instructions, one function each ------------------------------------------------------------------------------

_OPS: dict[int, Op] = {}


def _op(*codes: bytes) -> Callable[[Op], Op]:
    def register(function: Op) -> Op:
        _OPS.update({code[0]: function for code in codes})
        return function

    return register


def _pushes(code: bytes, value: Callable[[_Machine], Any]) -> None:
    _OPS[code[0]] = lambda machine: machine.push(value(machine))


_pushes(pickle.NONE, lambda m: None)
_pushes(pickle.NEWTRUE, lambda m: True)
_pushes(pickle.NEWFALSE, lambda m: False)
_pushes(pickle.BININT, lambda m: m.number("<i"))
_pushes(pickle.BININT1, lambda m: m.number("<B"))
_pushes(pickle.BININT2, lambda m: m.number("<H"))
_pushes(pickle.LONG1, lambda m: _bounded_int(m.take(m.number("<B"))))
_pushes(pickle.LONG4, lambda m: _bounded_int(m.take(m.number("<I"))))
_pushes(pickle.BINFLOAT, lambda m: m.number(">d"))
_pushes(pickle.INT, lambda m: _int_of_line(m.line()))
_pushes(pickle.LONG, lambda m: _int_of_line(m.line()))
_pushes(pickle.FLOAT, lambda m: float(m.line()))

_pushes(pickle.SHORT_BINUNICODE, lambda m: _decoded(m.take(m.number("<B"))))
_pushes(pickle.BINUNICODE, lambda m: _decoded(m.take(m.number("<I"))))
_pushes(pickle.BINUNICODE8, lambda m: _decoded(m.take(m.number("<Q"))))
_pushes(pickle.UNICODE, lambda m: m.line().decode("raw-unicode-escape"))
_pushes(pickle.SHORT_BINBYTES, lambda m: Raw(m.take(m.number("<B"))))
_pushes(pickle.BINBYTES, lambda m: Raw(m.take(m.number("<I"))))
_pushes(pickle.BINBYTES8, lambda m: Raw(m.take(m.number("<Q"))))
_pushes(pickle.BYTEARRAY8, lambda m: Raw(m.take(m.number("<Q"))))
_pushes(pickle.SHORT_BINSTRING, lambda m: Raw(m.take(m.number("<B")), maybe_text=True))
_pushes(pickle.BINSTRING, lambda m: Raw(m.take(m.number("<I")), maybe_text=True))
_pushes(pickle.STRING, lambda m: _quoted(m.line()))

_pushes(pickle.EMPTY_LIST, lambda m: [])
_pushes(pickle.EMPTY_TUPLE, lambda m: ())
_pushes(pickle.EMPTY_DICT, lambda m: {})
_pushes(pickle.EMPTY_SET, lambda m: set())
_pushes(pickle.LIST, lambda m: m.marked())
_pushes(pickle.TUPLE, lambda m: tuple(m.marked()))
_pushes(pickle.TUPLE1, lambda m: (m.pop(),))
_pushes(pickle.TUPLE2, lambda m: (m.pop(), m.pop())[::-1])
_pushes(pickle.TUPLE3, lambda m: (m.pop(), m.pop(), m.pop())[::-1])
_pushes(pickle.FROZENSET, lambda m: frozenset(key(item) for item in m.marked()))

_pushes(pickle.DUP, lambda m: m.stack[-1])
_pushes(pickle.GET, lambda m: m.kept(int(m.line())))
_pushes(pickle.BINGET, lambda m: m.kept(m.number("<B")))
_pushes(pickle.LONG_BINGET, lambda m: m.kept(m.number("<I")))
_pushes(pickle.PERSID, lambda m: m.storage(m.line()))
_pushes(pickle.BINPERSID, lambda m: m.storage(m.pop()))


@_op(pickle.PROTO)
def _protocol(machine: _Machine) -> None:
    if (protocol := machine.number("<B")) > pickle.HIGHEST_PROTOCOL:
        machine.fail(f"protocol {protocol}")


@_op(pickle.FRAME)
def _frame(machine: _Machine) -> None:
    machine.take(8)  # a hint of how much to read at once


@_op(pickle.MARK)
def _mark(machine: _Machine) -> None:
    machine.below.append(machine.stack)
    machine.stack = []


@_op(pickle.POP)
def _pop(machine: _Machine) -> None:
    machine.pop() if machine.stack else machine.marked()


@_op(pickle.POP_MARK)
def _pop_mark(machine: _Machine) -> None:
    machine.marked()


@_op(pickle.MEMOIZE)
def _memoize(machine: _Machine) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


@_op(pickle.PUT)
def _put(machine: _Machine) -> None:
    machine.memo[int(machine.line())] = machine.stack[-1]


@_op(pickle.BINPUT)
def _binput(machine: _Machine) -> None:
    machine.memo[machine.number("<B")] = machine.stack[-1]


@_op(pickle.LONG_BINPUT)
def _long_binput(machine: _Machine) -> None:
    machine.memo[machine.number("<I")] = machine.stack[-1]


@_op(pickle.APPEND)
def _append(machine: _Machine) -> None:
    item = machine.pop()
    machine.top(list).append(item)


@_op(pickle.APPENDS)
def _appends(machine: _Machine) -> None:
    items = machine.marked()
    machine.top(list).extend(items)


@_op(pickle.ADDITEMS)
def _additems(machine: _Machine) -> None:
    items = machine.marked()
    machine.top(set).update(key(item) for item in items)


@_op(pickle.DICT)
def _dict(machine: _Machine) -> None:
    items = machine.marked()
    machine.push({})
    machine.set_items(items)


@_op(pickle.SETITEM)
def _setitem(machine: _Machine) -> None:
    value, name = machine.pop(), machine.pop()
    machine.set_items([name, value])


@_op(pickle.SETITEMS)
def _setitems(machine: _Machine) -> None:
    machine.set_items(machine.marked())


@_op(pickle.GLOBAL)
def _global(machine: _Machine) -> None:
    module, name = machine.line().decode(), machine.line().decode()
    machine.push(find(module, name))


@_op(pickle.STACK_GLOBAL)
def _stack_global(machine: _Machine) -> None:
    name, module = machine.pop(), machine.pop()
    machine.push(find(text(module), text(name)))


@_op(pickle.REDUCE, pickle.NEWOBJ)
def _reduce(machine: _Machine) -> None:
    arguments, function = machine.pop(), machine.pop()
    machine.push(machine.call(function, arguments))


@_op(pickle.NEWOBJ_EX)
def _newobj_ex(machine: _Machine) -> None:
    keywords, arguments, kind = machine.pop(), machine.pop(), machine.pop()
    if keywords:
        raise InputError(f"calls {getattr(kind, 'name', kind)} with keywords", expected=EXPECTED)
    machine.push(machine.call(kind, arguments))


@_op(pickle.INST)
def _inst(machine: _Machine) -> None:
    kind = find(machine.line().decode(), machine.line().decode())
    machine.push(machine.call(kind, tuple(machine.marked())))


@_op(pickle.OBJ)
def _obj(machine: _Machine) -> None:
    kind, *arguments = machine.marked()
    machine.push(machine.call(kind, tuple(arguments)))


@_op(pickle.BUILD)
def _build(machine: _Machine) -> None:
    state = machine.pop()
    machine.build(machine.stack[-1], state)


@_op(pickle.EXT1, pickle.EXT2, pickle.EXT4)
def _extension(machine: _Machine) -> None:
    raise InputError("asks for an extension code of copyreg", expected=EXPECTED)


@_op(pickle.NEXT_BUFFER, pickle.READONLY_BUFFER)
def _buffer(machine: _Machine) -> None:
    raise InputError("refers to what stands outside of the file", found="a buffer", expected=EXPECTED)
