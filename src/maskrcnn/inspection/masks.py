"""From M x M probabilities to pixels, step by step, for chosen detections; and all masks against ground truth.

K classes    M mask side    D detections    G ground-truth objects
boxes: (x1, y1, x2, y2), float px, original frame; windows of pixels: their corner and (h, w)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from maskrcnn.inspection.probe import Steps
from maskrcnn.ops.boxes import intersection
from maskrcnn.ops.masks import paste_rle, rasterise
from maskrcnn.ops.rle import RLE, decode_window
from maskrcnn.ops.rle import iou as rle_iou
from maskrcnn.structures import GtMasks, Size

LONGEST = 2000  # px, sides of the arrays of an object; of a larger one they are coarser


@dataclass(frozen=True, eq=False)
class MaskSteps:
    """One detection on its way from the mask head into the picture.

    detection: row of `Steps.detections`. label: 1..K. box: (4,) of the detection.
    classes: (K, M, M) probabilities of each class's mask, or (1, M, M) where the head makes one for all.
    chosen: (M, M) that of its own class, the detector's own.
    left, top, scale: the window of the next arrays begins at this px of the original enlarged `scale` times, 1 unless
    the object is larger than 2000 px.
    resized: (h, w) float64 probabilities at the centres of pixels. inside: (h, w) bool, at least the threshold.
    rle: the mask in the whole picture, original frame.
    gt_index: row of the target whose mask overlaps most; None without one. iou: with it. truth: (h, w) bool, its
    pixels.
    """

    detection: int
    label: int
    name: str
    score: float
    box: Tensor
    classes: Tensor
    chosen: Tensor
    left: int
    top: int
    scale: float
    resized: np.ndarray
    inside: np.ndarray
    rle: RLE
    gt_index: int | None = None
    iou: float | None = None
    truth: np.ndarray | None = None


def mask_steps(steps: Steps, rows: list[int]) -> list[MaskSteps]:
    """The way of the masks of these rows of `Steps.detections`; empty without a mask head."""
    masks = steps.detections.masks
    if masks is None or not rows:
        return []
    classes = class_masks(steps, rows)
    rles = masks[rows].rle()
    return [_steps_of(steps, row, some, rle) for row, some, rle in zip(rows, classes, rles, strict=True)]


def class_masks(steps: Steps, rows: list[int]) -> Tensor:
    """(n, K, M, M) probabilities of every class for rows of `Steps.detections`: the mask head asked once more.

    The detector computes only the asked class (`MaskHead.forward`). In a cascade with several heads, their mean.
    """
    found = steps.found.valid[0].nonzero().squeeze(1)[steps.kept][rows]
    boxes = steps.found.boxes[0][found]
    with torch.no_grad():
        pooled = steps.model.pooled_for_masks(steps.features, boxes, torch.zeros_like(found))
        heads = [head.all_classes(pooled.float()).sigmoid() for head in steps.model.mask_heads]
    return torch.stack(heads).mean(dim=0).cpu()


def spread(steps: Steps, count: int, least: float = 0.5) -> list[int]:
    """Rows of `Steps.detections`: `count` of those that score at least `least`, evenly from best to worst.

    Large ones are preferred, since more is to be seen of them: it is the largest of each of `count` equal parts. Where
    none scores as much, of all.
    """
    scores, boxes = steps.detections.scores, steps.detections.boxes
    some = int((scores >= least).sum()) or len(scores)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    parts = torch.arange(some).tensor_split(min(count, some)) if some else []
    return [int(part[areas[part].argmax()]) for part in parts]


def resize_into_box(probabilities: Tensor, box: Tensor, size: Size) -> tuple[np.ndarray, int, int]:
    """(h, w) float64 and its left and top px: a mask (M, M) at the centres of the pixels that its box (4,) reaches.

    Bilinear, zeros around the grid, so that half a cell outside the box is reached (see `ops.masks.paste_masks`).
    size: (height, width) of the picture, beyond which there are no pixels.
    """
    grid = probabilities.double().numpy()
    corners = box.double().tolist()
    x, left = _weights(corners[0], corners[2], grid.shape[1], size[1])
    y, top = _weights(corners[1], corners[3], grid.shape[0], size[0])
    return y @ grid @ x.T, left, top


def _weights(start: float, end: float, side: int, limit: int) -> tuple[np.ndarray, int]:
    """(n, M) how much of each cell each pixel reads along one axis, and the first pixel."""
    if end <= start:
        return np.zeros((0, side)), 0
    reach = (end - start) / side / 2
    first, last = max(0, int(np.floor(start - reach))), min(limit, int(np.ceil(end + reach)))
    place = (np.arange(first, max(first, last)) + 0.5 - start) / (end - start) * side - 0.5
    return np.maximum(0.0, 1.0 - np.abs(place[:, None] - np.arange(side))), first


def _steps_of(steps: Steps, row: int, classes: Tensor, rle: RLE) -> MaskSteps:
    found, masks = steps.detections, steps.detections.masks
    assert masks is not None
    box, chosen = found.boxes[row], masks.probabilities[row]
    longest = float((box[2:] - box[:2]).max())
    scale = min(1.0, LONGEST / max(longest, 1.0))
    height, width = (max(1, round(side * scale)) for side in found.size)
    resized, left, top = resize_into_box(chosen, box * scale, (height, width))
    index, overlap = _best_truth(steps, box, rle)
    truth = None
    if index is not None and steps.target is not None and steps.target.gt_masks is not None:
        truth = _window_of(scaled(steps.target.gt_masks[[index]], scale), (height, width), left, top, resized.shape)
    return MaskSteps(
        detection=row,
        label=int(found.labels[row]),
        name=found.names[row],
        score=float(found.scores[row]),
        box=box,
        classes=classes,
        chosen=chosen,
        left=left,
        top=top,
        scale=scale,
        resized=resized,
        inside=resized >= masks.threshold,
        rle=rle,
        gt_index=index,
        iou=overlap,
        truth=truth,
    )


def _best_truth(steps: Steps, box: Tensor, rle: RLE) -> tuple[int | None, float | None]:
    """The object whose mask overlaps most, and the IoU of the whole masks; crowd regions are none."""
    target = steps.target
    if target is None or target.gt_masks is None:
        return None, None
    near = (intersection(target.gt_boxes.cpu(), box[None])[:, 0] > 0) & ~target.is_crowd.cpu()
    rows = near.nonzero().squeeze(1).tolist()
    if not rows:
        return None, 0.0
    overlaps = rle_iou([rle], rasterise(target.gt_masks[rows], target.size), [False] * len(rows))[0]
    best = int(overlaps.argmax())
    return (rows[best], float(overlaps[best])) if overlaps[best] > 0 else (None, 0.0)


def scaled(masks: GtMasks, factor: float) -> GtMasks:
    """The same shapes in a picture `factor` times as large."""
    return masks if factor == 1 else masks.moved(np.diag([factor, factor, 1.0])[:2])


def _window_of(masks: GtMasks, size: Size, left: int, top: int, shape: tuple[int, ...]) -> np.ndarray:
    """(h, w) bool: the pixels of the one object that lie in a window."""
    bitmap, x, y = decode_window(rasterise(masks, size)[0])
    window = np.zeros(shape, dtype=bool)
    paste_window(window, bitmap > 0, x - left, y - top)
    return window


def paste_window(canvas: np.ndarray, bitmap: np.ndarray, left: int, top: int, value: int | bool = True) -> None:
    """Set `value` in (H, W) where a bitmap (h, w) bool, whose corner lies at (left, top), is true. It may stick out."""
    y1, x1 = max(0, top), max(0, left)
    y2, x2 = min(canvas.shape[0], top + bitmap.shape[0]), min(canvas.shape[1], left + bitmap.shape[1])
    if y1 < y2 and x1 < x2:
        canvas[y1:y2, x1:x2][bitmap[y1 - top : y2 - top, x1 - left : x2 - left]] = value


def painted(rles: list[RLE], values: list[int], size: Size) -> np.ndarray:
    """(H, W) int32: the value of the first mask, which is the best, that covers a pixel; 0 where none does."""
    canvas = np.zeros(size, dtype=np.int32)
    for rle, value in zip(rles[::-1], values[::-1], strict=True):
        bitmap, left, top = decode_window(rle)
        paste_window(canvas, bitmap > 0, left, top, value)
    return canvas


@dataclass(frozen=True, eq=False)
class Agreement:
    """Pixels of the picture, seen at `scale`: found: (H, W) bool, of any detection. truth: of any object, or None.

    Pixels of crowd regions are truth as well. pixels: how many are found rightly, found wrongly, and missed.
    """

    found: np.ndarray
    truth: np.ndarray | None
    scale: float

    @property
    def pixels(self) -> tuple[int, int, int] | None:
        if self.truth is None:
            return None
        both = int((self.found & self.truth).sum())
        return both, int(self.found.sum()) - both, int(self.truth.sum()) - both


def agreement(steps: Steps, scale: float, least: float = 0.5) -> Agreement | None:
    """All masks of detections that score at least `least`, against all of the ground truth; None without masks."""
    masks = steps.detections.masks
    if masks is None:
        return None
    size = max(1, round(steps.size[0] * scale)), max(1, round(steps.size[1] * scale))
    some = masks[steps.detections.scores >= least]
    rles = paste_rle(some.probabilities, some.boxes * scale, size, some.threshold)
    truth = None
    if steps.target is not None and steps.target.gt_masks is not None:
        objects = rasterise(scaled(steps.target.gt_masks, scale), size)
        truth = painted(objects, [1] * len(objects), size) > 0
    return Agreement(painted(rles, [1] * len(rles), size) > 0, truth, scale)
