"""What Fast, Faster and Mask R-CNN share: a new network, learning all at once, and detecting by the clock."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from maskrcnn.data.dataset import Dataset
from maskrcnn.engine.tune import tuned
from maskrcnn.lineage.learning import fit, recipe_for_bench
from maskrcnn.lineage.system import Bench, Stopwatch, Trained
from maskrcnn.lineage.timing import detect_timed
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.predictor import Proposer
from maskrcnn.structures import Detections
from maskrcnn.training.start import new_model


def new_network(bench: Bench, config: MaskRCNNConfig, number: int = 0) -> MaskRCNN:
    """A network as it is before its first step. number: of the network, where a system learns several.

    Errors: `InputError` where pretrained weights are asked for and cannot be had.
    """
    torch.manual_seed(bench.seed + 1009 * number)
    return new_model(config, bench.pretrained)


def train_at_once(
    bench: Bench,
    config: MaskRCNNConfig,
    dataset: Dataset | None = None,
    proposer: Proposer | None = None,
    **changes: Any,
) -> Trained:
    """All parts of one network learn together, for the bench's minutes.

    dataset: in place of the bench's, to bring proposals. proposer: as in `detect_timed`. changes: of the recipe.
    Errors: as of `fit`.
    """
    fitted = fit(
        new_network(bench, config),
        bench.train if dataset is None else dataset,
        recipe_for_bench(bench, **changes),
        bench.folder / "network",
        lambda done: bench.progress("training", done),
        bench.device,
    )
    return as_trained(fitted.model, {"network": fitted.seconds}, fitted.steps, proposer)


def as_trained(model: MaskRCNN, training: dict[str, float], steps: int, proposer: Proposer | None = None) -> Trained:
    """`model` as a system. training: seconds of each stage of learning. steps: of the optimizer, in all."""

    network = tuned(model)

    def detect(picture: np.ndarray, watch: Stopwatch) -> Detections:
        return detect_timed(network, picture, watch, proposer)

    return Trained(detect, training, {"steps": float(steps)})
