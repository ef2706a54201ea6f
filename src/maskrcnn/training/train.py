"""`maskrcnn.train`: from labelled pictures to a folder with weights, scores and pictures of them."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from maskrcnn.data.dataset import Dataset
from maskrcnn.data.loader import TrainLoader
from maskrcnn.data.opening import DataLike, open_train_val
from maskrcnn.errors import InputError
from maskrcnn.evaluation.evaluate import Evaluation, evaluate
from maskrcnn.model.config import to_dict
from maskrcnn.model.mask_rcnn import MaskRCNN
from maskrcnn.model.presets import preset as make_preset
from maskrcnn.predictor import Predictor, load
from maskrcnn.training.augment import picture_weights, training_transform
from maskrcnn.training.checkpoint import STATE_FILE, Progress, TrainingState, restore_state, save_state
from maskrcnn.training.distributed import World, join_world
from maskrcnn.training.finetune import adapt_classes
from maskrcnn.training.loop import Length, Observers, learn, length_of
from maskrcnn.training.optim import Average, make_optimizer
from maskrcnn.training.precision import fastest_precision
from maskrcnn.training.recipe import Recipe, recipe_for
from maskrcnn.training.report import compare, draw_curves, draw_pictures, write_json, write_page
from maskrcnn.training.run_log import Bar, RunLog, progress_bar
from maskrcnn.training.validate import spread, validate
from maskrcnn.weights.files import load_model, resolve_weights, save_checkpoint

_SHOWN = ("total", "rpn_objectness", "rpn_box", "box_class", "box_delta", "mask")


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
    preset: str = "nano",
    weights: str | Path | None = None,
    val: DataLike | None = None,
    val_fraction: float = 0.1,
    images: str | Path | None = None,
    skip_bad: bool = False,
    recipe: Recipe | None = None,
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
        preset: "nano", "r50-fpn" or "r101-fpn"; ignored where `weights` are given.
        weights: a detector to start from, by name or file; heads of other classes are made anew.
        val: pictures to be scored on; else the folder's own, else a fixed `val_fraction` of `data`.
        images: the folder of the pictures, where it is not found beside the annotations.
        skip_bad: leave out bad annotations and pictures rather than refuse to start.
        recipe: how to train; the preset's own by default. Its fields can be given one by one as `changes`:
            `train(data, out="runs/x", minutes=10, seed=3)`.
        pretrained_backbone: start from timm's weights of the backbone, fetched through huggingface_hub.
        resume: go on where a stopped run in `out` was.
        licence, source: of the weights that come out, written into them.

    Errors: `InputError` for bad data, options or weights, before anything is written; on a loss that is not finite.
    """
    recipe = replace(recipe or recipe_for(preset if weights is None else "nano"), **changes)
    folder = Path(out)
    with join_world(device) as world:
        recipe = replace(recipe, precision=_resolved(recipe, world))
        datasets = open_train_val(data, val, val_fraction=val_fraction, seed=recipe.seed, images=images, skip_bad=skip_bad)
        _require_new(folder, resume)
        torch.manual_seed(recipe.seed)
        model, notes = _starting_model(datasets[0], preset, weights, pretrained_backbone)
        settings = {"preset": preset, "weights": str(weights or ""), "data": str(data) if isinstance(data, str | Path) else ""}
        run = _Run(folder, recipe, world, datasets, settings, {"licence": licence, "source": source or settings["data"]})
        return run.go(model, notes, resume=resume, quiet=quiet)


