"""What a run starts from: recipe, pictures and model, all settled and checked before anything is written."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from maskrcnn.data.coco import CocoDataset
from maskrcnn.data.dataset import Dataset, Subset, subset
from maskrcnn.data.opening import DataLike, open_train_val
from maskrcnn.data.shapes import ShapesDataset
from maskrcnn.errors import InputError, InputErrors
from maskrcnn.model.config import as_float, from_dict
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.model.presets import from_scratch
from maskrcnn.model.presets import preset as make_preset
from maskrcnn.training.checkpoint import STATE_FILE, Progress, Saved, TrainingState
from maskrcnn.training.distributed import World, from_main
from maskrcnn.training.finetune import adapt_classes, adapt_keypoints
from maskrcnn.training.kernels import choose_kernels_
from maskrcnn.training.optim import Average, make_optimizer
from maskrcnn.training.precision import fastest_precision
from maskrcnn.training.recipe import RECIPES, Recipe, changed, recipe_for
from maskrcnn.training.recompute import recompute_
from maskrcnn.weights.backbones import require_reachable
from maskrcnn.weights.opening import Opened

Preset = Callable[[tuple[str, ...], tuple[int, ...]], MaskRCNNConfig]  # (class names, category ids) -> config

DEFAULT_PRESET = "nano"
_RUN_FILES = ("config.json", "log.jsonl", STATE_FILE)


@dataclass(frozen=True)
class Pictures:
    """What a run learns from and is judged by.

    skipped: what was left out of both. most_objects: in one training picture. has_masks: any training object has.
    judged: whether the validation pictures hold an object, without which there is no AP.
    """

    train: Dataset
    val: Dataset
    skipped: tuple[InputError, ...]
    most_objects: int
    has_masks: bool
    judged: bool

    def fingerprint(self) -> dict[str, Any]:
        """Numbers of pictures and a hash over their ids and classes: the same where a resumed run sees the same."""
        ids = [self.train.image_ids, self.val.image_ids, self.train.classes.names, self.train.classes.category_ids]
        digest = hashlib.sha1(json.dumps(ids).encode(), usedforsecurity=False).hexdigest()
        return {"training": len(self.train), "validation": len(self.val), "sha1_of_ids_and_classes": digest}


def place_of(out: object) -> Path:
    """The folder that `out` means. Errors: `InputError` for what is no path."""
    if not isinstance(out, str | Path) or not str(out):
        raise InputError("is no folder", field="out", found=repr(out), expected="a path")
    return Path(out)


def require_place(folder: Path, resume: bool) -> None:
    """Errors: `InputError` where the run would write over another, or is to resume what is not there."""
    if folder.exists() and not folder.is_dir():
        raise InputError("is not a folder", file=folder, field="out", expected="a new folder")
    holds_state = (folder / STATE_FILE).is_file()
    holds_run = any((folder / name).exists() for name in _RUN_FILES)
    if resume and not holds_state:
        problem = "there is nothing to resume" + (": the run ended before it saved its state" if holds_run else "")
        expected = f"{STATE_FILE} of a run that was stopped; else start anew in another folder"
        raise InputError(problem, file=folder, field="out", expected=expected)
    if not resume and holds_run:
        expected = "a new folder" + (", or --resume" if holds_state else "; nothing was saved that could be resumed")
        raise InputError("holds another run", file=folder, field="out", expected=expected)


def settled_recipe(
    recipe: Recipe | None, changes: Mapping[str, Any], preset: str | Preset, saved: Saved | None, world: World
) -> Recipe:
    """The recipe given, or the resumed run's, or the preset's; with `changes`, and a precision instead of "auto".

    Errors: `InputError` for impossible fields, and for a batch that the processes cannot share.
    """
    if not (recipe is None or isinstance(recipe, Recipe)):
        raise InputError("is no recipe", field="recipe", found=repr(recipe), expected="a Recipe")
    if not (isinstance(preset, str) or callable(preset)):
        expected = f"{' or '.join(RECIPES)}, or a function that makes a config"
        raise InputError("no such preset", field="preset", found=repr(preset), expected=expected)
    if recipe is None and saved is not None:
        recipe = from_dict(Recipe, saved.settings["recipe"], "recipe")
    recipe = changed(recipe or (recipe_for(preset) if isinstance(preset, str) else Recipe()), changes)
    if recipe.precision == "auto":
        is_bf16 = from_main(float(fastest_precision(world.device) == "bf16"), world)  # one clock decides for all
        recipe = replace(recipe, precision="bf16" if is_bf16 else "float32")
    shares = world.size * recipe.accumulate
    if recipe.batch_size < world.size or (recipe.accumulate > 1 and recipe.batch_size % shares):
        expected = f"a multiple of {world.size} processes x {recipe.accumulate} accumulated parts"
        raise InputError("cannot be shared", field="batch_size", found=recipe.batch_size, expected=expected)
    return recipe


def preset_of(opened: Opened) -> str:
    """The preset whose recipe suits a detector to start from: the one it was trained with, or its kind's."""
    training = opened.metadata.get("training")
    name = training.get("preset") if isinstance(training, Mapping) else None
    if name in RECIPES:
        return str(name)
    # a fixed scale: learned from crops
    return "nano" if opened.model.config.preprocess.scale is not None else "r50-fpn"


