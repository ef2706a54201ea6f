"""Frames by hand, and a detector whose pictures lie in the middle of what it sees."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch

from maskrcnn.model.frames import Corners, extra, on_edges, on_pixels, to_original, to_padded, windows_of
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig, original_frame
from maskrcnn.model.rpn import propose
from maskrcnn.ops.boxes import clip_to
from maskrcnn.structures import DetectionBatch, ImageBatch

SIZES = torch.tensor([[60.0, 80.0], [33.0, 100.0]])  # of two pictures in 64 x 101
CORNERS = pytest.mark.parametrize("corners", get_args(Corners))


@pytest.mark.parametrize(
    ("place", "corners", "expected"),
    [
        ("corner", "edges", [[0, 0, 80, 60], [0, 0, 100, 33]]),
        ("corner", "centres", [[0, 0, 79, 59], [0, 0, 99, 32]]),
        ("centre", "edges", [[10, 2, 90, 62], [0, 15, 100, 48]]),  # of an odd margin the smaller half is left and above
        ("centre", "centres", [[10, 2, 89, 61], [0, 15, 99, 47]]),
    ],
)
def test_where_pictures_lie(place: str, corners: Corners, expected: list[list[int]]) -> None:
    assert windows_of(SIZES, (64, 101), place, corners).tolist() == expected  # type: ignore[arg-type]


@CORNERS
def test_the_whole_picture_there_and_back(corners: Corners) -> None:
    """An object that fills the resized picture fills its window, and the original."""
    window = windows_of(SIZES, (64, 101), "centre", corners)[0]
    whole = torch.tensor([[0.0, 0.0, 80.0, 60.0]])
    padded = to_padded(whole, window, corners)
    assert torch.equal(padded[0], window)
    torch.testing.assert_close(to_original(padded, window, (15, 40), corners), torch.tensor([[0.0, 0.0, 40.0, 15.0]]))


@CORNERS
def test_corners_are_put_back(corners: Corners) -> None:
    boxes = torch.rand(5, 4) * 50
    torch.testing.assert_close(on_edges(on_pixels(boxes, corners), corners), boxes)


def test_pixels_of_an_object_in_both_kinds_of_corners() -> None:
    """The pixels 3, 4 and 5 across, and 7 down, of a picture that is shown as it is."""
    edges = torch.tensor([[3.0, 7.0, 6.0, 8.0]])
    assert on_pixels(edges, "edges").tolist() == [[3, 7, 6, 8]]
    assert on_pixels(edges, "centres").tolist() == [[3, 7, 5, 7]]


def test_a_picture_of_a_single_pixel() -> None:
    window = torch.tensor([4.0, 4.0, 4.0, 4.0])
    assert to_original(window[None], window, (1, 1), "centres").tolist() == [[0, 0, 1, 1]]


@CORNERS
@torch.no_grad()
def test_proposals_may_leave_the_picture_and_detections_may_not(corners: Corners, tiny_model: MaskRCNN) -> None:
    config = tiny_model.config
    config = replace(
        config,
        preprocess=replace(config.preprocess, place="centre"),
        rpn=replace(config.rpn, anchors=replace(config.rpn.anchors, corners=corners), cut_to="padded"),
    )
    sizes, padded = torch.tensor([[64.0, 30.0], [40.0, 96.0]]), (128, 128)
    windows, cuts = config.windows(sizes, padded), config.proposal_windows(sizes, padded)
    outputs = tiny_model.rpn(tiny_model.features(torch.randn(2, 3, *padded)), padded)
    proposals = propose(outputs, cuts, config.rpn)
    assert not torch.equal(clip_to(proposals.boxes, windows[:, None]), proposals.boxes)
    assert torch.equal(clip_to(proposals.boxes, cuts[:, None]), proposals.boxes)
    assert cuts.tolist() == [[0, 0, 128 - extra(corners), 128 - extra(corners)]] * 2
    found = tiny_model.detect(torch.randn(2, 3, *padded), sizes, config)
    assert found.valid.any(dim=1).all()
    for boxes, valid, window in zip(found.boxes, found.valid, windows, strict=True):
        assert torch.equal(clip_to(boxes[valid], window), boxes[valid])


def test_whole_pixels_and_what_has_no_area(tiny_config: MaskRCNNConfig) -> None:
    """Corners in the centres of pixels, the picture in the middle of a square, twice as large as it was given."""
    config = replace(
        tiny_config,
        preprocess=replace(tiny_config.preprocess, place="centre"),
        rpn=replace(tiny_config.rpn, anchors=replace(tiny_config.rpn.anchors, corners="centres")),
        detection=replace(tiny_config.detection, whole_pixels=True),
    )
    batch = ImageBatch(torch.zeros(1, 3, 64, 64), torch.tensor([[20.0, 64.0]]), ((10, 32),))
    # the window is 0..63 across and 22..41 down; 63 / 31 px of it are one of the original across, 19 / 9 down
    boxes = torch.tensor([[[0.0, 22, 63, 41], [6.5, 22 + 19 / 9, 20, 22 + 38 / 9], [4, 22, 4, 41], [9, 22, 2, 30]]])
    found = DetectionBatch(boxes, torch.ones(1, 4), torch.ones(1, 4, dtype=torch.int64), torch.ones(1, 4).bool())
    (detections,) = original_frame(found, batch, config)
    # across 6.5 * 31 / 63 = 3.2 to 20 * 31 / 63 + 1 = 10.8; a box of no width keeps one pixel; the last is inside out
    assert detections.boxes.tolist() == [[0, 0, 32, 10], [3, 1, 11, 3], [2, 0, 3, 10]]
