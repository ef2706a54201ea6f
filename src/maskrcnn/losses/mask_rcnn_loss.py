"""The figure again, for learning: read beside `model/mask_rcnn.py`, the added lines are matching and sampling.

N images    R_i RoIs sampled of image i    G objects    K classes    M mask side
boxes, windows: (x1, y1, x2, y2), float pixels, padded frame
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from maskrcnn.errors import InputError
from maskrcnn.losses.box_loss import BoxLossConfig, box_loss, rematch, sample_rois
from maskrcnn.losses.cascade_loss import CascadeLossConfig, share_gradient
from maskrcnn.losses.keypoint_loss import NOTHING, KeypointLossConfig, keypoint_cells, keypoint_loss
from maskrcnn.losses.mask_loss import MaskLossConfig, competing_mask_loss, mask_loss
from maskrcnn.losses.rpn_loss import RPNLossConfig, rpn_loss
from maskrcnn.losses.sampler import Sampler, sample
from maskrcnn.model.box_head import BoxOutputs
from maskrcnn.model.cascade import refine
from maskrcnn.model.config import require
from maskrcnn.model.frames import on_edges, to_padded
from maskrcnn.model.keypoint_head import KeypointHead
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.model.rpn import RPNConfig, RPNOutputs, propose
from maskrcnn.ops.masks import crop_masks
from maskrcnn.structures import ImageBatch, SampledRoIs, Target


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The weighted sum of the papers' losses, and what they are computed from."""

    rpn: RPNLossConfig = field(default_factory=RPNLossConfig)
    box: BoxLossConfig = field(default_factory=BoxLossConfig)
    cascade: CascadeLossConfig = field(default_factory=CascadeLossConfig)  # read where the detector is one
    mask: MaskLossConfig = field(default_factory=MaskLossConfig)
    keypoint: KeypointLossConfig = field(default_factory=KeypointLossConfig)
    pre_nms_top_n: int = 2000  # of each level, when learning; Lin et al. 2017, 4.1
    post_nms_top_n: int = 2000  # per image, when learning
    learn: Literal["all", "rpn", "heads"] = "all"  # rpn, heads: these alone, as in Ren et al. 2015, 3.2, 4 steps

    def __post_init__(self) -> None:
        require(self.pre_nms_top_n >= 1, self, "pre_nms_top_n", "at least 1")
        require(self.post_nms_top_n >= 1, self, "post_nms_top_n", "at least 1")

    def limits(self, config: RPNConfig) -> RPNConfig:
        """How many proposals are made when learning. Where levels go together, one limit was set for all of them."""
        before = config.pre_nms_top_n if config.levels_together else self.pre_nms_top_n
        return replace(config, pre_nms_top_n=before, post_nms_top_n=self.post_nms_top_n)

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each named part in the total; "_2", "_3" are later stages of a cascade."""
        weights = {"rpn_objectness": self.rpn.objectness_weight, "rpn_box": self.rpn.box_weight}
        weights["keypoint"] = self.keypoint.weight
        for stage, weight in enumerate((1.0, *self.cascade.weights)):
            weights[_named("box_class", stage)] = weight * self.box.class_weight
            weights[_named("box_delta", stage)] = weight * self.box.box_weight
            weights[_named("mask", stage)] = weight * self.mask.weight
        return weights


class MaskRCNNLoss(nn.Module):
    """Pictures and their objects to named losses. This is what the training loop wraps and calls."""

    def __init__(self, model: MaskRCNN, config: LossConfig | None = None, sampler: Sampler = sample) -> None:
        super().__init__()
        self.model = model
        self.config = config or LossConfig()
        self.sampler = sampler
        later, limits = len(model.later_box_heads), self.config.cascade.foreground_ious
        fits = not later or later == len(limits)
        require(fits, self.config.cascade, "foreground_ious", f"{later} values, one for each later stage")
        require(self.config.learn != "rpn" or model.rpn is not None, self.config, "learn", "heads: there is no RPN")

    def forward(self, batch: ImageBatch, targets: Sequence[Target]) -> dict[str, Tensor]:
        """batch: N images. targets: N, in the resized frame, on the same device.

        The heads learn from a target's own proposals where it has some, else from the RPN's.

        Returns {"total": weighted sum, "rpn_objectness": ..., "rpn_box": ..., "box_class": ..., "box_delta": ...,
        "mask": ..., "keypoint": ...}, those of the parts that the model has and that learn; they are not weighted.
        Errors: `InputError` where there is no RPN and a target has no proposals.
        """
        model, config = self.model, self.config
        padded_size = (batch.pixels.shape[2], batch.pixels.shape[3])
        windows = model.config.windows(batch.image_sizes, padded_size)
        targets = [_padded_frame(target, window, model.config) for target, window in zip(targets, windows, strict=True)]
        generators = [torch.Generator().manual_seed(target.sampling_seed) for target in targets]
        features = model.features(batch.pixels)
        losses: dict[str, Tensor] = {}
        wanted = config.learn != "heads" or any(target.proposals is None for target in targets)
        rpn_outputs = model.rpn(features, padded_size) if wanted and model.rpn is not None else None
        if rpn_outputs is not None and config.learn != "heads":
            coder = model.config.own_rpn.coder
            losses |= rpn_loss(rpn_outputs, targets, generators, config.rpn, self.sampler, coder)
        if config.learn != "rpn":
            cuts = model.config.proposal_windows(batch.image_sizes, padded_size)
            proposals = self._proposals(rpn_outputs, cuts, targets)  # N tensors (P_i, 4)
            losses |= self._head_losses(features, proposals, targets, windows, generators)
        total = torch.stack([config.weights[name] * loss for name, loss in losses.items()]).sum()
        return {"total": total, **losses}

    def _proposals(self, outputs: RPNOutputs | None, cuts: Tensor, targets: Sequence[Target]) -> list[Tensor]:
        """N tensors (P_i, 4): those given with the pictures, or the RPN's where a picture has none."""
        given = [target.proposals for target in targets]
        if outputs is not None and any(boxes is None for boxes in given):
            proposed = propose(outputs, cuts, self.config.limits(self.model.config.own_rpn))
            own = [boxes[valid] for boxes, valid in zip(proposed.boxes, proposed.valid, strict=True)]
            return [mine if boxes is None else boxes for mine, boxes in zip(own, given, strict=True)]
        found = [boxes for boxes in given if boxes is not None]
        if len(found) < len(given):
            expected = "proposals with each picture, since the detector has no RPN"
            counts = f"{len(found)} of {len(given)}"
            raise InputError("some are missing", field="target.proposals", found=counts, expected=expected)
        return found

    def _head_losses(
        self,
        features: Mapping[str, Tensor],
        proposals: Sequence[Tensor],
        targets: Sequence[Target],
        windows: Tensor,
        generators: Sequence[torch.Generator],
    ) -> dict[str, Tensor]:
        """The heads' part of the losses, from N tensors (P_i, 4) of proposals."""
        model = self.model
        losses: dict[str, Tensor] = {}
        rois = [
            sample_rois(boxes, target, generator, self.config.box, self.sampler)
            for boxes, target, generator in zip(proposals, targets, generators, strict=True)
        ]
        for stage in range(len(model.box_heads)):
            outputs, box_losses = self._box_loss(stage, features, rois, targets)
            losses |= box_losses
            if stage < len(model.mask_heads):
                losses |= self._mask_loss(stage, features, rois, targets)
            if stage == 0 and model.keypoint_head is not None:
                losses |= self._keypoint_loss(model.keypoint_head, features, rois, targets)
            if stage + 1 < len(model.box_heads):
                rois = self._next_rois(stage, outputs, rois, targets, windows)
        return losses

    def _box_loss(
        self, stage: int, features: Mapping[str, Tensor], rois: Sequence[SampledRoIs], targets: Sequence[Target]
    ) -> tuple[BoxOutputs, dict[str, Tensor]]:
        head = self.model.box_heads[stage]
        boxes, labels = torch.cat([r.boxes for r in rois]), torch.cat([r.labels for r in rois])
        pooled = self.model.pooled_for_boxes(features, boxes, _image_index(rois))
        outputs = head(share_gradient(pooled, len(self.model.box_heads)))
        matched = torch.cat([_matched_boxes(r, target) for r, target in zip(rois, targets, strict=True)])
        losses = box_loss(outputs, boxes, labels, matched, head.coder, self.config.box)
        return outputs, {_named(name, stage): loss for name, loss in losses.items()}

    def _next_rois(
        self,
        stage: int,
        outputs: BoxOutputs,
        rois: Sequence[SampledRoIs],
        targets: Sequence[Target],
        windows: Tensor,
    ) -> list[SampledRoIs]:
        """What the next stage of a cascade learns from: the boxes that this one made."""
        boxes, coder = torch.cat([r.boxes for r in rois]), self.model.box_heads[stage].coder
        refined = refine(outputs, boxes, coder, windows[_image_index(rois)])
        limit = self.config.cascade.foreground_ious[stage]
        parts = torch.split(refined, [len(r.labels) for r in rois])
        return [rematch(part, target, limit) for part, target in zip(parts, targets, strict=True)]

    def _mask_loss(
        self, stage: int, features: Mapping[str, Tensor], rois: Sequence[SampledRoIs], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        model, head = self.model, self.model.mask_heads[stage]
        limit = self.config.mask.rois_per_image
        learning = [_mask_rois(r, target, limit) for r, target in zip(rois, targets, strict=True)]
        if not any(len(r.labels) for r in learning):
            learning[0] = _stand_in(rois[0].boxes.device)
        boxes, labels = torch.cat([r.boxes for r in learning]), torch.cat([r.labels for r in learning])
        pooled, side = model.pooled_for_masks(features, boxes, _image_index(learning)), head.config.side
        masks = torch.cat([self._mask_target(r, target, side) for r, target in zip(learning, targets, strict=True)])
        if head.config.classes == "competing":
            planes = head.planes(pooled)
            losses = competing_mask_loss(planes, masks.to(planes), labels)
        else:
            logits = head(pooled, labels)
            losses = mask_loss(logits, masks.to(logits), labels > 0)
        return {_named(name, stage): loss for name, loss in losses.items()}

    def _mask_target(self, rois: SampledRoIs, target: Target, side: int) -> Tensor:
        """(R_i, M, M) float32, zeros for RoIs without an object."""
        if target.gt_masks is None or not rois.is_foreground.any():
            return rois.boxes.new_zeros(len(rois.labels), side, side)
        masks = target.gt_masks[(~target.is_crowd).cpu().numpy()]
        config = self.config.mask
        boxes = on_edges(rois.boxes, self.model.config.corners)
        return crop_masks(
            masks, boxes, rois.matched_gt_index, side, aligned=config.aligned_target, binary=config.binary_target
        )

    def _keypoint_loss(
        self,
        head: KeypointHead,
        features: Mapping[str, Tensor],
        rois: Sequence[SampledRoIs],
        targets: Sequence[Target],
    ) -> dict[str, Tensor]:
        config, sampled = self.config.keypoint, self.config.box
        learning = [self._keypoint_rois(head, r, target) for r, target in zip(rois, targets, strict=True)]
        if not any(len(r.labels) for r in learning):
            learning[0] = _stand_in(rois[0].boxes.device)
        boxes = torch.cat([r.boxes for r in learning])
        logits = head(self.model.pooled_for_keypoints(features, boxes, _image_index(learning)))
        cells = torch.cat([self._keypoint_cells(head, r, target) for r, target in zip(learning, targets, strict=True)])
        possible = len(targets) * sampled.rois_per_image * sampled.foreground_fraction * len(head.config.scheme)
        return keypoint_loss(logits, cells, possible, config)

    def _keypoint_rois(self, head: KeypointHead, rois: SampledRoIs, target: Target) -> SampledRoIs:
        """Those that hold a keypoint of their object."""
        holds_one = (self._keypoint_cells(head, rois, target) != NOTHING).any(dim=1)
        return _chosen(rois, holds_one, self.config.keypoint.rois_per_image)

    def _keypoint_cells(self, head: KeypointHead, rois: SampledRoIs, target: Target) -> Tensor:
        boxes = on_edges(rois.boxes, self.model.config.corners)
        return keypoint_cells(replace(rois, boxes=boxes), target, head.config)


def _padded_frame(target: Target, window: Tensor, config: MaskRCNNConfig) -> Target:
    """From the resized frame to the padded one, the boxes with the network's corners."""
    left, top = window[:2].tolist()
    masks = target.gt_masks
    if masks is not None and (left or top):
        masks = masks.moved(np.array([[1.0, 0.0, left], [0.0, 1.0, top]]))
    keypoints = target.gt_keypoints
    if keypoints is not None and (left or top):
        keypoints = replace(keypoints, points=keypoints.points + keypoints.points.new_tensor([left, top, 0.0]))
    boxes = to_padded(target.gt_boxes, window, config.corners)
    proposals = target.proposals
    if proposals is not None:
        proposals = to_padded(proposals, window, config.corners)
    return replace(target, gt_boxes=boxes, gt_masks=masks, gt_keypoints=keypoints, proposals=proposals)


def _named(name: str, stage: int) -> str:
    """The name of a loss in a stage of a cascade: mask, mask_2, mask_3."""
    return name if stage == 0 else f"{name}_{stage + 1}"


def _stand_in(device: torch.device) -> SampledRoIs:
    """One RoI where a batch has no mask or keypoint to learn, called background so that it weighs nothing.

    It keeps every parameter in the graph, which data-parallel training needs.
    """
    none = torch.zeros(1, dtype=torch.int64, device=device)
    return SampledRoIs(torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=device), none, none)


