"""What glibc's allocator does with freed memory: kept for the next step, or given back where that would be much."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3)
_AT_REST = 256 << 20  # bytes that may stay with the process when all is done
_KEPT = {_MMAP_THRESHOLD: 1 << 30, _TRIM_THRESHOLD: (1 << 31) - 1}
_RETURNED = {_MMAP_THRESHOLD: 1 << 20, _TRIM_THRESHOLD: 1 << 20}
_USUAL = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: _AT_REST}  # the first: where glibc's own rule ends up
_LARGE_MAP = 32 << 20  # bytes of the largest feature map from which on memory is dearer than time


def freed_memory_kept() -> AbstractContextManager[None]:
    """While this lasts, glibc's allocator keeps large blocks that are freed.

    A step of training, or a picture on its way through a detector, allocates and frees hundreds of blocks of megabytes.
    glibc asks the system for each anew, which hands it over page by page, cleared: on two virtual cores that was a
    quarter of a training step of the preset `drawings` (0.167 s against 0.126), and the most memory that the process
    had did not change. Other C libraries are left alone, and so is CUDA, whose memory torch keeps anyway. Within
    another of these contexts it does nothing.
    """
    return _rule(_KEPT)


def memory_for(largest_map: int) -> AbstractContextManager[None]:
    """The rule for one call of a detector whose largest feature map takes so many bytes.

    Blocks that are kept do not always fit what is asked for next: a picture of 800 x 1088 at 256 channels took 381 MB
    where it has no more than 185 MB at a time. So blocks of large pictures are given back at once; asking for
    them anew is a tenth of the time there. Small ones are kept.
    """
    return _rule(_RETURNED if largest_map >= _LARGE_MAP else _KEPT)


@contextmanager
def _rule(values: dict[int, int]) -> Iterator[None]:
    global _depth
    with _LOCK:
        _depth += 1
        if _depth == 1:
            _tell(values)
    try:
        yield
    finally:
        with _LOCK:
            _depth -= 1
            if _depth == 0:
                _tell(_USUAL)
                _give_back()


def _tell(values: dict[int, int]) -> None:
    if _GLIBC is not None:
        for parameter, value in values.items():
            _GLIBC.mallopt(parameter, value)


class _MallInfo(ctypes.Structure):
    """struct mallinfo2 of malloc.h."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
    )]  # fmt: skip


def _give_back() -> None:
    if _GLIBC is None:
        return
    if not hasattr(_GLIBC, "mallinfo2"):  # glibc before 2.33
        _GLIBC.malloc_trim(0)
        return
    _GLIBC.mallinfo2.restype = _MallInfo
    if _GLIBC.mallinfo2().fordblks > _AT_REST:
        _GLIBC.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """The C library of this process, if it is glibc."""
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows has no such handle
        return None
    return library if hasattr(library, "gnu_get_libc_version") else None


_GLIBC = _glibc()
_LOCK = threading.Lock()
_depth = 0  # of contexts that are open, in all threads
