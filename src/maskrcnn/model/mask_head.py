"""Mask head: which pixels of this box are the object? (He et al. 2017, 3 and Fig. 4 right)

R RoIs    S pooled side    M mask side    K classes    P planes: K, 1 where class-agnostic, K + 1 where classes compete
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn.model.config import require
from maskrcnn.model.layers import Norm, conv_stack, init_conv
from maskrcnn.ops.products import weighted_channels


@dataclass(frozen=True, kw_only=True)
class MaskHeadConfig:
    """A small fully convolutional network. Values of He et al. 2017, Fig. 4 (FPN), unless noted."""

    side: int = 28  # M. The pooled side is half of it: S = M // 2
    num_convs: int = 4
    channels: int = 256
    norm: Norm = None
    class_agnostic: bool = False  # one mask for all classes rather than one each
    classes: Literal["independent", "competing"] = (
        "independent"  # a sigmoid for each class; competing: one softmax over all and the background (Table 2b)
    )
    num_fcs: int = 0  # fully connected layers in place of the deconvolution ("MLP"; Table 2e): see model/mask_mlp.py
    fc_channels: int = 1024

    def __post_init__(self) -> None:
        require(self.side >= 3, self, "side", "at least 3")
        require(self.num_convs >= 0, self, "num_convs", "0 or more")
        require(self.channels >= 1, self, "channels", "at least 1")
        alone = self.class_agnostic and self.classes == "competing"
        require(not alone, self, "class_agnostic", "false, where classes compete for a pixel")
        require(self.num_fcs >= 0, self, "num_fcs", "0 or more")
        require(self.fc_channels >= 1, self, "fc_channels", "at least 1")

    def num_planes(self, num_classes: int) -> int:
        """P, the masks that the last layer makes; where classes compete, the background's comes first."""
        return 1 if self.class_agnostic else num_classes + (self.classes == "competing")

    @property
    def pooled_side(self) -> int:
        """S: the deconvolution of stride 2 makes 2 S of it, or 2 S + 1 where M is odd."""
        return self.side // 2


class MaskHead(nn.Module):
    """pooled (R, C, S, S), labels (R,) -> logits (R, M, M), each of its own class.

    There is one sigmoid mask for each class, so classes do not compete for a pixel (He et al. 2017, 3). Only the mask
    of the asked class is computed: the other K - 1 have no part in loss or result. `all_classes` gives them all. Where
    the config lets classes compete, a logit is still that of the one class, of its softmax probability.
    """

    def __init__(self, config: MaskHeadConfig, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.convs = conv_stack(in_channels, config.channels, config.num_convs, config.norm)
        width = config.channels if config.num_convs else in_channels
        self.deconv = nn.ConvTranspose2d(width, config.channels, 2 + config.side % 2, stride=2)
        self.masks = nn.Conv2d(config.channels, config.num_planes(num_classes), 1)
        init_conv(self.deconv)
        init_conv(self.masks, std=0.001)

    def forward(self, pooled: Tensor, labels: Tensor) -> Tensor:
        if self.config.classes == "competing":
            return competing_logits(self.planes(pooled), labels)
        hidden = self._hidden(pooled).permute(0, 2, 3, 1).flatten(1, 2)  # (R, M * M, C), as it lies in memory
        row = plane_of(labels, self.config)
        # permuted so that the gradient is laid out channels-last, as the weight is in training
        weight = self.masks.weight.permute(0, 2, 3, 1).flatten(1)[row].to(hidden.dtype)  # (R, C)
        assert self.masks.bias is not None
        logits = weighted_channels(hidden, weight).float() + self.masks.bias[row][:, None].float()
        side = self.config.side
        return logits.reshape(-1, side, side)

    def all_classes(self, pooled: Tensor) -> Tensor:
        """(R, K, M, M) logits of every class, or (R, 1, M, M) where class-agnostic."""
        return every_class(self.planes(pooled), self.config)

    def planes(self, pooled: Tensor) -> Tensor:
        """(R, P, M, M): what leaves the last layer."""
        planes: Tensor = self.masks(self._hidden(pooled)).float()
        return planes

    def _hidden(self, pooled: Tensor) -> Tensor:
        hidden = pooled
        for conv in self.convs:
            hidden = conv(hidden)
        assert self.deconv.bias is not None
        # the bias apart: oneDNN's gradient for a deconvolution's bias is its slow reference loop
        hidden = F.conv_transpose2d(hidden, self.deconv.weight, None, stride=2)
        return hidden.add_(self.deconv.bias.to(hidden.dtype)[:, None, None]).relu_()  # (R, C, M, M)


def plane_of(labels: Tensor, config: MaskHeadConfig) -> Tensor:
    """(R,) int64: the plane that belongs to each label. Label 0, an empty row, has any."""
    if config.classes == "competing":
        return labels
    return torch.zeros_like(labels) if config.class_agnostic else (labels - 1).clamp(min=0)


def competing_logits(planes: Tensor, labels: Tensor) -> Tensor:
    """(R, M, M): log p / (1 - p) of the softmax probability p of each row's class.

    planes: (R, K + 1, M, M), the background first. As a logit, p is read on by sigmoid and threshold as ever; it is
    the class's plane less the logarithm of the sum of exponentials of all others.
    """
    own = torch.arange(planes.shape[1], device=planes.device) == labels[:, None]  # (R, K + 1)
    others = planes.masked_fill(own[:, :, None, None], -torch.inf).logsumexp(dim=1)
    return pick(planes, labels) - others


def every_class(planes: Tensor, config: MaskHeadConfig) -> Tensor:
    """(R, K, M, M) logits of every class of planes (R, P, M, M), or (R, 1, M, M) where class-agnostic."""
    if config.classes == "independent":
        return planes
    rows, count = planes.shape[0], planes.shape[1]
    labels = torch.arange(count, device=planes.device)[:, None].expand(-1, rows)
    return torch.stack([competing_logits(planes, labels[k]) for k in range(1, count)], dim=1)


def pick(planes: Tensor, row: Tensor) -> Tensor:
    """(R, M, M): one plane of each of planes (R, P, M, M)."""
    index = row[:, None, None, None].expand(-1, 1, *planes.shape[2:])
    return planes.gather(1, index).squeeze(1)
