"""RoIPool (Girshick 2015, 2.1): the largest value in each of S x S bins of a box, all edges moved to whole cells.

    N images    C channels    H, W map size    R RoIs    S pooled side    L levels    B bins: R * S * S
    boxes: (x1, y1, x2, y2), float pixels of the padded picture; a map cell is `stride` px wide

Places are rounded twice:
1. The corners of the box go to the nearest whole cell, halves away from zero. The cell of the far corner belongs to the
   box, so even an empty or inverted one is one cell wide.
2. A bin, 1 / S of that, grows until its edges lie between cells, so neighbours may share a row of them.
A bin outside the map is 0. RoIWarp (roi_warp.py) rounds only the box, RoIAlign (`roi_align`) nothing; at stride 16 the
first rounding alone moves an edge by up to 8 px, which hardly hurts a class but does hurt a mask (He et al. 2017, 3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor

from maskrcnn.ops.cells import equal, level_by_level, map_of_box, table_of, to_whole, wants_one_call
from maskrcnn.ops.roi_align import Kernel

_FAR = float(1 << 20)  # cells: no map is as large, and float32 counts cells exactly up to 16 times that
_VALUES = 1 << 18  # read from the map at a time: 1 MB in float32, which stays in a core's own cache


def roi_pool(
    features: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    size: int | tuple[int, int],
    *,
    scale: float,
    kernel: Kernel | None = None,
) -> Tensor:
    """Pool R boxes out of one map: (R, C, S, S), dtype of `features`, channels-last in memory if by "bag".

    Args:
        features: (N, C, H, W). boxes: (R, 4) px. image_index: (R,) int64 in 0..N-1.
        size: S, or (rows, columns). scale: map cells per pixel, 1 / stride. kernel: see `roi_pool_levels`.
    """
    bins = (size, size) if isinstance(size, int) else size
    return _pool([features], [scale], boxes, image_index, torch.zeros_like(image_index), bins, kernel)


def roi_pool_levels(
    features: Sequence[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    level_index: Tensor,
    size: int | tuple[int, int],
    *,
    strides: Sequence[int],
    kernel: Kernel | None = None,
) -> Tensor:
    """Pool R boxes, each from its own level of a pyramid: (R, C, S, S), channels-last in memory if by "bag".

    Args:
        features: L maps (N, C, H_l, W_l). strides: L, px per cell.
        boxes: (R, 4) px. image_index: (R,) in 0..N-1. level_index: (R,) in 0..L-1, the position in `features`.
        size: S, or (rows, columns).
        kernel: "bag", "torchvision" (its compiled op; equal to the last bit), or None: the bag on a CPU, else and in a
            recorded graph torchvision's.

    Of equal values the first one in a bin, row by row, receives the gradient. No gradient flows into the boxes.
    """
    bins = (size, size) if isinstance(size, int) else size
    return _pool(features, [1.0 / stride for stride in strides], boxes, image_index, level_index, bins, kernel)


def _pool(
    features: Sequence[Tensor],
    scales: Sequence[float],
    boxes: Tensor,
    image_index: Tensor,
    level_index: Tensor,
    bins: tuple[int, int],
    kernel: Kernel | None,
) -> Tensor:
    boxes = _on_whole_cells(boxes, scales, level_index)
    if kernel is None:
        plain = features[0].device.type == "cpu" and not torch.compiler.is_compiling()
        kernel = "bag" if plain else "torchvision"
    by_kernel = _pool_by_bag if kernel == "bag" else _pool_by_torchvision
    if len(features) == 1 or (kernel == "bag" and wants_one_call(features)):
        return by_kernel(features, boxes, image_index, level_index, bins)

    def of_level(level: int, members: Tensor) -> Tensor:
        only = torch.zeros_like(members)  # level index within a list of one
        return by_kernel([features[level]], boxes[members], image_index[members], only, bins)

    layout = torch.channels_last if kernel == "bag" else torch.contiguous_format
    return level_by_level(of_level, features, level_index, bins, layout)


def _on_whole_cells(boxes: Tensor, scales: Sequence[float], level_index: Tensor) -> Tensor:
    """(R, 4) whole cells: first and last column and row of each box; one without numbers lies outside every map."""
    boxes = boxes.detach() if boxes.dtype == torch.float64 else boxes.detach().float()
    cells = to_whole(boxes * boxes.new_tensor(scales)[level_index][:, None])
    return torch.where(cells.isnan().any(dim=1, keepdim=True), -_FAR, cells.clamp(-_FAR, _FAR))


def _pool_by_torchvision(
    features: Sequence[Tensor], boxes: Tensor, image_index: Tensor, level_index: Tensor, bins: tuple[int, int]
) -> Tensor:
    """The compiled op, for a single level."""
    (feature,) = features
    indexed = torch.cat([image_index[:, None].to(boxes.dtype), boxes], dim=1)
    wide = torch.promote_types(feature.dtype, boxes.dtype)  # the op takes one dtype for maps and coordinates
    pooled: Tensor = torchvision.ops.roi_pool(feature.to(wide), indexed.to(wide), bins, 1.0)
    return pooled.to(feature.dtype)


def _pool_by_bag(
    features: Sequence[Tensor], boxes: Tensor, image_index: Tensor, level_index: Tensor, bins: tuple[int, int]
) -> Tensor:
    """All levels as one table of cells, and every bin the maximum of some of its rows."""
    maps = map_of_box(features, image_index, level_index)
    left, top, right, bottom = boxes.unbind(1)
    y, high = _bins_on_axis(top, bottom, maps.height, bins[0])
    x, wide = _bins_on_axis(left, right, maps.width, bins[1])
    first = maps.first_cell[:, None, None] + y[:, :, None] * maps.width[:, None, None] + x[:, None, :]  # (R, S, S)
    table, every = table_of(features), first.shape
    sides = high[:, :, None].expand(every), wide[:, None, :].expand(every), maps.width[:, None, None].expand(every)
    bags = _Bags(*(each.flatten().long() for each in (first, *sides)))
    pooled: Tensor
    if torch.is_grad_enabled() and table.requires_grad:
        pooled = _LargestInBag.apply(table, bags)
    else:
        pooled, _ = _largest(table, bags, find=False)
    return pooled.view(boxes.shape[0], *bins, table.shape[1]).permute(0, 3, 1, 2)


def _bins_on_axis(first: Tensor, last: Tensor, extent: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """The first cell of every bin along one axis, and how many cells of the map it has: both (R, bins), int32.

    first, last: (R,) whole cells, as floats. extent: (R,) cells of the map.
    """
    length = ((last - first + 1).clamp(min=1) / bins)[:, None]
    number = torch.arange(bins, dtype=first.dtype, device=first.device)
    begin = (first[:, None] + torch.floor(number * length)).clamp(min=0).minimum(extent[:, None])
    end = (first[:, None] + torch.ceil((number + 1) * length)).clamp(min=0).minimum(extent[:, None])
    return begin.to(extent.dtype), (end - begin).to(extent.dtype)


# --- the maxima --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Bags:
    """B bins as rectangles of table rows; all fields (B,) int64."""

    first: Tensor  # row of the cell in the top left corner
    high: Tensor  # cells; 0 where the bin lies outside the map
    wide: Tensor
    step: Tensor  # rows from a cell to the one below

    def alike(self, channels: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Bins of the same size, few enough to hold all their values: members (B',) and their cells (B', T)."""
        sizes, group = torch.unique((self.high << 32) + self.wide, return_inverse=True)
        members = group.argsort(stable=True).split(torch.bincount(group, minlength=len(sizes)).tolist())
        for size, all_of_size in zip(sizes.tolist(), members, strict=True):
            high, wide = size >> 32, size & 0xFFFFFFFF
            if not (high and wide):
                continue
            down, right = torch.arange(high, device=group.device), torch.arange(wide, device=group.device)
            for part in all_of_size.split(max(1, _VALUES // (high * wide * channels))):
                cells = self.first[part, None, None] + down[:, None] * self.step[part, None, None] + right
                yield part, cells.flatten(1)


def _largest(table: Tensor, bags: _Bags, find: bool) -> tuple[Tensor, Tensor]:
    """(B, C) maxima, 0 in a bag without cells; and if `find`, their table rows, int32, one past the last for none."""
    channels = table.shape[1]
    pooled = table.new_zeros(len(bags.first), channels)
    where = torch.full_like(pooled, table.shape[0], dtype=torch.int32) if find else pooled.new_empty(0)
    for part, cells in bags.alike(channels):
        values = table.index_select(0, cells.flatten()).view(*cells.shape, channels)  # (B', T, C)
        best = values.amax(dim=1)
        pooled.index_copy_(0, part, best)
        if find:
            # The first of the largest has the highest number. `max` with indices takes five times as long.
            count = cells.shape[1]
            number = torch.arange(count, 0, -1, device=table.device)[:, None]
            of_best = equal(values, best[:, None]).mul_(number).amax(dim=1).clamp(min=1)
            where.index_copy_(0, part, cells.gather(1, count - of_best.long()).int())
    return pooled, where


class _LargestInBag(torch.autograd.Function):
    """Maxima that keep of each only where it was found."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, bags: _Bags) -> Tensor:
        pooled, where = _largest(table, bags, find=True)
        ctx.save_for_backward(where)
        ctx.num_cells = table.shape[0]
        return pooled

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (where,) = ctx.saved_tensors
        exact = torch.promote_types(grad.dtype, torch.float32)  # sums over many boxes
        cells = torch.zeros(ctx.num_cells + 1, grad.shape[1], dtype=exact, device=grad.device)
        for begin in range(0, len(where), 4096):  # the op takes int64 places: twice the memory of a part, not of all
            some = slice(begin, begin + 4096)
            cells = cells.scatter_add_(0, where[some].long(), grad[some].to(exact))
        return cells[:-1].to(grad.dtype), None
