"""How to train: every number of a run beside its reason. A recipe and a preset together make a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from maskrcnn.errors import InputError
from maskrcnn.losses.box_loss import BoxLossConfig
from maskrcnn.losses.mask_rcnn_loss import LossConfig
from maskrcnn.losses.rpn_loss import RPNLossConfig
from maskrcnn.model.config import require


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What a picture goes through before the network learns from it. Places move with their boxes and masks."""

    crop: int | None = None  # px, side of a square cut from the rescaled picture; None: the whole picture
    scale: tuple[float, float] = (1.0, 2.0)  # factors of the original picture, for crops
    shortest: tuple[int, ...] = (640, 672, 704, 736, 768, 800)  # px, shorter sides, for whole pictures
    longest: int = 1333  # px, for whole pictures
    flip: float = 0.5  # probability of a mirror image, left to right
    flip_vertical: float = 0.0  # upside down: for pictures without an up, such as microscopy
    turn: float = 0.0  # probability of a turn by 90, 180 or 270 degrees, likewise
    photometric: float = 1.0  # strength of brightness, contrast, colour, blur and noise changes; 0: none
    grey: float = 0.0  # probability of losing all colour
    invert: float = 0.0  # probability of a negative

    def __post_init__(self) -> None:
        require(self.crop is None or self.crop >= 32, self, "crop", "at least 32 px")
        require(0 < self.scale[0] <= self.scale[1], self, "scale", "two factors above 0, in order")
        require(bool(self.shortest) and min(self.shortest) >= 1, self, "shortest", "at least one side in px")
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
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.02  # at `reference_batch`; scaled linearly with the batch (Goyal et al. 2017)
    reference_batch: int = 16
    momentum: float = 0.9  # of SGD
    weight_decay: float = 1e-4  # not on norms and biases; He et al. 2017, 3.1
    schedule: Literal["cosine", "step"] = "cosine"
    warmup: float = 0.05  # part of the run over which the learning rate rises
    milestones: tuple[float, ...] = (2 / 3, 8 / 9)  # parts of the run after which "step" divides the rate by 10
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
    log_every: int = 20  # steps between lines of the log
    workers: int = 2  # processes that prepare pictures
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.epochs > 0, self, "epochs", "above 0")
        require(self.steps is None or self.steps >= 1, self, "steps", "at least 1")
        require(self.minutes is None or self.minutes > 0, self, "minutes", "above 0")
        require(self.batch_size >= 1, self, "batch_size", "at least 1")
        require(self.accumulate >= 1 and self.batch_size % self.accumulate == 0, self, "accumulate", "a divisor of batch_size")
        require(self.learning_rate > 0, self, "learning_rate", "above 0")
        require(0 <= self.warmup < 1, self, "warmup", "0 to below 1")
        require(self.clip_norm > 0, self, "clip_norm", "above 0")
        require(0 <= self.ema < 1, self, "ema", "0 to below 1")
        require(self.freeze is None or 0 <= self.freeze <= 5, self, "freeze", "0 to 5")
        require(self.workers >= 0, self, "workers", "0 or more")
        require(self.evaluate_every >= 0, self, "evaluate_every", "0 or more")
        require(self.patience is None or self.patience >= 1, self, "patience", "at least 1")
        require(self.keep_every is None or self.keep_every >= 1, self, "keep_every", "at least 1")


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
            crop=256, scale=(1.2, 2.8), flip=0.5, flip_vertical=0.5, turn=0.5, photometric=1.0, grey=0.05, invert=0.05
        ),
        loss=LossConfig(
            rpn=RPNLossConfig(anchors_per_image=256),
            box=BoxLossConfig(rois_per_image=128),
            pre_nms_top_n=500,
            post_nms_top_n=500,
        ),
        colour_weight=2.0,
        validation_pictures=40,
    )


RECIPES = {"nano": light, "r50-fpn": standard, "r101-fpn": standard}


def recipe_for(preset: str) -> Recipe:
    """The recipe that goes with a preset."""
    if preset not in RECIPES:
        raise InputError("no such preset", field="preset", found=preset, expected=" or ".join(RECIPES))
    return RECIPES[preset]()
