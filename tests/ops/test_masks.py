from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from maskrcnn.errors import InputError
from maskrcnn.ops.masks import crop_masks, mask_iou, paste_masks, paste_rle, rasterise, shape_boxes
from maskrcnn.ops.rle import RLE, bounding_box, decode, decode_window, encode
from maskrcnn.structures import GtMasks, Masks, PolygonShape, RasterShape

SIZE = (70, 50)  # (height, width)
ROTATIONS: dict[str, tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]] = {
    "mirrored": (np.array([[-1, 0, 50], [0, 1, 0.0]]), lambda picture: picture[:, ::-1]),
    "upside down": (np.array([[1, 0, 0], [0, -1, 70.0]]), lambda picture: picture[::-1]),
    "transposed": (np.array([[0, 1, 0], [1, 0, 0.0]]), lambda picture: picture.T),
    "quarter turn": (np.array([[0, -1, 70], [1, 0, 0.0]]), lambda picture: np.rot90(picture, -1)),
    "turned back": (np.array([[0, 1, 0], [-1, 0, 50.0]]), lambda picture: np.rot90(picture)),
}


def _raster(bitmap: np.ndarray) -> RasterShape:
    window, left, top = decode_window(encode(bitmap))
    return RasterShape(window, left, top, (bitmap.shape[0], bitmap.shape[1]))


def _bitmaps(count: int, size: tuple[int, int] = SIZE) -> list[np.ndarray]:
    """Speckled objects, some of them cut by the picture's edge."""
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(count):
        picture = np.zeros(size, dtype=np.uint8)
        y, x = rng.integers(0, size[0]), rng.integers(0, size[1])
        part = picture[y : y + 30, x : x + 30]
        part[:] = rng.random(part.shape) < 0.7
        pictures.append(picture)
    return pictures


def _boxes(count: int, low: float = -15, high: float = 80) -> Tensor:
    corners = low + torch.rand(count, 2) * (high - low) * 0.7
    return torch.cat([corners, corners + torch.rand(count, 2) * (high - low) * 0.6], dim=1)


def _blobs(count: int, side: int = 28) -> Tensor:
    """Probabilities of a star-shaped object with soft edges."""
    axis = (torch.arange(side) + 0.5) / side * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    points = torch.randint(2, 6, (count, 1, 1))
    radius = 0.75 + 0.15 * torch.sin(points * torch.atan2(y, x) + 6 * torch.rand(count, 1, 1))
    return torch.sigmoid((radius - x.hypot(y)) * 12)


def _pasted_by_grid_sample(probabilities: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float) -> Tensor:
    pasted = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for d, (x1, y1, x2, y2) in enumerate(boxes.double()):
        if x2 <= x1 or y2 <= y1:
            continue
        x = (torch.arange(size[1], dtype=torch.float64) + 0.5 - x1) / (x2 - x1) * 2 - 1
        y = (torch.arange(size[0], dtype=torch.float64) + 0.5 - y1) / (y2 - y1) * 2 - 1
        grid = torch.stack([x.expand(size), y[:, None].expand(size)], dim=-1)[None]
        pasted[d] = F.grid_sample(probabilities[d].double()[None, None], grid, align_corners=False)[0, 0] >= threshold
    return pasted


def _aligned_slowly(bitmap: np.ndarray, box: list[float], side: int) -> np.ndarray:
    """RoIAlign as He et al. 2017 describe it, one sample after the other."""
    height, width = bitmap.shape
    x1, y1, x2, y2 = box
    bin_w, bin_h = (x2 - x1) / side, (y2 - y1) / side
    across, down = int(np.ceil(bin_w)), int(np.ceil(bin_h))
    values = np.zeros((side, side))
    for i in range(side):
        for j in range(side):
            for a in range(down):
                for b in range(across):
                    y = y1 + (i + (a + 0.5) / down) * bin_h - 0.5
                    x = x1 + (j + (b + 0.5) / across) * bin_w - 0.5
                    if -1 <= y <= height and -1 <= x <= width:
                        y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
                        top, left = int(y), int(x)
                        below, right = min(top + 1, height - 1), min(left + 1, width - 1)
                        v, u = y - top, x - left
                        upper = (1 - u) * bitmap[top, left] + u * bitmap[top, right]
                        lower = (1 - u) * bitmap[below, left] + u * bitmap[below, right]
                        values[i, j] += ((1 - v) * upper + v * lower) / (across * down)
    return values


# --- crop -------------------------------------------------------------------------------------------------------------


def test_crop_of_nothing() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    assert crop_masks(GtMasks(()), torch.zeros(0, 4), nothing, 28).shape == (0, 28, 28)
    assert crop_masks(GtMasks((_raster(np.ones((3, 3))),)), torch.zeros(0, 4), nothing, 14).shape == (0, 14, 14)


