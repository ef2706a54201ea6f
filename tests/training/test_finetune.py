"""Heads for other classes: rows of shared names are kept, the others are new."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from maskrcnn.errors import InputError
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.training.finetune import adapt_classes


@pytest.fixture
def model(tiny_config: MaskRCNNConfig) -> MaskRCNN:
    """A detector of circle, square and triangle, with distinct numbers everywhere."""
    made = MaskRCNN(tiny_config)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    return made


def test_the_same_classes_keep_everything(model: MaskRCNN) -> None:
    adapted, notes = adapt_classes(model, ("circle", "square", "triangle"), (7, 8, 9))
    assert adapted is model
    assert adapted.config.category_ids == (7, 8, 9)
    assert notes == ["all 3 classes are the checkpoint's own: heads kept"]


def test_rows_of_shared_names_are_kept_in_each_head(model: MaskRCNN) -> None:
    names = ("star", "triangle", "circle", "moon")
    adapted, notes = adapt_classes(model, names, (1, 2, 3, 4))
    assert adapted.config.class_names == names and adapted.mask_head is not None and model.mask_head is not None
    new, old = adapted.box_head.classes, model.box_head.classes
    assert new.weight.shape[0] == 5
    for row, source in ((0, 0), (2, 3), (3, 1)):  # background, triangle, circle
        assert torch.equal(new.weight[row], old.weight[source]) and new.bias[row] == old.bias[source]
    deltas, old_deltas = adapted.box_head.deltas, model.box_head.deltas
    masks, old_masks = adapted.mask_head.masks, model.mask_head.masks
    for row, source in ((1, 2), (2, 0)):
        assert torch.equal(deltas.weight[4 * row : 4 * row + 4], old_deltas.weight[4 * source : 4 * source + 4])
        assert torch.equal(deltas.bias[4 * row : 4 * row + 4], old_deltas.bias[4 * source : 4 * source + 4])
        assert torch.equal(masks.weight[row], old_masks.weight[source])
    for layer, fresh in ((new, (1, 4)), (masks, (0, 3))):
        assert layer.bias is not None and all(layer.bias[row] == 0 for row in fresh)
        assert not any((layer.weight[row] == other).all() for row in fresh for other in old.weight.new_zeros(1, 1))
    assert notes == [
        "made anew for 4 classes (the checkpoint has 3): box_head.classes, box_head.deltas, mask_head.masks",
        "rows kept of 2 classes: triangle, circle",
        "rows made anew for 2 classes: star, moon",
    ]


def test_everything_else_is_the_checkpoints(model: MaskRCNN) -> None:
    adapted, _ = adapt_classes(model, ("star",), (1,))
    heads = ("box_head.classes", "box_head.deltas", "mask_head.masks")
    state = adapted.state_dict()
    for name, value in model.state_dict().items():
        if not name.startswith(heads):
            assert torch.equal(state[name], value), name


def test_what_is_alike_for_all_classes_is_kept(tiny_config: MaskRCNNConfig) -> None:
    assert tiny_config.mask_head is not None
    config = replace(
        tiny_config,
        box_head=replace(tiny_config.box_head, class_agnostic=True),
        mask_head=replace(tiny_config.mask_head, class_agnostic=True),
    )
    old = MaskRCNN(config)
    adapted, notes = adapt_classes(old, ("star", "moon"), (1, 2))
    assert adapted.mask_head is not None and old.mask_head is not None
    assert torch.equal(adapted.box_head.deltas.weight, old.box_head.deltas.weight)
    assert torch.equal(adapted.mask_head.masks.weight, old.mask_head.masks.weight)
    assert notes == [
        "made anew for 2 classes (the checkpoint has 3): box_head.classes",
        "rows made anew for 2 classes: star, moon",
    ]


def test_another_order_moves_the_rows(model: MaskRCNN) -> None:
    adapted, _ = adapt_classes(model, ("square", "triangle", "circle"), (1, 2, 3))
    assert torch.equal(adapted.box_head.classes.weight, model.box_head.classes.weight[[0, 2, 3, 1]])


def test_names_that_occur_twice(model: MaskRCNN) -> None:
    with pytest.raises(InputError, match=r"class_names: .* found \('circle', 'circle'\); expected each only once"):
        adapt_classes(model, ("circle", "circle"), (1, 2))


def test_boxes_only(tiny_config: MaskRCNNConfig) -> None:
    adapted, notes = adapt_classes(MaskRCNN(replace(tiny_config, mask_head=None)), ("star",), (1,))
    assert adapted.mask_head is None and "mask_head" not in notes[0]


def test_many_names_are_cut_short(model: MaskRCNN) -> None:
    names = tuple(f"class {i}" for i in range(40))
    notes = adapt_classes(model, names, tuple(range(1, 41)))[1]
    assert notes[-1].startswith("rows made anew for 40 classes: class 0, class 1, ")
    assert notes[-1].endswith("class 11 and 28 more")


@pytest.mark.parametrize("num_fcs", [0, 1])
@pytest.mark.parametrize("classes", ["independent", "competing"])
def test_planes_of_each_kind_of_mask_head_are_kept(tiny_config: MaskRCNNConfig, num_fcs: int, classes: str) -> None:
    """Planes of shared names and of the background are the checkpoint's, of M * M rows each too."""
    assert tiny_config.mask_head is not None
    head = replace(tiny_config.mask_head, classes=classes, num_fcs=num_fcs, fc_channels=8)  # type: ignore[arg-type]
    old = MaskRCNN(replace(tiny_config, mask_head=head))
    with torch.no_grad():
        for parameter in old.parameters():
            parameter.normal_()
    adapted, notes = adapt_classes(old, ("star", "triangle", "circle", "moon"), (1, 2, 3, 4))
    assert adapted.mask_head is not None and old.mask_head is not None and "mask_head.masks" in notes[0]
    pooled = torch.randn(2, 16, head.pooled_side, head.pooled_side)
    with torch.no_grad():
        new, its = adapted.mask_head.planes(pooled), old.mask_head.planes(pooled)
    first = classes == "competing"  # the background's plane
    assert new.shape[1] == 4 + first and its.shape[1] == 3 + first
    for plane, source in ((1, 2), (2, 0)):
        assert torch.allclose(new[:, plane + first], its[:, source + first], rtol=1e-4, atol=1e-4)
    if first:
        assert torch.allclose(new[:, 0], its[:, 0], rtol=1e-4, atol=1e-4)
    for plane in (0, 3):
        assert not any(torch.allclose(new[:, plane + first], other, atol=0.1) for other in its.unbind(1))
