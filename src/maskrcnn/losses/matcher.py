"""Which object does a box stand for? (Ren et al. 2015, 3.1.2)

B boxes (anchors or proposals)    G ground-truth objects
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maskrcnn.ops.boxes import intersection_over_first, iou

BACKGROUND = 0
FOREGROUND = 1
IGNORE = -1
CROWD_OVERLAP = 0.7  # share of a box in a crowd region, from which on it is no background


@dataclass(frozen=True)
class Matches:
    """kind: (B,) int8, FOREGROUND, BACKGROUND or IGNORE. matched_gt_index: (B,) int64, best object; 0 without any."""

    kind: Tensor
    matched_gt_index: Tensor


def match(
    boxes: Tensor,
    gt_boxes: Tensor,
    *,
    foreground_iou: float,
    background_iou: float,
    keep_best: bool = False,
    crowd_boxes: Tensor | None = None,
    crowd_overlap: float = CROWD_OVERLAP,
) -> Matches:
    """Foreground at `foreground_iou` or above, background below `background_iou`, nothing between.

    boxes: (B, 4). gt_boxes: (G, 4), crowd regions left out. keep_best: the boxes that fit an object best are its
    foreground however low their IoU, so that no object is without an anchor (Ren et al. 2015, 3.1.2, (i)).
    crowd_boxes: (C, 4) regions where nobody counted the objects; background of which at least `crowd_overlap` lies
    inside one is ignored, since an object may well be there.
    """
    if gt_boxes.shape[0] == 0:
        kind = torch.full(boxes.shape[:1], BACKGROUND, dtype=torch.int8, device=boxes.device)
        index = torch.zeros(boxes.shape[:1], dtype=torch.int64, device=boxes.device)
        return Matches(_without_crowd(kind, boxes, crowd_boxes, crowd_overlap), index)
    overlap = iou(gt_boxes, boxes)  # (G, B)
    best, index = overlap.max(dim=0)
    kind = torch.full_like(index, IGNORE, dtype=torch.int8)
    kind[best < background_iou] = BACKGROUND
    kind[best >= foreground_iou] = FOREGROUND
    if keep_best:
        best_of_object = overlap.amax(dim=1, keepdim=True) if overlap.shape[1] else overlap.new_zeros(len(overlap), 1)
        # an object beyond every box has IoU 0 with all of them: that is no match
        kind[((overlap == best_of_object) & (best_of_object > 0)).any(dim=0)] = FOREGROUND
    return Matches(_without_crowd(kind, boxes, crowd_boxes, crowd_overlap), index)


def _without_crowd(kind: Tensor, boxes: Tensor, crowd_boxes: Tensor | None, overlap: float) -> Tensor:
    if crowd_boxes is None or crowd_boxes.shape[0] == 0:
        return kind
    inside = intersection_over_first(boxes, crowd_boxes).amax(dim=1) >= overlap
    return torch.where(inside & (kind == BACKGROUND), torch.full_like(kind, IGNORE), kind)
