"""The clock between the stages changes no number."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from maskrcnn.lineage.system import Stopwatch
from maskrcnn.lineage.timing import detect_timed
from maskrcnn.model.mask_rcnn import Limits, MaskRCNN
from maskrcnn.model.presets import drawings
from maskrcnn.predictor import Predictor


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["mask", "boxes only", "given"])
def test_the_same_detections_and_every_stage_timed(picture: np.ndarray, kind: str) -> None:
    torch.manual_seed(0)
    config = drawings(("a", "b"), (1, 2))
    config = replace(config, detection=replace(config.detection, score_threshold=0.0, max_detections=20))
    proposer = None
    if kind != "mask":
        config = replace(config, mask_head=None)
    if kind == "given":
        config = replace(config, rpn=None)
        proposer = lambda image: torch.tensor([[3.0, 4.0, 40.0, 30.0], [10.0, 10.0, 60.0, 44.0]])  # noqa: E731
    model = MaskRCNN(config).eval()
    watch, limits = Stopwatch(), Limits(nms_iou=0.4)
    predictor = Predictor(model, "cpu", proposer=proposer)
    timed = detect_timed(predictor.network, picture, watch, proposer, limits)
    found = predictor.predict(picture, nms_iou=0.4)
    assert len(found) > 0
    assert torch.equal(timed.boxes, found.boxes) and torch.equal(timed.scores, found.scores)
    assert timed.names == found.names and timed.size == (48, 64)
    expected = {"proposals", "features", "heads"}
    if kind == "mask":
        expected.add("masks")
        assert timed.masks is not None and found.masks is not None
        assert torch.equal(timed.masks.probabilities, found.masks.probabilities)
    assert set(watch.seconds) == expected and all(seconds > 0 for seconds in watch.seconds.values())


def test_a_stage_that_comes_again_is_added_up() -> None:
    watch = Stopwatch()
    for _ in range(3):
        with watch("a"):
            pass
    first = watch.seconds["a"]
    with pytest.raises(ZeroDivisionError), watch("a"):
        1 / 0  # noqa: B018
    assert watch.seconds["a"] > first and list(watch.seconds) == ["a"]
