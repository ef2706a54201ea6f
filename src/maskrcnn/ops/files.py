"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A path to write to in place of `path`, which it becomes in one step when the block ends without an error.

    The unfinished file lies in the same folder, since a rename is one step only within a file system. Killed in
    mid-write, whatever stood at `path` before is intact.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{secrets.token_hex(4)}.unfinished")
    try:
        yield unfinished
        with unfinished.open("rb+") as stream:
            os.fsync(stream.fileno())  # the bytes before the name: a power cut must not leave an empty file
        os.replace(unfinished, target)
    except BaseException as error:
        with suppress(OSError):
            unfinished.unlink()
        # a full disk names no file; an error without a number would lose its text to a name
        if isinstance(error, OSError) and error.errno is not None and error.filename in (None, str(unfinished)):
            error.filename = str(target)
        raise
