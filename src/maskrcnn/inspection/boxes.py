"""What the box head said of the RoIs, how it moved them, and what became of every class of every RoI.

R RoIs    K classes    C = R * K candidates, K in a row for each RoI    D detections
boxes: (x1, y1, x2, y2), float px, original frame
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from maskrcnn.inspection.probe import Steps
from maskrcnn.inspection.proposals import Refinement
from maskrcnn.ops.boxes import iou, is_large_enough

_PAIRS = 1 << 24  # IoUs held at a time: 64 MB


class Fall(IntEnum):
    """Why a candidate is no detection, in the order in which it is asked."""

    NO_ROI = 0  # a row of padding: there was no proposal
    THRESHOLD = 1  # its score is not above the threshold
    SIZE = 2  # a side is too short
    OTHER_CLASS = 3  # another class of the RoI, or background, scores higher, where only the best may be
    SUPPRESSED = 4  # a better candidate overlaps it: non-maximum suppression
    LIMIT = 5  # more were found than are kept
    ROUNDED = 6  # rounded to pixels it has no area
    MASK = 7  # a better detection's mask overlaps its own
    DETECTION = 8  # none of these: it is found


@dataclass(frozen=True, eq=False)
class ClassScores:
    """n RoIs and what the head thinks is in them, the surest of an object first.

    rows: (n,) int64 of `Steps.rois`. boxes: (n, 4). probabilities: (n, K + 1), column 0 is background.
    names: K + 1.
    """

    rows: Tensor
    boxes: Tensor
    probabilities: Tensor
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Candidates:
    """What became of each candidate.

    boxes: (C, 4) refined and cut to the picture. scores, labels: (C,). fall: (C,) int8, values of `Fall`.
    suppressor: (C,) int64, the candidate that suppressed it, -1 for all that did not fall to NMS. overlap: (C,) its IoU
    with that one.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    fall: Tensor
    suppressor: Tensor
    overlap: Tensor

    @property
    def counts(self) -> dict[Fall, int]:
        """How many fell to each; their sum is C."""
        return dict(zip(Fall, self.fall.to(torch.int64).bincount(minlength=len(Fall)).tolist(), strict=True))

    def best_of(self, fall: Fall, count: int) -> Tensor:
        """(n,) int64 rows of the `count` best-scored that fell to it, best first."""
        rows = (self.fall == fall).nonzero().squeeze(1)
        return rows[self.scores[rows].argsort(descending=True, stable=True)[:count]]


def class_scores(steps: Steps, count: int = 8) -> ClassScores:
    """RoIs that became detections, evenly from the surest to the least sure; of too few also the best others."""
    probabilities = steps.box_outputs.class_logits.softmax(dim=1).cpu()
    best = probabilities[:, 1:].amax(dim=1).masked_fill(~steps.rois.valid[0].cpu(), -1.0)
    candidates = steps.detection_candidates
    found = candidates.chosen[0][candidates.filled[0]].cpu() // steps.config.num_classes
    found = torch.tensor(sorted(set(found.tolist())), dtype=torch.int64)
    found = found[best[found].argsort(descending=True, stable=True)]
    if len(found) > count:
        rows = found[torch.linspace(0, len(found) - 1, count).round().to(torch.int64)]
    else:
        others = best.index_fill(0, found, -1.0).argsort(descending=True, stable=True)
        others = others[: max(0, min(count, int(steps.rois.valid.sum())) - len(found))]
        rows = torch.cat([found, others])
    boxes = steps.in_original(steps.rois.boxes[0][rows.to(steps.rois.boxes.device)]).cpu()
    return ClassScores(rows, boxes, probabilities[rows], ("background", *steps.config.class_names))


def refined_rois(steps: Steps, count: int = 40) -> Refinement:
    """The RoIs of the best `count` detections, and what the box head made of them."""
    candidates = steps.detection_candidates
    chosen = candidates.chosen[0][candidates.filled[0]][:count]
    return Refinement(
        steps.in_original(steps.rois.boxes[0][chosen // steps.config.num_classes]).cpu(),
        steps.in_original(candidates.boxes[0][chosen]).cpu(),
        candidates.scores[0][chosen].cpu(),
    )


def candidate_fates(steps: Steps) -> Candidates:
    """Every class of every RoI, and why it is no detection."""
    candidates, config, k = steps.detection_candidates, steps.config.detection, steps.config.num_classes
    scores, labels, raw = candidates.scores[0].cpu(), candidates.labels[0].cpu(), candidates.boxes[0].cpu()
    valid, kept = candidates.valid[0].cpu(), candidates.kept[0].cpu()
    chosen = candidates.chosen[0][candidates.filled[0]].cpu()
    has_roi = steps.rois.valid[0].cpu().repeat_interleave(k)
    fall = torch.full(scores.shape, Fall.SUPPRESSED, dtype=torch.int8)
    fall[kept] = Fall.LIMIT
    fall[~valid] = Fall.OTHER_CLASS
    fall[~is_large_enough(raw, config.min_size)] = Fall.SIZE
    fall[~(scores > config.score_threshold)] = Fall.THRESHOLD
    fall[~has_roi] = Fall.NO_ROI
    stays = steps.kept.cpu()
    empty = ~is_large_enough(steps.placed.boxes.cpu(), 1.0 if config.whole_pixels else 1e-30)
    fall[chosen] = Fall.DETECTION
    fall[chosen[~stays & empty]] = Fall.ROUNDED
    fall[chosen[~stays & ~empty]] = Fall.MASK
    groups = torch.zeros_like(labels) if config.class_agnostic_nms else labels
    suppressor, overlap = _suppressors(raw, scores, groups, fall == Fall.SUPPRESSED, kept, config.nms_iou)
    return Candidates(steps.in_original(raw.to(steps.window)).cpu(), scores, labels, fall, suppressor, overlap)


def _suppressors(
    boxes: Tensor, scores: Tensor, groups: Tensor, fallen: Tensor, kept: Tensor, limit: float
) -> tuple[Tensor, Tensor]:
    """For each fallen candidate the best kept one of its group that overlaps it by more than `limit`, and by how much.

    That is the one that greedy NMS meets first. The kernel of NMS may round an IoU otherwise than `iou` does: where
    none is above the limit here, it is the one that overlaps most.
    """
    by, amount = torch.full(scores.shape, -1, dtype=torch.int64), torch.zeros(scores.shape)
    for group in sorted(set(groups[fallen].tolist())):
        rows = (fallen & (groups == group)).nonzero().squeeze(1)
        rivals = (kept & (groups == group)).nonzero().squeeze(1)
        rivals = rivals[scores[rivals].argsort(descending=True, stable=True)]
        for some in torch.split(rows, max(1, _PAIRS // max(1, len(rivals)))):
            overlap = iou(boxes[some], boxes[rivals])
            better = (scores[rivals] > scores[some, None]) | (
                (scores[rivals] == scores[some, None]) & (rivals < some[:, None])
            )
            overlap = overlap.masked_fill(~better, -1.0)
            above = overlap > limit
            at = torch.where(above.any(dim=1), above.int().argmax(dim=1), overlap.argmax(dim=1))
            by[some], amount[some] = rivals[at], overlap.gather(1, at[:, None])[:, 0]
    return by, amount
