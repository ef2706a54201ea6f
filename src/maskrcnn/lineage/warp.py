"""Warp: any box of a picture, with some context around it, as a square of fixed side (R-CNN's input).

    P boxes    H, W picture size    S side of a warped region    boxes: (x1, y1, x2, y2), float pixels of the picture

Girshick et al. 2014, 2.1 and appendix A: whatever its shape a box is stretched to S x S, after it was grown so that p
pixels of the square, on each side, show what lies around it. What lies beyond the picture has the mean colour.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maskrcnn.model.config import require
from maskrcnn.ops.roi_align import roi_align


@dataclass(frozen=True, kw_only=True)
class WarpConfig:
    """How a box becomes the CNN's input. The paper: 227 px, of which 16 on each side are context."""

    side: int = 64  # px, S; 227 was the input of the paper's CNN, and costs 13 times as much
    context: float = 16 / 227  # on each side of the box, as a part of S

    def __post_init__(self) -> None:
        require(self.side >= 32, self, "side", "at least 32 px, one cell of c5")
        require(0 <= self.context < 0.5, self, "context", "0 to below 0.5")


def with_context(boxes: Tensor, context: float) -> Tensor:
    """Boxes (P, 4) grown about their centres, so that `context` of the new side lies on each side of the old box."""
    x1, y1, x2, y2 = boxes.unbind(1)
    grow_x, grow_y = ((far - near) * (context / (1 - 2 * context)) for near, far in ((x1, x2), (y1, y2)))
    return torch.stack([x1 - grow_x, y1 - grow_y, x2 + grow_x, y2 + grow_y], dim=1)


def warp(picture: Tensor, boxes: Tensor, config: WarpConfig) -> Tensor:
    """Regions (P, 3, S, S) float32, channels-last in memory, of a normalised picture (3, H, W).

    It is RoIAlign on the picture itself: each pixel of a region is the mean of about one point per pixel of the picture
    that it covers. A point more than half a pixel outside is 0, the mean colour; so is the region of an empty box.
    """
    first = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    grown = with_context(boxes, config.context)
    # torchvision's kernel: with three channels it is several times as fast as the table of cells on a CPU too
    regions = roi_align(picture[None], grown, first, config.side, scale=1.0, sampling_ratio=0, kernel="torchvision")
    return regions.contiguous(memory_format=torch.channels_last)
