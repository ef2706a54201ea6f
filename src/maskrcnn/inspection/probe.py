"""The figure once more, keeping every arrow: what each stage of the detector made of one picture.

A anchors    B proposal candidates    R proposals    D detections    K classes    M mask side
boxes: (x1, y1, x2, y2), float pixels, padded frame unless another is named; sizes: (height, width)
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from maskrcnn.errors import InputError
from maskrcnn.model.box_head import BoxOutputs, DetectionCandidates, detection_candidates
from maskrcnn.model.frames import from_original, to_original
from maskrcnn.model.mask_rcnn import Limits, MaskRCNN, MaskRCNNConfig, keep_placed, place
from maskrcnn.model.rpn import ProposalCandidates, RPNOutputs, proposal_candidates
from maskrcnn.predictor import Predictor, on_cpu
from maskrcnn.structures import DetectionBatch, Detections, ImageBatch, Proposals, Size, Target


@dataclass(frozen=True, eq=False)
class Steps:
    """Every intermediate of one picture, in the order in which they are made. Tensors are those of the detector itself.

    picture: (H, W, 3) uint8 RGB, original frame. config: with the limits of this call in their places.
    batch: what the network sees, of one picture. window: (4,) where the picture lies in it.
    body: the backbone's maps, {"c2": (1, C, H/4, W/4), ...}. features: those that RPN and heads read, {"p2": ...}.
    rpn: raw outputs, a tensor a level. proposal_candidates: the anchors that went into NMS. proposals: what came out.
    rois: the proposals, or in a cascade the boxes that the last head refines. box_outputs: of R rows, (R, K + 1) and
    (R, K, 4); rows without a proposal are zero. detection_candidates: each class of each RoI, R * K in a row.
    found: what was kept, with mask logits. placed: its valid rows, D of them, in the original frame. kept: (D,) bool,
    those that became detections: all, but where boxes are rounded or masks suppress one another. detections: the
    result, original frame, as `Predictor.predict` gives it.
    target: the ground truth, original frame; None where none was given.
    """

    picture: np.ndarray
    config: MaskRCNNConfig
    batch: ImageBatch
    window: Tensor
    body: dict[str, Tensor]
    features: dict[str, Tensor]
    rpn: RPNOutputs
    proposal_candidates: ProposalCandidates
    proposals: Proposals
    rois: Proposals
    box_outputs: BoxOutputs
    detection_candidates: DetectionCandidates
    found: DetectionBatch
    placed: Detections
    kept: Tensor
    detections: Detections
    model: MaskRCNN = field(repr=False)
    target: Target | None = None

    @property
    def size(self) -> Size:
        """(height, width) of the picture, original frame."""
        return self.batch.original_sizes[0]

    @property
    def padded_size(self) -> Size:
        """(height, width) of what the network sees."""
        return self.batch.pixels.shape[2], self.batch.pixels.shape[3]

    @property
    def anchors(self) -> Tensor:
        """(A, 4), of all levels in a row."""
        return torch.cat(self.rpn.anchors)

    @property
    def anchor_logits(self) -> Tensor:
        """(A,) objectness, of all levels in a row."""
        return torch.cat(self.rpn.logits, 1)[0]

    @property
    def anchor_levels(self) -> Tensor:
        """(A,) int64 position of each anchor's level in `level_names`."""
        counts = torch.tensor([len(level) for level in self.rpn.anchors])
        return torch.arange(len(counts)).repeat_interleave(counts).to(self.window.device)

    @property
    def level_names(self) -> tuple[str, ...]:
        """Names of the levels that have anchors, fine to coarse."""
        return tuple(self.model.own_rpn.strides)

    def in_original(self, boxes: Tensor) -> Tensor:
        """Boxes (..., 4) of the padded frame in the original frame, corners on edges. They may reach outside it."""
        return to_original(boxes.reshape(-1, 4), self.window, self.size, self.config.corners).reshape(boxes.shape)

    def in_padded(self, boxes: Tensor) -> Tensor:
        """Boxes (..., 4) of the original frame, corners on edges, in the padded frame: the way back."""
        return from_original(boxes.reshape(-1, 4), self.window, self.size, self.config.corners).reshape(boxes.shape)


def probe(
    predictor: Predictor, picture: np.ndarray, limits: Limits | None = None, target: Target | None = None
) -> Steps:
    """Detect in one picture and keep what is made on the way.

    picture: (H, W, 3) uint8 RGB. target: in the frame of the picture.
    Errors: `InputError` for ground truth of a picture of another size, and for boxes or labels that are none.
    """
    if target is not None and tuple(target.size) != picture.shape[:2]:
        expected = f"(height, width) {picture.shape[:2]}, as the picture has"
        raise InputError("is of another picture", field="ground truth", found=tuple(target.size), expected=expected)
    if target is not None and not (target.gt_boxes.isfinite().all() and (target.gt_labels > 0).all()):
        raise InputError("is none", field="ground truth", expected="boxes of finite numbers, labels from 1")
    image = torch.from_numpy(np.require(picture, requirements="W")).permute(2, 0, 1)
    with torch.no_grad():
        steps = walk(predictor.network, image, limits or Limits(), picture, target)
    return replace(steps, model=predictor.model)


def walk(model: MaskRCNN, image: Tensor, limits: Limits, picture: np.ndarray, target: Target | None = None) -> Steps:
    """Read beside `MaskRCNN.forward` and `MaskRCNN.detect`: the same calls, in the same order."""
    config = limits.applied(model.config)
    batch = model.preprocess([image], limits.size)
    height, width = batch.pixels.shape[2:]
    cuts = config.proposal_windows(batch.image_sizes, (height, width))
    windows = config.windows(batch.image_sizes, (height, width))
    body: dict[str, Tensor] = model.backbone(batch.pixels)
    features: dict[str, Tensor] = body if model.fpn is None else model.fpn(dict(body))
    rpn = model.own_rpn(features, (height, width))
    candidates = proposal_candidates(rpn, cuts, config.own_rpn)
    proposals = candidates.proposals()
    outputs, rois = model.read_boxes(features, proposals, windows, drop_empty=True)
    rivals = detection_candidates(outputs, rois, windows, model.box_heads[-1].coder, config.detection)
    found = rivals.detections()
    found = replace(
        found,
        mask_logits=model.read_masks(features, found, drop_empty=True),
        keypoint_logits=model.read_keypoints(features, found, drop_empty=True),
    )
    placed = place(found, 0, batch, config)
    kept = keep_placed(placed, config.detection)
    return Steps(
        picture=picture,
        config=config,
        batch=batch,
        window=windows[0],
        body=body,
        features=features,
        rpn=rpn,
        proposal_candidates=candidates,
        proposals=proposals,
        rois=rois,
        box_outputs=outputs,
        detection_candidates=rivals,
        found=found,
        placed=placed,
        kept=torch.ones(len(placed), dtype=torch.bool, device=image.device) if kept is None else kept,
        detections=replace(on_cpu(placed if kept is None else placed.chosen(kept)), picture=lambda: picture),
        model=model,
        target=target,
    )
