"""The keypoint head's loss: for each visible keypoint, which of the M x M cells is it? (He et al. 2017, 5)

R foreground RoIs    R_i RoIs of image i    J keypoints    M heat map side
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn.losses.reduce import shared_count
from maskrcnn.model.config import require
from maskrcnn.model.keypoint_head import KeypointHeadConfig
from maskrcnn.ops.keypoints import points_to_cells
from maskrcnn.structures import SampledRoIs, Target

NOTHING = -1  # in place of a cell: the keypoint is not labelled, or lies outside its RoI


@dataclass(frozen=True, kw_only=True)
class KeypointLossConfig:
    """What the heat maps are learned from, and what the sum over them is divided by."""

    weight: float = 1.0
    rois_per_image: int | None = None  # learn from at most so many foreground RoIs; None: all, as in the paper
    # visible: by the keypoints that are learned from. possible: by as many as there were if the sample of every picture
    # were full of objects that show all J, so that few keypoints weigh little (an option of Detectron2, with weight 4)
    normalise: Literal["visible", "possible"] = "visible"

    def __post_init__(self) -> None:
        require(self.weight >= 0, self, "weight", "0 or more")
        require(self.rois_per_image is None or self.rois_per_image >= 1, self, "rois_per_image", "at least 1, or none")


def keypoint_cells(rois: SampledRoIs, target: Target, config: KeypointHeadConfig) -> Tensor:
    """(R_i, J) int64: the cell of each keypoint of each RoI's object; `NOTHING` where there is none to learn."""
    cells = torch.full((len(rois.labels), len(config.scheme)), NOTHING, device=rois.boxes.device)
    rows = rois.is_foreground.nonzero().squeeze(1)
    if target.gt_keypoints is None or not len(rows):
        return cells
    points = target.gt_keypoints.points[~target.is_crowd][rois.matched_gt_index[rows]]
    return cells.index_copy_(0, rows, points_to_cells(points, rois.boxes[rows], config.side))


def keypoint_loss(logits: Tensor, cells: Tensor, possible: float, config: KeypointLossConfig) -> dict[str, Tensor]:
    """{"keypoint": scalar}: the log losses over the cells of each map, summed and divided as `config` says.

    logits: (R, J, M, M). cells: (R, J), see `keypoint_cells`; a RoI of nothing weighs nothing. possible: how many
    keypoints this process's pictures could show. Counts are taken over all processes.
    """
    total = F.cross_entropy(logits.flatten(2).flatten(0, 1), cells.flatten(), ignore_index=NOTHING, reduction="sum")
    count = (cells != NOTHING).sum() if config.normalise == "visible" else torch.tensor(possible)
    return {"keypoint": total / shared_count(count, logits.device)}
