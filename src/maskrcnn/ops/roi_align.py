"""RoIAlign (He et al. 2017, section 3): a fixed grid of values out of any box, without rounding.

    N images    C channels    H, W map size    R RoIs    S pooled side    L levels
    boxes: (x1, y1, x2, y2), float pixels of the padded picture; a map cell is `stride` px wide

A box is cut into S x S bins, each bin holds s x s sample points, each point reads the map by bilinear interpolation,
and a bin is the mean of its points. So each bin is a weighted sum of map cells: with the map laid out as a table of
cells (N * H * W, C), all of RoIAlign is one `embedding_bag`, whose compiled kernels make both lanes fast on a CPU.
`aligned=True` puts the centre of the first cell at (0.5, 0.5) * stride, as a pixel's centre lies at +0.5; False is
the older frame, half a cell off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torchvision
from torch import Tensor

from maskrcnn.ops.cells import MapOfBox, level_by_level, map_of_box, outer, table_of, wants_one_call, weighted_bag
from maskrcnn.ops.recorded import for_onnx
from maskrcnn.ops.triton.choice import takes_own

Kernel = Literal["bag", "torchvision"]  # of all poolings in whose definition points are averaged
AnyKernel = Literal["bag", "torchvision", "triton"]


def roi_align(
    features: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    size: int | tuple[int, int],
    *,
    scale: float,
    sampling_ratio: int = 2,
    aligned: bool = True,
    kernel: AnyKernel | None = None,
) -> Tensor:
    """Pool R boxes out of one map: (R, C, S, S), dtype of `features`, channels-last in memory if by "bag".

    Args:
        features: (N, C, H, W). boxes: (R, 4) px. image_index: (R,) int64 in 0..N-1.
        size: S, or (rows, columns). scale: map cells per pixel, 1 / stride.
        sampling_ratio: points per bin and side; 0 takes about one per map cell, box by box.
        aligned: the frame, see above. kernel: see `roi_align_levels`.
    """
    grid = _Grid((size, size) if isinstance(size, int) else size, sampling_ratio, aligned)
    return _pool([features], [scale], boxes, image_index, torch.zeros_like(image_index), grid, kernel)


def roi_align_levels(
    features: Sequence[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    level_index: Tensor,
    size: int | tuple[int, int],
    *,
    strides: Sequence[float],
    sampling_ratio: int = 2,
    aligned: bool = True,
    kernel: AnyKernel | None = None,
) -> Tensor:
    """Pool R boxes, each from its own level of a pyramid: (R, C, S, S), channels-last in memory if by "bag".

    Args:
        features: L maps (N, C, H_l, W_l). strides: L, px per cell.
        boxes: (R, 4) px. image_index: (R,) in 0..N-1. level_index: (R,) in 0..L-1, the position in `features`.
        sampling_ratio: points per bin and side; 0 takes about one per map cell, box by box.
        aligned: the frame, see above.
        kernel: "bag", "torchvision" (its compiled op), "triton" (ours for CUDA, at most 4 levels), or None: the bag on
            a CPU, else torchvision's, or ours where a graph is recorded (see `ops/triton/choice.py`).

    A recorded graph (`torch.compile`, `torch.export`) of the bag has fixed shapes; where `sampling_ratio` is 0, so that
    the number of points hangs on the box, torchvision's op is recorded on a CPU in its place.
    """
    grid = _Grid((size, size) if isinstance(size, int) else size, sampling_ratio, aligned)
    return _pool(features, [1.0 / stride for stride in strides], boxes, image_index, level_index, grid, kernel)


def level_of(
    boxes: Tensor,
    *,
    min_level: int = 2,
    max_level: int = 5,
    canonical_size: float = 224,
    canonical_level: int = 4,
    nearest: bool = False,
    eps: float = 1e-6,
) -> Tensor:
    """The pyramid level (...) int64, `min_level`..`max_level`, that each box (..., 4) px is pooled from.

    Lin et al. 2017 (FPN), Eq. 1: a box of `canonical_size` px goes to `canonical_level`, one twice as large a level up.
    nearest: the level rounded rather than cut off, so that half an octave on both sides of `canonical_size` go there.
    `eps` keeps a box that sits on the border from falling below it by rounding. Empty boxes go to `min_level`.
    """
    x1, y1, x2, y2 = boxes.unbind(-1)
    side = torch.sqrt(((x2 - x1) * (y2 - y1)).clamp(min=0))
    level = canonical_level + torch.log2(side / canonical_size)
    level = torch.round(level) if nearest else torch.floor(level + eps)
    return level.nan_to_num(nan=min_level).clamp(min=min_level, max=max_level).to(torch.int64)


@dataclass(frozen=True)
class _Grid:
    bins: tuple[int, int]
    sampling_ratio: int
    aligned: bool


def _pool(
    features: Sequence[Tensor],
    scales: Sequence[float],
    boxes: Tensor,
    image_index: Tensor,
    level_index: Tensor,
    grid: _Grid,
    kernel: AnyKernel | None,
) -> Tensor:
    # As in the paper no gradient flows into the boxes. Coordinates want float32 whatever the dtype of the maps.
    boxes = boxes.detach() if boxes.dtype == torch.float64 else boxes.detach().float()
    if kernel is None:
        kernel = _kernel_for(features, grid)
    if kernel == "triton":
        from maskrcnn.ops.triton.roi_align import pool_levels

        return pool_levels(
            features, scales, boxes, image_index, level_index, grid.bins, grid.sampling_ratio, grid.aligned
        )
    by_kernel = _pool_by_bag if kernel == "bag" else _pool_by_torchvision
    if len(features) == 1 or (kernel == "bag" and wants_one_call(features)):
        return by_kernel(features, scales, boxes, image_index, level_index, grid)

    def of_level(level: int, members: Tensor) -> Tensor:
        only = torch.zeros_like(members)  # level index within a list of one
        return by_kernel([features[level]], [scales[level]], boxes[members], image_index[members], only, grid)

    layout = torch.channels_last if kernel == "bag" else torch.contiguous_format
    return level_by_level(of_level, features, level_index, grid.bins, layout)


def _kernel_for(features: Sequence[Tensor], grid: _Grid) -> AnyKernel:
    """What is fastest where the maps lie, or there alone can be recorded."""
    if for_onnx():
        return "torchvision"
    if features[0].device.type == "cpu":
        return "torchvision" if torch.compiler.is_compiling() and grid.sampling_ratio == 0 else "bag"
    held = (torch.float32, torch.bfloat16, torch.float16)
    fits = len(features) <= 4 and features[0].dtype in held
    return "triton" if fits and takes_own("roi_align", features[0].device) else "torchvision"


def _pool_by_bag(
    features: Sequence[Tensor],
    scales: Sequence[float],
    boxes: Tensor,
    image_index: Tensor,
    level_index: Tensor,
    grid: _Grid,
) -> Tensor:
    """All levels as one table of cells, and every bin a weighted sum of its rows."""
    rois = _rois_on_maps(features, scales, boxes, image_index, level_index, grid.aligned)
    table = table_of(features)
    if grid.sampling_ratio > 0:
        pooled = _mean_of_points(table, rois, grid.bins, grid.sampling_ratio)
    else:
        pooled = _mean_of_adaptive_points(table, rois, grid.bins)
    return pooled.view(boxes.shape[0], *grid.bins, table.shape[1]).permute(0, 3, 1, 2)


def _pool_by_torchvision(
    features: Sequence[Tensor],
    scales: Sequence[float],
    boxes: Tensor,
    image_index: Tensor,
    level_index: Tensor,
    grid: _Grid,
) -> Tensor:
    """The compiled op, for a single level."""
    (feature,), (scale,) = features, scales
    indexed = torch.cat([image_index[:, None].to(boxes.dtype), boxes], dim=1)
    wide = torch.promote_types(feature.dtype, boxes.dtype)  # the op takes one dtype for maps and coordinates
    pooled: Tensor = torchvision.ops.roi_align(
        feature.to(wide), indexed.to(wide), grid.bins, scale, grid.sampling_ratio, grid.aligned
    )
    return pooled.to(feature.dtype)


# --- where the boxes lie ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _RoIs:
    """R boxes in cells of their own maps; all fields (R,)."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    maps: MapOfBox

    def chosen(self, rows: Tensor) -> _RoIs:
        return _RoIs(self.top[rows], self.left[rows], self.height[rows], self.width[rows], self.maps.chosen(rows))


