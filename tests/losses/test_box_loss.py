"""The choice of RoIs, and the box head's loss in float64, RoI by RoI."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from maskrcnn.errors import InputError
from maskrcnn.losses.box_loss import BoxLossConfig, box_loss, sample_rois
from maskrcnn.losses.matcher import BACKGROUND, FOREGROUND
from maskrcnn.model.box_head import BoxOutputs
from maskrcnn.ops.box_coder import BoxCoder
from maskrcnn.structures import Target

CODER = BoxCoder((10.0, 10.0, 5.0, 5.0))


def everything(kind: Tensor, count: int, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return (kind == FOREGROUND).nonzero().squeeze(1), (kind == BACKGROUND).nonzero().squeeze(1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def target(boxes: list[list[float]], labels: list[int], crowd: list[bool] | None = None) -> Target:
    return Target(
        gt_boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        gt_labels=torch.tensor(labels, dtype=torch.int64),
        gt_masks=None,
        is_crowd=torch.tensor(crowd or [False] * len(boxes), dtype=torch.bool),
        size=(100, 100),
    )


CAT, DOG, FAR = [0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 40.0, 10.0], [60.0, 60.0, 80.0, 80.0]


def test_proposals_become_rois() -> None:
    proposals = torch.tensor([FAR, [21.0, 0.0, 41.0, 10.0], [0.0, 0.0, 10.0, 9.0], [0.0, 0.0, 10.0, 4.0]])
    rois = sample_rois(proposals, target([CAT, DOG], [3, 1]), generator(), BoxLossConfig(), everything)
    # foreground first; the objects' own boxes stand behind the proposals
    assert rois.boxes.tolist() == [[21, 0, 41, 10], [0, 0, 10, 9], CAT, DOG, FAR, [0, 0, 10, 4]]
    assert rois.labels.tolist() == [1, 3, 3, 1, 0, 0]
    assert rois.matched_gt_index.tolist() == [1, 0, 0, 1, 0, 0]
    assert rois.is_foreground.tolist() == [True] * 4 + [False] * 2


def test_a_crowd_is_no_object_and_hides_background() -> None:
    truth = target([[50.0, 50.0, 100.0, 100.0], CAT], [2, 3], [True, False])
    rois = sample_rois(torch.tensor([FAR, CAT]), truth, generator(), BoxLossConfig(), everything)
    assert rois.boxes.tolist() == [CAT, CAT]
    assert rois.labels.tolist() == [3, 3]
    assert rois.matched_gt_index.tolist() == [0, 0]  # counted without the crowd


@pytest.mark.parametrize("proposals", [0, 5])
def test_no_objects(proposals: int) -> None:
    boxes = torch.rand(proposals, 2).repeat(1, 2) * 50 + torch.tensor([0.0, 0.0, 10.0, 10.0])
    rois = sample_rois(boxes, target([], []), generator(), BoxLossConfig())
    assert torch.equal(rois.boxes, boxes)
    assert rois.labels.tolist() == rois.matched_gt_index.tolist() == [0] * proposals


def test_without_proposals_the_objects_themselves_are_learned() -> None:
    rois = sample_rois(torch.zeros(0, 4), target([CAT, DOG], [3, 1]), generator(), BoxLossConfig())
    assert rois.boxes.tolist() == [CAT, DOG] and rois.labels.tolist() == [3, 1]


def test_at_most_a_quarter_is_foreground() -> None:
    proposals = torch.cat([torch.tensor([CAT]).repeat(100, 1), torch.tensor([FAR]).repeat(100, 1)])
    rois = sample_rois(proposals, target([CAT], [1]), generator(), BoxLossConfig(rois_per_image=40))
    assert rois.labels.tolist() == [1] * 10 + [0] * 30


def test_the_seed_chooses() -> None:
    proposals = torch.cat([torch.rand(200, 2), 2 + torch.rand(200, 2)], dim=1) * 10
    truth, config = target([CAT], [1]), BoxLossConfig(rois_per_image=20)
    first, again, other = (sample_rois(proposals, truth, generator(seed), config).boxes for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_rois_have_no_gradient() -> None:
    proposals = torch.tensor([CAT], requires_grad=True)
    assert not sample_rois(proposals, target([CAT], [1]), generator(), BoxLossConfig()).boxes.requires_grad


def smooth_l1(difference: float, beta: float) -> float:
    size = abs(difference)
    return 0.5 * size**2 / beta if size < beta else size - 0.5 * beta


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("beta", [0.0, 1 / 9, 1.0])
def test_equals_a_slow_loop(agnostic: bool, beta: float) -> None:
    rois, classes = 30, 4
    labels = torch.randint(0, classes + 1, (rois,))
    corner = torch.rand(rois, 2) * 50
    boxes, matched = (torch.cat([corner, corner + 5 + torch.rand(rois, 2) * 20], dim=1) for _ in range(2))
    out = BoxOutputs(torch.randn(rois, classes + 1), torch.randn(rois, 1 if agnostic else classes, 4))
    class_loss = delta_loss = 0.0
    for r, label in enumerate(labels.tolist()):
        exponentials = [math.exp(v) for v in out.class_logits[r].tolist()]
        class_loss -= math.log(exponentials[label] / sum(exponentials))
        if label == 0:
            continue
        (x1, y1, x2, y2), (a1, b1, a2, b2) = matched[r].tolist(), boxes[r].tolist()
        w, h = a2 - a1, b2 - b1
        wanted = [
            10 * ((x1 + x2) / 2 - (a1 + a2) / 2) / w,
            10 * ((y1 + y2) / 2 - (b1 + b2) / 2) / h,
            5 * math.log((x2 - x1) / w),
            5 * math.log((y2 - y1) / h),
        ]
        found = out.deltas[r, 0 if agnostic else label - 1].tolist()
        delta_loss += sum(smooth_l1(d - t, beta) for d, t in zip(found, wanted, strict=True))
    losses = box_loss(out, boxes, labels, matched, CODER, BoxLossConfig(beta=beta))
    assert list(losses) == ["box_class", "box_delta"]
    assert losses["box_class"].item() == pytest.approx(class_loss / rois, rel=1e-5)
    assert losses["box_delta"].item() == pytest.approx(delta_loss / rois, rel=1e-4)


@pytest.mark.parametrize("count", [0, 3])
def test_without_foreground(count: int) -> None:
    out = BoxOutputs(torch.randn(count, 5, requires_grad=True), torch.randn(count, 4, 4, requires_grad=True))
    background = torch.zeros(count, dtype=torch.int64)
    losses = box_loss(out, torch.rand(count, 4), background, torch.rand(count, 4), CODER, BoxLossConfig())
    assert losses["box_delta"] == 0 and (losses["box_class"] > 0) == (count > 0)
    (losses["box_class"] + losses["box_delta"]).backward()
    for tensor in (out.class_logits, out.deltas):
        assert tensor.grad is not None and tensor.grad.isfinite().all()


def test_other_classes_boxes_do_not_learn() -> None:
    out = BoxOutputs(torch.randn(2, 4), torch.randn(2, 3, 4, requires_grad=True))
    box_loss(out, torch.tensor([CAT, DOG]), torch.tensor([2, 0]), torch.tensor([DOG, DOG]), CODER, BoxLossConfig())[
        "box_delta"
    ].backward()
    gradient = out.deltas.grad
    assert gradient is not None
    assert gradient.ne(0).any(dim=2).tolist() == [[False, True, False], [False, False, False]]


@pytest.mark.parametrize(
    ("name", "value"), [("rois_per_image", 0), ("foreground_fraction", 2.0), ("foreground_iou", -1.0)]
)
def test_impossible_values(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"BoxLossConfig\.{name}: impossible value; found {value}"):
        BoxLossConfig(**{name: value})  # type: ignore[arg-type]
