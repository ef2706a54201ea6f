"""What becomes of a picture before the network sees it, as choices: size, resampling, colours, border. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from maskrcnn.model.config import require
from maskrcnn.structures import Size

Place = Literal["corner", "centre"]  # of the picture in the padded frame: top left, or in the middle
Resampling = Literal["torch", "pillow", "opencv", "skimage"]
Rounding = Literal["nearest", "floor", "even"]


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """How a picture becomes the network's input. `scale` wins over `shortest`; both None keeps the native size."""

    shortest: int | None = 800  # px, shorter side after the resize; He et al. 2017, 3.1
    longest: int | None = 1333  # px, the longer side is never above this; None: any length
    min_scale: float = 0.0  # a picture is scaled by no less than this, unless `longest` asks for it; 1: never shrunk
    scale: float | None = None  # a fixed factor instead, for data whose pixels have a physical size
    antialias: bool = True  # average over the pixels that a smaller picture skips
    resampling: Resampling = "torch"  # torch: of float values; the others: of bytes, as that library does it
    rounding: Rounding = "nearest"  # of the resized sides; torchvision: floor; even: halves to the even side, as Python
    stretch: float | None = None  # fraction of values clipped at each end by a contrast stretch; None: no stretch
    channels: Literal["rgb", "bgr"] = "rgb"  # the order that the network was trained with
    mean: tuple[float, float, float] = (
        0.485,
        0.456,
        0.406,
    )  # of values in 0..1, in the order of `channels`; ImageNet's
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    divisor: int = 32  # padded sides are multiples of this, the coarsest stride of the backbone
    square: int | None = None  # px, what the network sees is at least a square of this side
    place: Place = "corner"  # of the picture in it: top left, or centre
    border: Literal["mean", "black"] = "mean"  # what surrounds the picture; the mean colour is 0 once normalised

    def __post_init__(self) -> None:
        require(self.shortest is None or self.shortest > 0, self, "shortest", "at least 1 px")
        require(self.longest is None or self.longest > 0, self, "longest", "at least 1 px, or none")
        require(self.min_scale >= 0, self, "min_scale", "0 or more")
        require(self.scale is None or self.scale > 0, self, "scale", "above 0")
        require(self.stretch is None or 0 <= self.stretch < 0.5, self, "stretch", "from 0 to below 0.5")
        require(min(self.std) > 0, self, "std", "above 0")
        require(self.divisor > 0, self, "divisor", "at least 1")
        require(self.square is None or self.square > 0, self, "square", "at least 1 px, or none")

    def resized_size(self, original: Size, size: int | Literal["native"] | None = None) -> Size:
        """(height, width) of the resized frame for a picture of `original` size."""
        factor = self._factor(original, size)
        if self.rounding == "floor":
            return max(1, math.floor(original[0] * factor)), max(1, math.floor(original[1] * factor))
        if self.rounding == "even":
            return max(1, round(original[0] * factor)), max(1, round(original[1] * factor))
        return max(1, math.floor(original[0] * factor + 0.5)), max(1, math.floor(original[1] * factor + 0.5))

    def _factor(self, original: Size, size: int | Literal["native"] | None) -> float:
        if size == "native":
            return 1.0
        shorter, longer = min(original), max(original)
        wanted = size if size is not None else self.shortest
        if size is None and self.scale is not None:
            factor = self.scale
        elif wanted is None:
            factor = 1.0
        else:
            factor = wanted / shorter
        longest = self.longest
        if size is None:
            factor = max(factor, self.min_scale)
        elif longest is not None:  # asked for by the caller: the shape limit widens with it
            longest = max(longest, round(size * longest / (self.shortest or size)))
        if longest is None or (self.rounding == "even" and round(longer * factor) <= longest):
            return factor
        return min(factor, longest / longer)
