"""One object through every stage: was it found, and if not, at which gate was it lost, with the evidence.

G objects    A anchors    B proposal candidates    R proposals    K classes, labels 1..K    D detections
boxes: (x1, y1, x2, y2), float64 px, padded frame, corners on edges

A box covers an object where their IoU is at least the threshold (0.5). Of all lines anchor -> moved anchor ->
proposal -> RoI refined for the object's class -> detection, the object was lost at the furthest gate at which a box
died that still covered it, so that every gate before was passed. One thing is decided by whose box it is: where the
detection of a neighbour covers an object too ("taken"), but a box that covers this object best was suppressed on the
way, then what lost it is the suppression.

Found means what it means to COCO: matched at this IoU, best score first, by masks where there are masks. Every number
is read from the tensors of `Steps`; only to see all anchors moved, deltas are decoded here once more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from maskrcnn.inspection.anchor_search import iou_with, on_cpu_edges
from maskrcnn.inspection.fate import GATES, SETTINGS, Evidence, Fate, sentence
from maskrcnn.inspection.lines import Lines, array
from maskrcnn.inspection.matched import Matched, matched, truth_of
from maskrcnn.inspection.probe import Steps
from maskrcnn.ops import rle
from maskrcnn.ops.masks import crop_masks, paste_rle, rasterise

__all__ = ["GATES", "SETTINGS", "Fate", "fates", "fates_of", "sentence"]

TOP = 3  # classes that are told of a box which was called something else


@dataclass(frozen=True, eq=False)
class Death:
    """Where the line that went furthest ended.

    gate: None where the object was found. row: of the stage that `stage` names, a key of `Fate.path`.
    """

    gate: str | None
    stage: str
    row: int | None
    evidence: Mapping[str, Evidence]


def fates(steps: Steps, iou_threshold: float = 0.5) -> tuple[Fate, ...]:
    """What became of each object of `steps.target` but crowd regions, in the target's order.

    Objects whose label is above K are of a class that the detector does not have.
    Errors: `InputError` where the steps have no ground truth, or for an IoU outside 0..1.
    """
    return fates_of(steps, matched(steps, iou_threshold))


def fates_of(steps: Steps, found: Matched) -> tuple[Fate, ...]:
    """As `fates`, of what was matched already."""
    target = truth_of(steps)
    lines = Lines(steps, found)
    boxes = target.gt_boxes.tolist()
    names = dict(enumerate(steps.config.class_names, start=1))
    result = []
    for i in lines.objects.tolist():
        detection = int(found.detection[i])
        if detection >= 0:
            evidence: Mapping[str, Evidence] = {
                "iou": float(found.iou_with(i)[detection]),
                "score": float(steps.detections.scores[detection]),
            }
            end = Death(None, "detection", detection, evidence)
        else:
            end = next(death for look in _BACKWARDS if (death := look(lines, i)) is not None)
        result.append(
            Fate(
                index=i,
                gate=end.gate,
                name=names.get(lines.labels[i], "a class that the detector does not have"),
                box=tuple(boxes[i]),
                detection=detection if detection >= 0 else None,
                evidence=end.evidence,
                path=lines.path(end.stage, end.row),
            )
        )
    return tuple(result)


# --- the gates, from the last to the first; each returns None where nothing that covers object i came so far ----------


def _at_detections(lines: Lines, i: int) -> Death | None:
    """mask and taken, and what a neighbour's detection suppressed."""
    steps, found = lines.steps, lines.found
    overlap = found.iou_with(i)
    target = truth_of(steps)
    box_iou = iou_with(target.gt_boxes[i].double().cpu().numpy(), steps.detections.boxes.double().numpy())
    if found.by == "bbox":
        box_iou = overlap
    is_class = steps.detections.labels.numpy() == lines.labels[i]
    covers = is_class & (np.maximum(box_iou, overlap) >= lines.iou)
    free = covers & (found.gt_index < 0)
    if free.any():
        row = _best(free, overlap)
        return Death("mask", "detection", row, _mask_evidence(lines, i, row, float(overlap[row]), float(box_iou[row])))
    if not covers.any():
        return None
    suppressed = _at_nms(lines, i, own=True)
    if suppressed is not None:
        return suppressed
    row = _best(covers, np.maximum(overlap, box_iou))
    other = int(found.gt_index[row])
    evidence: dict[str, Evidence] = {
        "score": float(steps.detections.scores[row]),
        "iou": float(max(overlap[row], box_iou[row])),
        "mask_iou": None if found.by == "bbox" else float(overlap[row]),
        "other": other,
        "other_iou": float(found.iou_with(other)[row]),
        "objects_iou": float(iou_with(lines.gt[i], lines.gt[other : other + 1])[0]),
    }
    return Death("taken", "detection", row, evidence)


