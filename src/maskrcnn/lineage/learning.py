"""One network of the lineage learns: the training loop of the house, for so many minutes, in a folder of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskrcnn.data.dataset import Dataset
from maskrcnn.data.loader import TrainLoader
from maskrcnn.engine.memory import freed_memory_kept
from maskrcnn.lineage.system import Bench
from maskrcnn.model.config import to_dict
from maskrcnn.model.mask_rcnn import MaskRCNN
from maskrcnn.training.augment import training_transform
from maskrcnn.training.checkpoint import STATE_FILE, TrainingState, read_saved, restore_state, save_state
from maskrcnn.training.distributed import join_world
from maskrcnn.training.loop import Observers, learn
from maskrcnn.training.recipe import Recipe, changed, light, small_drawings
from maskrcnn.training.schedule import length_of
from maskrcnn.training.start import settled_recipe, starting_state

LOSSES_FILE = "losses.jsonl"  # a line of named losses every few steps

_SMALL_CROP, _LARGE_CROP = 128, 256  # px
_LARGE = 224.0  # px, median shorter side as the network sees it, from which on crops are large


@dataclass(frozen=True)
class Fitted:
    """model: the averaged weights, in evaluation mode. steps: of the optimizer. seconds: of learning, wall time."""

    model: MaskRCNN
    steps: int
    seconds: float


def recipe_for_bench(bench: Bench, minutes: float | None = None, **changes: Any) -> Recipe:
    """How all networks of the table learn: from crops, with AdamW, by the clock unless the bench counts steps.

    Small pictures are cropped to 128 px and learned from as drawn shapes are, larger ones to 256 px as the preset
    `nano` does. minutes: in place of the bench's own minutes or steps. changes: of fields of the recipe.
    """
    length: dict[str, Any] = {"minutes": bench.minutes if minutes is None else minutes}
    if minutes is None and bench.steps is not None:
        length = {"steps": bench.steps}
    is_small = _median_side(bench.train) * bench.scale < _LARGE
    recipe = small_drawings() if is_small else replace(light(), colour_weight=1.0)
    crop = _SMALL_CROP if is_small else _LARGE_CROP
    usual = {"augmentation": {"crop": crop}, "seed": bench.seed, "workers": 0, "evaluate_every": 0}
    return changed(changed(recipe, length), {**usual, **changes})


def fit(
    model: MaskRCNN,
    dataset: Dataset,
    recipe: Recipe,
    folder: Path,
    progress: Callable[[float], None] = lambda done: None,
    device: str = "auto",
) -> Fitted:
    """Train `model` in place as `recipe` says; what is frozen (`requires_grad` False) stays as it is.

    folder: holds the state of the run. One that was stopped there is gone on with, one that was finished is read.
    progress(done): after each step, 0 to 1.

    Errors: `InputError` where the folder holds another run, or on a loss that is not finite. `KeyboardInterrupt` on
    Ctrl-C, after the state is saved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = (folder / STATE_FILE).is_file()
    with join_world(device) as world:
        if held and recipe.precision == "auto":  # asked of the machine once
            recipe = replace(recipe, precision=read_saved(folder).settings["recipe"]["precision"])
        recipe = settled_recipe(recipe, {}, "nano", None, world)
        settings = {"recipe": to_dict(recipe), "pictures": len(dataset)}
        torch.manual_seed(recipe.seed)
        state = starting_state(model, recipe, world, [])
        if held:
            restore_state(folder, state, settings)
        length = length_of(recipe, len(dataset))
        transform = training_transform(recipe.augmentation, model.config.preprocess)
        loader = TrainLoader(dataset, transform, recipe.batch_size, recipe.seed, recipe.workers)
        with (folder / LOSSES_FILE).open("a", encoding="utf-8") as log, freed_memory_kept():
            batches = loader.batches(state.progress.step)
            observers = Observers(
                log=lambda step, values: _write_line(log, step, values),
                validate=lambda state: False,
                save=lambda state: _save(folder, state, settings),
                stepped=lambda state: progress(min(1.0, length.part_done(state.progress.step, state.progress.seconds))),
            )
            try:
                finished = learn(state, batches, recipe, length, world, observers)
            finally:
                getattr(batches, "close", lambda: None)()
    if not finished:
        raise KeyboardInterrupt
    return Fitted(state.deployed.eval(), state.progress.step, state.progress.seconds)


def _save(folder: Path, state: TrainingState, settings: dict[str, Any]) -> None:
    save_state(folder, state, settings)


def _write_line(log: Any, step: int, values: dict[str, float]) -> None:
    log.write(json.dumps({"step": step} | {name: round(value, 6) for name, value in values.items()}) + "\n")
    log.flush()


def _median_side(dataset: Dataset) -> float:
    """px, of the shorter sides of the pictures."""
    return float(np.median([min(dataset.target(i).size) for i in range(len(dataset))]))
