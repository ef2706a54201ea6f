"""Pictures for every decoder: plain JPEG files as they are, all others written as such."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskrcnn.bench.pictures import bench_pictures, cropped
from maskrcnn.data.pictures import read_picture
from maskrcnn.errors import InputError, InputErrors


def drawn(height: int, width: int) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([rows % 256, columns % 256, (rows + columns) % 256], axis=2).astype(np.uint8))


def test_bundled_ones_have_the_size_that_is_promised() -> None:
    pictures = bench_pictures()
    assert len(pictures) == 2 and {picture.size for picture in pictures} == {(480, 640)}
    assert all(read_picture(picture.data).shape == (480, 640, 3) for picture in pictures)


def test_a_jpeg_file_is_taken_as_it_is(tmp_path: Path) -> None:
    drawn(30, 50).save(tmp_path / "a.jpg")
    (picture,) = bench_pictures([tmp_path])
    assert picture.data == (tmp_path / "a.jpg").read_bytes()
    assert (picture.name, picture.size) == ("a.jpg", (30, 50))


def test_others_are_written_as_jpeg(tmp_path: Path) -> None:
    drawn(30, 50).save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    drawn(30, 50).save(tmp_path / "b.jpg", exif=exif)
    png, turned = bench_pictures([tmp_path / "a.png", tmp_path / "b.jpg"])
    assert (png.size, turned.size) == ((30, 50), (50, 30))
    for picture in (png, turned):
        image = Image.open(io.BytesIO(picture.data))
        assert image.format == "JPEG" and image.size == picture.size[::-1] and not image.getexif()
    assert np.abs(read_picture(png.data).astype(int) - np.asarray(drawn(30, 50)).astype(int)).mean() < 8


def test_the_middle_of_a_picture(tmp_path: Path) -> None:
    drawn(100, 140).save(tmp_path / "a.png")
    (middle,) = cropped([tmp_path / "a.png"], 64)
    assert middle.size == (64, 64)
    expected = np.asarray(drawn(100, 140))[18:82, 38:102].astype(int)
    assert np.abs(read_picture(middle.data).astype(int) - expected).mean() < 8
    (larger,) = cropped([tmp_path / "a.png"], 128)
    assert larger.size == (128, 128)


def test_what_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no picture")
    with pytest.raises(InputError, match="a.jpg"):
        bench_pictures([tmp_path / "a.jpg"])
    with pytest.raises((InputError, InputErrors), match="none.jpg"):
        bench_pictures([tmp_path / "none.jpg"])