def test_crop_of_an_empty_mask() -> None:
    masks = GtMasks((_raster(np.zeros((5, 5))),))
    assert not crop_masks(masks, torch.tensor([[0.0, 0, 5, 5]]), torch.tensor([0]), 7).any()


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("side", [1, 7, 28])
def test_crop_equals_roi_align_of_the_full_bitmap(side: int, aligned: bool) -> None:
    bitmaps = _bitmaps(12)
    boxes, index = _boxes(60), torch.randint(0, 12, (60,))
    boxes[0, 2] = boxes[0, 0]  # no width
    boxes[1] += 500  # outside
    cropped = crop_masks(GtMasks(tuple(map(_raster, bitmaps))), boxes, index, side, aligned=aligned, binary=False)
    pictures = torch.from_numpy(np.stack(bitmaps)).double()[:, None]
    rois = torch.cat([index[:, None], boxes.double()], dim=1)
    expected = roi_align(pictures, rois, side, 1.0, 0, aligned)[:, 0]
    assert cropped.dtype == torch.float32
    assert torch.allclose(cropped.double(), expected, atol=1e-5)


def test_crop_equals_the_slow_loop() -> None:
    bitmaps, boxes = _bitmaps(6), _boxes(6)
    cropped = crop_masks(GtMasks(tuple(map(_raster, bitmaps))), boxes, torch.arange(6), 5, binary=False)
    for bitmap, box, found in zip(bitmaps, boxes.tolist(), cropped, strict=True):
        assert np.allclose(found, _aligned_slowly(bitmap, box, 5), atol=1e-5)


def test_binary_is_at_least_one_half() -> None:
    masks = GtMasks(tuple(map(_raster, _bitmaps(5))))
    boxes, index = _boxes(20), torch.randint(0, 5, (20,))
    values = crop_masks(masks, boxes, index, 14, binary=False)
    assert torch.equal(crop_masks(masks, boxes, index, 14), (values >= 0.5).float())


def test_crop_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    masks, boxes, index = GtMasks(tuple(map(_raster, _bitmaps(9)))), _boxes(40), torch.randint(0, 9, (40,))
    together = crop_masks(masks, boxes, index, 14, binary=False)
    monkeypatch.setattr("maskrcnn.ops.masks._CELLS", 2000)
    assert torch.equal(crop_masks(masks, boxes, index, 14, binary=False), together)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("name", ROTATIONS)
def test_crop_in_a_turned_frame_equals_crop_of_the_turned_picture(name: str, aligned: bool) -> None:
    affine, turn = ROTATIONS[name]
    bitmaps, boxes, index = _bitmaps(8), _boxes(40), torch.randint(0, 8, (40,))
    moved = GtMasks(tuple(map(_raster, bitmaps))).moved(affine)
    turned = GtMasks(tuple(_raster(turn(bitmap)) for bitmap in bitmaps))
    found = crop_masks(moved, boxes, index, 14, aligned=aligned, binary=False)
    expected = crop_masks(turned, boxes, index, 14, aligned=aligned, binary=False)
    assert torch.allclose(found, expected, atol=1e-5)


