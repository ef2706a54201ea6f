"""The final result as four tasks see it: what is in the picture, where, which pixels are which class, which object.

D detections    K classes    h, w size of the page's picture
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maskrcnn.inspection.masks import painted
from maskrcnn.inspection.probe import Steps
from maskrcnn.structures import Detections

SHOWN_FROM = 0.5  # score


@dataclass(frozen=True)
class ClassInPicture:
    """Classification. score: the highest that any RoI has for the class, 0..1. count: detections shown of it."""

    name: str
    score: float
    count: int


@dataclass(frozen=True, eq=False)
class Result:
    """shown: what scores enough, best first, in the frame of a picture `scale` times as large as the original.

    total: detections in all. classes: K, likeliest first. semantic: (h, w) int32 label of each pixel, 0 background;
    where objects overlap that of the better. instances: (h, w) int32, 1 + row of `shown`, 0
    background. Both None without masks.
    """

    shown: Detections
    total: int
    scale: float
    classes: tuple[ClassInPicture, ...]
    semantic: np.ndarray | None
    instances: np.ndarray | None


def compose(steps: Steps, scale: float = 1.0, least: float = SHOWN_FROM) -> Result:
    """Detections that score at least `least`. At scale 1 and least 0 `draw` is `Detections.draw`, pixel by pixel."""
    found = steps.detections
    shown = enlarged(found.chosen(found.scores >= least), scale)
    semantic = instances = None
    if shown.masks is not None:
        instances = painted(shown.masks.rle(), list(range(1, len(shown) + 1)), shown.size)
        semantic = np.concatenate([[0], shown.labels.numpy()]).astype(np.int32)[instances]
    return Result(shown, len(found), scale, _classes(steps, shown), semantic, instances)


def draw(result: Result, picture: np.ndarray) -> np.ndarray:
    """Masks, boxes, names and scores over the picture (H, W, 3), original frame: (h, w, 3) uint8."""
    height, width = result.shown.size
    if (height, width) != picture.shape[:2]:
        filter = Image.Resampling.BICUBIC if result.scale > 1 else Image.Resampling.LANCZOS
        picture = np.array(Image.fromarray(picture).resize((width, height), filter, reducing_gap=2.0))
    return result.shown.draw(picture)


def enlarged(found: Detections, scale: float) -> Detections:
    """The same objects in a picture `scale` times as large."""
    if scale == 1:
        return found
    size = max(1, round(found.size[0] * scale)), max(1, round(found.size[1] * scale))
    masks = found.masks
    return replace(
        found,
        boxes=found.boxes * scale,
        masks=None if masks is None else replace(masks, boxes=masks.boxes * scale, size=size),
        keypoints=None if found.keypoints is None else found.keypoints * found.keypoints.new_tensor([scale, scale, 1]),
        size=size,
    )


def _classes(steps: Steps, shown: Detections) -> tuple[ClassInPicture, ...]:
    scores = _best_scores(steps)
    counts = shown.labels.bincount(minlength=len(scores) + 1).tolist()[1:]
    rows = [
        ClassInPicture(name, float(score), count)
        for name, score, count in zip(steps.config.class_names, scores, counts, strict=True)
    ]
    return tuple(sorted(rows, key=lambda row: -row.score))


def _best_scores(steps: Steps) -> Tensor:
    """(K,) the highest score of each class among all RoIs; 0 without any."""
    probabilities = steps.box_outputs.class_logits.softmax(dim=1)[steps.rois.valid[0]][:, 1:].cpu()
    return probabilities.amax(dim=0) if len(probabilities) else torch.zeros(steps.config.num_classes)
