"""Masks in their boxes to COCO RLE: ours against torchvision's paste with pycocotools' encoder.

    python benchmarks/masks_to_rle.py [--masks 100] [--repeats 5] [--sizes 480x640 1080x1920 3000x4000]

Interleaved runs on one thread; the best of each is kept. `added MB` is the growth of peak memory over one run, in a
process of its own. torchvision rounds boxes to whole pixels, so its masks are not quite ours: `equal` counts our
strings against `grid_sample` in float64 with pycocotools' encoder, which is what Detectron2 does. The largest size
takes torchvision about 9 GB.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from pycocotools import mask as coco
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import paste_masks_in_image

from maskrcnn.ops.masks import paste_rle

SIDE = 28
THRESHOLD = 0.5


def objects(count: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Star-shaped soft masks (D, M, M) in boxes (D, 4) of 5% to 60% of the picture's sides."""
    torch.manual_seed(0)
    axis = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    points = torch.randint(2, 6, (count, 1, 1))
    radius = 0.75 + 0.15 * torch.sin(points * torch.atan2(y, x) + 6 * torch.rand(count, 1, 1))
    limit = torch.tensor([size[1], size[0]])
    extent = (0.05 + 0.55 * torch.rand(count, 2)) * limit
    corner = torch.rand(count, 2) * (limit - extent)
    return torch.sigmoid((radius - x.hypot(y)) * 12), torch.cat([corner, corner + extent], dim=1)


def ours(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[str]:
    return [rle["counts"] for rle in paste_rle(masks, boxes, size, THRESHOLD)]


def peer(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[str]:
    pasted = paste_masks_in_image(masks[:, None], boxes, size)[:, 0] > THRESHOLD
    return [encode(bitmap.numpy()) for bitmap in pasted]


def reference(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[str]:
    strings = []
    for mask, (x1, y1, x2, y2) in zip(masks.double(), boxes.double(), strict=True):
        left, top = int(x1), int(y1)  # a threshold of one half keeps the mask inside its box
        x = torch.arange(left, min(int(x2) + 1, size[1]), dtype=torch.float64) + 0.5
        y = torch.arange(top, min(int(y2) + 1, size[0]), dtype=torch.float64) + 0.5
        across, down = (x - x1) / (x2 - x1) * 2 - 1, (y - y1) / (y2 - y1) * 2 - 1
        grid = torch.stack([across.expand(len(y), -1), down[:, None].expand(-1, len(x))], dim=-1)[None]
        window = F.grid_sample(mask[None, None], grid, align_corners=False)[0, 0] >= THRESHOLD
        picture = np.zeros(size, dtype=np.uint8)
        picture[top : top + len(y), left : left + len(x)] = window
        strings.append(encode(picture))
    return strings


def encode(bitmap: np.ndarray) -> str:
    return str(coco.encode(np.asfortranarray(bitmap.astype(np.uint8)))["counts"].decode())


def added_memory(run: Callable[..., list[str]], count: int, size: tuple[int, int]) -> float:
    """MB by which one run raises the peak memory of a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_growth, (run, count, size))


def _growth(run: Callable[..., list[str]], count: int, size: tuple[int, int]) -> float:
    torch.set_num_threads(1)
    run(*objects(1, (100, 100)), (100, 100))  # what the first call loads is not the run's
    inputs = objects(count, size)
    before = _peak()
    run(*inputs, size)
    return _peak() - before


def _peak() -> float:
    """Peak memory of this process in MB. Only Linux keeps it apart from that of the process that started this one."""
    status = Path("/proc/self/status")
    if not status.exists():
        return math.nan
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def best_times(count: int, size: tuple[int, int], repeats: int) -> tuple[float, float]:
    """Seconds of (ours, peer), in turns."""
    inputs = objects(count, size)
    times: dict[Callable[..., list[str]], list[float]] = {ours: [], peer: []}
    for _ in range(repeats):
        for run, taken in times.items():
            start = time.perf_counter()
            run(*inputs, size)
            taken.append(time.perf_counter() - start)
    return min(times[ours]), min(times[peer])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--masks", type=int, default=100, help="masks per picture")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each; the largest size gets one")
    parser.add_argument("--sizes", nargs="+", default=["480x640", "1080x1920", "3000x4000"], help="HEIGHTxWIDTH")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, one thread, torch {torch.__version__}, {options.masks} masks")
    print(f"{'size':>12} {'ours ms':>9} {'peer ms':>9} {'ratio':>7} {'ours MB':>8} {'peer MB':>8} {'equal':>9}")
    for text in options.sizes:
        size = (int(text.split("x")[0]), int(text.split("x")[1]))
        repeats = options.repeats if size[0] * size[1] < 1e7 else 1
        inputs = objects(options.masks, size)
        pairs = zip(ours(*inputs, size), reference(*inputs, size), strict=True)
        equal = sum(a == b for a, b in pairs)
        fast, slow = best_times(options.masks, size, repeats)
        memory, peers_memory = (added_memory(run, options.masks, size) for run in (ours, peer))
        print(
            f"{text:>12} {1e3 * fast:9.1f} {1e3 * slow:9.1f} {slow / fast:7.1f} {memory:8.1f} {peers_memory:8.1f}"
            f" {equal:>4}/{options.masks}",
            flush=True,
        )


if __name__ == "__main__":
    main()
