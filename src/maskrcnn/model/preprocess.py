"""Picture to network input: stretch contrast, normalise, resize, pad (He et al. 2017, 3.1: shorter side 800 px).

N images    H, W padded size    sizes: (height, width)
original frame: the picture as given; resized: after the resize; padded: with a border, right and below or all round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from maskrcnn.errors import InputError
from maskrcnn.model.frames import windows_of
from maskrcnn.model.preprocess_config import PreprocessConfig as PreprocessConfig
from maskrcnn.model.preprocess_config import Resampling as Resampling
from maskrcnn.model.preprocess_config import Rounding as Rounding
from maskrcnn.ops.contrast import stretch
from maskrcnn.ops.resize_opencv import resize_opencv
from maskrcnn.ops.resize_skimage import resize_skimage
from maskrcnn.structures import ImageBatch, Size


class Preprocess(nn.Module):
    """Pictures (3, H_i, W_i), uint8 or float 0..1 RGB, to one `ImageBatch`."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: PreprocessConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.tensor(config.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(config.std)[:, None, None], persistent=False)

    def forward(self, images: Sequence[Tensor], size: int | Literal["native"] | None = None) -> ImageBatch:
        """Stretch, normalise, resize and pad.

        images: N tensors (3, H_i, W_i), original frame. size: shorter side in px or "native" in place of the config's.
        """
        pixels = [self.resized(self.stretch(_checked(image)), size) for image in images]
        return self.pad(pixels, [_size(image) for image in images])

    def resized(self, image: Tensor, size: int | Literal["native"] | None = None) -> Tensor:
        """(3, H_i, W_i) as given to (3, h, w) float32, normalised, in the resized frame."""
        wanted = self.config.resized_size(_size(image), size)
        if self.config.resampling == "pillow":
            return self.normalise(_resize_by_pillow(as_bytes(image), wanted))
        if self.config.resampling == "opencv":
            return self.normalise(resize_opencv(as_bytes(image), *wanted))
        if self.config.resampling == "skimage":
            return self.normalise(resize_skimage(as_bytes(image), *wanted))
        return self.resize(self.normalise(image), wanted)

    def batch(self, images: Sequence[Tensor]) -> ImageBatch:
        """Only normalise and pad: for pictures that are stretched and resized already (learning)."""
        return self.pad([self.normalise(image) for image in images], [_size(image) for image in images])

    def stretch(self, image: Tensor) -> Tensor:
        if self.config.stretch is None:
            return image
        return stretch(as_bytes(image), self.config.stretch)

    def normalise(self, image: Tensor) -> Tensor:
        image = image.to(self.mean.device, non_blocking=True)
        if self.config.channels == "bgr":
            image = image.flip(0)
        values = image.to(torch.float32, copy=True)  # changed in place: of 12000 x 9000 px each copy takes 1.3 GB
        if image.dtype == torch.uint8:
            values /= 255
        return values.sub_(self.mean).div_(self.std)

    def resize(self, image: Tensor, size: Size) -> Tensor:
        if size == _size(image):
            return image
        resized: Tensor = F.interpolate(
            image[None], size, mode="bilinear", align_corners=False, antialias=self.config.antialias
        )[0]
        return resized

    def pad(self, pixels: Sequence[Tensor], original_sizes: Sequence[Size]) -> ImageBatch:
        """One tensor (N, 3, H, W), H and W multiples of `divisor`, each picture in its place and a border around it."""
        if not pixels:
            raise InputError("no pictures", field="images", expected="at least one")
        sizes = [_size(image) for image in pixels]
        divisor = self.config.divisor
        least = self.config.square or 1
        height, width = (math.ceil(max(*side, least) / divisor) * divisor for side in zip(*sizes, strict=True))
        image_sizes = torch.tensor(sizes, dtype=torch.float32)
        corners = windows_of(image_sizes, (height, width), self.config.place, "edges")[:, :2].int().tolist()
        padded = [
            self._surrounded(image, left, top, width, height)
            for image, (left, top) in zip(pixels, corners, strict=True)
        ]
        return ImageBatch(
            pixels=torch.stack(padded).contiguous(memory_format=torch.channels_last),  # faster convolutions
            image_sizes=image_sizes.to(padded[0].device, non_blocking=True),
            original_sizes=tuple(original_sizes),
        )

    def _surrounded(self, image: Tensor, left: int, top: int, width: int, height: int) -> Tensor:
        """(3, h, w) to (3, height, width) with the border's colour around it."""
        if self.config.border == "mean":
            return F.pad(image, (left, width - left - image.shape[2], top, height - top - image.shape[1]))
        whole = (-self.mean / self.std).repeat(1, height, width)  # of black pixels
        whole[:, top : top + image.shape[1], left : left + image.shape[2]] = image
        return whole


def as_bytes(image: Tensor) -> Tensor:
    """The picture as uint8: float values in 0..1 are rounded to it."""
    return image if image.dtype == torch.uint8 else (image * 255).round().clamp(0, 255).to(torch.uint8)


def _resize_by_pillow(image: Tensor, size: Size) -> Tensor:
    """(3, H, W) uint8 to (3, h, w) uint8, bilinear over all pixels that a smaller picture skips."""
    if size == _size(image):
        return image
    picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    resized = np.array(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return torch.from_numpy(resized).permute(2, 0, 1).to(image.device)


def _size(image: Tensor) -> Size:
    return image.shape[-2], image.shape[-1]


def _checked(image: Tensor) -> Tensor:
    if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise InputError("not a picture", field="image", found=tuple(image.shape), expected="a tensor (3, H, W)")
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise InputError("not a picture", field="image", found=image.dtype, expected="uint8, or float in 0..1")
    return image
