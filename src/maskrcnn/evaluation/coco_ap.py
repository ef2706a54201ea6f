"""AP and AR of boxes, masks and keypoints as COCO defines them: a thin seam over hotcoco, or pycocotools without it.

    T IoU thresholds .50 .55 ... .95    R recalls 0 .01 ... 1    K classes, by ascending category id
    A object areas: all, small < 32^2 px, medium, large > 96^2   M limits on the detections per picture
    (of keypoints: IoU is OKS, see `keypoint_ap`, and there is no small)

Definition: Lin et al. 2014, "Microsoft COCO", and its evaluation code. Two departures that change no score of a
well-formed file: annotations and pictures are renumbered (an annotation of id 0 would count as never found), and
results of masks and keypoints are handed on without their boxes (the area of a detection is then its mask's, or that
around its keypoints, not its box's).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from maskrcnn.errors import InputError, InputErrors
from maskrcnn.evaluation.keypoint_ap import keypoint_count, keypoint_fields, sigmas_for
from maskrcnn.model.config import MOST, is_count
from maskrcnn.ops.rle import RLE

IouType = Literal["bbox", "segm", "keypoints"]
Record = dict[str, Any]  # one COCO result: image_id, category_id, bbox, score, segmentation, keypoints
GroundTruth = Mapping[str, Any]  # a COCO dict: images, annotations, categories
Arrays = tuple[np.ndarray, np.ndarray]  # precision (T, R, K, A, M) and recall (T, K, A, M)

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
AREAS: dict[IouType, tuple[str, ...]] = {
    "bbox": ("all", "small", "medium", "large"),
    "segm": ("all", "small", "medium", "large"),
    "keypoints": ("all", "medium", "large"),
}
REGIONS: dict[IouType, str] = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}  # field of a record
OTHER_SIZE = "of another size than its picture"


@dataclass(frozen=True, eq=False)
class CocoScores:
    """Precision and recall of every class at every setting, and the averages that are read from them.

    precision: (T, R, K, A, M) float64, -1 where a class has no ground truth of that area.
    recall: (T, K, A, M) float64, likewise. max_detections: M limits, ascending.
    category_ids, names: K classes. sigmas: of keypoints, what was scored with.
    The averages are read at the largest limit; `at(k)` gives the scores at another.
    """

    iou_type: IouType
    precision: np.ndarray
    recall: np.ndarray
    max_detections: tuple[int, ...]
    category_ids: tuple[int, ...]
    names: tuple[str, ...]
    sigmas: tuple[float, ...] = ()

    def at(self, max_detections: int) -> CocoScores:
        """The same scores with one limit only (M = 1)."""
        if max_detections not in self.max_detections:
            raise InputError(
                "not scored at this limit",
                field="max_detections",
                found=max_detections,
                expected=f"one of {list(self.max_detections)}",
            )
        m = self.max_detections.index(max_detections)
        return replace(
            self,
            precision=self.precision[..., m : m + 1],
            recall=self.recall[..., m : m + 1],
            max_detections=(max_detections,),
        )

    @property
    def ap(self) -> float | None:
        """Mean over IoU .50 to .95, recalls and classes; None where nothing could be found."""
        return _mean(self._precision())

    @property
    def ap50(self) -> float | None:
        return _mean(self._precision()[0])

    @property
    def ap75(self) -> float | None:
        return _mean(self._precision()[5])

    @property
    def ap_small(self) -> float | None:
        """None for keypoints too: COCO annotates none of small objects."""
        return _mean(self._precision("small"))

    @property
    def ap_medium(self) -> float | None:
        return _mean(self._precision("medium"))

    @property
    def ap_large(self) -> float | None:
        return _mean(self._precision("large"))

    @property
    def ar(self) -> float | None:
        """Highest recall reached, mean over IoU .50 to .95 and classes."""
        return _mean(self.recall[:, :, 0, -1])

    @property
    def ap_per_class(self) -> tuple[float | None, ...]:
        """K values; None for a class without ground truth."""
        return tuple(_mean(self.precision[:, :, k, 0, -1]) for k in range(len(self.names)))

    @property
    def ap50_per_class(self) -> tuple[float | None, ...]:
        """K values at IoU .50; None for a class without ground truth."""
        return tuple(_mean(self.precision[0, :, k, 0, -1]) for k in range(len(self.names)))

    def _precision(self, area: str = "all") -> np.ndarray:
        areas = AREAS[self.iou_type]
        at = areas.index(area) if area in areas else len(areas)
        return self.precision[:, :, :, at : at + 1, -1]  # (T, R, K, 1), or of nothing


def coco_ap(
    ground_truth: GroundTruth,
    records: Sequence[Record],
    iou_type: IouType,
    max_detections: int | Iterable[int] = 100,
    sigmas: Sequence[float] | None = None,
) -> CocoScores:
    """Score COCO result records against a COCO ground-truth dict.

    Neither is changed. Records of a category that the ground truth lacks count as nothing, as COCO has it.

    Args:
        ground_truth: images, annotations (polygons or RLE; crowd regions are neither hits nor misses), categories.
        records: image_id, category_id, score, and bbox (x, y, width, height), segmentation (RLE) or keypoints (x, y,
            anything, ...). May be empty.
        iou_type: "bbox", "segm" or "keypoints", what overlap is measured on.
        max_detections: how many of a picture's best detections of each class count; one limit or several.
        sigmas: of each keypoint, see `keypoint_ap.sigmas_for`.

    Raises:
        InputError: a limit below 1, a record without what it needs, of an unknown picture, or with a score that
            is not a finite number.
    """
    limits = limits_of(max_detections)
    _check(ground_truth, records, iou_type)
    categories = sorted(ground_truth["categories"], key=lambda category: category["id"])
    truth, results = _renumbered(ground_truth, records, iou_type)
    precision, recall = _nothing_to_score(len(categories), len(AREAS[iou_type]), len(limits))
    scored_with = sigmas_for(keypoint_count(truth["annotations"]), sigmas) if iou_type == "keypoints" else ()
    if categories and truth["images"] and (iou_type != "keypoints" or scored_with):
        precision, recall = _run(truth, results, iou_type, limits, scored_with)
    return CocoScores(
        iou_type=iou_type,
        precision=precision,
        recall=recall,
        max_detections=limits,
        category_ids=tuple(category["id"] for category in categories),
        names=tuple(str(category.get("name", category["id"])) for category in categories),
        sigmas=scored_with,
    )


def evaluator_name() -> str:
    """Which library counts: "hotcoco", or "pycocotools" where that is not installed."""
    return "hotcoco" if importlib.util.find_spec("hotcoco") else "pycocotools"


def mask_iou(regions: Sequence[RLE], gt_regions: Sequence[RLE], is_crowd: Sequence[bool]) -> np.ndarray:
    """(d, g) float64 IoU of compressed RLEs of one picture; over the first one's area alone where `is_crowd` (g,).

    The same numbers as `ops.rle.iou`, from the library at hand: a sixth of the time on 100 detections a picture.
    """
    if not len(regions) or not len(gt_regions):
        return np.zeros((len(regions), len(gt_regions)))
    library = importlib.import_module(f"{evaluator_name()}.mask")
    return np.asarray(library.iou(list(regions), list(gt_regions), [int(flag) for flag in is_crowd]))


def _run(
    truth: dict[str, Any],
    results: list[Record],
    iou_type: IouType,
    limits: tuple[int, ...],
    sigmas: tuple[float, ...],
) -> Arrays:
    run = _run_hotcoco if evaluator_name() == "hotcoco" else _run_pycocotools
    return run(truth, results, iou_type, limits, sigmas)


def _run_hotcoco(
    truth: dict[str, Any],
    results: list[Record],
    iou_type: IouType,
    limits: tuple[int, ...],
    sigmas: tuple[float, ...],
) -> Arrays:
    import hotcoco

    gt = hotcoco.COCO(truth)
    evaluator = hotcoco.COCOeval(gt, gt.load_res(results), iou_type)
    evaluator.params.max_dets = list(limits)
    if sigmas:
        evaluator.params.kpt_oks_sigmas = list(sigmas)
    evaluator.evaluate()
    evaluator.accumulate()
    arrays = evaluator.eval
    assert arrays is not None  # accumulate() has just filled it
    return np.asarray(arrays["precision"]), np.asarray(arrays["recall"])


def _run_pycocotools(
    truth: dict[str, Any],
    results: list[Record],
    iou_type: IouType,
    limits: tuple[int, ...],
    sigmas: tuple[float, ...],
) -> Arrays:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def loaded(dataset: dict[str, Any]) -> Any:
        coco = COCO()
        coco.dataset = dataset
        coco.createIndex()
        return coco

    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        gt = loaded(truth)
        # loadRes looks at its first record, so an empty list would end in an IndexError
        dt = gt.loadRes(results) if results else loaded({**truth, "annotations": []})
        evaluator = COCOeval(gt, dt, iou_type)
        evaluator.params.maxDets = list(limits)
        evaluator.params.kpt_oks_sigmas = np.array(sigmas)
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator.eval["precision"], evaluator.eval["recall"]


def _nothing_to_score(classes: int, areas: int, limits: int) -> Arrays:
    shape = (classes, areas, limits)
    return np.full((len(IOU_THRESHOLDS), len(RECALLS), *shape), -1.0), np.full((len(IOU_THRESHOLDS), *shape), -1.0)


def _renumbered(
    ground_truth: GroundTruth, records: Sequence[Record], iou_type: IouType
) -> tuple[dict[str, Any], list[Record]]:
    """Copies with pictures and annotations numbered from 1, in the order of their ids, holding only what is scored.

    The order of pictures decides between equal scores, so it is kept.
    """
    number = {image["id"]: n for n, image in enumerate(sorted(ground_truth["images"], key=lambda i: i["id"]), start=1)}
    known = {category["id"] for category in ground_truth["categories"]}
    images = [
        {"id": number[image["id"]], "height": image["height"], "width": image["width"]}
        for image in ground_truth["images"]
    ]
    count = keypoint_count(ground_truth["annotations"]) if iou_type == "keypoints" else 0
    annotations = [
        _annotation(annotation, n, number[annotation["image_id"]], iou_type, count)
        for n, annotation in enumerate(ground_truth["annotations"], start=1)
    ]
    region = REGIONS[iou_type]
    results = [
        {
            "image_id": number[record["image_id"]],
            "category_id": record["category_id"],
            "score": record["score"],
            region: record[region],
        }
        for record in records
        if record["category_id"] in known
    ]
    categories = [{"id": c["id"], "name": str(c.get("name", c["id"]))} for c in ground_truth["categories"]]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def _annotation(
    annotation: Mapping[str, Any], number: int, image: int, iou_type: IouType, keypoints: int
) -> dict[str, Any]:
    x, y, width, height = annotation["bbox"]
    record = {
        "id": number,
        "image_id": image,
        "category_id": annotation["category_id"],
        "bbox": [x, y, width, height],
        "area": annotation.get("area", width * height),
        "iscrowd": int(annotation.get("iscrowd", 0)),
    }
    if iou_type == "keypoints":
        return record | keypoint_fields(annotation, keypoints)
    return record | {"segmentation": annotation["segmentation"]} if iou_type == "segm" else record


def limits_of(max_detections: int | Iterable[int]) -> tuple[int, ...]:
    """One limit or several, in ascending order.

    Errors: `InputError` for what is no whole number above 0, and where there is none.
    """
    limits: list[Any] = list(max_detections) if isinstance(max_detections, Iterable) else [max_detections]
    if not limits or not all(map(is_count, limits)):
        found, expected = repr(max_detections), f"one or more whole numbers from 1 to {MOST}"
        raise InputError("not a limit", field="max_detections", found=found, expected=expected)
    return tuple(sorted({int(limit) for limit in limits}))


def _check(ground_truth: GroundTruth, records: Sequence[Record], iou_type: IouType) -> None:
    """Raise InputErrors for the records that cannot be scored, all at once."""
    if iou_type not in REGIONS:
        expected = '"bbox", "segm" or "keypoints"'
        raise InputError("unknown kind of overlap", field="iou_type", found=iou_type, expected=expected)
    sizes = {image["id"]: [image["height"], image["width"]] for image in ground_truth["images"]}
    count = keypoint_count(ground_truth["annotations"])
    errors = []
    for index, record in enumerate(records):
        fault = _fault(record, sizes, iou_type, count)
        if fault is not None:
            key, problem, wanted = fault
            found = record.get(key)
            if problem == OTHER_SIZE:
                found = found["size"]  # type: ignore[index]
            errors.append(InputError(problem, field=f"detections[{index}].{key}", found=found, expected=wanted))
    if errors:
        raise InputErrors("detections that cannot be scored", errors)


def _fault(
    record: Record, sizes: Mapping[Any, list[int]], iou_type: IouType, keypoints: int
) -> tuple[str, str, str | None] | None:
    """(field, problem, what was expected) of the first thing wrong with a record."""
    for key in ("image_id", "category_id", "score", REGIONS[iou_type]):
        if key not in record:
            return key, "missing", None
    if record["image_id"] not in sizes:
        return "image_id", "no such picture", None
    if not _is_finite(record["score"]):
        return "score", "not a number", "0 to 1"
    if iou_type == "bbox":
        box = record["bbox"]
        is_box = isinstance(box, (list, tuple)) and len(box) == 4 and all(map(_is_finite, box))
        return None if is_box else ("bbox", "not a box", "[x, y, width, height]")
    if iou_type == "keypoints":
        points = record["keypoints"]
        fits = isinstance(points, (list, tuple)) and len(points) == 3 * keypoints and all(map(_is_finite, points))
        expected = f"{3 * keypoints} numbers, x, y and score of each"
        return None if fits or not keypoints else ("keypoints", "are not those of the data set", expected)
    region = record["segmentation"]
    if not isinstance(region, Mapping) or "counts" not in region or "size" not in region:
        return "segmentation", "not an RLE", '{"size": [height, width], "counts": ...}'
    size = sizes[record["image_id"]]
    return None if list(region["size"]) == size else ("segmentation", OTHER_SIZE, str(size))


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _mean(values: np.ndarray) -> float | None:
    present = values[values > -1]
    return float(present.mean()) if present.size else None
