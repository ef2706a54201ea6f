from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor

from maskrcnn.ops import nms
from maskrcnn.ops.boxes import iou as box_iou


def greedy(overlap: Tensor, scores: Tensor, limit: float) -> Tensor:
    """The definition: from the best score down, a box stays unless a better one that stayed overlaps it too much."""
    keep = torch.zeros(len(scores), dtype=torch.bool)
    for i in sorted(range(len(scores)), key=lambda i: (-scores[i].item(), i)):
        keep[i] = not any(overlap[j, i] > limit for j in keep.nonzero().flatten())
    return keep


def clusters(count: int, around: int = 6) -> Tensor:
    centre = torch.randint(0, around, (count, 2)) * 40 + torch.randn(count, 2) * 4 + 50
    half = 12 + torch.rand(count, 2) * 10
    return torch.cat([centre - half, centre + half], dim=1)


def chain(count: int) -> Tensor:
    """Each box overlaps its neighbours only, so what stays alternates along the whole chain."""
    x = torch.arange(count) * 4.0
    return torch.stack([x, torch.zeros(count), x + 10, torch.full((count,), 10.0)], dim=1)


def test_no_boxes() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert nms.nms_keep(torch.zeros(0, 4), torch.zeros(0), 0.5).shape == (0,)
    assert nms.nms_keep(torch.zeros(0, 4), torch.zeros(0), 0.5, groups=none, valid=none.bool()).shape == (0,)
    assert nms.mask_nms_keep(torch.zeros(0, 0), torch.zeros(0), 0.5).shape == (0,)
    assert nms._keep_in_one_call(torch.zeros(0, 4), torch.zeros(0), none, 0.5).shape == (0,)


def test_one_box_stays() -> None:
    box, score = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([0.1])
    assert nms.nms_keep(box, score, 0.5, groups=torch.tensor([7])).tolist() == [True]
    assert nms.mask_nms_keep(torch.ones(1, 1), score, 0.5).tolist() == [True]


@pytest.mark.parametrize("limit", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("ties", [False, True])
def test_equals_the_definition_and_torchvision(limit: float, ties: bool) -> None:
    boxes = clusters(150)
    scores = torch.randint(0, 5, (150,)) / 5 if ties else torch.rand(150)
    keep = nms.nms_keep(boxes, scores, limit)
    assert torch.equal(keep, greedy(box_iou(boxes, boxes), scores, limit))
    assert torch.equal(keep.nonzero().flatten(), torchvision.ops.nms(boxes, scores, limit).sort().values)


def test_equal_scores_go_by_index() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).repeat(4, 1)
    assert nms.nms_keep(boxes, torch.ones(4), 0.5).tolist() == [True, False, False, False]
    assert nms.mask_nms_keep(torch.ones(4, 4), torch.ones(4), 0.5).tolist() == [True, False, False, False]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("num_groups", [1, 3, 80])
def test_groups_are_suppressed_apart_in_both_forms(num_groups: int, ties: bool) -> None:
    boxes, groups, valid = clusters(400) - 100, torch.randint(0, num_groups, (400,)), torch.rand(400) > 0.3
    scores = torch.randint(0, 5, (400,)) / 5 if ties else torch.rand(400)
    expected = torch.zeros(400, dtype=torch.bool)
    for group in range(num_groups):
        rows = ((groups == group) & valid).nonzero().flatten()
        expected[rows[torchvision.ops.nms(boxes[rows], scores[rows], 0.5)]] = True
    assert torch.equal(nms.nms_keep(boxes, scores, 0.5, valid=valid, groups=groups), expected)
    rows = valid.nonzero().flatten()
    assert torch.equal(nms._keep_in_one_call(boxes[rows], scores[rows], groups[rows], 0.5), expected[rows])


def test_the_group_does_not_change_the_iou() -> None:
    # The IoU lies 3e-7 above the limit; in float32 the offset of group 5000 would move it by far more.
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.000003]])
    groups = torch.tensor([5000, 5000])
    scores = torch.tensor([0.9, 0.8])
    assert nms._keep_in_one_call(boxes, scores, groups, 0.5).tolist() == [True, False]
    assert nms.nms_keep(boxes, scores, 0.5, groups=groups).tolist() == [True, False]


