"""Masks of a picture to M x M inside a box, and back.

    G ground-truth objects     R RoIs     D detections     M mask side
    boxes: (x1, y1, x2, y2), float pixels; sizes: (height, width); a pixel is a unit square, its centre at +0.5

`crop_masks` makes what the mask head learns, `paste_masks` and `paste_rle` put what it predicts into the picture (He et
al. 2017, 3.1). Neither makes a bitmap of the picture unless it is asked for one: ground truth is sampled where it
lies, in its own frame, and predictions are followed along their outlines.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeGuard

import numpy as np
import torch
from torch import Tensor

from maskrcnn.ops.paste import paste_bitmaps, pasted_iou
from maskrcnn.ops.paste import paste_rle as paste_rle
from maskrcnn.ops.polygons import ring_runs, rle_from_polygons
from maskrcnn.ops.rle import RLE, encode_window
from maskrcnn.ops.runs import in_parts, ragged_ranges

if TYPE_CHECKING:
    from maskrcnn.structures import GtMasks, PolygonShape, RasterShape, Shape

_SMALLEST_SIDE = 0.1  # px; a box of no width has no M x M frame that a polygon could be drawn in
_CELLS = 1 << 19  # cells of weights held at a time: 4 MB
_NEARLY = 1e-6  # px; a pixel that is covered by less than this is not


# --- picture -> M x M -------------------------------------------------------------------------------------------------


def crop_masks(
    masks: GtMasks, boxes: Tensor, index: Tensor, side: int, *, aligned: bool = True, binary: bool = True
) -> Tensor:
    """The M x M target of each box: RoIAlign of the object's mask (He et al. 2017), or its polygons drawn M x M.

    A bitmap is sampled by RoIAlign with ceil(bin side) samples per bin, in the frame where it was annotated; past the
    picture's edge RoIAlign's own rule holds. A polygon is moved into the box's frame and drawn by COCO's rule.

    Args:
        masks: G objects; the boxes are in their present frame.
        boxes: (R, 4) float. index: (R,) int64, the object in each box.
        side: M.
        aligned: pixel centres at +0.5. False shifts by half a pixel and makes boxes at least one pixel wide, as
            detectors did whose RoIAlign knows no `aligned`.
        binary: 1 where the value is at least 0.5, else 0; otherwise the share of the bin that is inside.

    Returns:
        (R, M, M) float32 on the device of `boxes`.
    """
    present = boxes.detach().cpu().double().numpy()
    if not aligned:
        corner = present[:, :2] + 0.5
        present = np.hstack([corner, corner + np.maximum(present[:, 2:] - present[:, :2], 1)])
    chosen = [masks.shapes[i] for i in index.tolist()]
    targets = np.zeros((len(chosen), side, side), dtype=np.float32)
    drawn = np.array([_is_polygon(shape) for shape in chosen], dtype=bool)
    polygons = [shape for shape in chosen if _is_polygon(shape)]
    rasters = [shape for shape in chosen if _is_raster(shape)]
    if polygons:
        targets[drawn] = _draw_in_boxes(polygons, masks.to_frame, present[drawn], side)
    if rasters:
        values = _align_in_boxes(rasters, masks.to_frame, present[~drawn], side)
        targets[~drawn] = values >= 0.5 if binary else values
    return torch.from_numpy(targets).to(boxes.device)


def _draw_in_boxes(shapes: list[PolygonShape], to_frame: np.ndarray, boxes: np.ndarray, side: int) -> np.ndarray:
    """(R, M, M) bool: the polygons of each box, drawn in the box's own M x M frame."""
    corner, scale = boxes[:, :2], side / np.maximum(boxes[:, 2:] - boxes[:, :2], _SMALLEST_SIDE)
    points, lengths, owner = _rings_of(shapes, to_frame)
    roi = np.repeat(owner, lengths)
    cuts = np.cumsum(lengths)[:-1]
    ring, starts, ends = ring_runs(np.split((points - corner[roi]) * scale[roi], cuts), (side, side))
    cells = side * side + 1
    steps = np.zeros(len(shapes) * cells, dtype=np.int64)
    for positions, step in ((starts, 1), (ends, -1)):
        steps += step * np.bincount(owner[ring] * cells + positions, minlength=len(steps))
    covered = np.cumsum(steps.reshape(len(shapes), cells)[:, :-1], axis=1) > 0
    return covered.reshape(len(shapes), side, side).transpose(0, 2, 1)


