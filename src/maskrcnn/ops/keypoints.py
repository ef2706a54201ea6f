"""Points inside a box to cells of an M x M heat map, and back (He et al. 2017, 5).

    R boxes    J keypoints    M heat map side    H, W a box in whole pixels, rounded up
    boxes: (x1, y1, x2, y2), float pixels, the same frame as the points

Cell d reaches from d to d + 1 and stands for the point in its middle: d = floor(c), c = d + 0.5 (Heckbert 1990).
"""

from __future__ import annotations

import torch
from torch import Tensor

_VALUES_AT_ONCE = 2**22  # of a resized heat map, 16 MB: a box of 4000 x 4000 px would take a gigabyte
_KEYS = -0.75  # steepness of the cubic kernel (Keys 1981), as torch, OpenCV and the detectors resize


def points_to_cells(points: Tensor, boxes: Tensor, side: int) -> Tensor:
    """(R, J) int64 cell of each point, row * `side` + column; -1 where it is not labelled or outside its box.

    points: (R, J, 3) x, y, v, labelled where v > 0. boxes: (R, 4). The right and lower edges belong to the box.
    """
    low, high = boxes[:, None, :2], boxes[:, None, 2:]  # (R, 1, 2)
    places = points[..., :2]
    cells = ((places - low) * (side / (high - low))).floor()  # (R, J, 2), NaN in an empty box
    cells = torch.where(places == high, side - 1.0, cells)
    inside = ((cells >= 0) & (cells < side)).all(dim=2) & (points[..., 2] > 0)
    column, row = torch.where(inside[..., None], cells, 0).long().unbind(2)
    return torch.where(inside, row * side + column, -1)


def heatmaps_to_points(heatmaps: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """The highest place of each heat map: points (R, J, 2) x, y in the frame of the boxes, and its value (R, J).

    heatmaps: (R, J, M, M) float32. boxes: (R, 4); a side below 1 px counts as 1.

    Each map is resized (bicubic) to H x W and its highest pixel taken, as all detectors of the family do, but a strip
    of rows at a time, so that memory does not grow with the box.
    """
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)  # (R, 2) width, height
    pixels = sides.ceil()
    found = [
        _highest(maps, int(height), int(width))
        for maps, (width, height) in zip(heatmaps.float(), pixels.tolist(), strict=True)
    ]
    if not found:
        return heatmaps.new_zeros(*heatmaps.shape[:2], 2), heatmaps.new_zeros(heatmaps.shape[:2])
    places, values = (torch.stack(parts) for parts in zip(*found, strict=True))  # (R, J, 2), (R, J)
    return boxes[:, None, :2] + (places + 0.5) * (sides / pixels)[:, None], values


def _highest(maps: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """(J, 2) column and row of the highest pixel of each map (J, M, M) at (height, width), and its value (J,)."""
    with torch.autocast(maps.device.type, enabled=False):  # half the bits would move the maximum
        rows = _resize_matrix(height, maps.shape[1], maps)  # (H, M)
        columns = _resize_matrix(width, maps.shape[2], maps).T  # (M, W)
        best = maps.new_full(maps.shape[:1], -torch.inf)
        position = torch.zeros_like(best, dtype=torch.int64)
        start = 0
        for strip in torch.split(rows, max(1, _VALUES_AT_ONCE // (len(maps) * width))):
            value, place = (strip @ maps @ columns).flatten(1).max(dim=1)  # of (J, rows of the strip * W)
            position = torch.where(value > best, place + start * width, position)
            best = torch.maximum(best, value)
            start += len(strip)
    return torch.stack([position % width, position // width], dim=1), best


def _resize_matrix(length: int, side: int, like: Tensor) -> Tensor:
    """(length, side): how much of each of `side` samples is in each of `length` pixels; the border is repeated."""
    centres = (torch.arange(length, device=like.device, dtype=like.dtype) + 0.5) * (side / length) - 0.5
    before = centres.floor()
    distance = (centres - before)[:, None] - torch.arange(-1, 3, device=like.device)  # (length, 4) to four samples
    samples = (before.long()[:, None] + torch.arange(-1, 3, device=like.device)).clamp(0, side - 1)
    return like.new_zeros(length, side).scatter_add_(1, samples, _cubic(distance.abs()))


def _cubic(x: Tensor) -> Tensor:
    """The kernel of cubic convolution at distances x of 0 to 2 (Keys 1981, Eq. 4 with a in place of -1/2)."""
    near = ((_KEYS + 2) * x - (_KEYS + 3)) * x * x + 1
    far = ((_KEYS * x - 5 * _KEYS) * x + 8 * _KEYS) * x - 4 * _KEYS
    return torch.where(x <= 1, near, far)
