"""What torchvision found with seeded random weights, and the same weights again as a file that torchvision could write.

Torchvision is installed wherever the tests run, and `test_torchvision_parity.py` asks it itself. The fixtures see to it
that both sides do not change together. A fixture is `fixtures/torchvision/NAME.npz`, as `parity.py` says, with

    about     JSON: tensors (name to shape), config (fields of ours that the weights do not tell), roles and seed of the
              weights, versions (of torchvision, torch)
    labels    (D,) of a picture: torchvision's, less 1
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from . import parity as base
from .parity import MASK_SCALE, PICTURE_NAMES, PICTURES, Differences, Fixture

__all__ = ["MASK_SCALE", "PICTURES", "PICTURE_NAMES", "ROLES", "Differences", "Fixture", "names", "read", "weights"]

FOLDER = Path(__file__).parent / "fixtures" / "torchvision"

# The last norm of each residual branch is damped, so that maps keep their size. One norm of each block of two stages
# has a variance as small as what may be added to it, and what it normalises is as small. Predictors are scaled until
# scores, boxes and masks differ.
FAINT = r"layer[23]\.\d+\.%s"
ROLES = (
    (r"num_batches_tracked$", "constant:7"),
    (FAINT % r"conv2\.weight$", "weight:0.003"),
    (FAINT % r"bn2\.running_mean$", "bias:0.0003"),
    (FAINT % r"bn2\.running_var$", "constant:1e-5"),
    (r"bn3\.weight$", "scale:0.2"),
    (r"running_mean$", "bias:0.1"),
    (r"running_var$", "variance"),
    (r"(bn\d|downsample\.1|fpn\.\w+\.\d\.1|(box|mask)_head\.\d\.1)\.weight$", "scale:1"),
    (r"fpn\.\w+_blocks\.\d\.0\.weight$", "weight:0.7"),
    (r"cls_logits\.weight$", "normal:0.02"),
    (r"rpn\.head\.bbox_pred\.weight$", "normal:0.005"),
    (r"cls_score\.weight$", "weight:0.5"),
    (r"bbox_pred\.weight$", "weight:0.3"),
    (r"mask_fcn_logits\.weight$", "weight:0.5"),
    (r"kps_score_lowres\.weight$", "weight:0.5"),
    (r"weight$", "weight"),
    (r"bias$", "bias:0.1"),
)


def names() -> list[str]:
    """Every committed variant."""
    return base.names(FOLDER)


def read(name: str) -> Fixture:
    return Fixture.read(name, FOLDER)


def weights(tensors: Mapping[str, Any], roles: Sequence[Sequence[str]], seed: int) -> dict[str, torch.Tensor]:
    """The seeded tensors, counters as whole numbers."""
    state = base.weights(tensors, roles, seed)
    return {name: torch.from_numpy(array) for name, array in state.items()}
