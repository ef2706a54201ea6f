from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn.data.classes import Classes
from maskrcnn.data.coco import load_coco
from maskrcnn.data.dataset import AdaptedSequence, Dataset, subset
from maskrcnn.errors import InputError
from maskrcnn.ops.rle import decode
from maskrcnn.structures import GtMasks, PolygonShape, Target


def target(label: int = 2, size: tuple[int, int] = (8, 10), masks: bool = True) -> Target:
    ring = np.array([[1.0, 2.0], [5.0, 2.0], [5.0, 6.0], [1.0, 6.0]])
    return Target(
        gt_boxes=torch.tensor([[1.0, 2.0, 5.0, 6.0]]),
        gt_labels=torch.tensor([label]),
        gt_masks=GtMasks((PolygonShape((ring,)),)) if masks else None,
        is_crowd=torch.tensor([False]),
        size=size,
    )


def empty() -> Target:
    return target().chosen(torch.tensor([False]))


def picture(value: int = 0) -> np.ndarray:
    return np.full((8, 10, 3), value, dtype=np.uint8)


# --- any sequence -----------------------------------------------------------------------------------------------------


def test_any_sequence_of_pictures_and_targets(tmp_path: Path) -> None:
    Image.fromarray(picture(3)).save(tmp_path / "a.png")
    samples = [
        (picture(1), target(1)),
        (torch.full((3, 8, 10), 2, dtype=torch.uint8), empty()),
        (str(tmp_path / "a.png"), target(3)),
    ]
    dataset = AdaptedSequence(samples)  # type: ignore[arg-type]
    assert [int(dataset[i][0].max()) for i in range(3)] == [1, 2, 3]
    assert all(found.shape == (8, 10, 3) and found.dtype == np.uint8 for found, _ in dataset)
    assert dataset.image_ids == (1, 2, 3) and [t.image_id for _, t in dataset] == [1, 2, 3]
    assert dataset.classes == Classes.numbered(3)
    assert dataset[-1][1].image_id == 3 and dataset.target(-1).image_id == 3


def test_classes_of_the_sequence() -> None:
    class Named(list[Any]):
        classes: Any = ("cat", "dog")

    assert AdaptedSequence(Named([(picture(), target())])).classes == Classes.named(["cat", "dog"])
    Named.classes = Classes(("cat", "dog"), (4, 9))
    assert AdaptedSequence(Named([(picture(), target())])).classes.category_ids == (4, 9)


def test_sequence_without_any_object() -> None:
    dataset = AdaptedSequence([(picture(), empty())])
    assert len(dataset.classes) == 1 and dataset.ground_truth()["annotations"] == []


@pytest.mark.parametrize("sample", [picture(), (picture(),), (picture(), {"boxes": []}), None])
def test_what_is_no_sample(sample: object) -> None:
    with pytest.raises(InputError, match=r"data\[0\]: is not a sample.*expected \(picture, Target\)"):
        AdaptedSequence([sample], Classes.numbered(1))[0]  # type: ignore[list-item]


def test_empty_sequence() -> None:
    with pytest.raises(InputError, match="the sequence is empty"):
        AdaptedSequence([])


def test_size_that_differs_from_the_picture() -> None:
    dataset = AdaptedSequence([(picture(), target(size=(10, 8)))])
    with pytest.raises(InputError, match=r"data\[0\]: target.size: differs; found \(10, 8\); expected \(8, 10\)"):
        dataset[0]


def test_label_beyond_the_classes() -> None:
    dataset = AdaptedSequence([(picture(), target(3))], Classes.numbered(2))
    with pytest.raises(InputError, match=r"data\[0\]: target.gt_labels: .* found \[3\]; expected 1 to 2"):
        dataset[0]


def test_ground_truth_of_targets() -> None:
    truth = AdaptedSequence([(picture(), empty()), (picture(), target())]).ground_truth()
    assert [image["id"] for image in truth["images"]] == [1, 2]
    (record,) = truth["annotations"]
    assert record["id"] == 1 and record["image_id"] == 2 and record["category_id"] == 2 and record["iscrowd"] == 0
    assert record["bbox"] == [1, 2, 4, 4] and record["area"] == 16
    assert decode(record["segmentation"])[2:6, 1:5].all() and decode(record["segmentation"]).sum() == 16
    assert truth["categories"] == [{"id": 1, "name": "1"}, {"id": 2, "name": "2"}]


def test_ground_truth_without_masks() -> None:
    (record,) = AdaptedSequence([(picture(), target(masks=False))]).ground_truth()["annotations"]
    assert "segmentation" not in record and record["area"] == 16


# --- subset -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def whole(document: dict[str, Any], write: Callable[..., Path]) -> Dataset:
    return load_coco(write(document))


def test_subset(whole: Dataset) -> None:
    part = subset(whole, [2, 0])
    assert len(part) == 2 and part.image_ids == (30, 10) and part.classes is whole.classes
    assert part[1][1].gt_labels.tolist() == [2, 3] and part.target(-1).image_id == 10
    assert part.path(0) == whole.path(2)
    truth = part.ground_truth()
    assert {image["id"] for image in truth["images"]} == {10, 30}
    assert {record["image_id"] for record in truth["annotations"]} == {10}
    assert truth["categories"] == whole.ground_truth()["categories"]


def test_subset_of_a_subset_and_of_nothing(whole: Dataset) -> None:
    assert whole[1:][::-1].image_ids == (30, 20)
    assert len(subset(whole, [])) == 0 and list(subset(whole, [])) == []
    with pytest.raises(IndexError):
        subset(whole, [3])
