"""Any timm network with strides 4 to 32; norms that stand still; stages that do not learn."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from maskrcnn.errors import InputError
from maskrcnn.model.backbone import STRIDES, Backbone, BackboneConfig, _group_norm_
from maskrcnn.model.config import from_dict, to_dict

SMALL = {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 160), "stem_width": 8, "stem_type": "deep"}


def small(norm: str = "frozen", frozen_stages: int = 0) -> Backbone:
    return Backbone(
        BackboneConfig(name="resnet18", options=SMALL, norm=norm, frozen_stages=frozen_stages)  # type: ignore[arg-type]
    )


def statistics(body: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in body.state_dict().items() if "running" in name}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {}),
        ("mobilenetv3_small_100", {}),
        ("convnext_atto", {}),
        ("regnety_002", {}),
        ("vgg11_bn", {}),  # has maps of stride 1 and 2 too
        ("swin_tiny_patch4_window7_224", {"strict_img_size": False, "depths": (1, 1, 1, 1), "embed_dim": 24}),
    ],
)
def test_maps_at_strides_4_to_32(name: str, options: dict[str, object]) -> None:
    backbone = Backbone(BackboneConfig(name=name, options=options)).eval()
    with torch.no_grad():
        maps = backbone(torch.randn(2, 3, 64, 96))
    assert list(maps) == list(backbone.channels) == ["c2", "c3", "c4", "c5"]
    for level, stride in STRIDES.items():
        assert maps[level].shape == (2, backbone.channels[level], 64 // stride, 96 // stride)


def test_standard_channels() -> None:
    with torch.device("meta"):
        channels = {name: Backbone(BackboneConfig(name=name)).channels for name in ("resnet50", "resnet101")}
    assert channels["resnet50"] == channels["resnet101"] == {"c2": 256, "c3": 512, "c4": 1024, "c5": 2048}


def test_sides_that_strides_do_not_divide() -> None:
    maps = small()(torch.randn(1, 3, 33, 70))
    assert [tuple(x.shape[2:]) for x in maps.values()] == [(9, 18), (5, 9), (3, 5), (2, 3)]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "resnet5000",
            {},
            r"backbone\.name: timm cannot make it .*; found resnet5000; expected a name of timm.list_mod",
        ),
        ("resnet18", {"colour": "red"}, r"backbone\.name: timm cannot make it .*colour"),
        (
            "vit_tiny_patch16_224",
            {},
            r"backbone\.name: no such feature maps; found vit_tiny_patch16_224; .*\[4, 8, 32\]",
        ),
        ("resnet18", {"output_stride": 16}, r"no such feature maps; found resnet18; expected strides \[32\]"),
    ],
)
def test_networks_that_do_not_serve(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Backbone(BackboneConfig(name=name, options=options))


def test_frozen_norms_stand_still() -> None:
    backbone, pixels = small("frozen"), torch.randn(2, 3, 64, 64) * 3 + 1
    before = statistics(backbone)
    assert before
    trained = backbone.train()(pixels)
    assert all(torch.equal(value, before[name]) for name, value in statistics(backbone).items())
    for name, value in backbone.eval()(pixels).items():
        assert torch.equal(value, trained[name])
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    assert not any("bn" in name for name, _ in backbone.named_parameters())


def test_batch_norms_follow_their_batches() -> None:
    backbone = small("batch").train()
    before = statistics(backbone)
    backbone(torch.randn(2, 3, 64, 64) * 3 + 1)
    after = statistics(backbone)
    assert before and not any(torch.equal(after[name], before[name]) for name in before)


def test_group_norms_know_no_batch() -> None:
    backbone, pixels = small("group").train(), torch.randn(3, 3, 64, 64)
    assert not statistics(backbone)
    groups = {m.num_channels: m.num_groups for m in backbone.modules() if isinstance(m, nn.GroupNorm)}
    assert groups == {8: 8, 16: 16, 24: 8, 160: 32}
    together = backbone(pixels)
    for i in range(3):
        for name, value in backbone(pixels[i : i + 1]).items():
            torch.testing.assert_close(value[0], together[name][i], atol=1e-4, rtol=1e-4)


def test_a_norm_with_an_activation_keeps_it() -> None:
    block = nn.Sequential(nn.Conv2d(3, 8, 1), BatchNormAct2d(8, act_layer=nn.ReLU), nn.BatchNorm2d(8))
    _group_norm_(block)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in block.modules())
    assert (block[:2](torch.randn(2, 3, 4, 4)) >= 0).all()
    assert (block(torch.randn(2, 3, 4, 4)) < 0).any()


PARTS = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")


@pytest.mark.parametrize(
    ("stages", "parts"), [(0, ()), (1, PARTS[:2]), (2, PARTS[:3]), (3, PARTS[:4]), (4, PARTS[:5]), (5, PARTS)]
)
def test_the_first_stages_do_not_learn(stages: int, parts: tuple[str, ...]) -> None:
    backbone = small("group")
    fixed = backbone.freeze(stages)
    still = [name for name, parameter in backbone.body.named_parameters() if not parameter.requires_grad]
    assert sorted(fixed) == sorted(still)
    assert still == [name for name, _ in backbone.body.named_parameters() if name.split(".")[0] in parts]


def test_freezing_goes_by_the_config() -> None:
    assert {name.split(".")[0] for name in small("group", frozen_stages=2).freeze()} == {"conv1", "bn1", "layer1"}
    assert small("group", frozen_stages=2).freeze(0) == []


@pytest.mark.parametrize(
    ("name", "stages", "parts"),
    [
        ("convnext_atto", 1, {"stem_0", "stem_1"}),  # its stem has stride 4 and no map of its own
        ("convnext_atto", 2, {"stem_0", "stem_1", "stages_0"}),
        ("mobilenetv3_small_100", 1, {"conv_stem", "bn1"}),
        ("mobilenetv3_small_100", 3, {"conv_stem", "bn1", "blocks.0", "blocks.1"}),
        ("vgg11_bn", 0, set()),  # though it has a map of stride 1
        ("vgg11_bn", 2, {"features_0", "features_1", "features_4", "features_5", "features_8", "features_9"}),
    ],
)
def test_freezing_other_networks(name: str, stages: int, parts: set[str]) -> None:
    with torch.device("meta"):
        body = Backbone(BackboneConfig(name=name, norm="batch"))
    fixed = {".".join(n.split(".")[: 2 if n.startswith("blocks") else 1]) for n in body.freeze(stages)}
    assert fixed >= parts if name == "vgg11_bn" and parts else fixed == parts
    assert any(parameter.requires_grad for parameter in body.parameters())


def test_fixed_weights_get_no_gradient() -> None:
    backbone = small("frozen")
    backbone.freeze(3)
    sum(x.sum() for x in backbone(torch.randn(1, 3, 64, 64)).values()).backward()
    learning = {name.split(".")[0] for name, p in backbone.body.named_parameters() if p.grad is not None}
    assert learning == {"layer3", "layer4"}


# --- strides and holes ------------------------------------------------------------------------------------------------

BOTTLENECKS = {"layers": (1, 1, 1, 2), "channels": (8, 12, 16, 24), "stem_type": "deep", "stem_width": 4}


@torch.no_grad()
@pytest.mark.parametrize(("stride_in", "reads_all"), [("3x3", True), ("1x1", False)])
def test_where_the_stride_is(stride_in: str, reads_all: bool) -> None:
    """With the stride in the 1x1 three of four cells are never read."""
    config = BackboneConfig(name="resnet26", options=BOTTLENECKS, norm="batch", stride_in=stride_in)  # type: ignore[arg-type]
    stage = Backbone(config).eval().body.layer3
    torch.nn.init.ones_(stage[0].bn3.weight)  # begins at zero, which would close the branch
    stage[0].downsample[0] = nn.Conv2d(12 * 4, 16 * 4, 1, stride=2)
    maps = torch.randn(1, 12 * 4, 8, 8)
    changed = maps.clone()
    changed[..., 1::2] += 1
    assert torch.equal(stage(maps), stage(changed)) != reads_all


@torch.no_grad()
def test_pooling_that_begins_at_the_first_pixel() -> None:
    """TensorFlow's "same": of an even map the border is right and below only, and no window is half outside before."""
    body = {"layers": (1, 1, 1, 1), "channels": (8, 12, 16, 24)}
    config = BackboneConfig(name="resnet18", options=body, pool_padding="end")
    pool = Backbone(config).body.maxpool
    maps = torch.randn(2, 3, 8, 12)
    padded = F.pad(maps, (0, 1, 0, 1), value=-torch.inf)
    expected = torch.stack(
        [padded[:, :, y : y + 3, x : x + 3].amax(dim=(2, 3)) for y in range(0, 8, 2) for x in range(0, 12, 2)], dim=2
    )
    assert torch.equal(pool(maps), expected.unflatten(2, (4, 6)))
    assert Backbone(config)(torch.randn(1, 3, 64, 96))["c2"].shape[2:] == (16, 24)


