"""Convolutions and fully connected layers on codes 0..255 with weights of int8, by oneDNN.

    y = sum over q_x * q_w, in whole numbers of 32 bits; then scaled, bias, residual, ReLU and rounded in one step

Weights have a scale for each output channel and no zero point, maps one scale and zero point (Jacob et al. 2018, 2.4;
Krishnamoorthi 2018). The operations are those that torch's own compiler calls: no public interface, so they are
tried before they are used (`int8.int8_works`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maskrcnn.engine.codes import Codes, Coding
from maskrcnn.engine.conv import FusedConv
from maskrcnn.engine.linear import FusedLinear

WEIGHT_TOP = 127  # codes of weights reach from -127 to 127

_USUAL_MAP = (64, 64)  # cells of the map that weights are packed for; without it they are laid out anew at every call
_USUAL_ROWS = 1000


class QuantisedConv(nn.Module):
    """As the `FusedConv` that it is made of, on codes.

    x: `Codes` of coding `given`, or numbers, which are then encoded so. add: the same, of coding `added`.
    Returns `Codes` of coding `made`, or numbers of `dtype` where `made` is none. With `may_overwrite` the codes of
    `add` are lost, and their memory becomes that of the result.
    """

    def __init__(
        self,
        conv: FusedConv,
        given: Coding,
        made: Coding | None,
        *,
        added: Coding | None = None,
        dtype: torch.dtype = torch.float32,
        may_overwrite: bool = False,
    ) -> None:
        super().__init__()
        self.given, self.made, self.added, self.dtype, self.may_overwrite = given, made, added, dtype, may_overwrite
        self.stride, self.padding, self.dilation = list(conv.stride), list(conv.padding), list(conv.dilation)
        self.groups, self.relu, self.out_channels = conv.groups, conv.relu, conv.weight.shape[0]
        # plain attributes: a change of dtype or device of the whole network must not reach them
        codes, self.scales = weight_codes(conv.weight)
        self.zeros, self.bias = torch.zeros(len(codes), dtype=torch.int32), conv.bias.detach().float().clone()
        where = (self.stride, self.padding, self.dilation, self.groups)
        usual = [1, codes.shape[1] * self.groups, *_USUAL_MAP]
        self.weight = torch.ops.onednn.qconv_prepack(codes, self.scales, given.scale, given.zero, *where, usual)

    def forward(self, x: Codes | Tensor, add: Codes | Tensor | None = None) -> Codes | Tensor:
        values = _encoded(x, self.given).contiguous(memory_format=torch.channels_last)
        first = (values, self.given.scale, self.given.zero, self.weight, self.scales, self.zeros)
        where = (self.bias, self.stride, self.padding, self.dilation, self.groups)
        last = (1.0, 0, self.dtype) if self.made is None else (self.made.scale, self.made.zero, torch.uint8)
        if add is None:
            after = "relu" if self.relu else "none"
            y: Tensor = torch.ops.onednn.qconv2d_pointwise(*first, *where, *last, after, [], "")
            return y if self.made is None else Codes(y, self.made)
        assert self.added is not None and self.made is not None
        onto = _encoded(add, self.added).contiguous(memory_format=torch.channels_last)
        if isinstance(add, Codes) and onto is add.values and not self.may_overwrite:
            onto = onto.clone(memory_format=torch.channels_last)
        relu = "relu" if self.relu else None
        y = torch.ops.onednn.qconv2d_pointwise.binary(
            *first, onto, *where, *last, self.added.scale, self.added.zero, "sum", 1.0, relu, [], ""
        )
        return Codes(y, self.made)

    def extra_repr(self) -> str:
        return f"{self.given} -> {self.made or self.dtype}, relu {self.relu}"


class QuantisedLinear(nn.Module):
    """As the `FusedLinear` that it is made of, on codes; as `QuantisedConv`."""

    def __init__(
        self, linear: FusedLinear, given: Coding, made: Coding | None, *, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.given, self.made, self.dtype, self.relu = given, made, dtype, linear.relu
        codes, self.scales = weight_codes(linear.weight)
        self.zeros, self.bias = torch.zeros(len(codes), dtype=torch.int32), linear.bias.detach().float().clone()
        self.weight = torch.ops.onednn.qlinear_prepack(codes, [_USUAL_ROWS, codes.shape[1]])

    def forward(self, x: Codes | Tensor) -> Codes | Tensor:
        values = _encoded(x, self.given).contiguous()
        first = (values, self.given.scale, self.given.zero, self.weight, self.scales, self.zeros, self.bias)
        last = (1.0, 0, self.dtype) if self.made is None else (self.made.scale, self.made.zero, torch.uint8)
        y: Tensor = torch.ops.onednn.qlinear_pointwise(*first, *last, "relu" if self.relu else "none", [], "")
        return y if self.made is None else Codes(y, self.made)

    def extra_repr(self) -> str:
        return f"{self.given} -> {self.made or self.dtype}, relu {self.relu}"


def weight_codes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (O, ...) as int8 of the same shape, and the scale (O,) float32 of each output channel."""
    weight = weight.detach().float()
    scales = weight.flatten(1).abs().amax(dim=1).clamp(min=1e-12) / WEIGHT_TOP
    steps = weight / scales.view(-1, *[1] * (weight.ndim - 1))
    return steps.round().clamp(-WEIGHT_TOP, WEIGHT_TOP).to(torch.int8).contiguous(), scales


def _encoded(x: Codes | Tensor, coding: Coding) -> Tensor:
    if isinstance(x, Codes):
        assert x.coding == coding, "codes that stand for something else"
        return x.values
    return coding.encode(x)
