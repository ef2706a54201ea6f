"""Plain nets: the same convolutions as the residual ones, and nothing added."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn.errors import InputError
from maskrcnn.model.backbone import Backbone, BackboneConfig
from maskrcnn.model.config import from_dict, to_dict

SMALL = {"layers": (2, 1, 1, 1), "channels": (8, 16, 24, 32), "stem_width": 8, "stem_type": "deep"}


def small(norm: Any = "batch", shortcuts: bool = False, **options: Any) -> Backbone:
    config = BackboneConfig(name="resnet18", options=SMALL | options, norm=norm, shortcuts=shortcuts, frozen_stages=0)
    return Backbone(config)


def by_hand(backbone: Backbone, x: Tensor) -> list[Tensor]:
    """Convolution, norm, ReLU, twice a block; the first of a stage, but for c2, halves the map."""
    body, maps = backbone.body, []
    for name in ("conv1", "bn1", "act1", "maxpool"):
        x = body[name](x)
    for stage in range(1, 5):
        for number, block in enumerate(body[f"layer{stage}"]):
            stride = 2 if stage > 1 and number == 0 else 1
            x = block.bn1(F.conv2d(x, block.conv1.weight, stride=stride, padding=1)).clamp(min=0)
            x = block.bn2(F.conv2d(x, block.conv2.weight, padding=1)).clamp(min=0)
        maps.append(x)
    return maps


@pytest.mark.parametrize("norm", ["frozen", "batch", "group"])
def test_equals_convolutions_and_norms_in_a_row(norm: str) -> None:
    torch.manual_seed(0)
    backbone = small(norm).eval()
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        for ours, expected in zip(backbone(x).values(), by_hand(backbone, x), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
            assert ours.abs().sum() > 0


def test_weights_keep_their_names_and_only_projections_go() -> None:
    plain, residual = small(shortcuts=False).state_dict(), small(shortcuts=True).state_dict()
    assert {name: value.shape for name, value in plain.items()} == {
        name: value.shape for name, value in residual.items() if "downsample" not in name
    }
    assert any("downsample" in name for name in residual)


def test_differs_from_the_residual_net_of_the_same_weights() -> None:
    plain, residual = small().eval(), small(shortcuts=True).eval()
    residual.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(1, 3, 32, 32)
    assert not torch.allclose(plain(x)["c2"], residual(x)["c2"])


def test_signal_and_gradient_pass_from_the_start() -> None:
    """The residual net's last scales start at 0: without a shortcut nothing would ever pass them."""
    assert all(not block.bn2.weight.any() for block in small(shortcuts=True).body["layer1"])
    backbone = small()
    assert all(bool((block.bn2.weight == 1).all()) for block in backbone.body["layer1"])
    backbone(torch.randn(2, 3, 64, 64))["c5"].square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in backbone.parameters() if p.ndim > 1)


def test_scales_that_are_not_zero_stay() -> None:
    block = small(zero_init_last=False).body["layer1"][0]
    assert bool((block.bn2.weight == 1).all())


def test_stages_are_fixed_as_in_the_residual_net() -> None:
    assert small().freeze(2) == [name for name in small(shortcuts=True).freeze(2) if "downsample" not in name]


@pytest.mark.parametrize("name", ["resnet50", "mobilenetv3_small_100", "vgg11"])
def test_networks_without_basic_blocks_are_refused(name: str) -> None:
    message = rf"^backbone\.shortcuts: has no shortcuts to remove; found {name}; expected a ResNet of basic blocks.*$"
    with torch.device("meta"), pytest.raises(InputError, match=message):
        Backbone(BackboneConfig(name=name, shortcuts=False))


def test_a_config_written_before_there_was_a_choice_has_shortcuts() -> None:
    written = to_dict(BackboneConfig())
    del written["shortcuts"]
    assert from_dict(BackboneConfig, written) == BackboneConfig() and BackboneConfig().shortcuts
    plain = BackboneConfig(name="resnet34", shortcuts=False)
    assert from_dict(BackboneConfig, to_dict(plain)) == plain
