"""The keypoint loss: torchvision's on the same RoIs, what it is divided by, and its place in the learning lane."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import keypointrcnn_loss

from maskrcnn.errors import InputError
from maskrcnn.losses.keypoint_loss import NOTHING, KeypointLossConfig, keypoint_cells, keypoint_loss
from maskrcnn.losses.mask_rcnn_loss import LossConfig, MaskRCNNLoss
from maskrcnn.model.keypoint_head import KeypointHeadConfig
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.structures import GtKeypoints, ImageBatch, KeypointScheme, SampledRoIs, Target

SCHEME = KeypointScheme(("tip", "left", "right"), ((1, 2),))
HEAD = KeypointHeadConfig(scheme=SCHEME, num_convs=1, channels=8)
OBJECTS = [[4.0, 6.0, 30.0, 28.0], [35.0, 10.0, 60.0, 60.0], [2.0, 40.0, 20.0, 60.0]]


def target(boxes: list[list[float]], *, seen: int | None = 2, crowd: int | None = None, seed: int = 0) -> Target:
    """Each object's points lie in the middle and at two corners of its box, with visibility `seen`; None: no points."""
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    keypoints = None
    if seen is not None:
        places = torch.stack([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, :2], corners[:, 2:]], dim=1)
        points = torch.cat([places, torch.full((len(boxes), 3, 1), float(seen))], dim=2)
        keypoints = GtKeypoints(points, SCHEME)
    return Target(
        gt_boxes=corners,
        gt_labels=torch.arange(len(boxes)) % 3 + 1,
        gt_masks=None,
        is_crowd=torch.arange(len(boxes)) == (-1 if crowd is None else crowd),
        size=(64, 64),
        sampling_seed=seed,
        gt_keypoints=keypoints,
    )


def rois(boxes: list[list[float]], labels: list[int], objects: list[int]) -> SampledRoIs:
    return SampledRoIs(torch.tensor(boxes), torch.tensor(labels), torch.tensor(objects))


# --- the loss itself --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labelled", [0.0, 0.4, 0.9])
def test_torchvisions_value_and_gradient(labelled: float) -> None:
    truth = target(OBJECTS)
    points = torch.cat([60 * torch.rand(3, 3, 2), (torch.rand(3, 3, 1) < labelled).float()], dim=2)
    truth = replace(truth, gt_keypoints=GtKeypoints(points, SCHEME))
    near = 30 * torch.rand(20, 2)
    boxes, index = torch.cat([near, near + 5 + 25 * torch.rand(20, 2)], dim=1), torch.randint(0, 3, (20,))
    ours = torch.randn(20, 3, 56, 56, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    cells = keypoint_cells(SampledRoIs(boxes, torch.ones(20, dtype=torch.int64), index), truth, HEAD)
    loss = keypoint_loss(ours, cells, 1.0, KeypointLossConfig())["keypoint"]
    expected = keypointrcnn_loss(theirs, [boxes], [points], [index])
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert (loss > 0) == (cells != NOTHING).any() == (labelled > 0)
    assert ours.grad is not None and theirs.grad is not None
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-8)


def test_divided_by_what_was_possible() -> None:
    """As Detectron2 does it on demand: one visible keypoint of 48 possible weighs a 48th."""
    logits, cells = torch.randn(2, 3, 56, 56), torch.full((2, 3), NOTHING)
    cells[1, 2] = 77
    alone = keypoint_loss(logits, cells, 48.0, KeypointLossConfig())["keypoint"]
    among = keypoint_loss(logits, cells, 48.0, KeypointLossConfig(normalise="possible"))["keypoint"]
    assert alone.item() == pytest.approx(-logits[1, 2].flatten().log_softmax(0)[77].item(), rel=1e-5)
    assert among.item() == pytest.approx(alone.item() / 48, rel=1e-5)


def test_cells_belong_to_the_objects_that_are_no_crowd() -> None:
    boxes = [OBJECTS[1], OBJECTS[2], OBJECTS[1]]
    cells = keypoint_cells(rois(boxes, [2, 3, 0], [0, 1, 0]), target(OBJECTS, crowd=0), HEAD)
    middle, first, last = 28 * 56 + 28, 0, 56 * 56 - 1
    assert cells.tolist() == [[middle, first, last], [middle, first, last], [NOTHING] * 3]


@pytest.mark.parametrize("seen", [None, 0])
def test_nothing_is_labelled(seen: int | None) -> None:
    assert (keypoint_cells(rois(OBJECTS, [1, 2, 3], [0, 1, 2]), target(OBJECTS, seen=seen), HEAD) == NOTHING).all()


