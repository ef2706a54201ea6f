"""What numbers pass through each layer, seen on the user's own pictures: the ranges that codes have to reach.

The largest number of a map is often far above the rest. Codes that reach it are coarse for all others, so the range is
the one of the least squared error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import frexp
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn.engine.codes import Codes, Coding, coding_of
from maskrcnn.engine.conv import FusedConv
from maskrcnn.engine.linear import FusedLinear
from maskrcnn.errors import InputError
from maskrcnn.model.mask_rcnn import MaskRCNN

Range = tuple[float, float]
Ranges = Mapping[str, Range]
"""Lowest and highest number of a layer's "NAME.given", "NAME.added" and "NAME.made", names as in `fused(model)`."""

_SAMPLE = 1 << 20  # numbers of one map that are counted
_BINS = 4096  # of the histogram, some eight to a code
_SHARES = torch.linspace(0.2, 1.0, 41).tolist()  # of the whole range, tried as a range


@dataclass
class Seen:
    """The numbers of one place: the ends, and how many there were of each size, from -reach to reach."""

    low: float = 0.0
    high: float = 0.0
    reach: float = 0.0  # a power of two, so that a histogram of less reach is taken in without rounding
    counts: Tensor = field(default_factory=lambda: torch.zeros(_BINS, dtype=torch.float64))

    def look(self, x: Tensor) -> None:
        """Take note of the numbers of x, of any shape."""
        if not x.numel():
            return
        low, high = (float(end) for end in x.aminmax())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._widen(2.0 ** frexp(max(-low, high, 1e-30))[1])
        flat = x.permute(0, 2, 3, 1).reshape(-1) if x.ndim == 4 else x.reshape(-1)
        if flat.numel() > _SAMPLE:
            flat = flat[:: flat.numel() // _SAMPLE | 1]  # odd, so that it meets every channel
        self.counts += torch.histc(flat.float(), _BINS, -self.reach, self.reach)

    def _widen(self, reach: float) -> None:
        if self.reach == 0:
            self.reach = reach
        while self.reach < reach:
            quarter, pairs = _BINS // 4, self.counts.view(-1, 2).sum(dim=1)
            self.counts = torch.cat([pairs.new_zeros(quarter), pairs, pairs.new_zeros(quarter)])
            self.reach *= 2

    def range(self) -> Range:
        """The range whose codes have the least squared error."""
        filled = self.counts.nonzero().squeeze(1)
        if not len(filled):
            return 0.0, 0.0
        numbers = ((filled + 0.5) * (2 / _BINS) - 1) * self.reach  # the middle of each bin
        tried = [(share * self.low, share * self.high) for share in _SHARES]
        return min(tried, key=lambda ends: _error(numbers, self.counts[filled], coding_of(*ends)))


def _error(numbers: Tensor, counts: Tensor, coding: Coding) -> float:
    """The sum of squared differences that encoding makes of numbers (B,) that are there `counts` (B,) times."""
    back = Codes(coding.encode(numbers), coding).decoded(numbers.dtype)
    return float((back - numbers).square_().mul_(counts).sum())


def calibrate(network: MaskRCNN, pictures: Iterable[Tensor]) -> dict[str, Range]:
    """The ranges of every fused layer of `network`, as `fused` made it, while it detects in `pictures`.

    pictures: tensors (3, H, W) uint8 RGB. Errors: `InputError` where there is none.
    """
    seen: dict[str, Seen] = {}
    handles = [
        module.register_forward_hook(_Observer(name, seen))
        for name, module in network.named_modules()
        if isinstance(module, FusedConv | FusedLinear)
    ]
    count = 0
    try:
        with torch.no_grad():
            for picture in pictures:
                network([picture])
                count += 1
    finally:
        for handle in handles:
            handle.remove()
    if not count:
        raise InputError("no pictures", field="calibration", expected="a folder of pictures, or a list of them")
    return {name: place.range() for name, place in seen.items()}


class _Observer:
    """A hook that looks at what a layer is given and makes."""

    def __init__(self, name: str, seen: dict[str, Seen]) -> None:
        self.name, self.seen = name, seen

    def __call__(self, module: nn.Module, args: tuple[Any, ...], made: Tensor) -> None:
        for kind, x in zip(("given", "added"), args, strict=False):
            if isinstance(x, Tensor):
                self._of(kind).look(x)
        self._of("made").look(made)

    def _of(self, kind: str) -> Seen:
        return self.seen.setdefault(f"{self.name}.{kind}", Seen())