def _mask_evidence(lines: Lines, i: int, row: int, mask_iou: float, box_iou: float) -> dict[str, Evidence]:
    """ceiling: the IoU that the ground truth itself keeps after going through M x M in the detection's box."""
    masks, target = lines.steps.detections.masks, truth_of(lines.steps)
    evidence: dict[str, Evidence] = {
        "score": float(lines.steps.detections.scores[row]),
        "mask_iou": mask_iou,
        "box_iou": box_iou,
        "side": None,
        "ceiling": None,
    }
    if masks is None or target.gt_masks is None:
        return evidence
    side = masks.probabilities.shape[-1]
    truth = target.gt_masks[[i]]
    learned = crop_masks(truth, masks.boxes[row : row + 1], torch.zeros(1, dtype=torch.int64), side)
    best = paste_rle(learned, masks.boxes[row : row + 1], masks.size, masks.threshold)
    ceiling = rle.iou(best, rasterise(truth, masks.size), [False])[0, 0]
    return evidence | {"side": side, "ceiling": float(ceiling)}


def _at_nms(lines: Lines, i: int, own: bool = False) -> Death | None:
    """mask_nms, limit, detection_nms. own: only boxes that cover object i best of its class."""
    label = lines.labels[i]
    if label > lines.steps.config.num_classes:
        return None
    overlap = iou_with(lines.gt[i], lines.refined[:, label - 1])
    came = lines.is_rival[:, label - 1] & (overlap >= lines.iou)
    if own and came.any():
        came[came] = lines.is_own(i, lines.refined[came, label - 1])
    if not came.any():
        return None
    scores, k = lines.scores[:, label - 1], lines.steps.config.num_classes
    kept = came & lines.rival_kept[:, label - 1]
    rows = np.flatnonzero(kept) * k + label - 1
    placed = np.zeros_like(kept)
    placed[kept] = [row in lines.placed_of for row in rows.tolist()]
    common: dict[str, Evidence]
    if placed.any():
        gone = placed.copy()
        gone[placed] = [
            not lines.steps.kept[lines.placed_of[row * k + label - 1]] for row in np.flatnonzero(placed).tolist()
        ]
        if own and not gone.any():  # its own box was placed, and is another's detection
            return None
        row = _best(gone if gone.any() else placed, scores)
        common = {"score": float(scores[row]), "iou": float(overlap[row])}
        rival = row * k + label - 1
        return Death("mask_nms", "rival", rival, common | _mask_nms_evidence(lines, i, lines.placed_of[rival]))
    row = _best(kept if kept.any() else came, scores)
    common = {"score": float(scores[row]), "iou": float(overlap[row])}
    rival = row * k + label - 1
    if kept.any():
        every = lines.scores[lines.rival_kept]
        limit = lines.steps.config.detection.max_detections
        chosen = lines.scores.ravel()[lines.rival_of_placed]
        rank = 1 + int((every > scores[row]).sum())
        needed = float(chosen.min()) if len(chosen) else None
        return Death("limit", "rival", rival, common | {"rank": rank, "max_detections": limit, "needed_score": needed})
    return Death("detection_nms", "rival", rival, common | _rival_evidence(lines, i, row, label))