def test_c5_with_holes() -> None:
    config = BackboneConfig(name="resnet26", options=BOTTLENECKS, norm="batch", levels=("c5",), dilate_c5=True)
    backbone = Backbone(config).eval()
    assert backbone.strides == {"c5": 16}
    assert backbone(torch.randn(1, 3, 64, 96))["c5"].shape == (1, 96, 4, 6)
    usual = Backbone(BackboneConfig(name="resnet26", options=BOTTLENECKS, norm="batch", levels=("c5",)))
    assert usual.strides == {"c5": 32}
    backbone.load_state_dict(usual.state_dict())  # the same weights fit both
    # every 3x3 of the stage has holes: a dot reaches cells two apart, and none between
    conv = backbone.body.layer4[1].conv2
    dot = torch.zeros(1, 24, 7, 7)
    dot[..., 3, 3] = 1
    assert conv(dot).abs().sum(1)[0].nonzero().tolist() == [[y, x] for y in (1, 3, 5) for x in (1, 3, 5)]


@pytest.mark.parametrize(
    "change", [{"stride_in": "1x1"}, {"dilate_c5": True, "levels": ("c5",)}, {"pool_padding": "end"}]
)
def test_only_resnets_have_them(change: dict[str, Any]) -> None:
    message = f"backbone.{next(iter(change))}: does not fit this network; found convnext_atto"
    with pytest.raises(InputError, match=message):
        Backbone(BackboneConfig(name="convnext_atto", **change))


