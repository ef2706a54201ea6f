"""Faster R-CNN: the network proposes its own regions (Ren et al. 2015).

What it changed: a region proposal network, three small convolutions on the features that the detector has anyway, in
place of Selective Search. What stayed: RoIPool, which rounds every box to whole cells.
"""

from __future__ import annotations

from typing import Any

from maskrcnn.lineage.four_steps import four_steps
from maskrcnn.lineage.networks import train_at_once
from maskrcnn.lineage.small import faster_rcnn_config
from maskrcnn.lineage.system import Bench, System, Trained


def train(bench: Bench, **changes: Any) -> Trained:
    """RPN and heads at once; no gradient goes through the boxes ("approximate joint training", 3.2).

    changes: of the recipe.
    """
    return train_at_once(bench, faster_rcnn_config(bench, bench.train.classes), **changes)


def train_in_four_steps(bench: Bench, **changes: Any) -> Trained:
    """RPN and detector in turn, until both read the same features ("4-step alternating training", 3.2)."""
    return four_steps(bench, faster_rcnn_config(bench, bench.train.classes), **changes).trained()


SYSTEM = System("faster-rcnn", "Faster R-CNN", "Ren et al. 2015", train)
ALTERNATING = System(
    "faster-rcnn-alternating", "Faster R-CNN, 4-step training", "Ren et al. 2015, 3.2", train_in_four_steps
)
