"""What happens at each stage, in words, and how many boxes, cells or objects there are, straight from the tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from maskrcnn.inspection.figure import STAGES
from maskrcnn.inspection.levels import level_of_boxes
from maskrcnn.inspection.probe import Steps

Plain = dict[str, Any]

_TEXTS = {  # stage -> title, what happens there, where in the package
    "input": (
        "Picture",
        "The picture is resized to the size that the detector was trained for and padded, so that its sides can be "
        "halved again and again.",
        "model/preprocess.py",
    ),
    "features": (
        "Features",
        "The backbone turns pixels into maps of what it sees; the pyramid gives each level fine places and coarse "
        "meaning.",
        "model/backbone.py, model/fpn.py",
    ),
    "anchors": (
        "Anchors",
        "A grid of fixed boxes covers the picture. Each is asked one thing: is there an object here? An object that no "
        "anchor resembles is hard to find from here on.",
        "model/anchors.py",
    ),
    "proposals": (
        "Proposals",
        "The best anchors of each level are moved onto what they see, cut to the picture, and freed of near copies. "
        "The best of the rest go on as proposals.",
        "model/rpn.py",
    ),
    "levels": (
        "RoIAlign",
        "Each proposal is read from the level of the pyramid that suits its size, at a small grid of points.",
        "model/roi_pooler.py",
    ),
    "boxes": (
        "Classes and boxes",
        "The box head says what is in each RoI and where exactly. Low scores and near copies of one class are dropped.",
        "model/box_head.py",
    ),
    "masks": (
        "Masks",
        "For each detection a small map of probabilities is made, resized into its box and cut at the threshold.",
        "model/mask_head.py",
    ),
    "result": ("Result", "What the detector answers, best first, in the picture as it was given.", "predictor.py"),
}


def stages(steps: Steps) -> list[Plain]:
    """The stages in order, each with what it is and its counts."""
    counts = _counts(steps)
    return [
        {
            "stage": stage,
            "title": _TEXTS[stage][0],
            "text": _TEXTS[stage][1],
            "code": _TEXTS[stage][2],
            "counts": [{"key": key, "label": label, "value": plain(value)} for key, label, value in counts[stage]],
        }
        for stage in STAGES
    ]


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: numbers of numpy and torch as Python's, those that are not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _counts(steps: Steps) -> dict[str, list[tuple[str, str, int | str]]]:
    """stage -> (key, label, value), straight from the tensors."""
    candidates, rivals, (height, width) = steps.proposal_candidates, steps.detection_candidates, steps.size
    resized = steps.batch.image_sizes[0].int().tolist()
    gt = (
        []
        if steps.target is None
        else [("objects", "objects of the ground truth", int((~steps.target.is_crowd).sum()))]
    )
    levels = steps.anchor_levels.bincount(minlength=len(steps.level_names)).tolist()
    rois, pooler = steps.proposals.boxes[0][steps.proposals.valid[0]], steps.model.box_pooler
    pooled = level_of_boxes(pooler, rois, steps).bincount(minlength=len(pooler.strides)).tolist()
    classes: dict[str, int] = {}
    for name in steps.detections.names:
        classes[name] = classes.get(name, 0) + 1
    logits = steps.found.mask_logits
    masks = [] if logits is None else [("side", "side of a mask, cells", logits.shape[-1])]
    return {
        "input": [
            ("original", "as given, px", f"{width} x {height}"),
            ("resized", "resized, px", f"{resized[1]} x {resized[0]}"),
            ("padded", "padded, px", f"{steps.padded_size[1]} x {steps.padded_size[0]}"),
            *gt,
        ],
        "features": [
            (name, f"{name}, channels x height x width", " x ".join(str(n) for n in feature.shape[1:]))
            for name, feature in steps.features.items()
        ],
        "anchors": [
            ("anchors", "anchors", len(steps.anchors)),
            *((name, f"of {name}", count) for name, count in zip(steps.level_names, levels, strict=True)),
        ],
        "proposals": [
            ("anchors", "anchors", len(steps.anchors)),
            ("candidates", "the best of each level", int(candidates.logits.isfinite().sum())),
            ("valid", "large enough", int(candidates.valid.sum())),
            ("kept", "left by NMS", int(candidates.kept.sum())),
            ("proposals", "proposals", int(steps.proposals.valid.sum())),
        ],
        "levels": [
            ("rois", "RoIs", int(steps.proposals.valid.sum())),
            *((name, f"read from {name}", count) for name, count in zip(pooler.strides, pooled, strict=True)),
        ],
        "boxes": [
            ("rois", "RoIs", int(steps.rois.valid.sum())),
            ("classes", "classes", steps.config.num_classes),
            ("valid", "good enough for NMS", int(rivals.valid.sum())),
            ("kept", "left by NMS", int(rivals.kept.sum())),
            ("found", "within the limit", int(steps.found.valid.sum())),
        ],
        "masks": [
            ("found", "detections", len(steps.placed)),
            *masks,
            ("kept", "left by rounding and by NMS of masks", int(steps.kept.sum())),
        ],
        "result": [
            ("detections", "detections", len(steps.detections)),
            *((f"class {name}", name, count) for name, count in classes.items()),
        ],
    }
