from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn.data.classes import Classes
from maskrcnn.data.coco import load_coco
from maskrcnn.ops.masks import rasterise
from maskrcnn.ops.rle import decode
from maskrcnn.structures import PolygonShape, RasterShape

Write = Callable[..., Path]


def test_samples(document: dict[str, Any], write: Write) -> None:
    dataset = load_coco(write(document))
    assert len(dataset) == 3 and dataset.image_ids == (10, 20, 30) and not dataset.skipped
    assert dataset.classes == Classes(("dog", "cow", "cat"), (3, 7, 90))  # by id, not by place in the file
    picture, target = dataset[0]
    assert picture.shape == (20, 30, 3) and (picture == 10).all()
    assert target.gt_boxes.tolist() == [[2, 3, 12, 13], [0, 0, 2, 20]] and target.gt_boxes.dtype == torch.float32
    assert target.gt_labels.tolist() == [2, 3] and target.gt_labels.dtype == torch.int64
    assert target.is_crowd.tolist() == [False, True]
    assert target.areas is not None and target.areas.tolist() == [100, 40]
    assert target.size == (20, 30) and target.image_id == 10
    assert dataset.path(1).endswith("p2.png")
    assert [dataset.sample(i)[1].image_id for i in range(3)] == [t.image_id for _, t in dataset] == [10, 20, 30]


def test_shapes_of_all_three_kinds(document: dict[str, Any], write: Write) -> None:
    dataset = load_coco(write(document))
    square, crowd = dataset.target(0).gt_masks.shapes  # type: ignore[union-attr]
    (column,) = dataset.target(1).gt_masks.shapes  # type: ignore[union-attr]
    assert isinstance(square, PolygonShape) and square.rings[0].shape == (4, 2)
    assert isinstance(column, RasterShape) and (column.left, column.top, column.bitmap.shape) == (1, 0, (20, 1))
    assert isinstance(crowd, RasterShape) and crowd.bitmap.shape == (20, 2) and crowd.size == (20, 30)


def test_picture_without_objects(document: dict[str, Any], write: Write) -> None:
    target = load_coco(write(document)).target(2)
    assert len(target) == 0 and target.gt_boxes.shape == (0, 4)
    assert target.gt_masks is not None and len(target.gt_masks) == 0
    assert target.areas is not None and target.areas.dtype == torch.float64


def test_no_annotation_at_all(document: dict[str, Any], write: Write) -> None:
    dataset = load_coco(write(document | {"annotations": []}))
    assert len(dataset) == 3 and len(dataset.target(0)) == 0
    assert dataset.ground_truth()["annotations"] == []


@pytest.mark.parametrize("empty", [None, [], "absent"])
def test_boxes_only(document: dict[str, Any], write: Write, empty: object) -> None:
    for record in document["annotations"]:
        if empty == "absent":
            del record["segmentation"]
        else:
            record["segmentation"] = empty
    dataset = load_coco(write(document))
    assert dataset.target(0).gt_masks is None and dataset.target(2).gt_masks is None
    assert "segmentation" not in dataset.ground_truth()["annotations"][0]


def test_box_and_area_from_the_mask(document: dict[str, Any], write: Write) -> None:
    for record in document["annotations"]:
        del record["bbox"], record["area"], record["iscrowd"]
    dataset = load_coco(write(document))
    assert dataset.target(0).gt_boxes.tolist() == [[2, 3, 12, 13], [0, 0, 2, 20]]
    assert dataset.target(0).areas.tolist() == [100, 40]  # type: ignore[union-attr]
    assert dataset.target(1).gt_boxes.tolist() == [[1, 0, 2, 20]]
    assert not dataset.target(0).is_crowd.any()


def test_boxes_are_clipped_to_the_picture_but_given_back_as_they_were(document: dict[str, Any], write: Write) -> None:
    document["annotations"][0]["bbox"] = [-2.5, 3, 40, 10.25]
    dataset = load_coco(write(document))
    assert dataset.target(0).gt_boxes[0].tolist() == [0, 3, 30, 13.25]
    assert dataset.ground_truth()["annotations"][0]["bbox"] == [-2.5, 3, 40, 10.25]


def test_ground_truth_is_the_file(document: dict[str, Any], write: Write) -> None:
    truth = load_coco(write(document)).ground_truth()
    by_id = {record["id"]: record for record in truth["annotations"]}
    assert by_id == {record["id"]: record for record in document["annotations"]}
    assert truth["images"] == document["images"]
    assert sorted(map(str, truth["categories"])) == sorted(map(str, document["categories"]))
    json.dumps(truth)


def test_annotations_counted_from_zero_are_moved_up(document: dict[str, Any], write: Write) -> None:
    for i, record in enumerate(document["annotations"]):
        record["id"] = i
    truth = load_coco(write(document)).ground_truth()
    assert sorted(record["id"] for record in truth["annotations"]) == [1, 2, 3]


def test_classes_of_another_data_set_go_by_name(document: dict[str, Any], write: Write) -> None:
    classes = Classes(("cat", "bird", "cow", "dog"), (1, 2, 3, 4))
    dataset = load_coco(write(document), classes=classes)
    assert dataset.classes is classes
    assert dataset.target(0).gt_labels.tolist() == [3, 1] and dataset.target(1).gt_labels.tolist() == [4]
    assert {record["category_id"] for record in dataset.ground_truth()["annotations"]} == {1, 3, 4}


