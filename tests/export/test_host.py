"""What numpy makes of a picture and of boxes against what the model's own stages make of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from maskrcnn.errors import InputError
from maskrcnn.export import host
from maskrcnn.export.facts import Facts
from maskrcnn.model.detection_config import DetectionConfig
from maskrcnn.model.frames import Corners, windows_of
from maskrcnn.model.frames import to_original as to_original_by_torch
from maskrcnn.model.preprocess import Preprocess
from maskrcnn.model.preprocess_config import PreprocessConfig

OUTPUTS = ("boxes", "scores", "labels", "valid")


def facts(config: PreprocessConfig, **fields: object) -> Facts:
    made = Facts(
        target="onnx",
        class_names=("cat",),
        category_ids=(1,),
        preprocess=config,
        detection=DetectionConfig(),
        outputs=OUTPUTS,
        step=config.divisor,
    )
    return replace(made, **fields)  # type: ignore[arg-type]


PREPROCESS = {
    "plain": PreprocessConfig(shortest=80, longest=140),
    "stretch": PreprocessConfig(scale=2.0, longest=200, stretch=0.01),
    "no antialias": PreprocessConfig(shortest=40, antialias=False, rounding="floor"),
    "pillow, bgr": PreprocessConfig(
        shortest=50, resampling="pillow", channels="bgr", mean=(0.4, 0.5, 0.6), std=(1 / 255, 1 / 255, 1 / 255)
    ),
    "centre of a square, black": PreprocessConfig(shortest=60, square=160, place="centre", border="black"),
    "native": PreprocessConfig(shortest=None, longest=None, divisor=16),
}


@pytest.mark.parametrize("name", PREPROCESS)
@pytest.mark.parametrize("size", [(61, 97), (120, 45)])
@pytest.mark.parametrize("asked", [None, 70, "native"])
def test_a_picture_is_made_ready_as_the_model_does(name: str, size: tuple[int, int], asked: host.Asked) -> None:
    config = PREPROCESS[name]
    picture = np.random.default_rng(0).integers(10, 200, (*size, 3), dtype=np.uint8)
    batch = Preprocess(config)([torch.from_numpy(picture).permute(2, 0, 1)], asked)
    pixels, sizes = host.padded([host.ready(picture, facts(config), asked)], facts(config))
    assert pixels.shape == batch.pixels.shape
    np.testing.assert_array_equal(sizes, batch.image_sizes.numpy())
    scale = 1 / min(config.std)
    np.testing.assert_allclose(pixels, batch.pixels.numpy(), atol=1e-5 * scale / 4)


def test_pictures_of_one_call_share_a_frame() -> None:
    config = PREPROCESS["native"]
    pictures = [np.full((30, 50, 3), 9, dtype=np.uint8), np.full((64, 20, 3), 200, dtype=np.uint8)]
    batch = Preprocess(config)([torch.from_numpy(picture).permute(2, 0, 1) for picture in pictures])
    ready = [host.ready(picture, facts(config)) for picture in pictures]
    pixels, sizes = host.padded(ready, facts(config, batch=None))
    np.testing.assert_allclose(pixels, batch.pixels.numpy(), atol=1e-6)
    np.testing.assert_array_equal(sizes, batch.image_sizes.numpy())


def test_a_fixed_batch_is_filled_up() -> None:
    made = facts(PREPROCESS["native"], batch=3)
    pixels, sizes = host.padded([host.ready(np.zeros((20, 20, 3), dtype=np.uint8), made)], made)
    assert pixels.shape == (3, 3, 32, 32)
    assert sizes.tolist() == [[20, 20], [1, 1], [1, 1]]
    assert not pixels[1:].any()


@pytest.mark.parametrize("size", [(300, 200), (60, 500), (20, 30)])
def test_a_picture_larger_than_the_fixed_size_is_made_to_fit(size: tuple[int, int]) -> None:
    made = facts(PREPROCESS["native"], size=(96, 128))
    ready = host.ready(np.zeros((*size, 3), dtype=np.uint8), made)
    height, width = ready.shape[1:]
    assert height <= 96 and width <= 128
    assert height == 96 or width == 128 or (height, width) == size
    assert abs(height / width - size[0] / size[1]) <= 0.5 / min(height, width) * (size[0] / size[1] + 1)
    assert host.padded([ready], made)[0].shape == (1, 3, 96, 128)


@pytest.mark.parametrize("corners", ["edges", "centres"])
@pytest.mark.parametrize("place", ["corner", "centre"])
def test_boxes_go_back_as_the_model_brings_them(corners: Corners, place: str) -> None:
    config = PreprocessConfig(place=place)  # type: ignore[arg-type]
    made = facts(config, corners=corners)
    boxes = torch.rand(20, 4) * 90
    size, padded = torch.tensor([[70.0, 90.0]]), (96, 128)
    window = windows_of(size, padded, config.place, corners)[0]
    ours = host.window_of(size[0].numpy(), padded, made)
    np.testing.assert_array_equal(ours, window.numpy())
    back = host.to_original(boxes.numpy(), ours, (140, 181), host.extra(made))
    np.testing.assert_allclose(back, to_original_by_torch(boxes, window, (140, 181), corners).numpy(), rtol=1e-6)


def test_resampling_that_needs_torch_is_named() -> None:
    made = facts(PreprocessConfig(resampling="skimage"))
    with pytest.raises(InputError, match="resampling.*skimage.*torch or pillow"):
        host.ready(np.zeros((8, 8, 3), dtype=np.uint8), made)
