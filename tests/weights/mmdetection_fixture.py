"""What MMDetection found with seeded random weights, and the same weights again as a file that MMDetection could write.

A fixture is `fixtures/mmdetection/NAME.npz` as `parity.py` says, with MMDetection's config (the text of one file) and
classes (names) in `about`, what `inference_detector` gave, and

    PICTURE.areas     (D,) int32: pixels of each whole mask
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from . import parity

FOLDER = parity.FIXTURES / "mmdetection"
names = partial(parity.names, FOLDER)  # every committed variant
read = partial(parity.Fixture.read, folder=FOLDER)

# The last norm of each residual branch is damped, so that maps keep their size through a hundred layers. Predictors are
# scaled until scores, boxes and masks differ.
ROLES = (
    (r"num_batches_tracked$", "constant:7"),
    (r"layer\d\.\d+\.(bn|gn)3\.weight$", "scale:0.2"),
    (r"running_mean$", "bias:0.1"),
    (r"running_var$", "variance"),
    (r"((bn|gn)\d?|downsample\.1)\.weight$", "scale:1"),
    (r"((bn|gn)\d?|downsample\.1)\.bias$", "bias:0.1"),
    (r"(lateral|fpn)_convs\.\d\.conv\.weight$", "weight:0.7"),
    (r"rpn_cls\.weight$", "normal:0.02"),
    (r"rpn_reg\.weight$", "normal:0.005"),
    (r"fc_cls\.weight$", "weight:0.7"),
    (r"fc_reg\.weight$", "weight:0.3"),
    (r"conv_logits\.weight$", "weight:0.7"),
    (r"weight$", "weight"),
    (r"bias$", "bias:0.1"),
)


def weights(tensors: Mapping[str, Any], roles: Sequence[Sequence[str]], seed: int) -> dict[str, torch.Tensor]:
    """The seeded tensors, counters as whole numbers."""
    return {name: torch.from_numpy(array) for name, array in parity.weights(tensors, roles, seed).items()}


def weights_of(fixture: parity.Fixture) -> dict[str, torch.Tensor]:
    return weights(fixture.about["tensors"], fixture.about["roles"], fixture.about["seed"])


def write(path: Path, state: Mapping[str, torch.Tensor], meta: Mapping[str, Any] | None) -> Path:
    """A `.pth` as MMDetection's training writes them, with what a resumed run needs beside the tensors."""
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.02, "params": [0]}]}
    content = {"state_dict": dict(state), "optimizer": optimizer}
    torch.save(content if meta is None else {"meta": dict(meta), **content}, path)
    return path
