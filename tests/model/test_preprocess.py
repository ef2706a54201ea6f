"""Sizes by hand, values against float64 and PIL, padding against slices."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from maskrcnn.errors import InputError
from maskrcnn.model.preprocess import Preprocess, PreprocessConfig
from maskrcnn.ops.contrast import stretch
from maskrcnn.ops.resize_skimage import resize_skimage

NATIVE = PreprocessConfig(shortest=None)


def picture(height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


def normalised(image: Tensor) -> np.ndarray:
    """(3, H, W) float64, ImageNet's mean and deviation."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    values: np.ndarray = (image.numpy().astype(np.float64) / 255 - mean[:, None, None]) / std[:, None, None]
    return values


@pytest.mark.parametrize(
    ("config", "original", "size", "expected"),
    [
        ({}, (480, 640), None, (800, 1067)),  # 640 / 480 * 800 = 1066.7
        ({}, (640, 480), None, (1067, 800)),
        ({"rounding": "floor"}, (480, 640), None, (800, 1066)),
        ({}, (600, 2000), None, (400, 1333)),  # the longer side's limit: 1333 / 2000 * 600 = 399.9
        ({}, (800, 1333), None, (800, 1333)),
        ({}, (1, 1), None, (800, 800)),
        ({}, (1, 4000), None, (1, 1333)),  # never less than a pixel
        ({"rounding": "floor"}, (1, 4000), None, (1, 1333)),
        ({"shortest": None}, (37, 53), None, (37, 53)),
        ({"shortest": None}, (1000, 2666), None, (500, 1333)),
        ({"scale": 2.0}, (37, 53), None, (74, 106)),
        ({"scale": 0.5}, (37, 53), None, (19, 27)),  # 18.5 and 26.5: halves go up
        ({"scale": 2.0}, (100, 1000), None, (133, 1333)),
        ({"scale": 0.5, "rounding": "even"}, (37, 53), None, (18, 26)),  # 18.5 and 26.5: to the even side
        ({"min_scale": 1.0}, (900, 1200), None, (900, 1200)),  # never made smaller ...
        ({"min_scale": 1.0}, (900, 1600), None, (750, 1333)),  # ... unless it is too long
        ({"min_scale": 3.0}, (400, 400), None, (1200, 1200)),
        ({"min_scale": 1.0}, (900, 1200), 450, (450, 600)),  # what is asked for wins
        ({"longest": None}, (100, 1000), None, (800, 8000)),
        ({"longest": None}, (100, 1000), 50, (50, 500)),
        ({"longest": 1024, "rounding": "even"}, (625, 800), None, (800, 1024)),
        ({"longest": 1024, "rounding": "even"}, (1000, 1280), None, (800, 1024)),
        ({"longest": 1024, "rounding": "even"}, (10000, 12803), None, (800, 1024)),  # 1024.24 is not too long
        ({"longest": 1024, "rounding": "even"}, (10000, 12810), None, (799, 1024)),  # 1024.8 is: 799.4
        ({}, (480, 640), 400, (400, 533)),
        ({"scale": 2.0}, (480, 640), 400, (400, 533)),  # what is asked for wins over the config
        ({}, (480, 640), 1600, (1600, 2133)),  # the longer side's limit grows along: 2666
        ({}, (480, 640), "native", (480, 640)),
        ({"scale": 2.0}, (3000, 4000), "native", (3000, 4000)),
    ],
)
def test_sizes(config: dict[str, Any], original: tuple[int, int], size: Any, expected: tuple[int, int]) -> None:
    assert PreprocessConfig(**config).resized_size(original, size) == expected


@pytest.mark.parametrize("rounding", ["nearest", "floor"])
def test_no_side_is_longer_than_the_limit_and_the_aspect_stays(rounding: Any) -> None:
    preprocess = Preprocess(PreprocessConfig(shortest=100, longest=150, rounding=rounding))
    for height, width in np.random.default_rng(0).integers(1, 3000, (300, 2)).tolist():
        rows, columns = preprocess.config.resized_size((height, width))
        assert 1 <= max(rows, columns) <= 150
        assert min(rows, columns) <= 100
        factor = min(100 / min(height, width), 150 / max(height, width))
        assert abs(rows - max(1, height * factor)) < 1.001 and abs(columns - max(1, width * factor)) < 1.001


