"""Keras weights in HDF5, read in place: groups, plain arrays and texts, and nothing else that HDF5 can be.

A tensor's name is its path, "conv1/conv1/kernel:0", with the layers of a model within the model below its name
("rpn_model/rpn_conv_shared/kernel:0"). Of a whole model (`model.save`) that is the path below "model_weights".

Why not the HDF5 library? It trusts what it reads: of 3000 files that differed from a sound one in a single byte,
HDF5 2.0 crashed the process on one, came to no end on two, and took 4 GB of memory for one of 16 kB. It also opens what
a file names: other files, by external links, external storage and virtual datasets. What Keras writes is a small part
of the format, and the same in libraries 1.10 and 2.0: superblock 0, groups as B-trees of names, contiguous arrays.

Names of structures, and their numbers, are those of the HDF5 File Format Specification, version 3.0.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskrcnn.errors import InputError
from maskrcnn.weights.formats.leaves import printable
from maskrcnn.weights.formats.mapped import MAX_DIMS, array, flat, num_bytes

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"

_NEWER = "is HDF5 of a newer layout than Keras writes"
_NOWHERE = 2**64 - 1  # the undefined address
_MAX_OBJECTS = 100_000
_MAX_MESSAGES = 1_000_000
_MAX_NAME = 1024  # bytes
_MAX_DEPTH = 32  # groups within one another

# types of messages in an object header (IV.A.2)
_DATASPACE, _LINK_INFO, _DATATYPE, _LINK, _EXTERNAL_FILES, _LAYOUT = 0x1, 0x2, 0x3, 0x6, 0x7, 0x8
_FILTERS, _ATTRIBUTE, _CONTINUATION, _SYMBOL_TABLE = 0xB, 0xC, 0x10, 0x11

# sign bit, then exponent: first bit, bits; mantissa: first bit, bits; bias
_FLOATS = {
    (15, 10, 5, 0, 10, 15): torch.float16,
    (31, 23, 8, 0, 23, 127): torch.float32,
    (63, 52, 11, 0, 52, 1023): torch.float64,
}
_INTEGERS = {
    (1, True): torch.int8,
    (2, True): torch.int16,
    (4, True): torch.int32,
    (8, True): torch.int64,
    (1, False): torch.uint8,
    (2, False): torch.uint16,
    (4, False): torch.uint32,
    (8, False): torch.uint64,
}


def read_hdf5(data: memoryview) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by path, and the texts and numbers that Keras keeps as attributes of the file ("keras_version").

    Errors: `InputError`, without the file's name: for a damaged file, for links to other files, arrays stored in other
    files, virtual ones, compressed ones, numbers that are big-endian or no plain numbers, each by its path.
    """
    try:
        return _File(data).read()
    except (struct.error, IndexError, RecursionError) as error:
        raise _damaged(str(error)) from error


class _Message(NamedTuple):
    kind: int
    content: memoryview


@dataclass(frozen=True)
class _Type:
    """dtype: of numbers. text: bytes of one of fixed length, 0 for one that stands elsewhere. name: for messages."""

    size: int
    dtype: torch.dtype | None = None
    text: int | None = None
    name: str = ""


