"""How to train: every number of a run beside its reason. A recipe and a preset together make a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any, Literal

from maskrcnn.errors import InputError
from maskrcnn.losses.box_loss import BoxLossConfig
from maskrcnn.losses.mask_loss import MaskLossConfig
from maskrcnn.losses.mask_rcnn_loss import LossConfig
from maskrcnn.losses.rpn_loss import RPNLossConfig
from maskrcnn.model.config import from_dict, require, to_dict
from maskrcnn.model.presets import PRESETS


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What a picture goes through before the network learns from it. Places move with their boxes and masks."""

    crop: int | None = None  # px, side of a square cut from the rescaled picture; None: the whole picture
    scale: tuple[float, float] = (0.7, 1.4)  # of a crop, around the size at which the network detects
    shortest: tuple[int, ...] = (640, 672, 704, 736, 768, 800)  # px, shorter sides, for whole pictures
    longest: int = 1333  # px, for whole pictures
    flip: float = 0.5  # probability of a mirror image, left to right
    flip_vertical: float = 0.0  # upside down: for pictures without an up, such as microscopy
    turn: float = 0.0  # probability of a turn by 90, 180 or 270 degrees, likewise
    photometric: float = 1.0  # strength of brightness, contrast, colour, blur and noise changes; 0: none
    grey: float = 0.0  # probability of losing all colour
    invert: float = 0.0  # probability of a negative

    def __post_init__(self) -> None:
        # of 32 px the last map has one cell, of which batch norm cannot learn where a batch is one picture
        require(self.crop is None or self.crop >= 64, self, "crop", "at least 64 px")
        require(0 < self.scale[0] <= self.scale[1], self, "scale", "two factors above 0, in order")
        require(bool(self.shortest) and min(self.shortest) >= 1, self, "shortest", "at least one side in px")
        require(self.longest >= 1, self, "longest", "at least 1 px")
        for name in ("flip", "flip_vertical", "turn", "grey", "invert"):
            require(0 <= getattr(self, name) <= 1, self, name, "a probability from 0 to 1")
        require(self.photometric >= 0, self, "photometric", "0 or more")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run. Its length is `minutes` if given, else `steps`, else `epochs`."""

    epochs: float = 24.0  # passes over the training pictures
    steps: int | None = None  # optimizer steps
    minutes: float | None = None  # of wall time; the schedule then follows the clock, so runs are not repeatable
    batch_size: int = 16  # pictures per optimizer step, over all processes and accumulated parts
    accumulate: int = 1  # parts that a batch is computed in, for small memory
    recompute: bool = False  # activations a second time in the backward pass: less memory, more time
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.02  # at `reference_batch`; scaled linearly with the batch (Goyal et al. 2017)
    reference_batch: int = 16
    momentum: float = 0.9  # of SGD
    weight_decay: float = 1e-4  # not on norms and biases; He et al. 2017, 3.1
    schedule: Literal["cosine", "step"] = "cosine"
    schedule_unit: Literal["part", "epochs", "steps"] = "part"  # of the next two; part: of the run, 0 to 1
    warmup: float = 0.05  # over which the learning rate rises from near 0
    milestones: tuple[float, ...] = (2 / 3, 8 / 9)  # after each of which the schedule "step" divides the rate by 10
    clip_norm: float = 5.0  # longest gradient; longer ones are shortened to it
    precision: Literal["auto", "float32", "bf16"] = "auto"  # of the forward pass; auto: what is faster here
    ema: float = 0.0  # decay a step of the averaged weights that are saved and scored; 0: no average
    freeze: int | None = None  # stages of the backbone that do not learn (1: stem, ... 5); None: the preset's own
    augmentation: Augmentation = field(default_factory=Augmentation)
    loss: LossConfig = field(default_factory=LossConfig)
    colour_weight: float = 1.0  # how much more often a picture with colour is seen than a grey one
    evaluate_every: float = 1.0  # epochs between validations (with `minutes`: ten in a run); 0: only at the end
    validation_pictures: int | None = 200  # at most so many, evenly spread, while running; the end scores all
    keep_every: int | None = None  # also keep the weights of every so many epochs
    patience: int | None = None  # stop after so many validations without a better AP
    save_minutes: float = 10.0  # between saves of the state: the most that is lost when the run is killed
    log_every: int = 20  # steps between lines of the log
    workers: int = 2  # processes that prepare pictures
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "steps", "minutes", "learning_rate", "clip_norm", "save_minutes"):
            value = getattr(self, name)
            require(value is None or value > 0, self, name, "above 0")
        for name in ("batch_size", "reference_batch", "validation_pictures", "keep_every", "patience", "log_every"):
            value = getattr(self, name)
            require(value is None or value >= 1, self, name, "at least 1")
        for name in ("weight_decay", "warmup", "colour_weight", "evaluate_every", "workers", "seed"):
            require(getattr(self, name) >= 0, self, name, "0 or more")
        require(self.seed < 1 << 63, self, "seed", "below 2^63")
        for name in ("momentum", "ema"):
            require(0 <= getattr(self, name) < 1, self, name, "0 to below 1")
        divides = self.accumulate >= 1 and self.batch_size % self.accumulate == 0
        require(divides, self, "accumulate", "a divisor of batch_size")
        require(self.freeze is None or 0 <= self.freeze <= 5, self, "freeze", "0 to 5")
        in_order = all(a < b for a, b in zip((0.0, *self.milestones), self.milestones, strict=False))
        require(in_order, self, "milestones", "numbers above 0 that rise")
        if self.schedule_unit == "part":
            require(self.warmup < 1, self, "warmup", "0 to below 1, a part of the run")
            require(max(self.milestones, default=0) < 1, self, "milestones", "below 1, parts of the run")


def standard() -> Recipe:
    """For `r50-fpn` and `r101-fpn`: whole pictures, SGD (He et al. 2017, 3.1, with Goyal's warm-up)."""
    return Recipe()


def light() -> Recipe:
    """For `nano`: small crops at many scales, AdamW, averaged weights; made for two CPU cores and few pictures.

        maskrcnn train nuclei/ --preset nano --minutes 60 --out runs/nuclei

    Seeing many crops is what counts: 60 minutes on two cores see tens of thousands.
    """
    return Recipe(
        minutes=60.0,
        batch_size=8,
        optimizer="adamw",
        learning_rate=2e-3,
        reference_batch=8,
        weight_decay=0.05,
        ema=0.998,
        augmentation=Augmentation(
            crop=256, scale=(0.6, 1.4), flip=0.5, flip_vertical=0.5, turn=0.5, photometric=1.0, grey=0.05, invert=0.05
        ),
        loss=LossConfig(
            rpn=RPNLossConfig(anchors_per_image=256),
            box=BoxLossConfig(rois_per_image=128),
            pre_nms_top_n=500,
            post_nms_top_n=500,
        ),
        colour_weight=2.5,
        validation_pictures=24,
    )


def small_drawings(minutes: float = 3.0) -> Recipe:
    """For the preset `drawings` on shapes of 128 px: many steps on few, small crops. Mask AP 0.66 to 0.68 in 3 minutes.

    maskrcnn demo --out demo
    """
    usual = light()
    crops = replace(usual.augmentation, crop=128, scale=(0.65, 1.05), photometric=0.2, grey=0.0, invert=0.0)
    box = replace(usual.loss.box, rois_per_image=32, foreground_fraction=0.5)
    return replace(
        usual,
        minutes=minutes,
        learning_rate=4e-3,
        warmup=0.03,
        ema=0.99,
        augmentation=crops,
        loss=replace(usual.loss, box=box, mask=MaskLossConfig(rois_per_image=8), pre_nms_top_n=200, post_nms_top_n=200),
        colour_weight=1.0,
        workers=0,  # a crop takes 2 ms: on two cores that is less than what another process costs the convolutions
    )


RECIPES = {name: light if name == "nano" else standard for name in PRESETS}


def recipe_for(preset: str) -> Recipe:
    """The recipe that goes with a preset."""
    if preset not in RECIPES:
        raise InputError("no such preset", field="preset", found=preset, expected=" or ".join(RECIPES))
    return RECIPES[preset]()


def changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """`recipe` with other values, checked like a config file: {"steps": 500, "augmentation": {"crop": 128}}.

    A new length is the length, whichever unit the recipe had: `steps` or `epochs` alone take `minutes` away.

    Errors: `InputError` that names the field, for unknown fields, wrong types and impossible values.
    """
    if "minutes" not in changes and ("steps" in changes or "epochs" in changes):
        changes = {"minutes": None, "steps": None, **changes}
    return from_dict(Recipe, _merged(to_dict(recipe), changes), "recipe")


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `changes` put in, dictionary by dictionary."""
    merged = dict(values)
    for name, change in changes.items():
        if is_dataclass(change) and not isinstance(change, type):
            change = to_dict(change)
        inside = isinstance(change, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merged(merged[name], change) if inside else change
    return merged
