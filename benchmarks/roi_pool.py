"""The pooling family over p2..p5 of an 800 x 1088 picture: each method's time, and RoIPool against torchvision's op.

    python benchmarks/roi_pool.py --threads 1 --channels 256 --runs 9

1000 boxes with sides of 16 to 450 px, 7 x 7, 2 x 2 points where a method has points; float32; interleaved runs. Times
are medians in milliseconds. torchvision's op is given planes, the others channels-last maps. The difference is the
largest one between RoIPool's and torchvision's outputs or gradients.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor

from maskrcnn.ops import boxes as box_ops
from maskrcnn.ops.crop_and_resize import crop_and_resize_levels
from maskrcnn.ops.roi_align import level_of, roi_align_levels
from maskrcnn.ops.roi_align_max import roi_align_max_levels
from maskrcnn.ops.roi_pool import roi_pool_levels
from maskrcnn.ops.roi_warp import roi_warp_levels

HEIGHT, WIDTH, STRIDES, COUNT, SIDE = 800, 1088, (4, 8, 16, 32), 1000, 7
Form = Callable[[list[Tensor]], Tensor]
PEER = "torchvision RoIPool"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--runs", type=int, default=9, help="interleaved runs of each form")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, {platform.machine()}, "
          f"{options.threads} thread(s), {options.channels} channels")  # fmt: skip
    maps = [torch.randn(1, options.channels, HEIGHT // stride, WIDTH // stride) for stride in STRIDES]
    upstream = torch.randn(COUNT, options.channels, SIDE, SIDE)
    for backward in (False, True):
        compare(forms(random_boxes(COUNT)), maps, upstream if backward else None, options.runs)


def forms(boxes: Tensor) -> dict[str, Form]:
    """Maps to pooled maps, by name. All pool the same boxes from the same levels."""
    image_index, levels = torch.zeros(len(boxes), dtype=torch.int64), level_of(boxes) - 2
    where = (boxes, image_index, levels, SIDE)
    parts = boxes / torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    return {
        PEER: lambda maps: roi_pool_levels(maps, *where, strides=STRIDES, kernel="torchvision"),
        "RoIPool": lambda maps: roi_pool_levels(maps, *where, strides=STRIDES, kernel="bag"),
        "RoIWarp": lambda maps: roi_warp_levels(maps, *where, strides=STRIDES),
        "crop and resize": lambda maps: crop_and_resize_levels(maps, parts, *where[1:]),
        "RoIAlign": lambda maps: roi_align_levels(maps, *where, strides=STRIDES),
        "RoIAlign, max": lambda maps: roi_align_max_levels(maps, *where, strides=STRIDES),
    }


def compare(by_name: dict[str, Form], maps: list[Tensor], upstream: Tensor | None, runs: int) -> None:
    """Print a line per form; with `upstream`, the gradient of the pooled maps, forward and backward."""
    last = [feature.contiguous(memory_format=torch.channels_last) for feature in maps]
    upstream_last = None if upstream is None else upstream.contiguous(memory_format=torch.channels_last)

    def run(name: str) -> list[Tensor]:
        given, gradient = (maps, upstream) if name == PEER else (last, upstream_last)
        leaves = [feature.detach().requires_grad_(gradient is not None) for feature in given]
        pooled = by_name[name](leaves)
        if gradient is None:
            return [pooled]
        pooled.backward(gradient)  # type: ignore[no-untyped-call]
        return [pooled, *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    difference = max((a - b).abs().max().item() for a, b in zip(run("RoIPool"), run(PEER), strict=True))
    seconds: dict[str, list[float]] = {name: [] for name in by_name}
    for _ in range(runs):
        for name, times in seconds.items():
            start = time.perf_counter()
            run(name)
            times.append(time.perf_counter() - start)
    print("forward" if upstream is None else "forward and backward")
    for name, times in seconds.items():
        print(f"    {name:20}{1000 * statistics.median(times):9.1f}")
    ratio = statistics.median(seconds[PEER]) / statistics.median(seconds["RoIPool"])
    print(f"    torchvision's RoIPool takes {ratio:.2f} times as long; largest difference {difference:.1e}", flush=True)


def random_boxes(count: int) -> Tensor:
    """Boxes (count, 4) inside the picture: log-uniform sides, ratios of 1:2 to 2:1."""
    side = torch.exp(torch.empty(count).uniform_(2.8, 6.1))
    ratio = torch.exp(torch.empty(count).uniform_(-0.35, 0.35))
    centre = torch.rand(count, 2) * torch.tensor([WIDTH, HEIGHT])
    half = torch.stack([side * ratio, side / ratio], dim=1) / 2
    return box_ops.clip(torch.cat([centre - half, centre + half], dim=1), HEIGHT, WIDTH)


if __name__ == "__main__":
    main()
