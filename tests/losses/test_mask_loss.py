from __future__ import annotations

import math

import pytest
import torch

from maskrcnn.losses.mask_loss import mask_loss


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
