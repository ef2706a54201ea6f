"""Convolution with an optional norm, and the first values of weights: shared by FPN, RPN and heads."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn

Norm = Literal["batch", "group"] | None


class ConvNorm(nn.Module):
    """Convolution, then norm where asked for (its bias is then the norm's), then ReLU where asked for."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, *, norm: Norm = None, relu: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=norm is None)
        self.norm = make_norm(norm, out_channels)
        self.relu = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.norm(self.conv(x)))
        return y


def conv_stack(in_channels: int, channels: int, count: int, norm: Norm) -> nn.ModuleList:
    """`count` 3x3 convolutions with ReLU, each `channels` wide: the body of a head."""
    blocks = [ConvNorm(channels if i else in_channels, channels, 3, norm=norm, relu=True) for i in range(count)]
    for block in blocks:
        init_conv(block.conv)
    return nn.ModuleList(blocks)


def make_norm(norm: Norm, channels: int) -> nn.Module:
    """Batch norm (Ioffe and Szegedy 2015), group norm (Wu and He 2018, 32 groups where they divide) or nothing."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "group":
        return nn.GroupNorm(math.gcd(32, channels), channels)
    return nn.Identity()


def init_conv(conv: nn.Conv2d | nn.ConvTranspose2d, *, std: float | None = None) -> None:
    """He et al. 2015 (fan out, ReLU), or a normal of width `std`; biases start at zero."""
    if std is None:
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    else:
        nn.init.normal_(conv.weight, std=std)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def init_linear(linear: nn.Linear, *, std: float | None = None) -> None:
    """Uniform He et al. 2015 as fully connected layers of detectors use it, or a normal of width `std`."""
    if std is None:
        nn.init.kaiming_uniform_(linear.weight, a=1)
    else:
        nn.init.normal_(linear.weight, std=std)
    nn.init.zeros_(linear.bias)
