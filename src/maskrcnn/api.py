"""What the Python face adds to the parts: opening what a user names, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from maskrcnn.data.classes import Classes
from maskrcnn.data.layout import Split
from maskrcnn.data.opening import DataLike, open_dataset
from maskrcnn.data.pictures import PictureLike, read_picture
from maskrcnn.errors import InputError
from maskrcnn.evaluation.coco_ap import limits_of
from maskrcnn.evaluation.evaluate import Detect, Evaluation, LabelledPictures, Progress
from maskrcnn.evaluation.evaluate import evaluate as evaluate_detect
from maskrcnn.export.opening import ExportedDetector
from maskrcnn.inspection.explain import Watched, explaining
from maskrcnn.inspection.probe import Steps, probe
from maskrcnn.inspection.why import Reasons
from maskrcnn.model.mask_rcnn import Limits
from maskrcnn.predictor import PredictOptions, Predictor
from maskrcnn.structures import Target


def evaluate(
    model: Predictor | ExportedDetector | Detect,
    data: DataLike,
    *,
    images: str | Path | None = None,
    split: Split = "val",
    skip_bad: bool = False,
    max_detections: int | Sequence[int] = (100, 300),
    score_threshold: float = 0.5,
    predict_options: PredictOptions | None = None,
    progress: Progress | None = None,
    keypoint_detections: Sequence[int] = (20,),
    keypoint_sigmas: Sequence[float] | None = None,
    reasons: Reasons | None = None,
) -> Evaluation:
    """Score a detector on labelled pictures.

    Args:
        model: what `load` gave, or any function from an iterable of pictures to an iterable of `Detections`.
        data: an annotation file, a folder that holds one, "shapes", a data set, or any sequence of (picture, Target).
        images: folder of the pictures, where they are not found beside the annotations. split: "val" or "train",
            for a folder that holds both. skip_bad: leave out what is wrong in the data rather than refuse it.
        max_detections: how many detections per picture and class AP and AR count, one or several.
        score_threshold: where precision, recall, F1 and the confusion matrix are taken, 0..1.
        predict_options: for `Predictor.predict`. Its own `max_detections` is at least the largest above unless given.
        progress: called with (pictures done, pictures in all).
        keypoint_detections: as `max_detections`, for the AP of keypoints; COCO counts 20.
        keypoint_sigmas: how far off each of the J keypoints may be, in sides of the object (see
            `evaluation/keypoint_ap.py`). None: COCO's where J is 17, else the mean of those for each.
        reasons: a `maskrcnn.inspection.why.Reasons()`, which is told what became of every object; its `why()` then sums
            it up. Pictures are looked at one by one for it. Only with a `Predictor`.

    Errors: `InputError` for what is wrong with the data, and where the detector has not one class of the data.
    """
    dataset: LabelledPictures = open_dataset(data, images=images, split=split, skip_bad=skip_bad)
    classes: Classes | None = None
    detect: Detect
    if reasons is not None and not isinstance(model, Predictor):
        raise InputError("needs a Predictor, which shows its steps", field="reasons", found=type(model).__name__)
    if isinstance(model, ExportedDetector):
        classes = Classes(model.class_names, model.category_ids)
        detect = partial(model.predict, **(predict_options or {}))
    elif not isinstance(model, Predictor):
        detect = model
    else:
        classes = Classes(model.class_names, model.category_ids)
        options = _with_enough(model, limits_of(max_detections), predict_options or {})
        detect = _detect(model, options)
        if reasons is not None:
            watched = dataset = Watched(dataset)
            detect = explaining(model, watched, reasons, _limits(options))
    return evaluate_detect(
        detect,
        dataset,
        max_detections=max_detections,
        score_threshold=score_threshold,
        classes=classes,
        progress=progress,
        keypoint_detections=keypoint_detections,
        keypoint_sigmas=keypoint_sigmas,
    )


def inspect(
    model: Predictor,
    picture: PictureLike,
    *,
    ground_truth: Target | None = None,
    score_threshold: float | None = None,
    nms_iou: float | None = None,
    max_detections: int | None = None,
    proposals: int | None = None,
    size: int | Literal["native"] | None = None,
    class_agnostic_nms: bool | None = None,
    mask_nms_iou: float | None = None,
) -> Steps:
    """Every step from one picture to its detections, as the detector computed it.

    Args:
        model: what `load` gave. picture: as for `Predictor.predict`, one picture.
        ground_truth: its objects, if known, in the frame of the picture.
        The rest as for `Predictor.predict`.

    Errors: `InputError` as `Predictor.predict`, and for ground truth of a picture of another size.
    """
    limits = Limits(
        score_threshold=score_threshold,
        nms_iou=nms_iou,
        max_detections=max_detections,
        proposals=proposals,
        size=size,
        class_agnostic_nms=class_agnostic_nms,
        mask_nms_iou=mask_nms_iou,
    )
    return probe(model, read_picture(picture), limits, ground_truth)


def _with_enough(predictor: Predictor, max_detections: Sequence[int], options: PredictOptions) -> PredictOptions:
    enough = max(predictor.model.config.detection.max_detections, *max_detections)
    return {"max_detections": enough, **options}


def _detect(predictor: Predictor, options: PredictOptions) -> Detect:
    return lambda pictures: predictor.predict(pictures, **options)


def _limits(options: PredictOptions) -> Limits:
    """Those of the options that are about what is detected."""
    return Limits(
        score_threshold=options.get("score_threshold"),
        nms_iou=options.get("nms_iou"),
        max_detections=options.get("max_detections"),
        proposals=options.get("proposals"),
        size=options.get("size"),
        class_agnostic_nms=options.get("class_agnostic_nms"),
        mask_nms_iou=options.get("mask_nms_iou"),
    )
