"""From which level of the pyramid each RoI is pooled, and where in the map the pooling of one of them reads.

R RoIs    S pooled side    s sample points per bin along an axis
boxes: (x1, y1, x2, y2), float px, padded frame unless another is named
cells: of a map, float; 0 is the centre of its first cell, as RoIAlign counts
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maskrcnn.inspection.probe import Steps
from maskrcnn.model.frames import extra, on_edges
from maskrcnn.model.roi_pooler import Method, RoIPooler
from maskrcnn.ops.cells import to_whole
from maskrcnn.ops.roi_align import adaptive_points, in_cells


@dataclass(frozen=True, eq=False)
class Levels:
    """boxes: (R, 4) RoIs, original frame, best first. level: (R,) int64 position in `names`. counts: RoIs of each."""

    boxes: Tensor
    level: Tensor
    names: tuple[str, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Samples:
    """Where the map is read for one RoI, by the method of its pooler (see `model/roi_pooler.py`).

    row: of the RoIs. box: (4,) original frame. level, stride: its map's. method: the pooler's.
    edges_x, edges_y: cells. (S + 1,) between which the bins lie; RoIPool's bins may reach one cell beyond. Of a crop,
    which has no bins, the (2,) first and last point.
    x: (S, s_x) cells, the sample points of every column of bins, moved onto the map; y: (S, s_y) those of every row.
    counted_x, counted_y: the same shapes, bool: a point whose column or row does not count is none of the bin's, or
    lies so far outside that it reads as 0.
    pixels_x, pixels_y: the points in px of the padded frame, where the cells that are read lie in the picture.
    """

    row: int
    box: Tensor
    level: str
    stride: int
    method: Method
    edges_x: Tensor
    edges_y: Tensor
    x: Tensor
    y: Tensor
    counted_x: Tensor
    counted_y: Tensor

    @property
    def pixels_x(self) -> Tensor:
        return (self.x + 0.5) * self.stride

    @property
    def pixels_y(self) -> Tensor:
        return (self.y + 0.5) * self.stride

    @property
    def points(self) -> Tensor:
        """(P, 2) x, y of all points that count, in cells, row by row."""
        y, x = torch.meshgrid(self.y[self.counted_y], self.x[self.counted_x], indexing="ij")
        return torch.stack([x.flatten(), y.flatten()], dim=1)


def roi_levels(steps: Steps) -> Levels:
    """The level of every RoI that the last box head reads."""
    pooler, boxes = steps.model.box_pooler, steps.rois.boxes[0][steps.rois.valid[0]]
    level, names = level_of_boxes(pooler, boxes, steps).cpu(), tuple(pooler.strides)
    counts = level.bincount(minlength=len(names)).tolist()
    return Levels(steps.in_original(boxes).cpu(), level, names, tuple(counts))


def level_of_boxes(pooler: RoIPooler, boxes: Tensor, steps: Steps) -> Tensor:
    """(R,) int64 as `RoIPooler.forward` takes them."""
    if pooler.config.method != "crop":
        return pooler.levels(on_edges(boxes, pooler.corners))
    padded = _padded(boxes, steps)
    return pooler.levels(boxes / (padded - extra(pooler.corners)) * padded)


def chosen_roi(steps: Steps) -> int | None:
    """The RoI that became the best detection; without one the best RoI; None where there are none."""
    candidates = steps.detection_candidates
    rows = candidates.chosen[0][candidates.filled[0]]
    if len(rows):
        return int(rows[0]) // steps.config.num_classes
    return 0 if bool(steps.rois.valid.any()) else None


def roi_samples(steps: Steps, row: int) -> Samples:
    """Where the box head's pooling reads the map for RoI `row` of `Steps.rois`."""
    pooler, box = steps.model.box_pooler, steps.rois.boxes[0, row]
    position = int(level_of_boxes(pooler, box[None], steps)[0])
    name, stride = list(pooler.strides.items())[position]
    extent_y, extent_x = steps.features[name].shape[2:]
    if pooler.config.method == "crop":
        parts = (box / (_padded(box, steps) - extra(pooler.corners))).cpu()
        x, y = _nodes(parts[[0, 2]], extent_x, pooler.side), _nodes(parts[[1, 3]], extent_y, pooler.side)
    elif pooler.config.method == "pool":
        cells = to_whole(pooler.as_read(box[None])[0].cpu() / stride)
        x, y = _whole_cells(cells[[0, 2]], extent_x, pooler.side), _whole_cells(cells[[1, 3]], extent_y, pooler.side)
    else:
        x, y = _points(pooler.as_read(box[None]).cpu(), stride, (extent_x, extent_y), pooler)
    original = steps.in_original(box).cpu()
    return Samples(row, original, name, stride, pooler.config.method, x[0], y[0], x[1], y[1], x[2], y[2])


