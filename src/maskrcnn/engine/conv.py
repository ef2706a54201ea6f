"""A convolution with what follows it in one step: norm folded in, a residual sum, a ReLU.

N images    C, O channels in and out    g groups
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pair = tuple[int, int]


class FusedConv(nn.Module):
    """x (N, C, H, W) -> relu(conv(x) + bias + add), each part where there is one. Only for detecting.

    weight: (O, C / g, kh, kw). bias: (O,). add: (N, O, H', W'). overwrites: whether the result may take the place of
    `add`, which spares its memory. Its forward is plain torch, for any device and dtype, and leaves `add` as it is; a
    kernel for one machine takes its place (`PackedConv`).
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        *,
        stride: Pair = (1, 1),
        padding: Pair = (0, 0),
        dilation: Pair = (1, 1),
        groups: int = 1,
        relu: bool = False,
        overwrites: bool = False,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.relu, self.overwrites = relu, overwrites

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        if add is not None:
            y = y.add_(add)
        return y.relu_() if self.relu else y

    def geometry(self) -> dict[str, Any]:
        """What besides weights makes the convolution."""
        names = ("stride", "padding", "dilation", "groups", "relu")
        return {name: getattr(self, name) for name in names}

    def extra_repr(self) -> str:
        o, c, kh, kw = self.weight.shape
        return f"{c * self.groups} -> {o}, {kh} x {kw}, stride {self.stride}, relu {self.relu}"


def fused_conv(conv: nn.Conv2d, norm: nn.Module | None = None, *, relu: bool = False) -> FusedConv | None:
    """`conv` and the batch norm behind it as one; None where they cannot be, as with group norm or odd paddings.

    In evaluation a batch norm is y = (x - mean) * scale + bias with fixed numbers, so it goes into weight and bias
    (computed in float64). Nothing of `conv` or `norm` is changed; without a norm the weight is shared.
    """
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return None
    weight = conv.weight.detach()
    bias = weight.new_zeros(weight.shape[0]) if conv.bias is None else conv.bias.detach()
    if norm is not None and not isinstance(norm, nn.Identity):
        if not is_batch_norm(norm):
            return None
        scale, shift = _affine_of(norm)
        bias = (bias.double() * scale + shift).to(bias.dtype)
        weight = (weight.double() * scale[:, None, None, None]).to(weight.dtype)
    return FusedConv(
        weight,
        bias,
        stride=_pair(conv.stride),
        padding=_pair(conv.padding),
        dilation=_pair(conv.dilation),
        groups=conv.groups,
        relu=relu,
    )


def is_batch_norm(module: nn.Module) -> bool:
    """Whether it is a batch norm with fixed statistics, learned or frozen, without an activation of its own."""
    has = all(isinstance(getattr(module, name, None), Tensor) for name in ("running_mean", "running_var"))
    acts = not isinstance(getattr(module, "act", nn.Identity()), nn.Identity)
    drops = not isinstance(getattr(module, "drop", nn.Identity()), nn.Identity)
    return has and hasattr(module, "eps") and not acts and not drops and not module.training


def _affine_of(norm: Any) -> tuple[Tensor, Tensor]:
    """Scale and shift of a batch norm, (O,) float64."""
    scale = torch.rsqrt(norm.running_var.detach().double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.detach().double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach().double()


def _pair(value: Any) -> Pair:
    first, second = (value, value) if isinstance(value, int) else value
    return int(first), int(second)