def test_native_pictures_are_normalised_and_padded() -> None:
    images = [picture(37, 53), picture(64, 20)]
    batch = Preprocess(NATIVE)(images)
    assert batch.pixels.shape == (2, 3, 64, 64)
    assert batch.pixels.dtype == torch.float32
    assert batch.image_sizes.tolist() == [[37, 53], [64, 20]]
    assert batch.original_sizes == ((37, 53), (64, 20))
    for pixels, image in zip(batch.pixels, images, strict=True):
        rows, columns = image.shape[1:]
        np.testing.assert_allclose(pixels[:, :rows, :columns].numpy(), normalised(image), rtol=1e-5, atol=1e-6)
        assert not pixels[:, rows:].any() and not pixels[:, :, columns:].any()


@pytest.mark.parametrize("divisor", [1, 32, 64])
def test_padded_sides_are_multiples(divisor: int) -> None:
    batch = Preprocess(PreprocessConfig(shortest=None, divisor=divisor))([picture(33, 65)])
    assert batch.pixels.shape[2:] == {1: (33, 65), 32: (64, 96), 64: (64, 128)}[divisor]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_floats_are_in_0_to_1(dtype: torch.dtype) -> None:
    image = picture(20, 30)
    preprocess = Preprocess(PreprocessConfig(shortest=40))
    pixels = preprocess([(image.double() / 255).to(dtype)]).pixels
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(
        pixels, preprocess([image]).pixels, atol=5e-3 if dtype == torch.float16 else 1e-5, rtol=0
    )


