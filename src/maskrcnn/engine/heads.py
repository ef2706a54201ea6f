"""RPN and heads with fused layers: what `model/` says they compute, in fewer passes over memory.

N images    R RoIs    C channels    S pooled side    M mask side    K classes    k anchors per cell    P planes
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn.engine.conv import FusedConv, fused_conv
from maskrcnn.engine.linear import FusedLinear, fused_linear
from maskrcnn.model.box_head import BoxHead, BoxOutputs
from maskrcnn.model.fpn import FPN
from maskrcnn.model.layers import ConvNorm
from maskrcnn.model.mask_head import MaskHead, plane_of
from maskrcnn.model.rpn import RPN, RPNOutputs

BYTES_AT_ONCE = 16 << 20  # of what lies between two layers, where rows or RoIs can be taken in turns: fits a cache


def fuse_conv_norms_(module: nn.Module) -> None:
    """Every `ConvNorm` inside as one `FusedConv`, in place; those with group norm stay as they are."""
    for name, child in module.named_children():
        if isinstance(child, ConvNorm):
            fused = fused_conv(child.conv, child.norm, relu=isinstance(child.relu, nn.ReLU))
            if fused is not None:
                setattr(module, name, fused)
        else:
            fuse_conv_norms_(child)


class FusedFPN(nn.Module):
    """As `FPN`. What a level adds to the one below goes straight onto it, and a map of the body is freed after its use.

    It takes the maps out of the dictionary that it is given: at 800 x 1088 they would be 105 MB that nobody reads.
    """

    def __init__(self, fpn: FPN) -> None:
        super().__init__()
        self.config, self.strides, self.lateral, self.output = fpn.config, fpn.strides, fpn.lateral, fpn.output
        fuse_conv_norms_(self)

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        pyramid: dict[str, Tensor] = {}
        above: Tensor | None = None
        for name in reversed(list(self.lateral)):  # p5 first
            merged = self.lateral[name](maps.pop(f"c{name[1:]}"))
            if above is not None:
                add_enlarged_(merged, above)
            above = merged
            pyramid[name] = self.output[name](merged)
        levels = dict(reversed(pyramid.items()))
        if self.config.extra_level:
            levels["p6"] = F.max_pool2d(levels["p5"], kernel_size=1, stride=2)
        return levels


def add_enlarged_(onto: Tensor, above: Tensor) -> None:
    """Add `above` (N, C, h, w), each cell repeated to fill the size of `onto` (N, C, H, W), in place."""
    (height, width), (rows, columns) = onto.shape[2:], above.shape[2:]
    if (height, width) == (2 * rows, 2 * columns):  # nothing enlarged is ever made
        onto.view(*onto.shape[:2], rows, 2, columns, 2).add_(above[:, :, :, None, :, None])
    elif (height, width) == (rows, columns):
        onto.add_(above)
    else:
        onto.add_(F.interpolate(above, size=(height, width), mode="nearest"))


class FusedRPN(nn.Module):
    """As `RPN`: its convolutions with their ReLU, and the two predictors as one convolution of 5 k channels."""

    def __init__(self, rpn: RPN) -> None:
        super().__init__()
        self.config, self.strides, self._anchors = rpn.config, rpn.strides, rpn.anchors
        self.convs = nn.ModuleList(_plain_conv(conv, relu=True) for conv in rpn.convs)
        self.both = _stacked(rpn.objectness, rpn.deltas)

    def forward(self, features: Mapping[str, Tensor], padded_size: tuple[int, int]) -> RPNOutputs:
        k = self.config.anchors.per_cell
        logits, deltas = [], []
        for name in self.strides:
            both = self._of_level(features[name]).permute(0, 2, 3, 1).float()  # (N, H, W, 5 k)
            logits.append(both[..., :k].flatten(1))
            deltas.append(both[..., k:].reshape(len(both), -1, 4))
        return RPNOutputs(logits, deltas, self._anchors(features, padded_size))

    def _of_level(self, level: Tensor) -> Tensor:
        """(N, 5 k, H, W). A large level goes through in bands of rows, so that what lies between is never as large."""
        rows, halo = level.shape[2], len(self.convs)
        at_once = max(8 * halo, rows * BYTES_AT_ONCE // max(1, level.nbytes))
        if at_once >= rows:
            return self._predict(level)
        bands = []
        for first in range(0, rows, at_once):
            last = min(first + at_once, rows)
            low, high = max(0, first - halo), min(rows, last + halo)  # each convolution reads a row further
            bands.append(self._predict(level[:, :, low:high])[:, :, first - low : last - low])
        return torch.cat(bands, dim=2)

    def _predict(self, hidden: Tensor) -> Tensor:
        for conv in self.convs:
            hidden = conv(hidden)
        both: Tensor = self.both(hidden)
        return both


class FusedBoxHead(nn.Module):
    """As `BoxHead`: the first layer reads maps in the order in which they lie, and class and box come of one layer."""

    def __init__(self, head: BoxHead) -> None:
        super().__init__()
        self.config, self.coder, self.convs = head.config, head.coder, head.convs
        fuse_conv_norms_(self)
        fcs = [fused_linear(fc, relu=True) for fc in head.fcs if isinstance(fc, nn.Linear)]
        if fcs:  # columns from (C, S, S) to (S, S, C)
            weight, side = fcs[0].weight, head.config.side
            fcs[0].weight = weight.view(len(weight), -1, side, side).permute(0, 2, 3, 1).flatten(1)
        self.fcs = nn.ModuleList(fcs)
        self.both = _stacked_linear(head.classes, head.deltas)
        self.num_logits = head.classes.out_features

    def forward(self, pooled: Tensor) -> BoxOutputs:
        hidden = pooled
        for conv in self.convs:
            hidden = conv(hidden)
        hidden = hidden.permute(0, 2, 3, 1)  # (R, S, S, C), as it lies in memory
        hidden = hidden.flatten(1) if self.fcs else hidden.mean(dim=(1, 2))
        for linear in self.fcs:
            hidden = linear(hidden)
        both = self.both(hidden).float()  # (R, K + 1 + 4 K)
        return BoxOutputs(both[:, : self.num_logits], both[:, self.num_logits :].unflatten(1, (-1, 4)))


class FusedMaskHead(nn.Module):
    """As `MaskHead`, where the deconvolution is 2 x 2: four masks of S x S, one for each place in its 2 x 2 pixels.

    Such a deconvolution is a 1x1 convolution to 4 C channels. Its output is never laid out as C maps of M x M, only
    the one map that the class's weights make of it: for 100 RoIs of 256 channels 80 MB are not moved.
    """

    def __init__(self, head: MaskHead) -> None:
        super().__init__()
        self.config, self.convs = head.config, head.convs
        fuse_conv_norms_(self)
        weight, bias = head.deconv.weight.detach(), head.deconv.bias
        assert bias is not None and head.masks.bias is not None
        # (C, O, 2, 2) -> (2 * 2 * O, C)
        spread = weight.permute(2, 3, 1, 0).flatten(0, 2)[:, :, None, None]
        self.deconv = FusedConv(spread, bias.detach().repeat(4), relu=True)
        self.masks = FusedLinear(head.masks.weight.detach().flatten(1), head.masks.bias.detach())

    def forward(self, pooled: Tensor, labels: Tensor) -> Tensor:
        at_once = max(1, BYTES_AT_ONCE * len(pooled) // max(1, 4 * pooled.nbytes))  # the widest is 4 times as wide
        rows = pooled.split(at_once)  # type: ignore[no-untyped-call]
        parts = zip(rows, torch.split(labels, at_once), strict=True)
        return torch.cat([self._logits(*part) for part in parts])

    def _logits(self, pooled: Tensor, labels: Tensor) -> Tensor:
        hidden = pooled
        for conv in self.convs:
            hidden = conv(hidden)
        hidden = self.deconv(hidden).permute(0, 2, 3, 1)  # (R, S, S, 2 * 2 * O)
        rows, side = hidden.shape[0], hidden.shape[1]
        hidden = hidden.reshape(rows, side * side * 4, self.masks.weight.shape[1])
        row = plane_of(labels, self.config)
        weight = self.masks.weight[row].to(hidden.dtype)  # (R, O)
        logits = torch.bmm(hidden, weight[:, :, None]).squeeze(2).float() + self.masks.bias[row][:, None].float()
        return logits.reshape(rows, side, side, 2, 2).transpose(2, 3).reshape(rows, 2 * side, 2 * side)


def fused_mask_head(head: nn.Module) -> nn.Module:
    """The fused form of a mask head, or the head itself with fused convolutions where it is of another kind."""
    if isinstance(head, MaskHead) and head.config.classes == "independent" and head.config.side % 2 == 0:
        return FusedMaskHead(head)
    fuse_conv_norms_(head)
    return head


def _plain_conv(conv: Any, *, relu: bool = False) -> FusedConv:
    fused = fused_conv(conv, relu=relu)
    assert fused is not None  # padded by numbers, with zeros
    return fused


def _stacked(first: nn.Conv2d, second: nn.Conv2d) -> FusedConv:
    """Two convolutions of one input as one, their outputs one after the other."""
    parts = [_plain_conv(conv) for conv in (first, second)]
    weight, bias = (torch.cat([getattr(part, name) for part in parts]) for name in ("weight", "bias"))
    geometry = {name: value for name, value in parts[0].geometry().items()}
    return FusedConv(weight, bias, **geometry)


def _stacked_linear(first: nn.Linear, second: nn.Linear) -> FusedLinear:
    parts = [fused_linear(linear) for linear in (first, second)]
    return FusedLinear(torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts]))
