"""Which box teaches what: three rules with three thresholds, each against a plain loop."""

from __future__ import annotations

import torch

from maskrcnn.lineage.regions import Regions, regions_of, regression_pairs, svm_examples, tuning_labels


def _iou(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0.0) * max(height, 0.0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def _picture() -> Regions:
    """Two objects of class 1, one of class 3 of 4, and 300 boxes near and far from them."""
    gt_boxes = torch.tensor([[10.0, 10.0, 40.0, 40.0], [60.0, 15.0, 90.0, 55.0], [30.0, 50.0, 70.0, 95.0]])
    generator = torch.Generator().manual_seed(0)
    near = gt_boxes.repeat(60, 1) + torch.randn(180, 4, generator=generator) * 5
    corners = torch.rand(120, 2, generator=generator) * 70
    far = torch.cat([corners, corners + 8 + torch.rand(120, 2, generator=generator) * 40], dim=1)
    return regions_of(gt_boxes, torch.tensor([1, 3, 1]), torch.zeros(3, dtype=torch.bool), torch.cat([near, far]))


def test_objects_stand_first_and_crowd_regions_are_none() -> None:
    gt_boxes = torch.tensor([[0.0, 0.0, 5.0, 5.0], [0.0, 0.0, 50.0, 50.0], [9.0, 9.0, 19.0, 19.0]])
    proposals = torch.tensor([[1.0, 1.0, 6.0, 6.0]])
    regions = regions_of(gt_boxes, torch.tensor([2, 1, 3]), torch.tensor([False, True, False]), proposals)
    assert torch.equal(regions.boxes, torch.cat([gt_boxes[[0, 2]], proposals]))
    assert regions.gt_labels.tolist() == [2, 3] and torch.equal(regions.crowd_boxes, gt_boxes[[1]])
    assert torch.equal(regions.gt_boxes, gt_boxes[[0, 2]])


def test_the_network_learns_from_all_boxes_near_an_object() -> None:
    regions = _picture()
    expected = []
    for box in regions.boxes.tolist():
        overlaps = [_iou(box, gt) for gt in regions.gt_boxes.tolist()]
        best = max(range(3), key=lambda g: overlaps[g])
        expected.append(int(regions.gt_labels[best]) if overlaps[best] >= 0.5 else 0)
    assert tuning_labels(regions).tolist() == expected
    assert {0, 1, 3} == set(expected)


def test_svms_learn_from_the_objects_and_from_what_is_far_from_them() -> None:
    regions = _picture()
    is_positive, is_negative = svm_examples(regions, 4)
    for row, box in enumerate(regions.boxes.tolist()):
        for k in range(4):
            mine = [gt for gt, label in zip(regions.gt_boxes.tolist(), [1, 3, 1], strict=True) if label == k + 1]
            assert bool(is_positive[row, k]) == (row < 3 and [1, 3, 1][row] == k + 1)
            assert bool(is_negative[row, k]) == all(_iou(box, gt) < 0.3 for gt in mine)
    neither = ~is_positive & ~is_negative
    assert neither[:, 0].sum() > 20 and not neither[:, 1].any()


def test_regression_learns_from_what_is_near_enough_to_be_moved() -> None:
    regions = _picture()
    expected = []
    for row, box in enumerate(regions.boxes.tolist()):
        overlaps = [_iou(box, gt) for gt in regions.gt_boxes.tolist()]
        if row >= 3 and max(overlaps) > 0.6:
            expected.append((row, overlaps.index(max(overlaps))))
    rows, nearest = regression_pairs(regions)
    assert list(zip(rows.tolist(), nearest.tolist(), strict=True)) == expected
    assert len(expected) > 20


def test_what_lies_in_a_crowd_region_is_no_background() -> None:
    crowd = torch.tensor([[0.0, 0.0, 50.0, 50.0], [80.0, 80.0, 90.0, 90.0]])
    proposals = torch.tensor([[5.0, 5.0, 20.0, 20.0], [45.0, 45.0, 70.0, 70.0]])
    labels, is_crowd = torch.tensor([1, 2]), torch.tensor([True, False])
    regions = regions_of(crowd, labels, is_crowd, proposals)
    assert tuning_labels(regions).tolist() == [2, -1, 0]
    is_positive, is_negative = svm_examples(regions, 2)
    assert is_positive.tolist() == [[False, True], [False, False], [False, False]]
    assert is_negative.tolist() == [[True, False], [False, False], [True, True]]


def test_pictures_without_objects_or_without_boxes() -> None:
    none, labels = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    proposals = torch.tensor([[5.0, 5.0, 20.0, 20.0]])
    regions = regions_of(none, labels, labels.bool(), proposals)
    assert tuning_labels(regions).tolist() == [0]
    assert [flags.tolist() for flags in svm_examples(regions, 2)] == [[[False, False]], [[True, True]]]
    assert [len(part) for part in regression_pairs(regions)] == [0, 0]
    empty = regions_of(none, labels, labels.bool(), none)
    assert len(empty) == 0 and tuning_labels(empty).shape == (0,)
    assert [flags.shape for flags in svm_examples(empty, 2)] == [(0, 2), (0, 2)]
    assert [len(part) for part in regression_pairs(empty)] == [0, 0]
