"""Checks on the NMS kernel; `test_triton_nms.py` runs them in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor

from maskrcnn.ops.triton.nms import _rounded_down, keep_rows


def clusters(count: int, around: int = 4) -> Tensor:
    centre = torch.randint(0, around, (count, 2)) * 40 + torch.randn(count, 2) * 4 + 50
    half = 12 + torch.rand(count, 2) * 10
    return torch.cat([centre - half, centre + half], dim=1)


def expected(boxes: Tensor, scores: Tensor, valid: Tensor, iou: float) -> Tensor:
    """torchvision's answer, row by row."""
    keep = torch.zeros_like(valid)
    for g in range(len(boxes)):
        rows = valid[g].nonzero().squeeze(1)
        keep[g, rows[torchvision.ops.nms(boxes[g, rows], scores[g, rows], iou)]] = True
    return keep


@pytest.mark.parametrize("iou", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_equals_torchvision_row_by_row(iou: float) -> None:
    boxes = torch.stack([clusters(150), clusters(150, 2), clusters(150)])  # the last block of 64 is not full
    scores, valid = torch.rand(3, 150), torch.rand(3, 150) > 0.3
    scores[1] = torch.randint(0, 5, (150,)) / 5  # ties
    valid[2] = False
    keep = keep_rows(boxes, scores, valid, iou)
    assert torch.equal(keep, expected(boxes, scores, valid, iou))
    assert keep[:2].any(dim=1).all() and not keep[2].any()


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65])
def test_any_number_of_boxes(count: int) -> None:
    boxes, scores = clusters(count)[None], torch.rand(1, count)
    for valid in (torch.ones(1, count, dtype=torch.bool), torch.zeros(1, count, dtype=torch.bool)):
        assert torch.equal(keep_rows(boxes, scores, valid, 0.5), expected(boxes, scores, valid, 0.5))


def test_a_chain_through_several_blocks() -> None:
    """Each box overlaps its neighbours only, so that what stays alternates, and each hangs on the one before."""
    x = torch.arange(130) * 4.0
    boxes = torch.stack([x, torch.zeros(130), x + 10, torch.full((130,), 10.0)], dim=1)[None]
    scores, valid = torch.linspace(1, 0, 130)[None], torch.ones(1, 130, dtype=torch.bool)
    keep = keep_rows(boxes, scores, valid, 0.3)
    assert keep[0, :4].tolist() == [True, False, True, False]
    assert torch.equal(keep, expected(boxes, scores, valid, 0.3))


def test_what_is_not_valid_may_hold_anything() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 10], [float("nan")] * 4, [float("inf")] * 4]])
    scores, valid = torch.tensor([[0.9, 0.8, float("nan"), float("inf")]]), torch.tensor([[False, True, False, False]])
    assert keep_rows(boxes, scores, valid, 0.5).tolist() == [[False, True, False, False]]


def test_empty_boxes_overlap_nothing() -> None:
    boxes, scores = torch.zeros(1, 3, 4), torch.rand(1, 3)
    assert keep_rows(boxes, scores, torch.ones(1, 3, dtype=torch.bool), 0.5).all()


def test_an_overlap_of_exactly_the_limit_stays() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 5.000003]]])
    scores, valid = torch.tensor([[0.9, 0.8, 0.7]]), torch.tensor([[True, True, False]])
    assert keep_rows(boxes, scores, valid, 0.5).tolist() == [[True, True, False]]
    valid = torch.tensor([[True, False, True]])
    assert keep_rows(boxes, scores, valid, 0.5).tolist() == [[True, False, False]]


@pytest.mark.parametrize("limit", [0.0, 0.1, 0.3, 0.5, 0.6, 0.7, 1.0])
def test_the_limit_in_float32_parts_the_same_numbers(limit: float) -> None:
    near = torch.tensor(limit)
    for value in (near, torch.nextafter(near, torch.tensor(2.0)), torch.nextafter(near, torch.tensor(-1.0))):
        assert (value.item() > limit) == (value > torch.tensor(_rounded_down(limit))).item()
