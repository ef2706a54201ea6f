"""Between an evaluation and its detector: every picture is probed with its ground truth, and the reasons gathered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from maskrcnn.data.classes import Classes
from maskrcnn.data.pictures import read_picture
from maskrcnn.evaluation.class_names import ClassMap
from maskrcnn.evaluation.evaluate import Detect, LabelledPictures
from maskrcnn.inspection.probe import probe
from maskrcnn.inspection.why import Reasons
from maskrcnn.model.mask_rcnn import Limits
from maskrcnn.predictor import Predictor
from maskrcnn.structures import Detections, Target


class Watched:
    """A data set that remembers the target of the picture it gave last, and whether all its objects have masks."""

    def __init__(self, dataset: LabelledPictures) -> None:
        self.dataset = dataset
        self.target: Target | None = None
        self.has_masks = True

    @property
    def classes(self) -> Classes:
        return self.dataset.classes

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int, /) -> tuple[np.ndarray, Target]:
        picture, self.target = self.dataset[index]
        return picture, self.target

    def image_id(self, index: int, /) -> int:
        return self.dataset.image_id(index)

    def ground_truth(self) -> dict[str, Any]:
        truth = self.dataset.ground_truth()
        self.has_masks = all(annotation.get("segmentation") for annotation in truth["annotations"])
        return truth


def explaining(predictor: Predictor, dataset: Watched, reasons: Reasons, limits: Limits) -> Detect:
    """The detector for an evaluation of `dataset`, which also tells `reasons` of each picture, one at a time."""
    names = Classes(predictor.class_names, predictor.category_ids)
    table = labels_of(dataset.classes, names)
    reasons.labels = table[table <= len(names)].tolist()

    def detect(pictures: Iterable[np.ndarray]) -> Iterator[Detections]:
        for picture in pictures:
            assert dataset.target is not None  # it has just given the picture
            reasons.masks = None if dataset.has_masks else False
            steps = probe(predictor, read_picture(picture), limits, relabelled(dataset.target, table))
            reasons.add(steps)
            yield steps.detections

    return detect


def in_classes_of(target: Target, classes: Classes, predictor: Predictor) -> Target:
    """The target of a data set with the labels that the detector gives, matched by name as in the evaluation.

    Labels above K are classes that the detector does not have.
    """
    return relabelled(target, labels_of(classes, Classes(predictor.class_names, predictor.category_ids)))


def labels_of(classes: Classes, detector: Classes) -> np.ndarray:
    """(C,) int64, the detector's label of each class of a data set; from K + 1 on for those that it does not have."""
    class_map = ClassMap(classes)
    labels = np.zeros(len(classes), dtype=np.int64)
    for label, (name, category_id) in enumerate(zip(detector.names, detector.category_ids, strict=True), start=1):
        category = class_map.category_id(name, category_id)
        if category is not None and labels[classes.label_of_category[category] - 1] == 0:
            labels[classes.label_of_category[category] - 1] = label
    unknown = labels == 0
    labels[unknown] = len(detector) + 1 + np.arange(unknown.sum())
    return labels


def relabelled(target: Target, table: np.ndarray) -> Target:
    """table: (C,) int64, the new label of each."""
    return replace(target, gt_labels=torch.from_numpy(table)[target.gt_labels.cpu() - 1])
