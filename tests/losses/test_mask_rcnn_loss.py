"""The learning lane: its parts and their sum, pictures without objects or masks, one picture against a batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from maskrcnn.errors import InputError
from maskrcnn.losses.mask_loss import MaskLossConfig
from maskrcnn.losses.mask_rcnn_loss import LossConfig, MaskRCNNLoss
from maskrcnn.losses.matcher import FOREGROUND
from maskrcnn.losses.sampler import sample
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.structures import GtMasks, ImageBatch, PolygonShape, Target

PARTS = ["rpn_objectness", "rpn_box", "box_class", "box_delta", "mask"]
OBJECTS = [[4.0, 6.0, 30.0, 28.0], [35.0, 10.0, 60.0, 60.0], [2.0, 40.0, 20.0, 60.0]]


def target(boxes: list[list[float]], *, masks: bool = True, crowd: int | None = None, seed: int = 0) -> Target:
    """Diamonds in their boxes; labels 1, 2, 3, 1, ...; object number `crowd` is a crowd region."""
    rings = [np.array([[(a + c) / 2, b], [c, (b + d) / 2], [(a + c) / 2, d], [a, (b + d) / 2]]) for a, b, c, d in boxes]
    return Target(
        gt_boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        gt_labels=torch.arange(len(boxes)) % 3 + 1,
        gt_masks=GtMasks(tuple(PolygonShape((ring,)) for ring in rings)) if masks else None,
        is_crowd=torch.arange(len(boxes)) == (-1 if crowd is None else crowd),
        size=(64, 64),
        sampling_seed=seed,
    )


def batch(model: MaskRCNN, count: int) -> ImageBatch:
    return model.preprocess.batch([torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8) for _ in range(count)])


class Noting:
    """The usual sampler, which keeps a note of what it chose: RPN picture by picture, then RoIs likewise."""

    def __init__(self) -> None:
        self.chosen: list[tuple[Tensor, Tensor]] = []

    def __call__(self, kind: Tensor, count: int, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        self.chosen.append(sample(kind, count, fraction, generator))
        return self.chosen[-1]


def assert_all_learn(model: MaskRCNN, total: Tensor) -> None:
    assert total.isfinite()
    model.zero_grad()
    total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_parts_and_their_weighted_sum(tiny_model: MaskRCNN, tiny_losses: LossConfig) -> None:
    config = replace(
        tiny_losses,
        rpn=replace(tiny_losses.rpn, objectness_weight=2.0, box_weight=3.0),
        box=replace(tiny_losses.box, class_weight=5.0, box_weight=7.0),
        mask=MaskLossConfig(weight=11.0),
    )
    pictures, targets = batch(tiny_model, 2), [target(OBJECTS), target(OBJECTS[:1])]
    losses = MaskRCNNLoss(tiny_model, config)(pictures, targets)
    assert list(losses) == ["total", *PARTS]
    assert all(losses[name] > 0 for name in PARTS)
    expected = sum(weight * losses[name].item() for weight, name in zip((2, 3, 5, 7, 11), PARTS, strict=True))
    assert losses["total"].item() == pytest.approx(expected, rel=1e-6)
    plain = MaskRCNNLoss(tiny_model, tiny_losses)(pictures, targets)
    assert all(torch.equal(plain[name], losses[name]) for name in PARTS)
    assert plain["total"].item() == pytest.approx(sum(plain[name].item() for name in PARTS), rel=1e-6)


def test_every_weight_learns(tiny_model: MaskRCNN, tiny_losses: LossConfig) -> None:
    large = [[2.0, 2.0, 62.0, 63.0]]  # for p5
    losses = MaskRCNNLoss(tiny_model, tiny_losses)(batch(tiny_model, 2), [target(OBJECTS), target(large)])
    assert_all_learn(tiny_model, losses["total"])
    assert all(parameter.grad.any() for parameter in tiny_model.parameters() if parameter.grad is not None)


def test_values_at_the_start_are_those_of_guessing(tiny_model: MaskRCNN, tiny_losses: LossConfig) -> None:
    losses = MaskRCNNLoss(tiny_model, tiny_losses)(batch(tiny_model, 2), [target(OBJECTS)] * 2)
    assert losses["rpn_objectness"].item() == pytest.approx(np.log(2), rel=0.1)
    assert losses["box_class"].item() == pytest.approx(np.log(4), rel=0.1)
    assert losses["mask"].item() == pytest.approx(np.log(2), rel=0.1)


@pytest.mark.parametrize("masks", [True, False])
def test_no_objects(tiny_model: MaskRCNN, tiny_losses: LossConfig, masks: bool) -> None:
    losses = MaskRCNNLoss(tiny_model, tiny_losses)(batch(tiny_model, 2), [target([], masks=masks)] * 2)
    assert losses["rpn_box"] == losses["box_delta"] == losses["mask"] == 0
    assert losses["rpn_objectness"] > 0 and losses["box_class"] > 0
    assert_all_learn(tiny_model, losses["total"])


def test_neither_objects_nor_proposals(tiny_config: MaskRCNNConfig, tiny_losses: LossConfig) -> None:
    model = MaskRCNN(replace(tiny_config, rpn=replace(tiny_config.rpn, min_size=1000.0)))
    losses = MaskRCNNLoss(model, tiny_losses)(batch(model, 2), [target([])] * 2)
    assert losses["box_class"] == losses["box_delta"] == losses["mask"] == 0
    assert_all_learn(model, losses["total"])


def test_only_crowds(tiny_model: MaskRCNN, tiny_losses: LossConfig) -> None:
    losses = MaskRCNNLoss(tiny_model, tiny_losses)(batch(tiny_model, 1), [target(OBJECTS[:1], crowd=0)])
    assert losses["rpn_box"] == losses["box_delta"] == losses["mask"] == 0
    assert_all_learn(tiny_model, losses["total"])


def test_objects_without_masks(tiny_model: MaskRCNN, tiny_losses: LossConfig) -> None:
    losses = MaskRCNNLoss(tiny_model, tiny_losses)(batch(tiny_model, 2), [target(OBJECTS, masks=False)] * 2)
    assert losses["box_delta"] > 0 and losses["mask"] == 0
    assert_all_learn(tiny_model, losses["total"])
    assert tiny_model.mask_head is not None
    assert not any(p.grad.any() for p in tiny_model.mask_head.parameters() if p.grad is not None)


def test_a_picture_without_masks_leaves_the_mask_loss_of_the_other(
    tiny_model: MaskRCNN, tiny_losses: LossConfig
) -> None:
    pictures, loss = batch(tiny_model, 2), MaskRCNNLoss(tiny_model, tiny_losses)
    mixed = loss(pictures, [target(OBJECTS, masks=False), target(OBJECTS, seed=3)])
    alone = loss(
        replace(pictures, pixels=pictures.pixels[1:], image_sizes=pictures.image_sizes[1:]), [target(OBJECTS, seed=3)]
    )
    assert mixed["mask"].item() == pytest.approx(alone["mask"].item(), rel=1e-4)


def test_without_a_mask_head(tiny_config: MaskRCNNConfig, tiny_losses: LossConfig) -> None:
    model = MaskRCNN(replace(tiny_config, mask_head=None))
    losses = MaskRCNNLoss(model, tiny_losses)(batch(model, 1), [target(OBJECTS)])
    assert list(losses) == ["total", *PARTS[:-1]]
    assert_all_learn(model, losses["total"])


def test_one_picture_and_a_batch_agree(tiny_model: MaskRCNN, tiny_losses: LossConfig) -> None:
    targets = [target(OBJECTS, seed=1), target(OBJECTS[:1], seed=2), target([], seed=3)]
    pictures, together = batch(tiny_model, 3), Noting()
    losses = MaskRCNNLoss(tiny_model, tiny_losses, together)(pictures, targets)
    sums, counts = dict.fromkeys(PARTS, 0.0), dict.fromkeys(PARTS, 0)
    for i, truth in enumerate(targets):
        one, alone = slice(i, i + 1), Noting()
        part = replace(pictures, pixels=pictures.pixels[one], image_sizes=pictures.image_sizes[one])
        values = MaskRCNNLoss(tiny_model, tiny_losses, alone)(part, [truth])
        for chosen, again in zip(alone.chosen, (together.chosen[i], together.chosen[3 + i]), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(chosen, again, strict=True))
        (objects, rest), (foreground, background) = alone.chosen
        anchors, rois = len(objects) + len(rest), len(foreground) + len(background)
        for name, count in zip(PARTS, (anchors, anchors, rois, rois, len(foreground)), strict=True):
            sums[name] += values[name].item() * count
            counts[name] += count
    for name in PARTS:
        assert losses[name].item() == pytest.approx(sums[name] / counts[name], rel=1e-4)


def test_the_same_seeds_give_the_same_losses(tiny_model: MaskRCNN, tiny_losses: LossConfig) -> None:
    pictures, loss = batch(tiny_model, 1), MaskRCNNLoss(tiny_model, tiny_losses)
    first, again, other = (loss(pictures, [target(OBJECTS, seed=seed)])["total"] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_learning_has_its_own_number_of_proposals(tiny_model: MaskRCNN, tiny_losses: LossConfig) -> None:
    for count in (5, 40):
        seen: list[int] = []

        def counting(
            kind: Tensor, limit: int, fraction: float, generator: torch.Generator, seen: list[int] = seen
        ) -> tuple[Tensor, Tensor]:
            seen.append(len(kind))
            return sample(kind, limit, fraction, generator)

        config = replace(tiny_losses, post_nms_top_n=count)
        MaskRCNNLoss(tiny_model, config, counting)(batch(tiny_model, 1), [target(OBJECTS)])
        assert seen[1] == count + len(OBJECTS)  # the objects' own boxes join


@pytest.mark.parametrize("crowd", [0, 1, 2])
@pytest.mark.parametrize("frame", [{}, {"square": 160, "place": "centre", "border": "black"}])
@pytest.mark.parametrize("corners", ["edges", "centres"])
def test_each_roi_learns_the_mask_of_its_own_object(
    tiny_config: MaskRCNNConfig,
    tiny_losses: LossConfig,
    crowd: int,
    frame: dict[str, Any],
    corners: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every foreground RoI is an object's own box here, whichever object is a crowd and wherever the picture lies."""
    rpn = replace(tiny_config.rpn, anchors=replace(tiny_config.rpn.anchors, corners=corners))
    tiny_model = MaskRCNN(replace(tiny_config, preprocess=replace(tiny_config.preprocess, **frame), rpn=rpn))

    def own_boxes(kind: Tensor, count: int, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        foreground, background = sample(kind, count, fraction, generator)
        return (
            ((kind == FOREGROUND).nonzero().squeeze(1)[-2:], background[:3])
            if count == 16
            else (foreground, background)
        )

    seen: dict[str, Tensor] = {}

    def noting(logits: Tensor, gt_masks: Tensor, is_foreground: Tensor) -> dict[str, Tensor]:
        seen["masks"] = gt_masks
        return {"mask": logits.sum() * 0}

    monkeypatch.setattr("maskrcnn.losses.mask_rcnn_loss.mask_loss", noting)
    truth = target(OBJECTS, crowd=crowd)
    truth = replace(truth, gt_masks=masks_of_width(OBJECTS))
    MaskRCNNLoss(tiny_model, tiny_losses, own_boxes)(batch(tiny_model, 1), [truth])
    columns = [mask.any(dim=0).sum().item() for mask in seen["masks"]]
    assert columns == [width for i, width in enumerate((3, 7, 14)) if i != crowd]


def masks_of_width(boxes: list[list[float]]) -> GtMasks:
    """The left 3 / 14, the left half and the whole of three boxes."""
    shapes = []
    for (x1, y1, x2, y2), part in zip(boxes, (3 / 14, 0.5, 1.0), strict=True):
        right = x1 + (x2 - x1) * part
        shapes.append(PolygonShape((np.array([[x1, y1], [right, y1], [right, y2], [x1, y2]]),)))
    return GtMasks(tuple(shapes))


def test_a_few_steps_lower_the_loss(tiny_model: MaskRCNN, tiny_losses: LossConfig) -> None:
    pictures, targets = batch(tiny_model, 2), [target(OBJECTS, seed=1), target(OBJECTS[:2], seed=2)]
    loss, optimizer = MaskRCNNLoss(tiny_model, tiny_losses), torch.optim.Adam(tiny_model.parameters(), lr=1e-2)
    totals = []
    for _ in range(15):
        total = loss(pictures, targets)["total"]
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.7 * totals[0]


def test_learning_in_frames_of_its_own(tiny_config: MaskRCNNConfig, tiny_losses: LossConfig) -> None:
    """Pictures in the middle, corners in the centres of pixels, levels together, crops instead of RoIAlign."""
    anchors = replace(tiny_config.rpn.anchors, corners="centres")
    config = replace(
        tiny_config,
        preprocess=replace(tiny_config.preprocess, square=96, place="centre", border="black"),
        rpn=replace(tiny_config.rpn, anchors=anchors, levels_together=True, cut_to="padded", min_size=0.0),
        roi_pooler=replace(tiny_config.roi_pooler, method="crop", nearest_level=True),
    )
    model = MaskRCNN(config)
    pictures, targets = batch(model, 2), [target(OBJECTS, seed=1), target(OBJECTS[:2], seed=2)]
    assert pictures.pixels.shape == (2, 3, 96, 96)
    loss, optimizer = MaskRCNNLoss(model, tiny_losses), torch.optim.Adam(model.parameters(), lr=1e-2)
    totals = []
    for _ in range(15):
        total = loss(pictures, targets)["total"]
        assert_all_learn(model, total)
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.7 * totals[0]


def with_proposals(made: Target, boxes: list[list[float]]) -> Target:
    return replace(made, proposals=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))


