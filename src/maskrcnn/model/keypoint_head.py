"""Keypoint head: where in this box is each joint of the object? (He et al. 2017, 5)

R RoIs    S pooled side (14)    M heat map side (56)    J keypoints
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn.model.config import require
from maskrcnn.model.layers import Norm, conv_stack, init_conv
from maskrcnn.ops.keypoints import heatmaps_to_points
from maskrcnn.structures import KeypointScheme

COCO_PERSON = KeypointScheme(
    names=(
        *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder"),
        *("left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip"),
        *("left_knee", "right_knee", "left_ankle", "right_ankle"),
    ),
    flip_pairs=((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)),
    skeleton=(
        *((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10)),
        *((1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)),
    ),
)  # the 17 of Lin et al. 2014, "Microsoft COCO"


@dataclass(frozen=True, kw_only=True)
class KeypointHeadConfig:
    """A fully convolutional network, heavier than that of masks. Values of He et al. 2017, 5, unless noted."""

    scheme: KeypointScheme = COCO_PERSON  # the J keypoints; the same for every class
    side: int = 56  # M. The pooled side is a quarter of it: a deconvolution and a bilinear resize double it each
    num_convs: int = 8
    channels: int = 512
    norm: Norm = None
    # of a point: the share of its heat map's softmax that its highest place has (Detectron2), so that objects of all
    # sizes compare (just above 1 at most, since the place lies between cells); or the value there (torchvision)
    score: Literal["share", "logit"] = "share"

    def __post_init__(self) -> None:
        require(self.side >= 4 and self.side % 4 == 0, self, "side", "a multiple of 4")
        require(self.num_convs >= 0, self, "num_convs", "0 or more")
        require(self.channels >= 1, self, "channels", "at least 1")

    @property
    def pooled_side(self) -> int:
        """S."""
        return self.side // 4


class KeypointHead(nn.Module):
    """pooled (R, C, S, S) -> heat maps (R, J, M, M) before softmax.

    Each keypoint is one cell of M x M, so that a softmax over the cells of a map says where it is; keypoints do not
    compete with each other, and all classes share the maps.
    """

    def __init__(self, config: KeypointHeadConfig, in_channels: int) -> None:
        super().__init__()
        self.config = config
        self.convs = conv_stack(in_channels, config.channels, config.num_convs, config.norm)
        width = config.channels if config.num_convs else in_channels
        self.deconv = nn.ConvTranspose2d(width, len(config.scheme), 4, stride=2, padding=1)
        init_conv(self.deconv)

    def forward(self, pooled: Tensor) -> Tensor:
        hidden = pooled
        for conv in self.convs:
            hidden = conv(hidden)
        assert self.deconv.bias is not None
        # the bias apart: oneDNN's gradient for a deconvolution's bias is its slow reference loop
        maps = F.conv_transpose2d(hidden, self.deconv.weight, None, stride=2, padding=1)  # (R, J, 2 S, 2 S)
        maps = maps.float() + self.deconv.bias.float()[:, None, None]
        return F.interpolate(maps, scale_factor=2.0, mode="bilinear", align_corners=False)  # (R, J, M, M)


def place_keypoints(heatmaps: Tensor, boxes: Tensor, config: KeypointHeadConfig) -> Tensor:
    """(R, J, 3) x, y, score of heat maps (R, J, M, M) of boxes (R, 4), in their frame. Sizes hang on the boxes."""
    points, peaks = heatmaps_to_points(heatmaps, boxes)
    scores = peaks if config.score == "logit" else (peaks - heatmaps.flatten(2).logsumexp(dim=2)).exp()
    return torch.cat([points, scores[..., None]], dim=2)
