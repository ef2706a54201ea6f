"""Statistics are numpy's, hooks never stay, and each alarm rings for what it is for and for nothing that is sound."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import maskrcnn
from maskrcnn.data.shapes import ShapesDataset
from maskrcnn.errors import InputError
from maskrcnn.inspection.activations import SHOWN, Activation, activation, activations
from maskrcnn.inspection.draw_activations import activation_figure, activation_figures
from maskrcnn.model.mask_rcnn import MaskRCNN
from maskrcnn.model.presets import PRESETS, nano
from maskrcnn.predictor import Predictor

PICTURES = sorted((Path(maskrcnn.__file__).parent / "demo_pictures").glob("*.[jp][pn]g"))
NAMES, IDS = ("circle", "square", "triangle"), (1, 2, 3)


@pytest.fixture(scope="module")
def nuclei() -> Predictor:
    return maskrcnn.load("nuclei", device="cpu")


@pytest.fixture
def fresh() -> Predictor:
    torch.manual_seed(1)
    return Predictor(MaskRCNN(nano(NAMES, IDS)), "cpu")


@pytest.fixture
def picture() -> np.ndarray:
    return ShapesDataset(1, size=(96, 128))[0][0]


GENERATOR = torch.Generator().manual_seed(0)  # for what is made before the tests begin


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


def smooth(*shape: int) -> Tensor:
    """Waves a dozen cells long, another in each channel."""
    y, x = torch.arange(shape[2])[:, None], torch.arange(shape[3])
    return torch.stack([torch.sin((x + i) / 2) * torch.cos((y - i) / 2) for i in range(shape[1])])[None]


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_statistics_are_numpys() -> None:
    values = torch.randn(2, 5, 16, 24).relu()
    values[:, 3] = 0.5
    values[:, 4] = 0
    found, expected = activation("a", values), values.numpy().astype(np.float64)
    assert found.shape == (2, 5, 16, 24) and found.channels == 5
    assert found.mean == pytest.approx(expected.mean(), rel=1e-5)
    assert found.std == pytest.approx(expected.std(), rel=1e-5)
    assert (found.min, found.max) == (expected.min(), expected.max())
    assert found.zeros == pytest.approx((expected == 0).mean()) and found.non_finite == 0
    assert found.dead == (3, 4)
    strength = expected[0, :, 1:-1, 1:-1].std(axis=(1, 2))
    assert list(found.strongest) == list(np.argsort(-strength, kind="stable"))
    assert np.array_equal(found.maps, values[0, list(found.strongest)].numpy())


def test_smoothness_is_the_correlation_of_neighbours() -> None:
    values = torch.nn.functional.avg_pool2d(torch.randn(1, 3, 60, 80), (1, 2), stride=1)  # alike along rows alone
    across = [np.corrcoef(c[:, 1:].ravel(), c[:, :-1].ravel())[0, 1] for c in values[0].numpy()]
    found = activation("a", values).smoothness
    assert found == pytest.approx(np.mean(across), abs=0.01) and found == pytest.approx(0.5, abs=0.05)
    assert activation("a", values.transpose(2, 3)).smoothness == pytest.approx(found, abs=1e-6)


@pytest.mark.parametrize(
    ("values", "alarm"),
    [
        (noise(1, 4, 64, 64), "noise"),
        (noise(1, 64, 16, 16).relu(), "noise"),
        (noise(500, 8, 7, 7).abs(), "noise"),
        (1e25 * noise(1, 4, 64, 64), "noise"),
        (smooth(1, 8, 64, 64), None),
        (smooth(1, 8, 64, 64).relu() * 1e-20, None),
        (smooth(1, 8, 64, 64) + 0.5 * noise(1, 8, 64, 64), None),
        (smooth(1, 8, 64, 64).flatten(2)[..., torch.randperm(4096, generator=GENERATOR)].view(1, 8, 64, 64), "noise"),
        (noise(1, 1, 8, 8), None),  # too few to tell
        (noise(300, 64), None),  # no map
        (torch.zeros(1, 4, 8, 8), "all zeros"),
        (torch.full((3, 100), 2.0), "constant"),
        (torch.arange(4.0)[None, :, None, None].expand(1, 4, 8, 8), "constant"),
        (torch.tensor([[512.0, 512.0]]), None),
        (torch.tensor([1.0, torch.nan, torch.inf]), "NaN"),
        (torch.tensor([1.0, -torch.inf]), "infinite"),
        (torch.zeros(0, 4, 8, 8), None),
        (torch.tensor(3.0), None),
    ],
)
def test_alarms(values: Tensor, alarm: str | None) -> None:
    assert activation("a", values).alarm == alarm


def test_statistics_of_what_is_not_finite() -> None:
    found = activation("a", torch.tensor([[1.0, torch.nan, 3.0, torch.inf]]))
    assert (found.mean, found.min, found.max, found.non_finite) == (2, 1, 3, 0.5)
    nothing = activation("a", torch.zeros(0, 4, 8, 8))
    assert math.isnan(nothing.mean) and nothing.maps.size == 0 and nothing.dead == ()


def test_sound_layers_of_a_real_detector_raise_no_alarm(nuclei: Predictor) -> None:
    """The stained picture has the sparsest maps of all demo pictures."""
    found = activations(nuclei, PICTURES[0].with_name("stained.jpg"), ["*"], max_detections=30)
    assert len(found) > 150
    assert {name: each.alarm for name, each in found.items() if each.alarm} == {}


def test_random_weights_keep_the_smoothness_of_the_picture(fresh: Predictor) -> None:
    """So noise is no sign of a detector that has not learned. Its residual branches, not yet opened, do show."""
    found = activations(fresh, PICTURES[-1], ["backbone.*", "fpn.*"])
    alarms = {name: each.alarm for name, each in found.items() if each.alarm}
    assert set(alarms.values()) == {"all zeros"} and all(".bn2" in name for name in alarms)
    with torch.no_grad():
        for parameter in fresh.model.parameters():
            nn.init.normal_(parameter, std=0.1)
    found = activations(fresh, PICTURES[-1], ["backbone.*", "fpn.*"])
    assert {each.alarm for each in found.values()} == {None}


def test_noise_in_noise_out(nuclei: Predictor) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    found = activations(nuclei, picture, ["preprocess", "backbone.body.conv1.0"], size="native")
    assert found["preprocess[pixels]"].alarm == "noise"


class Shuffled(nn.Module):
    """A wrong reshape: cells end up elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2)[:, :, torch.randperm(x[0, 0].numel())].view_as(x)


