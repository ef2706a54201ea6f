"""The stages of one picture as arrays on the CPU, and the way back from each row of one stage to the stage before.

G objects    B proposal candidates    R proposals    K classes, labels 1..K    D detections
boxes: (x1, y1, x2, y2), float64 px, padded frame, corners on edges
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from maskrcnn.inspection.anchor_search import AnchorSearch, iou_with, on_cpu_edges
from maskrcnn.inspection.fate import Evidence
from maskrcnn.inspection.matched import Matched, truth_of
from maskrcnn.inspection.probe import Steps


@dataclass(frozen=True, eq=False)
class Lines:
    """The stages of one picture as arrays, and the way back from each to the one before."""

    steps: Steps
    found: Matched

    @property
    def iou(self) -> float:
        return self.found.iou_threshold

    # --- ground truth ---

    @cached_property
    def labels(self) -> list[int]:
        """(G,)"""
        labels: list[int] = truth_of(self.steps).gt_labels.tolist()
        return labels

    @cached_property
    def gt(self) -> np.ndarray:
        """(G, 4)"""
        gt_boxes = truth_of(self.steps).gt_boxes.to(self.steps.window.device)
        return on_cpu_edges(self.steps, self.steps.in_padded(gt_boxes))

    @cached_property
    def objects(self) -> np.ndarray:
        """Rows of the target that are no crowd region."""
        return np.flatnonzero(~array(truth_of(self.steps).is_crowd))

    @cached_property
    def search(self) -> AnchorSearch:
        return AnchorSearch.of(self.steps)

    # --- proposals ---

    @cached_property
    def anchor_of(self) -> np.ndarray:
        """(B,) the anchor of each candidate."""
        return array(self.steps.proposal_candidates.anchor_index[0])

    @cached_property
    def candidate_boxes(self) -> np.ndarray:
        return on_cpu_edges(self.steps, self.steps.proposal_candidates.boxes[0])

    @cached_property
    def candidate_logits(self) -> np.ndarray:
        return array(self.steps.proposal_candidates.logits[0])

    @cached_property
    def candidate_group(self) -> np.ndarray:
        """(B,) candidates that meet in NMS: those of a level, or all."""
        levels = array(self.steps.anchor_levels)[self.anchor_of]
        return np.zeros_like(levels) if self.steps.config.own_rpn.levels_together else levels

    @cached_property
    def is_candidate(self) -> np.ndarray:
        """(B,) bool, went into NMS."""
        return array(self.steps.proposal_candidates.valid[0])

    @cached_property
    def candidate_kept(self) -> np.ndarray:
        return array(self.steps.proposal_candidates.kept[0])

    @cached_property
    def candidate_of(self) -> np.ndarray:
        """(R,) the candidate of each proposal; -1 in rows without one."""
        candidates = self.steps.proposal_candidates
        return np.where(array(candidates.filled[0]), array(candidates.chosen[0]), -1)

    # --- head ---

    @cached_property
    def is_roi(self) -> np.ndarray:
        """(R,) bool, rows with a proposal."""
        return array(self.steps.proposals.valid[0])

    @cached_property
    def proposal_boxes(self) -> np.ndarray:
        return on_cpu_edges(self.steps, self.steps.proposals.boxes[0])

    @cached_property
    def roi_boxes(self) -> np.ndarray:
        return on_cpu_edges(self.steps, self.steps.rois.boxes[0])

    @cached_property
    def probabilities(self) -> np.ndarray:
        """(R, K + 1) of background and each class."""
        return array(self.steps.box_outputs.class_logits.softmax(1))

    @cached_property
    def refined(self) -> np.ndarray:
        """(R, K, 4)"""
        boxes = self.steps.detection_candidates.boxes[0]
        return on_cpu_edges(self.steps, boxes).reshape(len(self.is_roi), -1, 4)

    @cached_property
    def scores(self) -> np.ndarray:
        """(R, K)"""
        return self._by_class(self.steps.detection_candidates.scores[0])

    @cached_property
    def is_rival(self) -> np.ndarray:
        """(R, K) bool, went into NMS."""
        return self._by_class(self.steps.detection_candidates.valid[0])

    @cached_property
    def rival_kept(self) -> np.ndarray:
        """(R, K) bool"""
        return self._by_class(self.steps.detection_candidates.kept[0])

    @cached_property
    def rival_of_placed(self) -> np.ndarray:
        """The rival, 0..R*K-1, of each row of `Steps.placed`."""
        rivals = self.steps.detection_candidates
        chosen: np.ndarray = array(rivals.chosen[0])[array(rivals.filled[0])]
        return chosen

    @cached_property
    def rival_of(self) -> np.ndarray:
        """(D,) the rival of each detection."""
        rivals: np.ndarray = self.rival_of_placed[array(self.steps.kept)]
        return rivals

    @cached_property
    def placed_of(self) -> dict[int, int]:
        """Rival to row of `Steps.placed`."""
        return {rival: row for row, rival in enumerate(self.rival_of_placed.tolist())}

    def _by_class(self, values: torch.Tensor) -> np.ndarray:
        return array(values).reshape(len(self.is_roi), -1)

    # --- who is who ---

    def path(self, stage: str, row: int | None) -> dict[str, int | None]:
        """From a row of one stage back to its anchor."""
        path: dict[str, int | None] = dict.fromkeys(("anchor", "candidate", "proposal", "rival", "detection"))
        if row is None:
            return path
        if stage == "detection":
            path[stage], stage, row = row, "rival", int(self.rival_of[row])
        if stage == "rival":
            path[stage], stage, row = row, "proposal", row // self.steps.config.num_classes
        if stage == "proposal":
            path[stage], stage, row = row, "candidate", int(self.candidate_of[row])
        if stage == "candidate":
            path[stage], stage, row = row, "anchor", int(self.anchor_of[row])
        path["anchor"] = row
        return path

    def whose(self, i: int, box: np.ndarray) -> dict[str, Evidence]:
        """The object that a box (4,) covers best: {"other": row of the target or None, "other_iou": IoU}, and i."""
        overlap = iou_with(box, self.gt[self.objects])
        best = int(overlap.argmax())
        known = overlap[best] > 0
        return {"other": int(self.objects[best]) if known else None, "other_iou": float(overlap[best]), "object": i}

    def is_own(self, i: int, boxes: np.ndarray) -> np.ndarray:
        """(n,) bool: boxes (n, 4) that cover no object of the class more than object i."""
        hull = np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])
        near = self.objects[iou_with(hull, self.gt[self.objects]) > 0].tolist()
        mates = [g for g in near if self.labels[g] == self.labels[i]]
        best = np.max([iou_with(self.gt[g], boxes) for g in mates], axis=0)
        own: np.ndarray = iou_with(self.gt[i], boxes) >= best
        return own


def array(tensor: torch.Tensor) -> np.ndarray:
    """On the CPU, without gradient."""
    values: np.ndarray = tensor.detach().cpu().numpy()
    return values
