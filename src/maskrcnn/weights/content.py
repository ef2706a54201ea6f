"""What passes between the reading of a foreign file and the detector made of it.

file --reading--> Content --family--> Converted --opening--> MaskRCNN
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from maskrcnn.model.mask_rcnn import MaskRCNNConfig


@dataclass(frozen=True)
class Content:
    """A file of weights, read but not understood yet.

    tensors: by the file's own names, on the CPU, taken out of "model", "state_dict" and the like.
    extras: the plain values beside them: a config, class names, counters.
    file: where they came from, for messages.
    """

    tensors: dict[str, Tensor]
    extras: dict[str, Any] = field(default_factory=dict)
    file: Path = Path("weights")


@dataclass(frozen=True)
class Settings:
    """A config of another framework as nested plain values, and in a few words where it was found."""

    values: Mapping[str, Any]
    origin: str


@dataclass(frozen=True)
class Converted:
    """A foreign detector in our terms.

    config: whole. state: tensors under our names, of our shapes. assumed: one line for each value that neither weights
    nor settings told and that was taken from the family's defaults. family: its name, "Detectron2".
    """

    config: MaskRCNNConfig
    state: dict[str, Tensor]
    assumed: tuple[str, ...]
    family: str
