from __future__ import annotations

import torch
from torch import Tensor

from maskrcnn.ops import nms
from maskrcnn.ops.recorded import for_onnx, nms_rows, recording_for_onnx
from maskrcnn.ops.roi_align import roi_align_levels


def boxes_of(count: int) -> Tensor:
    corner = torch.rand(2, count, 2) * 80
    return torch.cat([corner, corner + 10 + torch.rand(2, count, 2) * 30], dim=2)


def test_only_inside_is_for_onnx() -> None:
    assert not for_onnx()
    with recording_for_onnx():
        assert for_onnx()
    assert not for_onnx()


def test_rows_are_suppressed_apart() -> None:
    boxes, scores = boxes_of(50), torch.rand(2, 50)
    scores[1, 20:] = -torch.inf
    keep = nms_rows(boxes, scores, 0.5)
    assert torch.equal(keep[0], nms.nms_keep(boxes[0], scores[0], 0.5))
    assert torch.equal(keep[1, :20], nms.nms_keep(boxes[1, :20], scores[1, :20], 0.5)) and not keep[1, 20:].any()
    assert nms_rows(torch.zeros(3, 0, 4), torch.zeros(3, 0), 0.5).shape == (3, 0)


def test_the_form_for_onnx_keeps_the_same() -> None:
    boxes, scores, valid = boxes_of(60), torch.rand(2, 60), torch.rand(2, 60) > 0.3
    boxes[~valid] = torch.nan
    for classes in (1, 3):
        plain = nms.nms_keep_batch(boxes, scores, valid, 0.4, classes=classes)
        with recording_for_onnx():
            assert torch.equal(nms.nms_keep_batch(boxes, scores, valid, 0.4, classes=classes), plain)
        one = nms.nms_keep(boxes[1], scores[1], 0.4, valid=valid[1], groups=torch.arange(60) % classes)
        assert torch.equal(plain[1], one)


class Keep(torch.nn.Module):
    def forward(self, boxes: Tensor, scores: Tensor) -> Tensor:
        return nms.nms_keep_batch(boxes, scores, scores > 0.5, 0.4, classes=3)


def test_a_graph_serves_any_number_of_pictures() -> None:
    import warnings

    free = {0: torch.export.Dim("pictures", min=1)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # raised by torchvision
        graph = torch.export.export(Keep(), (boxes_of(60), torch.rand(2, 60)), dynamic_shapes=(free, free)).module()
    for count in (1, 2, 5):
        boxes, scores = torch.cat([boxes_of(60)] * 3)[:count], torch.rand(count, 60)
        assert torch.equal(graph(boxes, scores), Keep()(boxes, scores))


def test_roi_align_of_both_forms_is_equal() -> None:
    maps = [torch.randn(2, 8, 32, 40), torch.randn(2, 8, 16, 20)]
    boxes, index, level = boxes_of(30).flatten(0, 1), torch.arange(60) // 30, torch.arange(60) % 2
    for ratio in (0, 2):
        plain = roi_align_levels(maps, boxes, index, level, 7, strides=(4, 8), sampling_ratio=ratio)
        with recording_for_onnx():
            recorded = roi_align_levels(maps, boxes, index, level, 7, strides=(4, 8), sampling_ratio=ratio)
        torch.testing.assert_close(recorded, plain, atol=1e-5, rtol=1e-5)
