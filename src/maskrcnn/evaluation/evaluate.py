"""Score any detector on any data set: pictures in, numbers, tables and curves out.

`evaluate` runs the detector and keeps one COCO record per detection (masks as RLE, never as bitmaps);
`evaluate_records` scores such records, of all pictures or of some.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from maskrcnn.data.classes import Classes
from maskrcnn.errors import InputError
from maskrcnn.evaluation.class_names import ClassMap
from maskrcnn.evaluation.coco_ap import CocoScores, GroundTruth, Record, coco_ap, limits_of
from maskrcnn.evaluation.keypoint_ap import MAX_DETECTIONS, keypoint_count
from maskrcnn.evaluation.matching import overlaps
from maskrcnn.evaluation.scores import ScoreCurve, confusion_matrix, score_curves
from maskrcnn.model.config import is_share
from maskrcnn.structures import Detections, Target

if TYPE_CHECKING:
    from rich.table import Table

Detect = Callable[[Iterable[np.ndarray]], Iterable[Detections]]
Progress = Callable[[int, int], None]  # (pictures done, pictures in all)


class LabelledPictures(Protocol):
    """What `evaluate` asks of a data set."""

    @property
    def classes(self) -> Classes: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[np.ndarray, Target]: ...

    def image_id(self, index: int, /) -> int: ...

    def ground_truth(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Counts:
    """How much was scored.

    objects leaves out crowd_regions. ignored_detections: those of ignored_classes, which the data set does not have.
    """

    pictures: int
    objects: int
    crowd_regions: int
    detections: int
    pictures_with_detections: int
    ignored_detections: int = 0
    ignored_classes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The scores of one detector on one data set.

    box, mask, keypoint: AP and AR; None where detector or data set has no masks, or no keypoints.
    total: precision, recall and F1 of all classes together at every score; per_class: of each of the K classes.
    confusion: (K+1, K+1) int64, rows truth, columns prediction, 0 is background. These three by mask overlap where
        there are masks, else by box overlap, of at least `iou_threshold`; confusion at `score_threshold`.
    category_ids, names: the K classes, by ascending category id.
    records, ground_truth: what was scored, as COCO has it.
    seconds: wall time of reading and detecting; scoring_seconds: of all that is here.
    """

    box: CocoScores
    mask: CocoScores | None
    total: ScoreCurve
    per_class: tuple[ScoreCurve, ...]
    confusion: np.ndarray
    counts: Counts
    category_ids: tuple[int, ...]
    names: tuple[str, ...]
    score_threshold: float
    iou_threshold: float
    records: Sequence[Record]
    ground_truth: GroundTruth
    seconds: float = 0.0
    scoring_seconds: float = 0.0
    keypoint: CocoScores | None = None

    def subset(self, image_ids: Iterable[int]) -> Evaluation:
        """The same detections scored on some pictures only: one camera's, the grey ones."""
        return evaluate_records(
            self.ground_truth,
            self.records,
            image_ids=image_ids,
            max_detections=self.box.max_detections,
            score_threshold=self.score_threshold,
            iou_threshold=self.iou_threshold,
            masks=self.mask is not None,
            keypoints=self.keypoint is not None,
            keypoint_detections=(MAX_DETECTIONS,) if self.keypoint is None else self.keypoint.max_detections,
            keypoint_sigmas=None if self.keypoint is None else self.keypoint.sigmas or None,
        )

    def summary(self) -> dict[str, Any]:
        """Everything as plain numbers, ready for JSON; None where there was nothing to score."""
        from maskrcnn.evaluation.report import summary

        return summary(self)

    def table(self) -> list[Table]:
        """Tables for the terminal: AP and AR, then the classes. `rich.console.Console().print(*evaluation.table())`"""
        from maskrcnn.evaluation.report import tables

        return tables(self)

    def save(self, folder: str | Path) -> list[Path]:
        """Write scores.json, detections.json and the curves (PNG); return their paths. Each appears whole."""
        from maskrcnn.evaluation.report import save

        return save(self, Path(folder))


