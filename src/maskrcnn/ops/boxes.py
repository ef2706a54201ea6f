"""Boxes as tensors: (x1, y1, x2, y2), float pixels, any frame as long as both sides of a call share it.

A and B count boxes; `...` is any number of leading dimensions, none and empty ones included.
"""

from __future__ import annotations

import torch
from torch import Tensor


def area(boxes: Tensor) -> Tensor:
    """Area (...) in square pixels of boxes (..., 4); 0 for a box that is turned inside out."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return (x2 - x1).clamp(min=0) * (y2 - y1).clamp(min=0)


def intersection(a: Tensor, b: Tensor) -> Tensor:
    """Common area (A, B) in square pixels of every box of `a` (A, 4) with every box of `b` (B, 4)."""
    top_left = torch.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    width, height = (bottom_right - top_left).clamp(min=0).unbind(-1)  # each (A, B)
    return width * height


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union (A, B) in 0..1 of `a` (A, 4) and `b` (B, 4); 0, never NaN, between empty boxes."""
    common = intersection(a, b)
    union = area(a)[:, None] + area(b)[None, :] - common
    return common / union.clamp(min=torch.finfo(union.dtype).tiny)


def intersection_over_first(a: Tensor, b: Tensor) -> Tensor:
    """How much of each box of `a` (A, 4) lies in each box of `b` (B, 4): (A, B) in 0..1, 0 for an empty box.

    COCO compares a box with a crowd region this way, since no single box can fill a region of many objects.
    """
    return intersection(a, b) / area(a)[:, None].clamp(min=torch.finfo(a.dtype).tiny)


def clip(boxes: Tensor, height: float | Tensor, width: float | Tensor) -> Tensor:
    """Boxes (..., 4) cut to the picture, 0..width and 0..height.

    `height` and `width` are numbers or tensors that broadcast with (...): (N, 1) for boxes (N, R, 4).
    """
    x1, y1, x2, y2 = boxes.clamp(min=0).unbind(-1)
    return torch.stack([_at_most(x1, width), _at_most(y1, height), _at_most(x2, width), _at_most(y2, height)], dim=-1)


def clip_to(boxes: Tensor, windows: Tensor) -> Tensor:
    """Boxes (..., 4) cut to `windows` (..., 4), which broadcast: (N, 1, 4) for boxes (N, R, 4)."""
    near, far = windows[..., :2].to(boxes.dtype), windows[..., 2:].to(boxes.dtype)
    corners = [torch.minimum(torch.maximum(corner, near), far) for corner in (boxes[..., :2], boxes[..., 2:])]
    return torch.cat(corners, dim=-1)


def of_sizes(sizes: Tensor) -> Tensor:
    """The boxes (N, 4) of whole pictures of `sizes` (N, 2), (height, width)."""
    far = sizes.flip(-1)
    return torch.cat([torch.zeros_like(far), far], dim=-1)


def is_large_enough(boxes: Tensor, min_side: float) -> Tensor:
    """(...) bool: both sides of each box (..., 4) measure at least `min_side` px. False for NaN."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return (x2 - x1 >= min_side) & (y2 - y1 >= min_side)


def scale(boxes: Tensor, sy: float | Tensor, sx: float | Tensor) -> Tensor:
    """Boxes (..., 4) after a resize by `sy` down and `sx` across: numbers, or tensors that broadcast with (...)."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([x1 * sx, y1 * sy, x2 * sx, y2 * sy], dim=-1)


def from_xywh(boxes: Tensor) -> Tensor:
    """COCO's (x, y, width, height) (..., 4) to (x1, y1, x2, y2)."""
    x, y, width, height = boxes.unbind(-1)
    return torch.stack([x, y, x + width, y + height], dim=-1)


def to_xywh(boxes: Tensor) -> Tensor:
    """(x1, y1, x2, y2) (..., 4) to COCO's (x, y, width, height)."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([x1, y1, x2 - x1, y2 - y1], dim=-1)


def _at_most(values: Tensor, limit: float | Tensor) -> Tensor:
    # Tensor.clamp(max=tensor) would take the promoted dtype; a limit never changes the dtype of the boxes.
    return torch.minimum(values, limit.to(values.dtype)) if isinstance(limit, Tensor) else values.clamp(max=limit)
