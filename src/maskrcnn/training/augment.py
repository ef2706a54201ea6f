"""From a recipe's `Augmentation` to the chain of transforms that a picture goes through before it is learned from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from maskrcnn.data.dataset import Dataset
from maskrcnn.data.transforms import (
    Compose,
    Flip,
    Photometric,
    QuarterTurn,
    ResizeShortest,
    ScaledCrop,
    ScaleJitter,
    Transform,
)
from maskrcnn.model.preprocess import PreprocessConfig
from maskrcnn.ops.contrast import stretch
from maskrcnn.structures import Target
from maskrcnn.training.recipe import Augmentation


@dataclass(frozen=True)
class ContrastStretch:
    """What `Preprocess` does to the whole picture when detecting, done before a crop is cut from it."""

    fraction: float

    def __call__(self, picture: np.ndarray, target: Target, rng: np.random.Generator) -> tuple[np.ndarray, Target]:
        return stretch(torch.from_numpy(np.ascontiguousarray(picture)), self.fraction).numpy(), target


@dataclass(frozen=True)
class CropAround:
    """A square crop of `size` px from the picture at `scale` times the size at which the network will detect in it."""

    size: int
    scale: tuple[float, float]
    preprocess: PreprocessConfig

    def __call__(self, picture: np.ndarray, target: Target, rng: np.random.Generator) -> tuple[np.ndarray, Target]:
        usual = self.preprocess.resized_size(target.size)[0] / target.size[0]
        return ScaledCrop(self.size, (usual * self.scale[0], usual * self.scale[1]))(picture, target, rng)


def training_transform(config: Augmentation, preprocess: PreprocessConfig) -> Compose:
    """The whole chain. Photometric changes come last and see only the crop."""
    steps: list[Transform] = []
    if preprocess.stretch is not None:
        steps.append(ContrastStretch(preprocess.stretch))
    if config.crop is not None:
        steps.append(CropAround(config.crop, config.scale, preprocess))
    elif preprocess.scale is not None:
        steps.append(ScaleJitter(preprocess.scale * config.scale[0], preprocess.scale * config.scale[1]))
    else:
        steps.append(ResizeShortest(config.shortest, config.longest))
    if config.flip or config.flip_vertical:
        steps.append(Flip(config.flip, config.flip_vertical))
    if config.turn:
        steps.append(QuarterTurn(config.turn))
    if config.photometric or config.grey or config.invert:
        steps.append(photometric(config))
    return Compose(tuple(steps))


def photometric(config: Augmentation) -> Photometric:
    """Changes of light and camera, all scaled by `config.photometric`."""
    strength, usual = config.photometric, Photometric()
    scaled = {
        name: getattr(usual, name) * strength
        for name in ("brightness", "contrast", "saturation", "hue", "gamma", "tint", "blur", "noise")
    }
    often = {name: min(1.0, getattr(usual, name) * strength) for name in ("blurred", "noisy")}
    return Photometric(**scaled, **often, grey=config.grey, invert=config.invert)


def picture_weights(dataset: Dataset, colour_weight: float) -> list[float] | None:
    """How often each picture is drawn: those with colour `colour_weight` times as often; None if all alike."""
    if colour_weight == 1:
        return None
    weights = [colour_weight if has_colour(dataset[i][0]) else 1.0 for i in range(len(dataset))]
    return weights if len(set(weights)) > 1 else None


def has_colour(picture: np.ndarray) -> bool:
    small = picture[::4, ::4].astype(np.int16)
    return bool(np.ptp(small, axis=2).mean() > 2)  # JPEG leaves a level or two in grey pictures