def open_pictures(
    data: DataLike,
    val: DataLike | None,
    *,
    val_fraction: float,
    seed: int,
    images: str | Path | None,
    skip_bad: bool,
) -> Pictures:
    """Open both parts and check all that can be checked.

    Errors: `InputError` for bad data, for no picture in a part, and where there is no object to learn from.
    """
    parts = open_train_val(data, val, val_fraction=val_fraction, seed=seed, images=images, skip_bad=skip_bad)
    train, val_part = (_checked(part, skip_bad) for part in parts)
    for name, part in (("data", train), ("val", val_part)):
        if not len(part):
            raise InputError("there is no picture", field=name, expected="at least one")
    targets = [train.target(i) for i in range(len(train))]
    most = max(map(len, targets))
    if most == 0:
        raise InputError("no picture holds an object to learn from", field="data", found=f"{len(train)} pictures")
    return Pictures(
        train,
        val_part,
        skipped=tuple(dict.fromkeys((*train.skipped, *val_part.skipped))),
        most_objects=most,
        has_masks=any(len(target) and target.gt_masks is not None for target in targets),
        judged=any(len(val_part.target(i)) for i in range(len(val_part))),
    )


def starting_model(
    pictures: Pictures,
    preset: str | Preset,
    loaded: MaskRCNN | None = None,
    *,
    scale: float | None = None,
    pretrained_backbone: bool = False,
) -> tuple[MaskRCNN, list[str]]:
    """A new detector of the preset, or the loaded one with heads for the data's classes, and lines for the log."""
    if scale is not None and not 0 < as_float(scale) < math.inf:
        raise InputError("impossible value", field="scale", found=repr(scale), expected="a number above 0")
    names, ids = pictures.train.classes.names, pictures.train.classes.category_ids
    keypoints = pictures.train.keypoints
    if loaded is not None:
        model, notes = adapt_classes(loaded, names, ids)
        if model.mask_head is None and pictures.has_masks:
            notes.append("the weights have no mask head: the masks of the training pictures are not learned")
        if model.mask_head is not None and not pictures.has_masks:
            notes.append("the training pictures have no masks: the mask head does not learn")
        if model.keypoint_head is not None and keypoints is None:
            notes.append("the training pictures have no keypoints: the keypoint head does not learn")
        elif model.keypoint_head is not None and keypoints is not None:
            model, more = adapt_keypoints(model, keypoints)
            notes += more
    else:
        config = make_preset(preset, names, ids) if isinstance(preset, str) else preset(names, ids)
        if not pretrained_backbone:
            config = from_scratch(config)
        notes = [f"start: {preset_name(preset)}, " + ("pretrained backbone" if pretrained_backbone else "from nothing")]
        if config.mask_head is not None and not pictures.has_masks:
            config = replace(config, mask_head=None)
            notes.append("the training pictures have no masks: no mask head, boxes only (Faster R-CNN)")
        if config.keypoint_head is not None and keypoints is None:
            notes.append("the training pictures have no keypoints: no keypoint head")
        if config.keypoint_head is not None:
            head = None if keypoints is None else replace(config.keypoint_head, scheme=keypoints)
            config = replace(config, keypoint_head=head)
        model = new_model(config, pretrained_backbone)
    if model.config.keypoint_head is not None and keypoints is not None:
        pairs = len(keypoints.flip_pairs)
        notes.append(f"keypoints: {len(keypoints)}, pairs that change places in a mirror: {pairs}")
    if scale is not None:
        model.config = replace(model.config, preprocess=replace(model.config.preprocess, scale=float(scale)))
        model.preprocess.config = model.config.preprocess
    return model, notes + _fit_limits(model, pictures)


