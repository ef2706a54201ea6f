"""HOG + SVM at work: every window at every size scored, and what overlaps a better one dropped; and its file.

P windows kept    K classes    boxes: x1 y1 x2 y2, float pixels of the picture as given    labels 1..K
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from maskrcnn.data.classes import Classes
from maskrcnn.errors import InputError
from maskrcnn.lineage.hog import Level, Window, margins, pyramid
from maskrcnn.lineage.svm import scores_from_margins
from maskrcnn.lineage.system import Stopwatch
from maskrcnn.ops.boxes import clip
from maskrcnn.ops.files import whole_file
from maskrcnn.ops.nms import nms_keep, top_k
from maskrcnn.structures import Detections

NMS_IOU = 0.3  # R-CNN's
LEAST_MARGIN = -1.0  # below it a window is where the SVM was taught to put background
CANDIDATES = 1000  # of a class, before NMS
MAX_DETECTIONS = 100  # per picture
_METADATA_KEY = "maskrcnn_hog_svm"


@dataclass(frozen=True)
class ClassDetector:
    """One class.

    weights: (F,) float32, of features as they are computed. first, last: numbers of the pyramid's sizes to search.
    """

    label: int
    window: Window
    weights: np.ndarray
    bias: float
    first: int
    last: int

    def searches(self, level: Level) -> bool:
        return self.first <= level.number <= self.last


@dataclass(frozen=True)
class HogSVM:
    """A detector of each class that had an object to learn from; the others are never found."""

    classes: Classes
    detectors: tuple[ClassDetector, ...]

    def detect(self, picture: np.ndarray, watch: Stopwatch) -> Detections:
        """What is found in (H, W, 3) uint8 RGB; stages "features" (pyramid and HOG), "SVM" and "NMS"."""
        height, width = picture.shape[:2]
        with watch("features"):
            levels = list(pyramid(picture, sizes_of(self.detectors)))
        with watch("SVM"):
            found = [_candidates(detector, levels) for detector in self.detectors]
            boxes = clip(torch.cat([torch.zeros(0, 4), *(boxes for boxes, _ in found)]), height, width)
            scores = scores_from_margins(torch.cat([torch.zeros(0), *(values for _, values in found)]))
            counts = torch.tensor([len(values) for _, values in found], dtype=torch.int64)
            labels = torch.tensor([each.label for each in self.detectors], dtype=torch.int64).repeat_interleave(counts)
        with watch("NMS"):
            kept = nms_keep(boxes, scores, NMS_IOU, groups=labels).nonzero().squeeze(1)
            best = kept[top_k(scores[kept], MAX_DETECTIONS, stable=True)[1]]
        chosen = labels[best].tolist()
        return Detections(
            boxes=boxes[best],
            scores=scores[best],
            labels=labels[best],
            names=tuple(self.classes.names[k - 1] for k in chosen),
            category_ids=tuple(self.classes.category_ids[k - 1] for k in chosen),
            masks=None,
            size=(height, width),
        )


def sizes_of(detectors: Sequence[ClassDetector]) -> range:
    """Numbers of the sizes that any of them searches."""
    if not detectors:
        return range(0)
    return range(min(each.first for each in detectors), max(each.last for each in detectors) + 1)


def _candidates(detector: ClassDetector, levels: Sequence[Level]) -> tuple[Tensor, Tensor]:
    """Boxes (P, 4) float32 and margins (P,) of the windows that may hold an object, best first."""
    boxes, values = [np.zeros((0, 4))], [np.zeros(0, dtype=np.float32)]
    for level in filter(detector.searches, levels):
        found = margins(level, detector.window, detector.weights, detector.bias)
        rows, columns = np.nonzero(found > LEAST_MARGIN)
        boxes.append(level.boxes(detector.window, rows, columns))
        values.append(found[rows, columns])
    best, order = top_k(torch.from_numpy(np.concatenate(values)), CANDIDATES, stable=True)
    return torch.from_numpy(np.concatenate(boxes)).float()[order], best


def save_detector(path: Path, detector: HogSVM, facts: Mapping[str, Any]) -> Path:
    """Write it to one `.safetensors` file, whole or not at all. facts: JSON-ready, whatever is to be known of it."""
    tensors = {f"weights.{each.label}": torch.from_numpy(each.weights) for each in detector.detectors}
    document = {
        "names": detector.classes.names,
        "category_ids": detector.classes.category_ids,
        "detectors": [
            {"label": each.label, "window": [each.window.height, each.window.width]}
            | {"bias": each.bias, "first": each.first, "last": each.last}
            for each in detector.detectors
        ],
        "facts": dict(facts),
    }
    with whole_file(path) as unfinished:
        unfinished.write_bytes(safetensors.torch.save(tensors, metadata={_METADATA_KEY: json.dumps(document)}))
    return path


def load_detector(path: Path) -> tuple[HogSVM, dict[str, Any]]:
    """What `save_detector` wrote, and its facts.

    Raises:
        InputError: no such file, damaged, or of another kind.
    """
    if not path.is_file():
        raise InputError("no such file", file=path, expected="a HOG + SVM detector that maskrcnn wrote")
    try:
        with safetensors.safe_open(path, framework="np") as stream:
            document = json.loads((stream.metadata() or {}).get(_METADATA_KEY, "null"))
            weights = {name: stream.get_tensor(name) for name in stream.keys()}
        detectors = tuple(_class_detector(record, weights) for record in document["detectors"])
        classes = Classes(tuple(document["names"]), tuple(document["category_ids"]))
        return HogSVM(classes, detectors), dict(document["facts"])
    except (safetensors.SafetensorError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise InputError("is damaged or of another kind", file=path, found=str(error)) from error


def _class_detector(record: dict[str, Any], weights: dict[str, np.ndarray]) -> ClassDetector:
    label, window = int(record["label"]), Window(*map(int, record["window"]))
    own = weights[f"weights.{label}"]
    if own.shape != (window.features,):
        raise ValueError(f"{own.shape} weights for {window.features} features")
    return ClassDetector(label, window, own, float(record["bias"]), int(record["first"]), int(record["last"]))
