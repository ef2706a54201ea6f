"""COCO AP of ours against pycocotools': interleaved in one process, on the same made-up data.

    python benchmarks/coco_evaluation.py                       # 500 pictures, about a minute
    python benchmarks/coco_evaluation.py --pictures 5000 --rounds 1     # as COCO val2017; five minutes, 4 GB

`maskrcnn bench --what evaluate` prints the same tables. The last lines time what ours gives beside AP: precision,
recall and F1 at every score, and the confusion matrix.
"""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console

from maskrcnn.bench.evaluation import bench_evaluation
from maskrcnn.bench.made_up import CLASSES, made_up
from maskrcnn.bench.measure import seconds_of
from maskrcnn.bench.table import rich_tables
from maskrcnn.evaluation.matching import overlaps
from maskrcnn.evaluation.scores import confusion_matrix, score_curves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=500, help="pictures (default: 500)")
    parser.add_argument("--detections", type=int, default=100, help="detections per picture (default: 100)")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved runs of each (default: 3)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = bench_evaluation(options.pictures, options.detections, options.rounds, seed=options.seed)
    for table in rich_tables(rows):
        Console().print(table)
    truth, records = made_up(options.pictures, options.detections, options.seed)
    for iou_type in ("bbox", "segm"):
        time_the_rest(truth, records, iou_type)


def time_the_rest(truth: dict[str, Any], records: list[dict[str, Any]], iou_type: Any) -> None:
    found = []
    overlap_seconds = seconds_of(lambda item: found.append(overlaps(truth, records, iou_type)), None)
    curve_seconds = seconds_of(lambda item: score_curves(found[0], CLASSES), None)
    confusion_seconds = seconds_of(lambda item: confusion_matrix(found[0], CLASSES, 0.5), None)
    print(
        f"{iou_type}: overlaps {overlap_seconds:.2f} s; "
        f"F1 at every score {curve_seconds:.2f} s; confusion matrix {confusion_seconds:.2f} s"
    )


if __name__ == "__main__":
    main()
