"""Masks of M x M inside a box into their picture: as runs, compressed strings or bitmaps. Arrays in, no torch needed.

    D detections     M mask side
    boxes: (x1, y1, x2, y2), float pixels; size: (height, width); a pixel is a unit square, its centre at +0.5

No bitmap of the picture is made unless it is asked for: predictions are followed along their outlines (He et al. 2017,
3.1). Probabilities and boxes may be numpy's arrays or torch's tensors, on any device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from maskrcnn.errors import InputError
from maskrcnn.ops.rle import RLE, iou_of_runs, rles_of_runs
from maskrcnn.ops.runs import Runs, boxes_of_runs, in_parts, merge_runs, ragged_ranges, window_of_runs

if TYPE_CHECKING:
    from torch import Tensor

_CELLS = 1 << 19  # cells of interpolated masks held at a time: 4 MB


def as_array(values: np.ndarray | Tensor, kind: type[np.floating[Any]]) -> np.ndarray:
    """An array, or a tensor of any type on any device, as an array of float32 or float64."""
    if isinstance(values, np.ndarray):
        return values.astype(kind, copy=False)
    plain = values.detach().cpu()
    return (plain.float() if kind is np.float32 else plain.double()).numpy()


def paste_bitmaps(
    probabilities: np.ndarray | Tensor, boxes: np.ndarray | Tensor, size: tuple[int, int], threshold: float = 0.5
) -> np.ndarray:
    """(D, H, W) bool: each mask in its place. D full pictures; see `paste_rle`.

    The centre of a pixel is looked up in the box's M x M grid, bilinearly, with zeros around the grid (the same as
    `grid_sample` with align_corners=False); the pixel is inside where the value is at least `threshold`.

    Args:
        probabilities: (D, M, M) float in 0..1. boxes: (D, 4) float pixels; one without area stays empty.
        size: (height, width) of the picture. threshold: above 0.
    """
    runs = paste_runs(probabilities, boxes, size, threshold)
    pasted = np.zeros((len(runs), *size), dtype=bool)
    for d, box in enumerate(boxes_of_runs(runs)):
        x1, y1, x2, y2 = box
        pasted[d, y1:y2, x1:x2] = window_of_runs(*runs.of(d), box, size[0])
    return pasted


def paste_rle(
    probabilities: np.ndarray | Tensor, boxes: np.ndarray | Tensor, size: tuple[int, int], threshold: float = 0.5
) -> list[RLE]:
    """The masks of `paste_bitmaps` as RLE. No bitmap is made: time and memory go by outlines, not by the picture."""
    return rles_of_runs(paste_runs(probabilities, boxes, size, threshold))


def pasted_iou(
    probabilities: np.ndarray | Tensor, boxes: np.ndarray | Tensor, size: tuple[int, int], threshold: float = 0.5
) -> np.ndarray:
    """(D, D) float64 IoU of the pasted masks; 0 where one is empty. Only pairs that overlap are looked at."""
    runs = paste_runs(probabilities, boxes, size, threshold)
    return iou_of_runs(runs, runs)


def paste_runs(
    probabilities: np.ndarray | Tensor, boxes: np.ndarray | Tensor, size: tuple[int, int], threshold: float
) -> Runs:
    """The masks of `paste_bitmaps` as runs. Errors: `InputError` for a threshold of 0 or less."""
    if threshold <= 0:
        raise InputError("must be above 0", field="threshold", found=threshold)
    grids, corners = as_array(probabilities, np.float32), as_array(boxes, np.float64)
    cells = (np.clip(corners[:, 2] - corners[:, 0], 0, size[1]) + 3) * (grids.shape[-1] + 2)
    found = [np.zeros((3, 0), dtype=np.int64)]
    for part in in_parts(cells, _CELLS):
        owner, starts, ends = _column_runs(grids[part], corners[part], size, threshold)
        found.append(np.stack([part[owner], starts, ends]))
    owner, starts, ends = np.concatenate(found, axis=1)
    return merge_runs(owner, starts, ends, len(corners), size)


def _column_runs(
    grids: np.ndarray, boxes: np.ndarray, size: tuple[int, int], threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mask, start, end), each (T,) int64: the runs of each column of the picture that a box reaches.

    grids: (D, M, M) float32. boxes: (D, 4) float64.

    Along a column the bilinear value is piecewise linear with its knots at the rows of cell centres, so it is enough
    to interpolate at those M rows and to solve for the place where the value passes the threshold between two of them.
    """
    height = size[0]
    mask, x, place = _columns_in_reach(boxes, grids.shape[-1], size[1])
    knots = _interpolate_columns(grids, mask, place)  # (columns, M + 2), zero at both ends
    inside = (knots >= threshold).ravel()
    before = np.flatnonzero(inside[1:] != inside[:-1])
    column, row = np.divmod(before, knots.shape[1])
    value, following = (knots.ravel()[at].astype(np.float64) for at in (before, before + 1))
    cell = row - 1 + (threshold - value) / (following - value)  # 0 is the centre of the first row of cells
    owner = mask[column]
    y1, y2 = boxes[owner, 1], boxes[owner, 3]
    y = y1 + (cell + 0.5) * (y2 - y1) / grids.shape[-1] - 0.5  # 0 is the centre of the first row of pixels
    starts = np.ceil(y[0::2]).clip(0, height).astype(np.int64)  # a column begins and ends outside: in, out, in, out
    ends = (np.floor(y[1::2]) + 1).clip(0, height).astype(np.int64)
    foot = x[column[0::2]] * height
    return owner[0::2], foot + starts, foot + ends


def _columns_in_reach(boxes: np.ndarray, side: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mask, x, place), each (columns,): every column of the picture within half a cell of a box.

    place: float64 in -1..M, where the centres of the column's pixels lie in the grid; 0 is the centre of a first cell.
    """
    x1, extent = boxes[:, 0], boxes[:, 2] - boxes[:, 0]
    some = (extent > 0) & (boxes[:, 3] > boxes[:, 1])
    reach = extent / (2 * side)
    first = np.floor(x1 - reach).clip(0, width)
    stop = np.ceil(boxes[:, 2] + reach).clip(0, width)
    lengths = np.where(some, stop - first, 0).astype(np.int64)
    mask = np.repeat(np.arange(len(boxes)), lengths)
    x = ragged_ranges(first.astype(np.int64), lengths)
    place = (x + 0.5 - x1[mask]) / extent[mask] * side - 0.5
    return mask, x, place.clip(-1, side)


def _interpolate_columns(grids: np.ndarray, mask: np.ndarray, place: np.ndarray) -> np.ndarray:
    """(columns, M + 2) float32: the grids, with zeros around, at a horizontal `place` in -1..M each."""
    side = grids.shape[-1] + 2
    bordered = np.zeros((len(grids), side, side), dtype=np.float32)
    bordered[:, 1:-1, 1:-1] = grids.transpose(0, 2, 1)  # column by column
    table = bordered.reshape(-1, side)
    low = np.minimum(np.floor(place).astype(np.int64), side - 3)
    to_high = (place - low).astype(np.float32)[:, None]
    at = mask * side + low + 1
    knots: np.ndarray = table[at] * (1 - to_high) + table[at + 1] * to_high
    return knots
