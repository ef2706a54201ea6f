"""Mask R-CNN: a mask beside every box, and RoIAlign, which rounds no box (He et al. 2017).

What it changed: a third, small, fully convolutional head, and pooling that keeps a pixel where it is, without which
masks would lie beside their objects.

Trained at once, stage by stage as Matterport's code does it, or in the four steps of Faster R-CNN.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from maskrcnn.lineage.four_steps import four_steps, take_over
from maskrcnn.lineage.learning import fit, recipe_for_bench
from maskrcnn.lineage.networks import as_trained, new_network, train_at_once
from maskrcnn.lineage.small import mask_rcnn_config
from maskrcnn.lineage.system import Bench, System, Trained

# name, stages of the body that stand still, part of the time, learning rate; epochs 40, 80 and 40 of Matterport's 160
STAGES = (
    ("heads", 5, 0.25, 1.0),
    ("c4 and up", 3, 0.5, 1.0),
    ("all", 0, 0.25, 0.1),
)


def train(bench: Bench, **changes: Any) -> Trained:
    """All of it at once. changes: of the recipe."""
    return train_at_once(bench, mask_rcnn_config(bench, bench.train.classes), **changes)


def train_by_stages(bench: Bench, **changes: Any) -> Trained:
    """Pyramid, RPN and heads first, on a body that stands still; then its upper stages too; then all, ten times slower.

    It keeps a pretrained body from what heads that know nothing yet would do to it: a body that starts from nothing has
    little to keep.
    """
    config, before, training, steps = mask_rcnn_config(bench, bench.train.classes), None, {}, 0
    for number, (name, freeze, part, rate) in enumerate(STAGES):
        own = {"minutes": part * bench.minutes, **changes, "freeze": freeze}
        recipe = recipe_for_bench(bench, **own)
        recipe = replace(recipe, learning_rate=rate * recipe.learning_rate)
        model = new_network(bench, config)
        if before is not None:
            take_over(model, before)
        told = partial(bench.progress, f"training, {name}")
        fitted = fit(model, bench.train, recipe, bench.folder / f"stage-{number + 1}", told, bench.device)
        before, training[name], steps = fitted.model, fitted.seconds, steps + fitted.steps
    assert before is not None
    return as_trained(before, training, steps)


def train_in_four_steps(bench: Bench, **changes: Any) -> Trained:
    """RPN first, then Mask R-CNN, in turn until they share their features (4.4)."""
    return four_steps(bench, mask_rcnn_config(bench, bench.train.classes), **changes).trained()


SYSTEM = System("mask-rcnn", "Mask R-CNN", "He et al. 2017", train)
STAGEWISE = System("mask-rcnn-stagewise", "Mask R-CNN, stage by stage", "Abdulla 2017, Mask_RCNN", train_by_stages)
ALTERNATING = System("mask-rcnn-alternating", "Mask R-CNN, 4-step training", "He et al. 2017, 4.4", train_in_four_steps)