def broken(value: float) -> Callable[[nn.Module], nn.Module]:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 0 + value

    return lambda layer: Broken()


@pytest.mark.parametrize(
    ("replacement", "alarm"),
    [
        (lambda layer: nn.Sequential(layer, Shuffled()), "noise"),
        (broken(0.0), "all zeros"),
        (broken(0.5), "constant"),
        (broken(math.nan), "NaN"),
        (broken(math.inf), "infinite"),
    ],
)
def test_the_first_alarm_names_the_broken_layer(
    fresh: Predictor, replacement: Callable[[nn.Module], nn.Module], alarm: str
) -> None:
    for name, parameter in fresh.model.backbone.body.named_parameters():
        if name.endswith("bn2.weight"):
            nn.init.ones_(parameter)  # open the residual branches
    stage = fresh.model.backbone.body.layer2[0]
    stage.act1 = replacement(stage.act1)
    found = activations(fresh, PICTURES[-1], ["backbone.body.conv1", "backbone.body.layer*"])
    first = next(each for each in found.values() if each.alarm)
    assert first.name.startswith("backbone.body.layer2.0.act1")
    assert first.alarm == alarm


def test_the_tensors_are_the_detectors_own(nuclei: Predictor) -> None:
    """Those of layers that work in place as well: each is looked at before the next changes it."""
    steps = maskrcnn.inspect(nuclei.untuned(), PICTURES[-1])
    found = activations(nuclei, PICTURES[-1])
    assert list(found)[:2] == ["preprocess[pixels]", "preprocess[image_sizes]"]
    for name, values in {
        **{f"backbone[{k}]": v for k, v in steps.body.items()},
        "fpn[p2]": steps.features["p2"],
    }.items():
        same = activation(name, values)
        assert (same.mean, same.std, same.max) == (found[name].mean, found[name].std, found[name].max)
        assert np.array_equal(same.maps, found[name].maps)
    layer = nuclei.model.backbone.body.layer1[0]
    seen: list[float] = []
    hook = layer.conv1.register_forward_hook(lambda module, given, output: seen.append(float(output.min())))
    before = activations(nuclei, PICTURES[-1], ["backbone.body.layer1.0.conv1"])
    hook.remove()
    assert before["backbone.body.layer1.0.conv1"].min == seen[0] < 0