def starting_state(model: MaskRCNN, recipe: Recipe, world: World, notes: list[str]) -> TrainingState:
    """`model` before its first step, on this process's device; what does not learn is added to `notes`."""
    fixed = model.backbone.freeze(recipe.freeze)
    if fixed:
        notes.append(f"{len(fixed)} weights of the backbone do not learn, from {fixed[0]} to {fixed[-1]}")
    model = model.to(world.device).to(memory_format=torch.channels_last)
    choose_kernels_(model)
    if recipe.recompute:
        notes.append(f"recompute: {recompute_(model)} blocks keep their inputs only")
    average = Average(model, recipe.ema) if recipe.ema else None
    return TrainingState(model, make_optimizer(model, recipe), average, Progress())


def preset_name(preset: str | Preset) -> str:
    return preset if isinstance(preset, str) else str(getattr(preset, "__name__", "a config"))


def new_model(config: MaskRCNNConfig, pretrained_backbone: bool) -> MaskRCNN:
    """Errors: `InputError` where pretrained weights are asked for and cannot be had."""
    if pretrained_backbone:
        require_reachable(config.backbone.name)
    try:
        return MaskRCNN(config, pretrained_backbone=pretrained_backbone)
    except (RuntimeError, OSError) as error:  # none of this name or of these widths; no network
        if not pretrained_backbone:
            raise
        expected = f"weights of {config.backbone.name} that timm knows and can reach"
        raise InputError("none to be had", field="pretrained_backbone", found=str(error), expected=expected) from error


def _fit_limits(model: MaskRCNN, pictures: Pictures) -> list[str]:
    """Let the detector give as many objects as a picture of the data can hold."""
    limit = -(-pictures.most_objects // 100) * 100
    detection = model.config.detection
    if limit <= detection.max_detections:
        return []
    model.config = replace(model.config, detection=replace(detection, max_detections=limit))
    return [f"detections per picture: {limit}, since a picture holds {pictures.most_objects} objects"]


def _checked(dataset: Dataset, skip_bad: bool) -> Dataset:
    """Look at every sample of a data set that was not checked as it was opened; leave out the bad ones if asked to."""
    root = dataset
    while isinstance(root, Subset):
        root = root.dataset
    if isinstance(root, CocoDataset | ShapesDataset):
        return dataset
    good, errors = [], []
    for i in range(len(dataset)):
        try:
            dataset.sample(i)
            good.append(i)
        except InputError as error:
            errors.append(error)
    if errors and not skip_bad:
        raise InputErrors("the data set has problems", errors)
    if not errors:
        return dataset
    kept = subset(dataset, good)
    kept.skipped = (*dataset.skipped, *errors)
    return kept
