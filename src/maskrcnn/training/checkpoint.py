"""The state of a run: all that a later process needs to go on as if nothing had happened. One file, no pickles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from maskrcnn.errors import InputError
from maskrcnn.model.mask_rcnn import MaskRCNN
from maskrcnn.training.optim import Average
from maskrcnn.weights.files import write_tensors

STATE_FILE = "state.safetensors"


@dataclass
class Progress:
    """How far a run is. seconds: of wall time spent so far, validations included. best: the best AP yet, -1: none."""

    step: int = 0
    seconds: float = 0.0
    best: float = -1.0
    best_step: int = 0
    validations_since_best: int = 0
    validations: int = 0


@dataclass
class TrainingState:
    """What learns and how far it is."""

    model: MaskRCNN
    optimizer: torch.optim.Optimizer
    average: Average | None
    progress: Progress

    @property
    def deployed(self) -> MaskRCNN:
        """The weights that are scored and shipped: the averaged ones where there is an average."""
        if self.average is None:
            return self.model
        assert isinstance(self.average.model, MaskRCNN)
        return self.average.model


def save_state(folder: Path, state: TrainingState, settings: Mapping[str, Any]) -> Path:
    """Write weights, average, optimizer and progress to `folder`, whole or not at all.

    settings: of the run (recipe, data, preset), compared on resuming.
    """
    tensors = {f"model.{name}": value for name, value in state.model.state_dict().items()}
    if state.average is not None:
        tensors |= {f"average.{name}": value for name, value in state.average.model.state_dict().items()}
    optimizer = state.optimizer.state_dict()
    for index, values in optimizer["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in values.items() if value is not None}
    document = {"progress": vars(state.progress), "settings": settings}
    own = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    return write_tensors(folder / STATE_FILE, own, {"maskrcnn_training": json.dumps(document)})


def restore_state(folder: Path, state: TrainingState, settings: Mapping[str, Any]) -> None:
    """Put what `save_state` wrote into `state`, in place.

    Errors: `InputError` where there is nothing to resume, the file is damaged, or the run was started with other
    settings, naming the first that differs.
    """
    path = folder / STATE_FILE
    document, tensors = _read(path)
    _require_same(document["settings"], settings, path)
    try:
        state.model.load_state_dict(_under(tensors, "model."))
        if state.average is not None:
            state.average.model.load_state_dict(_under(tensors, "average."))
    except RuntimeError as error:
        raise InputError("weights of another model", file=path, found=str(error)) from error
    optimizer = state.optimizer.state_dict()
    optimizer["state"] = _optimizer_state(_under(tensors, "optimizer."))
    state.optimizer.load_state_dict(optimizer)
    state.progress = Progress(**document["progress"])


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise InputError("nothing to resume", file=path, expected="the state file of a run that was stopped")
    try:
        with safetensors.safe_open(path, framework="pt") as stream:
            text = (stream.metadata() or {}).get("maskrcnn_training", "null")
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}
        document = json.loads(text)
    except (safetensors.SafetensorError, json.JSONDecodeError) as error:
        raise InputError("damaged state file", file=path, found=str(error)) from error
    if not isinstance(document, dict):
        raise InputError("not the state of a run", file=path)
    return document, tensors


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def _optimizer_state(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    by_parameter: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        by_parameter.setdefault(int(index), {})[name] = value
    return by_parameter


def _require_same(found: Mapping[str, Any], expected: Mapping[str, Any], path: Path) -> None:
    plain = json.loads(json.dumps(expected))
    for name in sorted(set(found) | set(plain)):
        if found.get(name) != plain.get(name):
            place, was, now = _first_difference(name, found.get(name), plain.get(name))
            raise InputError("the run was started with another setting", file=path, field=place, found=was, expected=now)


def _first_difference(name: str, was: Any, now: Any) -> tuple[str, str, str]:
    if isinstance(was, dict) and isinstance(now, dict):
        for key in sorted(set(was) | set(now)):
            if was.get(key) != now.get(key):
                return _first_difference(f"{name}.{key}", was.get(key), now.get(key))
    return name, repr(was), repr(now)