class _Run:
    """One run: its parts put together, and what it writes at each stage."""

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        world: World,
        datasets: tuple[Dataset, Dataset],
        settings: dict[str, Any],
        origin: dict[str, str],
    ) -> None:
        self.folder, self.recipe, self.world = folder, recipe, world
        self.train_set, self.val_set = datasets
        self.origin = origin
        self.length: Length = length_of(recipe, len(self.train_set))
        self.settings = settings | {"recipe": _comparable(recipe)}
        self.log: RunLog | None = None
        self.bar: Bar | None = None

    def go(self, model: MaskRCNN, notes: list[str], *, resume: bool, quiet: bool) -> TrainingRun:
        """Train, then score and draw."""
        state = self._state(model, notes)
        if resume:
            restore_state(self.folder, state, self.settings)
            notes = [f"resumed at step {state.progress.step}, after {state.progress.seconds:.0f} s"]
        with ExitStack() as stack:
            if self.world.is_main:
                self.bar = stack.enter_context(progress_bar(visible=not quiet))
                self.log = stack.enter_context(RunLog(self.folder, state.progress.step))
                self._begin(state, notes)
            finished = learn(
                state,
                self._loader(state.model).batches(state.progress.step),
                self.recipe,
                self.length,
                self.world,
                Observers(self._log, self._validate, self._save),
            )
            scores = self._end(state, finished) if self.world.is_main else None
        return TrainingRun(self.folder, finished, scores)

    def _state(self, model: MaskRCNN, notes: list[str]) -> TrainingState:
        fixed = model.backbone.freeze(self.recipe.freeze)
        if fixed:
            notes.append(f"{len(fixed)} weights of the backbone do not learn, from {fixed[0]} to {fixed[-1]}")
        model = model.to(self.world.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        average = Average(model, self.recipe.ema) if self.recipe.ema else None
        return TrainingState(model, make_optimizer(model, self.recipe), average, Progress())

    def _loader(self, model: MaskRCNN) -> TrainLoader:
        return TrainLoader(
            self.train_set,
            training_transform(self.recipe.augmentation, model.config.preprocess),
            self.recipe.batch_size,
            self.recipe.seed,
            self.recipe.workers,
            weights=picture_weights(self.train_set, self.recipe.colour_weight),
            rank=self.world.rank,
            world_size=self.world.size,
        )

    def _begin(self, state: TrainingState, notes: list[str]) -> None:
        assert self.log is not None and self.bar is not None
        count = sum(parameter.numel() for parameter in state.model.parameters())
        facts = {
            "training_pictures": len(self.train_set),
            "validation_pictures": len(self.val_set),
            "classes": len(state.model.config.class_names),
            "weights": count,
            "device": str(self.world.device),
            "processes": self.world.size,
            "threads": torch.get_num_threads(),
            "precision": self.recipe.precision,
        }
        self.log.write("start", state.progress.step, facts)
        self.bar.say(" · ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items()))
        notes = notes + [f"left out: {error}" for error in (*self.train_set.skipped, *self.val_set.skipped)]
        for note in notes:
            self.log.write("note", state.progress.step, {"text": note})
            self.bar.say(note)
        write_json(
            self.folder / "config.json",
            {
                "model": to_dict(state.model.config),
                "recipe": to_dict(self.recipe),
                **{name: value for name, value in self.settings.items() if name != "recipe"},
                "validation_image_ids": list(self.val_set.image_ids),
                "versions": _versions(),
            },
        )

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        if self.log is None or self.bar is None:
            return
        self.log.write("train", step, values)
        shown = " ".join(f"{name.split('_')[-1]} {value:.3f}" for name, value in values.items() if name in _SHOWN)
        self.bar.show(self.length.part_done(step, values["seconds"]), f"step {step} {shown}")

    def _validate(self, state: TrainingState) -> bool:
        """Score the weights as they are, keep them if they are the best, say whether to stop early."""
        assert self.log is not None and self.bar is not None
        step, progress = state.progress.step, state.progress
        result = validate(state.deployed, spread(self.val_set, self.recipe.validation_pictures), self.recipe.loss)
        improved = result.ap >= progress.best
        progress.validations_since_best = 0 if improved else progress.validations_since_best + 1
        if improved:
            progress.best, progress.best_step = result.ap, step
        self._keep(state, "last", result.values())
        if improved:
            self._keep(state, "best", result.values())
        self._keep_every(state, result.values())
        self.log.write("validation", step, result.values() | {"seconds": progress.seconds, "best": improved})
        self.log.picture("validation", step, compare(Predictor(state.deployed, self.world.device), self.val_set, 0))
        shown = " ".join(f"{name} {value:.3f}" for name, value in result.values().items() if "ap" in name or "total" in name)
        self.bar.say(f"step {step}, {progress.seconds:.0f} s: {shown}{' (best)' if improved else ''}")
        return self.recipe.patience is not None and progress.validations_since_best >= self.recipe.patience

    def _keep(self, state: TrainingState, name: str, values: Mapping[str, float]) -> None:
        metadata = self.origin | {"training": {"step": state.progress.step, "seconds": round(state.progress.seconds, 1), **values}}
        save_checkpoint(self.folder / f"{name}.safetensors", state.deployed, metadata=metadata)

    def _keep_every(self, state: TrainingState, values: Mapping[str, float]) -> None:
        epoch = round(state.progress.step / self.length.steps_per_epoch)
        if self.recipe.keep_every and epoch and epoch % self.recipe.keep_every == 0:
            self._keep(state, f"epoch-{epoch:04d}", values)

    def _save(self, state: TrainingState) -> None:
        if self.world.is_main:
            save_state(self.folder, state, self.settings)

    def _end(self, state: TrainingState, finished: bool) -> Evaluation | None:
        assert self.log is not None and self.bar is not None
        self.log.write("end", state.progress.step, {"finished": finished, "seconds": state.progress.seconds})
        draw_curves(self.folder)
        if not finished:
            self.bar.say(f"stopped at step {state.progress.step}; --resume goes on from there")
            return None
        predictor = load(self.folder / "best.safetensors", device=str(self.world.device))
        scores = self._score(predictor)
        draw_pictures(self.folder, predictor, self.val_set)
        recipe, progress = self.recipe, state.progress
        lines = {
            "trained on": f"{len(self.train_set)} pictures of {self.settings['data'] or 'a sequence'}",
            "classes": ", ".join(predictor.class_names[:12]) + (" ..." if len(predictor.class_names) > 12 else ""),
            "start": self.settings["weights"] or f"preset {self.settings['preset']}",
            "length": f"{progress.step} steps of {recipe.batch_size} pictures, {progress.seconds / 60:.1f} minutes",
            "best weights": f"of step {progress.best_step}",
        }
        write_page(self.folder, {"title": f"Run {self.folder.name}", "lines": lines, "scores": scores.summary()})
        return scores

    def _score(self, predictor: Predictor) -> Evaluation:
        """The best weights on every validation picture, into `scores/`."""
        limit = predictor.model.config.detection.max_detections
        scores = evaluate(predictor.predict, self.val_set, max_detections=sorted({100, 300, max(100, limit)}))
        scores.save(self.folder / "scores")
        return scores


def _starting_model(
    dataset: Dataset, preset: str, weights: str | Path | None, pretrained_backbone: bool
) -> tuple[MaskRCNN, list[str]]:
    """A new detector of the preset, or the loaded one with heads for the data set's classes."""
    names, ids = dataset.classes.names, dataset.classes.category_ids
    if weights is not None:
        model, notes = adapt_classes(load_model(resolve_weights(weights)), names, ids)
        notes.insert(0, f"start: {weights}")
    else:
        model, notes = MaskRCNN(make_preset(preset, names, ids), pretrained_backbone=pretrained_backbone), []
        notes.append(f"start: preset {preset}, " + ("pretrained backbone" if pretrained_backbone else "from nothing"))
    return model, notes + _fit_limits(model, dataset)


def _fit_limits(model: MaskRCNN, dataset: Dataset) -> list[str]:
    """Let the detector give as many objects as a picture of the data can hold."""
    most = max((len(dataset.target(i)) for i in range(len(dataset))), default=0)
    limit = -(-most // 100) * 100
    detection = model.config.detection
    if limit <= detection.max_detections:
        return []
    model.config = replace(model.config, detection=replace(detection, max_detections=limit))
    return [f"detections per picture: {limit}, since a picture holds {most} objects"]


def _resolved(recipe: Recipe, world: World) -> Any:
    """ "auto" becomes what this machine is faster in."""
    return fastest_precision(world.device) if recipe.precision == "auto" else recipe.precision


def _require_new(folder: Path, resume: bool) -> None:
    """Never write over another run; never resume what is not there."""
    state = folder / STATE_FILE
    if resume and not state.is_file():
        raise InputError("nothing to resume", file=state, expected="the state file of a run that was stopped")
    if not resume and (folder / "config.json").exists():
        raise InputError("holds another run", file=folder, field="out", expected="a new folder, or --resume")


def _comparable(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe must be the same when a run is resumed: all that its numbers hang on."""
    free = ("workers", "log_every", "keep_every", "patience", "minutes", "precision")
    return {name: value for name, value in to_dict(recipe).items() if name not in free}


def _versions() -> dict[str, str]:
    names = ("maskrcnn", "torch", "torchvision", "timm", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
