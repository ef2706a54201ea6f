"""Products that are learned through, by faster kernels than torch picks: a fully connected layer, a row by its matrix.

R RoIs    I, O values in and out    P pixels    C channels
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_LARGE = 1 << 26  # multiplications; a smaller product is made before the other kernel is ready


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x weight^T + bias: (R, O) from x (R, I), weight (O, I), bias (O,).

    While learning in float32 on a CPU, large products and their gradients are 1x1 convolutions. Torch gives matrix
    products to MKL, which on processors of another make than its own is slow (88 GFLOP/s on a Zen 5 core), and
    convolutions to oneDNN (170). In bfloat16 oneDNN has both.
    """
    large = bias is not None and x.ndim == 2 and x.shape[0] * weight.numel() >= _LARGE
    if large and _is_learned_on_cpu(x, weight) and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu"):
        product: Tensor = _Linear.apply(x, weight, bias)
        return product
    return F.linear(x, weight, bias)


def weighted_channels(hidden: Tensor, weights: Tensor) -> Tensor:
    """(R, P): each row's own weights (R, C), applied at each of its pixels (R, P, C)."""
    if _is_learned_on_cpu(hidden, weights):
        sums: Tensor = _WeightedChannels.apply(hidden, weights)
        return sums
    return torch.einsum("rpc,rc->rp", hidden, weights)


def _is_learned_on_cpu(x: Tensor, weight: Tensor) -> bool:
    learns = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    return learns and x.device.type == "cpu" and not torch.compiler.is_compiling()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return _product(grad, weight.t()), _product(grad.t(), x.t()), grad.sum(0)


def _product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a b^T + bias: (R, O) from a (R, I), b (O, I). The rows of `a` are the pixels of a map one pixel high.

    dilation: of a kernel of 1x1 it changes nothing, but that torch leaves it to oneDNN with one thread, too.
    """
    pixels = a.contiguous()[None, None].permute(0, 3, 1, 2)  # (1, I, 1, R), channels-last
    return F.conv2d(pixels, b[:, :, None, None], bias, dilation=2).permute(0, 2, 3, 1)[0, 0]


class _WeightedChannels(torch.autograd.Function):
    """The gradient of `hidden` is an outer product; as a product of matrices, which torch makes of it, it takes 0.15 s
    rather than 0.01 for 256 RoIs of 28 x 28 pixels and 256 channels (Zen 5, one core).
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weights)
        return torch.bmm(hidden, weights[:, :, None])[:, :, 0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        hidden, weights = ctx.saved_tensors
        return grad[:, :, None] * weights[:, None, :], torch.bmm(grad[:, None, :], hidden)[:, 0]
