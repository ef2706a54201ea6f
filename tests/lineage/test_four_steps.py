"""The four steps: who learns in which, and whose weights the last network has, to the last bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import maskrcnn.lineage.learning as learning
from maskrcnn.data.shapes import ShapesDataset
from maskrcnn.evaluation.evaluate import evaluate
from maskrcnn.lineage.four_steps import FourSteps, four_steps
from maskrcnn.lineage.learning import LOSSES_FILE
from maskrcnn.lineage.small import faster_rcnn_config, mask_rcnn_config
from maskrcnn.lineage.system import Bench
from maskrcnn.model.mask_rcnn import MaskRCNNConfig
from maskrcnn.predictor import Predictor

Make = Callable[..., MaskRCNNConfig]


def small(config: MaskRCNNConfig) -> MaskRCNNConfig:
    """The same with hardly any channels."""
    fpn = None if config.fpn is None else replace(config.fpn, channels=16)
    mask_head = None if config.mask_head is None else replace(config.mask_head, channels=8, num_convs=1)
    return replace(config, fpn=fpn, box_head=replace(config.box_head, fc_channels=32), mask_head=mask_head)


@pytest.fixture
def two_steps(few_steps: dict[str, Any]) -> dict[str, Any]:
    return few_steps | {"steps": 2}


def part(steps: FourSteps, number: int, *names: str) -> dict[str, Tensor]:
    """Weights, and statistics of norms, of these parts of the network that step `number` ended with."""
    state = steps.steps[number - 1].model.state_dict()
    chosen = {name: value for name, value in state.items() if name.split(".")[0] in names}
    assert chosen
    return chosen


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("make", [faster_rcnn_config, mask_rcnn_config])
def test_ends_with_one_network_of_shared_features(make: Make, bench: Bench, two_steps: dict[str, Any]) -> None:
    config = small(make(bench, bench.train.classes))
    steps = four_steps(bench, config, **two_steps)
    whole = steps.steps[3].model
    assert whole.config == config and not whole.training
    shared, heads = ("backbone", "fpn"), ("box_head", "mask_head")
    assert equal(part(steps, 4, *shared), part(steps, 2, *shared))
    assert equal(part(steps, 3, *shared), part(steps, 2, *shared))
    assert equal(part(steps, 4, "rpn"), part(steps, 3, "rpn"))
    assert equal(part(steps, 3, *heads), part(steps, 2, *heads))
    assert not equal(part(steps, 4, *heads), part(steps, 3, *heads))  # the heads learned on
    assert not equal(part(steps, 2, *shared), part(steps, 1, *shared))  # two bodies that know nothing of each other
    assert not equal(part(steps, 3, "rpn"), part(steps, 1, "rpn"))
    assert steps.steps[1].model.rpn is None

    lines = [json.loads((bench.folder / f"step-{i}" / LOSSES_FILE).read_text().splitlines()[0]) for i in (1, 2, 3, 4)]
    losses = [set(line) - {"step", "total", "gradient_norm", "learning_rate", "seconds"} for line in lines]
    of_rpn, of_heads = {"rpn_objectness", "rpn_box"}, {"box_class", "box_delta"}
    of_heads |= {"mask"} if make is mask_rcnn_config else set()
    assert losses == [of_rpn, of_heads, of_rpn, of_heads]
    assert len(list(bench.folder.glob("step-[13]/proposals-*.safetensors"))) == 2


def test_shared_weights_stay_under_weight_decay_and_averaging(bench: Bench, two_steps: dict[str, Any]) -> None:
    few = two_steps | {"ema": 0.5, "weight_decay": 0.5, "learning_rate": 0.1}
    steps = four_steps(bench, small(faster_rcnn_config(bench, bench.train.classes)), **few)
    assert equal(part(steps, 4, "backbone", "fpn"), part(steps, 2, "backbone", "fpn"))
    assert not equal(part(steps, 3, "rpn"), part(steps, 1, "rpn"))


def test_works_without_a_pyramid_and_with_a_frozen_stem(bench: Bench, two_steps: dict[str, Any]) -> None:
    config = small(faster_rcnn_config(bench, bench.train.classes))
    assert config.rpn is not None
    rpn = replace(config.rpn, anchors=replace(config.rpn.anchors, sizes=((12.0, 24.0, 48.0),)))
    body = replace(config.backbone, levels=("c4",), frozen_stages=1)
    steps = four_steps(bench, replace(config, backbone=body, fpn=None, rpn=rpn), **two_steps)
    assert steps.steps[3].model.fpn is None
    assert equal(part(steps, 4, "backbone"), part(steps, 2, "backbone"))


def test_finished_steps_are_read_and_not_repeated(
    bench: Bench, two_steps: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(faster_rcnn_config(bench, bench.train.classes))
    first = four_steps(bench, config, **two_steps)
    made = []
    monkeypatch.setattr(learning, "learn", _counting(learning.learn, made))
    again = four_steps(bench, config, **two_steps)
    assert made == [2, 2, 2, 2]  # steps that were done already when each run began, of 2
    for number in (1, 2, 3, 4):
        state, other = (each.steps[number - 1].model.state_dict() for each in (first, again))
        assert equal(state, other)


def _counting(learn: Callable[..., bool], made: list[int]) -> Callable[..., bool]:
    def counted(state, *rest):  # type: ignore[no-untyped-def]
        made.append(state.progress.step)
        return learn(state, *rest)

    return counted


@pytest.mark.slow
def test_two_pictures_are_learned_by_heart(bench: Bench) -> None:
    """A minute on one core: 200 steps each."""
    options = {"layers": (1, 1, 1, 1), "channels": (16, 24, 32, 48), "stem_type": "deep", "stem_width": 8}
    body = replace(bench.body, options=options)
    bench = replace(bench, train=ShapesDataset(2, size=(64, 64), seed=5, max_objects=4), body=body)
    still = {"crop": 64, "scale": (1.0, 1.0), "flip": 0, "flip_vertical": 0, "turn": 0, "photometric": 0}
    steps = four_steps(
        bench,
        small(mask_rcnn_config(bench, bench.train.classes)),
        steps=200,
        batch_size=2,
        precision="float32",
        learning_rate=0.012,  # 0.003 for two pictures
        augmentation=still,
    )
    scores = evaluate(Predictor(steps.steps[3].model, "cpu").predict, bench.train, max_detections=(100,))
    assert scores.box.ap is not None and scores.box.ap > 0.8
    assert scores.mask is not None and scores.mask.ap is not None and scores.mask.ap > 0.6
