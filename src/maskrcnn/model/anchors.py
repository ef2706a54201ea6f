"""Anchors: k fixed boxes at every cell of every level, N = W * H * k per level (Ren et al. 2015, 3.1.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from maskrcnn.model.config import require
from maskrcnn.model.frames import Corners, on_pixels
from maskrcnn.structures import Size


@dataclass(frozen=True, kw_only=True)
class AnchorConfig:
    """Sizes and shapes of anchors. One size per level of the pyramid; Lin et al. 2017, 4.1."""

    sizes: tuple[tuple[float, ...], ...] = ((32,), (64,), (128,), (256,), (512,))  # px, sqrt of area, a tuple a level
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # height / width
    centre: float = 0.0  # where in its cell an anchor sits, in cells; 0 is the corner, 0.5 the middle
    rounding: bool = False  # corners to whole pixels, as torchvision has them
    shapes: Literal["exact", "cell"] = (
        "exact"  # cell: sides are rounded in a box of the cell's size, then scaled, as Ren et al. 2015 had them
    )
    corners: Corners = "edges"  # of anchors and so of all boxes, up to the original frame; see model/frames.py
    strides: Literal["level", "grid"] = "level"  # grid: padded side // cells, torchvision's, 61 for 64 at p6 of 800 px

    def __post_init__(self) -> None:
        require(bool(self.sizes) and all(self.sizes), self, "sizes", "at least one size for each level")
        require(all(size > 0 for level in self.sizes for size in level), self, "sizes", "above 0")
        require(bool(self.ratios) and min(self.ratios) > 0, self, "ratios", "at least one, above 0")
        require(len({len(level) for level in self.sizes}) == 1, self, "sizes", "as many sizes on each level")

    @property
    def per_cell(self) -> int:
        """k, the anchors at each cell."""
        return len(self.sizes[0]) * len(self.ratios)


def cell_anchors(sizes: Sequence[float], ratios: Sequence[float], cell: int | None = None) -> Tensor:
    """(k, 4) float32 boxes around (0, 0), ratio by ratio and within it size by size.

    cell: px, shapes are those of boxes of this size with whole sides; None: exact.
    """
    root = torch.tensor(ratios, dtype=torch.float32).sqrt()  # h / w = ratio at equal area
    size = torch.tensor(sizes, dtype=torch.float32)
    wide, high = 1 / root, root  # of an area of 1
    if cell is not None:
        wide = (cell * wide).round()
        wide, high = wide / cell, (wide * torch.tensor(ratios, dtype=torch.float32)).round() / cell
    width, height = (wide[:, None] * size).flatten(), (high[:, None] * size).flatten()
    return torch.stack([-width, -height, width, height], dim=1) / 2


def make_anchors(
    config: AnchorConfig, grids: Sequence[Size], strides: Sequence[int], padded_size: Size, device: torch.device
) -> list[Tensor]:
    """All anchors of each level, row by row, in the padded frame.

    grids: (height, width) of each level in cells. strides: pixels per cell.
    Returns L tensors (H_l * W_l * k, 4) float32.
    """
    levels = []
    for sizes, (rows, columns), stride in zip(config.sizes, grids, strides, strict=True):
        step_y, step_x = stride, stride
        if config.strides == "grid":
            step_y, step_x = padded_size[0] // rows, padded_size[1] // columns
        cell = stride if config.shapes == "cell" else None
        boxes = _shapes(sizes, config.ratios, cell, config.rounding, config.corners, str(device))
        y = (torch.arange(rows, device=device, dtype=torch.float32) + config.centre) * step_y
        x = (torch.arange(columns, device=device, dtype=torch.float32) + config.centre) * step_x
        shift = torch.stack([x.expand(rows, -1), y[:, None].expand(-1, columns)] * 2, dim=-1)  # (rows, columns, 4)
        levels.append((shift[:, :, None] + boxes).reshape(-1, 4))
    return levels


def _shapes(
    sizes: tuple[float, ...], ratios: tuple[float, ...], cell: int | None, rounding: bool, corners: Corners, device: str
) -> Tensor:
    """(k, 4): the anchors around (0, 0). A GPU keeps them: each copy from the host would make the host wait for it."""
    make = _made if device == "cpu" else _kept
    return make(sizes, ratios, cell, rounding, corners, device)


def _made(
    sizes: tuple[float, ...], ratios: tuple[float, ...], cell: int | None, rounding: bool, corners: Corners, device: str
) -> Tensor:
    boxes = cell_anchors(sizes, ratios, cell)
    return on_pixels(boxes.round() if rounding else boxes, corners).to(device)


_made_once = lru_cache(maxsize=64)(_made)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # a compiled graph holds the tensor itself
def _kept(
    sizes: tuple[float, ...], ratios: tuple[float, ...], cell: int | None, rounding: bool, corners: Corners, device: str
) -> Tensor:
    with torch.inference_mode(False):  # for both lanes
        return _made_once(sizes, ratios, cell, rounding, corners, device)
