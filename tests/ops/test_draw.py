from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn.errors import InputError
from maskrcnn.ops.draw import draw_detections, draw_target, one_line, palette, side_by_side
from maskrcnn.ops.rle import decode
from maskrcnn.structures import Detections, GtKeypoints, GtMasks, KeypointScheme, Masks, PolygonShape, Target

SIZE = (80, 120)


def _found(count: int, *, with_masks: bool = True) -> Detections:
    corners = torch.rand(count, 2) * torch.tensor([80.0, 40.0])
    boxes = torch.cat([corners, corners + 15 + torch.rand(count, 2) * 20], dim=1)
    masks = Masks(torch.rand(count, 28, 28), boxes, SIZE) if with_masks else None
    scores = torch.linspace(1, 0.1, count)
    labels = torch.ones(count, dtype=torch.int64)
    return Detections(boxes, scores, labels, ("cell",) * count, (7,) * count, masks, SIZE, source="a.png")


def _grey() -> np.ndarray:
    return np.full((*SIZE, 3), 90, dtype=np.uint8)


def test_nothing_found_is_the_picture_itself() -> None:
    picture = _grey()
    drawn = draw_detections(picture, _found(0))
    assert np.array_equal(drawn, picture)
    assert drawn is not picture


@pytest.mark.parametrize("count", [1, 5, 40])
@pytest.mark.parametrize("with_masks", [True, False])
def test_size_and_original_stay(count: int, with_masks: bool) -> None:
    picture = _grey()
    drawn = draw_detections(picture, _found(count, with_masks=with_masks))
    assert drawn.shape == picture.shape and drawn.dtype == np.uint8
    assert np.all(picture == 90)
    assert not np.array_equal(drawn, picture)


def test_a_box_is_drawn_on_the_pixels_it_covers() -> None:
    box = torch.tensor([[10.0, 30, 60, 70]])
    found = replace(_found(1, with_masks=False), boxes=box)
    drawn = draw_detections(_grey(), found)
    coloured = np.all(drawn == palette(1)[0], axis=-1)
    assert coloured[69, 10:60].all() and not coloured[70].any()
    assert coloured[30:70, 10].all() and not coloured[:, 9].any()
    assert coloured[50, 59] and not coloured[50, 60] and not coloured[50, 11:59].any()


def test_a_mask_is_filled_and_rimmed() -> None:
    found = _found(1)
    mask = torch.zeros(1, 28, 28)
    mask[:, 7:21, 7:21] = 1
    boxes = torch.tensor([[20.0, 20, 76, 76]])
    found = replace(found, boxes=boxes, masks=Masks(mask, boxes, SIZE))
    assert found.masks is not None
    inside = decode(found.masks.rle()[0]) > 0
    drawn = draw_detections(_grey(), found)
    colour = np.array(palette(1)[0])
    assert np.array_equal(drawn[48, 48], np.rint(0.6 * 90 + 0.4 * colour))
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    assert np.array_equal(drawn[48, columns[0]], colour) and np.array_equal(drawn[rows[-1], 48], colour)
    assert np.all(drawn[48, columns[0] - 1] == 90) and np.all(drawn[rows[-1] + 1, 48] == 90)


def test_low_scores_are_left_out() -> None:
    found = _found(6)
    kept = found.chosen(found.scores >= 0.5)
    expected = draw_detections(_grey(), kept)
    assert np.array_equal(draw_detections(_grey(), found, score_threshold=0.5), expected)


def test_objects_outside_the_picture_are_drawn_nowhere() -> None:
    found = _found(3)
    drawn = draw_detections(_grey(), replace(found, boxes=found.boxes * 0 + torch.tensor([-9.0, -9, 300, 300])))
    assert drawn.shape == (*SIZE, 3)


@pytest.mark.parametrize(
    "picture", [np.zeros((80, 120), np.uint8), np.zeros((120, 80, 3), np.uint8), np.zeros((80, 120, 3))]
)
def test_a_picture_that_does_not_fit_is_refused(picture: np.ndarray) -> None:
    with pytest.raises(InputError, match="picture"):
        draw_detections(picture, _found(2))


def test_palette_is_stable_and_distinct() -> None:
    assert palette(0) == []
    assert palette(40)[:10] == palette(10)
    assert len(set(palette(60))) == 60
    steps = np.abs(np.diff(np.array(palette(60)), axis=0)).sum(axis=1)
    assert steps.min() > 100