def _rois_on_maps(
    features: Sequence[Tensor],
    scales: Sequence[float],
    boxes: Tensor,
    image_index: Tensor,
    level_index: Tensor,
    aligned: bool,
) -> _RoIs:
    left, top, width, height = in_cells(boxes, scales, level_index, aligned).unbind(1)
    return _RoIs(top, left, height, width, map_of_box(features, image_index, level_index))


def in_cells(boxes: Tensor, scales: Sequence[float], level_index: Tensor, aligned: bool) -> Tensor:
    """Boxes (R, 4) px as (left, top, width, height) in cells of their level, 0 in the centre of the first cell."""
    corners = boxes * boxes.new_tensor(scales)[level_index][:, None] - (0.5 if aligned else 0.0)
    sides = corners[:, 2:] - corners[:, :2]
    if not aligned:  # the older frame never reads less than one cell
        sides = sides.clamp(min=1.0)
    return torch.cat([corners[:, :2], sides], dim=1)


def adaptive_points(height: Tensor, width: Tensor, bins: tuple[int, int]) -> Tensor:
    """Points per bin for `sampling_ratio` 0, (R, 2) int64 along y and x; none in a box without area. Sides in cells."""
    per_bin = torch.stack([height / bins[0], width / bins[1]], dim=1)
    return per_bin.nan_to_num(0.0).ceil().clamp(min=0).long()


# --- which cells feed a bin, and how much -------------------------------------------------------------------------
# A tap is a cell with a weight. Bilinear weights are products, so taps are found for rows and columns apart:
# (R, S, T) positions and weights, which sum to 1 over T where all points lie on the map.

