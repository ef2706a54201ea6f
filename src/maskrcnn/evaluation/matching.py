"""Which detection found which object: greedy, best score first, as COCO matches at one IoU threshold.

G ground-truth objects of the whole data set, crowd regions among them    D detections of the whole data set
P pairs of one picture that overlap enough                                K classes, labels 1..K
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskrcnn.evaluation.coco_ap import GroundTruth, IouType, Record, mask_iou
from maskrcnn.ops import rle
from maskrcnn.ops.polygons import rle_from_polygons
from maskrcnn.ops.rle import RLE


@dataclass(frozen=True, eq=False)
class Overlaps:
    """Every object and detection of a data set, and the pairs of them that overlap enough.

    gt_labels: (G,) int64 in 1..K. is_crowd: (G,) bool.
    labels: (D,) int64 in 1..K. scores: (D,) float64.
    pair_detection, pair_gt: (P,) int64 into D and G. pair_iou: (P,) float64, at least the threshold asked for.
    """

    gt_labels: np.ndarray
    is_crowd: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    pair_detection: np.ndarray
    pair_gt: np.ndarray
    pair_iou: np.ndarray


@dataclass(frozen=True, eq=False)
class Matches:
    """What each detection found.

    gt_index: (D,) int64, the object found, -1 for none. in_crowd: (D,) bool, it lies in a crowd region of its own
    class, so it is neither right nor wrong.
    """

    gt_index: np.ndarray
    in_crowd: np.ndarray


def overlaps(
    ground_truth: GroundTruth, records: Sequence[Record], iou_type: IouType, iou_threshold: float = 0.5
) -> Overlaps:
    """All pairs of object and detection of one picture with an IoU of at least `iou_threshold`, whatever their class.

    Labels count the categories of the ground truth by ascending id; records of other categories are left out.
    The overlap with a crowd region is the share of the detection that lies in it.
    """
    label = {id_: k for k, id_ in enumerate(sorted(c["id"] for c in ground_truth["categories"]), start=1)}
    annotations = ground_truth["annotations"]
    scored = [record for record in records if record["category_id"] in label]
    is_crowd = np.array([bool(a.get("iscrowd", 0)) for a in annotations], dtype=bool)
    pairs = _pairs(ground_truth, scored, iou_type, is_crowd, min(iou_threshold, 1 - 1e-10))
    return Overlaps(
        gt_labels=np.array([label[a["category_id"]] for a in annotations], dtype=np.int64),
        is_crowd=is_crowd,
        labels=np.array([label[record["category_id"]] for record in scored], dtype=np.int64),
        scores=np.array([record["score"] for record in scored], dtype=np.float64),
        pair_detection=pairs[0],
        pair_gt=pairs[1],
        pair_iou=pairs[2],
    )


def match(found: Overlaps, *, same_class: bool) -> Matches:
    """Each detection, best score first, takes the free object that it overlaps most.

    Because better detections choose first, the matches among detections above any score are those of a run with only
    them: one matching serves every threshold.

    Args:
        found: the pairs that may match.
        same_class: only objects of the detection's own class (for precision and recall), or of any class (for a
            confusion matrix; between equal overlaps its own class comes first).
    """
    rank = np.empty(len(found.scores), dtype=np.int64)
    rank[np.argsort(-found.scores, kind="stable")] = np.arange(len(found.scores))
    detection, gt = found.pair_detection, found.pair_gt
    is_own = found.labels[detection] == found.gt_labels[gt]
    may_match = is_own | ~found.is_crowd[gt] if not same_class else is_own
    # best detection first; its crowd regions last; most overlap first; then own class; then the later object, as COCO
    keys = (-gt, ~is_own, -found.pair_iou, found.is_crowd[gt], rank[detection])
    order = np.lexsort(keys)
    order = order[may_match[order]]
    return _take_in_order(detection[order], gt[order], found.is_crowd, len(found.scores))


def _take_in_order(detection: np.ndarray, gt: np.ndarray, is_crowd: np.ndarray, count: int) -> Matches:
    gt_index = [-1] * count
    in_crowd = [False] * count
    taken = [False] * len(is_crowd)
    crowd = is_crowd.tolist()
    for d, g in zip(detection.tolist(), gt.tolist(), strict=True):
        if gt_index[d] >= 0 or taken[g]:
            continue
        if crowd[g]:
            in_crowd[d] = True
        else:
            gt_index[d] = g
            taken[g] = True
    return Matches(np.array(gt_index, dtype=np.int64), np.array(in_crowd, dtype=bool))


def _pairs(
    ground_truth: GroundTruth, records: Sequence[Record], iou_type: IouType, is_crowd: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(P,) detection, (P,) object, (P,) IoU."""
    annotations = ground_truth["annotations"]
    sizes = {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}
    gt_of = _positions_by_picture(annotations)
    indices: list[np.ndarray] = [np.empty((2, 0), dtype=np.int64)]
    values: list[np.ndarray] = [np.empty(0)]
    for image_id, detections in _positions_by_picture(records).items():
        objects = gt_of.get(image_id)
        if objects is None:
            continue
        iou = _iou(
            [records[d] for d in detections],
            [annotations[g] for g in objects],
            is_crowd[objects],
            iou_type,
            sizes[image_id],
        )
        near = np.nonzero(iou >= threshold)
        indices.append(np.stack([detections[near[0]], objects[near[1]]]))
        values.append(iou[near])
    joined = np.concatenate(indices, axis=1)
    return joined[0], joined[1], np.concatenate(values)


