"""Box head: what is in this RoI, and where exactly? (Girshick 2015, 2; He et al. 2017, Fig. 4 right)

N images    R RoIs (of one image, or of all in a flat batch)    S pooled side    K classes    D detections
boxes, windows: (x1, y1, x2, y2), float pixels, padded frame; labels 1..K, 0 is background
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn.model.config import require
from maskrcnn.model.detection_config import DetectionConfig as DetectionConfig
from maskrcnn.model.layers import Norm, conv_stack, init_linear
from maskrcnn.ops.box_coder import BoxCoder
from maskrcnn.ops.boxes import clip_to, is_large_enough
from maskrcnn.ops.nms import nms_keep_batch, top_k
from maskrcnn.structures import DetectionBatch, Proposals


@dataclass(frozen=True, kw_only=True)
class BoxHeadConfig:
    """Two fully connected layers over a 7 x 7 map. Values of Lin et al. 2017, 4.2, unless noted."""

    side: int = 7  # S
    num_convs: int = 0  # 3x3 convolutions before the fully connected layers; 4 in the stronger heads of Wu and He 2018
    conv_channels: int = 256
    norm: Norm = None  # after those convolutions
    num_fcs: int = 2  # 0: the mean over the map, as the C4 detectors have it
    fc_channels: int = 1024
    class_agnostic: bool = False  # one box for all classes rather than one each
    delta_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)  # of dx dy dw dh; Girshick 2015 code

    def __post_init__(self) -> None:
        require(self.side >= 1, self, "side", "at least 1")
        require(self.num_convs >= 0, self, "num_convs", "0 or more")
        require(self.num_fcs >= 0, self, "num_fcs", "0 or more")
        require(min(self.delta_weights) > 0, self, "delta_weights", "above 0")


@dataclass(frozen=True)
class BoxOutputs:
    """class_logits: (R, K + 1), column 0 is background. deltas: (R, K, 4), or (R, 1, 4) where class-agnostic."""

    class_logits: Tensor
    deltas: Tensor


@dataclass(frozen=True)
class DetectionCandidates:
    """Every class of every RoI, K in a row for each of R, and what became of it (padded frame).

    boxes: (N, R * K, 4) refined and cut to the picture. scores: (N, R * K) probabilities. labels: (N, R * K) in 1..K.
    valid: (N, R * K) bool, above the score threshold, large enough, and of the RoI's best class where that is asked.
    kept: (N, R * K) bool, survived NMS. chosen: (N, D) int64, 0..R*K-1, the best of what was kept. filled: (N, D) bool,
    the rows of `chosen` that mean anything.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    valid: Tensor
    kept: Tensor
    chosen: Tensor
    filled: Tensor

    def detections(self) -> DetectionBatch:
        """The D chosen, best first, without masks."""
        return DetectionBatch(
            boxes=self.boxes.gather(1, self.chosen[..., None].expand(-1, -1, 4)).masked_fill(
                ~self.filled[..., None], 0
            ),
            scores=self.scores.gather(1, self.chosen).masked_fill(~self.filled, 0),
            labels=self.labels.gather(1, self.chosen) * self.filled,
            valid=self.filled,
        )


class BoxHead(nn.Module):
    """pooled (R, C, S, S) -> `BoxOutputs`."""

    def __init__(self, config: BoxHeadConfig, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.coder = BoxCoder(config.delta_weights)
        self.convs = conv_stack(in_channels, config.conv_channels, config.num_convs, config.norm)
        channels = config.conv_channels if config.num_convs else in_channels
        widths = [channels * config.side**2 if config.num_fcs else channels, *[config.fc_channels] * config.num_fcs]
        fcs = [nn.Linear(before, after) for before, after in zip(widths, widths[1:], strict=False)]
        self.fcs = nn.ModuleList(fcs)
        self.classes = nn.Linear(widths[-1], num_classes + 1)
        self.deltas = nn.Linear(widths[-1], 4 * (1 if config.class_agnostic else num_classes))
        for linear in fcs:
            init_linear(linear)
        init_linear(self.classes, std=0.01)  # Girshick 2015, 4.1
        init_linear(self.deltas, std=0.001)

    def forward(self, pooled: Tensor) -> BoxOutputs:
        hidden = pooled
        for conv in self.convs:
            hidden = conv(hidden)
        hidden = hidden.flatten(1) if self.fcs else hidden.mean(dim=(2, 3))  # (R, C * S * S), or (R, C)
        for linear in self.fcs:
            hidden = F.relu(linear(hidden))
        return BoxOutputs(
            class_logits=self.classes(hidden).float(),
            deltas=self.deltas(hidden).float().unflatten(1, (-1, 4)),
        )


def select_detections(
    outputs: BoxOutputs, proposals: Proposals, windows: Tensor, coder: BoxCoder, config: DetectionConfig
) -> DetectionBatch:
    """Refined boxes above the score threshold, without near copies, the best D of each image.

    outputs: of N * R rows. windows: (N, 4), where each picture lies. Returns D = config.max_detections rows an image,
    or R * K where those are fewer, without masks.
    """
    return detection_candidates(outputs, proposals, windows, coder, config).detections()


def detection_candidates(
    outputs: BoxOutputs, proposals: Proposals, windows: Tensor, coder: BoxCoder, config: DetectionConfig
) -> DetectionCandidates:
    """As `select_detections`, with everything that was a detection's rival."""
    n, r = proposals.valid.shape
    scores = outputs.class_logits.softmax(dim=1)[:, 1:]  # (N * R, K)
    k = scores.shape[1]
    boxes = coder.decode(outputs.deltas, proposals.boxes.reshape(-1, 1, 4))  # (N * R, K or 1, 4)
    boxes = boxes.expand(-1, k, -1).reshape(n, r * k, 4)
    boxes = clip_to(boxes, windows[:, None])
    scores = scores.reshape(n, r * k)
    labels = torch.arange(1, k + 1, device=scores.device).repeat(r).expand(n, -1)
    valid = proposals.valid[:, :, None].expand(-1, -1, k).reshape(n, r * k)
    valid = valid & (scores > config.score_threshold) & is_large_enough(boxes, config.min_size)
    if config.best_class_only:
        best = outputs.class_logits.argmax(dim=1).reshape(n, r).repeat_interleave(k, dim=1)  # (N, R * K)
        valid = valid & (labels == best)
    kept = nms_keep_batch(boxes, scores, valid, config.nms_iou, classes=1 if config.class_agnostic_nms else k)
    top, chosen = top_k(scores.masked_fill(~kept, -torch.inf), config.max_detections)  # (N, D)
    return DetectionCandidates(boxes, scores, labels, valid, kept, chosen, top.isfinite())
