"""Which detection of one picture found which object, by the rule and on the numbers of the evaluation.

G ground-truth objects, crowd regions among them    D detections    P pairs that overlap    labels 1..K
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from maskrcnn.errors import InputError
from maskrcnn.evaluation.coco_ap import IouType
from maskrcnn.evaluation.matching import Matches, Overlaps, match, overlaps
from maskrcnn.inspection.probe import Steps
from maskrcnn.ops.masks import rasterise
from maskrcnn.structures import Target

NEAR = 0.1  # IoU from which a detection has to do with an object; t_b of Bolya et al. 2020, 2.2


@dataclass(frozen=True, eq=False)
class Matched:
    """Objects and detections of one picture, and which belong together.

    by: "segm" where detector and truth have masks, else "bbox": what overlap is measured on.
    iou_threshold: overlap from which a detection has found an object. near: all pairs of at least `NEAR`.
    gt_index: (D,) int64, the object that each detection found, -1 for none. in_crowd: (D,) bool, it lies in a crowd
    region of its class. detection: (G,) int64, the detection that found each object, -1 for none.
    """

    by: IouType
    iou_threshold: float
    near: Overlaps
    gt_index: np.ndarray
    in_crowd: np.ndarray
    detection: np.ndarray

    def iou_with(self, gt: int) -> np.ndarray:
        """(D,) float64 IoU of every detection with one object; 0 below `NEAR`."""
        iou = np.zeros(len(self.near.labels))
        pairs = self.near.pair_gt == gt
        iou[self.near.pair_detection[pairs]] = self.near.pair_iou[pairs]
        return iou


def matched(steps: Steps, iou_threshold: float = 0.5, masks: bool | None = None) -> Matched:
    """Match the detections of `steps` with its ground truth as COCO does at one IoU, best score first.

    masks: overlap of masks or of boxes; None: of masks where both sides have them.
    Errors: `InputError` where the steps have no ground truth, or an IoU outside 0..1.
    """
    target = truth_of(steps)
    if not 0 < iou_threshold <= 1:
        raise InputError("impossible value", field="iou_threshold", found=iou_threshold, expected="above 0, at most 1")
    if masks is None:
        masks = steps.detections.masks is not None and target.gt_masks is not None
    by: IouType = "segm" if masks else "bbox"
    labels = steps.detections.labels.tolist()
    records = [record | {"category_id": label} for record, label in zip(steps.detections.coco(), labels, strict=True)]
    count = max([steps.config.num_classes, *target.gt_labels.tolist()])
    near = overlaps(_document(target, count, masks), records, by, min(NEAR, iou_threshold))
    matches = matches_at(near, iou_threshold)
    detection = np.full(len(target), -1, dtype=np.int64)
    hit = np.flatnonzero(matches.gt_index >= 0)
    detection[matches.gt_index[hit]] = hit
    return Matched(by, iou_threshold, near, matches.gt_index, matches.in_crowd, detection)


def matches_at(near: Overlaps, iou_threshold: float) -> Matches:
    """COCO's matching among the pairs that overlap at least so much."""
    enough = near.pair_iou >= min(iou_threshold, 1 - 1e-10)
    pairs = {name: getattr(near, name)[enough] for name in ("pair_detection", "pair_gt", "pair_iou")}
    return match(replace(near, **pairs), same_class=True)


def truth_of(steps: Steps) -> Target:
    """The ground truth of `steps`. Errors: `InputError` where there is none."""
    if steps.target is None:
        raise InputError("none was given", field="ground truth", expected="a Target, in the frame of the picture")
    return steps.target


def _document(target: Target, count: int, masks: bool) -> dict[str, Any]:
    """The target as a COCO document of one picture, its categories the labels 1..count."""
    corners = target.gt_boxes.double().cpu()
    sides = (corners[:, 2:] - corners[:, :2]).tolist()
    regions = rasterise(target.gt_masks, target.size) if masks and target.gt_masks is not None else [None] * len(target)
    rows = zip(
        corners[:, :2].tolist(), sides, target.gt_labels.tolist(), target.is_crowd.tolist(), regions, strict=True
    )
    annotations = [
        {"image_id": 0, "category_id": label, "bbox": [*near, *side], "iscrowd": int(crowd), "segmentation": region}
        for near, side, label, crowd, region in rows
    ]
    size = {"id": 0, "height": target.size[0], "width": target.size[1]}
    return {"images": [size], "annotations": annotations, "categories": [{"id": k} for k in range(1, count + 1)]}
