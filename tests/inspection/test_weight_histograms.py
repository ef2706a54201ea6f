"""Statistics are numpy's; good detectors raise no alarm, fresh ones neither; each way to break one layer does."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import maskrcnn
from maskrcnn.inspection.draw_weights import weight_figures
from maskrcnn.inspection.weight_histograms import BINS, LayerWeights, weight_statistics, weight_table
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.model.presets import PRESETS, from_scratch

NAMES, IDS = ("cell", "dirt"), (1, 2)


def small(preset: str) -> MaskRCNNConfig:
    """A preset of the same build, with fewer layers and narrower heads: made in a blink."""
    config = PRESETS[preset](NAMES, IDS)
    body = {} if preset == "nano" else {"name": "resnet26"}
    box_head = replace(config.box_head, fc_channels=32)
    return replace(config, backbone=replace(config.backbone, **body), box_head=box_head)


def named(model: nn.Module) -> dict[str, LayerWeights]:
    return {layer.name: layer for layer in weight_statistics(model)}


def alarms(model: nn.Module) -> dict[str, str | None]:
    return {layer.name: layer.alarm for layer in weight_statistics(model) if layer.alarm}


@pytest.fixture
def nuclei() -> MaskRCNN:
    """The bundled detector, to be broken."""
    return maskrcnn.load("nuclei", device="cpu").model


def test_statistics_are_numpys(nuclei: MaskRCNN) -> None:
    layers = named(nuclei.to(memory_format=torch.channels_last))
    state = nuclei.state_dict()
    learned = {name for name, _ in nuclei.named_parameters()}
    gathered = {name for name in state if name.endswith(("running_mean", "running_var"))}
    assert set(layers) == learned | gathered
    for name, layer in layers.items():
        values = state[name].numpy().astype(np.float64).ravel()
        assert layer.shape == tuple(state[name].shape) and layer.count == values.size
        assert (layer.min, layer.max) == (values.min(), values.max())
        assert layer.mean == pytest.approx(values.mean(), abs=1e-9)
        assert layer.std == pytest.approx(values.std(), rel=1e-6, abs=1e-9)
        assert layer.zeros == (values == 0).mean()
        assert layer.histogram.sum() == values.size
        if values.min() < values.max():
            edges = np.histogram_bin_edges(values, BINS)
            assert np.allclose(layer.edges, edges)
            # stored in half precision, some lie on an edge and may fall to either side of it
            values.sort()
            slack = 1e-9 * (edges[-1] - edges[0])
            below, up_to = np.searchsorted(values, edges[1:-1] - slack), np.searchsorted(values, edges[1:-1] + slack)
            sums = np.cumsum(layer.histogram)[:-1]
            assert (below <= sums).all() and (sums <= up_to).all()


def test_the_roles_of_tensors(nuclei: MaskRCNN) -> None:
    roles = {name: layer.role for name, layer in named(nuclei).items()}
    place = "backbone.body.layer1.0"
    assert roles[f"{place}.conv1.weight"] == roles["box_head.fcs.0.weight"] == "weight"
    assert (roles[f"{place}.bn1.weight"], roles[f"{place}.bn1.bias"]) == ("scale", "offset")
    assert (roles[f"{place}.bn1.running_mean"], roles[f"{place}.bn1.running_var"]) == ("mean", "variance")
    assert roles["rpn.objectness.bias"] == "offset"


def test_the_bundled_detector_raises_no_alarm(nuclei: MaskRCNN) -> None:
    assert alarms(nuclei) == {}


@pytest.mark.parametrize("scratch", [False, True])
@pytest.mark.parametrize("preset", PRESETS)
def test_fresh_detectors_raise_no_alarm(preset: str, scratch: bool) -> None:
    """Though all biases are 0, and the residual branches of ResNets are closed."""
    config = small(preset)
    model = MaskRCNN(from_scratch(config) if scratch else config)
    layers = named(model)
    assert any(layer.role == "offset" and layer.zeros == 1 for layer in layers.values())
    if not scratch or preset == "nano":
        assert any(layer.role == "scale" and layer.zeros == 1 for layer in layers.values())
    assert alarms(model) == {}


@pytest.mark.parametrize(
    "name",
    ["backbone.body.conv1.0", "backbone.body.layer4.1.conv2", "fpn.output.p3.conv", "rpn.deltas", "box_head.classes"],
)
@pytest.mark.parametrize(
    ("factor", "alarm"), [(0.0, "dead"), (1e4, "exploded"), (math.nan, "exploded"), (math.inf, "exploded")]
)
def test_a_broken_layer(nuclei: MaskRCNN, name: str, factor: float, alarm: str) -> None:
    with torch.no_grad():
        for parameter in nuclei.get_submodule(name).parameters():
            parameter.mul_(factor)
    found = alarms(nuclei)
    assert found[f"{name}.weight"] == alarm
    assert set(found) <= {f"{name}.weight", f"{name}.bias"}


@pytest.mark.parametrize("preset", PRESETS)
def test_fresh_weights_ten_thousand_times_too_large(preset: str) -> None:
    """Even of the layers that begin smallest, such as the 0.001 of the last layer of the mask head."""
    model = MaskRCNN(small(preset))
    weights = [layer.name for layer in weight_statistics(model) if layer.role == "weight"]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e4)
    assert set(weights) <= set(alarms(model))


def test_a_single_wild_weight(nuclei: MaskRCNN) -> None:
    with torch.no_grad():
        nuclei.box_head.fcs[0].weight[3, 7] = 1e3
    assert alarms(nuclei) == {"box_head.fcs.0.weight": "exploded"}
    with torch.no_grad():
        nuclei.box_head.fcs[0].weight[3, 7:9] = torch.tensor([torch.nan, torch.inf])
    layer = named(nuclei)["box_head.fcs.0.weight"]
    assert layer.reason == "2 of its values are not finite" and layer.histogram.sum() == layer.count - 2
    assert layer.warning == "box_head.fcs.0.weight has exploded: 2 of its values are not finite"
    assert math.isfinite(layer.mean) and math.isfinite(layer.max)


def test_a_layer_of_one_value(nuclei: MaskRCNN) -> None:
    with torch.no_grad():
        nuclei.fpn.output["p2"].conv.weight.fill_(0.25)
    layer = named(nuclei)["fpn.output.p2.conv.weight"]
    assert (layer.alarm, layer.reason, layer.std) == ("dead", "all are 0.25", 0)
    assert layer.histogram.sum() == layer.count and layer.edges[0] < 0.25 < layer.edges[-1]


def test_a_closed_branch_is_dead_once_others_have_learned(nuclei: MaskRCNN) -> None:
    norm = nuclei.get_submodule("backbone.body.layer2.1.bn2")
    with torch.no_grad():
        norm.weight.zero_()
    assert alarms(nuclei) == {"backbone.body.layer2.1.bn2.weight": "dead"}
    model = MaskRCNN(small("nano"))
    with torch.no_grad():
        model.get_submodule("backbone.body.layer1.0.bn1").weight[0] += 0.01  # one step of learning
    assert set(alarms(model)) == {f"backbone.body.layer{i}.{j}.bn2.weight" for i in (1, 2, 3, 4) for j in (0, 1)}


@pytest.mark.parametrize(
    ("share", "value", "alarm"),
    [(1.0, 0.0, "dead"), (0.5, 1e-20, "dead"), (0.25, 0.0, None), (0.1, 1e7, "exploded"), (0.1, -1.0, "exploded")],
)
def test_variances_of_a_norm(nuclei: MaskRCNN, share: float, value: float, alarm: str | None) -> None:
    variance = nuclei.get_submodule("backbone.body.layer3.0.bn1").running_var
    variance[: round(share * len(variance))] = value
    assert alarms(nuclei) == ({"backbone.body.layer3.0.bn1.running_var": alarm} if alarm else {})


def test_frozen_norms_are_looked_at_too() -> None:
    """Theirs are all buffers, and would be missed among the parameters."""
    model = MaskRCNN(small("r50-fpn"))
    assert not any("bn1" in name for name, _ in model.named_parameters())
    model.backbone.body.bn1.weight[0] = 1e3
    assert alarms(model)["backbone.body.bn1.weight"] == "exploded"


def test_values_at_the_ends_of_what_a_float_holds() -> None:
    layer = nn.Linear(64, 64, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-1e38, 1e38, 4096).view(64, 64))
    (found,) = weight_statistics(layer)
    assert found.std == pytest.approx(1e38 / math.sqrt(3), rel=1e-3) and (found.histogram == 64).all()
    with torch.no_grad():
        layer.weight.fill_(torch.nan)
    (found,) = weight_statistics(layer)
    assert found.alarm == "exploded" and found.histogram.sum() == 0 and math.isnan(found.mean)


def test_nothing_to_look_at() -> None:
    empty = nn.Module()
    empty.weight = nn.Parameter(torch.zeros(0, 3))
    assert weight_statistics(nn.ReLU()) == [] and weight_statistics(empty) == []


def test_figures_hold_every_layer_once(nuclei: MaskRCNN) -> None:
    with torch.no_grad():
        nuclei.fpn.lateral["p3"].conv.weight.zero_()
        nuclei.rpn.convs[0].weight.fill_(torch.nan)
    first, *pages = weight_figures(nuclei)
    assert first.numbers == weight_table(weight_statistics(nuclei))
    assert sorted(row for page in pages for row in page.numbers[1:]) == sorted(first.numbers[1:])
    assert len({figure.name for figure in [first, *pages]}) == 1 + len(pages)
    for figure in [first, *pages]:
        assert figure.stage == "weights" and figure.picture.dtype == np.uint8
        assert figure.picture.shape[1:] == (1000, 3) and figure.picture.std() > 5
    assert "Alarm: fpn.lateral.p3.conv.weight is dead: all are 0." in first.caption
    told = [page.title for page in pages if "Alarm" in page.caption]
    assert told == ["Feature pyramid: weights", "Region proposal network: weights"]
