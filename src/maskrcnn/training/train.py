"""`maskrcnn.train`: from labelled pictures to a folder with weights, scores and pictures of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from maskrcnn.data.loader import TrainLoader
from maskrcnn.data.opening import DataLike
from maskrcnn.engine.memory import freed_memory_kept
from maskrcnn.errors import InputError
from maskrcnn.evaluation.evaluate import Evaluation
from maskrcnn.model.config import to_dict
from maskrcnn.model.mask_rcnn import MaskRCNN
from maskrcnn.predictor import Predictor, load
from maskrcnn.training.augment import picture_weights, training_transform
from maskrcnn.training.checkpoint import Saved, TrainingState, read_saved, require_same, restore_state
from maskrcnn.training.distributed import World, everyone_here, join_world
from maskrcnn.training.loop import Observers, learn
from maskrcnn.training.recipe import Recipe
from maskrcnn.training.run_folder import Plan, RunFolder
from maskrcnn.training.start import (
    DEFAULT_PRESET,
    Pictures,
    Preset,
    open_pictures,
    place_of,
    preset_name,
    preset_of,
    require_place,
    settled_recipe,
    starting_model,
    starting_state,
)
from maskrcnn.training.validate import Validation, score, spread, validation_losses
from maskrcnn.weights.opening import ConfigLike, open_weights


@dataclass(frozen=True)
class TrainingRun:
    """What `train` leaves behind.

    folder: everything is in it. best, last: weights. scores: of the best weights on all validation pictures, None where
    the run was stopped before its end (`finished` is then False) or this process is not the main one.
    """

    folder: Path
    finished: bool
    scores: Evaluation | None

    @property
    def best(self) -> Path:
        return self.folder / "best.safetensors"

    @property
    def last(self) -> Path:
        return self.folder / "last.safetensors"

    def load(self, **options: Any) -> Predictor:
        """The best weights, ready to predict."""
        return load(self.best, **options)


def train(
    data: DataLike,
    *,
    out: str | Path,
    preset: str | Preset | None = None,
    weights: str | Path | None = None,
    config: ConfigLike | None = None,
    val: DataLike | None = None,
    val_fraction: float = 0.1,
    images: str | Path | None = None,
    skip_bad: bool = False,
    recipe: Recipe | None = None,
    scale: float | None = None,
    pretrained_backbone: bool = False,
    resume: bool = False,
    device: str = "auto",
    quiet: bool = False,
    licence: str = "unknown",
    source: str = "",
    **changes: Any,
) -> TrainingRun:
    """Train a detector, score it, and write all of it to the folder `out`.

    Args:
        data: an annotation file, a folder that holds one (or one each for train and val), the word "shapes", or a
            sequence of (picture, Target).
        preset: "nano" (the default), "r50-fpn" or another of `maskrcnn.model.presets.PRESETS`; or a function like those
            in that file, from class names and category ids to a config. With `weights` only its recipe is taken.
        weights: a detector to start from, by name or file; heads of other classes are made anew. The recipe is by
            default that of the preset which the weights were trained with.
        config: what those weights do not say, as `maskrcnn.load` takes it.
        val: pictures to be scored on; else the folder's own, else a fixed `val_fraction` of `data`.
        images: the folder of the pictures, where it is not found beside the annotations.
        skip_bad: leave out bad annotations and pictures rather than refuse to start.
        recipe: how to train; the preset's own by default. Its fields can be given one by one as `changes`:
            `train(data, out="runs/x", steps=500, seed=3, augmentation={"crop": 128})`.
        scale: how much larger than the pictures the network sees them, in place of the preset's own size.
        pretrained_backbone: start from timm's weights of the backbone, fetched through huggingface_hub.
        resume: go on where a stopped run in `out` was, with its own recipe, preset and start; data as before.
        device: auto (CUDA, else MPS, else the CPU), cpu, cuda, mps. quiet: no bar and no lines on stderr.
        licence, source: of the weights that come out, written into them.

    Errors: `InputError` for bad data, options or weights, before anything is written; on a loss that is not finite.
    """
    folder = place_of(out)
    require_place(folder, resume)
    if pretrained_backbone and weights:
        raise InputError("has no use with weights", field="pretrained_backbone", expected="one of the two")
    if config is not None and (resume or not weights):
        expected = "the run's own" if resume else "weights that it tells more of"
        raise InputError("has no use here", field="config", expected=expected)
    with join_world(device) as world:
        saved = read_saved(folder) if resume else None
        opened = open_weights(weights, config) if weights and not resume else None
        kind = preset or (DEFAULT_PRESET if opened is None else preset_of(opened))
        settled = settled_recipe(recipe, changes, kind, saved, world)
        pictures = open_pictures(
            data, val, val_fraction=val_fraction, seed=settled.seed, images=images, skip_bad=skip_bad
        )
        settings = _settings(kind, weights, pretrained_backbone, data, pictures, settled)
        settings["origin"] = {"licence": licence, "source": source or settings["data"]}
        if saved is not None:
            settings |= _kept_settings(saved, preset, weights)
            require_same(saved.settings, settings, folder)
        plan = Plan(settled, pictures, settings, settings["origin"])
        torch.manual_seed(settled.seed)
        if saved is not None:
            model, notes = MaskRCNN(saved.config), [f"resumed at step {saved.progress.step}"]
        else:
            loaded = None if opened is None else opened.model
            model, notes = starting_model(pictures, kind, loaded, scale=scale, pretrained_backbone=pretrained_backbone)
            notes += [] if opened is None else [f"{weights} does not tell: {line}" for line in opened.assumed]
        return _run(folder, plan, world, model, notes, resume=resume, quiet=quiet)


def _settings(
    preset: str | Preset,
    weights: str | Path | None,
    pretrained_backbone: bool,
    data: DataLike,
    pictures: Pictures,
    recipe: Recipe,
) -> dict[str, Any]:
    """What a run is, ready for JSON: compared when it is resumed."""
    return {
        "preset": preset_name(preset),
        "weights": str(weights or ""),
        "pretrained_backbone": pretrained_backbone,
        "data": str(data) if isinstance(data, str | Path) else "",
        "pictures": pictures.fingerprint(),
        "recipe": to_dict(recipe),
    }


def _kept_settings(saved: Saved, preset: str | Preset | None, weights: str | Path | None) -> dict[str, Any]:
    """Of a resumed run: how it was started, unless that is given again (and then has to be the same)."""
    names = ["data", "pretrained_backbone", "origin"]  # the data may have moved; their pictures are compared
    names += ["preset"] if preset is None else []
    names += ["weights"] if weights is None else []
    return {name: saved.settings[name] for name in names}


def _run(
    folder: Path, plan: Plan, world: World, model: MaskRCNN, notes: list[str], *, resume: bool, quiet: bool
) -> TrainingRun:
    """Train, then score and draw. Nothing is written before all processes have found everything in order."""
    state = starting_state(model, plan.recipe, world, notes)
    if resume:
        restore_state(folder, state, plan.settings)
    loader = TrainLoader(
        plan.pictures.train,
        training_transform(plan.recipe.augmentation, model.config.preprocess),
        plan.recipe.batch_size,
        plan.recipe.seed,
        plan.recipe.workers,
        weights=picture_weights(plan.pictures.train, plan.recipe.colour_weight),
        rank=world.rank,
        world_size=world.size,
    )
    everyone_here(world)
    with ExitStack() as stack:
        desk = None
        if world.is_main:
            desk = stack.enter_context(RunFolder(folder, plan, world, state.progress.step, quiet=quiet))
            desk.begin(state, notes)
        batches = loader.batches(state.progress.step)
        # closed whatever happens: the loader's processes do not listen to signals, and would wait for a dead parent
        stack.callback(getattr(batches, "close", lambda: None))
        with _told_of_failure(desk, state), freed_memory_kept():
            finished = learn(state, batches, plan.recipe, plan.length, world, _observers(plan, world, desk))
        scores = None
        if desk is not None and finished:
            scores = desk.finish(state)
        elif desk is not None:
            desk.stopped(state)
    return TrainingRun(folder, finished, scores)


def _observers(plan: Plan, world: World, desk: RunFolder | None) -> Observers:
    """What the loop calls: the main process's folder, or nothing; losses of validation are everybody's work."""
    judged_by = spread(plan.pictures.val, plan.recipe.validation_pictures)

    def validate(state: TrainingState) -> bool:
        losses = validation_losses(state.deployed, judged_by, plan.recipe.loss)
        if desk is None:
            return False
        return desk.validated(state, Validation(losses, score(Predictor(state.deployed, world.device), judged_by)))

    if desk is None:
        return Observers(lambda step, values: None, validate, lambda state: None)
    return Observers(desk.losses, validate, desk.save, desk.stepped)


@contextmanager
def _told_of_failure(desk: RunFolder | None, state: TrainingState) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        if desk is not None:
            desk.failed(state, error)
        raise
