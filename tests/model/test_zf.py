"""The bodies of Fast and Faster R-CNN: ZF by hand, VGG-16 from timm, and which layers of them learn."""

from __future__ import annotations

import math
from itertools import product

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn.errors import InputError
from maskrcnn.model.backbone import Backbone, BackboneConfig
from maskrcnn.model.zf import LocalNorm


def body(name: str, frozen_stages: int = 0) -> Backbone:
    """Of a detector that reads conv5; no network is needed."""
    return Backbone(BackboneConfig(name=name, levels=("c4",), frozen_stages=frozen_stages))


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (63, 95), (1, 17)])
def test_sides_of_the_maps_are_rounded_up(size: tuple[int, int]) -> None:
    network = timm.create_model("zf", features_only=True)
    with torch.no_grad():
        maps = network(torch.randn(2, 3, *size))
    assert network.feature_info.reduction() == [2, 4, 8, 16]
    for each, channels, stride in zip(maps, (96, 96, 256, 256), (2, 4, 8, 16), strict=True):
        assert each.shape == (2, channels, *(math.ceil(side / stride) for side in size))


def test_whole_network_and_a_part_of_it_give_the_same() -> None:
    torch.manual_seed(0)
    whole = timm.create_model("zf").eval()
    part = timm.create_model("zf", features_only=True, out_indices=(1,)).eval()
    missing, unexpected = part.load_state_dict(whole.state_dict(), strict=False)
    assert not missing and set(unexpected) == {f"conv{i}.{x}" for i in (2, 3, 4, 5) for x in ("weight", "bias")}
    x = torch.randn(1, 3, 40, 56)
    with torch.no_grad():
        assert torch.equal(part(x)[0], nn.Sequential(*list(whole.children())[:4])(x))


def test_local_norm_equals_its_definition() -> None:
    x = 300 * torch.randn(2, 3, 4, 5, dtype=torch.float64)  # so large that the norm matters
    expected = torch.empty_like(x)
    for n, c, i, j in product(range(2), range(3), range(4), range(5)):
        mean = sum(
            float(x[n, c, i + di, j + dj]) ** 2 / 9
            for di, dj in product((-1, 0, 1), repeat=2)
            if 0 <= i + di < 4 and 0 <= j + dj < 5
        )
        expected[n, c, i, j] = x[n, c, i, j] / (1 + 5e-5 * mean) ** 0.75
    assert not torch.allclose(expected, x, rtol=0.1)
    torch.testing.assert_close(LocalNorm()(x), expected, rtol=1e-12, atol=0)


def test_zf_equals_its_layers_by_hand() -> None:
    torch.manual_seed(0)
    network = body("zf").eval()
    w = dict(network.body.named_parameters())

    def conv(x: Tensor, number: int, stride: int, padding: int) -> Tensor:
        return F.conv2d(x, w[f"conv{number}.weight"], w[f"conv{number}.bias"], stride, padding).clamp(min=0)

    def norm_and_pool(x: Tensor) -> Tensor:
        windows = F.unfold(F.pad(x * x, (1, 1, 1, 1)).transpose(0, 1), 3)  # (C, 9, H * W)
        x = x / (1 + 5e-5 * windows.mean(dim=1).view_as(x)) ** 0.75
        return F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2)  # zeros outside lose to no cell: after ReLU none is below

    x = 50 * torch.randn(1, 3, 48, 80)
    with torch.no_grad():
        y = norm_and_pool(conv(x, 1, 2, 3))
        y = norm_and_pool(conv(y, 2, 2, 2))
        y = conv(conv(conv(y, 3, 1, 1), 4, 1, 1), 5, 1, 1)
        maps = network(x)
    assert network.channels == {"c4": 256} and network.strides == {"c4": 16}
    torch.testing.assert_close(maps["c4"], y, rtol=1e-4, atol=1e-4 * float(y.max()))


def test_vgg16_hands_on_conv5_3_after_its_relu() -> None:
    torch.manual_seed(0)
    network = body("vgg16").eval()
    assert network.channels == {"c4": 512} and network.strides == {"c4": 16}
    convs = [module for module in network.body.modules() if isinstance(module, nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    x = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        y = x
        for number, conv in enumerate(convs):
            y = F.max_pool2d(y, 2) if number in (2, 4, 7, 10) else y
            y = F.conv2d(y, conv.weight, conv.bias, padding=1).clamp(min=0)
        maps = network(x)
    torch.testing.assert_close(maps["c4"], y, rtol=1e-5, atol=1e-6)


def test_vgg16_learns_from_conv3_1_on_and_zf_all_over() -> None:
    """Ren et al. 2015, 3.1.3."""
    vgg, zf = body("vgg16", frozen_stages=1), body("zf")
    fixed = vgg.freeze()
    assert {name.rpartition(".")[0] for name in fixed} == {f"features_{i}" for i in (0, 2, 5, 7)}  # conv1_1 to conv2_2
    learning = {name for name, parameter in vgg.body.named_parameters() if parameter.requires_grad}
    assert min(int(name.split("_")[1].split(".")[0]) for name in learning) == 10  # conv3_1
    assert zf.freeze() == [] and all(parameter.requires_grad for parameter in zf.parameters())
    assert [len(zf.freeze(stages)) // 2 for stages in range(6)] == [0, 1, 1, 2, 5, 5]  # convolutions fixed


def test_norms_that_a_network_lacks_are_not_missed() -> None:
    plain = {norm: Backbone(BackboneConfig(name="vgg11", levels=("c4",), norm=norm)) for norm in ("frozen", "batch")}  # type: ignore[arg-type]
    plain["frozen"].load_state_dict(plain["batch"].state_dict())
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(plain["frozen"](x)["c4"], plain["batch"](x)["c4"])
    assert all(parameter.requires_grad for parameter in plain["frozen"].parameters())


def test_gradients_reach_the_first_layer() -> None:
    network = body("zf")
    network(torch.randn(1, 3, 32, 32))["c4"].sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in network.parameters())


def test_there_is_neither_classifier_nor_a_map_of_stride_32() -> None:
    with pytest.raises(InputError, match=r"backbone\.name: no such feature maps; found zf; expected strides \[32\]"):
        Backbone(BackboneConfig(name="zf"))
    with pytest.raises(InputError, match=r"timm cannot make it \(zf has no classifier"):
        Backbone(BackboneConfig(name="zf", levels=("c4",), options={"num_classes": 10}))
