"""RoIAlign over the pyramid: a box is pooled from the level of its size (He et al. 2017, 3; Lin et al. 2017, 4.2).

Or by another method of the family, each with its file in `ops/`. Of levels with one stride only the first is pooled
from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from maskrcnn.model.config import require
from maskrcnn.model.frames import Corners, extra, on_edges
from maskrcnn.ops.crop_and_resize import crop_and_resize_levels
from maskrcnn.ops.roi_align import level_of, roi_align_levels
from maskrcnn.ops.roi_align_max import roi_align_max_levels
from maskrcnn.ops.roi_pool import roi_pool_levels
from maskrcnn.ops.roi_warp import roi_warp_levels

Method = Literal["align", "align_max", "pool", "warp", "crop"]
"""What becomes of each of the S x S bins of a box.

"pool": its largest cell, box and bins rounded to whole cells; RoIPool, Girshick 2015, 2.1
"warp": the mean of its sample points, the box rounded; RoIWarp, Dai et al. 2016, 3.2
"crop": a single point, the outermost ones in the corners of the box; TensorFlow's `crop_and_resize`
"align", "align_max": the mean, or the largest, of its sample points, nothing rounded; RoIAlign, He et al. 2017, 3
"""


@dataclass(frozen=True, kw_only=True)
class RoIPoolerConfig:
    """How a box becomes an S x S map."""

    sampling_ratio: int = 2  # sample points per cell and axis; 0: as many as the cell has pixels. He et al. 2017, 3
    aligned: bool = True  # a pixel's centre lies at +0.5; False: half a pixel off, as torchvision's detectors are
    method: Method = "align"  # "pool" and "crop" have neither sample points nor a choice of frame
    extent: float = 0.0  # px, boxes are pooled this much wider and higher, to the right and down; Detectron1: -1
    nearest_level: bool = False  # the level is rounded; False: cut off, as in the paper
    canonical_size: float = 224.0  # px, a box of this size ...
    canonical_level: int = 4  # ... is pooled from this level; Lin et al. 2017, Eq. 1

    def __post_init__(self) -> None:
        require(self.sampling_ratio >= 0, self, "sampling_ratio", "0 (adaptive) or more")
        require(self.canonical_size > 0, self, "canonical_size", "above 0")


class RoIPooler(nn.Module):
    """features {"p2": (N, C, H/4, W/4), ...}, boxes (R, 4), image_index (R,) -> (R, C, S, S). No weights.

    side: S. strides: the levels to pool from, fine to coarse; p6 serves only the RPN. corners: of the boxes.
    """

    def __init__(
        self, config: RoIPoolerConfig, side: int, strides: Mapping[str, int], corners: Corners = "edges"
    ) -> None:
        super().__init__()
        self.config, self.side, self.corners = config, side, corners
        self.strides = {name: stride for name, stride in strides.items() if name != "p6"}

    def levels(self, boxes: Tensor) -> Tensor:
        """(R,) int64 position in `strides` of the level that each box is pooled from."""
        numbers = [stride.bit_length() - 1 for stride in self.strides.values()]  # 5 for 32, as in p5
        level = level_of(
            boxes,
            min_level=numbers[0],
            max_level=numbers[-1],
            canonical_size=self.config.canonical_size,
            canonical_level=self.config.canonical_level,
            nearest=self.config.nearest_level,
        )
        level = level - numbers[0]
        if numbers == list(range(numbers[0], numbers[-1] + 1)):
            return level
        place = torch.zeros_like(level)  # else the level itself or the one below it, of equal ones the first
        for below, number in pairwise(sorted(set(numbers))):
            place += (level >= number - numbers[0]) * (numbers.index(number) - numbers.index(below))
        return place

    def as_read(self, boxes: Tensor) -> Tensor:
        """Boxes (R, 4) as they are pooled, by any method but "crop": corners on edges, `extent` wider and higher."""
        boxes = on_edges(boxes, self.corners)
        return torch.cat([boxes[:, :2], boxes[:, 2:] + self.config.extent], dim=1) if self.config.extent else boxes

    def forward(self, features: Mapping[str, Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        maps, strides = [features[name] for name in self.strides], list(self.strides.values())
        if self.config.method == "crop":
            height, width = (side * strides[0] for side in maps[0].shape[-2:])
            padded = boxes.new_tensor([width, height, width, height])
            parts = boxes / (padded - extra(self.corners))
            return crop_and_resize_levels(maps, parts, image_index, self.levels(parts * padded), self.side)
        levels, boxes = self.levels(on_edges(boxes, self.corners)), self.as_read(boxes)
        if self.config.method == "pool":
            return roi_pool_levels(maps, boxes, image_index, levels, self.side, strides=strides)
        by_points = {"align": roi_align_levels, "align_max": roi_align_max_levels, "warp": roi_warp_levels}
        return by_points[self.config.method](
            maps,
            boxes,
            image_index,
            levels,
            self.side,
            strides=strides,
            sampling_ratio=self.config.sampling_ratio,
            aligned=self.config.aligned,
        )
