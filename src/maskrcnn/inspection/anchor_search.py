"""All anchors, and all of them moved: which of them cover one object? Sorted once, so that few are looked at.

A anchors, 10^5 and more in a large picture    boxes: (x1, y1, x2, y2), float px, padded frame, corners on edges
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from maskrcnn.inspection.probe import Steps
from maskrcnn.model.frames import on_edges
from maskrcnn.ops.boxes import clip_to

SLACK = 1.0  # px that a search goes farther than it must, for what rounding does


def on_cpu_edges(steps: Steps, boxes: Tensor) -> np.ndarray:
    """Boxes (..., 4) of the network as float64 on the CPU, corners on edges."""
    flat = on_edges(boxes.detach().reshape(-1, 4), steps.config.corners)
    edges: np.ndarray = flat.double().cpu().numpy().reshape(boxes.shape)
    return edges


def iou_with(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(N,) float64 IoU of one box (4,) with boxes (N, 4); 0 where one is empty."""
    common = (np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])).clip(0).prod(axis=1)
    union = (boxes[:, 2:] - boxes[:, :2]).clip(0).prod(axis=1) + (box[2:] - box[:2]).clip(0).prod() - common
    iou: np.ndarray = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return iou


@dataclass(frozen=True, eq=False)
class BoxesByPlace:
    """Boxes (A, 4) that can be asked which of them may cover an object, without a look at all of them.

    centre: (A,) float64 x, ascending. order: (A,) int64, the box of each.
    """

    boxes: np.ndarray
    centre: np.ndarray
    order: np.ndarray

    @classmethod
    def of(cls, boxes: np.ndarray) -> BoxesByPlace:
        centre = (boxes[:, 0] + boxes[:, 2]) / 2
        order = np.argsort(centre, kind="stable")
        return cls(boxes, centre[order], order)

    def near(self, box: np.ndarray, iou: float, at_least: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """(n,) int64 boxes, all those with an IoU of at least `iou` among them, and their (n,) IoU.

        at_least: px to look to each side. Two boxes can share `iou` only where their centres are no more than
        (1 - iou) / iou widths of either apart: the wider is at most 1 / iou times as wide as the other.
        """
        reach = max((box[2] - box[0]) * (1 - iou) / iou, at_least) + SLACK
        middle = (box[0] + box[2]) / 2
        first, stop = np.searchsorted(self.centre, [middle - reach, middle + reach])
        index = np.sort(self.order[first:stop])
        return index, iou_with(box, self.boxes[index])


@dataclass(frozen=True, eq=False)
class AnchorSearch:
    """The A anchors of a picture, as they lie and as the RPN moves them and cuts them to the picture.

    logits: (A,) float32 objectness. levels: (A,) int64. stride: px, the widest step of the grid.
    """

    raw: BoxesByPlace
    refined: BoxesByPlace
    logits: np.ndarray
    levels: np.ndarray
    stride: float

    @classmethod
    def of(cls, steps: Steps) -> AnchorSearch:
        cut = steps.config.proposal_windows(steps.batch.image_sizes, steps.padded_size)[0]
        deltas = torch.cat(steps.rpn.deltas, 1)[0].detach()
        moved = clip_to(steps.config.own_rpn.coder.decode(deltas, steps.anchors), cut)
        return cls(
            raw=BoxesByPlace.of(on_cpu_edges(steps, steps.anchors)),
            refined=BoxesByPlace.of(on_cpu_edges(steps, moved)),
            logits=steps.anchor_logits.detach().cpu().numpy(),
            levels=steps.anchor_levels.cpu().numpy(),
            stride=float(max(steps.model.own_rpn.strides.values())),
        )

    def covering(self, box: np.ndarray, iou: float) -> tuple[np.ndarray, np.ndarray]:
        """The moved anchors that cover a box by at least `iou`: (n,) int64, and their (n,) IoU."""
        index, overlap = self.refined.near(box, iou)
        enough = overlap >= iou
        return index[enough], overlap[enough]

    def best(self, box: np.ndarray, iou: float) -> tuple[np.ndarray, np.ndarray]:
        """Anchors (n,), those that cover a box by `iou` and the best one among them, and their (n,) IoU.

        Of one shape the best stands nearest, and no point is farther than a step of the grid from an anchor's centre.
        """
        index, overlap = self.raw.near(box, iou, at_least=self.stride)
        if not len(index):  # not a grid
            index = np.arange(len(self.raw.boxes))
            overlap = iou_with(box, self.raw.boxes)
        return index, overlap
