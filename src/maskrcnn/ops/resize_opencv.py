"""Pictures resized as OpenCV does it: `cv2.resize` with INTER_LINEAR on bytes, equal in every byte.

A network sees what its trainer's library made of a picture. OpenCV weighs the two nearest pixels of each axis by whole
numbers of 1/2048 and drops bits on the way, so that a byte may be one off from the rounded sum; it skips pixels where
a picture shrinks, and takes the mean of 2 x 2 pixels where both sides shrink to exactly half. Checked against OpenCV
4.12 and 5.0 on x86-64; other processors may have kernels that round differently.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

ONE = 2048  # a weight of 1


def resize_opencv(picture: Tensor, height: int, width: int) -> Tensor:
    """(C, H, W) uint8 to (C, height, width) uint8."""
    before = (picture.shape[1], picture.shape[2])
    if before == (height, width):
        return picture
    values = picture.to(torch.int32)
    if before == (2 * height, 2 * width):
        sums = values.reshape(-1, height, 2, width, 2).sum(dim=(2, 4), dtype=torch.int32)  # (C, height, width)
        return ((sums + 2) >> 2).to(torch.uint8)
    across, down = _taps(before[1], width, picture.device), _taps(before[0], height, picture.device)
    # 8 bits of value and 11 of weight, less the lowest 4
    rows = (values[:, :, across.first] * across.weight + values[:, :, across.second] * across.rest) >> 4
    upper = (rows[:, down.first] * down.weight[:, None]) >> 16
    lower = (rows[:, down.second] * down.rest[:, None]) >> 16
    return ((upper + lower + 2) >> 2).to(torch.uint8)


class _Taps(NamedTuple):
    """The two pixels of each new one: their positions, int64, and weights, int32."""

    first: Tensor
    second: Tensor
    weight: Tensor
    rest: Tensor


def _taps(before: int, after: int, device: torch.device) -> _Taps:
    """For a side of `before` pixels that becomes one of `after`. Positions are rounded to float32, as OpenCV's are."""
    step = 1.0 / (after / before)  # px, not always before / after in the last bit
    place = ((np.arange(after) + 0.5) * step - 0.5).astype(np.float32)
    first = np.floor(place)
    rest = place - first
    positions = [np.clip(i, 0, before - 1).astype(np.int64) for i in (first, first + 1)]
    weights = [np.rint(part * np.float32(ONE)).astype(np.int32) for part in (np.float32(1) - rest, rest)]
    return _Taps(*(torch.from_numpy(array).to(device) for array in (*positions, *weights)))
