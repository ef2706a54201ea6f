"""RoIAlign over p2..p5 of an 800 x 1088 picture: ours (a weighted bag) against torchvision's compiled op, interleaved.

    python benchmarks/roi_align.py --threads 1 --channels 256 --runs 9

Boxes have sides of 16 to 450 px. Times are medians in milliseconds; the ratio is torchvision's time over ours.
The difference is the largest one between the outputs (forward) or the gradients (backward), over the largest value.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor

from maskrcnn.ops import boxes as box_ops
from maskrcnn.ops.roi_align import Kernel, level_of, roi_align_levels

HEIGHT, WIDTH, STRIDES = 800, 1088, (4, 8, 16, 32)


@dataclass(frozen=True)
class Case:
    num_boxes: int
    size: int
    backward: bool = False
    sampling_ratio: int = 2

    @property
    def name(self) -> str:
        sampling = "adaptive" if self.sampling_ratio == 0 else f"{self.sampling_ratio}x{self.sampling_ratio} points"
        lane = "forward and backward" if self.backward else "forward"
        return f"{self.num_boxes} boxes, {self.size}x{self.size}, {sampling}, {lane}"


CASES = (
    Case(1000, 7),
    Case(100, 14),
    Case(1000, 7, sampling_ratio=0),
    Case(512, 7, backward=True),
    Case(128, 14, backward=True),
)


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
    print(f"{'':52}{'dtype':>10}{'torchvision':>13}{'ours':>9}{'ratio':>8}{'difference':>12}")
    for case in CASES:
        for dtype in (torch.float32, torch.bfloat16):
            compare(case, dtype, options.channels, options.runs)


def compare(case: Case, dtype: torch.dtype, channels: int, runs: int) -> None:
    """Print one line. Each form is given the memory format it likes: ours channels-last, torchvision's rows of planes.

    torchvision's op has no bfloat16 on a CPU: it is given float32 copies, as autocast does.
    """
    maps = [torch.randn(1, channels, HEIGHT // stride, WIDTH // stride).to(dtype) for stride in STRIDES]
    upstream = torch.randn(case.num_boxes, channels, case.size, case.size).to(dtype)
    boxes = random_boxes(case.num_boxes)
    last = {"memory_format": torch.channels_last}
    given: dict[Kernel, tuple[list[Tensor], Tensor]] = {
        "torchvision": (maps, upstream),
        "bag": ([m.contiguous(**last) for m in maps], upstream.contiguous(**last)),
    }

    def run(kernel: Kernel) -> list[Tensor]:
        features, gradient = given[kernel]
        return pool(features, boxes, case, kernel, gradient if case.backward else None)

    ours, theirs = run("bag"), run("torchvision")
    largest = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(ours, theirs, strict=True))
    del ours, theirs
    their_ms, our_ms = interleaved([lambda: run("torchvision"), lambda: run("bag")], runs)
    kind = str(dtype).removeprefix("torch.")
    print(f"{case.name:52}{kind:>10}{their_ms:13.1f}{our_ms:9.1f}{their_ms / our_ms:8.2f}{largest:12.1e}", flush=True)


def pool(features: list[Tensor], boxes: Tensor, case: Case, kernel: Kernel, upstream: Tensor | None) -> list[Tensor]:
    """The pooled maps, or with `upstream` the gradients of the four maps."""
    leaves = [feature.detach().requires_grad_(upstream is not None) for feature in features]
    image_index = torch.zeros(len(boxes), dtype=torch.int64)
    level_index = level_of(boxes) - 2
    pooled = roi_align_levels(
        leaves,
        boxes,
        image_index,
        level_index,
        case.size,
        strides=STRIDES,
        sampling_ratio=case.sampling_ratio,
        kernel=kernel,
    )
    if upstream is None:
        return [pooled]
    pooled.backward(upstream)  # type: ignore[no-untyped-call]
    return [leaf.grad for leaf in leaves if leaf.grad is not None]


def random_boxes(count: int) -> Tensor:
    """Boxes (count, 4) inside the picture: log-uniform sides, ratios of 1:2 to 2:1."""
    side = torch.exp(torch.empty(count).uniform_(2.8, 6.1))
    ratio = torch.exp(torch.empty(count).uniform_(-0.35, 0.35))
    centre = torch.rand(count, 2) * torch.tensor([WIDTH, HEIGHT])
    half = torch.stack([side * ratio, side / ratio], dim=1) / 2
    return box_ops.clip(torch.cat([centre - half, centre + half], dim=1), HEIGHT, WIDTH)


def interleaved(forms: list[Callable[[], object]], runs: int) -> list[float]:
    """Median milliseconds of each form, taken in turns so that a drifting machine slows all of them."""
    seconds: list[list[float]] = [[] for _ in forms]
    for _ in range(runs):
        for times, form in zip(seconds, forms, strict=True):
            start = time.perf_counter()
            form()
            times.append(time.perf_counter() - start)
    return [1000 * statistics.median(times) for times in seconds]


if __name__ == "__main__":
    main()
