"""From a recipe's augmentation to transforms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from maskrcnn.data.dataset import AdaptedSequence
from maskrcnn.data.shapes import ShapesDataset
from maskrcnn.data.transforms import Flip, Photometric, QuarterTurn, ResizeShortest, ScaledCrop, ScaleJitter
from maskrcnn.model.preprocess import PreprocessConfig
from maskrcnn.ops.contrast import stretch
from maskrcnn.training.augment import (
    ContrastStretch,
    CropAround,
    has_colour,
    photometric,
    picture_weights,
    training_transform,
)
from maskrcnn.training.recipe import Augmentation

BARE = Augmentation(flip=0.0, photometric=0.0)


def kinds(config: Augmentation, preprocess: PreprocessConfig | None = None) -> list[type]:
    return [type(step) for step in training_transform(config, preprocess or PreprocessConfig()).steps]


def test_only_what_is_asked_for() -> None:
    assert kinds(BARE) == [ResizeShortest]
    assert kinds(replace(BARE, crop=64)) == [CropAround]
    assert kinds(BARE, PreprocessConfig(scale=2.0)) == [ScaleJitter]
    assert kinds(replace(BARE, flip_vertical=0.5, turn=0.5, invert=0.1)) == [
        ResizeShortest,
        Flip,
        QuarterTurn,
        Photometric,
    ]
    assert kinds(replace(BARE, crop=64), PreprocessConfig(stretch=0.01)) == [ContrastStretch, CropAround]


@pytest.mark.parametrize("preprocess", [PreprocessConfig(scale=2.0), PreprocessConfig(shortest=128)])
def test_crops_are_scaled_around_the_size_of_detecting(preprocess: PreprocessConfig) -> None:
    picture, target = ShapesDataset(1, size=(64, 64))[0]  # detected in at 128 x 128
    for seed in range(3):
        found, its = CropAround(64, (0.5, 1.5), preprocess)(picture, target, np.random.default_rng(seed))
        same, expected = ScaledCrop(64, (1.0, 3.0))(picture, target, np.random.default_rng(seed))
        assert np.array_equal(found, same) and torch.equal(its.gt_boxes, expected.gt_boxes)


def test_strength_scales_every_change() -> None:
    usual, half = Photometric(), photometric(replace(BARE, photometric=0.5, grey=0.3, invert=0.2))
    assert (half.brightness, half.blur, half.noisy) == (usual.brightness / 2, usual.blur / 2, usual.noisy / 2)
    assert (half.grey, half.invert) == (0.3, 0.2)
    assert photometric(replace(BARE, photometric=100.0)).blurred == 1


def test_the_stretch_is_that_of_detecting() -> None:
    picture, target = ShapesDataset(1, size=(32, 32))[0]
    found, same = ContrastStretch(0.01)(picture[:, ::-1], target, np.random.default_rng(0))
    expected = stretch(torch.from_numpy(picture[:, ::-1].copy()), 0.01).numpy()
    assert np.array_equal(found, expected) and same is target


def test_colour_weighs_more() -> None:
    target = ShapesDataset(1, size=(32, 32)).target(0)
    grey = np.repeat(np.random.default_rng(0).integers(0, 256, (32, 32, 1), dtype=np.uint8), 3, axis=2)
    colour = grey.copy()
    colour[..., 0] //= 2
    assert not has_colour(grey) and has_colour(colour)
    dataset = AdaptedSequence([(grey, target), (colour, target)])
    assert picture_weights(dataset, 2.5) == [1.0, 2.5]
    assert picture_weights(dataset, 1.0) is None
    assert picture_weights(AdaptedSequence([(grey, target)] * 3), 2.5) is None


@pytest.mark.parametrize("crop", [None, 64])
def test_the_chain_keeps_targets_with_their_pictures(crop: int | None) -> None:
    config = Augmentation(crop=crop, shortest=(40, 48), flip_vertical=0.5, turn=0.5, invert=0.5)
    chain = training_transform(config, PreprocessConfig(shortest=64, stretch=0.001))
    dataset = ShapesDataset(4, size=(64, 80))
    for i in range(4):
        picture, target = chain(*dataset[i], np.random.default_rng(i))
        assert picture.dtype == np.uint8 and picture.shape == (*target.size, 3)
        assert target.gt_masks is not None and len(target.gt_masks) == len(target.gt_boxes)
        assert (target.gt_boxes >= 0).all() and (
            target.gt_boxes[:, 2:].amax(0) <= target.gt_boxes.new([target.size[1], target.size[0]])
        ).all()
