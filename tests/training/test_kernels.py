"""A detector with other kernels is the same detector: outputs, gradients, names and weights."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from timm.layers.norm_act import FrozenBatchNorm2d
from torch import nn

from maskrcnn.model.backbone import Backbone, BackboneConfig
from maskrcnn.training.kernels import choose_kernels_

BODY = {"layers": (1, 1, 1, 1), "channels": (8, 12, 16, 24), "stem_type": "deep", "stem_width": 4}
CONFIG = BackboneConfig(name="resnet26", options=BODY, norm="frozen", frozen_stages=0)


def changed_statistics(body: nn.Module) -> int:
    norms = [module for module in body.modules() if isinstance(module, FrozenBatchNorm2d)]
    for norm in norms:
        for tensor in (norm.weight, norm.running_var):
            tensor.uniform_(0.5, 2.0)
        for tensor in (norm.bias, norm.running_mean):
            tensor.uniform_(-0.5, 0.5)
    return len(norms)


@pytest.mark.parametrize("name", ["resnet26", "efficientnet_b0"])  # its norms hold their activations
def test_outputs_and_gradients_stay(name: str) -> None:
    torch.manual_seed(0)
    options = BODY if name == "resnet26" else {}
    plain = Backbone(replace(CONFIG, name=name, options=options)).double()
    if name == "resnet26":
        assert changed_statistics(plain) > 10
    other = copy.deepcopy(plain)
    choose_kernels_(other)
    if name == "resnet26":
        assert any(module.dilation == (2, 2) for module in other.modules() if isinstance(module, nn.Conv2d))
    assert list(plain.state_dict()) == list(other.state_dict())
    pixels = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    plain.eval(), other.eval()  # without dropped paths
    for network in (plain, other):
        sum((level**2).mean() for level in network(pixels).values()).backward()
    for level, expected in plain(pixels).items():
        torch.testing.assert_close(other(pixels)[level], expected)
    learned = dict(plain.named_parameters())
    for name, parameter in other.named_parameters():
        torch.testing.assert_close(parameter.grad, learned[name].grad)


def test_a_frozen_norm_keeps_the_dtype_of_its_map() -> None:
    body = nn.Sequential(FrozenBatchNorm2d(3))
    changed_statistics(body)
    x = torch.randn(2, 3, 4, 5)
    expected = body(x)
    choose_kernels_(body)
    found = body(x.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.02)


def test_statistics_stay_while_learning() -> None:
    body = nn.Sequential(FrozenBatchNorm2d(3))
    changed_statistics(body)
    choose_kernels_(body)
    before = copy.deepcopy(body.state_dict())
    body.train()(torch.randn(2, 3, 4, 5) + 5)
    for name, tensor in body.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_fully_connected_layer_is_the_same_layer() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(1024, 512))
    other = copy.deepcopy(plain)
    choose_kernels_(other)
    assert isinstance(other[0], nn.Linear)
    x = torch.randn(160, 1024)  # large enough for the other kernel
    expected, found = plain(x), other(x)
    assert type(found.grad_fn).__name__ == "_LinearBackward"
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for network, output in ((plain, expected), (other, found)):
        (output**2).mean().backward()
        assert network[0].weight.grad is not None
    torch.testing.assert_close(other[0].weight.grad, plain[0].weight.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(other[0].bias.grad, plain[0].bias.grad, rtol=1e-4, atol=1e-6)
