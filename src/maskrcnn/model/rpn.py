"""Region proposal network: where could an object be? (Ren et al. 2015, 3; Lin et al. 2017, 4.1)

N images    L levels    H_l, W_l cells of a level    k anchors per cell    A = sum over levels of H_l * W_l * k
B candidates and R proposals per image
anchors, proposals, windows: (x1, y1, x2, y2), float pixels, padded frame
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn.model.anchors import AnchorConfig, make_anchors
from maskrcnn.model.config import require
from maskrcnn.model.layers import init_conv
from maskrcnn.ops.box_coder import BoxCoder
from maskrcnn.ops.boxes import clip_to, is_large_enough
from maskrcnn.ops.nms import nms_keep_levels, top_k
from maskrcnn.structures import Proposals


@dataclass(frozen=True, kw_only=True)
class RPNConfig:
    """Region proposals. Values of Lin et al. 2017 (FPN), 4.1, unless noted."""

    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    conv_depth: int = 1  # 3x3 convolutions before the two predictors; Ren et al. 2015, 3.1
    channels: int | None = None  # of those convolutions; None: as many as the features have
    delta_weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)  # of dx dy dw dh; see BoxCoder
    pre_nms_top_n: int = 1000  # anchors of each level that go into NMS
    post_nms_top_n: int = 1000  # proposals kept per image when detecting; He et al. 2017, 3.1
    nms_iou: float = 0.7  # between proposals of one level; Ren et al. 2015, 3.3
    min_size: float = 1e-3  # px, proposals with a shorter side are dropped
    score_threshold: float = 0.0  # probability, 0 to 1: proposals below are dropped, where learning too
    rank_by: Literal["logits", "probabilities"] = (
        "logits"  # float32 probabilities are 1 from a logit of 17 on; of equals the first anchor is best
    )
    levels_together: bool = False  # pre_nms_top_n and NMS are of all levels in one, rather than of each
    cut_to: Literal["picture", "padded"] = "picture"  # what proposals are cut to: the picture, or that and its border

    def __post_init__(self) -> None:
        require(self.conv_depth >= 1, self, "conv_depth", "at least 1")
        require(self.pre_nms_top_n >= 1, self, "pre_nms_top_n", "at least 1")
        require(self.post_nms_top_n >= 1, self, "post_nms_top_n", "at least 1")
        require(0 <= self.nms_iou <= 1, self, "nms_iou", "0 to 1")
        require(0 <= self.score_threshold <= 1, self, "score_threshold", "0 to 1")
        require(self.channels is None or self.channels >= 1, self, "channels", "at least 1, or none")
        require(min(self.delta_weights) > 0, self, "delta_weights", "above 0")

    @property
    def coder(self) -> BoxCoder:
        return BoxCoder(self.delta_weights)


@dataclass(frozen=True)
class RPNOutputs:
    """Raw outputs, one tensor a level, anchors row by row.

    logits: L tensors (N, H_l * W_l * k) objectness. deltas: L tensors (N, H_l * W_l * k, 4).
    anchors: L tensors (H_l * W_l * k, 4).
    """

    logits: list[Tensor]
    deltas: list[Tensor]
    anchors: list[Tensor]

    def joined(self) -> RPNOutputs:
        """All levels as one."""
        return RPNOutputs([torch.cat(self.logits, 1)], [torch.cat(self.deltas, 1)], [torch.cat(self.anchors)])


@dataclass(frozen=True)
class ProposalCandidates:
    """The anchors that went into NMS, of all levels in a row, and what became of them (padded frame).

    anchor_index: (N, B) int64, 0..A-1. refined: (N, B, 4) anchors moved by their deltas. boxes: (N, B, 4) the same, cut
    to the picture. logits: (N, B) objectness. valid: (N, B) bool, large enough. kept: (N, B) bool, survived NMS.
    chosen: (N, R) int64, 0..B-1, the best of what was kept. filled: (N, R) bool, the rows of `chosen` that mean
    anything.
    """

    anchor_index: Tensor
    refined: Tensor
    boxes: Tensor
    logits: Tensor
    valid: Tensor
    kept: Tensor
    chosen: Tensor
    filled: Tensor

    def proposals(self) -> Proposals:
        """The R chosen, best first."""
        return Proposals(
            boxes=self.boxes.gather(1, self.chosen[..., None].expand(-1, -1, 4)).masked_fill(
                ~self.filled[..., None], 0
            ),
            logits=self.logits.gather(1, self.chosen).masked_fill(~self.filled, -torch.inf),
            valid=self.filled,
        )


class RPN(nn.Module):
    """One small head slid over every level of the pyramid, with the same weights on each."""

    def __init__(self, config: RPNConfig, in_channels: int, strides: Mapping[str, int]) -> None:
        super().__init__()
        fits = len(config.anchors.sizes) == len(strides)
        require(fits, config.anchors, "sizes", f"one tuple for each of {list(strides)}")
        self.config = config
        self.strides = dict(strides)
        width = config.channels or in_channels
        convs = [nn.Conv2d(width if i else in_channels, width, 3, padding=1) for i in range(config.conv_depth)]
        self.convs = nn.ModuleList(convs)
        self.objectness = nn.Conv2d(width, config.anchors.per_cell, 1)
        self.deltas = nn.Conv2d(width, config.anchors.per_cell * 4, 1)
        for conv in [*self.convs, self.objectness, self.deltas]:
            init_conv(conv, std=0.01)  # Ren et al. 2015, 3.1.3

    def forward(self, features: Mapping[str, Tensor], padded_size: tuple[int, int]) -> RPNOutputs:
        """features: {"p2": (N, C, H/4, W/4), ...}. padded_size: (height, width) in px."""
        logits, deltas = [], []
        for name in self.strides:
            hidden = features[name]
            for conv in self.convs:
                hidden = F.relu(conv(hidden))
            logits.append(_by_cell(self.objectness(hidden), 1).squeeze(2).float())
            deltas.append(_by_cell(self.deltas(hidden), 4).float())
        return RPNOutputs(logits, deltas, self.anchors(features, padded_size))

    def anchors(self, features: Mapping[str, Tensor], padded_size: tuple[int, int]) -> list[Tensor]:
        """L tensors (H_l * W_l * k, 4), those of the cells of `features`."""
        maps = [features[name] for name in self.strides]
        grids = [(level.shape[2], level.shape[3]) for level in maps]
        return make_anchors(self.config.anchors, grids, list(self.strides.values()), padded_size, maps[0].device)


def propose(outputs: RPNOutputs, windows: Tensor, config: RPNConfig) -> Proposals:
    """The best boxes of all levels, refined, clipped, without near copies of one another.

    windows: (N, 4) float32, what proposals are cut to. Gradients stop here: boxes are given to the heads as they are
    (Ren et al. 2015, 3.2, approximate joint training). Returns R = config.post_nms_top_n rows an image, or as many as
    there are candidates, where those are fewer: R hangs on config and padded size, not on what is in the picture.
    """
    return proposal_candidates(outputs, windows, config).proposals()


def proposal_candidates(outputs: RPNOutputs, windows: Tensor, config: RPNConfig) -> ProposalCandidates:
    """As `propose`, with everything that was a proposal's rival."""
    outputs = outputs.joined() if config.levels_together else outputs
    rows, refined, boxes, logits, valid, ranks = ([] for _ in range(6))
    offset = 0
    for level_logits, deltas, anchors in zip(outputs.logits, outputs.deltas, outputs.anchors, strict=True):
        top, index = _ranked(level_logits.detach(), config)  # (N, k)
        refined.append(
            config.coder.decode(deltas.detach().gather(1, index[..., None].expand(-1, -1, 4)), anchors[index])
        )
        boxes.append(clip_to(refined[-1], windows[:, None]))
        valid.append(is_large_enough(boxes[-1], config.min_size) & _is_likely(top, config))
        logits.append(level_logits.detach().gather(1, index))
        ranks.append(top)
        rows.append(index + offset)
        offset += anchors.shape[0]
    kept = torch.cat(nms_keep_levels(boxes, ranks, valid, config.nms_iou), 1)
    stable = config.rank_by == "probabilities"
    top, chosen = top_k(torch.cat(ranks, 1).masked_fill(~kept, -torch.inf), config.post_nms_top_n, stable=stable)
    return ProposalCandidates(
        anchor_index=torch.cat(rows, 1),
        refined=torch.cat(refined, 1),
        boxes=torch.cat(boxes, 1),
        logits=torch.cat(logits, 1),
        valid=torch.cat(valid, 1),
        kept=kept,
        chosen=chosen,
        filled=top.isfinite(),
    )


def _ranked(logits: Tensor, config: RPNConfig) -> tuple[Tensor, Tensor]:
    """What the best anchors (N, k) of a level are ranked by, best first, and their index."""
    by_probability = config.rank_by == "probabilities"
    return top_k(logits.sigmoid() if by_probability else logits, config.pre_nms_top_n, stable=by_probability)


def _is_likely(ranks: Tensor, config: RPNConfig) -> Tensor:
    """Which of what `_ranked` gave reach the score threshold."""
    if config.score_threshold == 0:
        return ranks.isfinite()
    probabilities = ranks if config.rank_by == "probabilities" else ranks.sigmoid()
    return probabilities >= config.score_threshold


def _by_cell(x: Tensor, values: int) -> Tensor:
    """(N, k * values, H, W) -> (N, H * W * k, values)."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, values)