def test_no_rois() -> None:
    none = SampledRoIs(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    assert keypoint_cells(none, target([]), HEAD).shape == (0, 3)


@pytest.mark.parametrize(("field", "value"), [("weight", -1.0), ("rois_per_image", 0)])
def test_impossible_values(field: str, value: float) -> None:
    with pytest.raises(InputError, match=f"KeypointLossConfig.{field}"):
        KeypointLossConfig(**{field: value})  # type: ignore[arg-type]


# --- in the learning lane ---------------------------------------------------------------------------------------------


@pytest.fixture
def model(tiny_config: MaskRCNNConfig) -> MaskRCNN:
    return MaskRCNN(replace(tiny_config, mask_head=None, keypoint_head=HEAD))


def batch(model: MaskRCNN, count: int) -> ImageBatch:
    return model.preprocess.batch([torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8) for _ in range(count)])


def assert_all_learn(model: MaskRCNN, total: Tensor) -> None:
    assert total.isfinite()
    total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_a_part_with_its_weight(model: MaskRCNN, tiny_losses: LossConfig) -> None:
    pictures, targets = batch(model, 2), [target(OBJECTS), target(OBJECTS[:1])]
    plain = MaskRCNNLoss(model, tiny_losses)(pictures, targets)
    assert list(plain) == ["total", "rpn_objectness", "rpn_box", "box_class", "box_delta", "keypoint"]
    assert plain["keypoint"].item() == pytest.approx(torch.tensor(56.0 * 56).log().item(), rel=0.1)  # guessing
    heavy = MaskRCNNLoss(model, replace(tiny_losses, keypoint=KeypointLossConfig(weight=5.0)))(pictures, targets)
    assert heavy["keypoint"].item() == pytest.approx(plain["keypoint"].item(), rel=1e-5)
    assert (heavy["total"] - plain["total"]).item() == pytest.approx(4 * plain["keypoint"].item(), rel=1e-4)
    assert_all_learn(model, plain["total"])
    assert model.keypoint_head is not None and model.keypoint_head.deconv.weight.grad.any()  # type: ignore[union-attr]


def test_masks_and_keypoints_together(tiny_config: MaskRCNNConfig, tiny_losses: LossConfig) -> None:
    model = MaskRCNN(replace(tiny_config, keypoint_head=HEAD))
    losses = MaskRCNNLoss(model, tiny_losses)(batch(model, 1), [target(OBJECTS)])
    assert list(losses)[-2:] == ["mask", "keypoint"]
    assert losses["mask"] == 0 < losses["keypoint"]
    assert_all_learn(model, losses["total"])


@pytest.mark.parametrize(
    "targets",
    [
        [target([]), target([])],
        [target(OBJECTS, seen=None), target(OBJECTS, seen=0)],
        [target(OBJECTS[:1], crowd=0), target([], seen=None)],
    ],
    ids=["no objects", "none labelled", "crowd"],
)
def test_nothing_to_learn(model: MaskRCNN, tiny_losses: LossConfig, targets: list[Target]) -> None:
    losses = MaskRCNNLoss(model, tiny_losses)(batch(model, 2), targets)
    assert losses["keypoint"] == 0
    assert_all_learn(model, losses["total"])


def test_rois_without_keypoints_change_nothing(model: MaskRCNN, tiny_losses: LossConfig) -> None:
    """A picture whose points are not labelled leaves the loss of the other."""
    pictures, loss = batch(model, 2), MaskRCNNLoss(model, tiny_losses)
    both = loss(pictures, [target(OBJECTS, seen=0), target(OBJECTS, seed=3)])
    alone = replace(pictures, pixels=pictures.pixels[1:], image_sizes=pictures.image_sizes[1:])
    assert both["keypoint"].item() == pytest.approx(loss(alone, [target(OBJECTS, seed=3)])["keypoint"].item(), rel=1e-4)


def test_fewer_rois_on_demand(model: MaskRCNN, tiny_losses: LossConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def noting(logits: Tensor, cells: Tensor, possible: float, config: KeypointLossConfig) -> dict[str, Tensor]:
        seen.append(cells)
        return {"keypoint": logits.sum() * 0}

    monkeypatch.setattr("maskrcnn.losses.mask_rcnn_loss.keypoint_loss", noting)
    many = replace(tiny_losses, box=replace(tiny_losses.box, foreground_fraction=1.0, foreground_iou=0.1))
    few = replace(many, keypoint=KeypointLossConfig(rois_per_image=2))
    pictures, targets = batch(model, 1), [target(OBJECTS)]
    MaskRCNNLoss(model, many)(pictures, targets)
    MaskRCNNLoss(model, few)(pictures, targets)
    assert len(seen[0]) > 2 == len(seen[1])
    assert (seen[0] != NOTHING).any(dim=1).all()
