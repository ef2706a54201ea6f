"""A fully connected layer with its ReLU in one step.

R rows    I, O values in and out
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class FusedLinear(nn.Module):
    """x (R, I) -> relu(x weight^T + bias), the ReLU where asked. Only for detecting. weight: (O, I). bias: (O,).

    Its forward is plain torch; a kernel for one machine takes its place (`PackedLinear`).
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, *, relu: bool = False) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        return y.relu_() if self.relu else y

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]} -> {self.weight.shape[0]}, relu {self.relu}"


def fused_linear(linear: nn.Linear, *, relu: bool = False) -> FusedLinear:
    """`linear` with its ReLU; the weight is shared."""
    weight = linear.weight.detach()
    bias = weight.new_zeros(weight.shape[0]) if linear.bias is None else linear.bias.detach()
    return FusedLinear(weight, bias, relu=relu)
