"""R-CNN's network: a warped region in, a class out; between them the features that SVMs and box regression read.

    P regions    S side of a region    C channels of c5    K classes    F = C * 2 * 2 features

Girshick et al. 2014, 2.1 and 2.3. The body is any `Backbone`, the classifier a `BoxHead` that takes the mean over the
map. Features are the map c5 pooled to 2 x 2, where the paper's boxes are regressed from pool5 as well; its SVMs read a
fully connected layer behind it, which this network has not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn.lineage.kept import digest_of
from maskrcnn.lineage.system import Stopwatch
from maskrcnn.lineage.warp import WarpConfig, warp
from maskrcnn.model.backbone import Backbone, BackboneConfig
from maskrcnn.model.box_head import BoxHead, BoxHeadConfig
from maskrcnn.model.config import require, to_dict
from maskrcnn.model.preprocess import Preprocess, PreprocessConfig

BATCH = 128  # regions that run through the network at once
CELLS = 2  # side of the map that is kept: enough to tell left from right and top from bottom


@dataclass(frozen=True, kw_only=True)
class RegionNetConfig:
    """The network and what it sees."""

    body: BackboneConfig = field(default_factory=BackboneConfig)
    num_classes: int = 20
    warp: WarpConfig = field(default_factory=WarpConfig)
    normalise: PreprocessConfig = field(default_factory=PreprocessConfig)  # of it only the colours' mean and spread

    def __post_init__(self) -> None:
        require(self.num_classes >= 1, self, "num_classes", "at least 1")


class RegionNet(nn.Module):
    """regions (P, 3, S, S) -> class logits (P, K + 1), column 0 is background."""

    def __init__(self, config: RegionNetConfig, *, pretrained: bool = False) -> None:
        super().__init__()
        self.config = config
        self.normalise = Preprocess(config.normalise)
        body = replace(config.body, levels=("c5",), taps={})
        self.body = Backbone(body, pretrained=pretrained)
        # the head's deltas are not used: R-CNN moves boxes by a regression of its own, learned last
        head = BoxHeadConfig(side=CELLS, num_fcs=0, class_agnostic=True)
        self.head = BoxHead(head, self.body.channels["c5"], config.num_classes)

    def forward(self, regions: Tensor) -> Tensor:
        logits: Tensor = self.head(self.map(regions)).class_logits
        return logits

    def map(self, regions: Tensor) -> Tensor:
        """(P, C, 2, 2): c5 of each region."""
        return F.adaptive_avg_pool2d(self.body(regions)["c5"], CELLS)

    def normalised(self, picture: Tensor) -> Tensor:
        """A picture (3, H, W) uint8 as (3, H, W) float32, where regions are cut from; the mean colour is 0."""
        return self.normalise.normalise(picture)

    @torch.no_grad()
    def features_of(self, picture: Tensor, boxes: Tensor, watch: Stopwatch | None = None) -> Tensor:
        """(P, F) float32 on the CPU: the maps, laid out flat, of boxes (P, 4) of a picture (3, H, W) uint8.

        `BATCH` regions at a time: 2000 regions of 227 px would be 1.2 GB. Stages of the watch: "warp", "features".
        """
        watch = watch or Stopwatch()
        with watch("warp"):
            pixels = self.normalised(picture)
            boxes = boxes.to(pixels)
        parts = [torch.zeros(0, self.num_features)]
        for some in torch.split(boxes, BATCH) if len(boxes) else ():
            with watch("warp"):
                regions = warp(pixels, some, self.config.warp)  # (B, 3, S, S)
                _wait(pixels.device)
            with watch("features"):
                parts.append(self.map(regions).flatten(1).float().cpu())
        return torch.cat(parts)

    @property
    def num_features(self) -> int:
        return self.body.channels["c5"] * CELLS**2


def digest(net: RegionNet) -> str:
    """A hash of all that features follow from: weights, statistics of norms, and how regions are warped."""
    state = sorted(net.state_dict().items())
    config = json.dumps(to_dict(net.config), sort_keys=True)
    return digest_of(config, *(part for named in state for part in named))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
