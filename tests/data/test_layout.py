from __future__ import annotations

from pathlib import Path

import pytest

from maskrcnn.data.layout import annotation_file, annotation_files, find_picture, has_split, picture_folders, split_of
from maskrcnn.errors import InputError


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("instances_train2017.json", "train"),
        ("instances_val.json", "val"),
        ("Validation.json", "val"),
        ("trainval.json", "train"),
        ("data/train/_annotations.coco.json", "train"),
        ("data/valid/_annotations.coco.json", "val"),
        ("instances_test.json", "test"),
        ("evaluation.json", None),
        ("latest.json", None),
        ("my_training_data/instances.json", None),
        ("test2017/instances.json", "test"),
        ("instances.json", None),
    ],
)
def test_split_of(path: str, split: str | None) -> None:
    assert split_of(Path("somewhere") / path) == split


def test_the_name_of_the_whole_folder_says_nothing(tmp_path: Path) -> None:
    file = tmp_path / "test/instances.json"
    assert split_of(file) == "test" and split_of(file, tmp_path / "test") is None


def folder_with(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("{}")
    return root


def test_one_file_serves_every_purpose(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "annotations/instances.json")
    for split in (None, "train", "val"):
        assert annotation_file(folder, split).name == "instances.json"  # type: ignore[arg-type]
    assert not has_split(folder, "val")


def test_files_named_after_the_split(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "a_train.json", "annotations/b_val.json", "test.json")
    assert annotation_file(folder, "train").name == "a_train.json"
    assert annotation_file(folder, "val").name == "b_val.json"
    assert has_split(folder, "val")


def test_roboflow_folders(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, *(f"{name}/_annotations.coco.json" for name in ("train", "valid", "test")))
    assert annotation_file(folder, "train").parent.name == "train"
    assert annotation_file(folder, "val").parent.name == "valid"


def test_files_of_other_tasks_are_passed_over(tmp_path: Path) -> None:
    kinds = ("instances", "captions", "person_keypoints")
    folder = folder_with(
        tmp_path, *(f"annotations/{kind}_{split}2017.json" for kind in kinds for split in ("train", "val"))
    )
    assert annotation_file(folder, "val").name == "instances_val2017.json"
    assert len(annotation_files(folder)) == 2


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path}: holds no annotation file; expected a COCO .json file"):
        annotation_file(tmp_path, "train")


@pytest.mark.parametrize("split", ["train", None])
def test_several_that_could_be_meant_are_listed(tmp_path: Path, split: str | None) -> None:
    folder = folder_with(tmp_path, "a.json", "annotations/b.json")
    with pytest.raises(
        InputError, match=r"several annotation files .* found a\.json, annotations/b\.json; expected one"
    ):
        annotation_file(folder, split)  # type: ignore[arg-type]


def test_two_of_one_split_are_listed(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "train_a.json", "train_b.json", "val.json")
    with pytest.raises(InputError, match=r"found train_a\.json, train_b\.json"):
        annotation_file(folder, "train")


def test_the_other_split_is_not_taken_for_the_one_asked_for(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "train.json", "test.json")
    with pytest.raises(InputError, match=r"no annotation file named \*val\*; found test\.json, train\.json"):
        annotation_file(folder, "val")
    with pytest.raises(InputError, match="that stands for the whole"):
        annotation_file(folder, None)


def test_picture_folders_go_from_the_given_to_the_general(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "annotations/x_val.json", "val/a", "images/a", "images/val/a", "given/a")
    found = picture_folders(folder / "annotations/x_val.json", folder / "given")
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        "given",
        "annotations",
        "val",
        "images/val",
        ".",
        "images",
    ]
    assert find_picture("a", found) == folder / "given/a"
    assert find_picture("b", found) is None
