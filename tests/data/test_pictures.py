from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn.data.pictures import check_whole, picture_files, picture_size, read_picture
from maskrcnn.errors import InputError, InputErrors


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


# --- kinds of files ---------------------------------------------------------------------------------------------------


def test_rgb_from_path_string_bytes_and_memory(rgb: np.ndarray, tmp_path: Path) -> None:
    path = saved(Image.fromarray(rgb), tmp_path / "a.png")
    for source in (path, str(path), path.read_bytes(), Image.fromarray(rgb), rgb):
        found = read_picture(source)
        assert found.dtype == np.uint8 and found.flags.c_contiguous
        np.testing.assert_array_equal(found, rgb)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_grey_is_repeated(rgb: np.ndarray, tmp_path: Path, suffix: str) -> None:
    grey = rgb[..., 0]
    path = saved(Image.fromarray(grey), tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(read_picture(path), np.repeat(grey[..., None], 3, 2))


def test_one_bit(tmp_path: Path) -> None:
    bits = np.eye(6, dtype=bool)
    path = saved(Image.fromarray(bits), tmp_path / "a.png")
    np.testing.assert_array_equal(read_picture(path)[..., 1], bits * 255)


def test_alpha_is_dropped_and_colours_stay(rgb: np.ndarray, tmp_path: Path) -> None:
    alpha = np.random.default_rng(1).integers(0, 256, (7, 5, 1), dtype=np.uint8)
    path = saved(Image.fromarray(np.concatenate([rgb, alpha], 2)), tmp_path / "a.png")
    np.testing.assert_array_equal(read_picture(path), rgb)
    grey = saved(Image.fromarray(np.concatenate([rgb[..., :1], alpha], 2)), tmp_path / "b.png")
    with Image.open(grey) as image:
        assert image.mode == "LA"
    np.testing.assert_array_equal(read_picture(grey), np.repeat(rgb[..., :1], 3, 2))


def test_palette(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 2), 1)
    found = read_picture(saved(image, tmp_path / "a.png"))
    assert found[2, 1].tolist() == [200, 100, 50] and found[0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("transparency", [0, b"\x00\xff"])
def test_palette_transparency_lies_over_black(tmp_path: Path, transparency: int | bytes) -> None:
    image = Image.new("P", (4, 4))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 2), 1)
    found = read_picture(saved(image, tmp_path / "a.png", transparency=transparency))
    assert found[2, 1].tolist() == [200, 100, 50] and found[0, 0].tolist() == [0, 0, 0]


def test_cmyk(tmp_path: Path) -> None:
    path = saved(Image.new("RGB", (8, 8), (200, 30, 40)).convert("CMYK"), tmp_path / "a.jpg", quality=100)
    with Image.open(path) as image:
        assert image.mode == "CMYK"
    assert np.abs(read_picture(path).astype(int) - (200, 30, 40)).max() <= 6


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_is_divided_by_257(tmp_path: Path, suffix: str) -> None:
    levels = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    path = saved(Image.fromarray(levels), tmp_path / f"a.{suffix}")
    assert read_picture(path)[0, :, 2].tolist() == [0, 1, 128, 255]


def test_big_endian_sixteen_bit(tmp_path: Path) -> None:
    image = Image.frombytes("I;16B", (2, 1), b"\x01\x01\xff\xff")
    assert read_picture(saved(image, tmp_path / "a.tif"))[0, :, 0].tolist() == [1, 255]


def test_thirty_two_bit_files_count_as_sixteen(tmp_path: Path) -> None:
    levels = np.array([[0, 257, 514]], dtype=np.int32)
    assert read_picture(saved(Image.fromarray(levels), tmp_path / "a.tif"))[0, :, 0].tolist() == [0, 1, 2]
    wide = np.array([[-5, 2**31 - 1]], dtype=np.int32)
    assert read_picture(saved(Image.fromarray(wide), tmp_path / "b.tif"))[0, :, 0].tolist() == [0, 255]


