"""RoIAlign's sample points: reading the map there by hand gives what the pooler gives."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from maskrcnn.inspection.canvas import View
from maskrcnn.inspection.draw_levels import _in_original, level_figures
from maskrcnn.inspection.levels import Samples, chosen_roi, level_of_boxes, roi_levels, roi_samples
from maskrcnn.inspection.probe import Steps
from maskrcnn.model.roi_pooler import RoIPooler, RoIPoolerConfig

from .detectors import Change, cascade, centred, detector, inspected, one_map, plain

METHODS = (
    RoIPoolerConfig(),
    RoIPoolerConfig(sampling_ratio=0),
    RoIPoolerConfig(sampling_ratio=3, aligned=False),
    RoIPoolerConfig(sampling_ratio=0, aligned=False),
    RoIPoolerConfig(method="align_max"),
    RoIPoolerConfig(method="warp"),
    RoIPoolerConfig(method="pool"),
    RoIPoolerConfig(method="crop"),
    RoIPoolerConfig(extent=-1.0),
    RoIPoolerConfig(method="pool", extent=-1.0),
)


def _read(feature: Tensor, y: float, x: float) -> Tensor:
    """(C,) bilinear, 0 is the centre of the first cell."""
    low_y, low_x = math.floor(y), math.floor(x)
    high_y, high_x = min(low_y + 1, feature.shape[1] - 1), min(low_x + 1, feature.shape[2] - 1)
    top = feature[:, low_y, low_x] * (1 - x + low_x) + feature[:, low_y, high_x] * (x - low_x)
    bottom = feature[:, high_y, low_x] * (1 - x + low_x) + feature[:, high_y, high_x] * (x - low_x)
    return top * (1 - y + low_y) + bottom * (y - low_y)


def _pooled_by_hand(samples: Samples, feature: Tensor) -> Tensor:
    """(C, S, S): every sample point read alone; the mean of a bin, or the largest."""
    side = len(samples.x)
    pooled = torch.zeros(feature.shape[0], side, side)
    for row in range(side):
        for column in range(side):
            values = []
            for i in range(samples.y.shape[1]):
                for j in range(samples.x.shape[1]):
                    counts = bool(samples.counted_y[row, i]) and bool(samples.counted_x[column, j])
                    if counts:
                        values.append(_read(feature, float(samples.y[row, i]), float(samples.x[column, j])))
                    elif samples.method != "pool":
                        values.append(torch.zeros(feature.shape[0]))
            if values:
                stack = torch.stack(values)
                largest = samples.method in ("pool", "align_max")
                pooled[:, row, column] = stack.amax(dim=0) if largest else stack.mean(dim=0)
    return pooled


def _with_pooler(steps: Steps, config: RoIPoolerConfig) -> Steps:
    """The same steps of a detector that pools in another way."""
    model = detector().model
    before = model.box_pooler
    model.box_pooler = RoIPooler(config, before.side, before.strides, before.corners)
    return replace(steps, model=model, config=replace(steps.config, roi_pooler=config))


@pytest.mark.parametrize("config", METHODS, ids=lambda c: f"{c.method}-{c.sampling_ratio}-{c.aligned}-{c.extent:g}")
def test_the_points_are_those_that_the_pooler_reads(config: RoIPoolerConfig) -> None:
    steps = _with_pooler(inspected(), config)
    generator = torch.Generator().manual_seed(2)
    features = {name: torch.randn(1, 3, *f.shape[2:], generator=generator) for name, f in steps.features.items()}
    height, width = steps.padded_size
    boxes = torch.tensor(
        [
            [10.3, 21.7, 44.1, 40.2],
            [0.0, 0.0, width, height],
            [-30.0, -20.5, 12.0, 14.0],
            [width - 9.0, height - 7.0, width + 50.0, height + 3.0],
            [50.2, 30.1, 50.9, 30.6],
            [20.0, 20.0, 20.0, 60.0],
        ]
    )
    rois = replace(steps.rois, boxes=boxes[None], valid=torch.ones(1, len(boxes), dtype=torch.bool))
    steps = replace(steps, rois=rois, features=features)
    pooled = steps.model.box_pooler(features, boxes, torch.zeros(len(boxes), dtype=torch.int64))
    for row in range(len(boxes)):
        samples = roi_samples(steps, row)
        by_hand = _pooled_by_hand(samples, features[samples.level][0])
        assert torch.allclose(by_hand, pooled[row], atol=2e-5), (row, (by_hand - pooled[row]).abs().max())


@pytest.mark.parametrize("change", [plain, centred, cascade, one_map])
def test_points_of_real_detectors(change: Change) -> None:
    steps = inspected(change)
    rows = torch.arange(0, int(steps.rois.valid.sum()), 200)
    pooled = steps.model.box_pooler(steps.features, steps.rois.boxes[0][rows], torch.zeros_like(rows))
    for row, expected in zip(rows.tolist(), pooled, strict=True):
        samples = roi_samples(steps, row)
        by_hand = _pooled_by_hand(samples, steps.features[samples.level][0][:4])
        assert torch.allclose(by_hand, expected[:4], atol=1e-4)
        assert samples.stride == steps.model.box_pooler.strides[samples.level]


def test_levels_go_by_the_size_that_the_network_sees() -> None:
    steps = inspected()
    levels = roi_levels(steps)
    boxes = steps.rois.boxes[0][steps.rois.valid[0]].double()
    for box, level in zip(boxes.tolist(), levels.level.tolist(), strict=True):
        side = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
        expected = min(max(math.floor(4 + math.log2(side / 112) + 1e-6), 2), 5)
        assert levels.names[level] == f"p{expected}"
    assert sum(levels.counts) == len(boxes) and levels.counts[0] > 0 and levels.counts[1] > 0


@pytest.mark.parametrize("change", [plain, centred])
def test_levels_are_those_that_the_pooler_took(change: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = inspected(change)
    taken: list[Tensor] = []
    original = RoIPooler.levels

    def recorded(self: RoIPooler, boxes: Tensor) -> Tensor:
        taken.append(original(self, boxes))
        return taken[-1]

    told = level_of_boxes(steps.model.box_pooler, steps.proposals.boxes[0], steps)
    monkeypatch.setattr(RoIPooler, "levels", recorded)
    boxes = steps.proposals.boxes[0]
    with torch.no_grad():
        steps.model.pooled_for_boxes(steps.features, boxes, torch.zeros(len(boxes), dtype=torch.int64))
    assert len(taken) == 1 and torch.equal(told, taken[0]) and len(told.unique()) > 1


def test_the_chosen_roi_is_that_of_the_best_detection() -> None:
    steps = inspected()
    row = chosen_roi(steps)
    assert row is not None
    best = int(steps.box_outputs.class_logits.softmax(1)[:, 1:].amax(dim=1).argmax())
    assert row == best
    nothing = replace(steps.rois, valid=torch.zeros_like(steps.rois.valid))
    unfound = replace(steps.detection_candidates, filled=torch.zeros_like(steps.detection_candidates.filled))
    assert chosen_roi(replace(steps, detection_candidates=unfound)) == 0
    assert chosen_roi(replace(steps, detection_candidates=unfound, rois=nothing)) is None


@pytest.mark.parametrize("change", [plain, centred])
def test_places_in_the_picture(change: Change) -> None:
    """The corners of the picture, in the padded frame with pixels' centres at +0.5, come back as its corners."""
    steps = inspected(change)
    height, width = steps.batch.image_sizes[0].tolist()
    left, top = steps.window[:2].tolist()
    places = _in_original(steps, torch.tensor([left, left + width]), torch.tensor([top, top + height]))
    assert torch.allclose(places, torch.tensor([[0.0, 0.0], [128.0, 96.0]]), atol=1e-4)


def test_figures_tell_the_numbers() -> None:
    steps = inspected()
    assigned, samples = level_figures(steps, View.of(steps.picture), row=0)
    assert sum(int(row[2]) for row in assigned.numbers[1:] if isinstance(row[2], int)) == int(steps.rois.valid.sum())
    assert samples.numbers[1][-3:] == ("7 x 7", "2 x 2", 196)