def evaluate(
    detect: Detect,
    dataset: LabelledPictures,
    *,
    max_detections: int | Sequence[int] = (100, 300),
    score_threshold: float = 0.5,
    iou_threshold: float = 0.5,
    classes: Classes | None = None,
    progress: Progress | None = None,
    keypoint_detections: Sequence[int] = (MAX_DETECTIONS,),
    keypoint_sigmas: Sequence[float] | None = None,
) -> Evaluation:
    """Run a detector over a data set and score what it finds.

    Args:
        detect: takes an iterable of pictures (H, W, 3) uint8 RGB and gives one Detections for each, in order, in the
            picture's own frame. Pictures are read as it asks for them.
        dataset: pictures with their ground truth.
        max_detections: how many of a picture's best detections of a class count, for AP and AR; one or several.
        score_threshold: where the confusion matrix and the per-class precision, recall and F1 are taken.
        iou_threshold: overlap from which a detection has found an object, for those.
        classes: what the detector can find, if known: it is then checked before the first picture.
        progress: called after each picture with (done, in all).
        keypoint_detections: as `max_detections`, for the AP of keypoints; 20 is COCO's.
        keypoint_sigmas: J numbers, see `keypoint_ap`; by default COCO's for 17 keypoints, else their mean.

    Raises:
        InputError: not one class of the detector is in the data set, or `detect` gives too few or too many results
            or one of another size than its picture, or other keypoints than the data set has.
    """
    _require_shares(score_threshold=score_threshold, iou_threshold=iou_threshold)
    max_detections = limits_of(max_detections)  # what cannot be scored is told before the first picture
    class_map = ClassMap(dataset.classes)
    if classes is not None:
        class_map.check(classes.names)
    truth = dataset.ground_truth()
    began = time.perf_counter()
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    found = _Found(class_map, sizes, keypoint_count(truth["annotations"]))
    pictures = (dataset[index][0] for index in range(len(dataset)))
    for index, detections in enumerate(_one_each(detect(pictures), len(dataset))):
        found.add(detections, dataset.image_id(index))
        if progress is not None:
            progress(index + 1, len(dataset))
    found.check_names()
    scores = evaluate_records(
        truth,
        found.records,
        max_detections=max_detections,
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        masks=None if found.masks else False,
        keypoints=None if found.keypoints else False,
        keypoint_detections=keypoint_detections,
        keypoint_sigmas=keypoint_sigmas,
    )
    counts = replace(
        scores.counts,
        ignored_detections=sum(found.ignored.values()),
        ignored_classes=tuple(sorted(found.ignored)),
    )
    return replace(
        scores,
        counts=counts,
        seconds=time.perf_counter() - began - scores.scoring_seconds,
    )


def evaluate_records(
    ground_truth: GroundTruth,
    records: Sequence[Record],
    *,
    image_ids: Iterable[int] | None = None,
    max_detections: int | Sequence[int] = (100, 300),
    score_threshold: float = 0.5,
    iou_threshold: float = 0.5,
    masks: bool | None = None,
    keypoints: bool | None = None,
    keypoint_detections: Sequence[int] = (MAX_DETECTIONS,),
    keypoint_sigmas: Sequence[float] | None = None,
) -> Evaluation:
    """Score COCO result records.

    Args:
        ground_truth: a COCO dict: images, annotations, categories.
        records: COCO results: image_id, category_id, bbox, score, and segmentation (RLE) where there are masks,
            keypoints where there are such.
        image_ids: score these pictures only; all by default.
        max_detections, score_threshold, iou_threshold: as for `evaluate`.
        masks: score masks too; by default where every record and every annotation has one.
        keypoints: score keypoints too; by default where every record and any annotation has some.
        keypoint_detections, keypoint_sigmas: as for `evaluate`.

    Raises:
        InputError: as `coco_ap`.
    """
    _require_shares(score_threshold=score_threshold, iou_threshold=iou_threshold)
    began = time.perf_counter()
    if image_ids is not None:
        ground_truth, records = restricted(ground_truth, records, image_ids)
    if masks is None or masks:
        masks = _have_masks(ground_truth["annotations"]) and _have_masks(records)
    box = coco_ap(ground_truth, records, "bbox", max_detections)
    mask = coco_ap(ground_truth, records, "segm", max_detections) if masks else None
    if keypoints is None or keypoints:
        keypoints = _have_keypoints(ground_truth["annotations"], records)
    keypoint = None
    if keypoints:
        keypoint = coco_ap(ground_truth, records, "keypoints", keypoint_detections, keypoint_sigmas)
    found = overlaps(ground_truth, records, "segm" if masks else "bbox", iou_threshold)
    total, per_class = score_curves(found, len(box.names))
    return Evaluation(
        box=box,
        mask=mask,
        keypoint=keypoint,
        total=total,
        per_class=per_class,
        confusion=confusion_matrix(found, len(box.names), score_threshold),
        counts=_counts(ground_truth, records),
        category_ids=box.category_ids,
        names=box.names,
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        records=records,
        ground_truth=ground_truth,
        scoring_seconds=time.perf_counter() - began,
    )


