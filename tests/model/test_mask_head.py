"""One mask a class; only that of the asked class is made."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maskrcnn.errors import InputError
from maskrcnn.model.config import from_dict, to_dict
from maskrcnn.model.mask_head import MaskHead, MaskHeadConfig, competing_logits
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig


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


def competing(side: int = 28, classes: int = 4) -> MaskHead:
    config = replace(head(side, classes).config, classes="competing")
    made = MaskHead(config, 6, classes)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


@pytest.mark.parametrize("side", [14, 15, 28])
def test_where_classes_compete_probabilities_are_a_softmax(side: int) -> None:
    model, pooled, labels = (
        competing(side),
        torch.randn(7, 6, side // 2, side // 2),
        torch.tensor([1, 4, 2, 3, 1, 1, 4]),
    )
    planes = model.planes(pooled)
    assert planes.shape == (7, 5, side, side)
    expected = torch.softmax(planes, dim=1)
    torch.testing.assert_close(model(pooled, labels).sigmoid(), expected[range(7), labels], atol=1e-6, rtol=0)
    torch.testing.assert_close(model.all_classes(pooled).sigmoid(), expected[:, 1:], atol=1e-6, rtol=0)


def test_one_class_against_the_background_is_the_difference_of_two_planes() -> None:
    model, pooled = competing(classes=1), torch.randn(3, 6, 14, 14)
    planes = model.planes(pooled)
    logits = model(pooled, torch.ones(3, dtype=torch.int64))
    torch.testing.assert_close(logits, planes[:, 1] - planes[:, 0])


def test_competing_logits_of_sure_planes_stay_finite() -> None:
    planes = torch.tensor([0.0, 1e4, -1e4])[None, :, None, None]
    logits = [float(competing_logits(planes, torch.tensor([label]))) for label in (0, 1, 2)]
    assert logits == [-1e4, 1e4, -2e4]


def test_competing_logits_have_the_gradient_of_their_definition() -> None:
    """In float64, against finite differences, and against log p - log(1 - p) where that is not yet rounded away."""
    planes, labels = torch.randn(4, 5, 3, 3, dtype=torch.float64, requires_grad=True), torch.tensor([1, 4, 2, 2])
    assert torch.autograd.gradcheck(lambda x: competing_logits(x, labels), (planes,))
    p = torch.softmax(planes, dim=1)[range(4), labels]
    torch.testing.assert_close(competing_logits(planes, labels), p.log() - (1 - p).log())


def test_competing_with_no_rois_or_labels() -> None:
    model = competing()
    assert model(torch.zeros(0, 6, 14, 14), torch.zeros(0, dtype=torch.int64)).shape == (0, 28, 28)
    assert model.all_classes(torch.zeros(0, 6, 14, 14)).shape == (0, 4, 28, 28)
    assert model(torch.randn(2, 6, 14, 14), torch.tensor([0, 3])).isfinite().all()


def test_where_classes_compete_all_of_them_learn() -> None:
    model = competing()
    model(torch.randn(1, 6, 14, 14), torch.tensor([2])).sum().backward()
    assert model.masks.weight.grad is not None and model.masks.weight.grad.flatten(1).any(dim=1).all()


def test_one_mask_for_all_classes_leaves_none_to_compete() -> None:
    expected = r"MaskHeadConfig\.class_agnostic: .*found True; expected false, where classes compete for a pixel"
    with pytest.raises(InputError, match=expected):
        MaskHeadConfig(class_agnostic=True, classes="competing")


def test_configs_written_before_there_were_variants_are_read() -> None:
    config = MaskHeadConfig(side=14, num_convs=1)
    written = to_dict(config)
    old = {name: written[name] for name in ("side", "num_convs", "channels", "norm", "class_agnostic")}
    assert from_dict(MaskHeadConfig, old) == config == from_dict(MaskHeadConfig, written)


@pytest.mark.parametrize("change", [{"classes": "competing"}, {"num_fcs": 2, "num_convs": 0, "fc_channels": 16}])
def test_detecting_with_a_variant(tiny_config: MaskRCNNConfig, change: dict[str, object]) -> None:
    """Masks of each picture as the head gives them for the detected boxes."""
    assert tiny_config.mask_head is not None
    changed = replace(tiny_config, mask_head=replace(tiny_config.mask_head, **change))  # type: ignore[arg-type]
    model = MaskRCNN(from_dict(MaskRCNNConfig, to_dict(changed))).eval()
    assert model.config == changed and model.mask_head is not None
    nn.init.normal_(model.mask_head.masks.weight, std=2.0)
    nn.init.normal_(model.box_head.classes.weight, std=0.3)
    picture = torch.rand(3, 64, 80)
    with torch.no_grad():
        batch = model.preprocess([picture])
        features = model.features(batch.pixels)
        found = model.detect(batch.pixels, batch.image_sizes)
        pooled = model.pooled_for_masks(features, found.boxes[0], torch.zeros(10, dtype=torch.int64))
        expected = model.mask_head.all_classes(pooled).sigmoid()[range(10), found.labels[0] - 1]
        (detections,) = model([picture])
    assert len(detections) == 10 and len(detections.labels.unique()) > 1 and detections.masks is not None
    torch.testing.assert_close(detections.masks.probabilities, expected, atol=1e-5, rtol=0)
    assert detections.masks.probabilities.std() > 0.1
