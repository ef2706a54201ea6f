from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor

from maskrcnn.ops import boxes as B


def random_boxes(count: int, side: float = 100.0) -> Tensor:
    corners = torch.rand(count, 2, 2) * side
    return torch.cat([corners.amin(1), corners.amax(1)], dim=1)


@pytest.mark.parametrize(("a", "b"), [(0, 0), (0, 3), (3, 0)])
def test_no_boxes_give_empty_tables(a: int, b: int) -> None:
    for pairwise in (B.iou, B.intersection, B.intersection_over_first):
        assert pairwise(torch.zeros(a, 4), torch.zeros(b, 4)).shape == (a, b)
    assert B.area(torch.zeros(0, 4)).shape == (0,)
    assert B.clip(torch.zeros(0, 4), 5, 5).shape == (0, 4)
    assert B.is_large_enough(torch.zeros(0, 4), 1.0).shape == (0,)
    assert B.scale(torch.zeros(0, 4), 2, 3).shape == B.to_xywh(torch.zeros(0, 4)).shape == (0, 4)


def test_area_of_small_cases() -> None:
    boxes = torch.tensor([[0, 0, 2, 3], [1, 1, 1, 5], [4, 4, 2, 2], [-1, -1, 1, 1]], dtype=torch.float32)
    assert B.area(boxes).tolist() == [6, 0, 0, 4]
    assert B.area(boxes.view(2, 2, 4)).tolist() == [[6, 0], [0, 4]]


def test_iou_of_small_cases() -> None:
    a = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    b = torch.tensor([[0, 0, 2, 2], [1, 0, 3, 2], [2, 2, 4, 4], [5, 5, 6, 6], [0, 0, 1, 1]], dtype=torch.float32)
    assert B.iou(a, b)[0].tolist() == pytest.approx([1, 1 / 3, 0, 0, 0.25])
    assert B.intersection(a, b)[0].tolist() == [4, 2, 0, 0, 1]


def test_iou_equals_torchvision() -> None:
    a, b = random_boxes(30), random_boxes(20)
    torch.testing.assert_close(B.iou(a, b), torchvision.ops.box_iou(a, b))


def test_iou_between_empty_boxes_is_zero_not_nan() -> None:
    points = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 3.0, 4.0, 3.0]])
    assert B.iou(points, points).eq(0).all()
    assert B.intersection_over_first(points, random_boxes(3)).eq(0).all()


def test_intersection_over_first_of_a_box_inside_a_crowd_is_one() -> None:
    box, crowd = torch.tensor([[2.0, 2.0, 4.0, 4.0]]), torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    assert B.intersection_over_first(box, crowd).item() == 1.0
    assert B.intersection_over_first(crowd, box).item() == pytest.approx(0.04)


def test_clip_by_numbers_equals_torchvision() -> None:
    boxes = random_boxes(50) * 2 - 50
    torch.testing.assert_close(
        B.clip(boxes, 60, 80), torchvision.ops.clip_boxes_to_image(boxes, (60, 80)), rtol=0, atol=0
    )


def test_clip_by_a_size_per_image() -> None:
    boxes = (random_boxes(12) * 2 - 50).view(2, 6, 4)
    sizes = torch.tensor([[60.0, 80.0], [30.0, 20.0]])
    clipped = B.clip(boxes, sizes[:, :1], sizes[:, 1:])
    for image, (height, width) in enumerate(sizes.tolist()):
        assert torch.equal(clipped[image], B.clip(boxes[image], height, width))


def test_clip_keeps_the_dtype_of_the_boxes() -> None:
    limit = torch.tensor([[10.0]], dtype=torch.float64)
    assert B.clip(torch.rand(1, 3, 4), limit, limit).dtype == torch.float32


def test_is_large_enough_wants_both_sides_and_no_nan() -> None:
    boxes = torch.tensor([[0, 0, 2, 2], [0, 0, 1.9, 5], [0, 0, 5, 1.9], [3, 3, 0, 0], [0, 0, float("nan"), 5]])
    assert B.is_large_enough(boxes, 2.0).tolist() == [True, False, False, False, False]


def test_scale_multiplies_rows_and_columns() -> None:
    assert B.scale(torch.tensor([1.0, 2.0, 3.0, 4.0]), 10, 2).tolist() == [2, 20, 6, 40]
    per_image = B.scale(torch.ones(2, 3, 4), torch.tensor([[2.0], [3.0]]), torch.tensor([[4.0], [5.0]]))
    assert per_image[:, 0].tolist() == [[4, 2, 4, 2], [5, 3, 5, 3]]


def test_xywh_there_and_back() -> None:
    boxes = random_boxes(40)
    torch.testing.assert_close(B.from_xywh(B.to_xywh(boxes)), boxes)
    assert B.to_xywh(torch.tensor([1.0, 2.0, 4.0, 8.0])).tolist() == [1, 2, 3, 6]
