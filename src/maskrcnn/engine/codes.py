"""Numbers as whole ones from 0 to 255, with what one step is worth: what convolutions in int8 hand to one another.

A code q stands for (q - zero) * scale (Jacob et al. 2018, 2.1). Codes are in the order of the numbers, so the largest
of some codes is the code of the largest number, and a map repeated or cut stays what it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

TOP = 255  # the largest code


@dataclass(frozen=True)
class Coding:
    """What codes stand for. scale: above 0. zero: the code of 0.0, from 0 to 255, so that padding is exact."""

    scale: float
    zero: int

    def encode(self, x: Tensor) -> Tensor:
        """uint8 of the shape of x, halves to even, cut to what the codes reach."""
        return (x * (1.0 / self.scale)).add_(self.zero).round_().clamp_(0, TOP).to(torch.uint8)


def coding_of(low: float, high: float) -> Coding:
    """Codes that reach from about `low` to `high`, with 0.0 among them."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / TOP, 1e-12)  # of a map that is zero throughout
    return Coding(scale, min(TOP, max(0, round(-low / scale))))


@dataclass(frozen=True)
class Codes:
    """Maps or rows of codes. values: uint8, maps in channels-last order."""

    values: Tensor
    coding: Coding

    def decoded(self, dtype: torch.dtype) -> Tensor:
        """The numbers that the codes stand for."""
        return self.values.to(dtype).sub_(self.coding.zero).mul_(self.coding.scale)

    @cached_property
    def steps(self) -> Tensor:
        """The numbers over `scale`, bfloat16, which holds them exactly: from -255 to 255."""
        return self.values.to(torch.bfloat16).sub_(self.coding.zero)

    def map(self, change: Callable[[Tensor], Tensor]) -> Codes:
        """What moves numbers about, done to the codes."""
        return Codes(change(self.values), self.coding)

    # what the stages of the detector ask of maps, which they hand on without looking at the numbers

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def nbytes(self) -> int:
        return self.values.nbytes

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, place: Any) -> Codes:
        return self.map(lambda values: values[place])

    def split(self, rows: int) -> list[Codes]:
        return [Codes(part, self.coding) for part in torch.split(self.values, rows)]

    def permute(self, *dims: int) -> Codes:
        return self.map(lambda values: values.permute(*dims))

    def flatten(self, start: int) -> Codes:
        return self.map(lambda values: values.flatten(start))


def max_pool(codes: Codes, kernel: int, stride: int, padding: int, ceil_mode: bool = False) -> Codes:
    """As `F.max_pool2d`, which torch has not for whole numbers. codes: (N, C, H, W)."""
    values = codes.values
    for dim in (3, 2):
        values = _largest(values, dim, kernel, stride, padding, ceil_mode)
    return Codes(values, codes.coding)


def _largest(values: Tensor, dim: int, kernel: int, stride: int, padding: int, ceil_mode: bool) -> Tensor:
    """The largest in each window along one dimension. Padding is never taken, since 0 is the least of all codes."""
    size = values.shape[dim]
    beyond = size + 2 * padding - kernel
    count = 1 + (-(-beyond // stride) if ceil_mode else beyond // stride)
    if ceil_mode and (count - 1) * stride >= size + padding:  # no window begins in the padding at the end
        count -= 1
    shape = (*values.shape[:dim], count, *values.shape[dim + 1 :])
    largest = torch.empty(shape, dtype=values.dtype, memory_format=torch.channels_last).zero_()
    every = (slice(None),) * dim + (slice(None, None, stride),)
    for tap in range(-padding, kernel - padding):
        first, last = max(0, -(tap // stride)), min(count, (size - 1 - tap) // stride + 1)  # windows it lies in
        if first < last:
            reached = largest.narrow(dim, first, last - first)
            taken = values.narrow(dim, first * stride + tap, (last - first - 1) * stride + 1)[every]
            torch.maximum(reached, taken, out=reached)
    return largest
