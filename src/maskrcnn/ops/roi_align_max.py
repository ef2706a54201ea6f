"""RoIAlign with the largest sample point of a bin in place of their mean (He et al. 2017, Table 2c, "max").

    N images    C channels    H, W map size    R RoIs    S pooled side    L levels    s sample points per bin and side
    boxes: (x1, y1, x2, y2), float pixels of the padded picture; a map cell is `stride` px wide

The points are those of `roi_align`. Cut into S * s bins with one point each a box has the same points, so here that is
what is pooled, and the largest of each s x s block kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from maskrcnn.ops.cells import equal, wants_one_call
from maskrcnn.ops.roi_align import Kernel, adaptive_points, in_cells, roi_align_levels

_VALUES = 1 << 22  # of sample points held at a time when detecting: 16 MB in float32
_NEAR = 1 << 18  # of them looked through at a time: 1 MB, which stays in a core's own cache


def roi_align_max_levels(
    features: Sequence[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    level_index: Tensor,
    size: int | tuple[int, int],
    *,
    strides: Sequence[float],
    sampling_ratio: int = 2,
    aligned: bool = True,
    kernel: Kernel | None = None,
) -> Tensor:
    """Pool R boxes, each from its own level of a pyramid: (R, C, S, S). Arguments as in `roi_align_levels`.

    A point more than a cell outside the map is 0, also where all others of its bin are negative. Of equal points the
    first one, row by row, receives the gradient. With `sampling_ratio` 0 a box without area, which has no points, is 0.
    """
    bins = (size, size) if isinstance(size, int) else size

    def pool(levels: slice, members: slice | Tensor, index: Tensor, points: tuple[int, int]) -> Tensor:
        at = roi_align_levels(
            features[levels],
            boxes[members],
            image_index[members],
            index,
            (bins[0] * points[0], bins[1] * points[1]),
            strides=strides[levels],
            sampling_ratio=1,
            aligned=aligned,
            kernel=kernel,
        )
        return _largest(at, *points)

    every, (count, channels) = slice(None), (boxes.shape[0], features[0].shape[1])
    if sampling_ratio > 0 and wants_one_call(features):
        return pool(every, every, level_index, (sampling_ratio, sampling_ratio))
    pooled = features[0].new_zeros(count, *bins, channels).permute(0, 3, 1, 2)
    for level, members, points in _alike(boxes, level_index, strides, bins, sampling_ratio, aligned):
        step = max(1, _VALUES // (bins[0] * bins[1] * points[0] * points[1] * channels))
        for begin in range(0, len(members), step):
            part = members[begin : begin + step]
            pooled[part] = pool(slice(level, level + 1), part, torch.zeros_like(part), points)
    return pooled


def _alike(
    boxes: Tensor,
    level_index: Tensor,
    strides: Sequence[float],
    bins: tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
) -> Iterator[tuple[int, Tensor, tuple[int, int]]]:
    """Boxes of one level with as many points: (level, members (R',), points per bin along y and x)."""
    if sampling_ratio > 0:
        for level in range(len(strides)):
            yield level, (level_index == level).nonzero().squeeze(1), (sampling_ratio, sampling_ratio)
        return
    boxes = boxes.detach() if boxes.dtype == torch.float64 else boxes.detach().float()
    width, height = in_cells(boxes, [1.0 / stride for stride in strides], level_index, aligned)[:, 2:].unbind(1)
    points = adaptive_points(height, width, bins)
    kinds, group = torch.unique(torch.cat([level_index[:, None], points], dim=1), dim=0, return_inverse=True)
    for number, (level, high, wide) in enumerate(kinds.tolist()):
        if high and wide:
            yield level, (group == number).nonzero().squeeze(1), (high, wide)


def _largest(points: Tensor, high: int, wide: int) -> Tensor:
    """(R, C, S * high, S * wide) to the maxima of blocks, (R, C, S, S), channels-last in memory."""
    count, channels, rows, columns = points.shape
    blocks = points.permute(0, 2, 3, 1).reshape(count, rows // high, high, columns // wide, wide, channels)
    if torch.is_grad_enabled() and blocks.requires_grad:
        largest: Tensor = _LargestOfBlock.apply(blocks)
    else:
        largest = blocks.amax(dim=2).amax(dim=3)  # not in one: that is forty times as slow
    return largest.permute(0, 3, 1, 2)


class _LargestOfBlock(torch.autograd.Function):
    """(R, S, high, S, wide, C) to (R, S, S, C); keeps of every block which point it was, rather than all points."""

    @staticmethod
    def forward(ctx: Any, blocks: Tensor) -> Tensor:
        count, rows, high, columns, wide, channels = blocks.shape
        largest = blocks.new_empty(count, rows, columns, channels)
        which = torch.empty_like(largest, dtype=torch.int16)
        # The first of equal points has the highest number; 0 is none, where a point is not a number.
        number = torch.arange(high * wide, 0, -1, device=blocks.device).view(high, 1, wide, 1)
        for some in _parts(blocks):
            best = blocks[some].amax(dim=2).amax(dim=3)
            largest[some] = best
            which[some] = equal(blocks[some], best[:, :, None, :, None]).mul_(number).amax(dim=2).amax(dim=3)
        ctx.save_for_backward(which)
        ctx.shape = blocks.shape
        return largest

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (which,) = ctx.saved_tensors
        _, _, high, _, wide, _ = ctx.shape
        points = grad.new_empty(ctx.shape)
        for some in _parts(points):
            for y, x in product(range(high), range(wide)):
                is_it = equal(which[some], high * wide - y * wide - x)
                points[some, :, y, :, x] = grad[some] * is_it.to(grad.dtype)
        return points


def _parts(blocks: Tensor) -> Iterator[slice]:
    step = max(1, _NEAR // max(1, blocks[:1].numel()))
    return (slice(begin, begin + step) for begin in range(0, len(blocks), step))
