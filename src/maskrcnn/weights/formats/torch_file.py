"""What `torch.save` wrote: a zip archive since torch 1.6, and a row of pickles followed by bytes before.

zip     NAME/data.pkl, a pickle that refers to storages by key, and NAME/data/KEY, the bytes of each, stored as they are
legacy  a magic number, a version and facts of the machine, each a pickle; the pickle; the list of keys, a pickle; and
        for each key eight bytes of length, in numbers, and the bytes

Both are read in place. Nothing is unpacked, and no name in an archive is ever a path.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskrcnn.errors import InputError
from maskrcnn.weights.formats.leaves import Storage, printable, settle
from maskrcnn.weights.formats.mapped import flat, require_bools
from maskrcnn.weights.formats.unpickle import parse

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a legacy file
LEGACY_VERSION = 1001
MAX_ENTRIES = 100_000  # storages of a checkpoint; those of large detectors with their optimiser are under 3000


class _Storages:
    """Bytes of storages by key, each looked at once however many tensors refer to it."""

    def __init__(self, content: Callable[[str], memoryview]) -> None:
        self.content = content
        self.loaded: dict[str, Tensor] = {}
        self.bools: set[str] = set()  # keys of those that hold nothing else

    def load(self, storage: Storage) -> Tensor:
        key = storage.key
        if key not in self.loaded:
            self.loaded[key] = flat(self.content(key))
        loaded = self.loaded[key]
        if len(loaded) != storage.num_bytes:
            found, field = f"{len(loaded)} bytes", f"storage {printable(key)}"
            raise InputError("is truncated or damaged", field=field, found=found, expected=f"{storage.num_bytes}")
        if storage.dtype == torch.bool and key not in self.bools:
            require_bools(loaded)
            self.bools.add(key)
        return loaded


# --- zip --------------------------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """A file of an archive: its bytes, where they stand, and their checksum; 0 where the writer made none."""

    content: memoryview
    checksum: int

    def checked(self, name: str) -> memoryview:
        if self.checksum and zlib.crc32(self.content) != self.checksum:
            raise InputError("is damaged", field=name, found="bytes that do not give their checksum")
        return self.content


def read_zip(data: memoryview) -> Any:
    """What was saved. Errors: `InputError`, without the file's name."""
    entries = read_directory(data)
    tops = [name.removesuffix("/data.pkl") for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(tops) != 1:
        found = f"{len(entries)} entries: {', '.join(list(entries)[:4])}"
        raise InputError("is a zip archive, but not of torch.save", found=found, expected="NAME/data.pkl")
    top = tops[0]
    order = entries.get(f"{top}/byteorder")
    if order is not None and bytes(order.content) != b"little":
        raise InputError("holds no little-endian numbers", found=printable(bytes(order.content[:20])))
    made, _ = parse(entries[f"{top}/data.pkl"].checked("data.pkl"), storages=[])

    def content(key: str) -> memoryview:
        name = f"{top}/data/{key}"
        if name not in entries:
            raise InputError("lacks the bytes of a tensor", found=printable(name))
        return entries[name].checked(printable(name))

    return settle(made, _Storages(content).load)


def read_directory(data: memoryview) -> dict[str, Entry]:
    """All entries of a zip archive by name, without touching their bytes.

    Errors: `InputError` for a damaged directory, entries that overlap, reach beyond the file, bear the same name or
    one that leads elsewhere, and for compressed ones: torch.save compresses nothing, so that nothing can swell.
    """
    count, size, start = _directory_place(data)
    if count > MAX_ENTRIES:
        raise InputError("is a zip archive of too much", found=f"{count} entries", expected=f"at most {MAX_ENTRIES}")
    directory = data[start : start + size]
    entries: dict[str, Entry] = {}
    at = total = 0
    for _ in range(count):
        if len(directory) - at < 46 or bytes(directory[at : at + 4]) != b"PK\x01\x02":
            raise InputError("is truncated or damaged", found=f"a zip directory of {len(entries)} entries of {count}")
        flags, method = struct.unpack_from("<2H", directory, at + 8)
        checksum, packed, length = struct.unpack_from("<3I", directory, at + 16)
        name_length, extra_length, comment_length = struct.unpack_from("<3H", directory, at + 28)
        (offset,) = struct.unpack_from("<I", directory, at + 42)
        raw_name = bytes(directory[at + 46 : at + 46 + name_length])
        extra = bytes(directory[at + 46 + name_length : at + 46 + name_length + extra_length])
        at += 46 + name_length + extra_length + comment_length
        if at > len(directory):
            raise InputError("is truncated or damaged", found=f"a zip directory of {len(directory)} bytes")
        name = raw_name.decode("utf-8", "replace")
        length, packed, offset = _wide(extra, length, packed, offset)
        _require_plain(name, name in entries, flags, method, packed, length)
        total += length
        if total > len(data):
            raise InputError("is a zip archive that claims more than it holds", field=printable(name))
        entries[name] = Entry(_content(data, offset, length, raw_name), checksum)
    return entries


def _require_plain(name: str, twice: bool, flags: int, method: int, packed: int, length: int) -> None:
    field = printable(name)
    if twice:
        raise InputError("is twice in the archive", field=field)
    if name.startswith("/") or "\\" in name or ":" in name or ".." in name.split("/"):
        raise InputError("leads out of the archive", field=field)
    if flags & 0x41:
        raise InputError("is encrypted", field=field)
    if method or packed != length:
        found = f"{packed} bytes for {length}"
        raise InputError("is compressed", field=field, found=found, expected="stored as it is, as by torch.save")


def _directory_place(data: memoryview) -> tuple[int, int, int]:
    """Number of entries, bytes, and first byte of the directory, as the end of the archive tells."""
    tail = bytes(data[-(22 + 0xFFFF) :])
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) - end < 22:
        raise InputError("is truncated or damaged", found="a zip archive without its directory")
    count, size, start = struct.unpack_from("<H2I", tail, end + 10)
    locator = tail[end - 20 : end] if end >= 20 else b""
    if locator[:4] == b"PK\x06\x07":  # the same with wider numbers
        (place,) = struct.unpack_from("<Q", locator, 8)
        wide = bytes(data[place : place + 56])
        if wide[:4] != b"PK\x06\x06" or len(wide) < 56:
            raise InputError("is truncated or damaged", found="a zip archive without its directory")
        count, size, start = struct.unpack_from("<3Q", wide, 32)
    if start + size > len(data):
        raise InputError("is truncated or damaged", found=f"a zip directory at byte {start} of {len(data)}")
    return count, size, start


