"""Proposals of one picture: what came through each gate of the RPN, how far anchors moved, which objects are covered.

B candidates that went into NMS    R proposals    G ground-truth objects, crowd regions left out
boxes: (x1, y1, x2, y2), float px, original frame
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maskrcnn.inspection.probe import Steps
from maskrcnn.ops.boxes import iou

ASKED = (10, 50, 100, 200, 300, 1000, 2000)  # proposals, at which recall is taken
_PAIRS = 1 << 24  # IoUs held at a time: 64 MB


@dataclass(frozen=True)
class Gate:
    """How many boxes are left. per_level: the same of each level, in the order of `Steps.level_names`."""

    name: str
    count: int
    per_level: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Refinement:
    """Boxes before and after they were moved by deltas, both (n, 4). scores: (n,) 0..1, best first."""

    before: Tensor
    after: Tensor
    scores: Tensor


@dataclass(frozen=True, eq=False)
class Recall:
    """The share of G objects that one of the first N proposals overlaps by an IoU of 0.5, and of 0.75, or more.

    counts: the N. at_50, at_75: None where this call keeps fewer than N, and where there is no object.
    limit: proposals that this call keeps at most. best: (G,) IoU of the best of all proposals. objects: (G,) int64 rows
    of the target. needed: (G,) int64 how many proposals it takes until one overlaps it by 0.5; 0 where none does.
    """

    counts: tuple[int, ...]
    at_50: tuple[float | None, ...]
    at_75: tuple[float | None, ...]
    limit: int
    objects: Tensor
    best: Tensor
    needed: Tensor


def gates(steps: Steps) -> tuple[Gate, ...]:
    """Anchors, into NMS, large enough (and likely enough, where a threshold is set), kept by NMS, proposals."""
    candidates, levels = steps.proposal_candidates, len(steps.level_names)
    level = steps.anchor_levels[candidates.anchor_index[0]].cpu()
    chosen = candidates.chosen[0][candidates.filled[0]].cpu()
    left = (
        ("anchors", steps.anchor_levels.cpu()),
        ("into NMS", level[candidates.logits[0].isfinite().cpu()]),
        ("large enough", level[candidates.valid[0].cpu()]),
        ("kept by NMS", level[candidates.kept[0].cpu()]),
        ("proposals", level[chosen]),
    )
    return tuple(Gate(name, len(some), tuple(some.bincount(minlength=levels).tolist())) for name, some in left)


def refined_anchors(steps: Steps, count: int = 40) -> Refinement:
    """The anchors of the best `count` proposals, and what they became before they were cut to the picture."""
    candidates = steps.proposal_candidates
    chosen = candidates.chosen[0][candidates.filled[0]][:count]
    anchors = steps.anchors[candidates.anchor_index[0][chosen]]
    return Refinement(
        steps.in_original(anchors).cpu(),
        steps.in_original(candidates.refined[0][chosen]).cpu(),
        candidates.logits[0][chosen].float().sigmoid().cpu(),
    )


def recall(steps: Steps, counts: tuple[int, ...] = ASKED) -> Recall | None:
    """Objects that the proposals cover; None without ground truth."""
    if steps.target is None:
        return None
    objects = (~steps.target.is_crowd.cpu()).nonzero().squeeze(1)
    truth = steps.target.gt_boxes.cpu()[objects]
    boxes = steps.in_original(steps.proposals.boxes[0][steps.proposals.valid[0]]).cpu()
    best = torch.zeros(len(objects))
    first = {0.5: torch.zeros(len(objects), dtype=torch.int64), 0.75: torch.zeros(len(objects), dtype=torch.int64)}
    for rows in torch.split(torch.arange(len(objects)), max(1, _PAIRS // max(1, len(boxes)))):
        if not len(boxes):
            break
        overlap = iou(truth[rows], boxes)
        best[rows] = overlap.amax(dim=1)
        for threshold, needed in first.items():
            reaches = overlap >= threshold
            needed[rows] = torch.where(reaches.any(dim=1), reaches.int().argmax(dim=1) + 1, 0)
    limit = steps.config.own_rpn.post_nms_top_n
    shares = {
        threshold: tuple(_share(needed, n) if n <= limit else None for n in counts)
        for threshold, needed in first.items()
    }
    return Recall(counts, shares[0.5], shares[0.75], limit, objects, best, first[0.5])


def _share(needed: Tensor, count: int) -> float | None:
    """Of the objects those that `count` proposals are enough for."""
    return float(((needed > 0) & (needed <= count)).float().mean()) if len(needed) else None
