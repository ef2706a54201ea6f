"""Pyramid and RoIAlign on codes 0..255: what lies between the convolutions of the detector.

N images    R RoIs    C channels    S pooled side
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn.engine.codes import TOP, Codes
from maskrcnn.engine.heads import FusedFPN
from maskrcnn.model.roi_pooler import RoIPooler


class QuantisedFPN(nn.Module):
    """As `FusedFPN`, all of whose convolutions are `QuantisedConv`: each lateral one adds the level above."""

    def __init__(self, fpn: FusedFPN) -> None:
        super().__init__()
        self.config, self.strides, self.lateral, self.output = fpn.config, fpn.strides, fpn.lateral, fpn.output

    def forward(self, maps: dict[str, Codes]) -> dict[str, Codes]:
        pyramid: dict[str, Codes] = {}
        above: Codes | None = None
        for name in reversed(list(self.lateral)):  # p5 first
            level = maps.pop(f"c{name[1:]}")
            above = self.lateral[name](level, None if above is None else _enlarged(above, level.shape[2:]))
            pyramid[name] = self.output[name](above)
        levels = dict(reversed(pyramid.items()))
        if self.config.extra_level:
            levels["p6"] = levels["p5"].map(lambda p5: p5[:, :, ::2, ::2].contiguous(memory_format=torch.channels_last))
        return levels


def _enlarged(above: Codes, size: torch.Size) -> Codes:
    """A new map of `size`, each cell repeated to fill it."""
    height, width = size
    rows, columns = above.shape[2:]
    if (height, width) != (2 * rows, 2 * columns):
        return above.map(lambda codes: _nearest(codes, height, width))
    return above.map(_doubled)


def _doubled(codes: Tensor) -> Tensor:
    n, c, rows, columns = codes.shape
    cells = codes.permute(0, 2, 3, 1)[:, :, None, :, None].expand(-1, -1, 2, -1, 2, -1)
    return cells.reshape(n, 2 * rows, 2 * columns, c).permute(0, 3, 1, 2)


def _nearest(codes: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(codes, size=(height, width), mode="nearest").clone(memory_format=torch.channels_last)


class QuantisedPooler(nn.Module):
    """As the `RoIPooler` that it is made of, for maps of codes.

    Pooled values are means of numbers of the map, so the codes of the map reach them. With `dtype` it gives numbers
    instead, for a head that knows no codes.
    """

    def __init__(self, pooler: RoIPooler, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.pooler, self.dtype = pooler, dtype

    def forward(self, features: Mapping[str, Codes], boxes: Tensor, image_index: Tensor) -> Codes | Tensor:
        codings = {features[name].coding for name in self.pooler.strides}
        (coding,) = codings  # one for all levels
        steps = {name: features[name].steps for name in self.pooler.strides}
        pooled: Tensor = self.pooler(steps, boxes, image_index)
        if self.dtype is not None:
            return pooled.to(self.dtype) * coding.scale
        codes = pooled.add_(coding.zero).round_().clamp_(0, TOP).to(torch.uint8)
        return Codes(codes, coding)