def _wide(extra: bytes, *narrow: int) -> tuple[int, ...]:
    """Length, packed length and offset, from the field of wider numbers where they did not fit theirs."""
    at, wide = 0, b""
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            wide = extra[at + 4 : at + 4 + size]
        at += 4 + size
    values = iter(struct.unpack_from(f"<{len(wide) // 8}Q", wide))
    return tuple(next(values, number) if number == 0xFFFFFFFF else number for number in narrow)


def _content(data: memoryview, offset: int, length: int, name: bytes) -> memoryview:
    """The bytes of an entry, behind a header of its own that repeats its name."""
    header = bytes(data[offset : offset + 30])
    if len(header) < 30 or header[:4] != ZIP_MAGIC:
        raise InputError("is truncated or damaged", field=printable(name.decode("utf-8", "replace")))
    name_length, extra_length = struct.unpack_from("<2H", header, 26)
    first = offset + 30 + name_length + extra_length
    content = data[first : first + length]
    if bytes(data[offset + 30 : offset + 30 + name_length]) != name or len(content) < length:
        raise InputError("is truncated or damaged", field=printable(name.decode("utf-8", "replace")))
    return content


# --- legacy -----------------------------------------------------------------------------------------------------------


def read_legacy(data: memoryview, after_magic: int) -> Any:
    """What was saved. after_magic: byte behind the first pickle. Errors: `InputError`, without the file's name."""
    version, at = parse(data, after_magic)
    if version != LEGACY_VERSION:
        raise InputError("is of an unknown version of torch.save", expected=f"{LEGACY_VERSION}")
    _, at = parse(data, at)  # facts of the machine: numbers are little-endian in the file whatever it was
    storages: list[Storage] = []
    made, at = parse(data, at, storages)
    keys, at = parse(data, at)
    contents = _contents(data, at, settle(keys), {storage.key: storage for storage in storages})

    def content(key: str) -> memoryview:
        if key not in contents:
            raise InputError("lacks the bytes of a tensor", found=f"storage {printable(key)}")
        return contents[key]

    return settle(made, _Storages(content).load)


def _contents(data: memoryview, at: int, keys: object, storages: Mapping[str, Storage]) -> dict[str, memoryview]:
    """Bytes of the storages, one behind the other. What a number takes is known from the pickle alone."""
    if not isinstance(keys, list) or not all(isinstance(key, str) and key in storages for key in keys):
        raise InputError("is truncated or damaged", found="no list of storages")
    contents = {}
    for key in keys:
        storage, length = storages[key], data[at : at + 8]
        content = data[at + 8 : at + 8 + storage.num_bytes]
        if int.from_bytes(length, "little") != storage.count or len(content) < storage.num_bytes:
            field = f"storage {printable(key)}"
            raise InputError("is truncated or damaged", field=field, expected=f"{storage.num_bytes} bytes")
        contents[key] = content
        at += 8 + storage.num_bytes
    return contents
