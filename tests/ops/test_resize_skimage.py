"""Against what scikit-image 0.26 printed."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from maskrcnn.ops.resize_skimage import resize_skimage

PICTURES = Path(__file__).parents[1] / "weights" / "fixtures" / "pictures"
# picture, or the one value of an even one of 50 x 70; (height, width); CRC-32 of the bytes (H, W, C) that it made
PRINTED = [
    ("drawn_wide", (59, 101), 456696582),
    ("drawn_wide", (80, 136), 1788973554),
    ("drawn_wide", (128, 218), 3282856368),
    ("drawn_wide", (208, 354), 2477912994),
    ("drawn_wide", (320, 544), 2932241958),
    ("drawn_wide", (410, 697), 4067168579),
    ("drawn_wide", (533, 907), 1666334819),
    ("drawn_tall", (124, 89), 3768709309),
    ("drawn_tall", (168, 120), 3443123205),
    ("drawn_tall", (269, 192), 3489274046),
    ("drawn_tall", (437, 312), 2047606753),
    ("drawn_tall", (672, 480), 772166159),
    ("drawn_tall", (861, 615), 2683225368),
    ("drawn_tall", (1120, 800), 3665129364),
    ("cells", (92, 107), 586718918),
    ("cells", (125, 145), 1641422093),
    ("cells", (200, 232), 3827845590),
    ("cells", (325, 377), 4085216695),
    ("cells", (500, 580), 1695456167),
    ("cells", (640, 743), 3597987264),
    ("cells", (833, 967), 2668117375),
    (255, (18, 26), 3933617851),
    (255, (65, 91), 3776576305),
    (255, (128, 179), 4210529666),
    (1, (18, 26), 314374758),
    (1, (65, 91), 4168827408),
    (1, (128, 179), 2697618031),
    (77, (18, 26), 3127714003),
    (77, (65, 91), 3840902773),
    (77, (128, 179), 714078659),
]


def picture_of(name: str | int) -> Tensor:
    if isinstance(name, int):
        return torch.full((3, 50, 70), name, dtype=torch.uint8)
    with Image.open(PICTURES / f"{name}.png") as picture:
        return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)


@pytest.mark.parametrize(("name", "size", "checksum"), PRINTED)
def test_every_byte_is_that_of_scikit_image(name: str | int, size: tuple[int, int], checksum: int) -> None:
    resized = resize_skimage(picture_of(name), *size)
    assert resized.shape == (3, *size) and resized.dtype == torch.uint8
    assert zlib.crc32(resized.permute(1, 2, 0).contiguous().numpy().tobytes()) == checksum


def test_small_numbers_can_be_followed() -> None:
    picture = torch.tensor([[[172, 47, 117, 192], [67, 251, 195, 103], [9, 211, 21, 242]]], dtype=torch.uint8)
    printed = [
        [114, 87, 46, 84, 123, 128],
        [108, 129, 131, 144, 152, 130],
        [55, 159, 241, 204, 149, 85],
        [26, 129, 204, 113, 138, 155],
        [9, 88, 143, 42, 105, 161],
    ]
    assert resize_skimage(picture, 5, 6)[0].tolist() == printed


def test_a_picture_of_the_right_size_is_left_alone() -> None:
    picture = picture_of("cells")
    assert resize_skimage(picture, *picture.shape[1:]) is picture
