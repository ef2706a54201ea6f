"""Arrays and averages against pycocotools, which is the definition."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskrcnn.errors import InputError, InputErrors
from maskrcnn.evaluation import coco_ap as module
from maskrcnn.evaluation.coco_ap import coco_ap, evaluator_name
from maskrcnn.evaluation.matching import as_rle
from maskrcnn.ops import rle

LIMITS = [[1, 10, 100], [300], [1, 100, 400], [2], [7, 3]]


@pytest.fixture(params=["hotcoco", "pycocotools"])
def evaluator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both libraries behind the seam."""
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    monkeypatch.setattr(module, "evaluator_name", lambda: request.param)
    return str(request.param)


def reference(truth: dict[str, Any], records: list[dict[str, Any]], iou_type: str, limits: list[int]) -> COCOeval:
    """pycocotools by hand; mask results without their boxes, so that their area is the mask's."""
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = copy.deepcopy(truth)
        gt.createIndex()
        left_out = "bbox" if iou_type == "segm" else "segmentation"
        dt = gt.loadRes([{k: copy.deepcopy(v) for k, v in r.items() if k != left_out} for r in records])
        result = COCOeval(gt, dt, iou_type)
        result.params.maxDets = limits
        result.evaluate()
        result.accumulate()
    return result


def assert_equal(scores: module.CocoScores, expected: COCOeval) -> None:
    assert scores.max_detections == tuple(expected.params.maxDets)
    np.testing.assert_array_equal(scores.precision, expected.eval["precision"])
    np.testing.assert_array_equal(scores.recall, expected.eval["recall"])


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_arrays_equal_the_reference(make_scene, evaluator: str, iou_type: Any, limits: list[int]) -> None:
    for seed in range(2):
        truth, records = make_scene(seed, ties=seed > 0)
        assert_equal(coco_ap(truth, records, iou_type, limits), reference(truth, records, iou_type, limits))


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_only_crowds(make_scene, evaluator: str, iou_type: Any) -> None:
    truth, records = make_scene(4, crowds=1.0)
    scores = coco_ap(truth, records, iou_type)
    assert_equal(scores, reference(truth, records, iou_type, [100]))
    assert scores.ap is None and scores.ar is None


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_no_detections(make_scene, evaluator: str, iou_type: Any) -> None:
    truth, _ = make_scene(0)
    scores = coco_ap(truth, [], iou_type, [1, 100])
    assert scores.precision.shape == (10, 101, 4, 4, 2) and scores.recall.shape == (10, 4, 4, 2)
    assert scores.ap == 0 and scores.ar == 0
    assert scores.ap_per_class == (0, 0, 0, None)  # the last class has no object
    assert set(np.unique(scores.precision)) == {-1, 0}


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_no_ground_truth(make_scene, evaluator: str, iou_type: Any) -> None:
    truth, records = make_scene(0)
    truth["annotations"] = []
    scores = coco_ap(truth, records, iou_type)
    assert_equal(scores, reference(truth, records, iou_type, [100]))
    assert (scores.precision == -1).all() and scores.ap is None and scores.ap_per_class == (None,) * 4


@pytest.mark.parametrize("missing", ["images", "categories"])
def test_nothing_at_all(make_scene, evaluator: str, missing: str) -> None:
    truth, _ = make_scene(0)
    truth |= {missing: [], "annotations": []}
    scores = coco_ap(truth, [], "segm", (100, 300))
    assert scores.precision.shape == (10, 101, len(truth["categories"]), 4, 2)
    assert scores.ap is None


def test_an_annotation_of_id_zero_counts(make_scene, evaluator: str) -> None:
    truth, records = make_scene(1)
    expected = reference(truth, records, "bbox", [100])
    for annotation in truth["annotations"]:
        annotation["id"] -= 1
    assert_equal(coco_ap(truth, records, "bbox"), expected)


