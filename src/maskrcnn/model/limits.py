"""What one call may ask for in place of the checkpoint's own values. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from maskrcnn.model.config import MOST, is_count, is_share, require

if TYPE_CHECKING:
    from maskrcnn.model.mask_rcnn import MaskRCNNConfig

MOST_PIXELS = 1 << 15  # of the shorter side: beyond it a picture has more than a gigapixel


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one call may ask for instead of the checkpoint's own values; None leaves them. Numbers may be numpy's."""

    score_threshold: float | None = None  # 0 to 1
    nms_iou: float | None = None  # 0 to 1, between boxes of one class
    max_detections: int | None = None  # per picture, no cap; lifts the proposals to at least as many
    proposals: int | None = None  # per picture; also lifts the RPN's pre-NMS limit to at least this
    class_agnostic_nms: bool | None = None
    mask_nms_iou: float | None = None  # 0 to 1, between masks
    size: int | Literal["native"] | None = None  # shorter side in px

    def __post_init__(self) -> None:
        self._settle("score_threshold", is_share, float, "a number from 0 to 1")
        self._settle("nms_iou", is_share, float, "a number from 0 to 1")
        self._settle("mask_nms_iou", is_share, float, "a number from 0 to 1")
        self._settle("max_detections", is_count, int, f"a whole number from 1 to {MOST}")
        self._settle("proposals", is_count, int, f"a whole number from 1 to {MOST}")
        self._settle("class_agnostic_nms", lambda value: isinstance(value, bool | np.bool_), bool, "true or false")
        if not (isinstance(self.size, str) and self.size == "native"):
            expected = f"a whole number of px from 1 to {MOST_PIXELS}, or native"
            self._settle("size", lambda value: is_count(value, MOST_PIXELS), int, expected)

    def _settle(self, name: str, fits: Callable[[object], bool], kind: type, expected: str) -> None:
        """Python's own number in place of numpy's, which JSON does not know."""
        value = getattr(self, name)
        if value is not None:
            require(fits(value), self, name, expected)
            object.__setattr__(self, name, kind(value))

    def applied(self, config: MaskRCNNConfig) -> MaskRCNNConfig:
        """`config` with these values in their places."""
        names = ("score_threshold", "nms_iou", "max_detections", "class_agnostic_nms", "mask_nms_iou")
        asked = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        detection = replace(config.detection, **asked)
        rpn = config.rpn
        if rpn is None:
            return replace(config, detection=detection)
        # more detections than proposals could not be: asking for many lifts the proposals too
        proposals = self.proposals or max(rpn.post_nms_top_n, self.max_detections or 0)
        rpn = replace(rpn, post_nms_top_n=proposals, pre_nms_top_n=max(rpn.pre_nms_top_n, proposals))
        return replace(config, rpn=rpn, detection=detection)
