"""What MMDetection found with seeded random weights, and the same weights again as a file that MMDetection could write.

A fixture is `fixtures/mmdetection/NAME.npz`:

    about             JSON: tensors (name to shape), config (MMDetection's, as the text of one file), classes (names),
                      roles and seed of the weights, versions (of MMDetection, MMCV, OpenCV, torch)
    PICTURE.boxes     (D, 4) float32, and .scores (D,), .labels (D,) 0..K-1, as `inference_detector` gave them
    PICTURE.masks     (C, M, M) uint16: probabilities * 65535 of the detections PICTURE.chosen (C,)
    PICTURE.areas     (D,) int32: pixels of each whole mask
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .detectron2_fixture import MASK_SCALE, PICTURE_NAMES, PICTURES, Differences
from .seeded import seeded_state

__all__ = ["MASK_SCALE", "PICTURES", "PICTURE_NAMES", "ROLES", "Differences", "Fixture", "names", "weights", "write"]

FOLDER = Path(__file__).parent / "fixtures" / "mmdetection"

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


@dataclass(frozen=True)
class Fixture:
    """One variant: about, as above; found, the arrays of each picture by name."""

    about: dict[str, Any]
    found: dict[str, dict[str, np.ndarray]]

    @classmethod
    def read(cls, name: str) -> Fixture:
        with np.load(FOLDER / f"{name}.npz") as file:
            found: dict[str, dict[str, np.ndarray]] = {}
            for key in file.files:
                picture, _, what = key.partition(".")
                if what:
                    found.setdefault(picture, {})[what] = file[key]
            return cls(json.loads(str(file["about"])), found)

    def write(self, name: str) -> Path:
        arrays = {f"{picture}.{what}": array for picture, found in self.found.items() for what, array in found.items()}
        FOLDER.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(FOLDER / f"{name}.npz", about=np.array(json.dumps(self.about)), **arrays)
        return FOLDER / f"{name}.npz"

    def weights(self) -> dict[str, torch.Tensor]:
        return weights(self.about["tensors"], self.about["roles"], self.about["seed"])


def names() -> list[str]:
    """Every committed variant."""
    return sorted(path.stem for path in FOLDER.glob("*.npz"))


def weights(tensors: Mapping[str, Any], roles: Sequence[Sequence[str]], seed: int) -> dict[str, torch.Tensor]:
    """The seeded tensors, counters as whole numbers."""
    state = seeded_state(tensors, [(pattern, role) for pattern, role in roles], seed)
    counters = {name for name in state if name.endswith("num_batches_tracked")}
    return {name: torch.tensor(7) if name in counters else torch.from_numpy(array) for name, array in state.items()}


def write(path: Path, state: Mapping[str, torch.Tensor], meta: Mapping[str, Any] | None) -> Path:
    """A `.pth` as MMDetection's training writes them, with what a resumed run needs beside the tensors."""
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.02, "params": [0]}]}
    content = {"state_dict": dict(state), "optimizer": optimizer}
    torch.save(content if meta is None else {"meta": dict(meta), **content}, path)
    return path
