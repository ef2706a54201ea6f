"""What a box of a training picture teaches in R-CNN: the CNN, the SVMs and the box regression each ask differently.

    G objects    P proposals    R = G + P regions    K classes    boxes: (x1, y1, x2, y2), float pixels of the picture

Girshick et al. 2014, 2.3 and appendices B and C. The CNN needs many examples and takes all boxes near an object; the
SVMs are asked for the right place and take nothing but the objects themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maskrcnn.losses.matcher import CROWD_OVERLAP, FOREGROUND, match
from maskrcnn.ops.boxes import intersection_over_first, iou

TUNING_IOU = 0.5  # from here on a region is its object's class when the CNN is fine-tuned, below it background
NEGATIVE_IOU = 0.3  # below it, with all objects of a class, a region is a negative of that class's SVM
REGRESSION_IOU = 0.6  # above it a proposal learns the way to its object


@dataclass(frozen=True)
class Regions:
    """The boxes of one training picture, its objects first.

    boxes: (R, 4) float32, the G objects, then the proposals. gt_labels: (G,) int64 in 1..K.
    crowd_boxes: (C, 4) regions in which nobody counted the objects; they are none of the G.
    """

    boxes: Tensor
    gt_labels: Tensor
    crowd_boxes: Tensor

    def __len__(self) -> int:
        return self.boxes.shape[0]

    @property
    def gt_boxes(self) -> Tensor:
        return self.boxes[: len(self.gt_labels)]


def regions_of(gt_boxes: Tensor, gt_labels: Tensor, is_crowd: Tensor, proposals: Tensor) -> Regions:
    """Ground truth joins the proposals. gt_boxes: (n, 4), gt_labels and is_crowd: (n,), proposals: (P, 4)."""
    boxes = torch.cat([gt_boxes[~is_crowd], proposals.to(gt_boxes)])
    return Regions(boxes, gt_labels[~is_crowd], gt_boxes[is_crowd])


def tuning_labels(regions: Regions) -> Tensor:
    """(R,) int64 for the softmax: the class of the object that a region fits best, 0 background, `IGNORE` neither."""
    crowd = regions.crowd_boxes
    found = match(
        regions.boxes, regions.gt_boxes, foreground_iou=TUNING_IOU, background_iou=TUNING_IOU, crowd_boxes=crowd
    )
    if len(regions.gt_labels) == 0:
        return found.kind.long()
    return torch.where(found.kind == FOREGROUND, regions.gt_labels[found.matched_gt_index], found.kind.long())


def svm_examples(regions: Regions, num_classes: int) -> tuple[Tensor, Tensor]:
    """(R, K) bool each: is a positive of this class's SVM; is a negative of it. The rest is neither."""
    num_objects, count = len(regions.gt_labels), len(regions)
    is_positive = torch.zeros(count, num_classes, dtype=torch.bool)
    is_positive[torch.arange(num_objects), regions.gt_labels - 1] = True
    overlap = iou(regions.boxes, regions.gt_boxes)  # (R, G)
    is_negative = torch.stack(
        [(overlap[:, regions.gt_labels == label] < NEGATIVE_IOU).all(dim=1) for label in range(1, num_classes + 1)],
        dim=1,
    )
    if len(regions.crowd_boxes):
        in_crowd = intersection_over_first(regions.boxes, regions.crowd_boxes).amax(dim=1) >= CROWD_OVERLAP
        is_negative &= ~in_crowd[:, None]
    return is_positive, is_negative


def regression_pairs(regions: Regions) -> tuple[Tensor, Tensor]:
    """Rows (M,) of proposals that are near enough to an object, and the positions (M,) of the nearest, 0..G-1."""
    num_objects = len(regions.gt_labels)
    if num_objects == 0:
        none = torch.zeros(0, dtype=torch.int64)
        return none, none
    best, nearest = iou(regions.boxes, regions.gt_boxes).max(dim=1)
    best[:num_objects] = 0  # an object is no proposal: it has nowhere to go
    rows = (best > REGRESSION_IOU).nonzero().squeeze(1)
    return rows, nearest[rows]
