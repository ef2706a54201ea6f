"""NMS of many groups: ours, the one-call form used in recorded graphs, and torchvision's `batched_nms`, interleaved.

    python benchmarks/nms.py --groups 20 --boxes 1000

Times are medians in milliseconds, one thread; "differs" counts boxes that one keeps and torchvision's does not.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor

from maskrcnn.ops.nms import _keep_in_one_call, nms_keep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=20)
    parser.add_argument("--boxes", type=int, default=1000, help="in each group")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    count = options.groups * options.boxes
    corner = torch.rand(count, 2) * 800
    boxes = torch.cat([corner, corner + 10 + torch.rand(count, 2) * 200], dim=1)
    scores, groups = torch.rand(count), torch.arange(count) % options.groups

    def peer() -> Tensor:
        keep = torch.zeros(count, dtype=torch.bool)
        keep[torchvision.ops.batched_nms(boxes, scores, groups, 0.7)] = True
        return keep

    forms: dict[str, Callable[[], Tensor]] = {
        "ours, group by group": lambda: nms_keep(boxes, scores, 0.7, groups=groups),
        "one call with offsets": lambda: _keep_in_one_call(boxes, scores, groups, 0.7),
        "torchvision batched_nms": peer,
    }
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(options.runs):
        for name, form in forms.items():
            began = time.perf_counter()
            form()
            times[name].append(1e3 * (time.perf_counter() - began))
    expected = peer()
    for name, form in forms.items():
        differs = int((form() != expected).sum())
        print(f"{name:24} {statistics.median(times[name]):8.1f} ms  differs {differs}")


if __name__ == "__main__":
    main()
