"""Contrast of uint8 pictures: the same stretch when learning and when detecting."""

from __future__ import annotations

import torch
from torch import Tensor

_AT_ONCE = 1 << 22  # values held as int64 at a time: 32 MB, where a picture of 12000 x 9000 px would take 2.6 GB


def stretch(picture: Tensor, fraction: float) -> Tensor:
    """Spread the values between two percentiles over 0..255, all channels alike, so that colours keep their hue.

    Microscopes leave most of the range unused: the brightest nucleus of a fluorescence picture can be near 40 of
    255. Values below the `fraction` quantile become 0, above the `1 - fraction` quantile 255.

    picture: any shape, uint8. fraction: of all values, in 0..0.5. Returns the same shape, uint8.
    """
    if picture.numel() == 0:
        return picture
    parts = torch.split(picture.flatten(), _AT_ONCE)
    histogram = torch.stack([part.to(torch.int64).bincount(minlength=256) for part in parts]).sum(0)
    below = histogram.cumsum(0)
    low = (below <= fraction * picture.numel()).sum()  # first value with more than `fraction` at or below it
    high = (below < (1 - fraction) * picture.numel()).sum()
    width = (high - low).clamp(min=1)
    table = (torch.arange(256, device=picture.device) - low) * 255 / width
    table = table.clamp(0, 255).round().to(torch.uint8)
    return torch.cat([table[part.to(torch.int64)] for part in parts]).reshape(picture.shape)
