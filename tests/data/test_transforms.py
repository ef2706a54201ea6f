from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from maskrcnn.data.coco import load_coco
from maskrcnn.data.shapes import ShapesDataset
from maskrcnn.data.transforms import (
    Compose,
    Flip,
    Photometric,
    QuarterTurn,
    RandomCrop,
    ResizeShortest,
    ScaledCrop,
    ScaleJitter,
    Transform,
    moved,
    resized,
)
from maskrcnn.errors import InputError
from maskrcnn.ops.masks import rasterise
from maskrcnn.ops.rle import decode
from maskrcnn.structures import GtKeypoints, GtMasks, KeypointScheme, PolygonShape, RasterShape, Target

MOVES: list[Transform] = [
    Flip(1.0, 0.0),
    Flip(0.0, 1.0),
    Flip(1.0, 1.0),
    QuarterTurn(1.0),
    RandomCrop((50, 70)),
    RandomCrop(500),
    ScaleJitter(0.5, 2.0),
    ResizeShortest((60, 90, 150), 200),
    ScaledCrop(96, (1.0, 2.0)),
    ScaledCrop((70, 90), (0.4, 0.8)),
    ScaledCrop((200, 60), (0.9, 1.1), towards_object=0.0),
    ScaledCrop(128, (0.2, 0.3)),
]
EXACT = MOVES[:6]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def no_objects(size: tuple[int, int] = (40, 60), masks: bool = True) -> Target:
    return Target(
        torch.zeros(0, 4),
        torch.zeros(0, dtype=torch.int64),
        GtMasks(()) if masks else None,
        torch.zeros(0, dtype=torch.bool),
        size,
        areas=torch.zeros(0, dtype=torch.float64),
    )


