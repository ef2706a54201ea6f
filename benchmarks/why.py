"""What asking why costs: an evaluation with the reasons of every loss, against one without, in turns.

    python benchmarks/why.py --weights nuclei --data DATA/nuclei

Prints processor seconds of both, the ratio, and whether the detections are the same.
"""

from __future__ import annotations

import argparse
import os
import time

from rich.console import Console
from rich.table import Table

import maskrcnn
from maskrcnn.inspection.why import Reasons


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="nuclei", help="name or file")
    parser.add_argument("--data", default=os.path.join(os.environ.get("MASKRCNN_TEST_DATA", "."), "nuclei"))
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    predictor, dataset = maskrcnn.load(options.weights), maskrcnn.open_dataset(options.data, split="val")
    table = Table("round", "evaluation, s", "with reasons, s", "added", "same detections")
    for turn in range(options.rounds):
        seconds, records, reasons = [], [], Reasons()
        for given in (None, reasons):
            began = time.process_time()
            scores = maskrcnn.evaluate(predictor, dataset, reasons=given, max_detections=(100, 400))
            seconds.append(time.process_time() - began)
            records.append(scores.records)
        added = f"{seconds[1] / seconds[0] - 1:+.0%}"
        table.add_row(str(turn + 1), *(f"{s:.1f}" for s in seconds), added, str(records[0] == records[1]))
    Console().print(table, reasons.why().table())


if __name__ == "__main__":
    main()
