"""Convolutions and fully connected layers by oneDNN with weights packed once, on a CPU.

torch calls oneDNN for convolutions, but packs the weights at every call, adds and rectifies in passes of their own, and
multiplies matrices of float32 by MKL, which uses half the width of an AMD core. The operations that
torch's own compiler calls do all of it at once. They are no public interface, so they are tried before they are used.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from maskrcnn.engine.conv import FusedConv
from maskrcnn.engine.linear import FusedLinear

_USUAL_ROWS = 1000
_PACKED_VALUES = 4 << 20  # of one layer's weights that are kept packed, for one size of map or for several


class PackedConv(nn.Module):
    """As the `FusedConv` that it is made of, for maps of one dtype. x and add: channels-last; so is what it returns.

    oneDNN lays weights out as suits the size of the map, and reads another layout at a tenth of the speed. So they are
    packed when a size is first seen, and the last few packings are kept.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, conv: FusedConv, dtype: torch.dtype) -> None:
        super().__init__()
        self.stride, self.padding, self.dilation = list(conv.stride), list(conv.padding), list(conv.dilation)
        self.groups, self.relu, self.overwrites = conv.groups, conv.relu, conv.overwrites
        self.register_buffer("weight", conv.weight.to(dtype), persistent=False)
        self.register_buffer("bias", conv.bias.to(dtype), persistent=False)
        self._packed: OrderedDict[tuple[int, int], Tensor] = OrderedDict()
        self._after = "relu" if conv.relu else "none"

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        weight = self._packed_for(x)
        where = (self.padding, self.stride, self.dilation, self.groups)
        after: str | None
        if add is None or self.groups > 1:  # of a sum with groups oneDNN's operation knows float32 alone
            after = self._after if add is None else "none"
            y: Tensor = torch.ops.mkldnn._convolution_pointwise(x, weight, self.bias, *where, after, [], "")
            y = y if add is None else y.add_(add)
            return y.relu_() if self.relu and add is not None else y
        add = add.contiguous(memory_format=torch.channels_last)
        after = "relu" if self.relu else None
        if self.overwrites:
            onto = torch.ops.mkldnn._convolution_pointwise_.binary
            y = onto(add, x, weight, self.bias, *where, "add", 1.0, after, [], "")
        else:
            beside = torch.ops.mkldnn._convolution_pointwise.binary
            y = beside(x, add, weight, self.bias, *where, "add", 1.0, after, [], "")
        return y

    def _packed_for(self, x: Tensor) -> Tensor:
        """The weights in oneDNN's own layout, which only its operations can read."""
        size = (x.shape[2], x.shape[3])
        found = self._packed.get(size)
        if found is None:
            found = torch.ops.mkldnn._reorder_convolution_weight(
                self.weight, self.padding, self.stride, self.dilation, self.groups, [1, *x.shape[1:]]
            )
            while len(self._packed) >= max(1, _PACKED_VALUES // self.weight.numel()):
                self._packed.popitem(last=False)
            self._packed[size] = found
        return found


class PackedLinear(nn.Module):
    """As the `FusedLinear` that it is made of, for rows of one dtype."""

    def __init__(self, linear: FusedLinear, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("bias", linear.bias.to(dtype), persistent=False)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.to(dtype).contiguous(), _USUAL_ROWS)
        self.out_features = linear.weight.shape[0]
        self._after = "relu" if linear.relu else "none"

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self._after, [], "")
        return y
