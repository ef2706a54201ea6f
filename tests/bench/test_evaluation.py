"""COCO evaluation of both sides on made-up data: the same arrays, to the last bit."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from maskrcnn.bench.evaluation import bench_evaluation, our_arrays, pycocotools_arrays
from maskrcnn.bench.made_up import CLASSES, HEIGHT, WIDTH, made_up
from maskrcnn.errors import InputError
from maskrcnn.ops import rle


def test_made_up_data_is_sound_and_the_same_each_time() -> None:
    truth, records = made_up(3, 5, seed=1)
    assert (truth, records) == made_up(3, 5, seed=1)
    assert len(truth["images"]) == 3 and len(records) == 15 and len(truth["categories"]) == CLASSES
    for record in truth["annotations"]:
        bitmap = rle.decode(record["segmentation"])
        rows, columns = np.nonzero(bitmap)
        x, y, width, height = record["bbox"]
        assert bitmap.shape == (HEIGHT, WIDTH) and bitmap.sum() == record["area"]
        assert x <= columns.min() and columns.max() < x + width and y <= rows.min() and rows.max() < y + height


def test_both_give_the_same() -> None:
    pytest.importorskip("pycocotools")
    rows = bench_evaluation(pictures=6, detections=8, rounds=1)
    assert [(row.work, row.side) for row in rows] == [
        (f"COCO evaluation, {kind}", side) for kind in ("bbox", "segm") for side in ("pycocotools", "ours")
    ]
    assert rows[1].facts["largest_difference"] == rows[3].facts["largest_difference"] == 0.0
    assert rows[0].ratio is None and rows[1].ratio is not None


def test_a_difference_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pycocotools")

    def doctored(truth: object, records: list[dict[str, object]], iou_type: object) -> list[np.ndarray]:
        precision, recall = our_arrays(truth, records, iou_type)  # type: ignore[arg-type]
        return [precision, recall + 0.25]

    monkeypatch.setattr("maskrcnn.bench.evaluation.our_arrays", doctored)
    rows = bench_evaluation(pictures=4, detections=4, rounds=1, iou_types=("bbox",))
    assert rows[1].facts["largest_difference"] == 0.25
    assert pycocotools_arrays(*made_up(4, 4, 0), "bbox")[1].shape[1] == CLASSES


def test_without_the_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    with pytest.raises(InputError, match="pip install pycocotools"):
        bench_evaluation(pictures=1, detections=1, rounds=1)