def test_slices_negative_positions_and_ends(document: dict[str, Any], write: Write) -> None:
    dataset = load_coco(write(document))
    assert dataset[-1][1].image_id == 30 and dataset[np.int64(1)][1].image_id == 20  # type: ignore[index]
    assert dataset[1:].image_ids == (20, 30)
    with pytest.raises(IndexError):
        dataset[3]


def test_pickles_for_workers(document: dict[str, Any], write: Write) -> None:
    dataset = pickle.loads(pickle.dumps(load_coco(write(document))))
    assert dataset[0][1].gt_boxes.tolist() == [[2, 3, 12, 13], [0, 0, 2, 20]]


# --- where pictures lie -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("instances.json", "annotations"),
        ("instances.json", "."),
        ("instances.json", "images"),
        ("instances.json", "annotations/images"),
        ("instances_train.json", "train"),
        ("instances_train2017.json", "train2017"),
        ("instances_train2017.json", "images/train"),
        ("instances_val.json", "annotations/val"),
        ("my-val.json", "valid"),
        ("test.json", "images/test"),
    ],
)
def test_pictures_are_found(document: dict[str, Any], write: Write, name: str, folder: str) -> None:
    assert len(load_coco(write(document, name, folder))) == 3


def test_pictures_in_a_given_folder_and_below_it(document: dict[str, Any], write: Write, tmp_path: Path) -> None:
    file = write(document, folder="elsewhere/deep")
    assert len(load_coco(file, tmp_path / "elsewhere/deep")) == 3
    for record in document["images"]:
        record["file_name"] = "deep/" + record["file_name"]
    file.write_text(json.dumps(document))
    assert len(load_coco(file, str(tmp_path / "elsewhere"))) == 3


def test_the_folder_of_the_split_comes_before_the_others(document: dict[str, Any], write: Write) -> None:
    write(document, "instances_val.json", "val")
    write(document, "instances_train.json", "train")
    file = write(document, "instances_val.json", "images")
    assert Path(load_coco(file).path(0)).parent.name == "val"


# --- real data --------------------------------------------------------------------------------------------------------


def test_coco128(shared_data: Path) -> None:
    file = shared_data / "coco128/annotations/instances.json"
    dataset = load_coco(file)
    document = json.loads(file.read_bytes())
    assert len(dataset) == 128 and len(dataset.classes) == 80 and dataset.classes.category_ids[-1] == 90
    truth = {record["id"]: record for record in dataset.ground_truth()["annotations"]}
    for record in document["annotations"]:
        assert all(truth[record["id"]][key] == record[key] for key in ("segmentation", "bbox", "area", "category_id"))
    picture, target = dataset[0]
    assert picture.shape[:2] == target.size


def annotated(record: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    rle = coco_mask.frPyObjects(record["segmentation"], *size)
    mask: np.ndarray = coco_mask.decode(coco_mask.merge(rle) if isinstance(rle, list) else rle)
    return mask


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools with numpy 2
def test_masks_equal_pycocotools(shared_data: Path) -> None:
    file = shared_data / "coco128/annotations/instances.json"
    dataset, document = load_coco(file), json.loads(file.read_bytes())
    for i in range(0, 128, 6):
        target = dataset.target(i)
        records = [record for record in document["annotations"] if record["image_id"] == dataset.image_id(i)]
        assert target.gt_masks is not None and len(records) == len(target)
        for ours, record in zip(rasterise(target.gt_masks, target.size), records, strict=True):
            np.testing.assert_array_equal(decode(ours), annotated(record, target.size))


def test_nuclei(shared_data: Path) -> None:
    dataset = load_coco(shared_data / "nuclei/annotations/instances_val.json")
    assert len(dataset) == 99 and sum(len(dataset.target(i)) for i in range(99)) == 3610
    target = dataset.target(int(np.argmax([len(dataset.target(i)) for i in range(99)])))
    assert target.gt_masks is not None
    for shape, box in zip(target.gt_masks.shapes, target.gt_boxes.int().tolist(), strict=True):
        assert isinstance(shape, RasterShape)
        height, width = shape.bitmap.shape
        assert [shape.left, shape.top, shape.left + width, shape.top + height] == box


def test_many_annotations_of_both_kinds(document: dict[str, Any], write: Write) -> None:
    rle = coco_mask.encode(np.asfortranarray(np.random.default_rng(0).random((20, 30)) < 0.1).astype(np.uint8))
    many = copy.deepcopy(document)
    many["annotations"] = []
    for i in range(20_000):
        record = dict(document["annotations"][0], id=i + 1, image_id=10 + 10 * (i % 3))
        if i % 2:
            record["segmentation"] = {"size": [20, 30], "counts": rle["counts"].decode()}
        many["annotations"].append(record)
    dataset = load_coco(write(many))
    assert [len(dataset.target(i)) for i in range(3)] == [6_667, 6_667, 6_666]


def test_exif_turned_picture(document: dict[str, Any], write: Write, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = write(document)
    Image.new("RGB", (20, 30)).save(tmp_path / "images/p1.png", exif=exif)  # stored 20 wide, 30 wide when upright
    assert load_coco(file)[0][0].shape == (20, 30, 3)
