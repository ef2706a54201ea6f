"""What the stages of a cascade learn from (Cai and Vasconcelos 2018, Cascade R-CNN, 3.3 and 4.1)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from maskrcnn.model.config import require


@dataclass(frozen=True, kw_only=True)
class CascadeLossConfig:
    """One entry for each stage after the first, whose values are those of `BoxLossConfig`."""

    foreground_ious: tuple[float, ...] = (0.6, 0.7)
    weights: tuple[float, ...] = (1.0, 1.0)  # of a stage's losses in the total; MMDetection: 0.5 and 0.25

    def __post_init__(self) -> None:
        require(all(0 <= iou <= 1 for iou in self.foreground_ious), self, "foreground_ious", "0 to 1")
        fits = len(self.weights) == len(self.foreground_ious) and min(self.weights, default=0) >= 0
        require(fits, self, "weights", "0 or more, one for each of foreground_ious")


def share_gradient(features: Tensor, stages: int) -> Tensor:
    """`features` as they are; their gradient divided by `stages`, so that T heads do not teach the body T times."""
    return features if stages == 1 else features / stages + (features * (1 - 1 / stages)).detach()
