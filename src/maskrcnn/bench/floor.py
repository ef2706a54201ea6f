"""The floor of the machine: how fast it convolves and multiplies, and what the model's arithmetic takes at that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn.bench.measure import Progress, interleaved, say_nothing

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_CHANNELS, _HEIGHT, _WIDTH = 256, 100, 136  # of the convolution: P3 of a picture of 800 x 1088
_SIDE = 2048  # of the square matrices
_ROUNDS = 5


@dataclass(frozen=True)
class Rates:
    """GFLOP/s that large work reaches; of int8 operations of integers. None where the machine has no way known here."""

    precision: str
    conv: float | None
    gemm: float | None

    @property
    def best(self) -> float | None:
        known = [rate for rate in (self.conv, self.gemm) if rate is not None]
        return max(known, default=None)


def measured_rates(
    precisions: Sequence[str], device: torch.device | str = "cpu", progress: Progress = say_nothing
) -> dict[str, Rates]:
    """Of a 3 x 3 convolution of 256 channels and of a product of square matrices, by the fastest of five rounds."""
    works: dict[str, Callable[[Any], Any]] = {}
    for precision in precisions:
        makers = (_int8_conv, _int8_gemm) if precision == "int8" else (_conv, _gemm)
        for kind, make in zip(("conv", "gemm"), makers, strict=True):
            with suppress(RuntimeError, AttributeError, NotImplementedError, TypeError):  # a type that it does not have
                work = make(precision, device)
                work(None)
                works[f"{precision} {kind}"] = work
    timings = interleaved(works, [None], _ROUNDS, device=device, progress=progress) if works else {}
    flops = {"conv": conv_flops(_CHANNELS, _CHANNELS, 3, _HEIGHT, _WIDTH), "gemm": 2.0 * _SIDE**3}

    def rate(precision: str, kind: str) -> float | None:
        timing = timings.get(f"{precision} {kind}")
        return None if timing is None else flops[kind] / timing.fastest / 1e9

    return {p: Rates(p, rate(p, "conv"), rate(p, "gemm")) for p in precisions}


def conv_flops(inputs: int, outputs: int, kernel: int, height: int, width: int) -> float:
    """Of a convolution that makes `outputs` maps of height x width; a multiplication and an addition are two."""
    return 2.0 * inputs * outputs * kernel**2 * height * width


def floor_seconds(flops: Mapping[str, float], rates: Rates) -> float | None:
    """What the arithmetic of all stages takes at the best rate, with nothing else to do."""
    return None if rates.best is None else sum(flops.values()) / rates.best / 1e9


def _conv(precision: str, device: torch.device | str) -> Callable[[Any], Tensor]:
    dtype = DTYPES[precision]
    x = (
        torch.randn(1, _CHANNELS, _HEIGHT, _WIDTH, device=device)
        .to(dtype)
        .contiguous(memory_format=torch.channels_last)
    )
    weight = torch.randn(_CHANNELS, _CHANNELS, 3, 3, device=device).to(dtype)
    weight = weight.contiguous(memory_format=torch.channels_last)
    return _without_gradients(lambda: F.conv2d(x, weight, padding=1))


def _gemm(precision: str, device: torch.device | str) -> Callable[[Any], Tensor]:
    dtype = DTYPES[precision]
    a, b = (torch.randn(_SIDE, _SIDE, device=device).to(dtype) for _ in range(2))
    return _without_gradients(lambda: a @ b)


def _int8_conv(precision: str, device: torch.device | str) -> Callable[[Any], Tensor]:
    """OneDNN's own quantised convolution, of bytes to bytes; private to torch."""
    ops = torch.ops.onednn
    x = torch.randint(0, 255, (1, _CHANNELS, _HEIGHT, _WIDTH), dtype=torch.uint8, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.randint(-127, 127, (_CHANNELS, _CHANNELS, 3, 3), dtype=torch.int8, device=device)
    scales, zeros = torch.full((_CHANNELS,), 0.01), torch.zeros(_CHANNELS, dtype=torch.int32)
    ones = [1, 1]
    packed = ops.qconv_prepack(weight, scales, 0.02, 128, ones, ones, ones, 1, list(x.shape))

    def run() -> Tensor:
        places = (None, ones, ones, ones, 1)  # bias, stride, padding, dilation, groups
        result: Tensor = ops.qconv_pointwise(
            x, 0.02, 128, packed, scales, zeros, *places, 1.0, 0, torch.uint8, "none", [], ""
        )
        return result

    return _without_gradients(run)


def _int8_gemm(precision: str, device: torch.device | str) -> Callable[[Any], Tensor]:
    a, b = (torch.randint(-127, 127, (_SIDE, _SIDE), dtype=torch.int8, device=device) for _ in range(2))
    return _without_gradients(lambda: torch._int_mm(a, b.t()))


def _without_gradients(work: Callable[[], Tensor]) -> Callable[[Any], Tensor]:
    def call(item: Any) -> Tensor:
        with torch.no_grad():
            return work()

    return call
