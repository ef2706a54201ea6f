"""Loss of the region proposal network (Ren et al. 2015, 3.1.2, Eq. 1).

    L({p_i}, {t_i}) = 1/N_cls * sum_i L_cls(p_i, p_i*) + lambda * 1/N_reg * sum_i p_i* L_reg(t_i, t_i*)

The paper takes N_cls = 256 (sampled anchors), N_reg about 2400 (anchor locations) and lambda = 10. So the second
term is divided by 2400 / 10 = 240, nearly the 256 of the first: lambda is there to make the two terms weigh about
the same. Here both are divided by the number of sampled anchors and lambda is `box_weight` = 1, as in all code
that followed the paper; lambda = 10 with the paper's N_reg is a `box_weight` of 256 / 240 = 1.07.

    N images    A anchors of an image
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn.losses.matcher import match
from maskrcnn.losses.reduce import shared_count
from maskrcnn.losses.sampler import Sampler, sample
from maskrcnn.model.config import require
from maskrcnn.model.rpn import RPNOutputs
from maskrcnn.ops.box_coder import BoxCoder
from maskrcnn.structures import Target


@dataclass(frozen=True, kw_only=True)
class RPNLossConfig:
    """Values of Ren et al. 2015, 3.1, unless noted."""

    anchors_per_image: int = 256
    foreground_fraction: float = 0.5  # 1:1, filled up with background where objects are few
    foreground_iou: float = 0.7
    background_iou: float = 0.3
    objectness_weight: float = 1.0
    box_weight: float = 1.0  # lambda, see above
    beta: float = 1 / 9  # where smooth L1 turns from square to linear; 1 / 9 in torchvision, 0 (plain L1) in Detectron2

    def __post_init__(self) -> None:
        require(self.anchors_per_image >= 1, self, "anchors_per_image", "at least 1")
        require(0 <= self.foreground_fraction <= 1, self, "foreground_fraction", "0 to 1")
        require(self.background_iou <= self.foreground_iou, self, "background_iou", "at most foreground_iou")
        for name in ("objectness_weight", "box_weight", "beta"):
            require(getattr(self, name) >= 0, self, name, "0 or more")


def rpn_loss(
    outputs: RPNOutputs,
    targets: Sequence[Target],
    generators: Sequence[torch.Generator],
    config: RPNLossConfig,
    sampler: Sampler = sample,
    coder: BoxCoder = BoxCoder(),  # noqa: B008 (frozen)
) -> dict[str, Tensor]:
    """{"rpn_objectness": log loss, "rpn_box": smooth L1}, each a scalar, not yet weighted."""
    anchors, logits, deltas = torch.cat(outputs.anchors), torch.cat(outputs.logits, 1), torch.cat(outputs.deltas, 1)
    objectness_loss, box_loss, count = logits.sum() * 0, deltas.sum() * 0, 0
    for i, (target, generator) in enumerate(zip(targets, generators, strict=True)):
        gt_boxes, crowd_boxes = target.gt_boxes[~target.is_crowd], target.gt_boxes[target.is_crowd]
        matches = match(
            anchors,
            gt_boxes,
            foreground_iou=config.foreground_iou,
            background_iou=config.background_iou,
            keep_best=True,
            crowd_boxes=crowd_boxes,
        )
        foreground, background = sampler(matches.kind, config.anchors_per_image, config.foreground_fraction, generator)
        chosen = torch.cat([foreground, background])
        is_object = torch.zeros_like(logits[i, chosen])
        is_object[: len(foreground)] = 1
        objectness_loss = objectness_loss + F.binary_cross_entropy_with_logits(
            logits[i, chosen], is_object, reduction="sum"
        )
        if len(foreground):
            wanted = coder.encode(anchors[foreground], gt_boxes[matches.matched_gt_index[foreground]])
            box_loss = box_loss + F.smooth_l1_loss(deltas[i, foreground], wanted, beta=config.beta, reduction="sum")
        count += len(chosen)
    divisor = shared_count(count, logits.device)
    return {"rpn_objectness": objectness_loss / divisor, "rpn_box": box_loss / divisor}
