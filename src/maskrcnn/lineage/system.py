"""What every system of the lineage is given, and what it gives back: the same for HOG + SVM and for Mask R-CNN."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from maskrcnn.data.dataset import Dataset
from maskrcnn.model.backbone import BackboneConfig
from maskrcnn.structures import Detections

EXTRA = "pip install 'maskrcnn[lineage]'"  # where a library is missing


class Stopwatch:
    """Seconds of wall time by stage: `with watch("proposals"): ...`. Stages follow one another, none inside another."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - began


def _nothing(what: str, done: float) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all systems get alike.

    train, val: pictures. folder: this system's own, for what it keeps between calls (it may hold an earlier, unfinished
    attempt, which is gone on with). proposals: a folder for region proposals, which systems share. minutes: of
    training, each. body: the network's body, where there is one. scale: how much larger than the pictures networks see
    them. progress(what, done): called now and then with what is being done and the part of it that is done, 0 to 1.
    """

    train: Dataset
    val: Dataset
    folder: Path
    proposals: Path
    minutes: float
    steps: int | None = None  # of the optimizer: of networks that learn all at once, in place of the minutes
    body: BackboneConfig
    scale: float = 1.0
    pretrained: bool = False  # the body starts from timm's ImageNet weights
    seed: int = 0
    device: str = "auto"
    progress: Callable[[str, float], None] = _nothing


@dataclass(frozen=True)
class Trained:
    """A system that has learned.

    detect(picture (H, W, 3) uint8 RGB, watch) -> `Detections`, every step of it under one of the watch's stages.
    training: seconds of each stage of learning. facts: numbers that tell how far it came, such as optimizer steps.
    """

    detect: Callable[[np.ndarray, Stopwatch], Detections]
    training: dict[str, float]
    facts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class System:
    """One ancestor. key: for files and options. name: as the papers call it. source: the paper."""

    key: str
    name: str
    source: str
    train: Callable[[Bench], Trained]
