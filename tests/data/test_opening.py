from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskrcnn.data.coco import CocoDataset
from maskrcnn.data.dataset import AdaptedSequence
from maskrcnn.data.opening import open_dataset, open_train_val, split_by_seed
from maskrcnn.data.shapes import ShapesDataset
from maskrcnn.errors import InputError, InputErrors
from maskrcnn.structures import Target

Write = Callable[..., Path]


def pairs(count: int) -> list[tuple[np.ndarray, Target]]:
    nothing = Target(torch.zeros(0, 4), torch.zeros(0).long(), None, torch.zeros(0).bool(), (4, 4))
    return [(np.zeros((4, 4), dtype=np.uint8), nothing) for _ in range(count)]


def test_file_and_folder(document: dict[str, Any], write: Write, tmp_path: Path) -> None:
    file = write(document)
    assert open_dataset(file).image_ids == open_dataset(str(tmp_path)).image_ids == (10, 20, 30)
    assert open_dataset(tmp_path / "annotations", split="val").image_ids == (10, 20, 30)


def test_shapes_by_word() -> None:
    train, val = open_train_val("shapes")
    assert isinstance(train, ShapesDataset) and isinstance(val, ShapesDataset)
    assert (len(train), train.seed, len(val), val.seed) == (500, 1, 200, 2)
    assert len(open_dataset("shapes", split="val")) == 200 and len(open_dataset("shapes")) == 500


def test_sequences(document: dict[str, Any], write: Write) -> None:
    assert isinstance(open_dataset(pairs(2)), AdaptedSequence)
    dataset = open_dataset(write(document))
    assert open_dataset(dataset) is dataset


@pytest.mark.parametrize("data", [3, None, object()])
def test_what_is_no_data_set(data: object) -> None:
    with pytest.raises(InputError, match="data: is not a data set"):
        open_dataset(data)  # type: ignore[arg-type]


def test_missing_and_empty(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gone: no such file or folder"):
        open_dataset(tmp_path / "gone")
    for open_it in (open_dataset, open_train_val):
        with pytest.raises(InputError, match="holds no annotation file"):
            open_it(tmp_path)


def test_each_file_for_its_purpose(document: dict[str, Any], write: Write, tmp_path: Path) -> None:
    write(document, "instances_train.json", "train")
    write(document | {"images": document["images"][:2]}, "instances_val.json", "val")
    train, val = open_train_val(tmp_path)
    assert (len(train), len(val)) == (3, 2)
    assert Path(train.path(0)).parent.name == "train" and Path(val.path(0)).parent.name == "val"
    assert open_dataset(tmp_path, split="val").image_ids == (10, 20)
    with pytest.raises(InputError, match="instances_train.json, annotations/instances_val.json"):
        open_dataset(tmp_path)


def test_val_of_its_own_has_the_classes_of_train(document: dict[str, Any], write: Write, tmp_path: Path) -> None:
    train_file = write(document, "a.json")
    document["categories"] = [{"id": 1, "name": "cow"}, {"id": 2, "name": "dog"}]
    for record, category in zip(document["annotations"], (1, 2, 1), strict=True):
        record["category_id"] = category
    train, val = open_train_val(train_file, write(document, "b.json"))
    assert val.classes is train.classes and len(train) == len(val) == 3
    assert val.target(0).gt_labels.tolist() == [2, 2] and val.target(1).gt_labels.tolist() == [1]


def test_fixed_split(document: dict[str, Any], write: Write) -> None:
    train, val = open_train_val(write(document), val_fraction=0.4, seed=3)
    assert len(train) == 2 and len(val) == 1
    assert sorted(train.image_ids + val.image_ids) == [10, 20, 30]
    document["images"].reverse()
    again_train, again_val = open_train_val(write(document), val_fraction=0.4, seed=3)
    assert set(again_train.image_ids) == set(train.image_ids) and again_val.image_ids == val.image_ids


def test_split_differs_by_seed_and_leaves_a_picture_on_each_side() -> None:
    dataset = open_dataset(pairs(40))
    picked = {split_by_seed(dataset, 0.1, seed)[1].image_ids for seed in range(5)}
    assert len(picked) == 5 and all(len(ids) == 4 for ids in picked)
    assert [len(part) for part in split_by_seed(dataset, 0.001, 0)] == [39, 1]
    assert [len(part) for part in split_by_seed(dataset, 0.999, 0)] == [1, 39]


@pytest.mark.parametrize("fraction", [0, 1, -0.1, float("nan")])
def test_impossible_fraction(fraction: float) -> None:
    with pytest.raises(InputError, match="val_fraction: is not a share"):
        open_train_val(pairs(4), val_fraction=fraction)


def test_one_picture_cannot_be_split() -> None:
    with pytest.raises(InputError, match="too few pictures to split; found 1"):
        open_train_val(pairs(1))


def test_skip_bad_goes_through(document: dict[str, Any], write: Write) -> None:
    document["annotations"][0]["bbox"] = [0, 0, 0, 0]
    file = write(document)
    with pytest.raises(InputErrors):
        open_train_val(file)
    train, val = open_train_val(file, skip_bad=True)
    assert len(train.skipped) == 1 and len(train) + len(val) == 3


def test_given_picture_folder(document: dict[str, Any], write: Write, tmp_path: Path) -> None:
    file = write(document, folder="far/away")
    with pytest.raises(InputErrors, match="picture is missing"):
        open_dataset(file)
    train, val = open_train_val(file, images=tmp_path / "far/away")
    assert len(train) + len(val) == 3


def test_nuclei(shared_data: Path) -> None:
    train, val = open_train_val(shared_data / "nuclei")
    assert isinstance(train, CocoDataset) and (len(train), len(val)) == (465, 99)
    assert not set(train.image_ids) & set(val.image_ids)
    assert json.loads(json.dumps(val.image_ids)) == list(val.image_ids)
