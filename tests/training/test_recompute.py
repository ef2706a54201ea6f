"""Forgetting activations changes memory, and neither losses nor gradients nor statistics."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from maskrcnn.data.loader import TrainLoader
from maskrcnn.data.shapes import ShapesDataset
from maskrcnn.losses.box_loss import BoxLossConfig
from maskrcnn.losses.mask_rcnn_loss import LossConfig, MaskRCNNLoss
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.structures import Target
from maskrcnn.training.distributed import World
from maskrcnn.training.loop import step_once
from maskrcnn.training.recipe import Recipe
from maskrcnn.training.recompute import recompute_
from maskrcnn.training.start import starting_state

# few RoIs, so that what poolers keep to find their cells again is little beside the activations
LOSSES = LossConfig(box=BoxLossConfig(rois_per_image=8), pre_nms_top_n=50, post_nms_top_n=20)


def batch_of_shapes() -> tuple[list[Tensor], list[Target]]:
    pictures, targets = zip(*next(TrainLoader(ShapesDataset(4, seed=3), None, 2, seed=0).batches()), strict=True)
    return list(pictures), list(targets)


def learned(model: MaskRCNN, precision: torch.dtype = torch.float32) -> tuple[dict[str, Tensor], int]:
    """Losses, gradients and what the model holds after one step; and the bytes that the forward pass kept."""
    pictures, targets = batch_of_shapes()
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            losses = MaskRCNNLoss(model.train(), LOSSES)(model.preprocess.batch(pictures), targets)
    losses["total"].backward()
    gradients = {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {**losses, **gradients, **model.state_dict()}, sum(kept.values())


@pytest.mark.parametrize("norm", ["group", "batch", "frozen"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_changes_but_memory(
    tiny_config: MaskRCNNConfig, norm: Literal["group", "batch", "frozen"], precision: torch.dtype
) -> None:
    torch.manual_seed(0)
    model = MaskRCNN(replace(tiny_config, backbone=replace(tiny_config.backbone, norm=norm)))
    other = copy.deepcopy(model)
    assert recompute_(other) == 4 + 4  # a residual block for each stage; pyramid, RPN and two heads
    assert list(other.state_dict()) == list(model.state_dict())
    expected, bytes_before = learned(model, precision)
    found, bytes_after = learned(other, precision)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    assert bytes_after < 0.8 * bytes_before


def test_a_copy_computes_with_its_own_weights(tiny_config: MaskRCNNConfig) -> None:
    model = MaskRCNN(tiny_config)
    recompute_(model)
    other = copy.deepcopy(model)
    torch.nn.init.constant_(other.box_head.classes.bias, 7.0)
    pooled = torch.zeros(1, other.box_head.fcs[0].in_features // 49, 7, 7)
    found, before = (each.box_head(pooled).class_logits.detach() for each in (other, model))
    assert found.min() > 5 > before.max()


def test_the_recipe_asks_for_it(tiny_config: MaskRCNNConfig) -> None:
    states, notes = {}, []
    for recompute in (False, True):
        torch.manual_seed(0)
        recipe = Recipe(batch_size=2, precision="float32", recompute=recompute)
        states[recompute] = starting_state(MaskRCNN(tiny_config), recipe, World(), notes)
    assert notes == ["recompute: 8 blocks keep their inputs only"]
    batch = next(TrainLoader(ShapesDataset(4, seed=3), None, 2, seed=0).batches())
    for state in states.values():
        values = step_once(MaskRCNNLoss(state.model, LOSSES), state, batch, recipe, World())
        assert values["total"] > 0
    weights = states[False].model.state_dict()
    for name, tensor in states[True].model.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-5, atol=1e-6, msg=name)
