"""The features of all regions of all training pictures, on disk, made once (Girshick et al. 2014, 2.2 and 2.3).

SVMs and box regression read them several times, the network is asked only once. One file a picture, so that a run that
is stopped goes on with the next one. A file is believed only for the network and the boxes that it was made from.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from maskrcnn.lineage.kept import Kept, Unusable, digest_of, keep, read_kept

_log = logging.getLogger("maskrcnn")
_LARGEST = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class Features:
    """values: (R, F) float32, a row for each box. seconds: what it took to make them, whenever that was."""

    values: Tensor
    seconds: float


class FeatureCache:
    """Features by picture.

    folder: of the files. made_by: a hash of the network, and of how it sees a region.

    Values are stored as float16: half the disk, and rounding at the fourth digit, far below what separates two views
    of one object. What is handed out is rounded too when it was just made, so that it does not matter which call made
    it.
    """

    def __init__(self, folder: Path, made_by: str) -> None:
        self.folder, self.made_by = folder, made_by
        self.made = 0  # pictures whose features this object made, rather than read
        self._said: set[str] = set()
        for unfinished in folder.glob(".*.unfinished"):  # of a run that was killed in mid-write
            unfinished.unlink()

    def features(self, image_id: int, boxes: Tensor, make: Callable[[], Tensor]) -> Features:
        """Of boxes (R, 4) of a picture: read, or else made by `make` and stored.

        Errors: `InputError` where the disk is full.
        """
        path, made_from = self.path(image_id), digest_of(self.made_by, boxes)
        found = self._read(path, made_from)
        if found is not None:
            return Features(found.tensors["features"].float(), found.facts["seconds"])
        began = time.perf_counter()
        short = make().clamp(-_LARGEST, _LARGEST).half()
        seconds = time.perf_counter() - began
        keep(path, made_from, {"features": short}, {"seconds": seconds})
        self.made += 1
        return Features(short.float(), seconds)

    def path(self, image_id: int) -> Path:
        """The file of a picture."""
        return self.folder / f"{image_id}.safetensors"

    def _read(self, path: Path, made_from: str) -> Kept | None:
        """A reason why a file cannot be used is logged once, not for each of thousands."""
        try:
            return read_kept(path, made_from)
        except Unusable as unusable:
            reason = str(unusable)
            if reason not in self._said:
                _log.warning("%s: %s; its features, and those of others like it, are made anew", path, reason)
                self._said.add(reason)
            return None


def fill(
    pictures: Iterable[int],
    features: Callable[[int], Features],
    seconds: float,
    progress: Callable[[float], None] = lambda done: None,
) -> tuple[list[int], float]:
    """Make, or find, the features of `pictures` one by one until that took `seconds`.

    Gives the pictures that have theirs, and the seconds.

    At least one picture. Seconds count whenever they were spent, so that a run that was stopped ends with the same
    pictures as one that was not.
    """
    wanted, filled, spent = list(pictures), list[int](), 0.0
    for position in wanted:
        spent += features(position).seconds
        filled.append(position)
        progress(max(len(filled) / len(wanted), 1.0 if spent >= seconds else spent / seconds))
        if spent >= seconds:
            break
    return filled, spent
