"""One at a time: a lock between processes and threads, which the system frees when its holder dies."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def one_at_a_time(path: Path, *, waiting: Callable[[], None] = lambda: None, wait: float = 0.1) -> Iterator[None]:
    """Runs the block once nobody else is in a block of the same `path`, a file that exists only meanwhile.

    Args:
        waiting: called every `wait` seconds for as long as somebody else is.

    On a file system without locks nobody waits. Errors: `OSError` where `path` cannot be written.
    """
    stream = path.open("ab")
    while not (_locked(stream) and _is_at(stream, path)):  # its last holder may have deleted it meanwhile
        stream.close()
        waiting()
        time.sleep(wait)
        stream = path.open("ab")
    try:
        yield
    finally:
        if sys.platform == "win32":
            stream.close()  # an open file is not to be deleted there
        with suppress(OSError):  # somebody has opened it, who will delete it in turn
            path.unlink()
        stream.close()


def _is_at(stream: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


if sys.platform == "win32":
    import msvcrt

    def _locked(stream: IO[bytes]) -> bool:
        try:
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _locked(stream: IO[bytes]) -> bool:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # this file system has no locks
            return True
        return True
