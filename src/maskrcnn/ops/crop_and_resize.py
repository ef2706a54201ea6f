"""Crop and resize: one bilinear value at each node of a grid that spans a box, as TensorFlow's op of that name has it.

    N images    C channels    H, W map size    R boxes    S pooled side    L levels
    boxes: (x1, y1, x2, y2), float, in parts of the map: 0 is the centre of its first cell, 1 the centre of its last

It is what detectors written in TensorFlow pool with, in place of RoIAlign (He et al. 2017, 3), which takes the mean of
several points in each of S x S bins. Here S x S points include the corners of the box itself, and nothing is averaged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from maskrcnn.ops.cells import level_by_level, map_of_box, outer, table_of, wants_one_call, weighted_bag


def crop_and_resize(features: Tensor, boxes: Tensor, image_index: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Pool R boxes out of one map: (R, C, S, S), dtype of `features`.

    Args:
        features: (N, C, H, W). boxes: (R, 4) parts of the map. image_index: (R,) int64 in 0..N-1.
        size: S, or (rows, columns). Of a single row or column the point lies in the middle of the box.
    """
    return crop_and_resize_levels([features], boxes, image_index, torch.zeros_like(image_index), size)


def crop_and_resize_levels(
    features: Sequence[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    level_index: Tensor,
    size: int | tuple[int, int],
) -> Tensor:
    """Pool R boxes, each from its own level of a pyramid: (R, C, S, S), dtype of `features`.

    Args:
        features: L maps (N, C, H_l, W_l). boxes: (R, 4) parts of a map, the same on every level.
        image_index: (R,) in 0..N-1. level_index: (R,) in 0..L-1, the position in `features`.
        size: S, or (rows, columns).

    A point outside the map is 0, and so is its gradient. No gradient flows into the boxes.

    TensorFlow finds the points by adding up steps. Rounding then carries the last one past the last cell for 2 to 9 in
    100 of the boxes that end there, and it reads 0. Here the last point lies where the box ends.
    """
    boxes = boxes.detach() if boxes.dtype == torch.float64 else boxes.detach().float()
    bins = (size, size) if isinstance(size, int) else size
    if len(features) == 1 or wants_one_call(features):
        return _pool(features, boxes, image_index, level_index, bins)

    def of_level(level: int, members: Tensor) -> Tensor:
        only = torch.zeros_like(members)  # level index within a list of one
        return _pool([features[level]], boxes[members], image_index[members], only, bins)

    return level_by_level(of_level, features, level_index, bins)


def _pool(
    features: Sequence[Tensor], boxes: Tensor, image_index: Tensor, level_index: Tensor, bins: tuple[int, int]
) -> Tensor:
    """All levels as one table of cells, and every point a weighted sum of its rows."""
    maps = map_of_box(features, image_index, level_index)
    x1, y1, x2, y2 = boxes.unbind(1)
    y, weight_y = _taps(y1, y2, maps.height, bins[0])
    x, weight_x = _taps(x1, x2, maps.width, bins[1])
    y = maps.first_cell[:, None, None] + y * maps.width[:, None, None]
    cells, weights = outer(y, x, torch.add), outer(weight_y, weight_x, torch.mul)  # (R * S * S, 4)
    offsets = torch.arange(cells.shape[0], dtype=cells.dtype, device=cells.device) * cells.shape[1]
    table = table_of(features)
    pooled = weighted_bag(table, cells.flatten(), weights.flatten(), offsets)
    return pooled.view(boxes.shape[0], *bins, table.shape[1]).permute(0, 3, 1, 2)


def _taps(begin: Tensor, end: Tensor, extent: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The cells on both sides of every point along one axis, int32, and their weights: both (R, count, 2).

    begin, end: (R,) parts of the map. extent: (R,) cells.
    """
    last = (extent - 1)[:, None]
    steps = torch.arange(count, dtype=begin.dtype, device=begin.device)
    share = steps / (count - 1) if count > 1 else steps + 0.5
    first, final = begin[:, None] * last, end[:, None] * last
    at = first * (1 - share) + final * share  # where begin and end are said to lie, to the last bit
    at = at.minimum(first.maximum(final)).maximum(first.minimum(final))
    within = (at >= 0) & (at <= last)
    at = at.nan_to_num(0.0).clamp(min=0).minimum(last.to(at.dtype))
    low = at.to(extent.dtype)
    beyond = at - low
    weights = torch.stack([1 - beyond, beyond], dim=2) * within[..., None]
    return torch.stack([low, (low + 1).minimum(last)], dim=2), weights
