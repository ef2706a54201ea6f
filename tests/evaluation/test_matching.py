"""Matches against a slow loop, and against those that pycocotools makes at the same IoU."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskrcnn.evaluation.matching import as_rle, box_iou, match, overlaps


def slow_match(truth: dict[str, Any], records: list[dict[str, Any]], iou_type: str, same_class: bool) -> Any:
    """(object found or -1, lies in a crowd) of each record, by the plain rule."""
    annotations = truth["annotations"]
    key = "bbox" if iou_type == "bbox" else "segmentation"
    found = [-1] * len(records)
    in_crowd = [False] * len(records)
    for d in sorted(range(len(records)), key=lambda i: -records[i]["score"]):
        best: tuple[float, bool, int] | None = None
        for g, annotation in enumerate(annotations):
            is_own = annotation["category_id"] == records[d]["category_id"]
            if annotation["image_id"] != records[d]["image_id"]:
                continue
            iou = float(coco_mask.iou([records[d][key]], [annotation[key]], [annotation["iscrowd"]])[0, 0])
            if iou < 0.5:
                continue
            if annotation["iscrowd"]:
                in_crowd[d] = in_crowd[d] or is_own
            elif g not in found and (is_own or not same_class) and (best is None or (iou, is_own, g) >= best):
                best = (iou, is_own, g)
        if best is not None:
            found[d], in_crowd[d] = best[2], False
    return found, in_crowd


@pytest.mark.parametrize("same_class", [True, False])
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_matches_equal_a_slow_loop(make_scene, iou_type: Any, same_class: bool) -> None:
    for seed in range(3):
        truth, records = make_scene(seed, pictures=8, crowds=0.2)
        found, in_crowd = slow_match(truth, records, iou_type, same_class)
        matches = match(overlaps(truth, records, iou_type), same_class=same_class)
        np.testing.assert_array_equal(matches.gt_index, found)
        np.testing.assert_array_equal(matches.in_crowd, in_crowd)


def test_matches_are_those_of_the_reference(make_scene) -> None:
    truth, records = make_scene(5, pictures=30)
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = copy.deepcopy(truth)
        gt.createIndex()
        evaluator = COCOeval(gt, gt.loadRes(copy.deepcopy(records)), "bbox")
        evaluator.params.maxDets = [10**6]
        evaluator.params.areaRng, evaluator.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluator.evaluate()
    expected: dict[int, int] = {}
    ignored = set()
    for picture in filter(None, evaluator.evalImgs):
        for d, g, ignore in zip(picture["dtIds"], picture["dtMatches"][0], picture["dtIgnore"][0], strict=True):
            if ignore:
                ignored.add(d - 1)
            elif g:
                expected[d - 1] = int(g) - 1
    matches = match(overlaps(truth, records, "bbox"), same_class=True)
    assert {d: g for d, g in enumerate(matches.gt_index.tolist()) if g >= 0} == expected
    assert set(np.flatnonzero(matches.in_crowd).tolist()) == ignored


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_empty(make_scene, iou_type: Any) -> None:
    truth, records = make_scene(0)
    nothing = {**truth, "annotations": []}
    for case in ((truth, []), (nothing, records), (nothing, [])):
        found = overlaps(*case, iou_type)
        for same_class in (True, False):
            matches = match(found, same_class=same_class)
            assert matches.gt_index.tolist() == [-1] * len(case[1])
            assert not matches.in_crowd.any()


def test_records_of_unknown_categories_are_left_out(make_scene) -> None:
    truth, records = make_scene(0)
    strange = [{**record, "category_id": 999} for record in records]
    assert len(overlaps(truth, strange + records[:3], "bbox").scores) == 3


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own, in decode
def test_every_form_of_a_segmentation(encode) -> None:
    rings = [[10.0, 10.0, 40.0, 12.0, 30.0, 50.0], [60.0, 60.0, 70.0, 60.0, 70.0, 75.0, 60.0, 75.0]]
    region = coco_mask.merge(coco_mask.frPyObjects(rings, 90, 120))
    bitmap = coco_mask.decode(region)
    edges = np.flatnonzero(np.diff(bitmap.ravel(order="F"), prepend=0))
    counts = np.diff(edges, prepend=0, append=bitmap.size).tolist()
    compressed = encode(bitmap)
    for form in (rings, {"size": [90, 120], "counts": counts}, compressed):
        assert as_rle(form, (90, 120)) == compressed


def test_box_iou_equals_the_reference() -> None:
    rng = np.random.default_rng(0)
    boxes, gt_boxes = rng.uniform(0, 30, (40, 4)), rng.uniform(0, 30, (25, 4))
    is_crowd = rng.random(25) < 0.3
    expected = coco_mask.iou(boxes, gt_boxes, is_crowd.astype(np.uint8).tolist())
    np.testing.assert_allclose(box_iou(boxes.tolist(), gt_boxes.tolist(), is_crowd), expected, atol=1e-12)


def test_box_iou_of_nothing() -> None:
    assert box_iou([], [[0, 0, 1, 1]], np.array([False])).shape == (0, 1)
    assert box_iou([[0, 0, 0, 0]], [[0, 0, 0, 0]], np.array([False])).tolist() == [[0.0]]


def test_equal_overlaps_go_to_the_own_class() -> None:
    box = [0.0, 0.0, 9.0, 9.0]
    truth = {
        "images": [{"id": 1, "height": 20, "width": 20}],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [{"id": k, "image_id": 1, "category_id": k, "bbox": box, "iscrowd": 0} for k in (1, 2)],
    }
    records = [{"image_id": 1, "category_id": k, "bbox": box, "score": 0.9} for k in (1, 2)]
    assert match(overlaps(truth, records, "bbox"), same_class=False).gt_index.tolist() == [0, 1]