@pytest.mark.parametrize("size", [(20, 30), (50, 33), (16, 200)])
@pytest.mark.parametrize("shortest", [11, 40])
def test_the_resize_equals_pils(size: tuple[int, int], shortest: int) -> None:
    image = picture(*size)
    pixels = Preprocess(PreprocessConfig(shortest=shortest, divisor=1))([image]).pixels[0]
    rows, columns = pixels.shape[1:]
    for ours, channel in zip(pixels, normalised(image), strict=True):
        theirs = Image.fromarray(channel.astype(np.float32)).resize((columns, rows), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(ours.numpy(), np.asarray(theirs), atol=1e-4)


def test_without_antialias_a_smaller_picture_reads_four_pixels() -> None:
    image = picture(40, 40)
    pixels = Preprocess(PreprocessConfig(shortest=10, antialias=False, divisor=1))([image]).pixels[0]
    # a new pixel's centre 4 (i + 0.5) lies between the old centres 4 i + 1.5 and 4 i + 2.5
    corners = [normalised(image)[:, dy::4, dx::4] for dy in (1, 2) for dx in (1, 2)]
    np.testing.assert_allclose(pixels.numpy(), np.mean(corners, axis=0), atol=1e-5)


def test_a_picture_of_one_pixel() -> None:
    batch = Preprocess(PreprocessConfig(shortest=40))([torch.tensor([[[255]], [[0]], [[128]]], dtype=torch.uint8)])
    assert batch.pixels.shape == (1, 3, 64, 64)
    expected = normalised(torch.tensor([[[255]], [[0]], [[128]]]))
    np.testing.assert_allclose(batch.pixels[0, :, :40, :40].numpy(), np.tile(expected, (40, 40)), rtol=1e-5)


def test_stretch_comes_first() -> None:
    dark = torch.randint(5, 30, (3, 24, 32), dtype=torch.uint8)
    config = PreprocessConfig(shortest=None, stretch=0.01, divisor=1)
    for image in (dark, dark.double() / 255):
        np.testing.assert_allclose(Preprocess(config)([image]).pixels[0], normalised(stretch(dark, 0.01)), atol=1e-5)


def test_learning_neither_stretches_nor_resizes() -> None:
    images = [picture(20, 30), picture(32, 32)]
    batch = Preprocess(PreprocessConfig(scale=3.0, stretch=0.01)).batch(images)
    wanted = Preprocess(NATIVE)(images)
    assert torch.equal(batch.pixels, wanted.pixels)
    assert torch.equal(batch.image_sizes, wanted.image_sizes)


def test_a_picture_does_not_hang_on_its_batch() -> None:
    images = [picture(20, 30), picture(50, 40), picture(31, 90)]
    preprocess = Preprocess(PreprocessConfig(shortest=33, longest=70, stretch=0.01))
    together = preprocess(images)
    for i, image in enumerate(images):
        alone = preprocess([image])
        height, width = alone.pixels.shape[2:]
        assert torch.equal(together.pixels[i, :, :height, :width], alone.pixels[0])
        assert torch.equal(together.image_sizes[i], alone.image_sizes[0])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            torch.zeros(1, 5, 5, dtype=torch.uint8),
            r"image: not a picture; found \(1, 5, 5\); expected a tensor \(3, H, W\)",
        ),
        (torch.zeros(5, 5, dtype=torch.uint8), r"found \(5, 5\)"),
        (torch.zeros(3, 0, 5, dtype=torch.uint8), r"found \(3, 0, 5\)"),
        (torch.zeros(3, 5, 5, dtype=torch.int64), "found torch.int64; expected uint8, or float"),
    ],
)
def test_what_is_not_a_picture(image: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Preprocess(NATIVE)([image])


def test_no_pictures() -> None:
    with pytest.raises(InputError, match="images: no pictures"):
        Preprocess(NATIVE)([])


def test_nothing_of_it_is_saved() -> None:
    assert not Preprocess(NATIVE).state_dict()


# --- other families ---------------------------------------------------------------------------------------------------


def test_blue_first() -> None:
    image = torch.randint(0, 256, (3, 10, 12), dtype=torch.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    config = PreprocessConfig(shortest=None, channels="bgr", mean=mean, std=std, divisor=1)
    pixels = Preprocess(config)([image]).pixels[0]
    for i, channel in enumerate((2, 1, 0)):
        assert torch.allclose(pixels[i], (image[channel] / 255 - mean[i]) / std[i], atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(40, 90), (90, 40), (64, 64), (200, 300)])
def test_resampling_by_pillow_is_pillows(height: int, width: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    config = PreprocessConfig(shortest=64, resampling="pillow", mean=(0, 0, 0), std=(1 / 255,) * 3, divisor=1)
    pixels = Preprocess(config)([torch.from_numpy(picture).permute(2, 0, 1)]).pixels[0]
    size = pixels.shape[2], pixels.shape[1]
    expected = np.array(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))
    assert min(size) == 64
    assert torch.allclose(pixels.permute(1, 2, 0), torch.from_numpy(expected).float(), atol=1e-3)
    floats = Preprocess(config)([torch.from_numpy(picture).permute(2, 0, 1) / 255]).pixels[0]
    assert torch.equal(floats, pixels)  # float pictures are rounded to 8 bits first


@pytest.mark.parametrize(("size", "top", "left"), [((64, 64), 0, 0), ((40, 64), 12, 0), ((37, 20), 13, 22)])
def test_a_square_with_the_picture_in_the_middle_and_black_around_it(
    size: tuple[int, int], top: int, left: int
) -> None:
    config = replace(NATIVE, square=60, divisor=64, place="centre", border="black")
    image = picture(*size)
    whole = torch.zeros(3, 64, 64, dtype=torch.uint8)
    whole[:, top : top + size[0], left : left + size[1]] = image
    batch = Preprocess(config)([image])
    assert batch.image_sizes.tolist() == [list(size)]
    torch.testing.assert_close(batch.pixels[0].numpy(), normalised(whole).astype(np.float32), atol=1e-5, rtol=1e-5)


def test_a_square_grows_with_a_larger_picture() -> None:
    config = replace(NATIVE, square=64, divisor=64)
    assert Preprocess(config)([picture(20, 70)]).pixels.shape == (1, 3, 64, 128)


def test_bytes_of_scikit_image() -> None:
    image = picture(30, 40)
    config = PreprocessConfig(shortest=51, resampling="skimage")
    batch = Preprocess(config)([image])
    expected = normalised(resize_skimage(image, 51, 68)).astype(np.float32)
    torch.testing.assert_close(batch.pixels[0, :, :51, :68].numpy(), expected, atol=1e-5, rtol=1e-5)
