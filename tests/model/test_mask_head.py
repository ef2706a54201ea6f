"""One mask a class; only that of the asked class is made."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maskrcnn.model.mask_head import MaskHead, MaskHeadConfig


def head(side: int = 28, classes: int = 4, agnostic: bool = False, num_convs: int = 2, channels: int = 8) -> MaskHead:
    config = MaskHeadConfig(side=side, num_convs=num_convs, channels=channels, class_agnostic=agnostic)
    made = MaskHead(config, 6, classes)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


@pytest.mark.parametrize("side", [3, 14, 15, 28, 56])
@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("num_convs", [0, 2])
def test_the_asked_class_is_one_of_all(side: int, agnostic: bool, num_convs: int) -> None:
    model = head(side, agnostic=agnostic, num_convs=num_convs)
    pooled, labels = torch.randn(7, 6, side // 2, side // 2), torch.tensor([1, 4, 2, 3, 1, 1, 4])
    logits, of_all = model(pooled, labels), model.all_classes(pooled)
    assert model.config.pooled_side == side // 2
    assert logits.shape == (7, side, side)
    assert of_all.shape == (7, 1 if agnostic else 4, side, side)
    expected = of_all[:, 0] if agnostic else of_all[torch.arange(7), labels - 1]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_all_classes_equal_the_layers_one_after_another() -> None:
    model, pooled = head(), torch.randn(3, 6, 14, 14)
    x = pooled
    for block in model.convs:
        x = F.conv2d(x, block.conv.weight, block.conv.bias, padding=1).relu()
    x = F.conv_transpose2d(x, model.deconv.weight, model.deconv.bias, stride=2).relu()
    expected = F.conv2d(x, model.masks.weight, model.masks.bias)
    torch.testing.assert_close(model.all_classes(pooled), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("agnostic", [False, True])
def test_no_rois(agnostic: bool) -> None:
    model = head(agnostic=agnostic)
    assert model(torch.zeros(0, 6, 14, 14), torch.zeros(0, dtype=torch.int64)).shape == (0, 28, 28)
    assert model.all_classes(torch.zeros(0, 6, 14, 14)).shape == (0, 1 if agnostic else 4, 28, 28)


def test_rows_without_a_label_are_harmless() -> None:
    assert head()(torch.randn(2, 6, 14, 14), torch.tensor([0, 3])).isfinite().all()


def test_only_the_asked_classes_learn() -> None:
    model = head()
    model(torch.randn(2, 6, 14, 14), torch.tensor([2, 4])).sum().backward()
    gradient = model.masks.weight.grad
    assert gradient is not None
    assert gradient.flatten(1).any(dim=1).tolist() == [False, True, False, True]
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_half_precision_gives_full_precision_logits() -> None:
    model, pooled, labels = head(), torch.randn(3, 6, 14, 14), torch.tensor([1, 2, 3])
    with torch.autocast("cpu", torch.bfloat16):
        logits, of_all = model(pooled, labels), model.all_classes(pooled)
    assert logits.dtype == of_all.dtype == torch.float32
    torch.testing.assert_close(logits, model(pooled, labels), atol=0.2, rtol=0.1)


def test_with_a_norm() -> None:
    model = MaskHead(MaskHeadConfig(num_convs=3, channels=8, norm="group"), 6, 2)
    assert sum(isinstance(module, nn.GroupNorm) for module in model.modules()) == 3
    assert model(torch.randn(2, 6, 14, 14), torch.tensor([1, 2])).shape == (2, 28, 28)
