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
from maskrcnn.model.config import from_dict, to_dict
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.training.optim import Average, optimizer_tensors, restore_optimizer
from maskrcnn.weights.files import write_tensors

STATE_FILE = "state.safetensors"
# of a recipe: what may be another when a run is resumed, since the losses do not hang on it
FREE_FIELDS = ("workers", "log_every", "keep_every", "patience", "minutes", "save_minutes")
_METADATA_KEY = "maskrcnn_training"


@dataclass
class Progress:
    """How far a run is.

    seconds: of wall time spent so far, validations included. best: the best AP yet, -1 before the first, at
    `best_step`. validations_since_best: without a better one; what `Recipe.patience` counts.
    """

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


@dataclass(frozen=True)
class Saved:
    """What a state file says of its run, besides the tensors."""

    config: MaskRCNNConfig
    progress: Progress
    settings: dict[str, Any]


def save_state(folder: Path, state: TrainingState, settings: Mapping[str, Any]) -> Path:
    """Write weights, average, optimizer and progress to `folder`, whole or not at all.

    settings: of the run (recipe, data, preset), ready for JSON; compared on resuming.
    """
    tensors = _named("model.", state.model.state_dict())
    if state.average is not None:
        tensors |= _named("average.", state.average.model.state_dict())
    tensors |= _named("optimizer.", optimizer_tensors(state.optimizer))
    document = {"progress": vars(state.progress), "settings": settings, "config": to_dict(state.model.config)}
    own = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    return write_tensors(folder / STATE_FILE, own, {_METADATA_KEY: json.dumps(document)})


def restore_state(folder: Path, state: TrainingState, settings: Mapping[str, Any]) -> None:
    """Put what `save_state` wrote into `state`, in place.

    Errors: `InputError` where there is nothing to resume, the file is damaged, or the run was started with other
    settings, naming the first that differs.
    """
    path = folder / STATE_FILE
    saved = read_saved(folder)
    require_same(saved.settings, settings, path)
    tensors = _read(path, with_tensors=True)[1]
    try:
        state.model.load_state_dict(_under(tensors, "model."))
        if state.average is not None:
            state.average.model.load_state_dict(_under(tensors, "average."))
    except RuntimeError as error:
        raise InputError("weights of another model", file=path, found=str(error)) from error
    restore_optimizer(state.optimizer, _under(tensors, "optimizer."))
    state.progress = saved.progress


def read_saved(folder: Path) -> Saved:
    """What the state file in `folder` says of its run.

    Errors: `InputError` where there is none, or it is damaged.
    """
    path = folder / STATE_FILE
    document = _read(path, with_tensors=False)[0]
    try:
        config = from_dict(MaskRCNNConfig, document["config"], "config")
        return Saved(config, Progress(**document["progress"]), document["settings"])
    except (KeyError, TypeError, InputError) as error:
        raise InputError("not the state of a run", file=path, found=str(error)) from error


def require_same(found: Mapping[str, Any], expected: Mapping[str, Any], path: Path) -> None:
    """Errors: `InputError` that names the first setting which differs between a run's start and its resumption."""
    before, after = (_binding(json.loads(json.dumps(settings))) for settings in (found, expected))
    if before != after:
        place, was, now = _first_difference("", before, after)
        problem = f"the run was started with {was}, not {now}"
        raise InputError(problem, file=path, field=place, expected="the same settings, or another out")


def _read(path: Path, *, with_tensors: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise InputError("nothing to resume", file=path, expected="the state file of a run that was stopped")
    try:
        with safetensors.safe_open(path, framework="pt") as stream:
            text = (stream.metadata() or {}).get(_METADATA_KEY, "null")
            tensors = {name: stream.get_tensor(name) for name in stream.keys()} if with_tensors else {}
        document = json.loads(text)
    except (safetensors.SafetensorError, json.JSONDecodeError) as error:
        raise InputError("damaged state file", file=path, found=str(error)) from error
    if not isinstance(document, dict):
        raise InputError("not the state of a run", file=path)
    return document, tensors


def _binding(settings: dict[str, Any]) -> dict[str, Any]:
    recipe = {name: value for name, value in settings.get("recipe", {}).items() if name not in FREE_FIELDS}
    return settings | {"recipe": recipe}


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in tensors.items()}


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def _first_difference(place: str, was: Any, now: Any) -> tuple[str, str, str]:
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        for key in sorted({*was, *now}):
            if was.get(key) != now.get(key):
                return _first_difference(f"{place}.{key}".removeprefix("."), was.get(key), now.get(key))
    return place, repr(was), repr(now)
