"""From what the exported network gives to `Detections` of one picture, in numpy: cut, placed, named, thinned out.

The same steps as `original_frame` of `model/mask_rcnn.py` takes with torch.

D detections    M mask side    J keypoints    boxes: (x1, y1, x2, y2), float pixels; size: (height, width)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from maskrcnn.export.facts import Facts
from maskrcnn.export.heatmaps import heatmaps_to_points
from maskrcnn.export.host import cut, extra, to_original, window_of
from maskrcnn.model.detection_config import DetectionConfig
from maskrcnn.ops.paste import pasted_iou
from maskrcnn.structures import Detections, Masks, Size

_SMALLEST = float(np.finfo(np.float32).tiny)


def placed(
    outputs: Mapping[str, np.ndarray],
    i: int,
    image_size: np.ndarray,
    padded_size: Size,
    size: Size,
    facts: Facts,
    config: DetectionConfig,
) -> Detections:
    """What was found in picture i of a call, in the picture as it was given, of `size`; all arrays are numpy's.

    image_size: (2,) of the picture in the padded frame. config: the thresholds of this call.
    """
    window = window_of(image_size, padded_size, facts)
    keep = outputs["valid"][i].astype(bool) & (outputs["scores"][i] > config.score_threshold)
    keep = np.flatnonzero(keep)[: config.max_detections]  # best first
    found_boxes = outputs["boxes"][i][keep]
    boxes = cut(to_original(found_boxes, window, size, extra(facts)), size)
    boxes = boxes.round() if config.whole_pixels else boxes
    labels = outputs["labels"][i][keep].astype(np.int64)
    masks = None
    if "masks" in outputs:
        masks = _masks(outputs["masks"][i][keep], boxes, size, config.mask_threshold)
    points = None
    if facts.keypoints is not None:
        points = _keypoints(outputs["heatmaps"][i][keep], found_boxes, window, size, facts)
    positions = (labels - 1).tolist()
    found = _detections(
        boxes=boxes,
        scores=outputs["scores"][i][keep],
        labels=labels,
        names=tuple(facts.class_names[p] for p in positions),
        category_ids=tuple(facts.category_ids[p] for p in positions),
        masks=masks,
        size=size,
        keypoints=points,
        keypoint_scheme=facts.keypoints,
    )
    staying = _staying(found, config)
    return found if staying is None else found.chosen(staying)


def _detections(**fields: Any) -> Detections:
    """`Detections` whose arrays are numpy's: its fields are declared as the tensors that they are elsewhere."""
    return Detections(**fields)


def _masks(probabilities: Any, boxes: Any, size: Size, threshold: float) -> Masks:
    return Masks(probabilities, boxes, size, threshold)


def _staying(found: Any, config: DetectionConfig) -> Any:
    """(D,) bool, as `keep_placed`: not those that rounding left without area, nor those of masks too much alike."""
    keep = None
    if config.whole_pixels or config.min_size == 0:
        smallest = 1.0 if config.whole_pixels else _SMALLEST
        keep = (found.boxes[:, 2:] - found.boxes[:, :2] >= smallest).all(axis=1)
    if config.mask_nms_iou is None or found.masks is None or len(found) < 2:
        return keep
    masks = found.masks
    overlap = pasted_iou(masks.probabilities, masks.boxes, masks.size, masks.threshold).astype(np.float32)
    if not config.class_agnostic_nms:
        overlap = overlap * (found.labels[:, None] == found.labels)
    apart = _suppressed(overlap, found.scores, config.mask_nms_iou)
    return apart if keep is None else keep & apart


def _suppressed(overlap: np.ndarray, scores: np.ndarray, limit: float) -> np.ndarray:
    """(D,) bool: from the best score down, one stays unless a better one that stayed overlaps it by more."""
    keep = np.zeros(len(scores), dtype=bool)
    for d in np.argsort(-scores, kind="stable"):
        keep[d] = not (overlap[d, keep] > np.float32(limit)).any()
    return keep


def _keypoints(maps: np.ndarray, boxes: np.ndarray, window: np.ndarray, size: Size, facts: Facts) -> np.ndarray:
    """(D, J, 3) float32 x, y, score in the picture as given."""
    apart = np.array([0, 0, extra(facts), extra(facts)], dtype=np.float32)
    points, peaks = heatmaps_to_points(maps, boxes + apart)
    flat = maps.reshape(*maps.shape[:2], -1)
    scores = peaks
    if facts.keypoint_score == "share":
        scores = 1 / np.exp(flat - peaks[..., None]).sum(axis=2)
    corners = np.tile(points.reshape(-1, 2), 2)  # each point as a box without area
    places = to_original(corners, window + apart, size, 0.0)[:, :2].reshape(points.shape)
    return np.concatenate([places, scores[..., None]], axis=2).astype(np.float32)
