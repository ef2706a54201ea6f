from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from maskrcnn.model.layers import ConvNorm, conv_stack, init_conv, init_linear, make_norm


def test_a_norm_takes_the_place_of_the_bias() -> None:
    assert ConvNorm(4, 8, 3).conv.bias is not None
    assert ConvNorm(4, 8, 3, norm="batch").conv.bias is None
    assert ConvNorm(4, 8, 3, norm="group").conv.bias is None


@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (64, 32), (48, 16), (24, 8), (7, 1)])
def test_groups_divide_the_channels(channels: int, groups: int) -> None:
    norm = make_norm("group", channels)
    assert isinstance(norm, nn.GroupNorm)
    assert norm.num_groups == groups


def test_other_norms() -> None:
    assert isinstance(make_norm("batch", 5), nn.BatchNorm2d)
    assert isinstance(make_norm(None, 5), nn.Identity)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_conv_norm_keeps_the_size(kernel: int, count: int) -> None:
    y = ConvNorm(2, 3, kernel, relu=True)(torch.randn(count, 2, 5, 7))
    assert y.shape == (count, 3, 5, 7)
    assert (y >= 0).all()


def test_conv_norm_is_conv_then_norm_then_relu() -> None:
    block = ConvNorm(4, 8, 3, norm="group", relu=True)
    x = torch.randn(2, 4, 6, 6)
    y = nn.functional.conv2d(x, block.conv.weight, padding=1).reshape(2, 8, -1, 36)  # gcd(32, 8) = 8 groups of one
    y = (y - y.mean((2, 3), keepdim=True)) / (y.var((2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(block(x), y.relu().reshape(2, 8, 6, 6))


def test_a_stack_of_convolutions() -> None:
    assert len(conv_stack(4, 8, 0, None)) == 0
    stack = conv_stack(4, 8, 3, "group")
    assert [(block.conv.in_channels, block.conv.out_channels) for block in stack] == [(4, 8), (8, 8), (8, 8)]
    assert all(isinstance(block.norm, nn.GroupNorm) and isinstance(block.relu, nn.ReLU) for block in stack)


def test_first_values() -> None:
    conv, linear = nn.Conv2d(64, 128, 3), nn.Linear(300, 200)
    init_conv(conv)
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (128 * 9)), rel=0.05)  # He et al. 2015, fan out
    init_conv(conv, std=0.01)
    assert conv.weight.std().item() == pytest.approx(0.01, rel=0.05)
    init_linear(linear)
    assert linear.weight.abs().max().item() == pytest.approx(
        math.sqrt(3 / 300), rel=0.05
    )  # uniform, variance 1 / fan in
    init_linear(linear, std=0.001)
    assert linear.weight.std().item() == pytest.approx(0.001, rel=0.05)
    assert conv.bias is not None and not conv.bias.any() and not linear.bias.any()
    init_conv(nn.Conv2d(2, 2, 1, bias=False))