def test_rows_that_are_not_valid_suppress_nothing_whatever_they_hold() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 10.0], [float("nan")] * 4, [float("inf")] * 4])
    scores, valid = torch.tensor([0.9, 0.8, float("nan"), float("inf")]), torch.tensor([False, True, False, False])
    for groups in (None, torch.zeros(4, dtype=torch.int64)):
        assert nms.nms_keep(boxes, scores, 0.5, valid=valid, groups=groups).tolist() == [False, True, False, False]
    assert not nms.nms_keep(boxes, scores, 0.5, valid=torch.zeros(4, dtype=torch.bool)).any()


class Keep(torch.nn.Module):
    def forward(self, boxes: Tensor, scores: Tensor, valid: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
        grouped = nms.nms_keep(boxes, scores, 0.5, valid=valid, groups=groups)
        return grouped, nms.nms_keep(boxes, scores, 0.5, valid=valid)


@pytest.mark.filterwarnings("ignore:.*create_unbacked_symint:FutureWarning")  # raised by torchvision
def test_a_recorded_graph_serves_any_number_of_valid_rows() -> None:
    boxes, scores, groups = clusters(60), torch.rand(60), torch.randint(0, 4, (60,))
    graph = torch.export.export(Keep(), (boxes, scores, scores > 0.5, groups)).module()
    for count in (0, 1, 2, 60):
        valid = torch.arange(60) < count
        for ours, recorded in zip(
            Keep()(boxes, scores, valid, groups), graph(boxes, scores, valid, groups), strict=True
        ):
            assert torch.equal(ours, recorded)


def test_scores_of_lower_precision_than_the_boxes() -> None:
    boxes, scores = clusters(60), torch.rand(60).bfloat16()
    assert torch.equal(nms.nms_keep(boxes, scores, 0.5), nms.nms_keep(boxes, scores.float(), 0.5))


@pytest.mark.parametrize("make", [clusters, chain])
@pytest.mark.parametrize("ties", [False, True])
def test_on_a_matrix_equals_the_definition(make: Callable[[int], Tensor], ties: bool) -> None:
    boxes = make(120)
    scores = torch.ones(120) if ties else torch.linspace(1, 0, 120)
    overlap = box_iou(boxes, boxes)
    assert torch.equal(nms.mask_nms_keep(overlap, scores, 0.3), greedy(overlap, scores, 0.3))
    assert torch.equal(nms.mask_nms_keep(overlap, scores, 0.3), nms.nms_keep(boxes, scores, 0.3))


def test_top_k_sorts_and_points_back() -> None:
    scores = torch.randn(2, 3, 20)
    values, index = nms.top_k(scores, 5)
    assert torch.equal(values, scores.sort(dim=-1, descending=True).values[..., :5])
    assert torch.equal(scores.gather(-1, index), values)


@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_top_k_of_fewer_are_all(count: int, stable: bool) -> None:
    """However many are asked for: rows that hold nothing would take memory all the same."""
    scores = torch.rand(2, count)
    values, index = nms.top_k(scores, 10**20, stable=stable)
    assert values.shape == index.shape == (2, count)
    assert index.dtype == torch.int64
    assert torch.equal(values, scores.sort(descending=True).values)


def test_top_k_of_equal_scores_in_their_order() -> None:
    scores = torch.tensor([[1.0, 2.0] * 500, [1.0] * 1000])
    values, index = nms.top_k(scores, 600, stable=True)
    assert index[0].tolist() == [*range(1, 1000, 2), *range(0, 200, 2)]
    assert index[1].tolist() == list(range(600))
    assert torch.equal(values, scores.gather(1, index))
    values, index = nms.top_k(scores[:, :3], 5, stable=True)
    assert values.tolist() == [[2, 1, 1], [1, 1, 1]]
    assert index.tolist() == [[1, 0, 2], [0, 1, 2]]