_Axis = tuple[Tensor, Tensor, Tensor]  # edges of the bins, points (S, s), which of them count (S, s)


def _points(box: Tensor, stride: int, extents: tuple[int, int], pooler: RoIPooler) -> tuple[_Axis, _Axis]:
    """RoIAlign of a box (1, 4) px along x and y. extents: (width, height) of the map in cells."""
    config, side = pooler.config, pooler.side
    if config.method == "warp":
        near, far = torch.split(to_whole(box / stride), 2, dim=1)
        box = torch.cat([near, far.maximum(near + 1)], dim=1) * stride
    left, top, width, height = in_cells(box, [1 / stride], torch.zeros(1, dtype=torch.int64), config.aligned)[0]
    high, wide = config.sampling_ratio, config.sampling_ratio
    if not config.sampling_ratio:
        high, wide = adaptive_points(height[None], width[None], (side, side))[0].tolist()
    none = high * wide == 0
    axes = []
    for start, length, extent, count in ((left, width, extents[0], wide), (top, height, extents[1], high)):
        bin_length, within = length / side, (torch.arange(max(count, 1)) + 0.5) / max(count, 1)
        at = start + (torch.arange(side)[:, None] + within) * bin_length
        counted = (at >= -1) & (at <= extent) & (not none)
        axes.append((start + torch.arange(side + 1) * bin_length, at.clamp(0, extent - 1), counted))
    return axes[0], axes[1]


def _whole_cells(ends: Tensor, extent: int, side: int) -> _Axis:
    """RoIPool along one axis: a bin's points are the centres of its cells. ends: (2,) first and last cell."""
    length = (ends[1] - ends[0] + 1).clamp(min=1) / side
    number = torch.arange(side)
    begin = (ends[0] + torch.floor(number * length)).clamp(0, extent)
    end = (ends[0] + torch.ceil((number + 1) * length)).clamp(0, extent)
    count = max(1, int((end - begin).max()))
    at = begin[:, None] + torch.arange(count)
    edges = ends[0] - 0.5 + torch.arange(side + 1) * length
    return edges, at.clamp(0, extent - 1), at < end[:, None]


def _nodes(ends: Tensor, extent: int, side: int) -> _Axis:
    """Crop and resize along one axis: the ends, one point a column or row, and which lie on the map.

    ends: (2,) the box in parts of the map.
    """
    share = torch.arange(side) / (side - 1) if side > 1 else torch.full((1,), 0.5)
    first, last = ends * (extent - 1)
    at = (first * (1 - share) + last * share)[:, None]
    at = at.minimum(first.maximum(last)).maximum(first.minimum(last))
    return torch.stack([first, last]), at.clamp(0, extent - 1), (at >= 0) & (at <= extent - 1)


def _padded(boxes: Tensor, steps: Steps) -> Tensor:
    """(4,) width, height, width, height that the pooler takes the padded picture to have: the finest map's."""
    name, stride = next(iter(steps.model.box_pooler.strides.items()))
    height, width = (side * stride for side in steps.features[name].shape[2:])
    return boxes.new_tensor([width, height, width, height])
