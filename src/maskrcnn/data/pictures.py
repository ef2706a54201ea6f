"""Pictures of any kind, in files or in memory, to (H, W, 3) uint8 RGB.

What becomes of each kind:

    1, L, RGB, CMYK, YCbCr, ...   Pillow's own conversion; grey is repeated three times
    P with transparency           laid over black, since the colour below a transparent entry is arbitrary
    LA, RGBA and (H, W, 4)        alpha is dropped, the colours stay as stored
    16 bit                        divided by 257, so 65535 becomes 255: the same scale for every picture
    I (32 bit files)              as 16 bit where nothing exceeds 65535, else the whole positive range to 0..255
    wider integers, in memory     0..255, 0..65535 or the type's range to 0..255: the smallest that holds all values
    float                         the same with 0..1, 0..255 and 0..65535; half as much beyond is cut off as overshoot
    bool                          0 and 255
    several frames or pages       the first
    turned by EXIF                upright

Values below zero become 0. Values that are not finite are an error.
"""

from __future__ import annotations

import io
import os
import struct
import sys
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from glob import glob, has_magic
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeGuard

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from maskrcnn.errors import InputError, InputErrors

if TYPE_CHECKING:
    from torch import Tensor

    from maskrcnn.structures import Size

PictureLike: TypeAlias = "str | Path | bytes | Image.Image | np.ndarray | Tensor"

PICTURE_SUFFIXES = frozenset(
    ".png .jpg .jpeg .jpe .jfif .bmp .dib .tif .tiff .gif .webp .ppm .pgm .pbm .pnm .jp2 .avif .tga".split()
)

_EXIF_ORIENTATION = 0x0112
_TAIL_BYTES = 4096  # cameras and editors append data after the end of a JPEG; with more of it than this, it is decoded
_OVERSHOOT = 1.5  # filters leave values a little beyond white
# What Pillow raises on damaged files, by format; OSError holds UnidentifiedImageError and "file is truncated".
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)


def read_picture(picture: PictureLike, *, name: str | None = None) -> np.ndarray:
    """Any picture as (H, W, 3) uint8 RGB, upright, by the rules above.

    Args:
        picture: a path, the bytes of a file, a PIL image, an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4),
            or a tensor (H, W) or (C, H, W) with 1, 3 or 4 channels.
        name: what errors call a picture that is not a file.

    Raises:
        InputError: the file is missing, no picture, truncated or suspiciously large; the array has another form.
    """
    if isinstance(picture, (str, os.PathLike)):
        path = Path(picture)
        with _opened(path, str(path)) as image:
            return _from_pil(image, str(path))
    label = name or "picture"
    if isinstance(picture, bytes):
        with _opened(io.BytesIO(picture), label) as image:
            return _from_pil(image, label)
    if isinstance(picture, Image.Image):
        with _damage_named(label):
            return _from_pil(picture, label)
    if _is_tensor(picture):
        return _from_array(_channels_last(picture), label)
    if isinstance(picture, np.ndarray):
        return _from_array(picture, label)
    raise InputError(
        "is not a picture",
        file=label,
        found=type(picture).__name__,
        expected="a path, bytes, a PIL image, an array (H, W, C) or a tensor (C, H, W)",
    )


def picture_size(path: str | Path) -> tuple[Size, Size]:
    """((height, width) upright, (height, width) as stored) from the file's header; they differ where EXIF turns.

    Raises:
        InputError: the file is missing or is not a picture.
    """
    with _opened(Path(path), str(path)) as image:
        # A PNG's getexif() decodes the whole picture when its header holds none.
        exif = image.getexif() if image.format != "PNG" or "exif" in image.info else {}
        turned = exif.get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
        if turned and image.format == "TIFF":  # Pillow turns these by itself, some versions only when decoding
            image.load()
            width, height = image.size
            return (height, width), (width, height)
        width, height = image.size
    return ((width, height) if turned else (height, width)), (height, width)


def check_whole(path: str | Path) -> None:
    """Raise InputError for a picture cut short, without decoding the common formats.

    JPEG, PNG and GIF carry an end mark; where it is absent, and for all other formats, the picture is decoded.
    """
    path = Path(path)
    with _damage_named(str(path)), path.open("rb") as file:
        head = file.read(12)
        length = file.seek(0, os.SEEK_END)
        file.seek(max(0, length - _TAIL_BYTES))
        tail = file.read()
    whole = (
        (head.startswith(b"\xff\xd8") and b"\xff\xd9" in tail)
        or (head.startswith(b"\x89PNG") and b"IEND\xaeB`\x82" in tail)
        or (head.startswith(b"GIF8") and tail.endswith(b";"))
    )
    if not whole:
        read_picture(path)


