"""Losses and AP of a validation."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from maskrcnn.data.shapes import ShapesDataset
from maskrcnn.losses.mask_rcnn_loss import LossConfig, MaskRCNNLoss
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.predictor import Predictor
from maskrcnn.structures import Target
from maskrcnn.training.validate import Validation, places, score, spread, validation_losses

LOSS = LossConfig(post_nms_top_n=50)


@pytest.fixture
def model(tiny_config: MaskRCNNConfig) -> MaskRCNN:
    torch.manual_seed(1)
    return MaskRCNN(tiny_config)


def test_losses_are_means_over_the_pictures(model: MaskRCNN, shapes: Any) -> None:
    """Pictures of the network's own size need no resize: the same as handing each to the loss."""
    expected: dict[str, float] = {}
    loss_model = MaskRCNNLoss(model.eval(), LOSS)
    for i in range(2):
        picture, target = shapes[1][i]
        with torch.no_grad():
            losses = loss_model(model.preprocess.batch([torch.from_numpy(picture).permute(2, 0, 1)]), [target])
        expected = {name: expected.get(name, 0) + float(value) / 2 for name, value in losses.items()}
    found = validation_losses(model, shapes[1], LOSS)
    assert found == pytest.approx(expected, rel=1e-5)
    assert found == validation_losses(model, shapes[1], LOSS)


def test_targets_follow_the_resize(tiny_config: MaskRCNNConfig, model: MaskRCNN) -> None:
    """A picture of twice the size is halved; its objects' boxes with it."""
    large = ShapesDataset(1, size=(128, 128), seed=3)
    seen: list[Target] = []
    real = MaskRCNNLoss.forward

    def forward(self: MaskRCNNLoss, batch: Any, targets: Any) -> Any:
        seen.extend(targets)
        return real(self, batch, targets)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MaskRCNNLoss, "forward", forward)
        validation_losses(model, large, LOSS)
    assert seen[0].size == (64, 64)
    assert torch.allclose(seen[0].gt_boxes, large.target(0).gt_boxes / 2)


def test_values_for_the_log(model: MaskRCNN, shapes: Any) -> None:
    evaluation = score(Predictor(model, "cpu"), shapes[1])
    result = Validation({"total": 2.0}, evaluation)
    assert evaluation.box.max_detections == (100, 300)
    assert evaluation.mask is not None and result.ap == evaluation.mask.ap
    assert set(result.values()) == {"loss_total", "mask_ap", "mask_ap50", "box_ap", "box_ap50"}


def test_detectors_of_more_are_scored_at_as_many(tiny_config: MaskRCNNConfig, shapes: Any) -> None:
    from dataclasses import replace

    config = replace(tiny_config, detection=replace(tiny_config.detection, max_detections=700))
    assert score(Predictor(MaskRCNN(config), "cpu"), shapes[1]).box.max_detections == (100, 300, 700)


def test_no_object_no_ap(model: MaskRCNN) -> None:
    empty = Target(
        gt_boxes=torch.zeros(0, 4),
        gt_labels=torch.zeros(0, dtype=torch.int64),
        gt_masks=None,
        is_crowd=torch.zeros(0, dtype=torch.bool),
        size=(64, 64),
    )
    from maskrcnn.data.dataset import AdaptedSequence

    picture = ShapesDataset(1, size=(64, 64))[0][0]
    dataset = AdaptedSequence([(picture, empty)], ShapesDataset(1).classes)
    result = Validation(validation_losses(model, dataset, LOSS), score(Predictor(model, "cpu"), dataset))
    assert result.ap is None
    assert result.losses["mask"] == 0 < result.losses["rpn_objectness"]
    assert all(name.startswith("loss_") for name in result.values())


@pytest.mark.parametrize(
    ("length", "count", "expected"),
    [(10, 3, [0, 4, 9]), (10, 1, [0]), (3, 6, [0, 1, 2]), (1, 4, [0]), (100, 4, [0, 33, 66, 99])],
)
def test_places_are_spread_evenly(length: int, count: int, expected: list[int]) -> None:
    assert places(length, count) == expected


def test_a_part_of_the_data_set(shapes: Any) -> None:
    assert spread(shapes[0], None) is shapes[0] and spread(shapes[0], 6) is shapes[0]
    part = spread(shapes[0], 3)
    assert part.image_ids == (1, 3, 6)
