"""RoIAlign over the pyramid: a box is pooled from the level of its size (He et al. 2017, 3; Lin et al. 2017, 4.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from maskrcnn.model.config import require
from maskrcnn.ops.roi_align import level_of, roi_align_levels


@dataclass(frozen=True, kw_only=True)
class RoIPoolerConfig:
    """How a box becomes an S x S map."""

    sampling_ratio: int = 2  # sample points per cell and axis; 0: as many as the cell has pixels. He et al. 2017, 3
    aligned: bool = True  # a pixel's centre lies at +0.5; False: half a pixel off, as torchvision's detectors are
    canonical_size: float = 224.0  # px, a box of this size ...
    canonical_level: int = 4  # ... is pooled from this level; Lin et al. 2017, Eq. 1

    def __post_init__(self) -> None:
        require(self.sampling_ratio >= 0, self, "sampling_ratio", "0 (adaptive) or more")
        require(self.canonical_size > 0, self, "canonical_size", "above 0")


class RoIPooler(nn.Module):
    """features {"p2": (N, C, H/4, W/4), ...}, boxes (R, 4), image_index (R,) -> (R, C, S, S). No weights.

    side: S. strides: the levels to pool from, fine to coarse; p6 serves only the RPN.
    """

    def __init__(self, config: RoIPoolerConfig, side: int, strides: Mapping[str, int]) -> None:
        super().__init__()
        self.config, self.side = config, side
        self.strides = {name: stride for name, stride in strides.items() if name != "p6"}

    def levels(self, boxes: Tensor) -> Tensor:
        """(R,) int64 position in `strides` of the level that each box is pooled from."""
        numbers = [int(name[1]) for name in self.strides]
        level = level_of(
            boxes,
            min_level=numbers[0],
            max_level=numbers[-1],
            canonical_size=self.config.canonical_size,
            canonical_level=self.config.canonical_level,
        )
        return level - numbers[0]

    def forward(self, features: Mapping[str, Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        return roi_align_levels(
            [features[name] for name in self.strides],
            boxes,
            image_index,
            self.levels(boxes),
            self.side,
            strides=list(self.strides.values()),
            sampling_ratio=self.config.sampling_ratio,
            aligned=self.config.aligned,
        )