_Taps = tuple[Tensor, Tensor]


def _points_on_axis(start: Tensor, length: Tensor, extent: Tensor, bins: int, points: int) -> _Taps:
    """Where the sample points lie, moved onto the map, and their shares of the mean: both (R, bins, points).

    A point more than one cell outside (below -1 or above `extent`) has share 0; one less far out reads the border.
    The order of operations is that of torchvision's kernel: another one gives values 1e-4 apart in float32.
    """
    bin_length = (length / bins)[:, None, None]
    bin_index = torch.arange(bins, dtype=start.dtype, device=start.device)[:, None]
    middle = torch.arange(points, dtype=start.dtype, device=start.device) + 0.5
    at = start[:, None, None] + bin_index * bin_length + middle * bin_length / points
    extent = extent.to(at.dtype)[:, None, None]
    share = ((at >= -1.0) & (at <= extent)).to(at.dtype) / points
    return at.nan_to_num(0.0).clamp(min=0).minimum(extent - 1.0), share


def _two_taps_per_point(start: Tensor, length: Tensor, extent: Tensor, bins: int, points: int) -> _Taps:
    """T = 2 * points: the cells on both sides of every point."""
    at, share = _points_on_axis(start, length, extent, bins, points)
    low = at.to(extent.dtype)
    high = torch.minimum(low + 1, extent[:, None, None] - 1)
    beyond = at - low
    weights = torch.stack([(1.0 - beyond) * share, beyond * share], dim=-1)
    return torch.stack([low, high], dim=-1).flatten(2), weights.flatten(2)


def _one_tap_per_cell(start: Tensor, length: Tensor, extent: Tensor, bins: int, points: int) -> _Taps:
    """T = points + 1: the run of cells under a bin, for points at most one cell apart, which share most of them.

    For a large box a quarter of the taps of `_two_taps_per_point`. An empty or inverted box has no points: weight 0.
    """
    at, share = _points_on_axis(start, length, extent, bins, points)
    share = share * (length > 0)[:, None, None]
    low = at.to(extent.dtype)
    first = low[..., :1]
    # Rounding may carry the last point one cell too far; its share of that cell is then as small as the rounding.
    slot = (low - first).clamp(max=points).long()
    weights = at.new_zeros(*at.shape[:2], points + 1)
    weights.scatter_add_(2, slot, (1.0 - (at - low)) * share)
    weights.scatter_add_(2, (slot + 1).clamp(max=points), (at - low) * share)
    run = torch.arange(points + 1, dtype=low.dtype, device=low.device)
    return torch.minimum(first + run, extent[:, None, None] - 1), weights


def _table_taps(rois: _RoIs, rows: _Taps, columns: _Taps) -> _Taps:
    """Table rows and weights (R * S * S, Ty * Tx) of every bin, out of its row taps and column taps."""
    y, weight_y = rows
    x, weight_x = columns
    y = rois.maps.first_cell[:, None, None] + y * rois.maps.width[:, None, None]
    return outer(y, x, torch.add), outer(weight_y, weight_x, torch.mul)


# --- the sums ---------------------------------------------------------------------------------------------------


def _mean_of_points(table: Tensor, rois: _RoIs, bins: tuple[int, int], points: int) -> Tensor:
    """(R * S * S, C) with `points` squared sample points in every bin."""
    y = _two_taps_per_point(rois.top, rois.height, rois.maps.height, bins[0], points)
    x = _two_taps_per_point(rois.left, rois.width, rois.maps.width, bins[1], points)
    rows, weights = _table_taps(rois, y, x)
    offsets = torch.arange(rows.shape[0], dtype=rows.dtype, device=rows.device) * rows.shape[1]
    return weighted_bag(table, rows.flatten(), weights.flatten(), offsets)


def _mean_of_adaptive_points(table: Tensor, rois: _RoIs, bins: tuple[int, int]) -> Tensor:
    """(R * S * S, C) with ceil(bin side in cells) points per side: boxes with the same counts are laid out together."""
    counts, group = torch.unique(
        adaptive_points(rois.height, rois.width, bins).clamp(min=1), dim=0, return_inverse=True
    )
    parts, members = [], []
    for number, (high, wide) in enumerate(counts.tolist()):
        members.append((group == number).nonzero().squeeze(1))
        some = rois.chosen(members[-1])
        y = _one_tap_per_cell(some.top, some.height, some.maps.height, bins[0], high)
        x = _one_tap_per_cell(some.left, some.width, some.maps.width, bins[1], wide)
        parts.append(_table_taps(some, y, x))
    if not parts:
        return table[:0]
    rows, weights = (torch.cat([part.flatten() for part in side]) for side in zip(*parts, strict=True))
    lengths = torch.cat([part[0].new_full(part[0].shape[:1], part[0].shape[1]) for part in parts])
    offsets = lengths.cumsum(0, dtype=lengths.dtype) - lengths
    pooled = weighted_bag(table, rows, weights, offsets)
    back = torch.cat(members).argsort()
    return pooled.view(len(back), bins[0] * bins[1] * table.shape[1])[back].view(-1, table.shape[1])
