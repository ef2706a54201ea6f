"""The mask head of fully connected layers: its layers by hand, and the same face as the convolutional one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from maskrcnn.errors import InputError
from maskrcnn.model.mask_head import MaskHead, MaskHeadConfig
from maskrcnn.model.mask_mlp import MaskMLP, make_mask_head


def mlp(num_classes: int = 3, num_convs: int = 0, **change: object) -> MaskMLP:
    config = MaskHeadConfig(side=8, num_convs=num_convs, channels=5, num_fcs=2, fc_channels=16, **change)  # type: ignore[arg-type]
    made = make_mask_head(config, 6, num_classes)
    assert isinstance(made, MaskMLP)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def by_hand(model: MaskMLP, roi: Tensor, plane: int) -> Tensor:
    """(M, M) of one RoI (C, S, S): every layer a matrix times a vector, float64."""
    x = roi.double().reshape(-1)
    for layer in model.fcs:
        x = (layer.weight.double() @ x + layer.bias.double()).clamp(min=0)
    weight, bias = model.masks.weight.double(), model.masks.bias.double()
    side = model.config.side
    rows = [[plane * side * side + y * side + x_ for x_ in range(side)] for y in range(side)]
    return torch.stack([torch.stack([weight[r] @ x + bias[r] for r in row]) for row in rows])


def test_equals_its_layers_by_hand() -> None:
    model, pooled, labels = mlp(), torch.randn(3, 6, 4, 4), torch.tensor([2, 1, 3])
    logits = model(pooled, labels)
    assert logits.shape == (3, 8, 8) and [tuple(fc.weight.shape) for fc in model.fcs] == [(16, 96), (16, 16)]
    for r, label in enumerate(labels.tolist()):
        torch.testing.assert_close(logits[r].double(), by_hand(model, pooled[r], label - 1), atol=1e-4, rtol=1e-4)


def test_competing_masks_equal_a_softmax_of_layers_by_hand() -> None:
    model, pooled = mlp(2, classes="competing"), torch.randn(2, 6, 4, 4)
    planes = torch.stack([torch.stack([by_hand(model, roi, k) for k in range(3)]) for roi in pooled])
    expected = torch.softmax(planes, dim=1)
    found = model(pooled, torch.tensor([2, 1])).sigmoid().double()
    torch.testing.assert_close(found, torch.stack([expected[0, 2], expected[1, 1]]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["independent", "competing", "class_agnostic"])
@pytest.mark.parametrize("num_convs", [0, 1])
def test_the_asked_class_is_one_of_all(kind: str, num_convs: int) -> None:
    change = {"class_agnostic": True} if kind == "class_agnostic" else {"classes": kind}
    model, labels = mlp(num_convs=num_convs, **change), torch.tensor([3, 1, 2, 1, 0])
    pooled = torch.randn(5, 6, 4, 4)
    logits, of_all = model(pooled, labels), model.all_classes(pooled)
    assert of_all.shape == (5, 1 if kind == "class_agnostic" else 3, 8, 8)
    expected = of_all[:4, 0] if kind == "class_agnostic" else of_all[range(4), labels[:4] - 1]
    torch.testing.assert_close(logits[:4], expected)
    assert logits[4].isfinite().all()  # an empty row


def test_no_rois() -> None:
    assert mlp()(torch.zeros(0, 6, 4, 4), torch.zeros(0, dtype=torch.int64)).shape == (0, 8, 8)
    assert mlp().all_classes(torch.zeros(0, 6, 4, 4)).shape == (0, 3, 8, 8)


def test_the_papers_has_two_layers_of_1024() -> None:
    with torch.device("meta"):
        head = make_mask_head(MaskHeadConfig(num_convs=0, num_fcs=2), 256, 80)
    assert isinstance(head, MaskMLP)
    assert [tuple(layer.weight.shape) for layer in [*head.fcs, head.masks]] == [
        (1024, 256 * 14 * 14),
        (1024, 1024),
        (80 * 28 * 28, 1024),
    ]


def test_half_precision_gives_full_precision_logits() -> None:
    model, pooled, labels = mlp(), torch.randn(3, 6, 4, 4), torch.tensor([1, 2, 3])
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(pooled, labels)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, model(pooled, labels), atol=0.5, rtol=0.1)


def test_without_fully_connected_layers_it_is_the_convolutional_head() -> None:
    assert isinstance(make_mask_head(MaskHeadConfig(), 6, 3), MaskHead)


@pytest.mark.parametrize(("field", "value"), [("num_fcs", -1), ("fc_channels", 0)])
def test_impossible_values(field: str, value: int) -> None:
    with pytest.raises(InputError, match=rf"MaskHeadConfig\.{field}: impossible value; found {value}"):
        MaskHeadConfig(**{field: value})  # type: ignore[arg-type]
