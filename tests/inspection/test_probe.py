"""The steps are the detector's own: the last is `predict`'s answer bit for bit; each hands on what the next took."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import maskrcnn
from maskrcnn.data.shapes import ShapesDataset
from maskrcnn.errors import InputError
from maskrcnn.inspection.probe import Steps
from maskrcnn.model.cascade import CascadeConfig
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.model.presets import nano
from maskrcnn.predictor import Predictor
from maskrcnn.structures import Detections

NAMES, IDS = ("circle", "square", "triangle"), (1, 2, 3)


def _plain(config: MaskRCNNConfig) -> MaskRCNNConfig:
    return config


def _cascade(config: MaskRCNNConfig) -> MaskRCNNConfig:
    return replace(config, box_head=replace(config.box_head, class_agnostic=True), cascade=CascadeConfig())


def _centred(config: MaskRCNNConfig) -> MaskRCNNConfig:
    preprocess = replace(config.preprocess, square=256, place="centre")
    anchors = replace(config.rpn.anchors, corners="centres")
    detection = replace(config.detection, whole_pixels=True, best_class_only=True)
    return replace(config, preprocess=preprocess, rpn=replace(config.rpn, anchors=anchors), detection=detection)


def _by_masks(config: MaskRCNNConfig) -> MaskRCNNConfig:
    return replace(config, detection=replace(config.detection, mask_nms_iou=0.3, nms_iou=0.9))


def _boxes_only(config: MaskRCNNConfig) -> MaskRCNNConfig:
    return replace(config, mask_head=None)


def _detector(change: Callable[[MaskRCNNConfig], MaskRCNNConfig] = _plain) -> Predictor:
    """Of random weights, spread so that classes and objectness differ from place to place."""
    torch.manual_seed(3)
    config = nano(NAMES, IDS)
    config = replace(config, detection=replace(config.detection, score_threshold=0.2))
    model = MaskRCNN(change(config))
    with torch.no_grad():
        for head in model.box_heads:
            head.classes.weight.mul_(60)
            head.deltas.weight.mul_(60)
        model.rpn.objectness.weight.mul_(30)
    return Predictor(model, "cpu")


def _same(a: Detections, b: Detections) -> None:
    assert torch.equal(a.boxes, b.boxes) and torch.equal(a.scores, b.scores) and torch.equal(a.labels, b.labels)
    assert a.names == b.names and a.category_ids == b.category_ids and a.size == b.size
    assert (a.masks is None) == (b.masks is None)
    if a.masks is not None and b.masks is not None:
        assert torch.equal(a.masks.probabilities, b.masks.probabilities)
        assert a.masks.rle() == b.masks.rle()


@pytest.mark.parametrize("change", [_plain, _cascade, _centred, _by_masks, _boxes_only])
def test_the_last_step_is_predicts_answer(change: Callable[[MaskRCNNConfig], MaskRCNNConfig]) -> None:
    detector, picture = _detector(change), ShapesDataset(1, size=(96, 128))[0][0]
    steps = maskrcnn.inspect(detector, picture)
    found = detector.predict(picture)
    assert len(found) >= 3
    _same(steps.detections, found)
    assert np.array_equal(steps.detections.draw(), found.draw())
    assert len(steps.placed) == int(steps.found.valid.sum()) and int(steps.kept.sum()) == len(found)
    if change is _by_masks:
        assert not steps.kept.all()
    if change is _boxes_only:
        assert steps.found.mask_logits is None


def test_options_are_those_of_predict() -> None:
    detector, picture = _detector(), ShapesDataset(1, size=(96, 128))[0][0]
    steps = maskrcnn.inspect(
        detector, picture, score_threshold=0.3, nms_iou=0.3, max_detections=4, proposals=40, size=64
    )
    found = detector.predict(picture, score_threshold=0.3, nms_iou=0.3, max_detections=4, proposals=40, size=64)
    assert 0 < len(found) <= 4
    _same(steps.detections, found)
    assert steps.proposals.boxes.shape == (1, 40, 4) and steps.batch.image_sizes.tolist() == [[64, 85]]


def test_the_shipped_detector_on_a_real_picture() -> None:
    detector = maskrcnn.load("nuclei", device="cpu")
    picture = Path(maskrcnn.__file__).parent / "demo_pictures"
    first = sorted(picture.glob("*.png"))[0]
    _same(maskrcnn.inspect(detector, first).detections, detector.predict(first))


def test_each_step_follows_from_the_one_before() -> None:
    steps = maskrcnn.inspect(_detector(), ShapesDataset(1, size=(96, 128))[0][0])
    candidates, r = steps.proposal_candidates, steps.proposals.boxes.shape[1]
    assert len(steps.anchors) == len(steps.anchor_logits) == len(steps.anchor_levels)
    assert torch.equal(steps.anchor_logits[candidates.anchor_index[0]], candidates.logits[0])
    coder = steps.config.rpn.coder
    rows = candidates.anchor_index[0]
    deltas = torch.cat(steps.rpn.deltas, 1)[0][rows]
    assert torch.equal(coder.decode(deltas, steps.anchors[rows]), candidates.refined[0])
    chosen = candidates.chosen[0][candidates.filled[0]]
    assert candidates.kept[0][chosen].all()
    assert torch.equal(candidates.boxes[0][chosen], steps.proposals.boxes[0][steps.proposals.valid[0]])
    rivals, k = steps.detection_candidates, steps.config.num_classes
    probabilities = steps.box_outputs.class_logits.softmax(1)[:, 1:].reshape(r * k)
    assert torch.equal(rivals.scores[0], probabilities)
    kept = rivals.chosen[0][rivals.filled[0]]
    assert rivals.valid[0][kept].all() and torch.equal(
        rivals.boxes[0][kept], steps.found.boxes[0][steps.found.valid[0]]
    )
    levels = steps.anchor_levels
    for i, name in enumerate(steps.level_names):
        height, width = steps.features[name].shape[2:]
        assert int((levels == i).sum()) == height * width * steps.config.rpn.anchors.per_cell


@pytest.mark.parametrize("change", [_plain, _centred])
def test_boxes_go_to_the_original_frame_and_back(change: Callable[[MaskRCNNConfig], MaskRCNNConfig]) -> None:
    steps = maskrcnn.inspect(_detector(change), ShapesDataset(1, size=(96, 128))[0][0])
    boxes = torch.tensor([[0.0, 0.0, 128.0, 96.0], [10.5, 20.25, 60.0, 70.75]])
    padded = steps.in_padded(boxes)
    assert torch.allclose(steps.in_original(padded), boxes, atol=1e-4)
    assert torch.allclose(padded[0], steps.window, atol=1e-4)


def test_all_calls_are_kept_apart_from_the_models_own() -> None:
    """Nothing stays with the model: it has no hooks, and gives what it gave before."""
    detector, picture = _detector(), ShapesDataset(1, size=(96, 128))[0][0]
    before = detector.predict(picture)
    steps = maskrcnn.inspect(detector, picture)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in detector.model.modules())
    assert isinstance(steps, Steps) and not steps.proposals.boxes.requires_grad
    _same(detector.predict(picture), before)


def test_nothing_found_is_an_ordinary_answer() -> None:
    steps = maskrcnn.inspect(_detector(), np.zeros((40, 50, 3), np.uint8), score_threshold=1.0)
    assert len(steps.detections) == 0 and steps.kept.shape == (0,)


def test_ground_truth_of_another_picture_is_refused() -> None:
    dataset = ShapesDataset(1, size=(96, 128))
    picture, target = dataset[0]
    assert maskrcnn.inspect(_detector(), picture, ground_truth=target).target is target
    with pytest.raises(InputError, match=r"ground truth: is of another picture; found \(96, 128\)"):
        maskrcnn.inspect(_detector(), picture[:50], ground_truth=target)


@pytest.mark.parametrize("change", [{"gt_boxes": [0, 0, float("nan"), 9]}, {"gt_labels": 0}])
def test_ground_truth_that_is_none_is_refused(change: dict[str, Any]) -> None:
    picture, target = ShapesDataset(1, size=(96, 128))[0]
    wrong = {name: torch.zeros_like(getattr(target, name)) + torch.tensor(value) for name, value in change.items()}
    with pytest.raises(InputError, match="ground truth: is none; expected boxes of finite numbers, labels from 1"):
        maskrcnn.inspect(_detector(), picture, ground_truth=replace(target, **wrong))
