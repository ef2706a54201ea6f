"""Pictures resized as scikit-image does it: `skimage.transform.resize` of order 1 without antialiasing, back to bytes.

A network sees what its trainer's library made of a picture. scikit-image weighs the two nearest pixels of each axis in
float64, takes what lies beyond the picture for black, and keeps within the picture's own darkest and brightest value;
the bytes are then cut off, not rounded. So a border gets darker where a picture grows, and an even area may lose 1.
Checked against scikit-image 0.26, byte by byte: the order of the operations below is part of the result.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_skimage(picture: Tensor, height: int, width: int) -> Tensor:
    """(C, H, W) uint8 to (C, height, width) uint8."""
    if (picture.shape[1], picture.shape[2]) == (height, width):
        return picture
    padded = F.pad(picture, (1, 1, 1, 1)).cpu().double()
    rows, down = _taps(picture.shape[1], height)
    columns, across = _taps(picture.shape[2], width)
    sums = torch.zeros(picture.shape[0], height, width, dtype=torch.float64)
    for i in (0, 1):
        line = padded[:, rows + i] * down[i][:, None]
        for j in (0, 1):
            sums += line[:, :, columns + j] * across[j]
    darkest, brightest = padded[:, 1:-1, 1:-1].aminmax()
    return sums.clamp(darkest, brightest).to(torch.uint8).to(picture.device)


def _taps(before: int, after: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """For a side of `before` pixels that becomes one of `after`: the first of two neighbours, and both weights.

    Positions count from the black pixel before the picture.
    """
    place = (torch.arange(after, dtype=torch.float64) + 0.5) * (before / after) - 0.5
    low = place.floor()
    near = 1 - (place - low)
    return low.long() + 1, (near, 1 - near)