def test_names_patterns_and_repeated_calls(fresh: Predictor, picture: np.ndarray) -> None:
    found = activations(fresh, picture, ["backbone.*.conv1", "rpn.objectness"])
    expected = {
        name for name, _ in fresh.model.named_modules() if name.startswith("backbone.") and name.endswith(".conv1")
    }
    calls = {"rpn.objectness", *(f"rpn.objectness ({i})" for i in (2, 3, 4))}
    layers = {name.partition("[")[0].partition(" (")[0] for name in found}
    assert layers == {*expected, "rpn.objectness"} and calls <= set(found)
    heights = [found[name].shape[2] for name in sorted(calls)]
    assert heights == [48, 24, 12, 6]
    assert hooks(fresh.model) == 0


def test_options_are_those_of_predict(fresh: Predictor, picture: np.ndarray) -> None:
    found = activations(fresh, picture, ["backbone", "box_pooler"], size=64, proposals=30)
    assert found["backbone[c2]"].shape == (1, 32, 16, 24) and found["box_pooler"].shape == (30, 64, 7, 7)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["box_head.fc.0"], r"layers: no such layer; found box_head\.fc\.0; expected a name such as box_head\.fcs\.0"),
        (["layer1.0.conv1"], r"no such layer; .*backbone\.body\.layer1\.0\.conv1"),
        (["qqq.*"], r"no such layer; found qqq\.\*; expected a name such as preprocess, backbone"),
        (["fpn.lateral"], r"gives nothing of its own; found fpn\.lateral; expected those inside it, fpn\.lateral\.\*"),
        ("backbone", r"is one name; found backbone; expected a list of names"),
    ],
)
def test_wrong_names(fresh: Predictor, picture: np.ndarray, names: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        activations(fresh, picture, names)
    assert hooks(fresh.model) == 0


def test_hooks_are_taken_off_when_the_detector_fails(fresh: Predictor, picture: np.ndarray) -> None:
    with pytest.raises(InputError):
        activations(fresh, picture, ["*"], score_threshold=7.0)
    fresh.model.mask_head.register_forward_pre_hook(lambda module, given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        activations(fresh, picture, ["*"], score_threshold=0.0)
    assert hooks(fresh.model) == 0


def test_a_picture_without_detections(fresh: Predictor, picture: np.ndarray) -> None:
    found = activations(fresh, picture, score_threshold=1.0)
    empty = [each for each in found.values() if each.shape and each.shape[0] == 0]
    assert all(each.alarm is None for each in empty)
    for each in empty:
        assert activation_figure(each).caption.startswith("There was nothing to compute")


@dataclass
class Pair:
    """What a layer may give."""

    left: Tensor
    right: list[Tensor]
    note: str


class Giver(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"a": Pair(x, [x + 1, x + 2], "words"), "index": torch.arange(3)}


def test_tensors_are_found_in_whatever_holds_them(fresh: Predictor, picture: np.ndarray) -> None:
    class Tap(nn.Module):
        def __init__(self, norm: nn.Module) -> None:
            super().__init__()
            self.norm, self.giver = norm, Giver()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.norm(x)
            self.giver(y)
            return y

    fresh.model.backbone.body.bn1 = Tap(fresh.model.backbone.body.bn1)
    place = "backbone.body.bn1.giver"
    found = activations(fresh, picture, [place])
    assert list(found) == [f"{place}[a.left]", f"{place}[a.right.0]", f"{place}[a.right.1]"]


def test_channels_of_swin_are_channels() -> None:
    """It keeps them last: (N, H, W, C)."""
    config = nano(NAMES, IDS)
    tiny = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2), "img_size": 64, "window_size": 2}
    body = type(config.backbone)(name="swin_tiny_patch4_window7_224", options=tiny, norm="batch", frozen_stages=0)
    model = MaskRCNN(type(config)(**{**vars(config), "backbone": body}))
    found = activations(Predictor(model, "cpu"), np.zeros((32, 32, 3), np.uint8), ["backbone", "backbone.body"])
    assert found["backbone.body[0]"].shape == found["backbone[c2]"].shape == (1, 16, 16, 16)


