"""COCO AP of ours against pycocotools': interleaved in one process, on the same made-up data.

    python benchmarks/coco_evaluation.py                       # 500 pictures, about a minute
    python benchmarks/coco_evaluation.py --pictures 5000 --rounds 1     # as COCO val2017; five minutes, 4 GB

Prints the ratio of the median times, how much each adds to the process at its peak, and the largest difference of the
precision and recall arrays. Both get records in memory and end with the arrays. The last lines time what ours gives
beside AP: precision, recall and F1 at every score, and the confusion matrix.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import io
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn.evaluation.coco_ap import coco_ap, evaluator_name
from maskrcnn.evaluation.matching import overlaps
from maskrcnn.evaluation.scores import confusion_matrix, score_curves
from maskrcnn.ops import rle

HEIGHT, WIDTH, CLASSES = 480, 640, 80
OBJECTS = 7  # per picture, as in COCO
LIMITS = [1, 10, 100]


def ellipse(box: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """A COCO region: an ellipse with a rough edge that fills `box` (x, y, width, height)."""
    x, y, width, height = (int(v) for v in box)
    rows = (np.arange(height)[:, None] + 0.5) / height * 2 - 1
    columns = (np.arange(width)[None, :] + 0.5) / width * 2 - 1
    window = rows**2 + columns**2 + rng.normal(0, 0.05, (height, 1)) < 1
    region = rle.encode_window(window, x, y, (HEIGHT, WIDTH))
    return {
        "bbox": [float(x), float(y), float(width), float(height)],
        "area": float(window.sum()),
        "segmentation": region,
    }


def random_box(rng: np.random.Generator) -> np.ndarray:
    size = np.exp(rng.uniform(np.log(8), np.log(300), 2))
    corner = rng.uniform(0, 1, 2) * (np.array([WIDTH, HEIGHT]) - size)
    return np.concatenate([corner, size])


def moved(box: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    box = box + rng.normal(0, 0.08, 4) * np.tile(box[2:], 2)
    corner = box[:2].clip(0, np.array([WIDTH, HEIGHT]) - 8)
    return np.concatenate([corner, np.clip(box[2:], 4, np.array([WIDTH, HEIGHT]) - corner)])


def made_up(pictures: int, detections: int, seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ground truth, and detections of which about a third lie near an object."""
    rng = np.random.default_rng(seed)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    for image_id in range(1, pictures + 1):
        images.append({"id": image_id, "height": HEIGHT, "width": WIDTH})
        boxes = [random_box(rng) for _ in range(rng.poisson(OBJECTS))]
        labels = rng.integers(1, CLASSES + 1, len(boxes)).tolist()
        for box, label in zip(boxes, labels, strict=True):
            number = {"id": len(annotations) + 1, "image_id": image_id, "category_id": label}
            annotations.append(number | {"iscrowd": int(rng.random() < 0.02)} | ellipse(box, rng))
        for _ in range(detections):
            near = int(rng.integers(len(boxes))) if boxes and rng.random() < 0.33 else -1
            label = labels[near] if near >= 0 and rng.random() < 0.9 else int(rng.integers(1, CLASSES + 1))
            found = ellipse(moved(boxes[near], rng) if near >= 0 else random_box(rng), rng)
            del found["area"]
            score = round(float(rng.beta(4, 2) if near >= 0 else rng.beta(1, 4)), 6)
            records.append({"image_id": image_id, "category_id": label, "score": score} | found)
    categories = [{"id": k, "name": f"class {k}"} for k in range(1, CLASSES + 1)]
    return {"images": images, "annotations": annotations, "categories": categories}, records


def pycocotools_arrays(truth: dict[str, Any], records: list[dict[str, Any]], iou_type: str) -> list[np.ndarray]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = truth
        gt.createIndex()
        evaluator = COCOeval(gt, gt.loadRes(records), iou_type)
        evaluator.params.maxDets = LIMITS
        evaluator.evaluate()
        evaluator.accumulate()
    return [evaluator.eval["precision"], evaluator.eval["recall"]]


def our_arrays(truth: dict[str, Any], records: list[dict[str, Any]], iou_type: Any) -> list[np.ndarray]:
    scores = coco_ap(truth, records, iou_type, LIMITS)
    return [scores.precision, scores.recall]


def memory(field: str) -> float:
    """MB of this process, as Linux counts it; NaN elsewhere."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def measured(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """(result, seconds, MB that the process grew by at its peak; room freed by an earlier run is not seen)."""
    gc.collect()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
    before, began = memory("VmRSS"), time.perf_counter()
    result = work()
    return result, time.perf_counter() - began, memory("VmHWM") - before


def for_pycocotools(
    truth: dict[str, Any], records: list[dict[str, Any]], iou_type: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Copies that it may write into; mask results without boxes, as its users hand them in."""
    without = "bbox" if iou_type == "segm" else "segmentation"
    return copy.deepcopy(truth), [{k: v for k, v in record.items() if k != without} for record in records]


def compare(truth: dict[str, Any], records: list[dict[str, Any]], iou_type: str, rounds: int) -> None:
    ours, theirs = [], []
    difference = 0.0
    for _ in range(rounds):
        arrays, *spent = measured(partial(our_arrays, truth, records, iou_type))
        ours.append(spent)
        copies = for_pycocotools(truth, records, iou_type)
        expected, *spent = measured(partial(pycocotools_arrays, copies[0], copies[1], iou_type))
        theirs.append(spent)
        pairs = zip(arrays, expected, strict=True)
        difference = max(difference, *(float(np.abs(a - b).max()) for a, b in pairs))
    seconds = [statistics.median(spent[0] for spent in side) for side in (ours, theirs)]
    peaks = [max(spent[1] for spent in side) for side in (ours, theirs)]
    print(
        f"{iou_type}: ours {seconds[0]:.2f} s, +{peaks[0]:.0f} MB; pycocotools {seconds[1]:.2f} s, +{peaks[1]:.0f} MB; "
        f"ratio {seconds[1] / seconds[0]:.1f}; largest difference of the arrays {difference:.1e}",
        flush=True,
    )


def time_the_rest(truth: dict[str, Any], records: list[dict[str, Any]], iou_type: Any) -> None:
    found, overlap_seconds, _ = measured(lambda: overlaps(truth, records, iou_type))
    _, curve_seconds, _ = measured(lambda: score_curves(found, CLASSES))
    _, confusion_seconds, _ = measured(lambda: confusion_matrix(found, CLASSES, 0.5))
    print(
        f"{iou_type}: overlaps {overlap_seconds:.2f} s; "
        f"F1 at every score {curve_seconds:.2f} s; confusion matrix {confusion_seconds:.2f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=500, help="pictures (default: 500)")
    parser.add_argument("--detections", type=int, default=100, help="detections per picture (default: 100)")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved runs of each (default: 3)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    truth, records = made_up(options.pictures, options.detections, options.seed)
    counts = f"{len(truth['images'])} pictures, {len(truth['annotations'])} objects, {len(records)} detections"
    print(f"{counts}, {CLASSES} classes; ours runs {evaluator_name()}", flush=True)
    for iou_type in ("bbox", "segm"):
        compare(truth, records, iou_type, options.rounds)
    for iou_type in ("bbox", "segm"):
        time_the_rest(truth, records, iou_type)


if __name__ == "__main__":
    main()