def picture_files(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """The picture files that are meant, in order.

    Args:
        paths: a file, a folder (its pictures, known by suffix, sorted, without subfolders), a glob, or several.
            A file that is named outright is taken whatever its suffix.

    Raises:
        InputErrors: every missing file, every folder without a picture and every glob that matches nothing.
    """
    wanted = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    found: list[Path] = []
    errors: list[InputError] = []
    for entry in wanted:
        try:
            found += _expand(entry)
        except InputError as error:
            errors.append(error)
    if not wanted:
        raise InputError("no pictures given", expected="a file, a folder or a glob")
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise InputErrors("pictures that are not there", errors)
    return found


def _expand(entry: str | Path) -> list[Path]:
    path = Path(entry)
    if path.is_dir():
        pictures = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file())
        if not pictures:
            raise InputError("holds no picture", file=path, expected="a folder with .png, .jpg, .tif, ... files")
        return pictures
    if path.exists():
        return [path]
    if has_magic(str(entry)):
        matches = sorted(p for p in map(Path, glob(str(entry))) if p.suffix.lower() in PICTURE_SUFFIXES)
        if not matches:
            raise InputError("matches no picture", file=path)
        return matches
    raise InputError("no such file or folder", file=path)


@contextmanager
def _damage_named(label: str) -> Iterator[None]:
    """Turn what Pillow raises on bad files into an InputError that names the file."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError("no such file", file=label) from None
    except UnidentifiedImageError:
        raise InputError("is not a picture that can be read", file=label) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = f"at most {Image.MAX_IMAGE_PIXELS} pixels (PIL.Image.MAX_IMAGE_PIXELS raises the limit)"
        raise InputError(f"is suspiciously large: {error}", file=label, expected=limit) from None
    except _DAMAGE as error:
        raise InputError("cannot be read, damaged or cut short", file=label, found=str(error)) from None


@contextmanager
def _opened(file: Path | io.BytesIO, label: str) -> Iterator[Image.Image]:
    with _damage_named(label):
        with warnings.catch_warnings():
            # Between one and two times its limit Pillow only warns; such pictures are read.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file)
        with image:
            yield image


def _from_pil(image: Image.Image, label: str) -> np.ndarray:
    if image.tell() != 0:
        image.seek(0)
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":  # I, I;16, I;16B, F
        values = np.asarray(image)
        # Some writers and older readers hand 16 bit data over as 32 bit.
        narrow = image.mode == "I" and values.size > 0 and 0 <= values.min() and values.max() <= 65535
        return _from_array(values.astype(np.uint16) if narrow else values, label)
    if image.mode == "PA" or (image.mode == "P" and "transparency" in image.info):
        clear = image.convert("RGBA")
        image = Image.new("RGB", image.size)
        image.paste(clear, mask=clear.getchannel("A"))
    if image.mode in ("LA", "La"):  # straight to RGB is not offered for every pair of modes
        image = image.getchannel("L")
    return _from_array(np.array(image.convert("RGB")), label)


def _is_tensor(picture: object) -> TypeGuard[Tensor]:
    """Where torch is not loaded nobody has a tensor: pictures are read without it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(picture, torch.Tensor)


def _channels_last(tensor: Tensor) -> np.ndarray:
    values = tensor.detach().cpu()
    if values.dtype.is_floating_point:
        values = values.float()  # numpy has no bfloat16
    return (values.permute(1, 2, 0) if values.ndim == 3 else values).numpy()


def _from_array(array: np.ndarray, label: str) -> np.ndarray:
    channels = 1 if array.ndim == 2 else array.shape[2] if array.ndim == 3 else 0
    if channels not in (1, 3, 4) or array.size == 0:
        raise InputError(
            "has not the form of a picture",
            file=label,
            found=f"shape {array.shape}",
            expected="(H, W) or (H, W, C), or (C, H, W) for a tensor, with C 1, 3 or 4 and no empty side",
        )
    colours = array[:, :, None] if array.ndim == 2 else array[:, :, :3]
    levels = _to_levels(colours, label)
    if levels.shape[2] == 1:
        levels = np.repeat(levels, 3, axis=2)
    return np.ascontiguousarray(levels)


def _to_levels(values: np.ndarray, label: str) -> np.ndarray:
    """Values of any type to uint8 by the rules at the top of this file."""
    kind = values.dtype
    if kind == np.uint8:
        return values
    if kind == np.bool_:
        return values.astype(np.uint8) * 255
    if not (np.issubdtype(kind, np.integer) or np.issubdtype(kind, np.floating)):
        raise InputError("has values of a type that is none of a picture", file=label, found=str(kind))
    lowest, largest = float(values.min()), float(values.max())
    if not (np.isfinite(lowest) and np.isfinite(largest)):
        raise InputError("holds values that are not finite", file=label)
    slack = _OVERSHOOT if np.issubdtype(kind, np.floating) else 1.0
    full = next((limit for limit in _ranges(kind) if largest <= limit * slack), None)
    if full is None:
        expected = "values in 0..1, 0..255 or 0..65535"
        raise InputError("holds values beyond every known range", file=label, found=largest, expected=expected)
    scaled: np.ndarray = np.clip(values.astype(np.float32), 0, full) * np.float32(255.0 / full)
    return (scaled + 0.5).astype(np.uint8)


def _ranges(kind: np.dtype) -> tuple[float, ...]:
    """The largest values that white may have in data of this type, ascending."""
    if np.issubdtype(kind, np.floating):
        return (1.0, 255.0, 65535.0)
    top = float(np.iinfo(kind).max)
    return (top,) if np.dtype(kind).itemsize <= 2 else (255.0, 65535.0, top)
