"""The detector's core of fixed shapes as a graph: what every target is made from.

    pixels (N, 3, H, W) float32, resized, normalised and padded; sizes (N, 2) float32, (height, width) before padding
    -> boxes (N, D, 4) padded frame, scores (N, D), labels (N, D) in 1..K, valid (N, D) bool, best first,
       masks (N, D, M, M) probabilities, heatmaps (N, D, J, M, M) before softmax, where there are such heads

Resizing stays outside: an antialiased resize inside a graph is computed differently, or wrongly, by the runtimes.
"""

from __future__ import annotations

import math
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from maskrcnn.errors import InputError
from maskrcnn.export.facts import Facts, Target
from maskrcnn.export.host import RESAMPLING
from maskrcnn.model.config import is_count, to_dict
from maskrcnn.model.limits import Limits
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.ops.recorded import recording_for_onnx
from maskrcnn.structures import Size

_MOST_STEPS = 1024  # of a side: 32768 px at a stride of 32
_METHODS = ("align",)  # of pooling, that can be recorded


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What is fixed in the file. size: (height, width) px, None for any. batch: pictures a call, None: any number."""

    size: Size | None = None
    batch: int | None = 1

    def __post_init__(self) -> None:
        fits = self.size is None or (len(self.size) == 2 and all(is_count(side, 1 << 15) for side in self.size))
        if not fits:
            raise InputError("is no size", field="size", found=self.size, expected="(height, width) in px")
        if self.batch is not None and not is_count(self.batch):
            raise InputError(
                "is no number of pictures", field="batch", found=self.batch, expected="at least 1, or none"
            )


class DetectionCore(nn.Module):
    """`MaskRCNN.detect` with tensors in and tensors out; the order of the results is that of `output_names`."""

    def __init__(self, model: MaskRCNN, config: MaskRCNNConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    def forward(self, pixels: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        found = self.model.detect(pixels, sizes, self.config)
        outputs = [found.boxes, found.scores, found.labels, found.valid]
        if found.mask_logits is not None:
            outputs.append(found.mask_logits.sigmoid())
        if found.keypoint_logits is not None:
            outputs.append(found.keypoint_logits)
        return tuple(outputs)


def output_names(config: MaskRCNNConfig) -> tuple[str, ...]:
    """Of what `DetectionCore` returns."""
    masks = () if config.mask_head is None else ("masks",)
    heatmaps = () if config.keypoint_head is None else ("heatmaps",)
    return ("boxes", "scores", "labels", "valid", *masks, *heatmaps)


def facts_of(
    model: MaskRCNN, target: Target, shape: Shape, limits: Limits | None = None, *, licence: str, source: str
) -> Facts:
    """What the file will say of itself. Errors: `InputError` that names the part which cannot be exported."""
    config = (limits or Limits()).applied(model.config)
    _require_recordable(config)
    rpn, strides = config.own_rpn, _strides(model)
    step = math.lcm(config.preprocess.divisor, *(stride for name, stride in strides.items() if name != "p6"))
    least = 2 * max(strides.values())  # every map has two rows and columns at least: one is another case to a graph
    size = None
    if shape.size is not None:
        high, wide = (-(-max(side, config.preprocess.square or 1) // step) * step for side in shape.size)
        size = (high, wide)
    keypoints = config.keypoint_head
    return Facts(
        target=target,
        class_names=config.class_names,
        category_ids=config.category_ids,
        preprocess=config.preprocess,
        detection=config.detection,
        outputs=output_names(config),
        corners=config.corners,
        size=size,
        step=step,
        least=-(-least // step) * step,
        batch=shape.batch,
        proposals=rpn.post_nms_top_n,
        keypoints=None if keypoints is None else keypoints.scheme,
        keypoint_score="share" if keypoints is None else keypoints.score,
        licence=licence,
        source=source,
        config=to_dict(config),
    )


def applied(model: MaskRCNN, limits: Limits | None) -> MaskRCNNConfig:
    """The config that is recorded."""
    return (limits or Limits()).applied(model.config)


def record(model: MaskRCNN, config: MaskRCNNConfig, facts: Facts) -> ExportedProgram:
    """The core as a graph, on the CPU in float32. `model` is plain, in evaluation.

    Errors: `InputError` where torch cannot record some part of it.
    """
    core = DetectionCore(model, replace(config)).eval()
    pixels, sizes, free = _example(facts)
    context = recording_for_onnx() if facts.target in ("onnx", "openvino") else nullcontext()
    with torch.no_grad(), context, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's about its own parts
        try:
            return torch.export.export(core, (pixels, sizes), dynamic_shapes=free, strict=False)
        except Exception as error:  # torch has many kinds for what it cannot record
            found = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError("cannot be recorded", field="export", found=found) from error


def _example(facts: Facts) -> tuple[Tensor, Tensor, dict[str, dict[int, Dim] | None]]:
    """Inputs to record with, no extent of which is 1 where it is free, and which extents are free."""
    batch = facts.batch or 2
    high, wide = facts.size or (facts.least + facts.step, facts.least + 2 * facts.step)
    pixels, sizes = torch.zeros(batch, 3, high, wide), torch.tensor([[high, wide]] * batch, dtype=torch.float32)
    of_pixels: dict[int, Dim] = {}
    of_sizes: dict[int, Dim] = {}
    if facts.batch is None:
        of_pixels[0] = of_sizes[0] = Dim("batch", min=1)
    if facts.size is None:
        fewest = facts.least // facts.step
        of_pixels[2] = facts.step * Dim("rows", min=fewest, max=_MOST_STEPS)
        of_pixels[3] = facts.step * Dim("columns", min=fewest, max=_MOST_STEPS)
    return pixels, sizes, {"pixels": of_pixels or None, "sizes": of_sizes or None}


def _strides(model: MaskRCNN) -> dict[str, int]:
    return dict(model.own_rpn.strides)


def _require_recordable(config: MaskRCNNConfig) -> None:
    if config.rpn is None:
        expected = "a detector that makes its own proposals"
        raise InputError("cannot be exported: proposals come with each picture", field="rpn", expected=expected)
    if config.roi_pooler.method not in _METHODS:
        found, expected = config.roi_pooler.method, " or ".join(_METHODS)
        raise InputError("cannot be exported", field="roi_pooler.method", found=found, expected=expected)
    if config.preprocess.resampling not in RESAMPLING:
        field, expected = "preprocess.resampling", " or ".join(RESAMPLING)
        raise InputError("cannot be exported", field=field, found=config.preprocess.resampling, expected=expected)
