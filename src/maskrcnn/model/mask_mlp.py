"""Mask head of fully connected layers, which the paper found worse than convolutions (He et al. 2017, Table 2e).

R RoIs    S pooled side    M mask side    K classes    P planes, see `model/mask_head.py`
"""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn.model.layers import conv_stack, init_linear
from maskrcnn.model.mask_head import MaskHead, MaskHeadConfig, competing_logits, every_class, pick, plane_of


class MaskMLP(nn.Module):
    """pooled (R, C, S, S), labels (R,) -> logits (R, M, M), each of its own class: the same face as `MaskHead`.

    The box is read as one vector, and each cell of each mask has its own weights: where a pixel lies must be learned
    for every place anew. Masks of all classes are computed, since to gather the asked class's weights, M * M rows of
    `fc_channels` for each RoI, would move more memory than it saves.
    """

    def __init__(self, config: MaskHeadConfig, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.convs = conv_stack(in_channels, config.channels, config.num_convs, config.norm)
        channels = config.channels if config.num_convs else in_channels
        widths = [channels * config.pooled_side**2, *[config.fc_channels] * config.num_fcs]
        self.fcs = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        self.masks = nn.Linear(widths[-1], config.num_planes(num_classes) * config.side**2)
        for linear in self.fcs:
            assert isinstance(linear, nn.Linear)
            init_linear(linear)
        init_linear(self.masks, std=0.001)

    def forward(self, pooled: Tensor, labels: Tensor) -> Tensor:
        planes = self.planes(pooled)
        if self.config.classes == "competing":
            return competing_logits(planes, labels)
        return pick(planes, plane_of(labels, self.config))

    def all_classes(self, pooled: Tensor) -> Tensor:
        """(R, K, M, M) logits of every class, or (R, 1, M, M) where class-agnostic."""
        return every_class(self.planes(pooled), self.config)

    def planes(self, pooled: Tensor) -> Tensor:
        """(R, P, M, M): what leaves the last layer."""
        hidden = pooled
        for conv in self.convs:
            hidden = conv(hidden)
        hidden = hidden.flatten(1)  # (R, C * S * S)
        for linear in self.fcs:
            hidden = F.relu(linear(hidden))
        planes: Tensor = self.masks(hidden).float()  # (R, P * M * M)
        side = self.config.side
        return planes.reshape(-1, self.masks.out_features // side**2, side, side)


def make_mask_head(config: MaskHeadConfig, in_channels: int, num_classes: int) -> MaskHead | MaskMLP:
    """The head that `config` asks for: convolutions, or with `num_fcs` fully connected layers."""
    if config.num_fcs:
        return MaskMLP(config, in_channels, num_classes)
    return MaskHead(config, in_channels, num_classes)
