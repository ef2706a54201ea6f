"""What an exported file says of itself: all that it takes to go from a picture to its detections. No torch here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from maskrcnn.errors import InputError
from maskrcnn.model.config import from_dict, require, to_dict
from maskrcnn.model.detection_config import DetectionConfig
from maskrcnn.model.preprocess_config import PreprocessConfig
from maskrcnn.structures import KeypointScheme, Size

FORMAT_VERSION = 1
KEY = "maskrcnn"  # of the facts in a file's metadata

Target = Literal["onnx", "openvino", "torch-export", "aoti"]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What was recorded, and what belongs before and behind it.

    target: the kind of file. size: (height, width) that the network sees always, or None for any. step: px, without a
    fixed size its sides are multiples of this, and at least `least`. batch: pictures in a call, None for any number.
    proposals, and the thresholds of `detection`: as recorded; what a call may ask for is at most that.
    outputs: names of the results, in their order. keypoint_score: see `KeypointHeadConfig.score`.
    config: the detector's whole config, as a checkpoint has it.
    """

    target: Target
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    preprocess: PreprocessConfig
    detection: DetectionConfig
    outputs: tuple[str, ...]
    corners: Literal["edges", "centres"] = "edges"
    size: tuple[int, int] | None = None
    step: int = 32
    least: int = 1
    batch: int | None = 1
    proposals: int = 1000
    keypoints: KeypointScheme | None = None
    keypoint_score: Literal["share", "logit"] = "share"
    licence: str = "unknown"
    source: str = "unknown"
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        require(len(self.category_ids) == len(self.class_names) >= 1, self, "category_ids", "one for each class name")
        require(self.step >= 1 and self.least >= 1, self, "step", "at least 1 px")
        require(self.batch is None or self.batch >= 1, self, "batch", "at least 1, or none")
        require(self.size is None or min(self.size) >= 1, self, "size", "at least 1 px, or none")

    def padded_size(self, sizes: list[Size]) -> Size:
        """(height, width) in which pictures of `sizes` go through the network together."""
        if self.size is not None:
            return self.size
        least = max(self.least, self.preprocess.square or 1)
        high, wide = (max(least, *side) for side in zip(*sizes, strict=True))
        return -(-high // self.step) * self.step, -(-wide // self.step) * self.step

    def as_json(self) -> str:
        return json.dumps({"format_version": FORMAT_VERSION, **to_dict(self)}, ensure_ascii=False)


def facts_from_json(text: str | None, file: str | Path) -> Facts:
    """What `as_json` wrote. Errors: `InputError` where `file` holds something else, or what a newer version wrote."""
    if not text:
        raise InputError("was not exported by maskrcnn", file=file, field=KEY, expected="its facts in the metadata")
    try:
        document = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError("not JSON", file=file, field=KEY, found=str(error)) from error
    version = document.pop("format_version", None) if isinstance(document, dict) else None
    if version != FORMAT_VERSION:
        expected = str(FORMAT_VERSION)
        raise InputError(
            "format of another version", file=file, field="format_version", found=version, expected=expected
        )
    try:
        return from_dict(Facts, document, KEY)
    except InputError as error:
        raise InputError(str(error), file=file) from error