def _mask_nms_evidence(lines: Lines, i: int, row: int) -> dict[str, Evidence]:
    """row: of `Steps.placed`."""
    steps, limit = lines.steps, lines.steps.config.detection.mask_nms_iou
    box = steps.placed.boxes[row].double().cpu().numpy()
    in_picture = float(iou_with(truth_of(steps).gt_boxes[i].double().cpu().numpy(), box[None])[0])
    masks = steps.placed.masks
    if limit is None or masks is None or bool(steps.kept[row]):
        return {"reason": "rounding", "iou": in_picture}
    regions = masks.rle()
    overlap = rle.iou([regions[row]], regions, [False] * len(regions))[0]
    better = array(steps.placed.scores >= steps.placed.scores[row]) & array(steps.kept)
    if not steps.config.detection.class_agnostic_nms:
        better &= array(steps.placed.labels == steps.placed.labels[row])
    if not (better & (overlap > limit)).any():
        return {"reason": "rounding", "iou": in_picture}
    rival = _best(better & (overlap > limit), overlap)
    rival_box = steps.in_padded(steps.placed.boxes[rival])
    return {
        "reason": "masks",
        "overlap": float(overlap[rival]),
        "mask_nms_iou": limit,
        "rival": int(np.cumsum(array(steps.kept))[rival]) - 1,
        "rival_score": float(steps.placed.scores[rival]),
        **lines.whose(i, on_cpu_edges(steps, rival_box)),
    }


def _rival_evidence(lines: Lines, i: int, roi: int, label: int) -> dict[str, Evidence]:
    """Who suppressed the box of class `label` of a RoI: the best kept one that overlaps it too much."""
    rivals, config = lines.steps.detection_candidates, lines.steps.config.detection
    row = roi * lines.steps.config.num_classes + label - 1
    scores, labels = array(rivals.scores[0]), array(rivals.labels[0])
    meets = array(rivals.kept[0]) & ((labels == label) | config.class_agnostic_nms)
    by = _suppressor(row, array(rivals.boxes[0]), scores, meets, config.nms_iou)
    return {
        "rival": by.row,
        "rival_name": lines.steps.config.class_names[int(labels[by.row]) - 1],
        "rival_score": float(scores[by.row]),
        "overlap": by.overlap,
        "nms_iou": config.nms_iou,
        **lines.whose(i, lines.refined.reshape(-1, 4)[by.row]),
    }


@dataclass(frozen=True)
class _Suppressor:
    row: int
    overlap: float


def _suppressor(row: int, boxes: np.ndarray, scores: np.ndarray, meets: np.ndarray, limit: float) -> _Suppressor:
    """The first that NMS came to of those kept that overlap `row` by more than `limit`; boxes as NMS saw them."""
    others = np.flatnonzero(
        meets & ((scores > scores[row]) | ((scores == scores[row]) & (np.arange(len(scores)) < row)))
    )
    overlap = iou_with(boxes[row].astype(np.float64), boxes[others].astype(np.float64))
    near = overlap > limit
    if not near.any():  # a hair's breadth apart from the float32 of NMS itself
        near = overlap == overlap.max()
    first = np.flatnonzero(near)[scores[others[near]].argmax()]
    return _Suppressor(int(others[first]), float(overlap[first]))


