"""What Detectron2 found with seeded random weights, and the same weights again as a file that Detectron2 could write.

A fixture is `fixtures/detectron2/NAME.npz`:

    about             JSON: tensors (name to shape), config (the text of Detectron2's config.yaml), roles and seed of
                      the weights, versions (of Detectron2, torch)
    PICTURE.boxes     (D, 4) float32, and .scores (D,), .labels (D,) 0..K-1, as Detectron2's DefaultPredictor gave them
    PICTURE.masks     (C, M, M) uint16: probabilities * 65535 of the detections PICTURE.chosen (C,)
    PICTURE.keypoints (D, J, 3) float32
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskrcnn.structures import Detections

FOLDER = Path(__file__).parent / "fixtures" / "detectron2"
PICTURES = Path(__file__).parent / "fixtures" / "pictures"
PICTURE_NAMES = ("drawn_wide", "drawn_tall", "cells")
MASK_SCALE = 65535

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


@dataclass(frozen=True)
class Fixture:
    """One variant: about, as above; found, the arrays of each picture by name."""

    about: dict[str, Any]
    found: dict[str, dict[str, np.ndarray]]

    @classmethod
    def read(cls, name: str, folder: Path = FOLDER) -> Fixture:
        with np.load(folder / f"{name}.npz") as file:
            found: dict[str, dict[str, np.ndarray]] = {}
            for key in file.files:
                picture, _, what = key.partition(".")
                if what:
                    found.setdefault(picture, {})[what] = file[key]
            return cls(json.loads(str(file["about"])), found)

    def write(self, name: str, folder: Path = FOLDER) -> Path:
        arrays = {f"{picture}.{what}": array for picture, found in self.found.items() for what, array in found.items()}
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(folder / f"{name}.npz", about=np.array(json.dumps(self.about)), **arrays)
        return folder / f"{name}.npz"


def names(folder: Path = FOLDER) -> list[str]:
    """Every committed variant."""
    return sorted(path.stem for path in folder.glob("*.npz"))


def weights(seeded_state: Any, tensors: Mapping[str, Any], roles: Any, seed: int) -> dict[str, np.ndarray]:
    """The seeded tensors, counters as whole numbers. seeded_state: the function of `seeded.py`."""
    state = seeded_state(tensors, [tuple(role) for role in roles], seed)
    return {n: v.astype(np.int64) if n.endswith("num_batches_tracked") else v for n, v in state.items()}


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


# --- comparison -------------------------------------------------------------------------------------------------------


@dataclass
class Differences:
    """The largest of all pictures; missing and surplus count detections that one side has and the other has not."""

    boxes: float = 0.0  # px
    scores: float = 0.0
    masks: float = 0.0  # of probabilities
    keypoints: float = 0.0  # px
    detections: int = 0
    missing: int = 0
    surplus: int = 0
    kinds: set[str] = field(default_factory=set)

    def add(self, ours: Detections, theirs: Mapping[str, np.ndarray]) -> None:
        """Compare one picture's detections. Each of theirs is paired with the nearest box of ours with its label."""
        boxes, labels = ours.boxes.numpy(), ours.labels.numpy() - 1
        chosen = list(theirs.get("chosen", ()))
        free = np.ones(len(boxes), dtype=bool)
        for i, (box, score, label) in enumerate(zip(theirs["boxes"], theirs["scores"], theirs["labels"], strict=True)):
            self.detections += 1
            distance = np.where(free & (labels == label), np.abs(boxes - box).max(axis=1), np.inf)
            nearest = int(distance.argmin()) if len(distance) else 0
            if not len(distance) or distance[nearest] > 1:
                self.missing += 1
                continue
            free[nearest] = False
            self.boxes = max(self.boxes, float(distance[nearest]))
            self.scores = max(self.scores, abs(float(ours.scores[nearest]) - float(score)))
            if i in chosen and ours.masks is not None:
                wanted = theirs["masks"][chosen.index(i)].astype(np.float64) / MASK_SCALE
                difference = np.abs(ours.masks.probabilities[nearest].double().numpy() - wanted)
                self.masks = max(self.masks, float(difference.max()))
                self.kinds.add("masks")
            if "keypoints" in theirs and ours.keypoints is not None:
                difference = np.abs(ours.keypoints[nearest, :, :2].numpy() - theirs["keypoints"][i, :, :2])
                self.keypoints = max(self.keypoints, float(difference.max()))
                self.kinds.add("keypoints")
        self.surplus += int(free.sum())
