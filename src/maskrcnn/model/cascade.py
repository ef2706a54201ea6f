"""Heads in a row, each refining the boxes of the one before (Cai and Vasconcelos 2018, Cascade R-CNN, 3).

R RoIs    K classes    T stages
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from maskrcnn.model.box_head import BoxOutputs
from maskrcnn.model.config import require
from maskrcnn.ops.box_coder import BoxCoder
from maskrcnn.ops.boxes import clip_to


@dataclass(frozen=True, kw_only=True)
class CascadeConfig:
    """The stages after the first. Their boxes are class-agnostic; values of Cai and Vasconcelos 2018, 4.1 and code."""

    delta_weights: tuple[tuple[float, float, float, float], ...] = ((20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
    average: Literal["probabilities", "logits"] = (
        "probabilities"  # what of all stages is averaged into the final scores
    )
    mask_heads: bool = False  # a mask head for each stage, whose probabilities are averaged; else one for all

    def __post_init__(self) -> None:
        require(len(self.delta_weights) >= 1, self, "delta_weights", "four numbers for each later stage")
        above = all(weight > 0 for weights in self.delta_weights for weight in weights)
        require(above, self, "delta_weights", "above 0")


def refine(outputs: BoxOutputs, boxes: Tensor, coder: BoxCoder, windows: Tensor) -> Tensor:
    """The next stage's RoIs (R, 4): `boxes` (R, 4) moved by class-agnostic deltas, cut to `windows` (R, 4).

    No gradient flows through them, as none flows through proposals.
    """
    moved = coder.decode(outputs.deltas.detach().squeeze(1), boxes)
    return clip_to(moved, windows)


def average_logits(logits: Sequence[Tensor], average: Literal["probabilities", "logits"]) -> Tensor:
    """(R, K + 1) logits whose softmax is what T stages (R, K + 1) say together."""
    stages = torch.stack(list(logits))  # (T, R, K + 1)
    if average == "logits":
        return stages.mean(dim=0)
    return stages.softmax(dim=2).mean(dim=0).log()