def _mask_rois(rois: SampledRoIs, target: Target, limit: int | None) -> SampledRoIs:
    """The foreground RoIs, at most `limit` spread over all; none where the picture's objects have no masks."""
    return _chosen(rois, rois.is_foreground & (target.gt_masks is not None), limit)


def _chosen(rois: SampledRoIs, keep: Tensor, limit: int | None) -> SampledRoIs:
    """The RoIs where `keep` (R_i,) bool is true, at most `limit` spread over all."""
    rows = keep.nonzero().squeeze(1)
    if limit is not None and len(rows) > limit:
        rows = rows[torch.arange(limit, device=rows.device) * len(rows) // limit]
    return SampledRoIs(rois.boxes[rows], rois.labels[rows], rois.matched_gt_index[rows])


def _image_index(rois: Sequence[SampledRoIs]) -> Tensor:
    counts = torch.tensor([len(r.labels) for r in rois])
    return torch.arange(len(rois)).repeat_interleave(counts).to(rois[0].boxes.device)


def _matched_boxes(rois: SampledRoIs, target: Target) -> Tensor:
    """(R_i, 4): the object's box of each foreground RoI, the RoI itself where there is none."""
    gt_boxes = target.gt_boxes[~target.is_crowd]
    return gt_boxes[rois.matched_gt_index] if len(gt_boxes) else rois.boxes


def torchvision_loss() -> LossConfig:
    """The losses of torchvision's reference detectors: mask targets are soft, and half a pixel off as its RoIs are.

    Polygons are drawn all the same; for torchvision's targets give the bitmaps that it would be given.
    """
    return LossConfig(mask=MaskLossConfig(binary_target=False, aligned_target=False))