@pytest.mark.parametrize("learn", ["rpn", "heads"])
def test_a_part_alone(tiny_model: MaskRCNN, tiny_losses: LossConfig, learn: Any) -> None:
    """The same numbers as in the sum of all, and the other part's weights get no gradient."""
    pictures, targets = batch(tiny_model, 2), [target(OBJECTS, seed=3), target(OBJECTS[:1], seed=4)]
    whole = MaskRCNNLoss(tiny_model, tiny_losses)(pictures, targets)
    part = MaskRCNNLoss(tiny_model, replace(tiny_losses, learn=learn))(pictures, targets)
    assert list(part) == ["total", *(PARTS[:2] if learn == "rpn" else PARTS[2:])]
    if learn == "rpn":  # heads alone draw other RoIs: their generators come fresh
        assert all(torch.equal(part[name], whole[name]) for name in PARTS[:2])
    tiny_model.zero_grad()
    part["total"].backward()
    learns = {name.split(".")[0] for name, weight in tiny_model.named_parameters() if weight.grad is not None}
    expected = {"rpn"} if learn == "rpn" else {"box_head", "mask_head"}
    assert learns == {"backbone", "fpn"} | expected


def test_given_proposals_are_what_the_heads_learn_from(tiny_config: MaskRCNNConfig, tiny_losses: LossConfig) -> None:
    """Fast R-CNN: with the objects' own boxes and one far from all, those and no others are sampled."""
    model = MaskRCNN(replace(tiny_config, rpn=None))
    far = [[40.0, 0.0, 63.0, 9.0]]
    noting = Noting()
    losses = MaskRCNNLoss(model, tiny_losses, noting)(
        batch(model, 2), [with_proposals(target(OBJECTS), OBJECTS + far), with_proposals(target(OBJECTS), [])]
    )
    assert list(losses) == ["total", "box_class", "box_delta", "mask"]
    (foreground, background), (only, nothing) = noting.chosen
    assert len(foreground) <= 2 * len(OBJECTS) and background.tolist() == [len(OBJECTS)]  # the far one
    assert set(only.tolist()) <= {0, 1, 2} and len(nothing) == 0  # without proposals: the objects themselves
    assert_all_learn(model, losses["total"])


def test_given_proposals_take_the_place_of_the_rpns(tiny_model: MaskRCNN, tiny_losses: LossConfig) -> None:
    noting = Noting()
    targets = [with_proposals(target(OBJECTS), [[0.0, 0.0, 9.0, 9.0]]), target(OBJECTS)]
    losses = MaskRCNNLoss(tiny_model, tiny_losses, noting)(batch(tiny_model, 2), targets)
    assert list(losses) == ["total", *PARTS]
    of_given, of_rpn = noting.chosen[2:]
    assert sum(map(len, of_given)) <= 1 + len(OBJECTS) < sum(map(len, of_rpn))


def test_no_rpn_and_no_proposals(tiny_config: MaskRCNNConfig, tiny_losses: LossConfig) -> None:
    model = MaskRCNN(replace(tiny_config, rpn=None))
    with pytest.raises(InputError, match=r"target\.proposals.*1 of 2"):
        MaskRCNNLoss(model, tiny_losses)(batch(model, 2), [with_proposals(target(OBJECTS), []), target(OBJECTS)])
    with pytest.raises(InputError, match="learn"):
        MaskRCNNLoss(model, replace(tiny_losses, learn="rpn"))
