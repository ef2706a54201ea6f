"""Memory that a step frees is kept for the next one, rather than given back to the system and asked for again."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3)
_KEPT = {_MMAP_THRESHOLD: 1 << 30, _TRIM_THRESHOLD: (1 << 31) - 1}  # bytes
_USUAL = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20}  # where glibc's own rule ends up in a large process


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """While this lasts, glibc's allocator keeps large blocks that are freed.

    A step allocates and frees the same hundreds of blocks of megabytes. glibc asks the system for each anew, which
    hands it over page by page, cleared: on two virtual cores that was a quarter of a step of the preset `drawings`
    (0.167 s against 0.126), and the most memory that the process had did not change. Other C libraries are left alone,
    and so is CUDA, whose memory torch keeps anyway.
    """
    _tell(_KEPT)
    try:
        yield
    finally:
        _tell(_USUAL)
        _give_back()


def _tell(values: dict[int, int]) -> None:
    if _GLIBC is not None:
        for parameter, value in values.items():
            _GLIBC.mallopt(parameter, value)


def _give_back() -> None:
    if _GLIBC is not None:
        _GLIBC.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """The C library of this process, if it is glibc."""
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows has no such handle
        return None
    return library if hasattr(library, "gnu_get_libc_version") else None


_GLIBC = _glibc()
