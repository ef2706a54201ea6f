from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from maskrcnn.losses.mask_loss import competing_mask_loss, mask_loss
from maskrcnn.losses.mask_rcnn_loss import LossConfig, MaskRCNNLoss
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.model.preprocess import PreprocessConfig
from maskrcnn.structures import GtMasks, RasterShape, Target


def test_equals_a_slow_loop() -> None:
    logits, masks, is_foreground = torch.randn(5, 6, 6) * 3, torch.rand(5, 6, 6), torch.tensor([1, 1, 0, 1, 0]).bool()
    total = 0.0
    for r in (0, 1, 3):
        for z, t in zip(logits[r].flatten().tolist(), masks[r].flatten().tolist(), strict=True):
            p = 1 / (1 + math.exp(-z))
            total -= (t * math.log(p) + (1 - t) * math.log(1 - p)) / 36
    assert mask_loss(logits, masks, is_foreground)["mask"].item() == pytest.approx(total / 3, rel=1e-5)


def test_no_rois() -> None:
    logits = torch.zeros(0, 28, 28, requires_grad=True)
    loss = mask_loss(logits, torch.zeros(0, 28, 28), torch.zeros(0, dtype=torch.bool))["mask"]
    assert loss == 0
    loss.backward()
    assert logits.grad is not None


def test_a_roi_without_an_object_weighs_nothing() -> None:
    logits = torch.randn(2, 28, 28, requires_grad=True)
    loss = mask_loss(logits, torch.zeros(2, 28, 28), torch.tensor([False, False]))["mask"]
    loss.backward()
    assert loss == 0 and logits.grad is not None and not logits.grad.any()


def test_large_logits_stay_finite() -> None:
    logits = torch.tensor([[[-1e4, 1e4]]], requires_grad=True)
    loss = mask_loss(logits, torch.tensor([[[1.0, 0.0]]]), torch.tensor([True]))["mask"]
    loss.backward()
    assert loss == 1e4 and logits.grad is not None and logits.grad.tolist() == [[[-0.5, 0.5]]]


def test_competing_equals_a_slow_loop_of_cross_entropies() -> None:
    planes, labels = torch.randn(4, 4, 5, 5) * 3, torch.tensor([3, 0, 1, 3])
    masks = (torch.rand(4, 5, 5) > 0.4).float()
    total = 0.0
    for r in (0, 2, 3):
        for y in range(5):
            for x in range(5):
                pixel = labels[r] * int(masks[r, y, x])
                total += float(F.cross_entropy(planes[r, :, y, x], pixel)) / 25
    assert competing_mask_loss(planes, masks, labels)["mask"].item() == pytest.approx(total / 3, rel=1e-5)


def test_competing_of_one_class_is_the_sigmoid_loss() -> None:
    """Two planes and their softmax are one logit and its sigmoid, soft targets included."""
    planes, masks, labels = torch.randn(3, 2, 6, 6), torch.rand(3, 6, 6), torch.tensor([1, 0, 1])
    expected = mask_loss(planes[:, 1] - planes[:, 0], masks, labels > 0)["mask"]
    torch.testing.assert_close(competing_mask_loss(planes, masks, labels)["mask"], expected)


def test_competing_has_the_gradient_of_finite_differences() -> None:
    planes = torch.randn(3, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    masks, labels = torch.rand(3, 2, 2, dtype=torch.float64), torch.tensor([2, 0, 3])
    assert torch.autograd.gradcheck(lambda x: competing_mask_loss(x, masks, labels)["mask"], (planes,))


def test_competing_without_rois_or_objects() -> None:
    planes = torch.randn(2, 4, 6, 6, requires_grad=True)
    for some in (planes, planes[:0]):
        rows = some.shape[0]
        loss = competing_mask_loss(some, torch.zeros(rows, 6, 6), torch.zeros(rows, dtype=torch.int64))["mask"]
        loss.backward()
        assert loss == 0 and planes.grad is not None and not planes.grad.any()


@pytest.mark.parametrize(
    ("change", "at_first"), [({"classes": "competing"}, 4), ({"num_convs": 0, "num_fcs": 2, "fc_channels": 16}, 2)]
)
def test_a_detector_learns_masks_of_either_kind(
    tiny_config: MaskRCNNConfig, tiny_losses: LossConfig, change: dict[str, object], at_first: int
) -> None:
    """It starts at the loss of guessing among 3 classes and background, or 2 values, and comes down."""
    torch.manual_seed(0)
    assert tiny_config.mask_head is not None
    head = replace(tiny_config.mask_head, **change)  # type: ignore[arg-type]
    model = MaskRCNN(replace(tiny_config, preprocess=PreprocessConfig(shortest=64), mask_head=head))
    learner, optimizer = MaskRCNNLoss(model, tiny_losses), torch.optim.Adam(model.parameters(), lr=0.01)
    batch = model.preprocess.batch([torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)])
    half = GtMasks((RasterShape(np.ones((32, 16), dtype=np.uint8), left=8, top=8, size=(64, 64)),))
    box = torch.tensor([[8.0, 8.0, 40.0, 40.0]])
    target = Target(box, torch.tensor([2]), half, is_crowd=torch.tensor([False]), size=(64, 64))
    values = []
    for _ in range(15):
        losses = learner(batch, [target])
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
        values.append(losses["mask"].item())
    assert values[0] == pytest.approx(math.log(at_first), rel=0.1) and values[-1] < 0.7 * values[0]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.mask_heads[0].parameters())
