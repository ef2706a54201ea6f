"""R-CNN put together: its figure against a slow composition of the paper's steps, and its training in a folder."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from maskrcnn.data.classes import Classes
from maskrcnn.data.dataset import AdaptedSequence
from maskrcnn.lineage import rcnn
from maskrcnn.lineage.box_regression import BoxRegressors
from maskrcnn.lineage.fine_tuning import Tuned
from maskrcnn.lineage.rcnn import RCNN, SYSTEM, RCNNDetection, select, train
from maskrcnn.lineage.region_net import RegionNet, RegionNetConfig
from maskrcnn.lineage.svm import LinearSVMs
from maskrcnn.lineage.system import Bench, Stopwatch
from maskrcnn.lineage.warp import WarpConfig, warp
from maskrcnn.model.backbone import BackboneConfig
from maskrcnn.ops.box_coder import BoxCoder
from maskrcnn.structures import Target
from maskrcnn.training.recipe import Recipe

TINY = BackboneConfig(
    name="resnet18",
    options={"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 24), "stem_type": "deep", "stem_width": 8},
    norm="batch",
    frozen_stages=0,
)
CLASSES = Classes(("red", "green", "blue"), (7, 8, 9))
STAGES = {"proposals", "warp", "features", "SVM", "boxes"}


def _rcnn(proposals: Tensor, config: RCNNDetection | None = None) -> RCNN:
    torch.manual_seed(4)
    net = RegionNet(RegionNetConfig(body=TINY, num_classes=3, warp=WarpConfig(side=32))).eval()
    svms = LinearSVMs(torch.randn(3, 96) * 0.5, torch.tensor([0.2, -100.0, 0.1]), 0.5)
    regressors = BoxRegressors(torch.randn(3, 96, 4) * 0.02, torch.randn(3, 4) * 0.1)
    return RCNN(net, svms, regressors, CLASSES, lambda picture: proposals, config or RCNNDetection())


def _picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def _boxes(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    corners = torch.rand(count, 2, generator=generator) * 40
    return torch.cat([corners, corners + 5 + torch.rand(count, 2, generator=generator) * 20], dim=1)


def _iou(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0.0) * max(height, 0.0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def test_detecting_equals_a_slow_composition_of_the_papers_steps() -> None:
    """Region by region and class by class."""
    proposals, picture = _boxes(40), _picture()
    system, watch = _rcnn(proposals), Stopwatch()
    found = system.detect(picture, watch)

    pixels = system.net.normalised(torch.from_numpy(picture).permute(2, 0, 1))
    expected: list[tuple[float, int, list[float]]] = []
    for k in (0, 1, 2):
        scored = []
        for proposal in proposals:
            with torch.no_grad():
                cells = system.net.map(warp(pixels, proposal[None], WarpConfig(side=32)))[0]  # (24, 2, 2)
            margin = float(system.svms.weights[k] @ cells.flatten() * 0.5 + system.svms.biases[k])
            deltas = cells.flatten() @ system.regressors.weights[k] + system.regressors.offsets[k]
            x1, y1, x2, y2 = BoxCoder().decode(deltas, proposal).tolist()
            box = [min(max(x1, 0), 80), min(max(y1, 0), 60), min(max(x2, 0), 80), min(max(y2, 0), 60)]
            if margin > -1.5 and box[2] - box[0] > 0.01 and box[3] - box[1] > 0.01:
                scored.append((margin, box))
        kept: list[list[float]] = []
        for margin, box in sorted(scored, reverse=True):
            if all(_iou(box, other) <= 0.3 for other in kept):
                kept.append(box)
                expected.append((1 / (1 + math.exp(-margin)), k + 1, box))
    expected.sort(reverse=True)

    assert len(found) == len(expected) > 5
    torch.testing.assert_close(found.scores, torch.tensor([score for score, _, _ in expected]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.boxes, torch.tensor([box for _, _, box in expected]), atol=1e-3, rtol=1e-4)
    assert found.labels.tolist() == [label for _, label, _ in expected] and 2 not in found.labels
    assert found.names == tuple(CLASSES.names[label - 1] for _, label, _ in expected)
    assert found.category_ids == tuple(6 + label for _, label, _ in expected)
    assert found.masks is None and found.size == (60, 80) and set(watch.seconds) == STAGES


def test_no_proposals_is_no_detection() -> None:
    watch = Stopwatch()
    found = _rcnn(torch.zeros(0, 4)).detect(_picture(), watch)
    assert len(found) == 0 and found.boxes.shape == (0, 4) and found.names == () and found.size == (60, 80)
    assert STAGES - {"features"} <= set(watch.seconds)


def test_the_best_are_kept_where_there_are_more_than_the_limit() -> None:
    many = _rcnn(_boxes(40)).detect(_picture(), Stopwatch())
    few = _rcnn(_boxes(40), RCNNDetection(max_detections=3)).detect(_picture(), Stopwatch())
    assert torch.equal(few.boxes, many.boxes[:3]) and torch.equal(few.scores, many.scores[:3])


def test_boxes_of_different_classes_do_not_suppress_one_another() -> None:
    box = torch.tensor([[5.0, 5.0, 20.0, 20.0]])
    boxes = torch.stack([box.expand(3, 4), box.expand(3, 4) + 1])  # (2, 3, 4)
    margins = torch.tensor([[2.0, -0.5, -1.5], [1.0, 3.0, -2.0]])
    found = select(boxes, margins, CLASSES, (60, 80), RCNNDetection())
    assert found.names == ("green", "red")
    torch.testing.assert_close(found.scores, torch.tensor([3.0, 2.0]).sigmoid())


# --- training ------------------------------------------------------------------------------------------------------


def _colored(count: int) -> AdaptedSequence:
    """Grey pictures with a red and a blue square, and no green one; the last picture is plain grey."""
    samples = []
    for i in range(count):
        picture = np.full((96, 96, 3), 90, dtype=np.uint8)
        corners = torch.tensor([[8.0 + 2 * i, 10.0], [50.0, 52.0 - 3 * i]])
        for (x, y), color in zip(corners.int().tolist(), ((230, 20, 20), (20, 20, 230)), strict=True):
            picture[y : y + 32, x : x + 32] = color
        target = Target(
            torch.cat([corners, corners + 32], dim=1), torch.tensor([1, 3]), None, torch.zeros(2).bool(), (96, 96)
        )
        samples.append((picture, target))
    none = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), None, torch.zeros(0).bool(), (96, 96))
    samples.append((np.full((96, 96, 3), 90, dtype=np.uint8), none))
    return AdaptedSequence(samples, CLASSES)


def _proposals(data: AdaptedSequence) -> list[Tensor]:
    """Boxes near the objects and boxes anywhere; of the last picture none."""
    near = [target.gt_boxes.repeat(8, 1) + torch.randn(16, 4) * 3 for target in map(data.target, range(len(data) - 1))]
    return [*(torch.cat([boxes, _boxes(30) * 1.4]).clamp(0, 96) for boxes in near), torch.zeros(0, 4)]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    data = _colored(8)
    proposals = _proposals(data)
    monkeypatch.setattr(rcnn, "proposals_of", lambda dataset, folder, progress: proposals)
    monkeypatch.setattr(rcnn, "seconds_of_proposing", lambda dataset, folder: 2.5)
    monkeypatch.setattr(rcnn, "RegionNetConfig", partial(RegionNetConfig, warp=WarpConfig(side=32)))
    usual = rcnn.recipe_for_bench

    def of_steps(bench: Bench, minutes: float) -> Recipe:
        """A fixed number of steps in place of the clock."""
        assert minutes == bench.minutes * rcnn.TUNING_SHARE
        recipe = usual(bench, minutes)
        return replace(recipe, minutes=None, steps=60, learning_rate=0.01, precision="float32")

    monkeypatch.setattr(rcnn, "recipe_for_bench", of_steps)
    return Bench(
        train=data, val=data, folder=tmp_path / "rcnn", proposals=tmp_path, minutes=5.0, body=TINY, device="cpu"
    )


def test_it_learns_and_a_second_call_repeats_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("sklearn")
    said: list[str] = []
    with caplog.at_level(logging.WARNING, logger="maskrcnn"):
        trained = train(replace(bench, progress=lambda what, done: said.append(what)))
    assert set(trained.training) == {"proposals", "fine-tuning", "features", "SVM", "box regression"}
    assert list(dict.fromkeys(said)) == ["fine-tuning", "features", "SVM", "box regression"]
    assert trained.facts["steps"] == 60 and trained.facts["pictures with features"] == 9
    assert trained.facts["regions with features"] == 8 * 48
    assert [record.getMessage() for record in caplog.records] == [
        "R-CNN: class 'green' has no positive example: its SVM never fires"
    ]
    system = trained.detect.__self__  # type: ignore[attr-defined]
    assert isinstance(system, RCNN)
    picture, target = bench.train[2]
    nearby = replace(system, proposer=lambda picture: torch.cat([target.gt_boxes + 2, _boxes(30) * 1.4]))
    found = nearby.detect(picture, Stopwatch())
    best = {name: box for box, _, name in reversed(list(found))}
    assert set(best) == {"red", "blue"}
    for name, gt_box in zip(("red", "blue"), target.gt_boxes.tolist(), strict=True):
        assert _iou(best[name].tolist(), gt_box) > 0.7

    def refused(*args: object) -> Tuned:
        raise AssertionError("learned again")

    for name in ("fine_tune", "train_svms", "RidgeSums"):
        monkeypatch.setattr(rcnn, name, refused)
    monkeypatch.setattr(RegionNet, "features_of", refused)
    second = train(bench)
    assert second.training == trained.training and second.facts == trained.facts
    again = second.detect.__self__  # type: ignore[attr-defined]
    assert torch.equal(again.svms.weights, system.svms.weights) and again.svms.scale == system.svms.scale
    assert torch.equal(again.regressors.weights, system.regressors.weights)
    assert all(torch.equal(value, again.net.state_dict()[name]) for name, value in system.net.state_dict().items())


def test_another_network_takes_nothing_from_the_one_before(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("sklearn")

    def untrained(net: RegionNet, *args: object) -> Tuned:
        return Tuned(net.eval(), 0, 0.0)

    monkeypatch.setattr(rcnn, "fine_tune", untrained)
    first = train(bench).detect.__self__  # type: ignore[attr-defined]
    with caplog.at_level(logging.WARNING, logger="maskrcnn"):
        other = train(replace(bench, seed=1)).detect.__self__  # type: ignore[attr-defined]
    for file in ("network", "features/8", "svms", "regressors"):
        assert f"{file}.safetensors: was made from something else" in caplog.text
    assert not torch.equal(first.svms.weights, other.svms.weights)
    assert not torch.equal(first.regressors.weights, other.regressors.weights)


def test_features_stop_with_their_share_of_the_minutes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr(rcnn, "fine_tune", lambda net, *args: Tuned(net.eval(), 0, 0.0))
    trained = train(replace(bench, minutes=1e-9))
    assert trained.facts["pictures with features"] == 1


def test_the_system_says_what_it_is() -> None:
    assert (SYSTEM.key, SYSTEM.name) == ("rcnn", "R-CNN") and SYSTEM.train is train
