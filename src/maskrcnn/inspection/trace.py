"""The way of every object through every stage, as plain data: what the report embeds and other programs may read.

A anchors    B proposal candidates    R proposals    D detections    K classes

With ground truth, the objects are those of the ground truth, each with the gate where it was lost or "found". Without,
they are the detections, followed backwards: detection -> RoI -> proposal -> anchor. All boxes are (x1, y1, x2, y2) in
px of the original frame, rounded to 0.01 px; scores and IoUs to 1e-6. Everything is JSON: no NaN, no infinity.

    {"version": 1,
     "picture": {"width", "height": px as given; "network": {"width", "height", "padded_width", "padded_height"}},
     "ground_truth": bool,
     "gates": [{"gate", "title", "stage"}],                      in the order in which an object meets them
     "stages": [{"stage", "title", "text", "code", "counts": [{"key", "label", "value"}]}],
     "objects": [{"id": int, its row in ground truth or detections; "name"; "gate"; "found": bool; "box";
                  "sentence"; "setting": the one that most likely helps, or null; "evidence": {name: value};
                  "score": of the detection that found it, or null; "detection": its row, or null;
                  "outline": [[x, y, x, y, ...]], rings of that detection's mask; empty without, and beyond MOST_POINTS;
                  "path": [{"stage"; "state": "here", "lost" (at this stage) or "gone" (before it); "box", "before": of
                            this stage and what it was made of, or null; "facts": {name: value}}]}],
     "false_positives": [{"detection": row, "kind": of `false_positives.KINDS`, "name", "score", "box"}]}    at IoU 0.5
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskrcnn.inspection.false_positives import false_positives
from maskrcnn.inspection.fate import GATES, SETTINGS, Fate, sentence
from maskrcnn.inspection.figure import STAGES
from maskrcnn.inspection.levels import level_of_boxes
from maskrcnn.inspection.matched import matched
from maskrcnn.inspection.probe import Steps
from maskrcnn.inspection.stages import Plain, plain, stages
from maskrcnn.ops.polygons import polygons_from_rle

Box = list[float]

FOUND = "found"
GATE_STAGES = {  # gate -> the stage at which it closes, what a person calls it
    "anchors": ("anchors", "No anchor fits"),
    "rpn_box": ("proposals", "The RPN moved the box away"),
    "objectness": ("proposals", "Objectness too low"),
    "proposal_nms": ("proposals", "Suppressed by a neighbour's proposal"),
    "proposals": ("proposals", "Cut by the limit of proposals"),
    "class": ("boxes", "Taken for background or another class"),
    "box": ("boxes", "The head moved the box away"),
    "threshold": ("boxes", "Score below the threshold"),
    "detection_nms": ("boxes", "Suppressed by another detection"),
    "limit": ("boxes", "Cut by the limit of detections"),
    "mask_nms": ("masks", "Suppressed by another mask"),
    "mask": ("masks", "Found, but the mask is poor"),
    "taken": ("result", "Its detection counts for another object"),
}
MOST_POINTS = 100_000  # of outlines; those of later objects are left out, so that crowds stay small


def trace(steps: Steps, fates: Sequence[Fate] | None = None) -> Plain:
    """Everything above as a dict. fates: of `gates.fates`; None: the detections are the objects."""
    return {
        "version": 1,
        "picture": _picture(steps),
        "ground_truth": fates is not None,
        "gates": [{"gate": gate, "title": GATE_STAGES[gate][1], "stage": GATE_STAGES[gate][0]} for gate in GATES],
        "stages": stages(steps),
        "objects": _objects(steps, fates),
        "false_positives": [] if fates is None else _false_positives(steps),
    }


def _picture(steps: Steps) -> Plain:
    (height, width), (padded_height, padded_width) = steps.size, steps.padded_size
    resized_height, resized_width = (int(v) for v in steps.batch.image_sizes[0].tolist())
    network = {"width": resized_width, "height": resized_height}
    network |= {"padded_width": padded_width, "padded_height": padded_height}
    return {"width": width, "height": height, "network": network}


def _false_positives(steps: Steps) -> list[Plain]:
    """The detections that found nothing, best first."""
    if steps.target is None:
        return []
    found = steps.detections
    kinds = false_positives(matched(steps)).names()
    return [
        {
            "detection": row,
            "kind": kind,
            "name": found.names[row],
            "score": round(float(found.scores[row]), 6),
            "box": _rounded(found.boxes[row]),
        }
        for row, kind in enumerate(kinds)
        if kind is not None
    ]


@dataclass(frozen=True)
class _Way:
    """The rows of `Steps` that carried an object; None from where it was lost."""

    anchor: int | None
    candidate: int | None
    proposal: int | None
    rival: int | None
    detection: int | None


def _objects(steps: Steps, fates: Sequence[Fate] | None) -> list[Plain]:
    table = _Table(steps)
    if fates is None:
        ways = [table.way_back(d) for d in range(len(steps.detections))]
        heads = [table.head_of_detection(way) for way in ways]
    else:
        names = ("anchor", "candidate", "proposal", "rival", "detection")
        ways = [_Way(*(fate.path.get(name) for name in names)) for fate in fates]
        heads = [table.head_of_fate(fate) for fate in fates]
    points = 0
    objects = []
    for head, way in zip(heads, ways, strict=True):
        outline = table.outline(way) if points <= MOST_POINTS else []
        points += sum(len(ring) // 2 for ring in outline)
        rings = outline if points <= MOST_POINTS else []
        objects.append(head | {"outline": rings, "path": table.path(head, way)})
    return objects


class _Table:
    """What a path looks up, brought to the CPU once for all objects."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps
        candidates, rivals = steps.proposal_candidates, steps.detection_candidates
        self.k = steps.config.num_classes
        self.anchors, self.anchor_logits = _original(steps, steps.anchors), steps.anchor_logits.float().cpu()
        self.anchor_levels = steps.anchor_levels.cpu()
        self.anchor_ranks = _ranks_by_level(self.anchor_logits, self.anchor_levels, len(steps.level_names))
        self.per_level = self.anchor_levels.bincount(minlength=len(steps.level_names)).tolist()
        self.anchor_of = candidates.anchor_index[0].cpu()
        self.candidate_boxes = _original(steps, candidates.boxes[0])
        self.candidate_logits = candidates.logits[0].float().cpu()
        self.candidate_kept = candidates.kept[0].cpu()
        self.candidate_of = candidates.chosen[0].cpu()
        self.proposals = _original(steps, steps.proposals.boxes[0])
        self.num_proposals = int(steps.proposals.valid.sum())
        pooler = steps.model.box_pooler
        self.roi_levels = level_of_boxes(pooler, steps.proposals.boxes[0], steps).cpu()
        self.level_names = list(pooler.strides)
        self.rois = _original(steps, steps.rois.boxes[0])
        self.probabilities = steps.box_outputs.class_logits.float().softmax(1).cpu()
        self.rival_boxes, self.rival_scores = _original(steps, rivals.boxes[0]), rivals.scores[0].cpu()
        self.rival_kept = rivals.kept[0].cpu()
        valid = rivals.valid[0].cpu()
        self.num_rivals = int(valid.sum())
        self.rival_ranks = _ranks(self.rival_scores.masked_fill(~valid, -torch.inf))
        self.rival_valid = valid
        placed_rows = steps.found.valid[0].nonzero().squeeze(1)  # rows of `found` that were placed
        self.rival_of = rivals.chosen[0][placed_rows[steps.kept.nonzero().squeeze(1)]].tolist()
        self.detections = steps.detections.boxes
        masks = steps.detections.masks
        self.rles = [] if masks is None else masks.rle()

    def way_back(self, detection: int) -> _Way:
        """Detection -> class of a RoI -> proposal -> candidate -> anchor."""
        rival = self.rival_of[detection]
        proposal = rival // self.k
        candidate = int(self.candidate_of[proposal])
        return _Way(int(self.anchor_of[candidate]), candidate, proposal, rival, detection)

    def head_of_detection(self, way: _Way) -> Plain:
        assert way.detection is not None and way.proposal is not None and way.anchor is not None
        found, row = self.steps.detections, way.detection
        level = self.steps.level_names[int(self.anchor_levels[way.anchor])]
        score = float(found.scores[row])
        text = (
            f"Found with score {score:.2f}: an anchor of {level} became proposal {way.proposal + 1} of "
            f"{self.num_proposals}, which became this detection."
        )
        return {
            "id": row,
            "name": found.names[row],
            "gate": FOUND,
            "found": True,
            "box": _rounded(self.detections[row]),
            "sentence": text,
            "setting": None,
            "evidence": {},
            "score": round(score, 6),
            "detection": row,
        }

    def head_of_fate(self, fate: Fate) -> Plain:
        found = None if fate.detection is None else round(float(self.steps.detections.scores[fate.detection]), 6)
        return {
            "id": fate.index,
            "name": fate.name,
            "gate": FOUND if fate.gate is None else fate.gate,
            "found": fate.gate is None,
            "box": _rounded(fate.box),
            "sentence": sentence(fate),
            "setting": None if fate.gate is None else SETTINGS.get(fate.gate),
            "evidence": plain(fate.evidence),
            "score": found,
            "detection": fate.detection,
        }

    def path(self, head: Plain, way: _Way) -> list[Plain]:
        """One entry a stage."""
        lost = len(STAGES) if head["gate"] == FOUND else STAGES.index(GATE_STAGES[head["gate"]][0])
        entries: list[Plain] = []
        for i, stage in enumerate(STAGES):
            if i > lost:
                entries.append({"stage": stage, "state": "gone", "box": None, "before": None, "facts": {}})
                continue
            step = getattr(self, f"_at_{stage}")(head["box"], way)
            entries.append({"stage": stage, "state": "lost" if i == lost else "here", **step})
        return entries

    def _at_input(self, box: Box, way: _Way) -> Plain:
        x1, y1, x2, y2 = box
        return _step(box, None, width=round(x2 - x1, 2), height=round(y2 - y1, 2))

    def _at_features(self, box: Box, way: _Way) -> Plain:
        x1, y1, x2, y2 = self.steps.in_padded(torch.tensor([box]).to(self.steps.window.device))[0].tolist()
        facts: Plain = {"network_width": round(x2 - x1, 1), "network_height": round(y2 - y1, 1)}
        if way.anchor is not None:
            name = self.steps.level_names[int(self.anchor_levels[way.anchor])]
            stride = self.steps.model.own_rpn.strides[name]
            facts |= {"level": name, "stride": stride, "cells_across": round((x2 - x1) / stride, 1)}
            facts |= {"cells_down": round((y2 - y1) / stride, 1)}
        return _step(box, None, **facts)

    def _at_anchors(self, box: Box, way: _Way) -> Plain:
        if way.anchor is None:
            return _step(None, None)
        level = int(self.anchor_levels[way.anchor])
        anchor = _rounded(self.anchors[way.anchor])
        return _step(
            anchor,
            None,
            row=way.anchor,
            level=self.steps.level_names[level],
            iou=_iou(anchor, box),
            objectness=round(float(self.anchor_logits[way.anchor].sigmoid()), 6),
            rank=int(self.anchor_ranks[way.anchor]),
            of=self.per_level[level],
        )

    def _at_proposals(self, box: Box, way: _Way) -> Plain:
        before = None if way.anchor is None else _rounded(self.anchors[way.anchor])
        if way.candidate is None:
            return _step(None, before)
        refined = _rounded(self.candidate_boxes[way.candidate])
        facts: Plain = {"row": way.candidate, "iou": _iou(refined, box)}
        facts["objectness"] = round(float(self.candidate_logits[way.candidate].sigmoid()), 6)
        facts["kept_by_nms"] = bool(self.candidate_kept[way.candidate])
        if way.proposal is not None:
            facts |= {"proposal": way.proposal, "rank": way.proposal + 1, "of": self.num_proposals}
        return _step(refined, before, **facts)

    def _at_levels(self, box: Box, way: _Way) -> Plain:
        if way.proposal is None:
            return _step(None, None)
        roi = _rounded(self.proposals[way.proposal])
        level = self.level_names[int(self.roi_levels[way.proposal])]
        side = self.steps.model.box_pooler.side
        return _step(roi, None, row=way.proposal, level=level, grid=f"{side} x {side}", iou=_iou(roi, box))

    def _at_boxes(self, box: Box, way: _Way) -> Plain:
        if way.proposal is None and way.rival is None:
            return _step(None, None)
        roi, label = (way.proposal, None) if way.rival is None else divmod(way.rival, self.k)
        names = ("background", *self.steps.config.class_names)
        best = self.probabilities[roi].topk(min(3, len(names)))
        facts: Plain = {
            "best_classes": [
                f"{names[i]} {value:.2f}" for i, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ]
        }
        if way.rival is None or label is None:
            return _step(None, _rounded(self.rois[roi]), **facts)
        refined = _rounded(self.rival_boxes[way.rival])
        facts |= {"row": way.rival, "class": names[label + 1], "iou": _iou(refined, box)}
        facts["score"] = round(float(self.rival_scores[way.rival]), 6)
        if bool(self.rival_valid[way.rival]):
            facts |= {"rank": int(self.rival_ranks[way.rival]), "of": self.num_rivals}
            facts["kept_by_nms"] = bool(self.rival_kept[way.rival])
        return _step(refined, _rounded(self.rois[roi]), **facts)

    def _at_masks(self, box: Box, way: _Way) -> Plain:
        masks = self.steps.detections.masks
        if way.detection is None or masks is None:
            return _step(None, None)
        side = masks.probabilities.shape[-1]
        return _step(_rounded(masks.boxes[way.detection]), None, grid=f"{side} x {side}", threshold=masks.threshold)

    def _at_result(self, box: Box, way: _Way) -> Plain:
        if way.detection is None:
            return _step(None, None)
        found, row = self.steps.detections, way.detection
        place = _rounded(self.detections[row])
        facts: Plain = {"row": row, "class": found.names[row], "score": round(float(found.scores[row]), 6)}
        facts |= {"rank": row + 1, "of": len(found), "iou": _iou(place, box)}
        return _step(place, None, **facts)

    def outline(self, way: _Way) -> list[list[int]]:
        """Rings of the mask, which run on edges of pixels and so on whole numbers."""
        if way.detection is None or not self.rles:
            return []
        return [ring.astype(np.int64).flatten().tolist() for ring in polygons_from_rle(self.rles[way.detection])]


