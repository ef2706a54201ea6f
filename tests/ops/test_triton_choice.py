"""Which kernels run where, and that those of GPUs are asked for the right rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maskrcnn.ops import nms
from maskrcnn.ops.recorded import nms_rows
from maskrcnn.ops.triton.choice import own_kernels, takes_own

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_ours_only_on_cuda_and_where_asked_for() -> None:
    pytest.importorskip("triton")
    assert not takes_own("nms", CUDA)
    with own_kernels("nms"):
        assert takes_own("nms", CUDA) and not takes_own("roi_align", CUDA) and not takes_own("nms", CPU)
        with own_kernels():
            assert not takes_own("nms", CUDA)
        assert takes_own("nms", CUDA)
    assert not takes_own("nms", CUDA)


def test_without_triton_never(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskrcnn.ops.triton.choice._has_triton", lambda: False)
    with own_kernels("nms", "roi_align"):
        assert not takes_own("nms", CUDA) and not takes_own("roi_align", CUDA)


def boxes_of(count: int) -> Tensor:
    centre = torch.rand(2, count, 2) * 60
    half = 8 + torch.rand(2, count, 2) * 8
    return torch.cat([centre - half, centre + half], dim=2)


def through_rows(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """From here on NMS goes the way of CUDA, with a kernel that a CPU has. Filled with the shapes it is asked for."""
    triton_nms = pytest.importorskip("maskrcnn.ops.triton.nms")
    asked: list[tuple[int, ...]] = []

    def keep_rows(boxes: Tensor, scores: Tensor, valid: Tensor, iou: float) -> Tensor:
        asked.append(tuple(scores.shape))
        kept: Tensor = nms_rows(boxes, scores.masked_fill(~valid, -torch.inf), iou)
        return kept

    monkeypatch.setattr(nms, "takes_own", lambda name, device: True)
    monkeypatch.setattr(triton_nms, "keep_rows", keep_rows)
    return asked


def test_all_levels_are_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = [(boxes_of(n), torch.rand(2, n), torch.rand(2, n) > 0.2) for n in (40, 7, 0, 21)]
    boxes, scores, valid = (list(side) for side in zip(*levels, strict=True))
    expected = nms.nms_keep_levels(boxes, scores, valid, 0.3)
    asked = through_rows(monkeypatch)
    for ours, theirs in zip(nms.nms_keep_levels(boxes, scores, valid, 0.3), expected, strict=True):
        assert torch.equal(ours, theirs)
    assert asked == [(8, 40)]
    assert not expected[0].all() and expected[0].any()


def test_all_classes_are_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes, scores, valid = boxes_of(60), torch.rand(2, 60), torch.rand(2, 60) > 0.2  # 20 RoIs of 3 classes
    expected = nms.nms_keep_batch(boxes, scores, valid, 0.3, classes=3)
    assert not torch.equal(expected, nms.nms_keep_batch(boxes, scores, valid, 0.3))
    asked = through_rows(monkeypatch)
    assert torch.equal(nms.nms_keep_batch(boxes, scores, valid, 0.3, classes=3), expected)
    assert asked == [(6, 20)]