def _align_in_boxes(shapes: list[RasterShape], to_frame: np.ndarray, boxes: np.ndarray, side: int) -> np.ndarray:
    """(R, M, M) float32: RoIAlign of each box's bitmap. It is separable: rows @ bitmap @ columns^T."""
    linear, offset = to_frame[:, :2], to_frame[:, 2]
    is_turned = _is_turned(to_frame)
    windows = np.array([(s.left, s.top, *s.bitmap.shape[::-1], *s.size[::-1]) for s in shapes])  # x before y
    values = np.empty((len(shapes), side, side), dtype=np.float32)
    for part in in_parts(side * windows[:, 2:4].sum(axis=1), _CELLS):
        weights = []
        for axis in (0, 1):
            source = 1 - axis if is_turned else axis
            ends = (boxes[part][:, [axis, axis + 2]] - offset[axis]) / linear[axis, source]
            weights.append(_axis_weights(ends, windows[part, source::2], side))
        for r, columns, rows in zip(part.tolist(), *weights, strict=True):
            bitmap = shapes[r].bitmap.astype(np.float32)
            values[r] = rows @ (bitmap.T if is_turned else bitmap) @ columns.T
    return values


def _axis_weights(ends: np.ndarray, windows: np.ndarray, side: int) -> Iterator[np.ndarray]:
    """Per RoI (M, n) float32, RoIAlign's weight of each of the n pixels of the window in each bin, along one axis.

    ends: (R, 2) float64 source frame, where the RoI begins and ends; the other way round in a mirrored frame.
    windows: (R, 3) int64, first pixel and length of the window, length of the picture.
    """
    first, length, whole = windows.T
    begin, extent = ends[:, 0], ends[:, 1] - ends[:, 0]
    samples = np.ceil(np.abs(extent) / side).astype(np.int64)  # per bin
    roi = np.repeat(np.arange(len(ends)), side * samples)
    order = ragged_ranges(np.zeros_like(samples), side * samples)
    place = begin[roi] + extent[roi] * (order + 0.5) / (side * samples[roi]) - 0.5  # 0 is the first pixel's centre
    within = (place >= -1) & (place <= whole[roi])
    place = np.clip(place, 0, whole[roi] - 1)
    low = place.astype(np.int64)
    to_high = place - low
    row_starts = np.cumsum(side * length) - side * length
    cell = row_starts[roi] + (order // samples[roi]) * length[roi]
    flat = np.zeros(int((side * length).sum()))
    for pixel, share in ((low, 1 - to_high), (low + 1, to_high)):
        inside = within & (pixel >= first[roi]) & (pixel < (first + length)[roi])
        at = (cell + pixel - first[roi])[inside]
        flat += np.bincount(at, weights=(share / samples[roi])[inside], minlength=len(flat))
    for start, n in zip(row_starts.tolist(), length.tolist(), strict=True):
        yield flat[start : start + side * n].reshape(side, n).astype(np.float32)


# --- ground truth in the present frame --------------------------------------------------------------------------------


def shape_boxes(masks: GtMasks, size: tuple[int, int]) -> Tensor:
    """(G, 4) float32 boxes, present frame: tight around the part of each shape that lies within the picture.

    size: (height, width) of the picture in the present frame. A shape that is outside altogether gets zeros.
    """
    boxes = np.zeros((len(masks), 4))
    polygons = [i for i, shape in enumerate(masks.shapes) if _is_polygon(shape)]
    rasters = [i for i, shape in enumerate(masks.shapes) if _is_raster(shape)]
    if polygons:
        shapes = [shape for shape in masks.shapes if _is_polygon(shape)]
        boxes[polygons] = _polygon_boxes(shapes, masks.to_frame, size)
    if rasters:
        picture = np.array([[0.0, 0.0, size[1], size[0]]])
        window = _move_boxes(_inverse(masks.to_frame), picture)[0]
        tight = np.array([_bitmap_box(shape, window) for shape in masks.shapes if _is_raster(shape)])
        boxes[rasters] = _move_boxes(masks.to_frame, tight)
        empty = np.array(rasters)[tight[:, 2] <= tight[:, 0]]
        boxes[empty] = 0
    boxes = boxes.clip(0, np.array([size[1], size[0]] * 2))
    return torch.from_numpy(boxes.astype(np.float32))


def rasterise(masks: GtMasks, size: tuple[int, int]) -> list[RLE]:
    """Each shape as RLE of a picture of `size` (height, width), present frame; bitmaps by their nearest pixel."""
    drawn = []
    for shape in masks.shapes:
        if _is_polygon(shape):
            points, lengths, _ = _rings_of([shape], masks.to_frame)
            drawn.append(rle_from_polygons(np.split(points, np.cumsum(lengths)[:-1]), size))
        elif _is_raster(shape):
            drawn.append(_nearest(shape, masks.to_frame, size))
    return drawn


def _bitmap_box(shape: RasterShape, window: np.ndarray) -> tuple[float, float, float, float]:
    """The tight box, source frame, of the pixels that a window (x1, y1, x2, y2) of the source frame covers."""
    x1, y1 = np.floor(window[:2] + _NEARLY).astype(int) - (shape.left, shape.top)
    x2, y2 = np.ceil(window[2:] - _NEARLY).astype(int) - (shape.left, shape.top)
    x1, y1 = max(x1, 0), max(y1, 0)
    part = shape.bitmap[y1 : max(y2, 0), x1 : max(x2, 0)]
    if not part.size:
        return 0.0, 0.0, 0.0, 0.0
    columns, rows = np.flatnonzero(part.max(axis=0)), np.flatnonzero(part.max(axis=1))
    if not len(columns):
        return 0.0, 0.0, 0.0, 0.0
    left, top = shape.left + x1, shape.top + y1
    return left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1


def _polygon_boxes(shapes: list[PolygonShape], to_frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(G, 4) boxes around the ends of the edges, cut at the picture's border, and the picture's corners inside."""
    points, lengths, owner = _rings_of(shapes, to_frame)
    lasts = np.cumsum(lengths) - 1
    following = np.arange(1, len(points) + 1)
    following[lasts] = lasts - lengths + 1
    ring = np.repeat(np.arange(len(lengths)), lengths)
    limit = np.array([size[1], size[0]], dtype=np.float64)
    ends = _clip_edges(points, points[following], limit)  # (V, 2, 2), NaN where outside
    corners = np.array([[0.0, 0.0], [limit[0], 0.0], [0.0, limit[1]], limit])
    holds = _corners_inside(points, points[following], ring, len(lengths), corners)  # (rings, 4)
    candidates = np.concatenate([ends.reshape(-1, 2), np.tile(corners, (len(lengths), 1))])
    shape_of = np.concatenate([np.repeat(owner[ring], 2), np.repeat(owner, 4)])
    some = np.concatenate([~np.isnan(ends[..., 0]).ravel(), holds.ravel()])
    boxes = np.full((len(shapes), 4), np.inf)
    boxes[:, 2:] = -np.inf
    np.minimum.at(boxes[:, :2], shape_of[some], candidates[some])
    np.maximum.at(boxes[:, 2:], shape_of[some], candidates[some])
    boxes[boxes[:, 2] < boxes[:, 0]] = 0
    return boxes


def _clip_edges(a: np.ndarray, b: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """(V, 2, 2) the ends of the part of each edge within (0, 0) to `limit`; NaN where there is none (Liang-Barsky)."""
    step = b - a
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        low, high = (0 - a) / step, (limit - a) / step
    enter, leave = np.minimum(low, high), np.maximum(low, high)
    still, inside = step == 0, (a >= 0) & (a <= limit)
    enter = np.where(still, np.where(inside, 0.0, np.inf), enter).max(axis=1).clip(min=0)
    leave = np.where(still, np.where(inside, 1.0, -np.inf), leave).min(axis=1).clip(max=1)
    ends: np.ndarray = a[:, None] + np.stack([enter, leave], axis=1).clip(0, 1)[..., None] * step[:, None]
    ends[enter > leave] = np.nan
    return ends


def _corners_inside(a: np.ndarray, b: np.ndarray, ring: np.ndarray, rings: int, corners: np.ndarray) -> np.ndarray:
    """(rings, 4) bool, whether each corner is inside each ring: a ray to the right crosses it odd times."""
    y = corners[:, 1]
    spans = (a[:, None, 1] > y) != (b[:, None, 1] > y)
    rise = np.where(a[:, 1] == b[:, 1], 1.0, b[:, 1] - a[:, 1])[:, None]
    x = a[:, None, 0] + (y - a[:, None, 1]) * (b - a)[:, None, 0] / rise
    crossed = spans & (x > corners[:, 0])
    times = np.add.reduceat(crossed, np.searchsorted(ring, np.arange(rings)), axis=0, dtype=np.int64)
    is_odd: np.ndarray = times % 2 == 1
    return is_odd


def _nearest(shape: RasterShape, to_frame: np.ndarray, size: tuple[int, int]) -> RLE:
    rows, columns = shape.bitmap.shape
    window = np.array([[shape.left, shape.top, shape.left + columns, shape.top + rows]], dtype=np.float64)
    box = _move_boxes(to_frame, window)[0].clip(0, (size[1], size[0]) * 2)
    x1, y1, x2, y2 = (int(v) for v in (*np.floor(box[:2]), *np.ceil(box[2:])))
    back = _inverse(to_frame)
    source = [np.zeros(0, dtype=np.int64)] * 2
    for axis, centres in ((0, np.arange(x1, x2) + 0.5), (1, np.arange(y1, y2) + 0.5)):
        towards = int(
            np.argmax(np.abs(back[:, axis]))
        )  # the source axis that this axis of the present frame runs along
        source[towards] = np.floor(back[towards, axis] * centres + back[towards, 2]).astype(np.int64)
    x, y = source[0] - shape.left, source[1] - shape.top
    within = ((y >= 0) & (y < rows))[:, None] & ((x >= 0) & (x < columns))
    part = shape.bitmap[y.clip(0, rows - 1)][:, x.clip(0, columns - 1)] * within
    return encode_window(part.T if _is_turned(to_frame) else part, x1, y1, size)


def _rings_of(shapes: list[PolygonShape], to_frame: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All rings in the present frame: points (V, 2), points per ring (rings,), the shape of each ring (rings,)."""
    rings = [ring for shape in shapes for ring in shape.rings]
    owner = np.repeat(np.arange(len(shapes)), [len(shape.rings) for shape in shapes])
    points = np.concatenate(rings) @ to_frame[:, :2].T + to_frame[:, 2]
    return points, np.array([len(ring) for ring in rings]), owner


def _is_polygon(shape: Shape) -> TypeGuard[PolygonShape]:
    return hasattr(shape, "rings")


def _is_raster(shape: Shape) -> TypeGuard[RasterShape]:
    return hasattr(shape, "bitmap")


def _is_turned(to_frame: np.ndarray) -> bool:
    """Whether rows of the present frame are columns of the source."""
    return bool(abs(to_frame[0, 0]) < abs(to_frame[0, 1]))


def _inverse(affine: np.ndarray) -> np.ndarray:
    """(2, 3), the way back of an axis-aligned affine (2, 3)."""
    linear = np.linalg.inv(affine[:, :2])
    return np.hstack([linear, -linear @ affine[:, 2:]])


def _move_boxes(affine: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Boxes (n, 4) float64 moved by an axis-aligned affine (2, 3); corners are put in order again."""
    corners = boxes.reshape(-1, 2, 2) @ affine[:, :2].T + affine[:, 2]
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)


# --- M x M -> picture -------------------------------------------------------------------------------------------------


def paste_masks(probabilities: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """(D, H, W) bool on the device of `probabilities`; arguments as for `ops.paste.paste_bitmaps`."""
    return torch.from_numpy(paste_bitmaps(probabilities, boxes, size, threshold)).to(probabilities.device)


def mask_iou(probabilities: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """(D, D) float32 IoU of the pasted masks; 0 where one is empty. Only pairs that overlap are looked at."""
    iou = pasted_iou(probabilities, boxes, size, threshold)
    return torch.from_numpy(iou.astype(np.float32)).to(probabilities.device)
