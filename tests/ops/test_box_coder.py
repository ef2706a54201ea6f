from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import _utils as peer

from maskrcnn.ops.box_coder import MIN_SIDE, BoxCoder

WEIGHTS = [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)]


def random_boxes(*shape: int) -> Tensor:
    corner = torch.rand(*shape, 2) * 500
    return torch.cat([corner, corner + 1 + torch.rand(*shape, 2) * 200], dim=-1)


def test_no_boxes() -> None:
    coder = BoxCoder()
    assert coder.encode(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 4)
    assert coder.decode(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 4)
    assert coder.decode(torch.zeros(0, 12), torch.zeros(0, 4)).shape == (0, 12)
    assert coder.decode(torch.zeros(0, 3, 4), torch.zeros(0, 1, 4)).shape == (0, 3, 4)


def test_encode_of_a_known_pair() -> None:
    box, gt_box = torch.tensor([[0.0, 0.0, 10.0, 20.0]]), torch.tensor([[5.0, 0.0, 25.0, 40.0]])
    expected = [1.0, 0.5, math.log(2), math.log(2)]
    assert BoxCoder().encode(box, gt_box)[0].tolist() == pytest.approx(expected)
    weighted = [10 * expected[0], 10 * expected[1], 5 * expected[2], 5 * expected[3]]
    assert BoxCoder((10, 10, 5, 5)).encode(box, gt_box)[0].tolist() == pytest.approx(weighted)


def test_zero_deltas_leave_a_box_where_it_is() -> None:
    boxes = random_boxes(20)
    torch.testing.assert_close(BoxCoder().decode(torch.zeros(20, 4), boxes), boxes)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_there_and_back(weights: tuple[float, float, float, float]) -> None:
    coder, boxes, gt_boxes = BoxCoder(weights), random_boxes(3, 50).double(), random_boxes(3, 50).double()
    torch.testing.assert_close(coder.decode(coder.encode(boxes, gt_boxes), boxes), gt_boxes)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_both_ways_equal_torchvision_bit_by_bit(weights: tuple[float, float, float, float]) -> None:
    coder, other = BoxCoder(weights), peer.BoxCoder(weights)
    boxes, gt_boxes, deltas = random_boxes(200), random_boxes(200), torch.randn(200, 4 * 5) * 3
    assert torch.equal(coder.encode(boxes, gt_boxes), other.encode_single(gt_boxes, boxes))
    assert torch.equal(coder.decode(deltas, boxes), other.decode_single(deltas, boxes))


def test_classes_side_by_side_or_in_a_dimension_of_their_own() -> None:
    boxes, deltas = random_boxes(30), torch.randn(30, 7, 4)
    coder = BoxCoder((10, 10, 5, 5))
    per_class = coder.decode(deltas, boxes[:, None])
    assert torch.equal(per_class.flatten(1), coder.decode(deltas.flatten(1), boxes))
    assert torch.equal(per_class[:, 3], coder.decode(deltas[:, 3], boxes))


def test_growth_is_cut() -> None:
    box = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    x1, y1, x2, y2 = BoxCoder().decode(torch.tensor([[0.0, 0.0, 50.0, 3e38]]), box)[0].tolist()
    assert (x2 - x1, y2 - y1) == pytest.approx((1000, 1000))
    wider = BoxCoder(max_log_scale=math.log(100)).decode(torch.tensor([[0.0, 0.0, 50.0, 50.0]]), box)[0]
    assert (wider[2] - wider[0]).item() == pytest.approx(1600)


def test_degenerate_boxes_give_finite_deltas() -> None:
    bad = torch.tensor([[5.0, 5.0, 5.0, 5.0], [9.0, 9.0, 3.0, 3.0], [0.0, 0.0, 0.0, 8.0]])
    good = random_boxes(3)
    for boxes, gt_boxes in ((bad, good), (good, bad), (bad, bad)):
        assert BoxCoder((10, 10, 5, 5)).encode(boxes, gt_boxes).isfinite().all()
    thin = torch.tensor([[5 - MIN_SIDE / 2, 5 - MIN_SIDE / 2, 5 + MIN_SIDE / 2, 5 + MIN_SIDE / 2]])
    to_empty, to_thin = BoxCoder().encode(good[:1], bad[:1]), BoxCoder().encode(good[:1], thin)
    torch.testing.assert_close(to_empty, to_thin, rtol=1e-3, atol=0)


def test_half_deltas_are_decoded_in_the_precision_of_the_boxes() -> None:
    boxes, deltas = random_boxes(20) + 1000, torch.randn(20, 4).bfloat16()
    decoded = BoxCoder().decode(deltas, boxes)
    assert decoded.dtype == torch.float32
    assert torch.equal(decoded, BoxCoder().decode(deltas.float(), boxes))


def test_decode_gradient() -> None:
    boxes, deltas = random_boxes(4).double(), torch.randn(4, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda d: BoxCoder((10, 10, 5, 5)).decode(d, boxes[:, None]), (deltas,))