def _at_head(lines: Lines, i: int) -> Death | None:
    """class, box, threshold: what the head made of RoIs."""
    label, config = lines.labels[i], lines.steps.config
    before = np.maximum(iou_with(lines.gt[i], lines.proposal_boxes), iou_with(lines.gt[i], lines.roi_boxes))
    before[~lines.is_roi] = 0
    if label > config.num_classes:
        if not (before >= lines.iou).any():
            return None
        row = int(before.argmax())
        evidence: dict[str, Evidence] = {"iou": float(before[row]), "top": _top(lines, row), "score": None}
        return Death("class", "proposal", row, evidence)
    after = np.where(lines.is_roi, iou_with(lines.gt[i], lines.refined[:, label - 1]), 0)
    scores = lines.scores[:, label - 1]
    is_class = (lines.probabilities.argmax(axis=1) == label) | (scores > config.detection.score_threshold)
    rival_of_row = np.arange(len(scores)) * config.num_classes + label - 1
    fits = is_class & (after >= lines.iou)
    if fits.any():
        row = _best(fits, scores)
        evidence = _threshold_evidence(lines, row, label) | {"iou": float(after[row])}
        return Death("threshold", "rival", int(rival_of_row[row]), evidence)
    moved = is_class & (before >= lines.iou)
    if moved.any():
        row = _best(moved, after)
        evidence = {"score": float(scores[row]), "iou_before": float(before[row]), "iou": float(after[row])}
        return Death("box", "rival", int(rival_of_row[row]), evidence)
    covers = np.maximum(before, after) >= lines.iou
    if not covers.any():
        return None
    row = _best(covers, scores)
    evidence = {
        "iou": float(before[row]),
        "top": _top(lines, row),
        "score": float(scores[row]),
        "score_threshold": config.detection.score_threshold,
    }
    return Death("class", "proposal", row, evidence)


def _threshold_evidence(lines: Lines, row: int, label: int) -> dict[str, Evidence]:
    config = lines.steps.config
    score, box = float(lines.scores[row, label - 1]), lines.refined[row, label - 1]
    best = int(lines.probabilities[row].argmax())
    reason = "min_size"
    if not score > config.detection.score_threshold:
        reason = "score"
    elif config.detection.best_class_only and best != label:
        reason = "best_class_only"
    return {
        "reason": reason,
        "score": score,
        "score_threshold": config.detection.score_threshold,
        "best": ("background", *config.class_names)[best],
        "size": (box[2:] - box[:2]).tolist(),
    }


def _top(lines: Lines, row: int) -> list[list[str | float]]:
    """The best classes of a RoI, background among them: [name, probability]."""
    names = ("background", *lines.steps.config.class_names)
    order = np.argsort(-lines.probabilities[row], kind="stable")[:TOP].tolist()
    return [[names[k], float(lines.probabilities[row, k])] for k in order]


def _at_proposals(lines: Lines, i: int) -> Death | None:
    """proposal_nms, proposals: what became of candidates."""
    overlap = np.where(lines.is_candidate, iou_with(lines.gt[i], lines.candidate_boxes), 0)
    came = overlap >= lines.iou
    if not came.any():
        return None
    kept, logits, config = came & lines.candidate_kept, lines.candidate_logits, lines.steps.config.own_rpn
    row = _best(kept if kept.any() else came, logits)
    common: dict[str, Evidence] = {"iou": float(overlap[row]), "logit": float(logits[row])}
    if kept.any():
        chosen = logits[lines.candidate_of[lines.candidate_of >= 0]]
        place: dict[str, Evidence] = {
            "rank": 1 + int((logits[lines.candidate_kept] > logits[row]).sum()),
            "top_n": config.post_nms_top_n,
            "needed_logit": float(chosen.min()) if len(chosen) else None,
        }
        return Death("proposals", "candidate", row, common | place)
    meets = lines.candidate_kept & (lines.candidate_group == lines.candidate_group[row])
    raw = array(lines.steps.proposal_candidates.boxes[0])
    by = _suppressor(row, raw, logits, meets, config.nms_iou)
    rival: dict[str, Evidence] = {
        "rival": by.row,
        "rival_logit": float(logits[by.row]),
        "overlap": by.overlap,
        "nms_iou": config.nms_iou,
        **lines.whose(i, lines.candidate_boxes[by.row]),
    }
    return Death("proposal_nms", "candidate", row, common | rival)


