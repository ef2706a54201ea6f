"""What this machine computes with, found by trying: which operations there are, and which precision is faster."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from maskrcnn.engine.conv import FusedConv
from maskrcnn.engine.linear import FusedLinear
from maskrcnn.engine.packed import PackedConv, PackedLinear

_ROUNDS = 5


@functools.cache
def packing_works(dtype: torch.dtype) -> bool:
    """Whether `PackedConv` and `PackedLinear` run here and give what plain torch gives, tried on small ones."""
    close = 1e-4 if dtype == torch.float32 else 3e-2
    draw = torch.Generator().manual_seed(0)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    try:
        with torch.no_grad():
            x, add = some(1, 16, 8, 8), some(1, 16, 8, 8)
            conv = FusedConv(some(16, 16, 3, 3) / 12, some(16), padding=(1, 1), relu=True)
            y = PackedConv(conv, dtype)(x.to(dtype), add.to(dtype)).float()
            linear = FusedLinear(some(16, 32) / 6, some(16), relu=True)
            rows = some(4, 32)
            z = PackedLinear(linear, dtype)(rows.to(dtype)).float()
            return bool((y - conv(x, add)).abs().max() < close and (z - linear(rows)).abs().max() < close)
    except (RuntimeError, AttributeError, NotImplementedError):  # another build of torch: without oneDNN, or its names
        return False


@functools.cache
def bf16_is_faster() -> bool:
    """Whether a convolution in bf16 takes clearly less time than in float32: CPUs without such units emulate it."""
    return faster(_conv_in(torch.bfloat16), _conv_in(torch.float32))


def faster(one: Callable[[], object], other: Callable[[], object], by: float = 1.1) -> bool:
    """Whether `one` takes less time than `other`, by this factor: the best of a few rounds, taken in turns."""
    best = [float("inf"), float("inf")]
    for _ in range(_ROUNDS):
        for i, run in enumerate((one, other)):
            start = time.perf_counter()
            run()
            best[i] = min(best[i], time.perf_counter() - start)
    return best[0] * by < best[1]


def _conv_in(dtype: torch.dtype) -> Callable[[], object]:
    """A convolution as a detector has many: some 10 ms in float32 on one core."""
    x = torch.zeros(1, 128, 48, 48, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.zeros(128, 128, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)

    def run() -> object:
        with torch.no_grad():
            return F.conv2d(x, weight, padding=1)

    return run
