"""Faster R-CNN as a system: trained at once, or in four steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from maskrcnn.lineage.faster_rcnn import ALTERNATING, SYSTEM, train, train_in_four_steps
from maskrcnn.lineage.four_steps import NAMES
from maskrcnn.lineage.small import faster_rcnn_config, mask_rcnn_config
from maskrcnn.lineage.system import Bench, Stopwatch

STAGES = {"features", "proposals", "heads"}


def test_is_mask_rcnn_without_masks_and_with_roi_pool(bench: Bench) -> None:
    ours = faster_rcnn_config(bench, bench.train.classes)
    mask = mask_rcnn_config(bench, bench.train.classes)
    assert ours.mask_head is None and (ours.roi_pooler.method, mask.roi_pooler.method) == ("pool", "align")
    assert (ours.rpn, ours.backbone, ours.fpn, ours.box_head) == (mask.rpn, mask.backbone, mask.fpn, mask.box_head)


def test_all_at_once(bench: Bench, few_steps: dict[str, Any]) -> None:
    trained = train(bench, **few_steps)
    assert trained.facts == {"steps": 3.0} and set(trained.training) == {"network"} and trained.training["network"] > 0
    watch = Stopwatch()
    found = trained.detect(bench.val.sample(0)[0], watch)
    assert set(watch.seconds) == STAGES and found.masks is None and found.size == (64, 64)
    again = train(bench, **few_steps).detect(bench.val.sample(0)[0], Stopwatch())  # read from the folder
    assert torch.equal(found.boxes, again.boxes) and torch.equal(found.scores, again.scores)


def test_in_four_steps(bench: Bench, few_steps: dict[str, Any]) -> None:
    told: dict[str, list[float]] = {}
    bench = replace(bench, train=bench.train[:2], progress=lambda what, done: told.setdefault(what, []).append(done))
    trained = train_in_four_steps(bench, **few_steps | {"steps": 1})
    assert trained.facts == {"steps": 4.0} and set(trained.training) == {*NAMES, "proposals"}
    assert all(seconds > 0 for seconds in trained.training.values())
    assert told == {f"training, {name}": [1.0] for name in NAMES} | {"proposals": [0.5, 1.0] * 2}
    watch = Stopwatch()
    assert trained.detect(bench.val.sample(0)[0], watch).masks is None
    assert set(watch.seconds) == STAGES


def test_names() -> None:
    assert (SYSTEM.key, SYSTEM.name) == ("faster-rcnn", "Faster R-CNN")
    assert ALTERNATING.key == "faster-rcnn-alternating"