def _at_anchors(lines: Lines, i: int) -> Death:
    """anchors, rpn_box, objectness: among all anchors."""
    box, search = lines.gt[i], lines.search
    rows, overlap = search.covering(box, lines.iou)
    if len(rows):
        return _objectness(lines, rows, overlap)
    rows, overlap = search.best(box, lines.iou)
    size: list[float] = (box[2:] - box[:2]).tolist()
    if not len(rows):
        return Death("anchors", "anchor", None, {"iou": None, "object_size": size})
    covering = rows[overlap >= lines.iou]
    if len(covering):
        after = iou_with(box, search.refined.boxes[covering])
        row = int(covering[after.argmax()])
        evidence = _anchor_evidence(lines, row) | {
            "anchor_iou": float(iou_with(box, search.raw.boxes[[row]])[0]),
            "refined_iou": float(after.max()),
            "object_size": size,
        }
        return Death("rpn_box", "anchor", row, evidence)
    row = int(rows[overlap.argmax()])
    evidence = _anchor_evidence(lines, row) | {
        "iou": float(overlap.max()),
        "object_size": size,
        "object_ratio": size[1] / size[0] if size[0] > 0 else None,
        "nearest_sizes": _nearest_sizes(lines.steps, size),
    }
    return Death("anchors", "anchor", row, evidence)


def _objectness(lines: Lines, rows: np.ndarray, overlap: np.ndarray) -> Death:
    """rows: anchors that cover the object once they are moved, of which none went into NMS."""
    search, config = lines.search, lines.steps.config.own_rpn
    groups = np.zeros_like(search.levels) if config.levels_together else search.levels
    needed = np.full(int(groups.max()) + 1, -np.inf, dtype=np.float64)
    for group in range(len(needed)):
        went = lines.candidate_logits[lines.candidate_group == group]
        if len(went) and (groups == group).sum() > config.pre_nms_top_n:
            needed[group] = went.min()
    nearest = int((search.logits[rows] - needed[groups[rows]]).argmax())
    row = int(rows[nearest])
    rank = 1 + int((search.logits[groups == groups[row]] > search.logits[row]).sum())
    box, least = search.refined.boxes[row], float(needed[groups[row]])
    evidence = _anchor_evidence(lines, row) | {
        "reason": "min_size" if np.isin(row, lines.anchor_of) else "rank",
        "iou": float(overlap[nearest]),
        "rank": rank,
        "top_n": config.pre_nms_top_n,
        "logit": float(search.logits[row]),
        "needed_logit": least if np.isfinite(least) else None,
        "size": (box[2:] - box[:2]).tolist(),
    }
    return Death("objectness", "anchor", row, evidence)


def _anchor_evidence(lines: Lines, row: int) -> dict[str, Evidence]:
    box = lines.search.raw.boxes[row]
    width, height = (box[2:] - box[:2]).tolist()
    level = lines.steps.level_names[int(lines.search.levels[row])]
    return {"level": level, "anchor_size": [width, height], "anchor_ratio": height / width if width > 0 else None}


def _nearest_sizes(steps: Steps, size: list[float]) -> list[float]:
    """The anchor sizes next below and next above that of an object."""
    sizes = sorted({size for level in steps.config.own_rpn.anchors.sizes for size in level})
    side = (size[0] * size[1]) ** 0.5
    below, above = [s for s in sizes if s <= side], [s for s in sizes if s > side]
    return [float(s) for s in below[-1:] + above[:1]]


_BACKWARDS: tuple[Callable[[Lines, int], Death | None], ...] = (
    _at_detections,
    _at_nms,
    _at_head,
    _at_proposals,
    _at_anchors,
)


def _best(flags: np.ndarray, values: np.ndarray) -> int:
    """The row of the largest value among those flagged."""
    return int(np.where(flags, values, -np.inf).argmax())