def blob(polygon: bool) -> tuple[np.ndarray, Target]:
    """A picture (100, 120) whose white pixels are the mask of its one object, an upright cross off the centre."""
    picture = np.zeros((100, 120, 3), dtype=np.uint8)
    picture[20:80, 40:60] = picture[30:50, 25:95] = 255
    rows, columns = np.nonzero(picture[..., 0])
    left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    arms = ([[40, 20], [60, 20], [60, 80], [40, 80]], [[25, 30], [95, 30], [95, 50], [25, 50]])
    shape = (
        PolygonShape(tuple(np.array(arm, dtype=float) for arm in arms))
        if polygon
        else RasterShape(picture[top:bottom, left:right, 0] // 255, int(left), int(top), (100, 120))
    )
    target = Target(
        torch.tensor([[float(left), float(top), float(right), float(bottom)]]),
        torch.tensor([1]),
        GtMasks((shape,)),
        torch.tensor([False]),
        (100, 120),
        areas=torch.tensor([float((picture[..., 0] > 0).sum())], dtype=torch.float64),
    )
    return picture, target


def masks_of(target: Target) -> list[np.ndarray]:
    assert target.gt_masks is not None
    return [decode(rle) > 0 for rle in rasterise(target.gt_masks, target.size)]


# --- every move -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("move", MOVES, ids=str)
@pytest.mark.parametrize("masks", [True, False])
def test_no_objects(move: Transform, masks: bool) -> None:
    picture, target = move(np.zeros((40, 60, 3), dtype=np.uint8), no_objects(masks=masks), rng())
    assert len(target) == 0 and target.size == picture.shape[:2] and picture.dtype == np.uint8
    assert (target.gt_masks is None) is not masks


@pytest.mark.parametrize("move", MOVES, ids=str)
@pytest.mark.parametrize("polygon", [True, False])
def test_the_mask_moves_with_its_pixels(move: Transform, polygon: bool) -> None:
    for seed in range(12):
        picture, target = move(*blob(polygon), rng(seed))
        assert picture.shape == (*target.size, 3) and picture.dtype == np.uint8
        white = picture[..., 0] > 127
        if not len(target):
            assert white.sum() < 50
            continue
        (mask,) = masks_of(target)
        iou = (mask & white).sum() / (mask | white).sum()
        # Shrunken to arms of 4 px, rounding alone moves an edge by a tenth; from 900 px on a shift of one would show.
        least = 0.95 if white.sum() > 900 else 0.85 if white.sum() > 200 else 0.75
        assert iou == 1 if move in EXACT else iou > least


@pytest.mark.parametrize("move", MOVES, ids=str)
def test_boxes_are_tight_around_what_is_visible(move: Transform) -> None:
    for seed in range(12):
        picture, target = move(*blob(False), rng(seed))
        for box in target.gt_boxes.numpy():
            rows, columns = np.nonzero(picture[..., 0] > 127)
            tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            slack = 0 if move in EXACT else 2
            assert np.abs(box - tight).max() <= slack
            assert (box[:2] >= 0).all() and (box[2:] <= np.array(target.size)[::-1]).all()


@pytest.mark.parametrize("move", MOVES, ids=str)
def test_input_stays_as_it_is_and_seeds_repeat(move: Transform) -> None:
    picture, target = blob(False)
    before, boxes = picture.copy(), target.gt_boxes.clone()
    first, again = move(picture, target, rng(3)), move(picture, target, rng(3))
    np.testing.assert_array_equal(picture, before)
    assert target.gt_boxes.equal(boxes) and target.size == (100, 120)
    np.testing.assert_array_equal(first[0], again[0])
    assert first[1].gt_boxes.equal(again[1].gt_boxes)


@pytest.mark.parametrize("move", MOVES, ids=str)
def test_a_chain_of_moves_keeps_mask_and_pixels_together(move: Transform) -> None:
    chain = Compose((move, QuarterTurn(1.0), Flip(0.5, 0.5), QuarterTurn(0.5)))
    for seed in range(6):
        picture, target = chain(*blob(True), rng(seed))
        white = picture[..., 0] > 127
        for mask in masks_of(target):
            assert (mask & white).sum() / (mask | white).sum() > 0.85


def test_fields_that_do_not_move() -> None:
    picture, target = blob(False)
    after = ScaledCrop(64, (1.5, 1.5), towards_object=1.0)(picture, target, rng())[1]
    assert after.areas is not None and target.areas is not None and after.areas.equal(target.areas)
    assert after.gt_labels.tolist() == [1] and after.is_crowd.tolist() == [False]


# --- each move --------------------------------------------------------------------------------------------------------


def test_flip_by_hand() -> None:
    picture = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    box = Target(torch.tensor([[0.0, 0.0, 1.0, 2.0]]), torch.tensor([1]), None, torch.tensor([False]), (2, 3))
    across, target = Flip(1.0, 0.0)(picture, box, rng())
    np.testing.assert_array_equal(across, picture[:, ::-1])
    assert target.gt_boxes.tolist() == [[2, 0, 3, 2]]
    down, target = Flip(0.0, 1.0)(picture, box, rng())
    np.testing.assert_array_equal(down, picture[::-1])
    assert target.gt_boxes.tolist() == [[0, 0, 1, 2]]


def test_quarter_turns_come_in_all_three_and_as_often_as_asked() -> None:
    picture = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    generator, seen = rng(), set()
    for _ in range(60):
        turned, target = QuarterTurn(1.0)(picture, no_objects((2, 3)), generator)
        seen.add(next(k for k in (1, 2, 3) if np.array_equal(turned, np.rot90(picture, k))))
        assert target.size == turned.shape[:2]
    assert seen == {1, 2, 3}
    still = sum(QuarterTurn(0.25)(picture, no_objects((2, 3)), generator)[0] is picture for _ in range(400))
    assert 260 < still < 340


def test_resize_shortest() -> None:
    picture = np.zeros((100, 200, 3), dtype=np.uint8)
    assert ResizeShortest((50,), 1000)(picture, no_objects((100, 200)), rng())[1].size == (50, 100)
    assert ResizeShortest((50,), 80)(picture, no_objects((100, 200)), rng())[1].size == (40, 80)
    sizes = {ResizeShortest((50, 60), 1000)(picture, no_objects((100, 200)), rng(s))[1].size for s in range(20)}
    assert sizes == {(50, 100), (60, 120)}


def test_resize_to_less_than_a_pixel_leaves_one() -> None:
    picture, target = resized(np.zeros((4, 400, 3), dtype=np.uint8), no_objects((4, 400)), 0.1)
    assert picture.shape == (1, 40, 3) and target.size == (1, 40)


def test_crop_at_scale_one_takes_the_pixels_as_they_are() -> None:
    picture = rng().integers(0, 256, (90, 120, 3), dtype=np.uint8)
    cut, _ = ScaledCrop((30, 40), (1.0, 1.0))(picture, no_objects((90, 120)), rng(1))
    places = [(y, x) for y in range(61) for x in range(81) if np.array_equal(picture[y : y + 30, x : x + 40], cut)]
    assert len(places) == 1


def test_crop_of_a_picture_that_is_smaller() -> None:
    picture = np.full((20, 30, 3), 200, dtype=np.uint8)
    corners = set()
    for seed in range(40):
        cut, target = ScaledCrop(64, (1.0, 1.0), fill=7)(picture, no_objects((20, 30)), rng(seed))
        assert cut.shape == (64, 64, 3) and target.size == (64, 64)
        rows, columns = np.nonzero(cut[..., 0] == 200)
        assert (
            np.ptp(rows) == 19 and np.ptp(columns) == 29 and len(rows) == 600 and (cut == 7).sum() == 3 * (64**2 - 600)
        )
        corners.add((rows.min(), columns.min()))
    assert len(corners) > 30


def test_crops_are_drawn_to_objects() -> None:
    picture = np.zeros((1000, 1000, 3), dtype=np.uint8)
    box = torch.tensor([[900.0, 20.0, 920.0, 40.0]])
    target = Target(box, torch.tensor([1]), None, torch.tensor([False]), (1000, 1000))
    generator = rng()
    hits = [len(ScaledCrop(100, (1, 2), towards_object=1.0)(picture, target, generator)[1]) for _ in range(50)]
    assert sum(hits) == 50
    hits = [len(ScaledCrop(100, (1, 2), towards_object=0.0)(picture, target, generator)[1]) for _ in range(50)]
    assert sum(hits) < 10


def test_scale_is_even_in_its_logarithm() -> None:
    picture, target = blob(False)
    generator = rng()
    scales = []
    for _ in range(400):
        after = ScaledCrop(64, (0.5, 2.0))(picture, target, generator)[1]
        scales += [after.gt_masks.to_frame[0, 0]] if after.gt_masks is not None else []
    assert min(scales) < 0.53 and max(scales) > 1.9
    assert abs(np.log(scales).mean()) < 0.08


# --- objects at the border --------------------------------------------------------------------------------------------


def boxes(*rows: list[float], masks: GtMasks | None = None) -> Target:
    count = len(rows)
    return Target(torch.tensor(rows), torch.ones(count).long(), masks, torch.zeros(count).bool(), (50, 50))


SHIFT_LEFT = np.array([[1.0, 0.0, -20.0], [0.0, 1.0, 0.0]])


def test_objects_that_leave_are_dropped_and_slivers_below_two_pixels() -> None:
    target = boxes([0, 0, 20, 9], [10, 0, 20.1, 9], [10, 0, 20.3, 9], [10, 0, 40, 9], [60, 0, 70, 9])
    after = moved(target, SHIFT_LEFT, (50, 30))
    assert after.gt_boxes.tolist() == pytest.approx(np.array([[0, 0, 0.3, 9], [0, 0, 20, 9]]), abs=1e-5)


def test_small_whole_objects_stay() -> None:
    assert len(moved(boxes([20, 0, 21, 1]), SHIFT_LEFT, (50, 30))) == 1


def test_share_that_must_stay_visible() -> None:
    target = boxes([10, 0, 25, 9], [0, 0, 21, 9])
    assert moved(target, SHIFT_LEFT, (50, 30), min_visible=0.2).gt_boxes.tolist() == [[0, 0, 5, 9]]


def test_cut_boxes_follow_the_mask_and_whole_ones_the_annotation() -> None:
    bitmap = np.zeros((10, 20), dtype=np.uint8)
    bitmap[:, :15] = 1
    bitmap[4:6, 15:] = 1
    masks = GtMasks((RasterShape(bitmap, 4, 0, (50, 50)), RasterShape(np.ones((4, 4), np.uint8), 30, 5, (50, 50))))
    after = moved(boxes([4, 0, 24, 10], [29.5, 5, 34.25, 9], masks=masks), SHIFT_LEFT, (50, 30))
    assert after.gt_boxes.tolist() == [[0, 4, 4, 6], [9.5, 5, 14.25, 9]]


def test_box_that_reaches_in_without_its_mask_is_dropped() -> None:
    bitmap = np.zeros((10, 30), dtype=np.uint8)
    bitmap[:, :5] = 1
    masks = GtMasks((RasterShape(bitmap, 0, 0, (50, 50)),))
    assert len(moved(boxes([0, 0, 30, 10], masks=masks), SHIFT_LEFT, (50, 30))) == 0


# --- photometric ------------------------------------------------------------------------------------------------------

STILL = dict.fromkeys(("brightness", "contrast", "saturation", "hue", "gamma", "tint", "blur", "noise"), 0.0)
NEVER = dict.fromkeys(("grey", "invert", "blurred", "noisy"), 0.0)


@pytest.fixture
def photo() -> np.ndarray:
    smooth = np.add.outer(np.arange(64), np.arange(48))[..., None] + np.array([0, 40, 90])
    return smooth.astype(np.uint8)


def only(photo: np.ndarray, seed: int = 0, **values: float) -> np.ndarray:
    target = no_objects(photo.shape[:2])  # type: ignore[arg-type]
    changed, after = Photometric(**(STILL | NEVER | values))(photo, target, rng(seed))
    assert after is target and changed.shape == photo.shape and changed.dtype == np.uint8
    return changed


def test_nothing_asked_nothing_done(photo: np.ndarray) -> None:
    np.testing.assert_array_equal(only(photo), photo)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue", "gamma", "tint"])
def test_each_change_is_made_and_goes_both_ways(photo: np.ndarray, name: str) -> None:
    changes = [(only(photo, seed, **{name: 0.3}).astype(int) - photo)[40, 30] for seed in range(20)]
    signs = {tuple(np.sign(change).tolist()) for change in changes}
    assert len(signs) > 1 and any(np.abs(change).max() > 3 for change in changes)


def test_grey_invert_blur_and_noise(photo: np.ndarray) -> None:
    grey = only(photo, grey=1.0).astype(int)
    assert np.ptp(grey, axis=2).max() <= 1
    assert np.abs(grey[..., 0] - photo @ [0.299, 0.587, 0.114]).max() <= 1.5
    np.testing.assert_array_equal(only(photo, invert=1.0), 255 - photo)
    dots = rng().integers(0, 2, (64, 48, 1)).repeat(3, 2).astype(np.uint8) * 255
    assert only(dots, blur=2.0, blurred=1.0).std() < dots.std()
    level = np.full((64, 48, 3), 128, dtype=np.uint8)
    noisy = [only(level, seed, noise=10.0, noisy=1.0).std() for seed in range(20)]
    assert 5 < max(noisy) < 11 and min(noisy) < 3


def test_grey_pictures_stay_grey_but_for_tint() -> None:
    level = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    for seed in range(10):
        changed = only(level, seed, saturation=0.5, hue=0.1, contrast=0.3, gamma=0.3, brightness=0.3)
        assert np.ptp(changed.astype(int), axis=2).max() <= 1


def test_dark_pictures_keep_their_objects() -> None:
    dark = np.full((32, 32, 3), 4, dtype=np.uint8)
    dark[8:20, 8:20] = 30
    for seed in range(30):
        changed = Photometric(noise=0.0)(dark, no_objects((32, 32)), rng(seed))[0].astype(int)
        assert np.abs(changed[12:16, 12:16].mean((0, 1)) - changed[:4, :4].mean((0, 1))).max() > 8


# --- settings and speed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Flip(1.5), "Flip.horizontal: is not a share; found 1.5; expected 0 to 1"),
        (lambda: QuarterTurn(-1), "QuarterTurn.probability"),
        (lambda: ScaledCrop(256, (2.0, 1.0)), r"ScaledCrop.scale: is not a range of factors; found \(2.0, 1.0\)"),
        (lambda: ScaledCrop(256, (0.0, 1.0)), "ScaledCrop.scale"),
        (lambda: ScaledCrop(towards_object=2), "ScaledCrop.towards_object"),
        (lambda: ScaleJitter(0, 1), "ScaleJitter.low, high"),
        (lambda: ResizeShortest(()), "ResizeShortest.sides"),
        (lambda: RandomCrop(0), "RandomCrop.size"),
        (lambda: ScaledCrop(0), "ScaledCrop.size"),
        (lambda: Photometric(blur=-1), "Photometric.blur: is negative; found -1"),
        (lambda: Photometric(grey=7), "Photometric.grey"),
    ],
)
def test_impossible_settings(make: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()  # type: ignore[operator]


def test_no_mask_of_hundreds_is_drawn_on_the_way(shared_data: Path) -> None:
    dataset = load_coco(shared_data / "nuclei/annotations/instances_val.json")
    counts = [len(dataset.target(i)) for i in range(len(dataset))]
    picture, target = dataset[int(np.argmax(counts))]
    chain = Compose((ScaledCrop(256, (1.0, 2.0)), Flip(0.5, 0.5), QuarterTurn(), Photometric()))
    _, after = chain(picture, target, rng())
    assert target.gt_masks is not None and after.gt_masks is not None
    given = {id(shape) for shape in target.gt_masks.shapes}
    assert max(counts) > 300 and 10 < len(after) < max(counts)
    assert all(id(shape) in given for shape in after.gt_masks.shapes)  # only the map to the frame has changed


def test_real_masks_stay_on_their_objects() -> None:
    """The bright disc of a drawn circle, cropped, scaled and turned, is still where its mask says."""
    chain = Compose((ScaledCrop(128, (0.7, 2.0)), Flip(0.5, 0.5), QuarterTurn()))
    for i, (_, target) in enumerate(ShapesDataset(8, seed=11)):
        assert target.gt_masks is not None
        drawn = np.zeros((128, 128, 3), dtype=np.uint8)
        for shape in target.gt_masks.shapes:
            assert isinstance(shape, RasterShape)
            height, width = shape.bitmap.shape
            drawn[shape.top : shape.top + height, shape.left : shape.left + width] |= shape.bitmap[..., None] * 255
        picture, after = chain(drawn, target, rng(i))
        union = np.any(masks_of(after) or [np.zeros(after.size, bool)], axis=0)
        white = picture[..., 0] > 127
        assert (union & white).sum() / max((union | white).sum(), 1) > 0.93


# --- keypoints --------------------------------------------------------------------------------------------------------

EARS = KeypointScheme(("nose", "left_ear", "right_ear"), ((1, 2),))


def marked(seed: int) -> tuple[np.ndarray, Target]:
    """A picture of 60 x 80 that is black but for a red, a green and a blue pixel: nose, left and right ear."""
    picture, random = np.zeros((60, 80, 3), np.uint8), rng(seed)
    columns, rows = random.choice(80, 3, replace=False), random.choice(60, 3, replace=False)
    for channel, (column, row) in enumerate(zip(columns, rows, strict=True)):
        picture[row, column, channel] = 255
    points = torch.tensor(np.stack([columns + 0.5, rows + 0.5, [2, 1, 2]], axis=1), dtype=torch.float32)[None]
    box = torch.tensor([[0.0, 0.0, 80.0, 60.0]])
    target = Target(box, torch.tensor([1]), None, torch.tensor([False]), (60, 80))
    return picture, replace(target, gt_keypoints=GtKeypoints(points, EARS))


@pytest.mark.parametrize("transform", EXACT, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_keypoints_stay_on_their_pixels(transform: Transform, seed: int) -> None:
    picture, target = transform(*marked(seed), rng(seed))
    assert target.gt_keypoints is not None
    for j, (x, y, v) in enumerate(target.gt_keypoints.points[0].tolist()):
        seen = np.argwhere(picture.any(axis=2) & (picture.argmax(axis=2) == j))
        swapped = np.argwhere(picture.any(axis=2) & (picture.argmax(axis=2) == (0, 2, 1)[j]))
        is_mirror = isinstance(transform, Flip) and transform.horizontal != transform.vertical
        places = swapped if is_mirror else seen
        assert (v > 0) == len(places)  # what the crop left out is no longer labelled
        if v:
            assert [y - 0.5, x - 0.5] == places[0].tolist()
            assert (v == 1) == (j == (2 if is_mirror else 1))


def test_a_crop_takes_the_label_of_what_it_leaves_out() -> None:
    _, target = marked(0)
    assert target.gt_keypoints is not None
    points = torch.tensor([[[0.0, 0.0, 2.0], [20.0, 30.0, 1.0], [20.01, 3.0, 2.0]]])
    target = replace(target, gt_keypoints=GtKeypoints(points, EARS))
    cut = moved(target, np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), (30, 20)).gt_keypoints
    assert cut is not None
    assert cut.points.tolist() == [[[0, 0, 2], [20, 30, 1], [0, 0, 0]]]


@pytest.mark.parametrize("transform", MOVES, ids=str)
def test_keypoints_move_as_boxes_do(transform: Transform) -> None:
    """Each in a corner of its object's box: whatever is done, and in a whole box, it stays in a corner."""
    shapes = ShapesDataset(3, size=(90, 120), seed=4, max_objects=4)
    for i in range(3):
        picture, target = shapes[i]
        corners = torch.stack([target.gt_boxes[:, :2], target.gt_boxes[:, 2:]], dim=1)
        points = torch.cat([corners, torch.full((len(target), 2, 1), 2.0)], dim=2)
        target = replace(target, gt_masks=None, gt_keypoints=GtKeypoints(points, KeypointScheme(("a", "b"))))
        _, after = transform(picture, target, rng(i))
        assert after.gt_keypoints is not None and len(after.gt_keypoints) == len(after)
        whole = (after.gt_keypoints.points[..., 2] == 2).all(dim=1)
        low = after.gt_keypoints.points[..., :2].amin(dim=1)
        high = after.gt_keypoints.points[..., :2].amax(dim=1)
        assert torch.allclose(torch.cat([low, high], dim=1)[whole], after.gt_boxes[whole], atol=1e-3)


def test_a_target_without_keypoints_stays_without() -> None:
    _, after = Flip(1.0)(np.zeros((40, 60, 3), np.uint8), no_objects(), rng())
    assert after.gt_keypoints is None


@pytest.mark.parametrize("move", MOVES, ids=str)
def test_proposals_move_as_boxes_without_masks_do(move: Transform) -> None:
    picture, target = ShapesDataset(3, size=(90, 120), seed=5)[1]
    target = replace(target, gt_masks=None, proposals=target.gt_boxes.clone())
    _, after = move(picture, target, rng(3))
    assert after.proposals is not None and len(after.proposals) > 0
    torch.testing.assert_close(after.proposals, after.gt_boxes)


def test_proposals_outside_are_left_out_and_none_stay_none() -> None:
    empty = no_objects()
    given = replace(empty, proposals=torch.tensor([[2.0, 3.0, 10.0, 20.0], [50.0, 30.0, 60.0, 40.0]]))
    half = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    after = moved(given, half, (20, 30))
    assert after.proposals is not None and after.proposals.tolist() == [[2, 3, 10, 20]]
    assert moved(empty, half, (20, 30)).proposals is None
