"""Where a picture lies in what the network sees, and the way back: resized -> padded -> original frame.

N images    R boxes    sizes: (height, width)    boxes, windows: (x1, y1, x2, y2), float px
resized frame: the picture after the resize, its corner at (0, 0); padded: all that the network sees; original: as it
was given.

Corners lie on edges of pixels: a box that covers a picture of 100 px runs from 0 to 100. Early detectors of TensorFlow
have them in the centres of the first and last pixel: the same box runs from 0 to 99. `Corners` says which.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from maskrcnn.model.preprocess_config import Place as Place
from maskrcnn.structures import Size

Corners = Literal["edges", "centres"]  # of boxes, see above


def windows_of(image_sizes: Tensor, padded_size: Size, place: Place, corners: Corners) -> Tensor:
    """(N, 4) float32: the box of each picture in the padded frame. image_sizes: (N, 2) float32, resized."""
    far = image_sizes.flip(1)  # (width, height)
    near = torch.zeros_like(far)
    if place == "centre":
        height, width = padded_size
        near = torch.floor(torch.stack([width - far[:, 0], height - far[:, 1]], dim=1) / 2)
    return torch.cat([near, near + far - extra(corners)], dim=1)


def to_padded(boxes: Tensor, window: Tensor, corners: Corners) -> Tensor:
    """Boxes (R, 4), resized frame, corners on edges, to the padded frame and the network's corners. window: (4,)."""
    return on_pixels(boxes + window[:2].repeat(2), corners)


def to_original(boxes: Tensor, window: Tensor, size: Size, corners: Corners) -> Tensor:
    """Boxes (R, 4), padded frame, to the picture as given, of `size`, with corners on edges. window: (4,)."""
    near, factor = window[:2], _enlargement(window, size, corners)
    return torch.cat([(boxes[:, :2] - near) * factor, (boxes[:, 2:] - near) * factor + extra(corners)], dim=1)


def from_original(boxes: Tensor, window: Tensor, size: Size, corners: Corners) -> Tensor:
    """The way back from `to_original`."""
    near, factor = window[:2], _enlargement(window, size, corners)
    return torch.cat([boxes[:, :2] / factor + near, (boxes[:, 2:] - extra(corners)) / factor + near], dim=1)


def _enlargement(window: Tensor, size: Size, corners: Corners) -> Tensor:
    """(2,) how much wider and higher the original is than the window."""
    whole = window.new_tensor((size[1], size[0])) - extra(corners)
    # of a single pixel, corners in the centre, nothing can be scaled
    return whole / (window[2:] - window[:2]).clamp(min=1)


def on_pixels(boxes: Tensor, corners: Corners) -> Tensor:
    """Boxes (R, 4) with corners on edges to boxes of the same pixels with the network's corners."""
    return torch.cat([boxes[:, :2], boxes[:, 2:] - extra(corners)], dim=1)


def on_edges(boxes: Tensor, corners: Corners) -> Tensor:
    """The way back from `on_pixels`."""
    return torch.cat([boxes[:, :2], boxes[:, 2:] + extra(corners)], dim=1)


def extra(corners: Corners) -> float:
    """How many px the edges of a box lie farther apart than its corners."""
    return 1.0 if corners == "centres" else 0.0
