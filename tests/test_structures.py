"""What the stages hand on: choosing, moving, and the forms that users read."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskrcnn.errors import InputError
from maskrcnn.ops.rle import decode
from maskrcnn.structures import (
    DetectionBatch,
    Detections,
    GtKeypoints,
    GtMasks,
    ImageBatch,
    KeypointScheme,
    Masks,
    PolygonShape,
    Proposals,
    SampledRoIs,
    Target,
)


def shapes(count: int) -> GtMasks:
    return GtMasks(tuple(PolygonShape((np.array([[i, 0.0], [i + 1, 0], [i, 2]]),)) for i in range(count)))


def target(count: int, masks: bool = True) -> Target:
    return Target(
        gt_boxes=torch.arange(count * 4, dtype=torch.float32).reshape(count, 4),
        gt_labels=torch.arange(1, count + 1),
        gt_masks=shapes(count) if masks else None,
        is_crowd=torch.zeros(count, dtype=torch.bool),
        size=(20, 30),
        image_id=7,
        areas=torch.arange(count, dtype=torch.float64) if masks else None,
        sampling_seed=5,
    )


def detections(count: int, masks: bool = True) -> Detections:
    boxes = torch.tensor([[1.0, 2.0, 5.0, 8.0]]).repeat(count, 1) + torch.arange(count)[:, None]
    return Detections(
        boxes=boxes,
        scores=torch.linspace(0.9, 0.1, count),
        labels=torch.arange(count) % 2 + 1,
        names=tuple("ab"[i % 2] for i in range(count)),
        category_ids=tuple((3, 9)[i % 2] for i in range(count)),
        masks=Masks(torch.rand(count, 4, 4), boxes, (20, 30)) if masks else None,
        size=(20, 30),
    )


def test_all_are_frozen() -> None:
    kinds = (ImageBatch, GtMasks, Target, Proposals, SampledRoIs, DetectionBatch, Masks, Detections, PolygonShape)
    for kind in (*kinds, GtKeypoints, KeypointScheme):
        assert dataclasses.is_dataclass(kind)
        assert kind.__dataclass_params__.frozen
    with pytest.raises(dataclasses.FrozenInstanceError):
        target(1).size = (1, 1)  # type: ignore[misc]


def test_a_batch_counts_pictures_and_moves() -> None:
    batch = ImageBatch(torch.zeros(2, 3, 4, 4), torch.ones(2, 2), ((4, 4), (3, 4)))
    assert len(batch) == 2
    moved = batch.to("meta")
    assert moved.pixels.is_meta and moved.image_sizes.is_meta
    assert moved.original_sizes == batch.original_sizes
    assert not batch.pixels.is_meta


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ([], []),
        ([2, 0], [2, 0]),
        (np.array([False, True, True]), [1, 2]),
        (np.zeros(3, dtype=bool), []),
        (torch.tensor([True, False, True]), [0, 2]),
        (slice(1, None), [1, 2]),
        (1, [1]),
        (-1, [2]),
    ],
)
def test_shapes_are_chosen(index: object, expected: list[int]) -> None:
    masks = dataclasses.replace(shapes(3), to_frame=np.array([[2.0, 0, 0], [0, 2, 0]]))
    chosen = masks[index]
    assert [shape.rings[0][0, 0] for shape in chosen.shapes] == expected
    assert len(chosen) == len(expected)
    assert chosen.to_frame is masks.to_frame


def test_of_no_shapes_none_are_chosen() -> None:
    assert len(shapes(0)[np.zeros(0, dtype=bool)]) == len(shapes(0)[[]]) == len(shapes(0)[:]) == 0


def test_moves_follow_one_another() -> None:
    scale = np.array([[2.0, 0, 1], [0, 3, -4]])
    turn = np.array([[0.0, -1, 20], [1, 0, 0]])
    moved = shapes(1).moved(scale).moved(turn)
    for x, y in [(0.0, 0.0), (3.0, 5.0)]:
        once = scale @ [x, y, 1]
        np.testing.assert_allclose(moved.to_frame @ [x, y, 1], turn @ [*once, 1])


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("keep", [[True, False, True], [False] * 3, [True] * 3])
def test_a_target_keeps_what_is_chosen(masks: bool, keep: list[bool]) -> None:
    whole, chosen = target(3, masks), target(3, masks).chosen(torch.tensor(keep))
    rows = [i for i, kept in enumerate(keep) if kept]
    assert len(chosen) == len(rows)
    assert torch.equal(chosen.gt_boxes, whole.gt_boxes[rows])
    assert torch.equal(chosen.gt_labels, whole.gt_labels[rows])
    assert len(chosen.is_crowd) == len(rows)
    assert (chosen.size, chosen.image_id, chosen.sampling_seed) == (whole.size, 7, 5)
    if chosen.gt_masks is not None and chosen.areas is not None:
        assert [shape.rings[0][0, 0] for shape in chosen.gt_masks.shapes] == rows
        assert chosen.areas.tolist() == rows
    else:
        assert not masks


def test_background_is_label_0() -> None:
    rois = SampledRoIs(torch.zeros(3, 4), torch.tensor([2, 0, 1]), torch.zeros(3, dtype=torch.int64))
    assert rois.is_foreground.tolist() == [True, False, True]


@pytest.mark.parametrize("keep", [[True, False, True], [False] * 3])
@pytest.mark.parametrize("masks", [True, False])
def test_detections_keep_what_is_chosen(keep: list[bool], masks: bool) -> None:
    whole = dataclasses.replace(detections(3, masks), keypoints=torch.rand(3, 2, 3))
    chosen, rows = whole.chosen(torch.tensor(keep)), [i for i, kept in enumerate(keep) if kept]
    assert len(chosen) == len(rows)
    assert torch.equal(chosen.boxes, whole.boxes[rows])
    assert torch.equal(chosen.scores, whole.scores[rows])
    assert chosen.names == tuple(whole.names[i] for i in rows)
    assert chosen.category_ids == tuple(whole.category_ids[i] for i in rows)
    assert chosen.keypoints is not None and chosen.keypoints.shape == (len(rows), 2, 3)
    assert (chosen.masks is None) == (not masks)
    if chosen.masks is not None and whole.masks is not None:
        assert torch.equal(chosen.masks.probabilities, whole.masks.probabilities[rows])
        assert len(chosen.masks) == len(rows)


def test_iteration_gives_box_score_and_name() -> None:
    assert list(detections(0)) == []
    rows = list(detections(2))
    assert [(box.tolist(), round(score, 3), name) for box, score, name in rows] == [
        ([1, 2, 5, 8], 0.9, "a"),
        ([2, 3, 6, 9], 0.1, "b"),
    ]


def test_coco_records() -> None:
    assert detections(0).coco() == []
    assert detections(2, masks=False).coco(12) == [
        {"image_id": 12, "category_id": 3, "bbox": [1.0, 2.0, 4.0, 6.0], "score": 0.9},
        {"image_id": 12, "category_id": 9, "bbox": [2.0, 3.0, 4.0, 6.0], "score": 0.1},
    ]
    found = detections(2)
    assert found.masks is not None
    assert [record["segmentation"] for record in found.coco()] == found.masks.rle()


def test_masks_in_their_three_forms_agree() -> None:
    probabilities = torch.zeros(2, 4, 4)
    probabilities[0], probabilities[1, :, :2] = 1.0, 1.0
    masks = Masks(probabilities, torch.tensor([[2.0, 3.0, 10.0, 11.0], [0.0, 0.0, 8.0, 8.0]]), (20, 30))
    bitmaps = masks.bitmaps()
    assert bitmaps.dtype == torch.bool and bitmaps.shape == (2, 20, 30)
    expected = torch.zeros(20, 30, dtype=torch.bool)
    expected[3:11, 2:10] = True
    assert torch.equal(bitmaps[0], expected)
    for bitmap, rle in zip(bitmaps, masks.rle(), strict=True):
        assert rle["size"] == [20, 30]
        assert np.array_equal(decode(rle), bitmap.numpy())
    (outline,) = masks.polygons()[0]
    assert outline.min(axis=0).tolist() == [2, 3] and outline.max(axis=0).tolist() == [10, 11]


def test_no_masks() -> None:
    masks = Masks(torch.zeros(0, 4, 4), torch.zeros(0, 4), (20, 30))
    assert masks.rle() == masks.polygons() == []
    assert masks.bitmaps().shape == (0, 20, 30)


def test_drawing_wants_a_picture() -> None:
    with pytest.raises(InputError, match=r"Detections\.draw: no picture to draw on; expected draw\(picture\)"):
        detections(1).draw()
    blank = np.zeros((20, 30, 3), dtype=np.uint8)
    given = detections(1).draw(blank)
    held = dataclasses.replace(detections(1), picture=lambda: blank).draw()
    assert given.shape == (20, 30, 3) and given.any() and not blank.any()
    assert np.array_equal(given.any(axis=2), held.any(axis=2))


def test_saving_goes_by_the_suffix(tmp_path: Path) -> None:
    found = dataclasses.replace(detections(2), picture=lambda: np.zeros((20, 30, 3), dtype=np.uint8))
    for name in ("found.png", "found.json"):
        assert found.save(str(tmp_path / name)) == tmp_path / name
        assert (tmp_path / name).stat().st_size > 0


def test_the_picture_is_not_printed() -> None:
    assert "picture" not in repr(dataclasses.replace(detections(0), picture=lambda: np.zeros((1, 1, 3))))


# --- keypoints --------------------------------------------------------------------------------------------------------

EARS = KeypointScheme(("nose", "left_ear", "right_ear"), ((1, 2),), ((0, 1), (0, 2)))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"names": ()}, "names: are not keypoints"),
        ({"names": ("a", "a")}, "names: are not keypoints"),
        ({"flip_pairs": ((0, 2),)}, r"flip_pairs: no such keypoint; found \(0, 2\); expected positions from 0 to 1"),
        ({"skeleton": ((-1, 0),)}, "skeleton: no such keypoint"),
        ({"flip_pairs": ((0, 1), (1, 0))}, "flip_pairs: a keypoint is in two pairs"),
        ({"flip_pairs": ((1, 1),)}, "flip_pairs: a keypoint is in two pairs"),
    ],
)
def test_impossible_schemes(values: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=f"KeypointScheme.{words}"):
        KeypointScheme(**({"names": ("a", "b")} | values))


def test_a_mirror_changes_names() -> None:
    assert (len(EARS), EARS.mirrored) == (3, (0, 2, 1))
    points = torch.tensor([[[1.0, 2.0, 2.0], [4.0, 5.0, 1.0], [7.0, 8.0, 2.0]]])
    affine = np.array([[-1.0, 0.0, 10.0], [0.0, 1.0, 0.0]])
    after = GtKeypoints(points, EARS).moved(affine, (20, 10))
    assert after.points.tolist() == [[[9, 2, 2], [3, 8, 2], [6, 5, 1]]]
    assert torch.equal(after.moved(affine, (20, 10)).points, points)


def test_chosen_targets_keep_their_keypoints() -> None:
    points = torch.arange(27, dtype=torch.float32).reshape(3, 3, 3)
    chosen = dataclasses.replace(target(3), gt_keypoints=GtKeypoints(points, EARS)).chosen(
        torch.tensor([True, False, True])
    )
    assert chosen.gt_keypoints is not None and len(chosen.gt_keypoints) == 2
    assert torch.equal(chosen.gt_keypoints.points, points[[0, 2]])
    assert chosen.gt_keypoints.to("meta").points.is_meta


@pytest.mark.parametrize(("centre", "x"), [(0.5, 3.25), (0.0, 3.75)])
def test_coco_records_of_keypoints(centre: float, x: float) -> None:
    """Files count the centre of the first pixel 0."""
    points = torch.tensor([[[3.75, 4.5, 0.25], [5.0, 6.0, 0.5]]])
    scheme = KeypointScheme(("a", "b"), pixel_centre=centre)
    found = dataclasses.replace(detections(1, masks=False), keypoints=points, keypoint_scheme=scheme)
    (record,) = found.coco(3)
    assert record["keypoints"] == [x, 4.5 - centre, 0.25, 5 - centre, 6 - centre, 0.5]
    assert {"image_id", "category_id", "bbox", "score", "keypoints"} == set(record)
    assert found.chosen(torch.tensor([False])).coco() == []
