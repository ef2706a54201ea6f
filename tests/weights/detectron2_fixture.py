"""What Detectron2 found with seeded random weights, and the same weights again as a file that Detectron2 could write.

A fixture is `fixtures/detectron2/NAME.npz` as `parity.py` says, with config (the text of Detectron2's `config.yaml`) in
`about`, and what its DefaultPredictor gave.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch

from . import parity

FOLDER = parity.FIXTURES / "detectron2"
names = partial(parity.names, FOLDER)  # every committed variant
read = partial(parity.Fixture.read, folder=FOLDER)
weights = parity.weights

# The last norm of each residual branch is damped, so that maps keep their size through a hundred layers. The stem of a
# network for pixels of +-120 brings them down. Predictors are scaled until scores, boxes and masks differ.
ROLES = (
    (r"num_batches_tracked$", "constant:7"),
    (r"(conv3\.norm|f\.c_bn)\.weight$", "scale:0.2"),
    (r"running_mean$", "bias:0.1"),
    (r"running_var$", "variance"),
    (r"(norm|bn)\.weight$", "scale:1"),
    (r"(norm|bn)\.bias$", "bias:0.1"),
    (r"stem\.conv1?\.weight$", "weight:0.02"),
    (r"fpn_(lateral|output)\d\.weight$", "weight:0.7"),
    (r"objectness_logits\.weight$", "normal:0.02"),
    (r"anchor_deltas\.weight$", "normal:0.005"),
    (r"cls_score\.weight$", "weight:0.5"),
    (r"bbox_pred\.weight$", "weight:0.3"),
    (r"mask_head\.predictor\.weight$", "weight:0.5"),
    (r"score_lowres\.weight$", "weight:0.5"),
    (r"weight$", "weight"),
    (r"bias$", "bias:0.1"),
)


def write_zoo_file(path: Path, state: Mapping[str, np.ndarray]) -> Path:
    """A `.pkl` as Detectron2's model zoo has them: arrays under "model"."""
    with path.open("wb") as stream:
        pickle.dump({"model": dict(state), "__author__": "Detectron2 Model Zoo"}, stream)
    return path


def write_training_file(path: Path, state: Mapping[str, np.ndarray]) -> Path:
    """A `.pth` as Detectron2's training writes them, with what a resumed run needs beside the tensors."""
    model = {name: torch.from_numpy(array) for name, array in state.items()}
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.02, "params": [0]}]}
    scheduler = {"milestones": (210000, 250000), "last_epoch": 270000}
    torch.save({"model": model, "optimizer": optimizer, "scheduler": scheduler, "iteration": 269999}, path)
    return path
