"""COCO evaluation, ours against pycocotools': in turns, on the same made-up data."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from maskrcnn.bench.made_up import made_up
from maskrcnn.bench.measure import Progress, interleaved, peak_mb, say_nothing
from maskrcnn.bench.rows import Row, timed_rows
from maskrcnn.errors import InputError
from maskrcnn.evaluation.coco_ap import coco_ap, evaluator_name

LIMITS = (1, 10, 100)
PYCOCOTOOLS = "pycocotools"
Records = list[dict[str, Any]]


def bench_evaluation(
    pictures: int = 500,
    detections: int = 100,
    rounds: int = 3,
    iou_types: Sequence[str] = ("bbox", "segm"),
    seed: int = 0,
    progress: Progress = say_nothing,
) -> list[Row]:
    """Both get records in memory and end with the arrays of precision and recall, whose largest difference is told.

    Memory is what the process grew by at its peak, in a call after the timed ones. Errors: `InputError` without
    pycocotools.
    """
    require_pycocotools()
    progress("making data", 0.0)
    truth, records = made_up(pictures, detections, seed)
    rows: list[Row] = []
    for iou_type in iou_types:
        copies = [for_pycocotools(truth, records, iou_type) for _ in range(rounds + 2)]  # it writes into them
        kept: dict[str, list[np.ndarray]] = {}
        works = {
            PYCOCOTOOLS: partial(_their_turn, copies, iou_type, kept),
            "ours": partial(_our_turn, truth, records, iou_type, kept),
        }
        timings = interleaved(works, [None], rounds, warmup=0, progress=progress)
        difference = max(float(np.abs(a - b).max()) for a, b in zip(kept["ours"], kept[PYCOCOTOOLS], strict=True))
        facts: dict[str, dict[str, float | str]] = {
            name: {"MB": peak_mb(partial(work, None))} for name, work in works.items()
        }
        facts["ours"] |= {"largest_difference": difference, "evaluator": evaluator_name()}
        counts = f"{pictures} pictures, {len(truth['annotations'])} objects, {len(records)} detections"
        unit = f"evaluation of {counts}"
        rows += timed_rows(f"COCO evaluation, {iou_type}", timings, PYCOCOTOOLS, unit=unit, facts=facts)
    return rows


def _our_turn(truth: Any, records: Records, iou_type: Any, kept: dict[str, list[np.ndarray]], item: None) -> None:
    kept["ours"] = our_arrays(truth, records, iou_type)


def _their_turn(
    copies: list[tuple[Any, Records]], iou_type: str, kept: dict[str, list[np.ndarray]], item: None
) -> None:
    kept[PYCOCOTOOLS] = pycocotools_arrays(*copies.pop(), iou_type)


def our_arrays(truth: dict[str, Any], records: Records, iou_type: Any) -> list[np.ndarray]:
    """[precision, recall]"""
    scores = coco_ap(truth, records, iou_type, list(LIMITS))
    return [scores.precision, scores.recall]


def pycocotools_arrays(truth: dict[str, Any], records: Records, iou_type: str) -> list[np.ndarray]:
    """[precision, recall] as its users get them. Writes into both arguments."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = truth
        gt.createIndex()
        evaluator = COCOeval(gt, gt.loadRes(records), iou_type)
        evaluator.params.maxDets = list(LIMITS)
        evaluator.evaluate()
        evaluator.accumulate()
    return [evaluator.eval["precision"], evaluator.eval["recall"]]


def for_pycocotools(truth: dict[str, Any], records: Records, iou_type: str) -> tuple[dict[str, Any], Records]:
    """Copies that it may write into; mask results without boxes, as its users hand them in."""
    without = "bbox" if iou_type == "segm" else "segmentation"
    return copy.deepcopy(truth), [{k: v for k, v in record.items() if k != without} for record in records]


def require_pycocotools() -> None:
    """Errors: `InputError` where the peer is not installed."""
    try:
        import pycocotools.mask  # noqa: F401
    except ImportError as error:
        raise InputError("the peer is not installed: pip install pycocotools", field=PYCOCOTOOLS) from error
