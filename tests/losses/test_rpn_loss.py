"""Eq. 1 of Ren et al. 2015 in float64, anchor by anchor."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from maskrcnn.errors import InputError
from maskrcnn.losses.matcher import BACKGROUND, FOREGROUND, match
from maskrcnn.losses.rpn_loss import RPNLossConfig, rpn_loss
from maskrcnn.losses.sampler import sample
from maskrcnn.model.rpn import RPNOutputs
from maskrcnn.structures import Target


def everything(kind: Tensor, count: int, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return (kind == FOREGROUND).nonzero().squeeze(1), (kind == BACKGROUND).nonzero().squeeze(1)


def outputs(images: int) -> RPNOutputs:
    anchors = []
    for count, side in ((40, 10.0), (15, 25.0)):
        centre = torch.rand(count, 2) * 60
        anchors.append(torch.cat([centre - side / 2, centre + side / 2], dim=1))
    return RPNOutputs(
        [torch.randn(images, len(a), requires_grad=True) for a in anchors],
        [torch.randn(images, len(a), 4, requires_grad=True) for a in anchors],
        anchors,
    )


def target(boxes: list[list[float]], crowd: list[bool] | None = None, seed: int = 0) -> Target:
    count = len(boxes)
    return Target(
        gt_boxes=torch.tensor(boxes, dtype=torch.float32).reshape(count, 4),
        gt_labels=torch.ones(count, dtype=torch.int64),
        gt_masks=None,
        is_crowd=torch.tensor(crowd or [False] * count, dtype=torch.bool),
        size=(60, 60),
        sampling_seed=seed,
    )


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(count)]


def smooth_l1(difference: float, beta: float) -> float:
    size = abs(difference)
    return 0.5 * size**2 / beta if size < beta else size - 0.5 * beta


def by_hand(out: RPNOutputs, targets: list[Target], config: RPNLossConfig) -> tuple[float, float]:
    logits, deltas = torch.cat(out.logits, 1).tolist(), torch.cat(out.deltas, 1).tolist()
    anchors, log_loss, box_loss, count = torch.cat(out.anchors), 0.0, 0.0, 0
    for i, truth in enumerate(targets):
        objects = truth.gt_boxes[~truth.is_crowd]
        matches = match(
            anchors,
            objects,
            foreground_iou=config.foreground_iou,
            background_iou=config.background_iou,
            keep_best=True,
            crowd_boxes=truth.gt_boxes[truth.is_crowd],
        )
        for a, (kind, anchor) in enumerate(zip(matches.kind.tolist(), anchors.tolist(), strict=True)):
            if kind not in (FOREGROUND, BACKGROUND):
                continue
            count += 1
            probability = 1 / (1 + math.exp(-logits[i][a]))
            log_loss -= math.log(probability if kind == FOREGROUND else 1 - probability)
            if kind == FOREGROUND:
                x1, y1, x2, y2 = objects[matches.matched_gt_index[a]].tolist()
                w, h = anchor[2] - anchor[0], anchor[3] - anchor[1]
                wanted = [
                    ((x1 + x2) / 2 - (anchor[0] + anchor[2]) / 2) / w,
                    ((y1 + y2) / 2 - (anchor[1] + anchor[3]) / 2) / h,
                    math.log((x2 - x1) / w),
                    math.log((y2 - y1) / h),
                ]
                box_loss += sum(smooth_l1(d - t, config.beta) for d, t in zip(deltas[i][a], wanted, strict=True))
    return log_loss / max(count, 1), box_loss / max(count, 1)


OBJECTS = [[5.0, 5.0, 18.0, 15.0], [30.0, 30.0, 55.0, 58.0], [40.0, 2.0, 48.0, 12.0]]


@pytest.mark.parametrize("beta", [0.0, 1 / 9, 1.0])
def test_equals_eq_1(beta: float) -> None:
    targets = [target(OBJECTS), target([]), target(OBJECTS, [False, True, False])]
    out, config = outputs(3), RPNLossConfig(foreground_iou=0.5, background_iou=0.2, beta=beta)
    losses = rpn_loss(out, targets, generators(3), config, everything)
    assert list(losses) == ["rpn_objectness", "rpn_box"]
    objectness, box = by_hand(out, targets, config)
    assert losses["rpn_objectness"].item() == pytest.approx(objectness, rel=1e-5)
    assert losses["rpn_box"].item() == pytest.approx(box, rel=1e-5)
    assert box > 0


def test_no_objects() -> None:
    out = outputs(2)
    losses = rpn_loss(out, [target([]), target([])], generators(2), RPNLossConfig())
    assert losses["rpn_objectness"] > 0 and losses["rpn_box"] == 0
    sum(losses.values(), torch.zeros(())).backward()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in (*out.logits, *out.deltas))


def test_nothing_to_learn_from() -> None:
    out = outputs(1)
    crowded = target([[-100.0, -100.0, 200.0, 200.0]], [True])
    losses = rpn_loss(out, [crowded], generators(1), RPNLossConfig())
    assert losses["rpn_objectness"] == 0 and losses["rpn_box"] == 0
    losses["rpn_objectness"].backward()
    assert all(tensor.grad is not None and not tensor.grad.any() for tensor in out.logits)


def test_only_sampled_anchors_learn() -> None:
    out, config = outputs(1), RPNLossConfig(anchors_per_image=8, foreground_iou=0.5, background_iou=0.3)
    losses = rpn_loss(out, [target(OBJECTS)], generators(1), config)
    sum(losses.values(), torch.zeros(())).backward()
    gradients = [tensor.grad for tensor in (*out.logits, *out.deltas)]
    assert all(gradient is not None for gradient in gradients)
    touched = torch.cat([g[0].ne(0) for g in gradients[:2] if g is not None])
    moved = torch.cat([g[0].ne(0).any(dim=1) for g in gradients[2:] if g is not None])
    assert touched.sum() == 8
    assert 1 <= moved.sum() <= 4  # half of them at most
    assert not (moved & ~touched).any()


def test_the_seed_of_a_picture_chooses_its_anchors() -> None:
    chosen: list[Tensor] = []

    def noting(kind: Tensor, count: int, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        foreground, background = sample(kind, count, fraction, generator)
        chosen.append(torch.cat([foreground, background]))
        return foreground, background

    out, config = outputs(3), RPNLossConfig(anchors_per_image=10)
    for seeds in ([1, 2, 1], [2]):
        made = [torch.Generator().manual_seed(seed) for seed in seeds]
        part = RPNOutputs([x[: len(seeds)] for x in out.logits], [x[: len(seeds)] for x in out.deltas], out.anchors)
        rpn_loss(part, [target(OBJECTS)] * len(seeds), made, config, noting)
    first, second, third, alone = chosen
    assert torch.equal(first, third) and torch.equal(second, alone)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("name", "value"),
    [("anchors_per_image", 0), ("foreground_fraction", 1.5), ("background_iou", 0.8), ("foreground_fraction", -0.1)],
)
def test_impossible_values(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"RPNLossConfig\.{name}: impossible value; found {value}"):
        RPNLossConfig(**{name: value})  # type: ignore[arg-type]
