"""The mask head's loss: mean binary cross-entropy of the true class's mask (He et al. 2017, 3), or a multinomial one.

R foreground RoIs    M mask side    K classes
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from maskrcnn.losses.reduce import shared_count
from maskrcnn.model.config import require


@dataclass(frozen=True, kw_only=True)
class MaskLossConfig:
    """How a ground-truth mask becomes the M x M target of a RoI."""

    weight: float = 1.0
    rois_per_image: int | None = None  # learn masks from at most so many foreground RoIs; None: all, as in the paper
    binary_target: bool = True  # a cell is 1 where at least half covered; False: its covered part, as in torchvision
    aligned_target: bool = True  # see RoIPoolerConfig.aligned; torchvision: False

    def __post_init__(self) -> None:
        require(self.weight >= 0, self, "weight", "0 or more")
        require(self.rois_per_image is None or self.rois_per_image >= 1, self, "rois_per_image", "at least 1, or none")


def mask_loss(logits: Tensor, gt_masks: Tensor, is_foreground: Tensor) -> dict[str, Tensor]:
    """{"mask": scalar}: the sum over the pixels of the foreground RoIs over their number.

    logits: (R, M, M) of each RoI's true class; other classes have no part in it. gt_masks: (R, M, M) in 0..1.
    is_foreground: (R,) bool; a RoI without it weighs nothing (it may stand in where a batch has no object at all).
    """
    per_roi = F.binary_cross_entropy_with_logits(logits, gt_masks, reduction="none").mean(dim=(1, 2))
    divisor = shared_count(is_foreground.sum(), logits.device)
    return {"mask": (per_roi * is_foreground).sum() / divisor}


def competing_mask_loss(planes: Tensor, gt_masks: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """{"mask": scalar}: as `mask_loss`, of classes that compete for each pixel (He et al. 2017, Table 2b, "softmax").

    Multinomial cross-entropy: a pixel of the object belongs to its class, any other to the background; of a soft target
    each gets its part. planes: (R, K + 1, M, M), background first. gt_masks: (R, M, M) in 0..1. labels: (R,) int64; a
    RoI of label 0 weighs nothing.
    """
    log_p = planes.log_softmax(dim=1)
    index = labels[:, None, None, None].expand(-1, 1, *planes.shape[2:])
    own, background = log_p.gather(1, index).squeeze(1), log_p[:, 0]
    per_roi = -(gt_masks * own + (1 - gt_masks) * background).mean(dim=(1, 2))
    is_foreground = labels > 0
    divisor = shared_count(is_foreground.sum(), planes.device)
    return {"mask": (per_roi * is_foreground).sum() / divisor}
