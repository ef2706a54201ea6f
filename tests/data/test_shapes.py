from __future__ import annotations

import pickle

import numpy as np
import pytest

from maskrcnn.data.shapes import ShapesDataset, drawn_shapes
from maskrcnn.errors import InputError
from maskrcnn.ops.rle import decode
from maskrcnn.structures import RasterShape, Target


def bitmaps(target: Target) -> np.ndarray:
    """(G, H, W) bool."""
    assert target.gt_masks is not None
    masks = np.zeros((len(target), *target.size), dtype=bool)
    for mask, shape in zip(masks, target.gt_masks.shapes, strict=True):
        assert isinstance(shape, RasterShape)
        height, width = shape.bitmap.shape
        mask[shape.top : shape.top + height, shape.left : shape.left + width] = shape.bitmap > 0
    return masks


def test_the_two_fixed_sets() -> None:
    train, val = drawn_shapes("train"), drawn_shapes("val")
    assert (len(train), len(val)) == (500, 200)
    assert train.classes.names == ("circle", "square", "triangle") and train.size == (128, 128)
    assert not np.array_equal(train[0][0], val[0][0])


def test_each_picture_depends_on_seed_and_position_alone() -> None:
    forward, backward = ShapesDataset(6, seed=3), ShapesDataset(99, seed=3)
    first = [forward[i] for i in range(6)]
    for i in reversed(range(6)):
        picture, target = backward[i]
        np.testing.assert_array_equal(picture, first[i][0])
        assert target.gt_boxes.equal(first[i][1].gt_boxes) and target.gt_labels.equal(first[i][1].gt_labels)
    assert not np.array_equal(ShapesDataset(6, seed=4)[0][0], first[0][0])


@pytest.mark.parametrize("size", [(128, 128), (64, 200), (300, 96), (16, 16)])
def test_masks_boxes_and_counts(size: tuple[int, int]) -> None:
    dataset = ShapesDataset(12, size=size, seed=5)
    for picture, target in dataset:
        assert picture.shape == (*size, 3) and picture.dtype == np.uint8
        assert 1 <= len(target) <= 12 and target.size == size
        masks = bitmaps(target)
        assert masks.sum(0).max() <= 1  # what is seen belongs to one
        assert target.areas is not None and masks.sum((1, 2)).tolist() == target.areas.tolist()
        for mask, (x1, y1, x2, y2) in zip(masks, target.gt_boxes.int().tolist(), strict=True):
            assert mask[y1:y2, x1:x2].sum() == mask.sum() > 0
            assert mask[y1].any() and mask[y2 - 1].any() and mask[:, x1].any() and mask[:, x2 - 1].any()


def test_all_classes_sizes_and_crowds_occur() -> None:
    targets = [ShapesDataset(150, seed=1).target(i) for i in range(150)]
    counts = np.bincount([len(target) for target in targets], minlength=13)
    assert (counts[1:] > 0).all() and counts[0] == 0 and len(counts) == 13
    labels = np.bincount(np.concatenate([target.gt_labels.numpy() for target in targets]), minlength=4)
    assert labels[0] == 0 and labels[1:].min() > 0.2 * labels.sum()
    boxes = np.concatenate([target.gt_boxes.numpy() for target in targets])
    longer = (boxes[:, 2:] - boxes[:, :2]).max(1)
    assert longer.min() < 14 and longer.max() > 75


def test_no_object_is_more_than_half_hidden_and_some_nearly_are() -> None:
    """Circles tell their whole area by their boxes' corners only when whole; use what the drawing itself knows."""
    from maskrcnn.data.shapes import _Scene

    shares = []
    for i in range(60):
        rng = np.random.default_rng((1, i))
        scene = _Scene((128, 128), rng)
        for _ in range(rng.integers(1, 13)):
            scene.add_object()
        seen = np.bincount(scene.owner.ravel(), minlength=len(scene.outlines) + 1)[1:]
        shares += [n / outline.area for n, outline in zip(seen, scene.outlines, strict=True)]
    assert min(shares) >= 0.5 and np.mean(np.array(shares) < 0.7) > 0.03
    assert np.median(shares) > 0.9  # most are whole; small ones are off by the pixels of their edge
    assert max(shares) < 1.15


@pytest.mark.parametrize("label", [1, 2, 3])
def test_area_of_each_shape(label: int) -> None:
    """Visible pixels of a lone object against the formula: circle, square and equilateral triangle."""
    from maskrcnn.data.shapes import _Scene

    scene = _Scene((256, 256), np.random.default_rng(0))
    for side in (20.0, 45.0, 79.0):
        outline = scene._place(label, side)
        expected = {1: np.pi / 4, 2: 1.0, 3: np.sqrt(3) / 4}[label] * side**2
        assert outline.area == pytest.approx(expected)
        if outline.inside.shape[0] < 250:
            assert (outline.inside >= 0).sum() <= expected * 1.1


def test_colour_says_nothing_of_the_class() -> None:
    means: dict[int, list[np.ndarray]] = {1: [], 2: [], 3: []}
    for picture, target in ShapesDataset(150, seed=2):
        for mask, label in zip(bitmaps(target), target.gt_labels.tolist(), strict=True):
            means[label].append(picture[mask].mean(0))
    centres = np.array([np.mean(colours, 0) for colours in means.values()])
    assert np.ptp(centres, axis=0).max() < 25  # of 255; each colour channel spreads by about 65


def test_noise_and_texture_everywhere() -> None:
    for picture, target in ShapesDataset(10, seed=7):
        flat = ~bitmaps(target).any(0)
        steps = np.diff(picture.astype(float), axis=1)[flat[:, 1:] & flat[:, :-1]]
        middle = steps[np.abs(steps) < 100].std() / np.sqrt(2)
        assert 6 < middle < 30  # clipped at black or white it shrinks


def test_ground_truth_scores_as_drawn() -> None:
    dataset = ShapesDataset(3, size=(40, 60))
    truth = dataset.ground_truth()
    masks = np.concatenate([bitmaps(dataset.target(i)) for i in range(3)])
    for record, mask in zip(truth["annotations"], masks, strict=True):
        np.testing.assert_array_equal(decode(record["segmentation"]), mask)
    assert len({image["file_name"] for image in truth["images"]}) == 3


def test_pictures_are_drawn_once_while_they_are_few_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = ShapesDataset(20, size=(16, 16))
    assert dataset[3][0] is dataset[3][0]
    monkeypatch.setattr("maskrcnn.data.shapes._REMEMBERED", 4 * 16 * 16 * 3)
    list(dataset)
    assert len(dataset._recent) == 4
    assert dataset[0][1] is dataset.target(0)
    assert len(pickle.loads(pickle.dumps(dataset))) == 20


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"length": -1}, "ShapesDataset.length: is too small; found -1"),
        ({"length": 1, "size": (128, 8)}, "ShapesDataset.size: is too small; found 8; expected 16 or more"),
        ({"length": 1, "max_objects": 0}, "ShapesDataset.max_objects"),
    ],
)
def test_impossible_sets(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        ShapesDataset(**options)  # type: ignore[arg-type]


def test_no_pictures() -> None:
    assert list(ShapesDataset(0)) == []
