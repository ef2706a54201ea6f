"""What a system keeps between calls: tensors that know what they were made from, and are made anew where that changed.

A file is used only when it was made from the same things (a hash that its writer chose) and its tensors are those that
were written (a hash of their bytes). Everything else, half written or of an earlier model, counts as absent.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
from torch import Tensor

from maskrcnn.errors import InputError
from maskrcnn.weights.files import write_tensors

_log = logging.getLogger("maskrcnn")
_METADATA_KEY = "maskrcnn_lineage"
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Unusable(Exception):
    """A file that is there and cannot be used. The text says why, as the end of a sentence: "is damaged"."""


@dataclass(frozen=True)
class Kept:
    """tensors: as they were written. facts: numbers that were written beside them."""

    tensors: dict[str, Tensor]
    facts: dict[str, float]


def digest_of(*parts: str | Tensor) -> str:
    """SHA-256 of texts and tensors, in order."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{part.dtype} {tuple(part.shape)} ".encode())
            digest.update(part.detach().cpu().contiguous().numpy().data)
        else:
            digest.update(f"{len(part)} {part}".encode())
    return digest.hexdigest()


def keep(path: Path, made_from: str, tensors: Mapping[str, Tensor], facts: Mapping[str, float] | None = None) -> None:
    """Write tensors and facts to `path`, whole or not at all. made_from: a hash of all that they follow from.

    Errors: `InputError` where the disk is full; what was kept before is untouched.
    """
    own = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    document = {"made_from": made_from, "content": _content(own), "facts": dict(facts or {})}
    try:
        write_tensors(path, own, {_METADATA_KEY: json.dumps(document)})
    except OSError as error:
        if error.errno not in _FULL:
            raise
        size = sum(value.nbytes for value in own.values()) / 2**20
        problem = "the disk is full, this file was not written (what is kept already is whole)"
        raise InputError(problem, file=path, expected=f"room for {size:.1f} MB, then the same call again") from error


def kept(path: Path, made_from: str) -> Kept | None:
    """What `keep` wrote to `path` from the same things; None where there is no such file, or none that can be used.

    That a file cannot be used is logged.
    """
    try:
        return read_kept(path, made_from)
    except Unusable as reason:
        _log.warning("%s: %s; it is made anew", path, reason)
        return None


def read_kept(path: Path, made_from: str) -> Kept | None:
    """As `kept`, but `Unusable` is raised where that logs."""
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as stream:
            document = json.loads((stream.metadata() or {})[_METADATA_KEY])
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}
        before, content, facts = document["made_from"], document["content"], document["facts"]
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise Unusable("is damaged") from error
    if before != made_from:
        raise Unusable("was made from something else")
    if content != _content(tensors):
        raise Unusable("is damaged")
    return Kept(tensors, facts)


def _content(tensors: Mapping[str, Tensor]) -> str:
    return digest_of(*(part for name in sorted(tensors) for part in (name, tensors[name])))
