"""`maskrcnn.load`: weights as a `Predictor`, an exported file as a detector of the same face."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from maskrcnn import predictor
from maskrcnn.engine.tune import Precision
from maskrcnn.errors import InputError
from maskrcnn.export.facts import Facts
from maskrcnn.export.runner import Runner, Session, open_session
from maskrcnn.predictor import Predictor
from maskrcnn.structures import Detections
from maskrcnn.weights.opening import ConfigLike

_log = logging.getLogger("maskrcnn")

EXPORTED = (".onnx", ".openvino", ".pt2")


class ExportedDetector(Runner):
    """What `load` gives for an exported file: a `Runner` whose detections hold tensors, as everybody else's do."""

    def finished(self, found: Detections) -> Detections:
        masks = found.masks
        if masks is not None:
            masks = replace(masks, probabilities=_tensor(masks.probabilities), boxes=_tensor(masks.boxes))
        return replace(
            found,
            boxes=_tensor(found.boxes),
            scores=_tensor(found.scores),
            labels=_tensor(found.labels),
            masks=masks,
            keypoints=None if found.keypoints is None else _tensor(found.keypoints),
        )


def load(
    weights: str | Path,
    config: ConfigLike | None = None,
    precision: Precision = "float32",
    device: str = "auto",
    **options: Any,
) -> Predictor | ExportedDetector:
    """A detector that is ready to predict.

    Args:
        weights: as for `maskrcnn.predictor.load`; or a file that `maskrcnn export` wrote: `.onnx`, `.openvino`, `.pt2`.
            A `.pt2` file is a program: opening it runs what its maker put in, so open only those of people you trust.
        The rest as for `maskrcnn.predictor.load`. They are settled in an exported file, which runs on the CPU.

    Errors: `InputError`, also for what an exported file does not leave open.
    """
    if not is_exported(weights):
        return predictor.load(weights, config, precision, device, **options)
    settled = {"config": config is not None, "precision": precision != "float32", "device": device not in _DEVICES}
    settled |= {name: value is not None for name, value in options.items()}
    for name, is_asked in settled.items():
        if is_asked:
            raise InputError("is settled in an exported file", file=weights, field=name, expected="none")
    if Path(weights).suffix.lower() == ".pt2":
        _log.warning("%s is a program: opening it runs what its maker put in", weights)
    session, facts = open_any_session(Path(weights))
    return ExportedDetector(session, facts, weights)


_DEVICES = ("auto", "cpu")


def is_exported(weights: object) -> bool:
    """Whether `weights` names a file that `maskrcnn export` writes, by its suffix."""
    return isinstance(weights, str | Path) and Path(weights).suffix.lower() in EXPORTED


def open_any_session(path: Path) -> tuple[Session, Facts]:
    """The recorded network of any exported file, and what the file says of itself."""
    if path.suffix.lower() == ".pt2":
        from maskrcnn.export.torch_export import open_pt2

        return open_pt2(path)
    return open_session(path, threads=torch.get_num_threads())


def _tensor(values: object) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(cast(np.ndarray, values)))
