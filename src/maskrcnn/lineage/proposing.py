"""Selective Search over all pictures of a data set, once: kept on disk piece by piece, and read the next time.

A data set's pieces, of `PIECE` pictures each, lie in a folder named after the method and after ids, file names and
sizes of its pictures, so that data sets do not meet. Each piece is one `.safetensors` file that is written whole, and
holds besides the boxes what it takes to trust it: a sha256 over the pixels of its pictures, another over its boxes. A
run that was killed goes on after its last piece; a piece that is damaged, or belongs to pictures that have changed, is
made again.

Pixels, and not only ids and sizes, because boxes come from pixels: drawn shapes of any seed have the same ids and
sizes, and a picture that was cropped or brightened keeps its name. It means that every picture is read again to be
trusted, which takes far less time than the search.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
from torch import Tensor

from maskrcnn.data.dataset import Dataset
from maskrcnn.data.proposals import content_digest, pictures_digest
from maskrcnn.lineage.selective_search import VERSION, Mode, selective_search
from maskrcnn.ops.files import whole_file

PIECE = 16  # pictures: what a killed run may have to do again
_METADATA_KEY = "maskrcnn_proposing"
_log = logging.getLogger("maskrcnn")

Progress = Callable[[int, int], None]


def _nothing(done: int, total: int) -> None: ...


def proposals_of(dataset: Dataset, folder: Path, progress: Progress = _nothing, mode: Mode = "fast") -> list[Tensor]:
    """The proposals (P, 4) float32 of each picture, in its own frame; searched for where `folder` does not hold them.

    progress(done, total): called after each piece with the number of pictures.

    Raises:
        InputError: opencv-contrib is not there, or a picture cannot be read.
        OSError: a full disk, with the file's name; the pieces before it stay, and the next call goes on after them.
    """
    pieces = pieces_folder(dataset, folder, mode)
    for unfinished in pieces.glob(".*.unfinished"):  # of a run that was killed in mid-write
        unfinished.unlink()
    proposals: list[Tensor] = []
    for start in range(0, len(dataset), PIECE):
        indices = range(start, min(start + PIECE, len(dataset)))
        proposals += _piece(dataset, indices, pieces / f"{start // PIECE:05d}.safetensors", mode)
        progress(indices.stop, len(dataset))
    return proposals


def seconds_of_proposing(dataset: Dataset, folder: Path, mode: Mode = "fast") -> float:
    """Seconds of search that the kept proposals of `dataset` took when they were made; 0 where there are none."""
    count = -(-len(dataset) // PIECE)
    files = (pieces_folder(dataset, folder, mode) / f"{number:05d}.safetensors" for number in range(count))
    return sum(kept.seconds for path in files if path.is_file() and (kept := _read(path)))


def pieces_folder(dataset: Dataset, folder: Path, mode: Mode = "fast") -> Path:
    """Where the pieces of this data set lie: a folder in `folder`."""
    return folder / f"selective-search-{mode}-{pictures_digest(dataset)[:16]}"


@dataclass(frozen=True)
class _Piece:
    """What a file holds. boxes: by place in the piece. pixels: sha256 of pictures and method. seconds: of search."""

    boxes: list[Tensor]
    pixels: str
    seconds: float


def _piece(dataset: Dataset, indices: range, path: Path, mode: Mode) -> list[Tensor]:
    """The proposals of some pictures: read if they can be trusted, else made and written."""
    pictures = [dataset[i][0] for i in indices]
    pixels = _pixels_digest(pictures, mode)
    if path.is_file():
        kept = _read(path)
        if kept is not None and kept.pixels == pixels:
            return kept.boxes
        reason = "damaged" if kept is None else "of other pictures or of an older search"
        _log.warning("%s: proposals are %s and are made again", path, reason)
    began = time.perf_counter()
    boxes = [selective_search(picture, mode) for picture in pictures]
    _write(path, _Piece(boxes, pixels, time.perf_counter() - began))
    return boxes


def _pixels_digest(pictures: list[np.ndarray], mode: Mode) -> str:
    digest = hashlib.sha256(f"selective search {mode} {VERSION}".encode())
    for picture in pictures:
        digest.update(f"{picture.shape}".encode())
        digest.update(np.ascontiguousarray(picture).data)
    return digest.hexdigest()


def _write(path: Path, piece: _Piece) -> None:
    tensors = {f"{place:05d}": boxes for place, boxes in enumerate(piece.boxes)}
    document = {"pixels": piece.pixels, "content": content_digest(tensors), "seconds": round(piece.seconds, 4)}
    with whole_file(path) as unfinished:
        unfinished.write_bytes(safetensors.torch.save(tensors, metadata={_METADATA_KEY: json.dumps(document)}))


def _read(path: Path) -> _Piece | None:
    """None for a file that is damaged, half written or of another kind."""
    try:
        with safetensors.safe_open(path, framework="pt") as stream:
            document = json.loads((stream.metadata() or {}).get(_METADATA_KEY, "null"))
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}
        if document["content"] != content_digest(tensors):
            return None
        return _Piece([tensors[name] for name in sorted(tensors)], document["pixels"], float(document["seconds"]))
    except (safetensors.SafetensorError, json.JSONDecodeError, KeyError, TypeError, ValueError):
        return None
