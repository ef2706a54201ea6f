"""Heads in a row: each reads the boxes of the one before, and all have a say in the score."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from maskrcnn.errors import InputError
from maskrcnn.model.box_head import BoxOutputs
from maskrcnn.model.cascade import CascadeConfig, average_logits, refine
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.model.rpn import propose
from maskrcnn.ops.box_coder import BoxCoder
from maskrcnn.ops.boxes import of_sizes


@pytest.fixture
def cascade(tiny_config: MaskRCNNConfig) -> MaskRCNN:
    agnostic = replace(tiny_config.box_head, class_agnostic=True)
    config = replace(tiny_config, box_head=agnostic, cascade=CascadeConfig(mask_heads=True))
    model = MaskRCNN(config).eval()
    for head in model.box_heads:
        torch.nn.init.normal_(head.classes.weight, std=0.3)
        torch.nn.init.normal_(head.deltas.weight, std=0.5)
    for mask_head in model.mask_heads:
        torch.nn.init.normal_(mask_head.masks.weight, std=2.0)
    torch.nn.init.normal_(model.rpn.deltas.weight, std=0.3)
    return model


def test_averages() -> None:
    logits = [torch.randn(5, 4) for _ in range(3)]
    plain = np.stack([np.exp(x.double().numpy()) for x in logits])
    probabilities = (plain / plain.sum(axis=2, keepdims=True)).mean(axis=0)
    assert np.allclose(average_logits(logits, "probabilities").softmax(1).numpy(), probabilities, atol=1e-6)
    of_means = np.exp(np.stack([x.double().numpy() for x in logits]).mean(axis=0))
    of_means /= of_means.sum(axis=1, keepdims=True)
    assert np.allclose(average_logits(logits, "logits").softmax(1).numpy(), of_means, atol=1e-6)
    assert not np.allclose(probabilities, of_means, atol=1e-3)


def test_a_probability_of_nothing_stays_nothing() -> None:
    logits = [torch.tensor([[200.0, 0.0]]), torch.tensor([[300.0, 0.0]])]
    assert average_logits(logits, "probabilities").softmax(1).tolist() == [[1.0, 0.0]]


def test_refined_boxes_stay_in_their_pictures() -> None:
    boxes = torch.tensor([[10.0, 10.0, 30.0, 20.0], [10.0, 10.0, 30.0, 20.0]])
    deltas = torch.tensor([[[10.0, 0.0, 0.0, 0.0]], [[0.0, -20.0, 0.0, 0.0]]], requires_grad=True)
    moved = refine(
        BoxOutputs(torch.zeros(2, 3), deltas),
        boxes,
        BoxCoder((20.0, 20.0, 10.0, 10.0)),
        of_sizes(torch.ones(2, 2) * 35),
    )
    # half a width to the right, cut at 35; a whole height up, cut at 0
    assert moved.tolist() == [[20.0, 10.0, 35.0, 20.0], [10.0, 0.0, 30.0, 10.0]]
    assert not moved.requires_grad


@torch.no_grad()
def test_stages_follow_one_another(cascade: MaskRCNN) -> None:
    """Against one RoI at a time, walked through the heads by hand."""
    batch = cascade.preprocess([torch.randint(0, 256, (3, 64, 80), dtype=torch.uint8) for _ in range(2)])
    features = cascade.features(batch.pixels)
    outputs = cascade.rpn(features, tuple(batch.pixels.shape[2:]))
    many = replace(cascade.config.rpn, post_nms_top_n=300)  # more than there are
    proposals = propose(outputs, of_sizes(batch.image_sizes), many)
    assert not proposals.valid.all()  # padding rows take part
    read, rois = cascade.read_boxes(features, proposals, of_sizes(batch.image_sizes), drop_empty=True)
    scores = read.class_logits.softmax(1).unflatten(0, proposals.valid.shape)
    weights = [(10.0, 10.0, 5.0, 5.0), *CascadeConfig().delta_weights]
    moved = 0.0
    for image, row in proposals.valid.nonzero().tolist()[::5]:
        box, seen = proposals.boxes[image, row][None], []
        for stage, head in enumerate(cascade.box_heads):
            if stage:
                box = BoxCoder(weights[stage - 1]).decode(out.deltas[:, 0], box)  # noqa: F821
                height, width = batch.image_sizes[image].tolist()
                box = torch.minimum(box.clamp(min=0), torch.tensor([width, height, width, height]))
            out = head(cascade.box_pooler(features, box, torch.tensor([image])))
            seen.append(out.class_logits.softmax(1)[0])
        assert torch.allclose(scores[image, row], torch.stack(seen).mean(0), atol=1e-5)
        assert torch.allclose(rois.boxes[image, row], box[0], atol=1e-3)
        moved = max(moved, float((box[0] - proposals.boxes[image, row]).abs().max()))
    assert moved > 1


@torch.no_grad()
def test_dropping_empty_rows_changes_nothing(cascade: MaskRCNN) -> None:
    batch = cascade.preprocess([torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)])
    fixed = cascade.detect(batch.pixels, batch.image_sizes)
    dropped = cascade.detect(batch.pixels, batch.image_sizes, drop_empty=True)
    assert torch.equal(fixed.valid, dropped.valid) and fixed.valid.any()
    assert torch.allclose(fixed.boxes, dropped.boxes, atol=1e-4)
    assert torch.allclose(fixed.scores, dropped.scores, atol=1e-6)


@torch.no_grad()
def test_masks_of_all_stages_are_averaged(cascade: MaskRCNN) -> None:
    batch = cascade.preprocess([torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)])
    found = cascade.detect(batch.pixels, batch.image_sizes)
    features = cascade.features(batch.pixels)
    boxes, labels = found.boxes[0][found.valid[0]], found.labels[0][found.valid[0]]
    assert cascade.mask_pooler is not None and found.mask_logits is not None
    pooled = cascade.mask_pooler(features, boxes, torch.zeros_like(labels))
    each = torch.stack([head(pooled, labels).sigmoid() for head in cascade.mask_heads])
    assert len(each) == 3 and (each[0] - each[1]).abs().max() > 0.1
    assert torch.allclose(found.mask_logits[0][found.valid[0]].sigmoid(), each.mean(0), atol=1e-5)


def test_impossible_configs(tiny_config: MaskRCNNConfig) -> None:
    with pytest.raises(InputError, match=r"BoxHeadConfig\.class_agnostic: .*found False; expected true"):
        replace(tiny_config, cascade=CascadeConfig())
    with pytest.raises(InputError, match=r"CascadeConfig\.delta_weights: .*above 0"):
        CascadeConfig(delta_weights=((1.0, 1.0, 0.0, 1.0),))
    with pytest.raises(InputError, match=r"CascadeConfig\.delta_weights: .*each later stage"):
        CascadeConfig(delta_weights=())
