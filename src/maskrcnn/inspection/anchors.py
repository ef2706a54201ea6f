"""Anchors of one picture: the best by objectness, what the loss would take them for, how well they cover the objects.

A anchors of L levels    G ground-truth objects, crowd regions left out
boxes: (x1, y1, x2, y2), float px, original frame where they are handed out; they may reach outside the picture
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maskrcnn.inspection.probe import Steps
from maskrcnn.losses.matcher import BACKGROUND, CROWD_OVERLAP, FOREGROUND, IGNORE
from maskrcnn.losses.rpn_loss import RPNLossConfig
from maskrcnn.ops.boxes import intersection_over_first, iou


@dataclass(frozen=True)
class LevelOfAnchors:
    """One level of the pyramid. grid: (height, width) in cells. best: its highest objectness, 0..1.

    likely: anchors whose objectness is at least 0.5. side: px of the original frame, the mean of sqrt(area).
    """

    name: str
    stride: int
    grid: tuple[int, int]
    anchors: int
    side: float
    best: float
    likely: int


@dataclass(frozen=True, eq=False)
class BestAnchors:
    """The n anchors of highest objectness, best first.

    rows: (n,) int64 of `Steps.anchors`. boxes: (n, 4). objectness: (n,) 0..1. levels: (n,) int64 positions in
    `per_level`.
    """

    rows: Tensor
    boxes: Tensor
    objectness: Tensor
    levels: Tensor
    per_level: tuple[LevelOfAnchors, ...]


@dataclass(frozen=True, eq=False)
class MatchedAnchors:
    """What the loss of the RPN takes every anchor for: FOREGROUND, BACKGROUND or IGNORE (Ren et al. 2015, 3.1.2).

    kind: (A,) int8. iou: (A,) best with any object. matched_gt_index: (A,) int64 row of the target. rescued: (A,) bool,
    foreground only because no anchor fits that object better. foreground_iou, background_iou: the thresholds.
    """

    kind: Tensor
    iou: Tensor
    matched_gt_index: Tensor
    rescued: Tensor
    foreground_iou: float
    background_iou: float

    @property
    def counts(self) -> dict[str, int]:
        """How many are positive, neutral and negative."""
        kinds = {"positive": FOREGROUND, "neutral": IGNORE, "negative": BACKGROUND}
        return {name: int((self.kind == kind).sum()) for name, kind in kinds.items()}


@dataclass(frozen=True, eq=False)
class Coverage:
    """The best that any anchor does for each object.

    objects: (G,) int64 rows of the target. iou: (G, L) best IoU with an anchor of each level. anchor: (G, L) int64 row
    of that anchor in `Steps.anchors`, 0 where none overlaps. level_names: L.
    """

    objects: Tensor
    iou: Tensor
    anchor: Tensor
    level_names: tuple[str, ...]

    @property
    def best(self) -> Tensor:
        """(G,) the best IoU of any level."""
        return self.iou.amax(dim=1)


def best_anchors(steps: Steps, count: int = 100) -> BestAnchors:
    """The `count` best, and what there is of each level."""
    objectness, levels = steps.anchor_logits.float().cpu().sigmoid(), steps.anchor_levels.cpu()
    order = steps.anchor_logits.float().cpu().argsort(descending=True, stable=True)[:count]
    per_level, first = [], 0
    for name, (stride, anchors) in zip(
        steps.level_names, zip(steps.model.own_rpn.strides.values(), steps.rpn.anchors, strict=True), strict=True
    ):
        some = objectness[first : first + len(anchors)]
        first += len(anchors)
        boxes = steps.in_original(anchors[: steps.config.own_rpn.anchors.per_cell]).cpu()
        side = float(((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=0).sqrt().mean())
        height, width = steps.features[name].shape[2:]
        best, likely = float(some.max()), int((some >= 0.5).sum())
        per_level.append(LevelOfAnchors(name, stride, (height, width), len(anchors), side, best, likely))
    boxes = steps.in_original(steps.anchors[order.to(steps.anchors.device)]).cpu()
    return BestAnchors(order, boxes, objectness[order], levels[order], tuple(per_level))


def match_anchors(steps: Steps, config: RPNLossConfig | None = None) -> tuple[MatchedAnchors, Coverage] | None:
    """Anchors against objects, both ways; None without ground truth.

    The rule is that of `losses.matcher.match`, with the thresholds of `losses.rpn_loss`. That compares every anchor
    with every object, 4 GB for a large picture of thousands; here each object meets only those near it.
    """
    if steps.target is None:
        return None
    config = config or RPNLossConfig()
    is_crowd = steps.target.is_crowd.cpu()
    boxes = steps.in_padded(steps.target.gt_boxes.to(steps.window)).cpu()
    objects = (~is_crowd).nonzero().squeeze(1)
    anchors = [level.cpu() for level in steps.rpn.anchors]
    near = [
        _LevelNear(level, (steps.features[name].shape[2], steps.features[name].shape[3]), boxes[objects])
        for name, level in zip(steps.level_names, anchors, strict=True)
    ]
    everything = torch.cat(anchors)
    best = torch.zeros(len(everything))
    matched = torch.zeros(len(everything), dtype=torch.int64)
    rescued = torch.zeros(len(everything), dtype=torch.bool)
    coverage = torch.zeros(len(objects), len(anchors))
    fittest = torch.zeros(len(objects), len(anchors), dtype=torch.int64)
    for g, row in enumerate(objects.tolist()):
        first, equals = 0, []
        for k, level in enumerate(near):
            rows, overlap = level.of(g)
            rows += first
            better = overlap > best[rows]
            best[rows[better]], matched[rows[better]] = overlap[better], row
            if len(rows):
                coverage[g, k], at = overlap.max(dim=0)
                fittest[g, k] = rows[at]
                equals.append(rows[overlap == coverage[g, k]])
            else:
                equals.append(rows)
            first += len(anchors[k])
        top = coverage[g].max() if len(anchors) else torch.zeros(())
        if top > 0:
            for k, rows in enumerate(equals):
                rescued[rows] |= bool(coverage[g, k] == top)
    kind = torch.full(best.shape, IGNORE, dtype=torch.int8)
    kind[best < config.background_iou] = BACKGROUND
    kind[(best >= config.foreground_iou) | rescued] = FOREGROUND
    for crowd in boxes[is_crowd]:
        inside = intersection_over_first(everything, crowd[None])[:, 0] >= CROWD_OVERLAP
        kind[inside & (kind == BACKGROUND)] = IGNORE
    rescued &= best < config.foreground_iou
    matches = MatchedAnchors(kind, best, matched, rescued, config.foreground_iou, config.background_iou)
    return matches, Coverage(objects, coverage, fittest, steps.level_names)


class _LevelNear:
    """Finds the anchors of one level that overlap an object: they stand in rows and columns, so few need comparing."""

    def __init__(self, anchors: Tensor, grid: tuple[int, int], boxes: Tensor) -> None:
        """anchors: (H * W * k, 4), row by row. grid: (H, W). boxes: (G, 4) of the objects."""
        self.grid, self.boxes = grid, boxes
        self.anchors = anchors.view(*grid, -1, 4)
        across, down = self.anchors[0], self.anchors[:, 0]  # (W, k, 4), (H, k, 4)
        x = (across[..., 0].amin(1), across[..., 2].amax(1), boxes[:, 0], boxes[:, 2])
        y = (down[..., 1].amin(1), down[..., 3].amax(1), boxes[:, 1], boxes[:, 3])
        self.columns, self.rows = _reached(*x), _reached(*y)

    def of(self, g: int) -> tuple[Tensor, Tensor]:
        """Rows (n,) int64 of the level, and their IoU (n,) with object g."""
        (top, bottom), (left, right) = self.rows[g], self.columns[g]
        window = self.anchors[top:bottom, left:right]
        overlap = iou(self.boxes[g : g + 1], window.reshape(-1, 4))[0]
        cells = torch.arange(top, max(bottom, top))[:, None] * self.grid[1] + torch.arange(left, max(right, left))
        per_cell = self.anchors.shape[2]
        return (cells[..., None] * per_cell + torch.arange(per_cell)).flatten(), overlap


def _reached(starts: Tensor, ends: Tensor, low: Tensor, high: Tensor) -> list[list[int]]:
    """For each object the first and one past the last of a row of cells, whose anchors `starts`..`ends` it overlaps."""
    first = torch.searchsorted(ends.contiguous(), low.contiguous(), right=True)
    last = torch.searchsorted(starts.contiguous(), high.contiguous())
    return torch.stack([first, last], dim=1).tolist()
