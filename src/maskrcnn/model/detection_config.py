"""What of the box head's output becomes a detection, as choices: thresholds, NMS, how many. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from maskrcnn.model.config import require


@dataclass(frozen=True, kw_only=True)
class DetectionConfig:
    """What of the box head's output becomes a detection."""

    score_threshold: float = 0.05  # a class of a RoI with less is not a detection; Girshick 2015 code
    nms_iou: float = 0.5  # between detections of one class; Detectron (the code of He et al. 2017)
    max_detections: int = 100  # kept per image; He et al. 2017, 3.1. No cap above it
    min_size: float = 1e-2  # px, detections with a shorter side are dropped
    best_class_only: bool = False  # a RoI is a detection of its best class or, if that is background, of none
    whole_pixels: bool = False  # boxes are rounded to pixels of the original; one that has no area then is dropped
    class_agnostic_nms: bool = False  # a box also suppresses boxes of other classes
    mask_nms_iou: float | None = None  # suppress by the IoU of masks too: touching objects have boxes that overlap
    mask_threshold: float = 0.5  # a pixel of at least this probability is the object's; He et al. 2017, 3.1

    def __post_init__(self) -> None:
        require(0 <= self.score_threshold <= 1, self, "score_threshold", "0 to 1")
        require(0 <= self.nms_iou <= 1, self, "nms_iou", "0 to 1")
        require(self.max_detections >= 1, self, "max_detections", "at least 1")
        require(self.mask_nms_iou is None or 0 <= self.mask_nms_iou <= 1, self, "mask_nms_iou", "0 to 1, or none")
        require(0 < self.mask_threshold < 1, self, "mask_threshold", "between 0 and 1")
