"""The bytes of a file as tensors, without a copy where their place in the file allows it.

A file is mapped, privately: nothing is read before it is looked at, and what is written to a tensor never reaches the
file. Whoever cuts the file short while its tensors are in use breaks them, as with any mapped file; a file that is
replaced (`ops.files.whole_file`) leaves the old bytes where they are.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from maskrcnn.errors import InputError

ALIGNMENT = 8  # bytes; no part of a number is larger
MAX_DIMS = 32
_LARGEST = 2**62  # bytes; keeps products within what torch counts with


def map_file(path: Path) -> memoryview:
    """All bytes of a file, writable without consequence for the file; empty for an empty one."""
    with path.open("rb") as stream:
        if not stream.seek(0, 2):
            return memoryview(b"")
        return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY))


def flat(view: memoryview) -> Tensor:
    """Bytes as a (n,) uint8 tensor over the same memory, or over a copy where numbers could not lie there."""
    if not len(view):
        return torch.empty(0, dtype=torch.uint8)
    if view.readonly:
        view = memoryview(bytearray(view))
    shared = torch.frombuffer(view, dtype=torch.uint8)
    return shared if shared.data_ptr() % ALIGNMENT == 0 else shared.clone()


def numbers(flat_bytes: Tensor, dtype: torch.dtype) -> Tensor:
    """A (n,) uint8 tensor as (n / item size,) of `dtype`, over the same memory."""
    if len(flat_bytes) % dtype.itemsize:
        raise InputError("has bytes left over", found=f"{len(flat_bytes)} bytes of {dtype}")
    return flat_bytes.view(dtype)


def require_bools(flat_bytes: Tensor) -> Tensor:
    """The same bytes, each of which is 0 or 1: what torch makes of another bool is nobody's promise."""
    if bool((flat_bytes > 1).any()):
        raise InputError("holds a bool that is neither true nor false")
    return flat_bytes


def array(flat_bytes: Tensor, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """A (n,) uint8 tensor as one of `dtype` and `shape`, in C's order, over the same memory.

    Errors: `InputError` unless the bytes are exactly as many as the shape asks for.
    """
    wanted = num_bytes(shape, dtype)
    if wanted != len(flat_bytes):
        found = f"{len(flat_bytes)} bytes for {list(shape)} of {dtype}"
        raise InputError("array and its bytes do not agree", found=found, expected=f"{wanted}")
    return numbers(flat_bytes, dtype).reshape(tuple(shape))


def num_bytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    """Bytes of a dense array. Errors: `InputError` for a shape that no array has."""
    if len(shape) > MAX_DIMS or not all(type(side) is int and 0 <= side < _LARGEST for side in shape):
        raise InputError("impossible shape", found=str(list(shape)[:MAX_DIMS]))
    if math.prod(side for side in shape if side) * dtype.itemsize >= _LARGEST:
        raise InputError("absurd size", found=f"{list(shape)} of {dtype}")
    return math.prod(shape) * dtype.itemsize