class _File:
    """Structures of the file by address. Every read is checked against its end, and every structure is met once."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.seen: set[tuple[str, int]] = set()
        self.claimed = 0  # bytes of all arrays
        self.messages = 0
        self.texts = 0  # bytes of all texts that stand elsewhere
        self.heaps: dict[int, dict[int, memoryview]] = {}
        self.arrays: dict[int, Tensor] = {}  # by address of the header: two names of one array share it

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        root = self.root()
        extras = self.attributes(root)
        links = list(self.links(root, ""))
        if whole := dict(links).get("model_weights"):
            weights = self.header(whole)
            extras |= self.attributes(weights)
            links = list(self.links(weights, "model_weights/"))
        tensors: dict[str, Tensor] = {}
        self.collect(links, "", tensors)
        return tensors, extras

    # bytes

    def at(self, address: int, count: int) -> memoryview:
        found = self.data[address : address + count]
        if len(found) < count:
            raise _damaged(f"{count} bytes at {address} of {len(self.data)}")
        return found

    def fields(self, layout: str, address: int) -> tuple[Any, ...]:
        return struct.unpack(layout, self.at(address, struct.calcsize(layout)))

    def once(self, what: str, address: int) -> None:
        if (what, address) in self.seen or len(self.seen) > _MAX_OBJECTS:
            raise _damaged(f"{what} at {address} is part of itself" if len(self.seen) <= _MAX_OBJECTS else "too much")
        self.seen.add((what, address))

    # the file (II.A)

    def root(self) -> list[_Message]:
        version, offsets, lengths = self.at(8, 1)[0], self.at(13, 1)[0], self.at(14, 1)[0]
        if version > 1:
            found, expected = f"superblock {version}", "0 or 1"
            raise InputError(_NEWER, found=found, expected=expected)
        if (offsets, lengths) != (8, 8):
            raise _damaged(f"addresses of {offsets} bytes")
        start = 24 + 4 * version
        base, _, end, _ = self.fields("<4Q", start)
        if base or end > len(self.data):
            raise _damaged(f"{len(self.data)} bytes of {end}")
        return self.header(self.fields("<Q", start + 40)[0])

    # object headers (IV.A.1.a)

    def header(self, address: int) -> list[_Message]:
        if bytes(self.data[address : address + 4]) == b"OHDR":
            raise InputError(_NEWER, found="object headers of version 2")
        if self.at(address, 1)[0] != 1:
            raise _damaged(f"no object at {address}")
        (count,) = self.fields("<H", address + 2)
        (size,) = self.fields("<I", address + 8)
        blocks, visited = [(address + 16, size)], set()
        messages: list[_Message] = []
        for start, length in blocks:  # continuations are appended on the way
            if start in visited:
                raise _damaged(f"an object header at {address} that continues itself")
            visited.add(start)
            block, at = self.at(start, length), 0
            while at + 8 <= len(block) and len(messages) < count:
                kind, size, flags = struct.unpack_from("<2HB", block, at)
                content = block[at + 8 : at + 8 + size]
                if len(content) < size or flags & 2:
                    raise _damaged(f"a message of type {kind} in the object at {address}")
                if kind == _CONTINUATION:
                    blocks.append(struct.unpack_from("<2Q", content))
                messages.append(_Message(kind, content))
                self.messages += 1
                if self.messages > _MAX_MESSAGES:
                    raise _damaged("too much")
                at += 8 + size
        return messages

    # groups (III.A to III.D)

    def links(self, group: list[_Message], path: str) -> Iterator[tuple[str, int]]:
        """Names in a group, and where their objects are."""
        for message in group:
            if message.kind == _SYMBOL_TABLE:
                tree, heap = struct.unpack_from("<2Q", message.content)
                yield from self.symbols(tree, self.heap(heap), path)
            elif message.kind == _LINK:
                yield self.link(message.content, path)
            elif message.kind == _LINK_INFO:
                flags = message.content[1]
                (dense,) = struct.unpack_from("<Q", message.content, 10 if flags & 1 else 2)
                if dense != _NOWHERE:
                    raise InputError(_NEWER, field=path or "/", found="dense links")

    def symbols(self, tree: int, heap: memoryview, path: str) -> Iterator[tuple[str, int]]:
        self.once("a tree", tree)
        signature, kind, level, count = self.fields("<4s2BH", tree)
        if signature != b"TREE" or kind:
            raise _damaged(f"no tree at {tree}")
        for child in self.fields("<" + "8xQ" * count, tree + 24):
            if level:
                yield from self.symbols(child, heap, path)
                continue
            self.once("a table of names", child)
            signature, _, count = self.fields("<4s2H", child)
            if signature != b"SNOD":
                raise _damaged(f"no table of names at {child}")
            for i in range(count):
                name_at, address, cache, target = self.fields("<2QI4xI", child + 8 + 40 * i)
                name = _text_at(heap, name_at)
                if cache == 2:
                    raise _elsewhere("is a soft link", path + name, _text_at(heap, target))
                yield name, address

    def heap(self, address: int) -> memoryview:
        """The data segment of a local heap, which holds names."""
        signature, size, _, start = self.fields("<4s4x3Q", address)
        if signature != b"HEAP":
            raise _damaged(f"no heap at {address}")
        return self.at(start, size)

    def link(self, content: memoryview, path: str) -> tuple[str, int]:
        """A link as a message of its own: external ones exist in this form only."""
        flags, at, kind = content[1], 2, 0
        if flags & 8:
            kind, at = content[at], at + 1
        at += 8 * bool(flags & 4) + bool(flags & 16)
        width = 1 << (flags & 3)
        length = int.from_bytes(content[at : at + width], "little")
        name, at = _text_at(content[at + width : at + width + length]), at + width + length
        if kind == 0:
            return name, int.from_bytes(content[at : at + 8], "little")
        parts = bytes(content[at + 3 : at + 3 + _MAX_NAME]).split(b"\0")
        if kind == 64:
            raise _elsewhere("is an external link", path + name, parts[0].decode("utf-8", "replace"))
        raise _elsewhere("is a soft link", path + name, bytes(content[at + 2 :]).decode("utf-8", "replace"))

    def collect(self, links: Iterable[tuple[str, int]], path: str, into: dict[str, Tensor], depth: int = 0) -> None:
        """All arrays that a group names, and those in the groups below it."""
        if depth > _MAX_DEPTH:
            raise InputError("is nested too deeply", field=path[:80])
        for name, address in links:
            if (
                not name
                or "/" in name
                or not name.isprintable()
                or len(path) + len(name) > _MAX_NAME
                or path + name in into
            ):
                raise InputError("impossible name", field=path or "/", found=printable(name))
            found = self.header(address)
            kinds = {message.kind for message in found}
            if kinds & {_SYMBOL_TABLE, _LINK_INFO}:
                self.once("a group", address)
                self.collect(self.links(found, f"{path}{name}/"), f"{path}{name}/", into, depth + 1)
            elif _LAYOUT in kinds:
                if address not in self.arrays:
                    self.once("an array", address)
                    self.arrays[address] = self.array(found, path + name)
                into[path + name] = self.arrays[address]
            else:
                raise InputError("is neither group nor array", field=path + name)

    # arrays (IV.A.2.i)

    def array(self, dataset: list[_Message], path: str) -> Tensor:
        parts = {message.kind: message.content for message in dataset}
        if _EXTERNAL_FILES in parts:
            raise _elsewhere("is stored in another file", path, self.external_file(parts[_EXTERNAL_FILES]))
        if _DATASPACE not in parts or _DATATYPE not in parts:
            raise InputError("is no array", field=path)
        layout = parts[_LAYOUT]
        version, kind = layout[0], layout[1]
        if (version, kind) == (4, 3):
            raise _elsewhere("is a virtual dataset", path, None)
        if _FILTERS in parts or kind == 2 or version != 3:
            found = "filters" if _FILTERS in parts else f"layout {kind} of version {version}"
            raise InputError("is in chunks or compressed", field=path, found=found, expected="contiguous, as by Keras")
        shape, found_type = _shape(parts[_DATASPACE]), _datatype(parts[_DATATYPE])
        if shape is None or found_type.dtype is None:
            raise InputError("is no array of numbers", field=path, found=found_type.name or "nothing in it")
        size = num_bytes(shape, found_type.dtype)
        self.claimed += size
        if self.claimed > len(self.data):
            raise InputError("is of absurd size", field=path, found=f"{list(shape)} in {len(self.data)} bytes")
        content = self.stored(layout, size, path)
        if len(content) != size:
            raise InputError("is truncated or damaged", field=path, found=f"{len(content)} bytes", expected=f"{size}")
        return array(flat(content), found_type.dtype, shape)

    def stored(self, layout: memoryview, size: int, path: str) -> memoryview:
        """The bytes of an array, in the header itself (compact) or in one piece elsewhere (contiguous)."""
        if layout[1] == 0:
            return layout[4 : 4 + int.from_bytes(layout[2:4], "little")]
        address, length = struct.unpack_from("<2Q", layout, 2)
        if address == _NOWHERE and size:
            raise InputError("holds no numbers", field=path, found="an array that was never written")
        return self.at(address, length) if size else memoryview(b"")

    def external_file(self, content: memoryview) -> str:
        heap, name_at = struct.unpack_from("<2Q", content, 8)
        return _text_at(self.heap(heap), name_at)

    # attributes (IV.A.2.m)

    def attributes(self, messages: list[_Message]) -> dict[str, Any]:
        """Texts, numbers and lists of them, by name; any other kind is passed over."""
        found = (self.attribute(message.content) for message in messages if message.kind == _ATTRIBUTE)
        return {name: value for name, value in found if value is not None}

    def attribute(self, content: memoryview) -> tuple[str, Any]:
        version, flags, *sizes = struct.unpack_from("<2B3H", content)
        at = 9 if version == 3 else 8
        parts = []
        for size in sizes:  # name, datatype, dataspace
            parts.append(content[at : at + size])
            at += -(-size // 8) * 8 if version == 1 else size
        name = _text_at(parts[0])
        if version not in (1, 2, 3) or (version > 1 and flags & 3):
            return name, None
        shape, kind = _shape(parts[2]), _datatype(parts[1])
        count = 1
        for side in shape or ():
            count *= side
        content = content[at : at + count * kind.size]
        if shape is None or len(shape) > 1 or not kind.size or len(content) < count * kind.size:
            return name, None
        if kind.dtype is not None:
            return name, array(flat(memoryview(bytes(content))), kind.dtype, shape).tolist()
        if kind.text is None:
            return name, None
        items = [content[i * kind.size : (i + 1) * kind.size] for i in range(count)]
        texts = [self.text(item, kind) for item in items]
        return name, texts if shape else texts[0]

    def text(self, item: memoryview, kind: _Type) -> str:
        content = bytes(item) if kind.text else self.global_text(item)
        return content.split(b"\0", 1)[0].decode("utf-8", "replace")

    def global_text(self, reference: memoryview) -> bytes:
        """A text that stands in a global heap (III.E): its length, the heap's address, and its number there."""
        length, address, number = struct.unpack("<IQI", reference)
        self.texts += length
        if self.texts > len(self.data):
            raise _damaged("texts longer than the file")
        text = self.global_heap(address).get(number, memoryview(b"")) if length else memoryview(b"")
        if len(text) < length:
            raise _damaged(f"no text {number} in the heap at {address}")
        return bytes(text[:length])

    def global_heap(self, address: int) -> dict[int, memoryview]:
        if address in self.heaps:
            return self.heaps[address]
        signature, size = self.fields("<4s4xQ", address)
        if signature != b"GCOL":
            raise _damaged(f"no heap at {address}")
        heap, at = self.at(address, size), 16
        self.heaps[address] = items = {}
        while at + 16 <= len(heap):
            number, size = struct.unpack_from("<H6xQ", heap, at)
            if not number:  # the room that is left
                break
            items[number] = heap[at + 16 : at + 16 + size]
            at += 16 + -(-size // 8) * 8
        return items


# --- messages ---------------------------------------------------------------------------------------------------------


def _shape(content: memoryview) -> tuple[int, ...] | None:
    """Sides of a dataspace (IV.A.2.b), () for a single value; None for one that holds nothing."""
    version, rank = content[0], content[1]
    if version not in (1, 2) or rank > MAX_DIMS:
        raise _damaged(f"a dataspace of version {version} and rank {rank}")
    if version == 2 and content[3] == 2:
        return None
    return struct.unpack_from(f"<{rank}Q", content, 8 if version == 1 else 4)


def _datatype(content: memoryview) -> _Type:
    """What the items of an array or attribute are (IV.A.2.d)."""
    kind, bits = content[0] & 15, int.from_bytes(content[1:4], "little")
    (size,) = struct.unpack_from("<I", content, 4)
    if kind in (0, 1) and bits & (0x41 if kind else 1):
        return _Type(size, name="big-endian numbers")
    if kind == 0:
        whole = struct.unpack_from("<2H", content, 8) == (0, 8 * size)
        return _Type(size, _INTEGERS.get((size, bool(bits & 8))) if whole else None, name=f"integers of {size} bytes")
    if kind == 1:
        _, precision, *places = struct.unpack_from("<2H4BI", content, 8)
        dtype = _FLOATS.get((bits >> 8 & 255, *places))
        fits = dtype is not None and dtype.itemsize == size and precision == 8 * size
        return _Type(size, dtype if fits else None, name=f"floats of {size} bytes")
    if kind == 3:
        return _Type(size, text=size, name="texts")
    if kind == 9 and bits & 15 == 1 and size == 16:
        return _Type(size, text=0, name="texts")
    names = {4: "bits", 5: "opaque bytes", 6: "records", 7: "references", 8: "an enumeration", 9: "lists", 10: "arrays"}
    return _Type(size, name=names.get(kind, "an unknown kind"))


def _text_at(data: memoryview, at: int = 0) -> str:
    """Up to the next zero byte."""
    name = bytes(data[at : at + _MAX_NAME + 1]).split(b"\0", 1)[0]
    if at > len(data) or len(name) > _MAX_NAME:
        raise _damaged("a name without end")
    return name.decode("utf-8", "replace")


def _damaged(found: str) -> InputError:
    return InputError("is truncated or damaged", found=found)


def _elsewhere(problem: str, path: str, target: str | None) -> InputError:
    found = None if target is None else printable(target)
    return InputError(problem, field=printable(path), found=found, expected="arrays within the file")