def test_float_file(tmp_path: Path) -> None:
    levels = np.array([[0.0, 0.5, 1.0]], dtype=np.float32)
    assert read_picture(saved(Image.fromarray(levels), tmp_path / "a.tif"))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_exif_is_turned_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = np.zeros((16, 32, 3), dtype=np.uint8)
    upright[:8, :8] = 250  # only the corner tells all eight apart
    upright[:8, 24:] = 120
    image = Image.fromarray(upright)
    turns = {
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
    }
    if orientation > 1:
        image = image.transpose(turns[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(image, tmp_path / f"a.{suffix}", exif=exif)
    found = read_picture(path)
    assert found.shape == (16, 32, 3)
    assert np.abs(found.astype(int) - upright).max() < 40  # JPEG
    assert picture_size(path) == ((16, 32), (32, 16) if orientation > 4 else (16, 32))


def test_first_of_several_frames(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), (v, 0, 0)) for v in (10, 20, 30)]
    for suffix in ("tif", "gif"):
        path = saved(frames[0], tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
        assert (read_picture(path)[..., 0] == 10).all()
    with Image.open(path) as turned_over:
        turned_over.seek(2)
        assert (read_picture(turned_over)[..., 0] == 10).all()


# --- arrays and tensors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 6, 3), (4, 6, 4)])
@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32", "float64", "bool", "int64"])
def test_arrays(shape: tuple[int, ...], kind: str) -> None:
    levels = np.random.default_rng(0).integers(0, 256, shape)
    levels.flat[0] = 255
    array = {
        "uint16": levels * 257,
        "float32": levels / 255,
        "float64": levels,
        "bool": levels > 127,
    }.get(kind, levels)
    expected = (levels > 127) * 255 if kind == "bool" else levels
    found = read_picture(np.asarray(array).astype(kind))
    assert found.dtype == np.uint8 and found.shape == (4, 6, 3)
    np.testing.assert_array_equal(found, np.broadcast_to(np.atleast_3d(expected)[..., :3], (4, 6, 3)))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_tensors(channels: int) -> None:
    tensor = torch.randint(0, 256, (channels, 4, 6), dtype=torch.uint8)
    expected = tensor[:3].permute(1, 2, 0).expand(4, 6, 3).numpy()
    np.testing.assert_array_equal(read_picture(tensor), expected)
    np.testing.assert_array_equal(read_picture(tensor.float() / 255), expected)
    assert read_picture(tensor.to(torch.bfloat16)).shape == (4, 6, 3)
    np.testing.assert_array_equal(read_picture(tensor[0]), np.repeat(tensor[0].numpy()[..., None], 3, 2))


def test_overshoot_of_a_filter_is_cut_off_and_does_not_change_the_range() -> None:
    assert read_picture(np.array([[-0.1, 0.5, 1.04]]))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (np.zeros((3, 4, 6)), r"found shape \(3, 4, 6\)"),
        (np.zeros((4, 0, 3)), "no empty side"),
        (np.zeros(5), r"found shape \(5,\)"),
        (np.array([[np.nan, 1.0]]), "not finite"),
        (np.array([[np.inf, 1.0]]), "not finite"),
        (np.array([[1e9, 1.0]]), "beyond every known range"),
        (np.zeros((2, 2), dtype=complex), "complex128"),
        (torch.zeros(2, 4, 6), r"\(4, 6, 2\)"),
        (17, "found int"),
        (None, "found NoneType"),
    ],
)
def test_what_is_no_picture(picture: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_picture(picture)  # type: ignore[arg-type]


# --- bad files --------------------------------------------------------------------------------------------------------


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere.png: no such file"):
        read_picture(tmp_path / "nowhere.png")
    with pytest.raises(InputError, match="nowhere.png: no such file"):
        picture_size(tmp_path / "nowhere.png")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0junk"])
def test_no_picture_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    for read in (read_picture, picture_size, check_whole):
        with pytest.raises(InputError, match=r"bad\.png"):
            read(path)
    with pytest.raises(InputError, match="cells.png"):
        read_picture(content, name="cells.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "gif", "webp"])
def test_truncated_picture_is_named(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = saved(Image.fromarray(noise), tmp_path / f"cut.{suffix}")
    check_whole(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    for read in (read_picture, check_whole):
        with pytest.raises(InputError, match=rf"cut\.{suffix}: .*") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_data_after_the_end_are_no_truncation(tmp_path: Path) -> None:
    path = saved(Image.new("RGB", (16, 16)), tmp_path / "a.jpg")
    path.write_bytes(path.read_bytes() + b"\0" * 20000)
    check_whole(path)


def test_folder_in_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_picture(tmp_path)


def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(Image.new("L", (100, 100)), tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with pytest.raises(InputError, match=r"a\.png: is suspiciously large.*MAX_IMAGE_PIXELS"):
        read_picture(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6000)  # here Pillow would only warn
    assert read_picture(path).shape == (100, 100, 3)


# --- lists of files ---------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.png", "a.JPG", "notes.txt", "sub/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def test_files_of_a_folder_are_sorted_and_known_by_suffix(folder: Path) -> None:
    assert names(picture_files(folder)) == ["a.JPG", "b.png"]
    assert names(picture_files(str(folder))) == ["a.JPG", "b.png"]


def test_globs_lists_and_named_files(folder: Path) -> None:
    assert names(picture_files(str(folder / "*"))) == ["a.JPG", "b.png"]
    assert names(picture_files([folder / "notes.txt", folder / "sub", str(folder / "*.png")])) == [
        "notes.txt",
        "c.png",
        "b.png",
    ]


def test_a_name_with_brackets_is_a_file_first(tmp_path: Path) -> None:
    path = tmp_path / "a[1].png"
    path.write_bytes(b"")
    assert picture_files(str(path)) == [path]


def test_everything_missing_is_told_at_once(folder: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match="empty: holds no picture"):
        picture_files(folder / "empty")
    with pytest.raises(InputErrors) as caught:
        picture_files([folder / "empty", folder / "gone.png", str(folder / "*.webp"), folder / "b.png"])
    assert [str(error).rpartition(": ")[2].split(";")[0] for error in caught.value.errors] == [
        "holds no picture",
        "no such file or folder",
        "matches no picture",
    ]
    with pytest.raises(InputError, match="no pictures given"):
        picture_files([])