@pytest.mark.parametrize("levels", [(), ("c6",), ("c3", "c2")])
def test_impossible_levels(levels: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=r"BackboneConfig\.levels: impossible value"):
        BackboneConfig(levels=levels)


def test_what_lies_behind_the_last_level_is_not_made() -> None:
    with torch.device("meta"):
        backbone = Backbone(BackboneConfig(levels=("c3",)))
    assert backbone.channels == {"c3": 512}
    assert not any("layer3" in name or "layer4" in name for name in backbone.state_dict())


@pytest.mark.parametrize("name", ["hf-hub:someone/net", "local-dir:/tmp/net", "../../etc", "a\\b", ""])
def test_a_name_reaches_neither_network_nor_disk(name: str) -> None:
    with pytest.raises(InputError, match=r"BackboneConfig\.name: impossible value"):
        BackboneConfig(name=name)


TAPPED = BackboneConfig(
    name="resnet18",
    options=SMALL | {"layers": (1, 1, 2, 2)},
    norm="batch",
    levels=("c3", "c4a", "c4", "c5a", "c5"),
    taps={"c4a": "layer3.0", "c5a": "layer4.0"},
)


def test_maps_from_inside_a_stage() -> None:
    backbone, pixels = Backbone(TAPPED).eval(), torch.randn(2, 3, 64, 96)
    for parameter in backbone.parameters():
        nn.init.normal_(parameter)  # timm's residual branches begin at zero
    plain = Backbone(BackboneConfig(name="resnet18", options=TAPPED.options, norm="batch")).eval()
    plain.load_state_dict(backbone.state_dict())  # weights keep their names
    assert list(backbone.state_dict()) == list(plain.state_dict())
    heard: dict[str, Tensor] = {}
    for name in ("layer3", "layer4"):
        block = plain.body[name][0]
        block.register_forward_hook(lambda module, inputs, output, name=name: heard.update({name: output}))
    found, expected = backbone(pixels), plain(pixels)
    assert list(found) == list(backbone.channels) == list(TAPPED.levels)
    assert backbone.strides == {"c3": 8, "c4a": 16, "c4": 16, "c5a": 32, "c5": 32}
    for level, wanted in {**{name: expected[name] for name in ("c3", "c4", "c5")}, "c4a": heard["layer3"]}.items():
        assert torch.equal(found[level], wanted) and found[level].shape[1] == backbone.channels[level]
    assert torch.equal(found["c5a"], heard["layer4"])
    assert not torch.equal(found["c5a"], found["c5"])


