"""Feature pyramid: every level sees fine places and coarse meaning (Lin et al. 2017, 3).

Level p of the pyramid is made of level c of the body, "p5" of "c5" and "p5a" of "c5a", and has its stride.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn.model.backbone import stride_of
from maskrcnn.model.config import require
from maskrcnn.model.layers import ConvNorm, Norm


@dataclass(frozen=True, kw_only=True)
class FPNConfig:
    """A level for each of the body's, p2..p5 by default, and p6 where `extra_level` is set."""

    channels: int = 256  # of every level; Lin et al. 2017, 3
    norm: Norm = None
    extra_level: bool = True  # p6, every second cell of p5, only for the RPN's largest anchors; Lin et al. 2017, 4.1

    def __post_init__(self) -> None:
        require(self.channels > 0, self, "channels", "at least 1")


class FPN(nn.Module):
    """{"c2": (N, C2, H/4, W/4), ...} -> {"p2": (N, C, H/4, W/4), ..., "p6": (N, C, H/64, W/64)}."""

    def __init__(self, config: FPNConfig, in_channels: Mapping[str, int]) -> None:
        super().__init__()
        self.config = config
        width, norm = config.channels, config.norm
        self.lateral = nn.ModuleDict({f"p{c[1:]}": ConvNorm(n, width, 1, norm=norm) for c, n in in_channels.items()})
        self.output = nn.ModuleDict({p: ConvNorm(width, width, 3, norm=norm) for p in self.lateral})
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.strides = {f"p{c[1:]}": stride_of(c) for c in in_channels}  # pixels per cell of each level, fine to coarse
        if config.extra_level:
            self.strides["p6"] = 2 * self.strides["p5"]

    def forward(self, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        pyramid: dict[str, Tensor] = {}
        above: Tensor | None = None
        for name in reversed(list(self.lateral)):  # p5 first
            merged = self.lateral[name](maps[f"c{name[1:]}"])
            if above is not None:
                merged = merged + F.interpolate(above, size=merged.shape[-2:], mode="nearest")
            above = merged
            pyramid[name] = self.output[name](merged)
        levels = dict(reversed(pyramid.items()))
        if self.config.extra_level:
            levels["p6"] = F.max_pool2d(levels["p5"], kernel_size=1, stride=2)
        return levels
