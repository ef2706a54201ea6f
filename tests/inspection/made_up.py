"""A picture whose every stage is made up: what RPN and heads put out is written down, the rest is the detector's own.

The tests say, for each anchor, where the RPN moves it and what the head makes of it. Candidates, NMS, proposals,
rivals, detections and the placing in the picture are then computed by the code that detects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from maskrcnn.inspection.probe import Steps
from maskrcnn.model.box_head import BoxOutputs, DetectionConfig, detection_candidates
from maskrcnn.model.mask_rcnn import MaskRCNNConfig, keep_placed, place
from maskrcnn.model.presets import nano
from maskrcnn.model.rpn import RPNOutputs, proposal_candidates
from maskrcnn.ops.box_coder import BoxCoder
from maskrcnn.predictor import on_cpu
from maskrcnn.structures import GtMasks, ImageBatch, RasterShape, Target

Box = tuple[float, float, float, float]
NAMES = ("ant", "bee", "cat", "dog")
SIDE = 28
NOTHING = 1e-9  # probability of a class that is not told


@dataclass(frozen=True)
class Line:
    """One anchor and what becomes of it.

    moved: by the RPN; None: not at all. logit: objectness. label, score: what the head says of it, the rest is
    background; others: {label: probability} besides. final: the box of every class; None: as proposed.
    level: 0 is p2. mask: (M, M) bool of what the mask head says; None: the whole box.
    """

    anchor: Box
    label: int = 1
    score: float = 0.9
    logit: float = 2.0
    moved: Box | None = None
    final: Box | None = None
    others: Mapping[int, float] | None = None
    level: int = 0
    mask: np.ndarray | None = None

    @property
    def proposal(self) -> Box:
        return self.moved or self.anchor

    @property
    def probabilities(self) -> list[float]:
        """K + 1, of background first."""
        given = {self.label: self.score, **(self.others or {})}
        rest = [given.get(label, NOTHING) for label in range(1, len(NAMES) + 1)]
        return [max(1 - sum(rest), NOTHING), *rest]


@dataclass(frozen=True)
class Thing:
    """An object. bitmap: (h, w) of its pixels inside its box; None: all of them."""

    box: Box
    label: int = 1
    crowd: bool = False
    bitmap: np.ndarray | None = None


def settings(*, masks: bool = True, rpn: Mapping[str, Any] | None = None, **detection: Any) -> MaskRCNNConfig:
    """Four levels, four classes, thresholds as usual but a score of 0.05; changed as asked."""
    config = nano(NAMES, (3, 5, 7, 9))
    return replace(
        config,
        rpn=replace(config.rpn, **(rpn or {})),
        detection=replace(DetectionConfig(), **detection),
        mask_head=config.mask_head if masks else None,
    )


def picture(
    things: Sequence[Thing],
    lines: Sequence[Line],
    config: MaskRCNNConfig | None = None,
    size: tuple[int, int] = (100, 120),
    scale: float = 1.0,
) -> Steps:
    """The steps of a picture of `size` with these objects, in which the detector does what `lines` say.

    scale: how much larger the network sees it; lines are in its frame, objects in the picture's own.
    """
    config = config or settings()
    resized = torch.tensor([[size[0] * scale, size[1] * scale]])
    padded = tuple(int(side) for side in resized[0].tolist())
    batch = ImageBatch(torch.zeros(1, 3, *padded), resized, (size,))
    windows = config.windows(resized, padded)
    rpn, order = _rpn(lines, config)
    candidates = proposal_candidates(rpn, config.proposal_windows(resized, padded), config.rpn)
    proposals = candidates.proposals()
    anchor_of = candidates.anchor_index[0][candidates.chosen[0]].tolist()
    outputs = _head([order.get(a) for a in anchor_of], proposals.boxes[0], config)
    rivals = detection_candidates(
        outputs, proposals, windows, BoxCoder(config.box_head.delta_weights), config.detection
    )
    found = rivals.detections()
    if config.mask_head is not None:
        rows = [order.get(anchor_of[row // len(NAMES)]) for row in rivals.chosen[0].tolist()]
        found = replace(found, mask_logits=torch.stack([_mask_logits(line) for line in rows])[None])
    placed = place(found, 0, batch, config)
    kept = keep_placed(placed, config.detection)
    return Steps(
        picture=np.zeros((*size, 3), np.uint8),
        config=config,
        batch=batch,
        window=windows[0],
        body={},
        features={},
        rpn=rpn,
        proposal_candidates=candidates,
        proposals=proposals,
        rois=proposals,
        box_outputs=outputs,
        detection_candidates=rivals,
        found=found,
        placed=placed,
        kept=torch.ones(len(placed), dtype=torch.bool) if kept is None else kept,
        detections=on_cpu(placed if kept is None else placed.chosen(kept)),
        model=SimpleNamespace(own_rpn=SimpleNamespace(strides={"p2": 4, "p3": 8, "p4": 16, "p5": 32})),  # type: ignore[arg-type]
        target=truth(things, size, masks=config.mask_head is not None),
    )


def truth(things: Sequence[Thing], size: tuple[int, int], masks: bool = True) -> Target:
    shapes = []
    for thing in things if masks else ():
        left, top, right, bottom = (round(v) for v in thing.box)
        bitmap = np.ones((bottom - top, right - left), np.uint8) if thing.bitmap is None else thing.bitmap
        shapes.append(RasterShape(bitmap.astype(np.uint8), left, top, size))
    return Target(
        gt_boxes=torch.tensor([thing.box for thing in things], dtype=torch.float32).reshape(-1, 4),
        gt_labels=torch.tensor([thing.label for thing in things], dtype=torch.int64),
        gt_masks=GtMasks(tuple(shapes)) if masks else None,
        is_crowd=torch.tensor([thing.crowd for thing in things], dtype=torch.bool),
        size=size,
    )


def _rpn(lines: Sequence[Line], config: MaskRCNNConfig) -> tuple[RPNOutputs, dict[int, Line]]:
    """The raw outputs, and the line of each anchor. Each level ends in an anchor that is moved to nothing."""
    logits, deltas, anchors, order = [], [], [], {}
    count = 0
    for level in range(4):
        here = [line for line in lines if line.level == level]
        order |= {count + i: line for i, line in enumerate(here)}
        boxes = torch.tensor([*(line.anchor for line in here), (0, 0, 1, 1)], dtype=torch.float32)
        moved = torch.tensor([*(line.proposal for line in here), (0, 0, 1, 1)], dtype=torch.float32)
        change = config.rpn.coder.encode(boxes, moved)
        change[-1] = torch.tensor([0, 0, -50, -50])
        logits.append(torch.tensor([[*(line.logit for line in here), -50.0]]))
        deltas.append(change[None])
        anchors.append(boxes)
        count += len(boxes)
    return RPNOutputs(logits, deltas, anchors), order


def _head(rows: Sequence[Line | None], rois: torch.Tensor, config: MaskRCNNConfig) -> BoxOutputs:
    nothing = Line((0, 0, 1, 1), score=NOTHING)
    probabilities = torch.tensor([(line or nothing).probabilities for line in rows]).reshape(-1, len(NAMES) + 1)
    finals = torch.tensor([(line or nothing).final or (line or nothing).proposal for line in rows], dtype=torch.float32)
    deltas = BoxCoder(config.box_head.delta_weights).encode(rois, finals.reshape(-1, 4))
    return BoxOutputs(probabilities.log(), deltas[:, None].expand(-1, len(NAMES), -1))


def _mask_logits(line: Line | None) -> torch.Tensor:
    inside = np.ones((SIDE, SIDE), bool) if line is None or line.mask is None else line.mask
    return torch.from_numpy(np.where(inside, 20.0, -20.0).astype(np.float32))