def test_looking_for_the_size_of_a_map_changes_nothing() -> None:
    backbone = Backbone(TAPPED)
    assert backbone.training and backbone.body.bn1.training
    assert all(not x.any() for name, x in backbone.state_dict().items() if name.endswith(("mean", "tracked")))


def test_norms_and_stages_of_a_body_with_taps() -> None:
    learns, frozen = Backbone(TAPPED), Backbone(replace(TAPPED, norm="frozen"))
    before = statistics(learns.body), statistics(frozen.body)
    for backbone in (learns, frozen):
        backbone.train()(torch.randn(2, 3, 64, 64))
    assert all(not torch.equal(value, before[0][name]) for name, value in statistics(learns.body).items())
    assert all(torch.equal(value, before[1][name]) for name, value in statistics(frozen.body).items())
    plain = Backbone(BackboneConfig(name="resnet18", options=TAPPED.options, norm="batch"))
    for stages in range(6):
        assert learns.freeze(stages) == plain.freeze(stages)


def test_a_config_with_taps_is_plain_data() -> None:
    assert from_dict(BackboneConfig, json.loads(json.dumps(to_dict(TAPPED)))) == TAPPED


@pytest.mark.parametrize(
    ("levels", "taps", "message"),
    [
        (("c5a", "c5"), {}, r"levels: impossible value; .*expected some of c2, c3, c4, c5, in this order"),
        (("c5",), {"c5a": "layer4.0"}, r"levels: .*some of c2, c3, c4, c5a, c5, in this order, and all taps"),
        (("c5", "c5a"), {"c5a": "layer4.0"}, r"levels: .*some of c2, c3, c4, c5a, c5, in this order"),
        (("c4", "c5a"), {"c5a": "layer4.0"}, r"levels: impossible value"),
        (("c5", "p5"), {"p5": "layer4.0"}, r"taps: impossible value"),
        (
            ("c4a", "c5"),
            {"c4a": "layer3.9"},
            r"backbone\.taps: no such modules; found layer3\.9, layer4; expected diff",
        ),
        (("c5a", "c5"), {"c5a": "layer4"}, r"backbone\.taps: no such modules; found layer4, layer4; expected diff"),
        (("c4a", "c5"), {"c4a": "layer4.0"}, r"taps\.c4a: not such a map; found layer4\.0, .* a map of stride 16"),
    ],
)
def test_impossible_taps(levels: tuple[str, ...], taps: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Backbone(replace(TAPPED, levels=levels, taps=taps))
