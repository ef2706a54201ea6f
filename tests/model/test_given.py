"""Proposals given with the picture: the frame that they end in, fewer in one picture than in another, and none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from maskrcnn.errors import InputError
from maskrcnn.model.given import given_proposals
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.structures import Detections


def fast(config: MaskRCNNConfig) -> MaskRCNN:
    """Fast R-CNN: the detector that makes no proposals of its own."""
    torch.manual_seed(0)
    config = replace(config, rpn=None, detection=replace(config.detection, score_threshold=0.0))
    return MaskRCNN(config).eval()


def assert_same(a: Detections, b: Detections) -> None:
    torch.testing.assert_close(a.boxes, b.boxes)
    torch.testing.assert_close(a.scores, b.scores)
    assert a.labels.tolist() == b.labels.tolist()


def test_they_are_scaled_as_the_picture_is() -> None:
    boxes = [torch.tensor([[10.0, 20.0, 30.0, 40.0], [0.0, 0.0, 50.0, 100.0]]), torch.zeros(0, 4)]
    windows = torch.tensor([[0.0, 0.0, 100.0, 300.0], [0.0, 0.0, 64.0, 64.0]])  # twice as wide, three times as high
    placed = given_proposals(boxes, [(100, 50), (64, 64)], windows, "edges")
    assert placed.boxes[0].tolist() == [[20, 60, 60, 120], [0, 0, 100, 300]]
    assert placed.valid.tolist() == [[True, True], [False, False]]
    assert placed.logits.tolist() == [[0, 0], [-torch.inf, -torch.inf]]


@pytest.mark.parametrize(
    ("boxes", "field", "found"),
    [
        ([], "proposals", "0 tensors"),
        ([torch.zeros(3)], "proposals[0]", "(3,)"),
        ([torch.zeros(2, 5)], "proposals[0]", "(2, 5)"),
        ([torch.tensor([[0.0, 0.0, 1.0, torch.nan]])], "proposals[0]", "(1, 4), not all finite"),
    ],
)
def test_what_does_not_fit(boxes: list[torch.Tensor], field: str, found: str) -> None:
    with pytest.raises(InputError) as caught:
        given_proposals(boxes, [(8, 8)], torch.tensor([[0.0, 0.0, 8.0, 8.0]]), "edges")
    assert (caught.value.field, str(caught.value.found)) == (field, found)


@torch.no_grad()
def test_the_rpns_own_proposals_given_back_find_the_same(tiny_config: MaskRCNNConfig) -> None:
    torch.manual_seed(0)
    config = replace(tiny_config, detection=replace(tiny_config.detection, score_threshold=0.0))
    model = MaskRCNN(config).eval()
    images = [torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8) for _ in range(2)]
    batch = model.preprocess(images)
    padded_size = (batch.pixels.shape[2], batch.pixels.shape[3])
    own = model.propose(model.features(batch.pixels), batch.image_sizes, padded_size, config)
    factor = batch.image_sizes[0, 0] / 64  # resized over original
    proposals = [boxes[valid] / factor for boxes, valid in zip(own.boxes, own.valid, strict=True)]
    for with_rpn, given in zip(model(images), model(images, proposals=proposals), strict=True):
        assert len(with_rpn) > 0
        assert_same(with_rpn, given)


@torch.no_grad()
def test_without_an_rpn(tiny_config: MaskRCNNConfig) -> None:
    model = fast(tiny_config)
    assert model.rpn is None and not any(name.startswith("rpn") for name in model.state_dict())
    images = [torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8) for _ in range(2)]
    proposals = [torch.tensor([[4.0, 4.0, 40.0, 40.0], [20.0, 10.0, 60.0, 50.0]]), torch.zeros(0, 4)]
    some, none = model(images, proposals=proposals)
    assert len(some) > 0 and len(none) == 0
    alone = model(images[:1], proposals=proposals[:1])[0]
    assert_same(some, alone)
    with pytest.raises(InputError, match="proposals"):
        model(images)
