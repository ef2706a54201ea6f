"""Counts, F1, the best threshold and the confusion matrix against plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from maskrcnn.evaluation.matching import match, overlaps
from maskrcnn.evaluation.scores import confusion_matrix, score_curves

CLASSES = 4  # of the made-up scenes


def slow_counts(truth: dict[str, Any], records: list[dict[str, Any]], category: int, threshold: float) -> Any:
    """(TP, FP, FN) of one class, matched anew with the detections above the threshold only."""
    kept = [r for r in records if r["score"] >= threshold and r["category_id"] == category]
    objects = [a for a in truth["annotations"] if a["category_id"] == category]
    hits = alarms = 0
    taken: set[int] = set()
    for record in sorted(kept, key=lambda r: -r["score"]):
        best, best_iou, hidden = None, 0.5, False
        for g, annotation in enumerate(objects):
            if annotation["image_id"] != record["image_id"] or g in taken:
                continue
            iou = slow_box_iou(record["bbox"], annotation["bbox"], annotation["iscrowd"])
            if annotation["iscrowd"]:
                hidden = hidden or iou >= 0.5
            elif iou >= best_iou:
                best, best_iou = g, iou
        if best is not None:
            taken.add(best)
            hits += 1
        elif not hidden:
            alarms += 1
    return hits, alarms, sum(not a["iscrowd"] for a in objects) - hits


def slow_box_iou(a: list[float], b: list[float], crowd: int) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / (a[2] * a[3] if crowd else a[2] * a[3] + b[2] * b[3] - both)


@pytest.mark.parametrize("ties", [True, False])
def test_counts_equal_a_slow_loop(make_scene, ties: bool) -> None:
    for seed in range(2):
        truth, records = make_scene(seed, pictures=10, crowds=0.15, ties=ties)
        total, per_class = score_curves(overlaps(truth, records, "bbox"), CLASSES)
        for threshold in (0.0, 0.1, 0.31, 0.5, 0.9, 1.0):
            sums = np.zeros(3, dtype=int)
            for k, curve in enumerate(per_class):
                at = curve.at(threshold)
                expected = slow_counts(truth, records, 5 * (k + 1), threshold)
                assert (at.true_positives, at.false_positives, at.false_negatives) == expected
                sums += expected
            pooled = total.at(threshold)
            assert (pooled.true_positives, pooled.false_positives, pooled.false_negatives) == tuple(sums)


def test_best_threshold_is_exact(make_scene) -> None:
    truth, records = make_scene(3, pictures=10, ties=False)
    total, per_class = score_curves(overlaps(truth, records, "bbox"), CLASSES)
    for k, curve in enumerate(per_class[:3]):
        tried = {}
        for score in {r["score"] for r in records if r["category_id"] == 5 * (k + 1)}:
            hits, alarms, missed = slow_counts(truth, records, 5 * (k + 1), score)
            tried[score] = 2 * hits / (2 * hits + alarms + missed)
        best = curve.best()
        assert best is not None and best.f1 == max(tried.values())
        assert best.threshold == max(score for score, f1 in tried.items() if f1 == best.f1)
    best = total.best()
    assert best is not None and best.f1 == max(total.at(r["score"]).f1 for r in records)


def test_shares() -> None:
    truth = {
        "images": [{"id": 1, "height": 20, "width": 20}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 0}],
    }
    records = [
        {"image_id": 1, "category_id": 1, "bbox": [10, 10, 5, 5], "score": 0.9},
        {"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 0.4},
    ]
    curve, _ = score_curves(overlaps(truth, records, "bbox"), 1)
    assert (curve.at(0.4).precision, curve.at(0.4).recall, curve.at(0.4).f1) == (0.5, 1.0, 2 / 3)
    assert (curve.at(0.5).precision, curve.at(0.5).recall, curve.at(0.5).f1) == (0.0, 0.0, 0.0)
    assert (curve.at(0.95).precision, curve.at(0.95).recall, curve.at(0.95).f1) == (None, 0.0, 0.0)
    assert curve.thresholds.tolist() == [0.9, 0.4]
    assert curve.precision.tolist() == [0.0, 0.5] and curve.recall.tolist() == [0.0, 1.0]
    best = curve.best()
    assert best is not None and best.threshold == 0.4


def test_class_without_objects(make_scene) -> None:
    truth, records = make_scene(0)
    curve = score_curves(overlaps(truth, records, "bbox"), CLASSES)[1][3]
    at = curve.at(0.0)
    assert curve.objects == 0 and at.false_positives > 0
    assert at.recall is None and at.f1 is None and at.precision == 0 and curve.best() is None


def test_no_detections(make_scene) -> None:
    truth, _ = make_scene(0)
    total, per_class = score_curves(overlaps(truth, [], "bbox"), CLASSES)
    assert total.best() is None and total.at(0.5).precision is None and total.at(0.5).recall == 0
    matrix = confusion_matrix(overlaps(truth, [], "bbox"), CLASSES, 0.5)
    assert matrix[:, 1:].sum() == 0
    assert matrix[1:, 0].tolist() == [curve.objects for curve in per_class]


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.1])
def test_confusion_matrix_adds_up(make_scene, threshold: float) -> None:
    truth, records = make_scene(6, crowds=0.2)
    found = overlaps(truth, records, "bbox")
    matrix = confusion_matrix(found, CLASSES, threshold)
    objects = [sum(a["category_id"] == 5 * k and not a["iscrowd"] for a in truth["annotations"]) for k in range(1, 5)]
    assert matrix[1:].sum(axis=1).tolist() == objects  # each object is found once or missed
    hidden = match(found, same_class=False).in_crowd
    kept = [r for r, ignored in zip(records, hidden, strict=True) if r["score"] >= threshold and not ignored]
    assert matrix[:, 1:].sum(axis=0).tolist() == [sum(r["category_id"] == 5 * k for r in kept) for k in range(1, 5)]
    assert matrix[0, 0] == 0


def test_confusion_matrix_equals_a_slow_loop(make_scene) -> None:
    truth, records = make_scene(7, pictures=10, crowds=0.0, ties=False)
    for threshold in (0.0, 0.4, 0.8):
        expected = np.zeros((CLASSES + 1, CLASSES + 1), dtype=np.int64)
        taken: set[int] = set()
        for record in sorted((r for r in records if r["score"] >= threshold), key=lambda r: -r["score"]):
            best, best_iou = None, 0.5
            for g, annotation in enumerate(truth["annotations"]):
                if annotation["image_id"] == record["image_id"] and g not in taken:
                    iou = slow_box_iou(record["bbox"], annotation["bbox"], 0)
                    if iou >= best_iou:
                        best, best_iou = g, iou
            row = 0 if best is None else truth["annotations"][best]["category_id"] // 5
            taken |= set() if best is None else {best}
            expected[row, record["category_id"] // 5] += 1
        for g, annotation in enumerate(truth["annotations"]):
            expected[annotation["category_id"] // 5, 0] += g not in taken
        matrix = confusion_matrix(overlaps(truth, records, "bbox"), CLASSES, threshold)
        np.testing.assert_array_equal(matrix, expected)


def test_truth_against_itself_is_diagonal(make_scene) -> None:
    truth, _ = make_scene(8)
    records = [{**a, "score": 1.0} for a in truth["annotations"] if not a["iscrowd"]]
    for iou_type in ("bbox", "segm"):
        matrix = confusion_matrix(overlaps(truth, records, iou_type), CLASSES, 0.5)
        assert matrix.sum() == np.trace(matrix) == len(records)