def _require_shares(**values: float) -> None:
    for name, value in values.items():
        if not is_share(value):
            raise InputError("impossible value", field=name, found=repr(value), expected="a number from 0 to 1")


def restricted(
    ground_truth: GroundTruth, records: Sequence[Record], image_ids: Iterable[int]
) -> tuple[dict[str, Any], list[Record]]:
    """Ground truth and records of some pictures only; every category stays.

    Raises InputError where the ground truth has no picture of an id.
    """
    chosen = set(image_ids)
    unknown = chosen - {image["id"] for image in ground_truth["images"]}
    if unknown:
        raise InputError("no such picture", field="image_ids", found=sorted(unknown, key=str))
    truth = {
        **ground_truth,
        "images": [image for image in ground_truth["images"] if image["id"] in chosen],
        "annotations": [a for a in ground_truth["annotations"] if a["image_id"] in chosen],
    }
    return truth, [record for record in records if record["image_id"] in chosen]


class _Found:
    """Records of all detections so far, under the data set's category ids.

    keypoints_expected: J of the data set, 0 where it has none.
    """

    def __init__(self, class_map: ClassMap, sizes: dict[int, tuple[int, int]], keypoints_expected: int) -> None:
        self.class_map = class_map
        self.sizes = sizes
        self.keypoints_expected = keypoints_expected
        self.records: list[Record] = []
        self.ignored: dict[str, int] = {}  # detections of each class that the data set does not have
        self.masks = False
        self.keypoints = False

    def add(self, detections: Detections, image_id: int) -> None:
        size = self.sizes[image_id]
        if tuple(detections.size) != size:
            raise InputError(
                "detections of another size than the picture",
                field=f"picture {image_id}",
                found=tuple(detections.size),
                expected=f"(height, width) {size}",
            )
        self.masks = self.masks or detections.masks is not None
        if detections.keypoints is not None:
            count = detections.keypoints.shape[1]
            if self.keypoints_expected not in (0, count):
                expected = f"{self.keypoints_expected}, as the data set has"
                raise InputError("keypoints that cannot be compared", field="detect", found=count, expected=expected)
            self.keypoints = True
        for record, name in zip(detections.coco(image_id), detections.names, strict=True):
            category_id = self.class_map.category_id(name, record["category_id"])
            if category_id is None:
                name = name or str(record["category_id"])
                self.ignored[name] = self.ignored.get(name, 0) + 1
            else:
                self.records.append(record | {"category_id": category_id})

    def check_names(self) -> None:
        """Detections, and not one of a class that the data set has: two vocabularies."""
        if self.ignored and not self.records:
            self.class_map.check(self.ignored)


def _one_each(detections: Iterable[Detections], expected: int) -> Iterator[Detections]:
    count = 0
    for count, found in enumerate(detections, start=1):
        if count > expected:
            break
        yield found
    if count != expected:
        problem = "too many results" if count > expected else "too few results"
        raise InputError(problem, field="detect", found=count, expected=f"one for each of {expected} pictures")


def _have_masks(rows: Sequence[Any]) -> bool:
    return all(row.get("segmentation") for row in rows)


def _have_keypoints(annotations: Sequence[Any], records: Sequence[Record]) -> bool:
    return any(a.get("keypoints") for a in annotations) and all("keypoints" in record for record in records)


def _counts(ground_truth: GroundTruth, records: Sequence[Record]) -> Counts:
    crowds = sum(bool(a.get("iscrowd", 0)) for a in ground_truth["annotations"])
    return Counts(
        pictures=len(ground_truth["images"]),
        objects=len(ground_truth["annotations"]) - crowds,
        crowd_regions=crowds,
        detections=len(records),
        pictures_with_detections=len({record["image_id"] for record in records}),
    )
