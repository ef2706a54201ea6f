from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maskrcnn.losses.matcher import BACKGROUND, FOREGROUND, IGNORE, match

NO_BOXES = torch.zeros(0, 4)


def boxes(*rows: tuple[float, float, float, float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def overlap(a: list[float], b: list[float]) -> float:
    common = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - common
    return common / union if union else 0.0


OBJECT = (0.0, 0.0, 10.0, 10.0)


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        (OBJECT, FOREGROUND),
        ((0.0, 0.0, 10.0, 7.0), FOREGROUND),  # IoU 0.7: at the limit is foreground
        ((0.0, 0.0, 10.0, 6.9), IGNORE),
        ((0.0, 0.0, 10.0, 3.0), IGNORE),  # 0.3: at the limit is not background
        ((0.0, 0.0, 10.0, 2.9), BACKGROUND),
        ((20.0, 20.0, 30.0, 30.0), BACKGROUND),
        ((5.0, 5.0, 5.0, 5.0), BACKGROUND),  # empty
    ],
)
def test_the_two_limits(box: tuple[float, float, float, float], kind: int) -> None:
    # the limits in float32, as the overlaps are
    limits = {"foreground_iou": torch.tensor(0.7).item(), "background_iou": torch.tensor(0.3).item()}
    matches = match(boxes(box), boxes(OBJECT), **limits)
    assert matches.kind.tolist() == [kind]
    assert matches.matched_gt_index.tolist() == [0]


@pytest.mark.parametrize("keep_best", [False, True])
@pytest.mark.parametrize("count", [0, 3])
def test_no_objects(keep_best: bool, count: int) -> None:
    matches = match(torch.rand(count, 4), NO_BOXES, foreground_iou=0.7, background_iou=0.3, keep_best=keep_best)
    assert matches.kind.tolist() == [BACKGROUND] * count
    assert matches.matched_gt_index.tolist() == [0] * count
    assert (matches.kind.dtype, matches.matched_gt_index.dtype) == (torch.int8, torch.int64)


@pytest.mark.parametrize("keep_best", [False, True])
def test_no_boxes(keep_best: bool) -> None:
    matches = match(
        NO_BOXES, boxes(OBJECT), foreground_iou=0.7, background_iou=0.3, keep_best=keep_best, crowd_boxes=boxes(OBJECT)
    )
    assert matches.kind.shape == matches.matched_gt_index.shape == (0,)


def test_each_box_goes_to_the_object_it_fits_best() -> None:
    objects = boxes(OBJECT, (8.0, 0.0, 18.0, 10.0), (100.0, 0.0, 110.0, 10.0))
    found = match(
        boxes((7.0, 0.0, 17.0, 10.0), (1.0, 0.0, 11.0, 10.0), (101.0, 0.0, 111.0, 10.0)),
        objects,
        foreground_iou=0.7,
        background_iou=0.3,
    )
    assert found.kind.tolist() == [FOREGROUND] * 3
    assert found.matched_gt_index.tolist() == [1, 0, 2]


def test_no_object_is_without_a_box() -> None:
    # the third box fits the object best, the second as well: both are kept; the first fits less
    candidates = boxes((0.0, 0.0, 5.0, 2.0), (0.0, 0.0, 5.0, 4.0), (5.0, 6.0, 10.0, 10.0), (50.0, 50.0, 60.0, 60.0))
    limits = {"foreground_iou": 0.7, "background_iou": 0.3}
    assert match(candidates, boxes(OBJECT), **limits).kind.tolist() == [BACKGROUND] * 4
    kept = match(candidates, boxes(OBJECT), **limits, keep_best=True)
    assert kept.kind.tolist() == [BACKGROUND, FOREGROUND, FOREGROUND, BACKGROUND]


def test_the_box_that_one_object_needs_still_belongs_to_its_own_best() -> None:
    objects = boxes((0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 10.0, 2.0))
    found = match(boxes((0.0, 0.0, 10.0, 9.0)), objects, foreground_iou=0.95, background_iou=0.3, keep_best=True)
    assert found.kind.tolist() == [FOREGROUND]
    assert found.matched_gt_index.tolist() == [0]


def test_an_object_beyond_every_box_takes_none() -> None:
    far = boxes((500.0, 500.0, 510.0, 510.0))
    candidates = boxes(OBJECT, (20.0, 0.0, 30.0, 10.0))
    found = match(candidates, far, foreground_iou=0.7, background_iou=0.3, keep_best=True)
    assert found.kind.tolist() == [BACKGROUND, BACKGROUND]


@pytest.mark.parametrize("with_object", [False, True])
def test_background_under_a_crowd_is_ignored(with_object: bool) -> None:
    crowd = boxes((100.0, 0.0, 200.0, 100.0), (300.0, 0.0, 400.0, 100.0))
    candidates = boxes(
        (110.0, 0.0, 130.0, 20.0),  # inside
        (94.0, 0.0, 114.0, 20.0),  # 0.7 of it inside
        (93.0, 0.0, 113.0, 20.0),  # 0.65
        (250.0, 0.0, 260.0, 10.0),  # outside
        (310.0, 10.0, 320.0, 20.0),  # inside the second
    )
    objects = boxes((110.0, 0.0, 130.0, 20.0)) if with_object else NO_BOXES
    found = match(candidates, objects, foreground_iou=0.7, background_iou=0.3, crowd_boxes=crowd)
    first = FOREGROUND if with_object else IGNORE  # an object in a crowd stays one
    assert found.kind.tolist() == [first, IGNORE, BACKGROUND, BACKGROUND, IGNORE]


@pytest.mark.parametrize("keep_best", [False, True])
def test_equals_a_slow_loop(keep_best: bool) -> None:
    corner = torch.randint(0, 20, (150, 2)).float()
    many = torch.cat([corner, corner + torch.randint(0, 15, (150, 2))], dim=1)  # whole numbers: ties and empty boxes
    candidates, objects, crowd = many[:130], many[130:147], many[147:]
    found = match(candidates, objects, foreground_iou=0.6, background_iou=0.25, keep_best=keep_best, crowd_boxes=crowd)
    table = [[overlap(a, b) for b in objects.tolist()] for a in candidates.tolist()]
    best_of_object = [max(row[g] for row in table) for g in range(len(objects))]
    for i, (box, row) in enumerate(zip(candidates.tolist(), table, strict=True)):
        kind = FOREGROUND if max(row) >= 0.6 else BACKGROUND if max(row) < 0.25 else IGNORE
        if keep_best and any(
            value > 0 and value == pytest.approx(best) for value, best in zip(row, best_of_object, strict=True)
        ):
            kind = FOREGROUND
        area = (box[2] - box[0]) * (box[3] - box[1])
        for region in crowd.tolist():
            common = max(0, min(box[2], region[2]) - max(box[0], region[0]))
            common *= max(0, min(box[3], region[3]) - max(box[1], region[1]))
            if kind == BACKGROUND and area and common / area >= 0.7:
                kind = IGNORE
        assert found.kind[i] == kind
        assert row[found.matched_gt_index[i]] == pytest.approx(max(row))
    assert {BACKGROUND, FOREGROUND, IGNORE} == set(found.kind.tolist())
