"""OpenCV's own bytes: by `cv2.resize(picture, (width, height))` of opencv-python-headless 4.12.0 and 5.0.0, x86-64."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn.ops.resize_opencv import resize_opencv

PRINTED = [  # before, after, CRC-32 of the result as (3, height, width)
    ((37, 53), (24, 31), 0x73E841C5),  # smaller
    ((37, 53), (61, 90), 0xB3DACB68),  # larger
    ((48, 64), (24, 32), 0xCEE41793),  # half: a kernel of its own
    ((48, 64), (24, 31), 0x8F33DFE0),  # half in one direction only
    ((90, 60), (30, 20), 0x8E658AB7),  # a third
    ((1, 1), (4, 3), 0xFEA7D49D),
    ((7, 5), (1, 1), 0x4A0912D5),
    ((480, 640), (256, 341), 0x5ADE07F),
    ((427, 640), (800, 1199), 0x45B9D7AD),  # a picture of COCO at the usual size
]


def random_picture(height: int, width: int, seed: int) -> Tensor:
    picture = np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)
    return torch.from_numpy(picture).permute(2, 0, 1)


@pytest.mark.parametrize(("before", "after", "crc"), PRINTED)
def test_every_byte_is_opencvs(before: tuple[int, int], after: tuple[int, int], crc: int) -> None:
    resized = resize_opencv(random_picture(*before, seed=before[0] * before[1]), *after)
    assert (resized.dtype, resized.shape) == (torch.uint8, (3, *after))
    assert zlib.crc32(resized.contiguous().numpy().tobytes()) == crc


def test_a_case_to_read() -> None:
    rows = torch.tensor([[[99, 189, 144], [228, 155, 208]]], dtype=torch.uint8)
    printed = [[99, 135, 189, 162, 144], [164, 167, 172, 174, 176], [228, 199, 155, 187, 208]]
    assert resize_opencv(rows, 3, 5)[0].tolist() == printed


def test_nothing_to_do() -> None:
    picture = random_picture(5, 7, seed=0)
    assert torch.equal(resize_opencv(picture, 5, 7), picture)


@pytest.mark.parametrize("after", [(24, 31), (61, 90), (53, 20)])
def test_within_one_of_the_exact_sum(after: tuple[int, int]) -> None:
    picture = random_picture(37, 53, seed=3)
    exact = F.interpolate(picture[None].double(), after, mode="bilinear", align_corners=False)[0]
    assert (resize_opencv(picture, *after).double() - exact).abs().max() <= 1.0