def _step(box: Box | None, before: Box | None, **facts: Any) -> Plain:
    return {"box": plain(box), "before": plain(before), "facts": plain(facts)}


def _original(steps: Steps, boxes: Tensor) -> Tensor:
    """(n, 4) of the padded frame, all at once, on the CPU in the original."""
    return steps.in_original(boxes).cpu()


def _rounded(box: Tensor | Sequence[float]) -> Box:
    return [round(v, 2) for v in (box.tolist() if isinstance(box, Tensor) else box)]


def _iou(a: Box, b: Box) -> float:
    """Of one pair, without a tensor: it is asked for five times an object."""
    common = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = sum(max(0.0, x2 - x1) * max(0.0, y2 - y1) for x1, y1, x2, y2 in (a, b)) - common
    return round(common / union, 6) if union > 0 else 0.0


def _ranks(scores: Tensor) -> Tensor:
    """(n,) int64: 1 for the highest; of equals, the first."""
    order = scores.argsort(descending=True, stable=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(1, len(order) + 1)
    return ranks


def _ranks_by_level(scores: Tensor, levels: Tensor, count: int) -> Tensor:
    """The same within each of `count` levels."""
    ranks = torch.zeros_like(levels)
    for level in range(count):
        here = levels == level
        ranks[here] = _ranks(scores[here])
    return ranks
