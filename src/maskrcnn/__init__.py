"""Mask R-CNN: finds every object in a picture and gives each a box, a class and a mask.

    model = maskrcnn.load("nuclei")
    found = model.predict("cells.png")
    found.boxes, found.scores, found.names, found.masks.rle()

The names below are imported when they are first used, so that `import maskrcnn` alone costs nothing and loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskrcnn.api import evaluate, inspect
    from maskrcnn.data.opening import open_dataset
    from maskrcnn.errors import InputError, InputErrors
    from maskrcnn.evaluation.evaluate import Evaluation
    from maskrcnn.export.opening import load
    from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
    from maskrcnn.predictor import Predictor
    from maskrcnn.structures import Detections, Masks, Target
    from maskrcnn.training.train import train

__version__ = "0.1.0.dev0"

_HOME = {  # public name -> the module that defines it
    "Detections": "maskrcnn.structures",
    "Evaluation": "maskrcnn.evaluation.evaluate",
    "InputError": "maskrcnn.errors",
    "InputErrors": "maskrcnn.errors",
    "MaskRCNN": "maskrcnn.model.mask_rcnn",
    "MaskRCNNConfig": "maskrcnn.model.mask_rcnn",
    "Masks": "maskrcnn.structures",
    "Predictor": "maskrcnn.predictor",
    "Target": "maskrcnn.structures",
    "evaluate": "maskrcnn.api",
    "inspect": "maskrcnn.api",
    "load": "maskrcnn.export.opening",
    "open_dataset": "maskrcnn.data.opening",
    "train": "maskrcnn.training.train",
}

__all__ = [
    "Detections",
    "Evaluation",
    "InputError",
    "InputErrors",
    "MaskRCNN",
    "MaskRCNNConfig",
    "Masks",
    "Predictor",
    "Target",
    "__version__",
    "evaluate",
    "inspect",
    "load",
    "open_dataset",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value  # the next use finds it without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
