"""Which RoIs the heads learn from, and the box head's loss (Girshick 2015, 2.3; He et al. 2017, 3.1).

R_i RoIs of image i    G objects    K classes
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn.losses.matcher import FOREGROUND, IGNORE, match
from maskrcnn.losses.reduce import shared_count
from maskrcnn.losses.sampler import Sampler, sample
from maskrcnn.model.box_head import BoxOutputs
from maskrcnn.model.config import require
from maskrcnn.ops.box_coder import MIN_SIDE, BoxCoder
from maskrcnn.ops.boxes import is_large_enough
from maskrcnn.structures import SampledRoIs, Target


@dataclass(frozen=True, kw_only=True)
class BoxLossConfig:
    """Values of Lin et al. 2017 and He et al. 2017, 3.1, unless noted."""

    rois_per_image: int = 512
    foreground_fraction: float = 0.25  # 1:3
    foreground_iou: float = 0.5
    class_weight: float = 1.0
    box_weight: float = 1.0
    beta: float = 1 / 9  # smooth L1's corner; Girshick 2015 has 1, torchvision 1 / 9, Detectron2 0

    def __post_init__(self) -> None:
        require(self.rois_per_image >= 1, self, "rois_per_image", "at least 1")
        require(0 <= self.foreground_fraction <= 1, self, "foreground_fraction", "0 to 1")
        require(0 <= self.foreground_iou <= 1, self, "foreground_iou", "0 to 1")
        for name in ("class_weight", "box_weight", "beta"):
            require(getattr(self, name) >= 0, self, name, "0 or more")


def sample_rois(
    proposals: Tensor, target: Target, generator: torch.Generator, config: BoxLossConfig, sampler: Sampler = sample
) -> SampledRoIs:
    """Match the proposals (R, 4) of one image with its objects and choose what the heads learn from.

    The objects' own boxes join the proposals, so that the heads have something to learn from while the RPN still
    proposes nonsense.
    """
    keep = ~target.is_crowd
    gt_boxes, gt_labels = target.gt_boxes[keep], target.gt_labels[keep]
    candidates = torch.cat([proposals.detach(), gt_boxes])
    matches = match(
        candidates,
        gt_boxes,
        foreground_iou=config.foreground_iou,
        background_iou=config.foreground_iou,
        crowd_boxes=target.gt_boxes[~keep],
    )
    foreground, background = sampler(matches.kind, config.rois_per_image, config.foreground_fraction, generator)
    chosen = torch.cat([foreground, background])
    index = matches.matched_gt_index[chosen]
    labels = gt_labels[index] if len(gt_labels) else torch.zeros_like(index)
    labels[len(foreground) :] = 0
    return SampledRoIs(boxes=candidates[chosen], labels=labels, matched_gt_index=index.masked_fill(labels == 0, 0))


def rematch(boxes: Tensor, target: Target, foreground_iou: float) -> SampledRoIs:
    """The RoIs of a later stage of a cascade: all of `boxes` (R, 4), matched again under a stricter limit.

    Nothing is sampled: the stage before has raised their quality, so that a stricter limit still finds objects
    (Cai and Vasconcelos 2018, 3.3). Boxes within a crowd region, or refined to nothing, are left out.
    """
    keep = ~target.is_crowd
    gt_boxes, gt_labels = target.gt_boxes[keep], target.gt_labels[keep]
    crowd_boxes = target.gt_boxes[~keep]
    matches = match(
        boxes, gt_boxes, foreground_iou=foreground_iou, background_iou=foreground_iou, crowd_boxes=crowd_boxes
    )
    is_foreground = matches.kind == FOREGROUND
    usable = (matches.kind != IGNORE) & is_large_enough(boxes, MIN_SIDE)
    rows = (usable & is_foreground).nonzero().squeeze(1), (usable & ~is_foreground).nonzero().squeeze(1)
    index = matches.matched_gt_index[torch.cat(rows)]
    labels = gt_labels[index] if len(gt_labels) else torch.zeros_like(index)
    labels[len(rows[0]) :] = 0
    return SampledRoIs(boxes[torch.cat(rows)], labels, index.masked_fill(labels == 0, 0))


def box_loss(
    outputs: BoxOutputs, boxes: Tensor, labels: Tensor, matched_gt_boxes: Tensor, coder: BoxCoder, config: BoxLossConfig
) -> dict[str, Tensor]:
    """{"box_class": log loss over K + 1, "box_delta": smooth L1 of the true class's box}, each a scalar.

    boxes: (R, 4) RoIs of all images. labels: (R,). matched_gt_boxes: (R, 4), read only where labels > 0. Both sums are
    divided by the number of RoIs, background included (Girshick 2015, Eq. 1, with lambda = 1).
    """
    divisor = shared_count(len(labels), labels.device)
    class_loss = F.cross_entropy(outputs.class_logits, labels, reduction="sum")
    rows = (labels > 0).nonzero().squeeze(1)
    column = (labels[rows] - 1) if outputs.deltas.shape[1] > 1 else torch.zeros_like(rows)
    wanted = coder.encode(boxes[rows], matched_gt_boxes[rows])
    delta_loss = F.smooth_l1_loss(outputs.deltas[rows, column], wanted, beta=config.beta, reduction="sum")
    return {"box_class": class_loss / divisor, "box_delta": delta_loss / divisor}