def test_targets_with_and_without_masks() -> None:
    ring = np.array([[20, 30], [60, 30], [40, 70]], dtype=float)
    target = Target(
        gt_boxes=torch.tensor([[20.0, 30, 60, 70]]),
        gt_labels=torch.tensor([2]),
        gt_masks=GtMasks((PolygonShape((ring,)),)),
        is_crowd=torch.tensor([True]),
        size=SIZE,
    )
    drawn = draw_target(_grey(), target, ["cat", "dog"])
    assert np.any(drawn[50, 40] != 90)
    plain = draw_target(_grey(), replace(target, gt_masks=None), ["cat", "dog"])
    assert np.all(plain[50, 40] == 90) and np.any(plain != 90)


def test_side_by_side_keeps_the_pixels() -> None:
    left, right = _grey(), np.full((50, 30, 3), 200, dtype=np.uint8)
    both = side_by_side([left, right], ["truth", "found"])
    assert both.dtype == np.uint8
    assert both.shape[0] > 80 and both.shape[1] >= 150
    assert np.array_equal(both[-80:, :120], left)
    assert np.array_equal(both[-80:-30, -30:], right)


def test_saved_json(tmp_path: Path) -> None:
    found = _found(3)
    path = found.save(tmp_path / "new" / "out.json")
    content = json.loads(path.read_text())
    assert content["source"] == "a.png" and content["size"] == list(SIZE)
    assert [{**record, "category_name": "cell"} for record in found.coco()] == content["detections"]
    assert [entry.name for entry in path.parent.iterdir()] == ["out.json"]


@pytest.mark.parametrize("name", ["out.png", "out.jpg", "OUT.JPEG"])
def test_saved_overlay(tmp_path: Path, name: str) -> None:
    found = replace(_found(3), picture=_grey)
    path = found.save(tmp_path / name)
    with Image.open(path) as image:
        assert image.size == (120, 80)
        if path.suffix == ".png":
            assert np.array_equal(np.asarray(image), found.draw())


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("maskrcnn.ops.files.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        _found(2).save(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_other_formats_and_missing_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="out.bmp"):
        _found(1).save(tmp_path / "out.bmp")
    with pytest.raises(InputError, match="no picture"):
        _found(1).save(tmp_path / "out.png")


# --- keypoints --------------------------------------------------------------------------------------------------------

TRIANGLE = KeypointScheme(("a", "b", "c"), skeleton=((0, 1), (1, 2)))


def _with_points(points: list[list[float]], centre: float = 0.5) -> Detections:
    found = replace(_found(1, with_masks=False), boxes=torch.tensor([[10.0, 30, 60, 70]]))
    return replace(found, keypoints=torch.tensor([points]), keypoint_scheme=replace(TRIANGLE, pixel_centre=centre))


@pytest.mark.parametrize("centre", [0.5, 0.0])
def test_keypoints_are_dots_joined_by_their_scheme(centre: float) -> None:
    found = _with_points([[20.0 + centre, 40 + centre, 0.9], [20 + centre, 60 + centre, 0.3], [50, 60, 0.0]], centre)
    drawn = draw_detections(_grey(), found)
    plain = draw_detections(_grey(), replace(found, keypoints=None))
    changed = (drawn != plain).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (38, 62, 18, 22)  # dots of 5 px, centred
    assert (drawn[[40, 60], 20] == palette(1)[0]).all()
    assert (drawn[43:58, 20] == palette(1)[0]).all()  # the line between; the third point is too doubtful for one
    assert not drawn[[38, 62], 20].any()  # the dots' rims


def test_labelled_keypoints_of_the_truth_are_dots_or_rings() -> None:
    points = torch.tensor([[[20.5, 40.5, 2.0], [40.5, 40.5, 1.0], [50.5, 60.5, 0.0]]])
    target = Target(
        torch.tensor([[10.0, 30, 60, 70]]),
        torch.tensor([1]),
        None,
        torch.tensor([False]),
        SIZE,
        gt_keypoints=GtKeypoints(points, replace(TRIANGLE, skeleton=())),
    )
    drawn = draw_target(_grey(), target, ["cell"])
    changed = (drawn != draw_target(_grey(), replace(target, gt_keypoints=None), ["cell"])).any(axis=2)
    assert changed[40, 20] and not changed[40, 40] and not changed[60, 50]  # full, hollow, not there
    assert (drawn[40, 42] == palette(1)[0]).all()


@pytest.mark.parametrize("end", ["\r", "\n", "\x85", "\u2029"])
def test_a_name_that_is_no_line_is_drawn_as_one(end: str) -> None:
    assert one_line(f"a{end}bü") == "a bü"
    found = replace(_found(1), names=(f"a{end}b",))
    assert np.array_equal(draw_detections(_grey(), found), draw_detections(_grey(), replace(found, names=("a b",))))
