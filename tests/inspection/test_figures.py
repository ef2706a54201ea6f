"""All figures of one picture: every stage in order, for every kind of detector, whatever there is to be seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import maskrcnn
from maskrcnn.inspection.figure import STAGES, Figure
from maskrcnn.inspection.figures import figures
from maskrcnn.model.mask_rcnn import MaskRCNNConfig

from .detectors import Change, boxes_only, cascade, centred, detector, drawn, inspected, one_map


def _check(made: list[Figure], *, masks: bool = True) -> None:
    stages = [figure.stage for figure in made]
    assert sorted(stages, key=STAGES.index) == stages
    assert set(stages) == set(STAGES) - (set() if masks else {"masks"})
    assert len({figure.name for figure in made}) == len(made)
    for figure in made:
        assert figure.picture.dtype == np.uint8 and figure.picture.ndim == 3 and figure.picture.shape[2] == 3
        assert 300 <= figure.picture.shape[1] <= 1100 and figure.picture.shape[0] >= 8, figure.name
        assert figure.title and len(figure.caption) > 20 and figure.caption.endswith(".")
        assert len({len(row) for row in figure.numbers}) <= 1, figure.name
        for row in figure.numbers:
            assert all(value is None or type(value) in (int, float, str) for value in row), (figure.name, row)


@pytest.mark.parametrize("change", [centred, cascade, boxes_only, one_map])
def test_every_detector_has_its_stages(change: Change) -> None:
    _check(figures(inspected(change)), masks=change is not boxes_only)


def test_nothing_found_and_nothing_known() -> None:
    made = figures(inspected(score_threshold=1.0, truth=False))
    _check(made)
    captions = {figure.name: figure.caption for figure in made}
    assert "ground truth" in captions["anchors_matched"] and "0 detections" in captions["result"]
    steps = inspected()
    assert steps.target is not None
    _check(figures(replace(steps, target=steps.target.chosen(torch.zeros(len(steps.target), dtype=torch.bool)))))


@pytest.mark.parametrize("size", [(1, 1), (3, 400)])
def test_pictures_of_any_size(size: tuple[int, int]) -> None:
    picture = np.random.default_rng(2).integers(0, 255, (*size, 3), dtype=np.uint8)
    _check(figures(maskrcnn.inspect(detector(), picture)))


@pytest.mark.parametrize("part", ["box_heads", "rpn", "mask_heads", "backbone"])
def test_weights_that_are_not_finite(part: str) -> None:
    """What a run that exploded leaves behind is what people come to look into."""
    broken = detector()
    parts = getattr(broken.model, part)
    for module in parts if isinstance(parts, list) else [parts]:
        for weights in module.parameters():
            weights.data.fill_(float("nan"))
    picture, _ = drawn()
    _check(figures(maskrcnn.inspect(broken, picture)))


def test_class_names_that_are_no_line_of_text() -> None:
    def renamed(config: MaskRCNNConfig) -> MaskRCNNConfig:
        return replace(config, class_names=("a cat\r", "b\n\u2029\x85dog", "<b>\u202e日本"))

    picture, _ = drawn()
    _check(figures(maskrcnn.inspect(detector(renamed), picture, score_threshold=0.0)))


@pytest.mark.slow
def test_thousands_of_detections_in_a_large_picture() -> None:
    picture = np.random.default_rng(2).integers(0, 255, (2400, 3200, 3), dtype=np.uint8)
    steps = maskrcnn.inspect(
        detector(), picture, score_threshold=0.0, nms_iou=1.0, max_detections=5000, proposals=2500, size=400
    )
    assert len(steps.detections) == 5000
    _check(figures(steps))
