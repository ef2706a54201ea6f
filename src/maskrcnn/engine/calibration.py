"""The pictures that a detector is calibrated with, and what was learned of them, as a checkpoint keeps it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskrcnn.data.pictures import PictureLike, picture_files, read_picture
from maskrcnn.engine.calibrate import Range, Ranges
from maskrcnn.errors import InputError

Calibration = str | Path | Iterable[PictureLike]
"""A folder of pictures, a glob, or pictures of any kind."""

MOST_PICTURES = 64  # of a folder or list, evenly spaced; more change the ranges little
KEY = "int8"  # in a checkpoint's metadata


def calibration_pictures(calibration: Calibration) -> Iterator[Tensor]:
    """Tensors (3, H, W) uint8 RGB, at most `MOST_PICTURES`, read as they are asked for.

    Errors: `InputError` for a folder that holds none, an empty list, and a file that is no picture.
    """
    several = picture_files(calibration) if isinstance(calibration, str | Path) else list(calibration)
    if not several:
        expected = "a folder of pictures, or a list of them"
        raise InputError("holds no picture", field="calibration", found="an empty list", expected=expected)
    step = -(-len(several) // MOST_PICTURES)
    for picture in several[::step]:
        yield torch.from_numpy(np.require(read_picture(picture), requirements="W")).permute(2, 0, 1)


def ranges_as_metadata(ranges: Ranges, **more: Any) -> dict[str, Any]:
    """What a checkpoint's metadata holds of them, JSON-ready. more: JSON values that are kept beside them."""
    return {KEY: {**more, "ranges": {name: list(ends) for name, ends in ranges.items()}}}


def ranges_in(metadata: Mapping[str, Any], file: str | Path) -> dict[str, Range] | None:
    """The ranges that `ranges_as_metadata` wrote; None where there are none. Errors: `InputError` for damaged ones."""
    if KEY not in metadata:
        return None
    held = metadata[KEY]
    ranges = held.get("ranges") if isinstance(held, dict) else None
    if not isinstance(ranges, dict) or not all(map(_is_range, ranges.values())):
        expected = "a lowest and a highest number for each layer"
        raise InputError("cannot be read", file=file, field=f"metadata.{KEY}.ranges", expected=expected)
    return {str(name): (float(low), float(high)) for name, (low, high) in ranges.items()}


def _is_range(ends: object) -> bool:
    numbers = isinstance(ends, list) and len(ends) == 2 and all(type(end) in (int, float) for end in ends)
    return numbers and all(map(isfinite, ends)) and ends[0] <= ends[1]  # type: ignore[index, call-overload]