def _positions_by_picture(rows: Sequence[Mapping[str, Any]]) -> dict[Any, np.ndarray]:
    positions: dict[Any, list[int]] = {}
    for position, row in enumerate(rows):
        positions.setdefault(row["image_id"], []).append(position)
    return {image_id: np.array(found, dtype=np.int64) for image_id, found in positions.items()}


def _iou(
    records: Sequence[Record],
    annotations: Sequence[Mapping[str, Any]],
    is_crowd: np.ndarray,
    iou_type: IouType,
    size: tuple[int, int],
) -> np.ndarray:
    """(d, g) float64 of one picture; in a crowd region's column, the share of the detection that lies in it."""
    if iou_type == "bbox":
        return box_iou([r["bbox"] for r in records], [a["bbox"] for a in annotations], is_crowd)
    masks = [as_rle(annotation["segmentation"], size) for annotation in annotations]
    return mask_iou([record["segmentation"] for record in records], masks, is_crowd.tolist())


def as_rle(segmentation: Any, size: tuple[int, int]) -> RLE:
    """COCO's `segmentation` in any of its three forms (polygons, run lengths, compressed) as a compressed RLE."""
    if isinstance(segmentation, Mapping):
        counts = segmentation["counts"]
        return rle.from_counts(counts, size) if isinstance(counts, list) else RLE(size=[*size], counts=counts)
    rings = [np.asarray(ring, dtype=np.float64).reshape(-1, 2) for ring in segmentation]
    return rle_from_polygons(rings, size)


def box_iou(boxes: Sequence[Sequence[float]], gt_boxes: Sequence[Sequence[float]], is_crowd: np.ndarray) -> np.ndarray:
    """(d, g) float64 IoU of boxes (x, y, width, height); over the first one's area alone where `is_crowd` (g,)."""
    x, y, w, h = np.asarray(boxes, dtype=np.float64).reshape(-1, 4).T[:, :, None]
    gx, gy, gw, gh = np.asarray(gt_boxes, dtype=np.float64).reshape(-1, 4).T[:, None, :]
    width = np.minimum(x + w, gx + gw) - np.maximum(x, gx)
    height = np.minimum(y + h, gy + gh) - np.maximum(y, gy)
    intersection = width.clip(0) * height.clip(0)
    union = np.where(is_crowd[None, :], w * h, w * h + gw * gh - intersection)
    iou: np.ndarray = np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
    return iou
