"""Selective Search: region proposals of 2013, from segments that are merged step by step into larger ones.

Uijlings et al. 2013, as OpenCV has it (opencv-contrib, `ximgproc.segmentation`). A picture is cut into small segments
of even colour (Felzenszwalb and Huttenlocher 2004), neighbours that look most alike are joined again and again, and the
box of every segment on the way is a proposal. Several colour spaces, segmentations and measures of likeness are tried
and their boxes put together: few in mode "fast", which R-CNN used, more in "quality".

The segmentations are those of R-CNN's published code (`selective_search_boxes.m`), not OpenCV's, whose segments measure
at least 100 px: on 20 drawn shapes at 128 px and 4 pictures of nuclei they find 99% and 75% of the objects at IoU 0.5,
OpenCV's 95% and 49%, in two thirds of the time. That code also dropped boxes narrower than 20 px; here they are kept,
since the objects of small pictures are small.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from maskrcnn.errors import InputError
from maskrcnn.lineage.system import EXTRA

Mode = Literal["fast", "quality"]

LONGEST = 1000  # px; larger pictures are searched at this longest side, since time grows faster than their pixels
SEGMENTS = {"fast": (50, 100), "quality": (50, 100, 150, 300)}  # k of each segmentation, and least px of a segment
SMOOTHING = 0.8  # px: sigma of the blur before segmentation
VERSION = 1  # of everything here that changes boxes: part of what a cache of proposals goes by


def selective_search(picture: np.ndarray, mode: Mode = "fast") -> Tensor:
    """Boxes (P, 4) float32 x1 y1 x2 y2 in pixels of `picture` (H, W, 3) uint8 RGB, largest first, none twice.

    The same for the same picture: OpenCV puts its boxes into a random order, here they go by area. A picture that is
    one single segment, as one of one colour, has no proposal. Objects of less than 50 px are not found: so small a
    segment is joined to its surroundings before the search begins.

    Raises:
        InputError: opencv-contrib is not there, or no such mode.
    """
    if mode not in get_args(Mode):
        expected = " or ".join(get_args(Mode))
        raise InputError("no such mode", field="selective_search.mode", found=repr(mode), expected=expected)
    height, width = picture.shape[:2]
    seen = _shrunk(picture, min(1.0, LONGEST / max(height, width)))
    corners = _search(seen, mode) * ([width / seen.shape[1], height / seen.shape[0]] * 2)
    boxes = np.unique(corners.astype(np.float32), axis=0)  # (P, 4), in the order of x1, y1, x2, y2
    sides = boxes[:, 2:] - boxes[:, :2]
    order = np.argsort(-sides[:, 0] * sides[:, 1], kind="stable")
    is_whole_picture = (boxes == [0, 0, width, height]).all(axis=1)
    return torch.from_numpy(boxes[:0] if is_whole_picture.all() else boxes[order])


def _search(picture: np.ndarray, mode: Mode) -> np.ndarray:
    """(P, 4) float64 corners, in any order."""
    try:
        from cv2.ximgproc import segmentation
    except ImportError as error:
        raise InputError("needs opencv-contrib", field="Selective Search", expected=EXTRA) from error
    search = segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(picture[..., ::-1]))  # OpenCV's order of colours
    choose = search.switchToSelectiveSearchFast if mode == "fast" else search.switchToSelectiveSearchQuality
    choose()
    search.clearGraphSegmentations()
    for k in SEGMENTS[mode]:
        search.addGraphSegmentation(segmentation.createGraphSegmentation(SMOOTHING, float(k), k))
    rectangles = np.asarray(search.process(), dtype=np.float64).reshape(-1, 4)  # x, y, width, height
    return np.concatenate([rectangles[:, :2], rectangles[:, :2] + rectangles[:, 2:]], axis=1)


def _shrunk(picture: np.ndarray, factor: float) -> np.ndarray:
    if factor == 1.0:
        return picture
    import cv2

    height, width = (max(1, round(side * factor)) for side in picture.shape[:2])
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