def test_crop_in_a_scaled_frame_samples_the_source() -> None:
    masks, boxes, index = GtMasks(tuple(map(_raster, _bitmaps(8)))), _boxes(40), torch.randint(0, 8, (40,))
    scaled = masks.moved(np.array([[1.7, 0, 3], [0, 0.6, -2]]))
    moved = boxes * torch.tensor([1.7, 0.6, 1.7, 0.6]) + torch.tensor([3.0, -2, 3, -2])
    found, expected = (crop_masks(m, b, index, 7, binary=False) for m, b in ((scaled, moved), (masks, boxes)))
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    "affine", [np.eye(2, 3), np.array([[-1.3, 0, 50], [0, 0.7, 3]]), np.array([[0, 2.0, 1], [-1, 0, 90]])]
)
def test_polygon_crop_equals_pycocotools_in_the_frame_of_the_box(affine: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    shapes = [
        PolygonShape(tuple(rng.uniform(0, 80, (int(rng.integers(3, 9)), 2)) for _ in range(1 + i % 3)))
        for i in range(8)
    ]
    boxes, index = _boxes(30), torch.randint(0, 8, (30,))
    cropped = crop_masks(GtMasks(tuple(shapes), affine), boxes, index, 28)
    for box, i, found in zip(boxes.double().numpy(), index, cropped, strict=True):
        scale = 28 / (box[2:] - box[:2])
        rings = [(ring @ affine[:, :2].T + affine[:, 2] - box[:2]) * scale for ring in shapes[i].rings]
        expected = coco.merge(coco.frPyObjects([ring.ravel().tolist() for ring in rings], 28, 28))
        assert encode(found.numpy())["counts"] == expected["counts"].decode()


def test_polygons_and_bitmaps_may_be_mixed() -> None:
    square = np.zeros((20, 20))
    square[5:15, 3:13] = 1
    ring = np.array([[3, 5], [13, 5], [13, 15], [3, 15]], dtype=float)
    masks = GtMasks((PolygonShape((ring,)), _raster(square)))
    cropped = crop_masks(masks, torch.tensor([[1.0, 1, 19, 19]] * 3), torch.tensor([1, 0, 1]), 18)
    assert torch.equal(cropped[0], cropped[1]) and torch.equal(cropped[0], cropped[2])
    assert cropped[0].sum() == 100


def test_a_polygon_in_a_box_without_area() -> None:
    masks = GtMasks((PolygonShape((np.array([[0, 0], [4000, 0], [0, 3000.0]]),)),))
    assert crop_masks(masks, torch.tensor([[5.0, 5, 5, 5]]), torch.tensor([0]), 28).shape == (1, 28, 28)


# --- ground truth in the present frame --------------------------------------------------------------------------------


def test_boxes_and_rles_of_no_shapes() -> None:
    assert shape_boxes(GtMasks(()), SIZE).shape == (0, 4)
    assert rasterise(GtMasks(()), SIZE) == []


@pytest.mark.parametrize("name", ROTATIONS)
def test_turned_bitmaps(name: str) -> None:
    affine, turn = ROTATIONS[name]
    bitmaps = [*_bitmaps(8), np.zeros(SIZE, dtype=np.uint8)]
    masks = GtMasks(tuple(map(_raster, bitmaps))).moved(affine)
    expected = [encode(turn(bitmap)) for bitmap in bitmaps]
    size = (expected[0]["size"][0], expected[0]["size"][1])
    assert rasterise(masks, size) == expected
    assert shape_boxes(masks, size).tolist() == [list(bounding_box(mask)) for mask in expected]


def test_cut_bitmaps() -> None:
    bitmaps = _bitmaps(20)
    masks = GtMasks(tuple(map(_raster, bitmaps))).moved(np.array([[1, 0, -20], [0, 1, -30.0]]))
    cut = [encode(bitmap[30:65, 20:45]) for bitmap in bitmaps]
    assert rasterise(masks, (35, 25)) == cut
    assert shape_boxes(masks, (35, 25)).tolist() == [list(bounding_box(mask)) for mask in cut]


def test_enlarged_bitmaps() -> None:
    bitmaps = _bitmaps(5)
    masks = GtMasks(tuple(map(_raster, bitmaps))).moved(np.array([[3, 0, 0], [0, 2, 0.0]]))
    large = [encode(bitmap.repeat(2, axis=0).repeat(3, axis=1)) for bitmap in bitmaps]
    assert rasterise(masks, (140, 150)) == large
    assert shape_boxes(masks, (140, 150)).tolist() == [list(bounding_box(mask)) for mask in large]


def test_polygon_boxes_are_tight_around_the_part_in_the_picture() -> None:
    rng = np.random.default_rng(0)
    shapes = tuple(
        PolygonShape(tuple(rng.uniform(-15, 35, (int(rng.integers(3, 8)), 2)) for _ in range(1 + i % 2)))
        for i in range(300)
    )
    fine = 40  # points per pixel of the reference, which loses the thin end of a sliver
    boxes = shape_boxes(GtMasks(shapes), (16, 20)).numpy()
    for shape, box in zip(shapes, boxes, strict=True):
        drawn = [coco.frPyObjects([(ring * fine).ravel().tolist()], 16 * fine, 20 * fine)[0] for ring in shape.rings]
        x, y, width, height = coco.toBbox(coco.merge(drawn)) / fine
        outward = np.array([x, y, -x - width, -y - height]) - box * [1, 1, -1, -1]
        assert np.all(outward > -1 / fine) and np.all(outward < 0.2)


def test_a_concave_polygon_cut_in_two() -> None:
    # A horseshoe whose bow is left of the picture; its lower arm is all that remains after the upper one is cut too.
    ring = np.array([[-9, -6], [5, -6], [5, -4], [-7, -4], [-7, 4], [3, 4], [3, 6], [-9, 6]], dtype=float)
    assert shape_boxes(GtMasks((PolygonShape((ring,)),)), (20, 20)).tolist() == [[0, 4, 3, 6]]


def test_a_polygon_around_the_picture_and_one_outside() -> None:
    around = np.array([[-50, -50], [90, -50], [90, 90], [-50, 90]], dtype=float)
    masks = GtMasks((PolygonShape((around,)), PolygonShape((around + 200,))))
    assert shape_boxes(masks, (10, 20)).tolist() == [[0, 0, 20, 10], [0, 0, 0, 0]]


def test_polygons_are_drawn_in_the_present_frame() -> None:
    ring = np.array([[2, 3], [10, 4], [7, 12]], dtype=float)
    moved = GtMasks((PolygonShape((ring,)),)).moved(np.array([[0, 2, 1], [1.5, 0, -2]]))
    points = np.stack([2 * ring[:, 1] + 1, 1.5 * ring[:, 0] - 2], axis=1)
    expected = coco.merge(coco.frPyObjects([points.ravel().tolist()], 30, 40))
    assert rasterise(moved, (30, 40)) == [RLE(size=[30, 40], counts=expected["counts"].decode())]


# --- paste ------------------------------------------------------------------------------------------------------------


def test_paste_of_nothing() -> None:
    nothing = torch.zeros(0, 28, 28), torch.zeros(0, 4)
    assert paste_rle(*nothing, SIZE) == []
    assert paste_masks(*nothing, SIZE).shape == (0, *SIZE)
    assert mask_iou(*nothing, SIZE).shape == (0, 0)


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("side", [1, 7, 14, 28])
def test_paste_equals_grid_sample(side: int, threshold: float) -> None:
    probabilities = torch.cat([_blobs(30, side), torch.rand(30, side, side)])
    boxes = _boxes(60)
    expected = _pasted_by_grid_sample(probabilities, boxes, SIZE, threshold)
    assert torch.equal(paste_masks(probabilities, boxes, SIZE, threshold), expected)
    strings = [coco.encode(np.asfortranarray(bitmap.byte().numpy()))["counts"].decode() for bitmap in expected]
    assert [mask["counts"] for mask in paste_rle(probabilities, boxes, SIZE, threshold)] == strings


def test_a_full_mask_fills_exactly_its_box() -> None:
    (mask,) = paste_rle(torch.ones(1, 28, 28), torch.tensor([[3.0, 4, 17, 45]]), SIZE)
    expected = np.zeros(SIZE)
    expected[4:45, 3:17] = 1
    assert mask == encode(expected)


def test_boxes_without_area_or_outside_give_empty_masks() -> None:
    boxes = torch.tensor([[5.0, 5, 5, 9], [9, 9, 4, 12], [200, 5, 300, 9], [-50, -50, -3, -3]])
    masks = paste_rle(torch.ones(4, 28, 28), boxes, SIZE)
    assert masks == [encode(np.zeros(SIZE))] * 4
    assert not mask_iou(torch.ones(4, 28, 28), boxes, SIZE).any()


def test_paste_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    probabilities, boxes = _blobs(20), _boxes(20)
    together = paste_rle(probabilities, boxes, SIZE)
    monkeypatch.setattr("maskrcnn.ops.paste._CELLS", 500)
    assert paste_rle(probabilities, boxes, SIZE) == together


def test_threshold_must_be_above_zero() -> None:
    with pytest.raises(InputError, match="threshold"):
        paste_rle(torch.ones(1, 28, 28), torch.ones(1, 4), SIZE, 0.0)


def test_crop_and_paste_undo_each_other() -> None:
    y, x = np.mgrid[:300, :300] + 0.5
    rng = np.random.default_rng(0)
    for _ in range(10):
        centre, points, turn = rng.uniform(100, 200, 2), rng.integers(2, 5), rng.uniform(0, 6)
        angle, distance = np.arctan2(y - centre[0], x - centre[1]), np.hypot(y - centre[0], x - centre[1])
        bitmap = distance < 70 * (1 + 0.2 * np.sin(points * angle + turn))
        box = torch.tensor([bounding_box(encode(bitmap))])
        cropped = crop_masks(GtMasks((_raster(bitmap),)), box, torch.tensor([0]), 28)
        again = decode(paste_rle(cropped, box, (300, 300))[0]).astype(bool)
        assert (again & bitmap).sum() / (again | bitmap).sum() > 0.94


def test_mask_iou_equals_that_of_bitmaps() -> None:
    probabilities, boxes = _blobs(40), _boxes(40)
    flat = paste_masks(probabilities, boxes, SIZE).flatten(1).double()
    common = flat @ flat.T
    union = flat.sum(dim=1)[:, None] + flat.sum(dim=1) - common
    found = mask_iou(probabilities, boxes, SIZE)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), common / union.clamp(min=1), atol=1e-6)


def test_masks_of_detections() -> None:
    masks = Masks(_blobs(5), _boxes(5), SIZE)
    for mask, bitmap, rings in zip(masks.rle(), masks.bitmaps(), masks.polygons(), strict=True):
        assert np.array_equal(decode(mask), bitmap)
        assert bool(rings) == bool(bitmap.any())
