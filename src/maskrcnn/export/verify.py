"""The same pictures through the exported file and through the plain model, and how far apart the two are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from maskrcnn.data.pictures import read_picture
from maskrcnn.errors import InputError
from maskrcnn.export import host
from maskrcnn.export.core import DetectionCore
from maskrcnn.export.facts import Facts
from maskrcnn.export.runner import Session

_NEAR = 1.0  # px; detections of one label whose corners lie no farther apart are the same one

Outputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Differences:
    """Largest differences of detections that both sides have, and how many only one has.

    boxes: px of what the network sees. scores, masks: of probabilities. heatmaps: of their logits, over the largest.
    """

    pictures: int = 0
    detections: int = 0  # of the plain model
    boxes: float = 0.0
    scores: float = 0.0
    masks: float = 0.0
    heatmaps: float = 0.0
    only_plain: int = 0
    only_exported: int = 0

    def line(self) -> str:
        return (
            f"{self.pictures} pictures, {self.detections} detections, largest difference: boxes {self.boxes:.1e} px, "
            f"scores {self.scores:.1e}, masks {self.masks:.1e}, heat maps {self.heatmaps:.1e}; "
            f"{self.only_plain} only in the plain model, {self.only_exported} only in the exported file"
        )


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """Largest differences that are rounding. `only_one`: share of the detections that only one side may have."""

    boxes: float = 0.05
    scores: float = 1e-3
    masks: float = 1e-2
    heatmaps: float = 1e-3
    only_one: float = 0.01

    def problem(self, found: Differences) -> str | None:
        """What is beyond it, None where nothing is."""
        for name in ("boxes", "scores", "masks", "heatmaps"):
            limit = getattr(self, name)
            if not getattr(found, name) <= limit:  # nor is NaN
                return f"{name} differ by {getattr(found, name):.2g}, expected at most {limit:g}"
        alone = found.only_plain + found.only_exported
        most = int(self.only_one * found.detections)
        return f"{alone} detections are found by one side only, expected at most {most}" if alone > most else None


def verify(
    session: Session, core: DetectionCore, facts: Facts, pictures: Sequence[np.ndarray | str | Path]
) -> Differences:
    """Run `pictures`, arrays (H, W, 3) uint8 or files, through both. They are made ready once, by the file's rules."""
    total = Differences()
    for picture in pictures:
        pixels, sizes = host.padded([host.ready(read_picture(picture), facts)], facts)
        with torch.no_grad():
            plain = core(torch.from_numpy(pixels), torch.from_numpy(sizes))
        exported = session(pixels, sizes)
        _require_outputs(exported, facts)
        ours = {name: values.numpy()[0] for name, values in zip(facts.outputs, plain, strict=True)}
        total = _worse(total, compare(ours, {name: values[0] for name, values in exported.items()}))
    return total


def compare(plain: Outputs, exported: Outputs) -> Differences:
    """Of one picture: outputs by name, without the batch's dimension."""
    ours, theirs = np.flatnonzero(plain["valid"]), np.flatnonzero(exported["valid"])
    pairs = _paired(plain, exported, ours, theirs)
    first, second = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    largest = {}
    for name in ("boxes", "scores", "masks", "heatmaps"):
        if name in plain and pairs:
            a, b = plain[name][first].astype(np.float64), exported[name][second].astype(np.float64)
            scale = max(1.0, float(np.abs(a).max())) if name == "heatmaps" else 1.0
            largest[name] = float(np.abs(a - b).max()) / scale
    return Differences(
        pictures=1,
        detections=len(ours),
        only_plain=len(ours) - len(pairs),
        only_exported=len(theirs) - len(pairs),
        **largest,
    )


def _paired(plain: Outputs, exported: Outputs, ours: np.ndarray, theirs: np.ndarray) -> list[tuple[int, int]]:
    """Rows of the same detection on both sides: of one label, each with the nearest that is left, the best first."""
    pairs, left = [], list(theirs.tolist())
    for row in ours.tolist():
        same = [other for other in left if exported["labels"][other] == plain["labels"][row]]
        if not same:
            continue
        apart = np.abs(exported["boxes"][same] - plain["boxes"][row]).max(axis=1)
        nearest = same[int(apart.argmin())]
        if apart.min() <= _NEAR:
            pairs.append((row, nearest))
            left.remove(nearest)
    return pairs


def _worse(a: Differences, b: Differences) -> Differences:
    """Of both: counts together, differences the larger of the two."""

    def larger(x: float, y: float) -> float:
        return float(np.maximum(x, y))  # NaN, where one is

    return Differences(
        pictures=a.pictures + b.pictures,
        detections=a.detections + b.detections,
        boxes=larger(a.boxes, b.boxes),
        scores=larger(a.scores, b.scores),
        masks=larger(a.masks, b.masks),
        heatmaps=larger(a.heatmaps, b.heatmaps),
        only_plain=a.only_plain + b.only_plain,
        only_exported=a.only_exported + b.only_exported,
    )


def _require_outputs(exported: Outputs, facts: Facts) -> None:
    absent = [name for name in facts.outputs if name not in exported]
    if absent:
        raise InputError("does not give what it should", field="outputs", found=f"no {', '.join(absent)}")
