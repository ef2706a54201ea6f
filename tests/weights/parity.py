"""What other frameworks found with seeded random weights: how it is kept, and how it is compared with what we find.

A fixture is `fixtures/FAMILY/NAME.npz`:

    about             JSON: tensors (name to shape), roles and seed of the weights, versions of the libraries, settings
    PICTURE.boxes     (D, 4) float32, and .scores (D,), .labels (D,) 0..K-1
    PICTURE.masks     (C, M, M) uint16: probabilities * 65535 of the detections PICTURE.chosen (C,)
    PICTURE.keypoints (D, J, 3) float32

What a family keeps besides, or otherwise, its own file says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn.predictor import Predictor
from maskrcnn.structures import Detections

from .seeded import seeded_state

FIXTURES = Path(__file__).parent / "fixtures"
PICTURES = FIXTURES / "pictures"
PICTURE_NAMES = ("drawn_wide", "drawn_tall", "cells")
MASK_SCALE = 65535


@dataclass(frozen=True)
class Fixture:
    """One variant: about, as above; found, the arrays of each picture by name."""

    about: dict[str, Any]
    found: dict[str, dict[str, np.ndarray]]

    @classmethod
    def read(cls, name: str, folder: Path) -> Fixture:
        with np.load(folder / f"{name}.npz") as file:
            found: dict[str, dict[str, np.ndarray]] = {}
            for key in file.files:
                picture, _, what = key.partition(".")
                if what:
                    found.setdefault(picture, {})[what] = file[key]
            return cls(json.loads(str(file["about"])), found)

    def write(self, name: str, folder: Path) -> Path:
        arrays = {f"{picture}.{what}": array for picture, found in self.found.items() for what, array in found.items()}
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(folder / f"{name}.npz", about=np.array(json.dumps(self.about)), **arrays)
        return folder / f"{name}.npz"


def names(folder: Path) -> list[str]:
    """Every committed variant."""
    return sorted(path.stem for path in folder.glob("*.npz"))


def weights(tensors: Mapping[str, Any], roles: Sequence[Sequence[str]], seed: int) -> dict[str, np.ndarray]:
    """The seeded tensors, counters as whole numbers."""
    state = seeded_state(tensors, [(pattern, role) for pattern, role in roles], seed)
    return {n: v.astype(np.int64) if n.endswith("num_batches_tracked") else v for n, v in state.items()}


# --- comparison -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What we found in one picture, in the frame of theirs and with their labels.

    boxes: (D, 4), scores: (D,), labels: (D,), masks: (D, M, M) probabilities, keypoints: (D, J, 3).
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None = None
    keypoints: np.ndarray | None = None

    @classmethod
    def of(cls, ours: Detections) -> Found:
        masks = None if ours.masks is None else ours.masks.probabilities.double().numpy()
        keypoints = None if ours.keypoints is None else ours.keypoints.numpy()
        return cls(ours.boxes.numpy(), ours.scores.numpy(), ours.labels.numpy() - 1, masks, keypoints)


@dataclass
class Differences:
    """The largest of all pictures; missing and surplus count detections that one side has and the other has not."""

    boxes: float = 0.0  # px
    scores: float = 0.0
    masks: float = 0.0  # of probabilities
    keypoints: float = 0.0  # px
    detections: int = 0
    unsure: int = 0  # that theirs marks as such: they are not compared
    missing: int = 0
    surplus: int = 0
    kinds: set[str] = field(default_factory=set)

    def add(self, ours: Found | Detections, theirs: Mapping[str, np.ndarray], score_px: float = 0) -> dict[int, int]:
        """Compare one picture's detections. Returns which of ours each of theirs was compared with.

        score_px: see `pairs`.
        """
        found = Found.of(ours) if isinstance(ours, Detections) else ours
        paired = pairs(found, theirs, score_px)
        unsure = theirs.get("unsure", np.zeros(len(theirs["boxes"]), dtype=bool))
        self.detections += len(unsure)
        self.unsure += int(unsure.sum())
        self.missing += sum(i not in paired for i in np.flatnonzero(~unsure))
        self.surplus += max(0, len(found.boxes) - len(paired) - int(unsure.sum()))
        sure = {i: nearest for i, nearest in paired.items() if not unsure[i]}
        for i, nearest in sure.items():
            self._compare(found, nearest, theirs, i)
        return sure

    def _compare(self, ours: Found, nearest: int, theirs: Mapping[str, np.ndarray], i: int) -> None:
        """One of ours with one of theirs."""
        self.boxes = max(self.boxes, _largest(ours.boxes[nearest] - theirs["boxes"][i]))
        self.scores = max(self.scores, abs(float(ours.scores[nearest]) - float(theirs["scores"][i])))
        chosen = list(theirs.get("chosen", ()))
        if i in chosen and ours.masks is not None:
            wanted = theirs["masks"][chosen.index(i)].astype(np.float64) / MASK_SCALE
            self.masks = max(self.masks, _largest(ours.masks[nearest] - wanted))
            self.kinds.add("masks")
        if "keypoints" in theirs and ours.keypoints is not None:
            difference = ours.keypoints[nearest, :, :2] - theirs["keypoints"][i, :, :2]
            self.keypoints = max(self.keypoints, _largest(difference))
            self.kinds.add("keypoints")


def compared(detector: Predictor, fixture: Fixture) -> Differences:
    """What a detector of ours finds in the pictures of a fixture, with what the fixture holds."""
    differences = Differences()
    for picture, found in fixture.found.items():
        differences.add(detector.predict(PICTURES / f"{picture}.png"), found)
    return differences


def pairs(ours: Found, theirs: Mapping[str, np.ndarray], score_px: float = 0) -> dict[int, int]:
    """For each of theirs the nearest box of ours with its label that is still free, if it is within a pixel.

    score_px: pixels that scores which differ by 1 are apart, for detectors that find the same box more than once.
    """
    paired: dict[int, int] = {}
    free = np.ones(len(ours.boxes), dtype=bool)
    for i, (box, score, label) in enumerate(zip(theirs["boxes"], theirs["scores"], theirs["labels"], strict=True)):
        distance = np.abs(ours.boxes - box).max(axis=1) + score_px * np.abs(ours.scores - score)
        distance[~free | (ours.labels != label)] = np.inf
        if len(distance) and distance.min() <= 1:
            paired[i] = int(distance.argmin())
            free[paired[i]] = False
    return paired


def _largest(difference: np.ndarray) -> float:
    return float(np.abs(difference).max())