def test_text_ids_of_pictures_and_absent_optional_fields(make_scene, evaluator: str) -> None:
    truth, records = make_scene(1, crowds=0)
    for annotation in truth["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["area"] = width * height
    expected = reference(truth, records, "bbox", [100])
    for row in [*truth["annotations"], *records]:
        row["image_id"] = f"{row['image_id']:04}"
    for image in truth["images"]:
        image["id"] = f"{image['id']:04}"
    for annotation in truth["annotations"]:
        del annotation["area"], annotation["iscrowd"]
    assert_equal(coco_ap(truth, records, "bbox"), expected)


def test_input_is_left_alone(make_scene, evaluator: str) -> None:
    truth, records = make_scene(1)
    before = copy.deepcopy((truth, records))
    coco_ap(truth, records, "segm")
    assert (truth, records) == before


def test_nothing_is_printed(make_scene, evaluator: str, capfd: pytest.CaptureFixture[str]) -> None:
    truth, records = make_scene(1)
    coco_ap(truth, [{**record, "category_id": 999} for record in records], "segm")  # ids that the truth lacks
    assert capfd.readouterr() == ("", "")


def test_averages_are_those_of_the_reference(make_scene) -> None:
    truth, records = make_scene(2, pictures=40)
    expected = reference(truth, records, "segm", [1, 10, 100])
    with contextlib.redirect_stdout(io.StringIO()):
        expected.summarize()
    scores = coco_ap(truth, records, "segm", [1, 10, 100])
    at = scores.at(100)
    ours = [at.ap, at.ap50, at.ap75, at.ap_small, at.ap_medium, at.ap_large]
    ours += [scores.at(1).ar, scores.at(10).ar, at.ar]
    np.testing.assert_allclose([-1 if v is None else v for v in ours], expected.stats[:9], atol=1e-12)
    assert scores.ap == at.ap


def test_classes_are_averaged(make_scene) -> None:
    truth, records = make_scene(2)
    scores = coco_ap(truth, records, "bbox")
    assert scores.category_ids == (5, 10, 15, 20) and scores.names[0] == "class 1"
    assert scores.ap_per_class[3] is None
    assert np.mean([v for v in scores.ap_per_class if v is not None]) == pytest.approx(scores.ap)
    assert np.mean([v for v in scores.ap50_per_class if v is not None]) == pytest.approx(scores.ap50)


def test_limit_that_was_not_asked_for(make_scene) -> None:
    scores = coco_ap(*make_scene(0), "bbox", [100, 300])
    with pytest.raises(InputError, match=r"found 200; expected one of \[100, 300\]"):
        scores.at(200)


@pytest.mark.parametrize("limits", [0, [], [-1, 100]])
def test_limits_below_one(make_scene, limits: Any) -> None:
    with pytest.raises(InputError, match="max_detections"):
        coco_ap(*make_scene(0), "bbox", limits)


def test_bad_records_are_collected(make_scene) -> None:
    truth, records = make_scene(0)
    records[0] = {**records[0], "score": math.nan}
    records[1] = {**records[1], "image_id": 10**6}
    records[2] = {k: v for k, v in records[2].items() if k != "segmentation"}
    records[3] = {**records[3], "segmentation": {"size": [7, 9], "counts": "o1"}}
    records[4] = {**records[4], "segmentation": None}
    with pytest.raises(InputErrors) as caught:
        coco_ap(truth, records, "segm")
    assert len(caught.value.errors) == 5
    assert "detections[0].score: not a number; found nan" in str(caught.value)
    assert "detections[1].image_id: no such picture; found 1000000" in str(caught.value)
    assert "detections[2].segmentation: missing" in str(caught.value)
    assert "detections[3].segmentation: of another size than its picture; found [7, 9]" in str(caught.value)
    assert "detections[4].segmentation: not an RLE" in str(caught.value)


def test_bad_boxes(make_scene) -> None:
    truth, records = make_scene(0)
    records[0] = {**records[0], "bbox": [1.0, 2.0, math.inf, 4.0]}
    records[1] = {**records[1], "bbox": [1.0, 2.0]}
    with pytest.raises(InputErrors) as caught:
        coco_ap(truth, records, "bbox")
    assert [str(e).split(":")[0] for e in caught.value.errors] == ["detections[0].bbox", "detections[1].bbox"]


def test_mask_iou_is_ours(make_scene, evaluator: str) -> None:
    truth, records = make_scene(3)
    for image in truth["images"]:
        regions = [r["segmentation"] for r in records if r["image_id"] == image["id"]]
        annotations = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        crowds = [bool(a["iscrowd"]) for a in annotations]
        gt_regions = [a["segmentation"] for a in annotations]
        iou = module.mask_iou(regions, gt_regions, crowds)
        assert iou.shape == (len(regions), len(gt_regions))
        np.testing.assert_array_equal(iou, rle.iou(regions, gt_regions, crowds))


def test_hotcoco_is_used_where_installed() -> None:
    assert evaluator_name() == ("hotcoco" if importlib.util.find_spec("hotcoco") else "pycocotools")


@pytest.mark.parametrize(
    ("file", "iou_type", "at_100"),
    [
        ("coco128/annotations/instances.json", "bbox", 1.0),
        ("coco128/annotations/instances.json", "segm", 1.0),
        ("nuclei/annotations/instances_val.json", "segm", 0.901),
    ],
)
def test_truth_against_itself(shared_data: Path, file: str, iou_type: Any, at_100: float) -> None:
    truth = json.loads((shared_data / file).read_text(encoding="utf-8"))
    records = []
    for annotation in truth["annotations"]:
        if not annotation["iscrowd"]:
            record = {key: annotation[key] for key in ("image_id", "category_id", "bbox")}
            size = next((i["height"], i["width"]) for i in truth["images"] if i["id"] == annotation["image_id"])
            records.append(record | {"score": 1.0, "segmentation": as_rle(annotation["segmentation"], size)})
    scores = coco_ap(truth, records, iou_type, [100, 400])
    assert scores.at(400).ap == pytest.approx(1.0)
    assert scores.at(100).ap == pytest.approx(at_100, abs=1e-3)
    assert_equal(scores, reference(truth, records, iou_type, [100, 400]))
