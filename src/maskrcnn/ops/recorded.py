"""What is recorded into a graph for ONNX: the few operations that its runtimes have better than we could spell them.

A graph for torch itself (`torch.compile`, `torch.export`) records the operations as they are computed here. A runtime
of ONNX has NMS and RoIAlign of its own; made of single steps they would take many times as long, and float64, with
which `nms_keep` sets groups apart, is not offered by its NMS. So within `recording_for_onnx` they are recorded whole:
`nms_rows` as `NonMaxSuppression`, RoIAlign as `RoiAlign` (`export/onnx.py` translates).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torchvision
from torch import Tensor

_for_onnx: ContextVar[bool] = ContextVar("maskrcnn_recording_for_onnx", default=False)


def for_onnx() -> bool:
    """Whether what runs now is being recorded for ONNX."""
    return _for_onnx.get()


@contextmanager
def recording_for_onnx() -> Iterator[None]:
    """What is recorded inside is meant for ONNX."""
    before = _for_onnx.set(True)
    try:
        yield
    finally:
        _for_onnx.reset(before)


@torch.library.custom_op("maskrcnn::nms_rows", mutates_args=())
def nms_rows(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    """NMS row by row: which of boxes (G, B, 4) with scores (G, B) survive, (G, B) bool. A score of -inf is no box."""
    keep = torch.zeros_like(scores, dtype=torch.bool)
    for g in range(scores.shape[0]):
        rows = (scores[g] > -torch.inf).nonzero().squeeze(1)
        keep[g, rows[torchvision.ops.nms(boxes[g, rows], scores[g, rows], iou)]] = True
    return keep


@nms_rows.register_fake
def _(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)