def check(figure: Any, shown: Activation) -> None:
    assert figure.stage == "features" and figure.picture.dtype == np.uint8
    assert figure.picture.shape[1:] == (1000, 3) and figure.picture.std() > 5
    assert [row[0] for row in figure.numbers[1:]] == [shown.name]


def test_figures_of_all_levels(nuclei: Predictor) -> None:
    steps = maskrcnn.inspect(nuclei, PICTURES[-1])
    overview, *levels = activation_figures(steps)
    names = [*steps.body, *steps.features]
    assert [row[0] for row in overview.numbers[1:]] == names
    assert [figure.name for figure in levels] == [f"features_{name}" for name in names]
    for name, figure in zip(names, levels, strict=True):
        values = {**steps.body, **steps.features}[name]
        _, channels, height, width = values.shape
        stride = {"2": 4, "3": 8, "4": 16, "5": 32}[name[1]]
        assert figure.title == f"Channels of {name}: {channels} channels, {width} x {height}, stride {stride}"
        check(figure, activation(name, values))
        assert f"{min(SHOWN, channels)} of {channels} channels" in figure.caption and "Alarm" not in figure.caption


def test_a_figure_says_what_is_wrong(fresh: Predictor, picture: np.ndarray) -> None:
    conv = fresh.model.fpn.output["p3"].conv
    with torch.no_grad():
        conv.weight.zero_()
    broken = Predictor(fresh.model, "cpu")
    figures = {figure.name: figure for figure in activation_figures(maskrcnn.inspect(broken, picture))}
    assert "Alarm: p3 is zero everywhere." in figures["features_p3"].caption
    assert "Alarm: p3 is zero everywhere." in figures["features_levels"].caption
    assert "Alarm" not in figures["features_p2"].caption


def test_figures_of_any_layer(nuclei: Predictor) -> None:
    found = activations(nuclei, PICTURES[-1], ["box_head", "box_head.fcs.*", "mask_pooler", "mask_head"])
    for each in found.values():
        check(activation_figure(each), each)
    assert "for the first of" in activation_figure(found["mask_pooler"]).caption


def test_a_detector_without_pyramid(picture: np.ndarray) -> None:
    config = PRESETS["r50-c4"](NAMES, IDS)
    body = type(config.backbone)(name="resnet26", levels=("c4",))
    model = MaskRCNN(type(config)(**{**vars(config), "backbone": body}))
    predictor = Predictor(model, "cpu")
    figures = activation_figures(maskrcnn.inspect(predictor, picture, size=64, proposals=5))
    assert [figure.name for figure in figures] == ["features_levels", "features_c4"]
    assert "pyramid" not in figures[0].caption
