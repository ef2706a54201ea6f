"""Which boxes does a step learn from? A fixed number, so that background drowns no object (Ren et al. 2015, 3.1.3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from maskrcnn.losses.matcher import BACKGROUND, FOREGROUND

Sampler = Callable[[Tensor, int, float, torch.Generator], tuple[Tensor, Tensor]]


def sample(kind: Tensor, count: int, foreground_fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Choose at random up to `count` boxes, at most `foreground_fraction` of them foreground, the rest background.

    kind: (B,) as `match` gives it. generator: a CPU generator, seeded by the picture, so that the choice hangs
    neither on the batch that the picture is in nor on the device. Returns the chosen positions, sorted:
    foreground (F,) and background (Q,) int64.
    """
    foreground = (kind == FOREGROUND).nonzero().squeeze(1)
    background = (kind == BACKGROUND).nonzero().squeeze(1)
    num_foreground = min(int(count * foreground_fraction), len(foreground))
    num_background = min(count - num_foreground, len(background))
    return _some(foreground, num_foreground, generator), _some(background, num_background, generator)


def _some(positions: Tensor, count: int, generator: torch.Generator) -> Tensor:
    chosen = torch.randperm(len(positions), generator=generator)[:count]
    return positions[chosen.to(positions.device).sort().values]
