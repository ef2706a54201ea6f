"""Every kind of bad annotation file: one line each, with file and field, all at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskrcnn.data.classes import Classes
from maskrcnn.data.coco import load_coco
from maskrcnn.errors import InputError, InputErrors

Write = Callable[..., Path]
NAN = float("nan")
HUGE = 10**400  # JSON allows it, float64 does not hold it


def problems(file: Path, **options: Any) -> list[str]:
    with pytest.raises(InputErrors) as caught:
        load_coco(file, **options)
    lines = [str(error) for error in caught.value.errors]
    assert all("\n" not in line for line in [*lines, str(caught.value)])
    return [line.removeprefix(f"{file}: ") for line in lines]


# --- the file as a whole ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not JSON"),
        ("{'images': []}", "is not JSON"),
        ("\0\1\2", "is not JSON"),
        ('[{"image_id": 1}]', "is not COCO; found a list; expected an object with images, annotations, categories"),
        ('"text"', "is not COCO; found a str"),
        ('{"shapes": []}', "images: is not COCO; found keys shapes"),
        ('{"images": [], "annotations": {}, "categories": []}', "annotations: is not COCO"),
        ('{"images": [], "annotations": [], "categories": []}', "categories: there is no category"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}',
            "images: there is no picture to use",
        ),
        ('{"images": [], "annotations": [], "categories": [{"name": "a"}]}', r"categories\[0\]: is not a category"),
        ('{"images": [], "annotations": [], "categories": ["a"]}', r"categories\[0\]: is not a category; found a"),
    ],
)
def test_not_coco(write: Write, text: str, words: str) -> None:
    file = write(text, pictures=False)
    with pytest.raises(InputError, match=words) as caught:
        load_coco(file)
    assert str(file) in str(caught.value)


def test_binary_and_missing_files(write: Write, tmp_path: Path) -> None:
    file = write("", pictures=False)
    file.write_bytes(b"\xff\xfe\x80")
    with pytest.raises(InputError, match="is not JSON"):
        load_coco(file)
    with pytest.raises(InputError, match="gone.json: no such file"):
        load_coco(tmp_path / "gone.json")
    with pytest.raises(InputError, match="cannot be read"):
        load_coco(tmp_path)
    with pytest.raises(InputError, match="nowhere: images: no such folder"):
        load_coco(
            write({"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}), tmp_path / "nowhere"
        )


@pytest.mark.parametrize("category_id", [-1, 1 << 63, 10**400, 1.5, NAN])
def test_category_ids_that_no_evaluator_takes(document: dict[str, Any], write: Write, category_id: float) -> None:
    document["categories"][0]["id"] = category_id
    (found,) = problems(write(document))
    assert "is not a category; found" in found and found.endswith("an integer id, 0 or more, and a name")


@pytest.mark.parametrize(
    ("part", "key", "words"),
    [("annotations", "id", "is not an annotation id"), ("images", "width", "is not a size")],
)
def test_numbers_beyond_64_bits(document: dict[str, Any], write: Write, part: str, key: str, words: str) -> None:
    document[part][0][key] = 10**400
    assert any(words in line for line in problems(write(document, pictures=False)))


def test_duplicate_categories(document: dict[str, Any], write: Write) -> None:
    document["categories"] += [{"id": 3, "name": "bird"}, {"id": 4, "name": "cow"}]
    assert problems(write(document)) == [
        "categories[3] (id 3).id: is a duplicate; found 3",
        "categories[4] (id 4).name: is a duplicate; found cow",
    ]


# --- one annotation ---------------------------------------------------------------------------------------------------

POLYGON = [[2, 3, 12, 3, 12, 13]]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"bbox": [2, 3, 0, 10]}, "bbox: has no area; found [2, 3, 0, 10]; expected positive width and height"),
        ({"bbox": [2, 3, 10, -1]}, "bbox: has no area; found [2, 3, 10, -1]"),
        ({"bbox": [2, 3, NAN, 10]}, "bbox: is not a box; found [2, 3, nan, 10]; expected four finite numbers"),
        ({"bbox": [2, 3, float("inf"), 10]}, "bbox: is not a box"),
        ({"bbox": [2, 3, 10]}, "bbox: is not a box; found [2, 3, 10]"),
        ({"bbox": [2, 3, 10, "9"]}, "bbox: is not a box"),
        ({"bbox": "2 3 10 9"}, "bbox: is not a box; found 2 3 10 9"),
        ({"bbox": [30, 3, 10, 10]}, "bbox: lies outside the picture; found [30.0, 3.0, 10.0, 10.0]"),
        ({"bbox": [2, -12, 10, 10]}, "bbox: lies outside the picture"),
        ({"segmentation": [[2, 3, 12, 3]]}, "segmentation[0]: has too few points; found 2; expected at least 3"),
        ({"segmentation": [*POLYGON, []]}, "segmentation[1]: has too few points; found 0"),
        ({"segmentation": [[2, 3, 12, 3, 12, 13, 4]]}, "segmentation[0]: has an odd number of coordinates; found 7"),
        ({"segmentation": [[2, 3, 12, NAN, 12, 13]]}, "segmentation[0]: holds numbers that are no coordinates"),
        ({"segmentation": [[2, 3, 12, 1e30, 12, 13]]}, "segmentation[0]: holds numbers that are no coordinates"),
        ({"segmentation": [2, 3, 12, 3, 12, 13]}, "segmentation: is not a mask; found [2, 3, 12, 3, 12, 13]"),
        ({"segmentation": [[[2, 3], [12, 3], [12, 13]]]}, "segmentation[0]: is not a polygon"),
        ({"segmentation": [[2, 3, "x", 3, 12, 13]]}, "segmentation[0]: is not a polygon"),
        ({"segmentation": [["2", "3", "12", "3", "12", "13"]]}, "segmentation[0]: is not a polygon"),
        ({"segmentation": [[2, 3, 12, 3, 7, 3, 5, 3]]}, "segmentation: has no area; found [[2.0, 3.0, 12.0, 3.0"),
        ({"segmentation": [[2, 3, 4, 5, 6, 7, 12, 13]]}, "segmentation: has no area"),
        ({"segmentation": [[2, 3, 2, 3, 2, 3], [1, 1, 5, 1, 9, 1]]}, "segmentation: has no area"),
        ({"segmentation": [[32, 3, 42, 3, 42, 13]]}, "segmentation: lies outside the picture; expected within height"),
        ({"segmentation": [[2, -13, 12, -13, 12, -3]]}, "segmentation: lies outside the picture"),
        ({"segmentation": [[32, 3, 42, 3, 42, 13], [-9, 2, -1, 2, -1, 9]]}, "segmentation: lies outside the picture"),
        ({"segmentation": "polygon"}, "segmentation: is not a mask; found polygon"),
        ({"segmentation": None}, "segmentation: is missing, while other annotations have one"),
        ({"segmentation": []}, "segmentation: is missing, while other annotations have one"),
        (
            {"segmentation": {"size": [30, 20], "counts": "0X1`a0"}},
            "segmentation.size: differs from the picture's; found [30, 20]; expected [height, width] [20, 30]",
        ),
        ({"segmentation": {"size": [20], "counts": "0X1`a0"}}, "segmentation.size: is not a size; found [20]"),
        ({"segmentation": {"counts": "0X1`a0"}}, "segmentation.size: is not a size; found None"),
        ({"segmentation": {"size": [20, 30]}}, "segmentation.counts: is not run lengths; found None"),
        ({"segmentation": {"size": [20, 30], "counts": [20, 20]}}, "segmentation: counts: does not fill the picture"),
        ({"segmentation": {"size": [20, 30], "counts": [-20, 620]}}, "segmentation: counts: holds a negative run"),
        ({"segmentation": {"size": [20, 30], "counts": [1, None]}}, "segmentation: counts: is not a list of run"),
        ({"segmentation": {"size": [20, 30], "counts": "0X1`a"}}, "segmentation: counts: breaks off in the middle"),
        ({"segmentation": {"size": [20, 30], "counts": "0X1"}}, "segmentation: counts: does not fill the picture"),
        ({"segmentation": {"size": [20, 30], "counts": "0X1 é"}}, "segmentation: counts: "),
        ({"segmentation": {"size": [20, 30], "counts": ""}}, "segmentation: counts: does not fill the picture"),
        ({"segmentation": {"size": [20, 30], "counts": [600]}}, "segmentation: holds no pixel"),
        ({"segmentation": {"size": [20, 30], "counts": "hb0"}}, "segmentation: holds no pixel"),
        ({"category_id": 4}, "category_id: is no category of this file; found 4; expected one of 3, 7, 90"),
        ({"category_id": None}, "category_id: is no category of this file; found None"),
        ({"image_id": 11}, "image_id: is no image of this file; found 11"),
        ({"image_id": "10"}, "image_id: is no image of this file; found '10'"),
        ({"area": NAN}, "area: is not an area; found nan"),
        ({"area": -1}, "area: is not an area; found -1"),
        ({"iscrowd": 2}, "iscrowd: is not a flag; found 2; expected 0 or 1"),
        ({"iscrowd": "0"}, "iscrowd: is not a flag; found '0'; expected 0 or 1"),
        ({"bbox": [2, 3, 10, HUGE]}, "bbox: is not a box; found [2, 3, 10, 1000000"),
        ({"segmentation": [[2, 3, 12, HUGE, 12, 13]]}, "segmentation[0]: is not a polygon"),
        ({"area": HUGE}, "area: is not an area; found 1000000"),
        ({"category_id": HUGE}, "category_id: is no category of this file; found 1000000"),
    ],
)
def test_bad_annotation(document: dict[str, Any], write: Write, change: dict[str, Any], line: str) -> None:
    document["annotations"][0] |= change
    file = write(document)
    (found,) = problems(file)
    assert found.startswith(f"annotations[0] (id 5).{line}")
    dataset = load_coco(file, skip_bad=True)
    assert [str(error) for error in dataset.skipped] == [f"{file}: {found}"]
    assert len(dataset) == 3 and len(dataset.target(0)) == 1 and len(dataset.target(1)) == 1


@pytest.mark.parametrize(
    "polygons",
    [
        [[2, 3, 2, 3, 2, 3], POLYGON[0]],
        [[2, 3, 2, 3, 12, 3, 12, 13]],
        [[32, 3, 42, 3, 42, 13], POLYGON[0]],
        [[-5, -5, 35, -5, 35, 25, -5, 25]],
    ],
)
def test_one_ring_of_several_may_be_empty(document: dict[str, Any], write: Write, polygons: list[Any]) -> None:
    document["annotations"][0]["segmentation"] = polygons
    assert load_coco(write(document)).skipped == ()


@pytest.mark.parametrize(("key", "field"), [("bbox", "bbox"), ("segmentation", "segmentation")])
def test_neither_box_nor_mask(document: dict[str, Any], write: Write, key: str, field: str) -> None:
    for record in document["annotations"]:
        del record["segmentation"]
    del document["annotations"][1]["bbox"]
    assert problems(write(document)) == ["annotations[1] (id 6).bbox: is missing, and there is no mask to take it from"]


def test_mask_without_box_that_lies_outside(document: dict[str, Any], write: Write) -> None:
    del document["annotations"][0]["bbox"]
    document["annotations"][0]["segmentation"] = [[40, 3, 50, 3, 50, 9]]
    (line,) = problems(write(document))
    assert line.startswith("annotations[0] (id 5).segmentation: lies outside the picture")


def test_records_that_are_no_objects(document: dict[str, Any], write: Write) -> None:
    document["annotations"] += ["annotation", {"id": None}]
    document["images"].append("p4.png")
    file = write(document, pictures=False)
    for i in range(3):
        Image.new("L", (30, 20)).save(file.parent.parent / f"images/p{i + 1}.png")
    lines = problems(file)
    assert "images[3].id: is not an image id; found p4.png; expected an object with an integer id" in lines
    assert "annotations[3]: is not an annotation; found annotation; expected an object" in lines
    assert "annotations[4].id: is not an annotation id; found None; expected an integer" in lines


def test_duplicate_ids(document: dict[str, Any], write: Write) -> None:
    document["annotations"][2]["id"] = 5
    file = write(document)
    document["images"][2]["id"] = 10
    file.write_text(json.dumps(document))
    assert problems(file) == [
        "images[2] (id 10).id: is a duplicate; found 10",
        "annotations[2] (id 5).id: is a duplicate; found 5",
    ]
    dataset = load_coco(file, skip_bad=True)
    assert dataset.image_ids == (10, 20) and len(dataset.target(0)) == 1


def test_class_that_the_training_set_lacks(document: dict[str, Any], write: Write) -> None:
    (line,) = problems(write(document), classes=Classes.named(["cat", "dog"]))
    assert line.endswith("category_id: is no class of the training set; found 7; expected one of cat, dog")


def test_no_class_of_the_training_set(document: dict[str, Any], write: Write) -> None:
    """One line, not one for each annotation, and nothing that could be left out."""
    file = write(document)
    for skip_bad in (False, True):
        with pytest.raises(
            InputError, match=r"categories: has no class of the training set; found .*; expected one of"
        ) as caught:
            load_coco(file, classes=Classes.named(["lemon", "lime"]), skip_bad=skip_bad)
        assert str(file) in str(caught.value) and not isinstance(caught.value, InputErrors)


@pytest.mark.parametrize("name", ["p1.png", "./p1.png"])
def test_one_picture_with_two_ids(document: dict[str, Any], write: Write, name: str) -> None:
    """Split by id, it could be learned from and judged by."""
    document["images"][1]["file_name"] = name
    file = write(document)
    assert problems(file) == [
        f"images[1] (id 20).file_name: is the file of image id 10 too; found {name}; expected one id for each picture"
    ]
    assert load_coco(file, skip_bad=True).image_ids == (10, 30)


def test_problems_are_collected_and_counted(document: dict[str, Any], write: Write) -> None:
    document["annotations"][0] |= {"bbox": [1, 1, 0, 0], "segmentation": [[1, 2, 3, 4]], "category_id": 1}
    document["annotations"][1] |= {"bbox": [NAN] * 4}
    file = write(document)
    (file.parent.parent / "images/p3.png").unlink()
    with pytest.raises(InputErrors, match=r"the data set has problems \(5\): ") as caught:
        load_coco(file)
    fields = [str(error).removeprefix(f"{file}: ").split(": ")[0] for error in caught.value.errors]
    assert fields == [
        "annotations[0] (id 5).category_id",
        "annotations[0] (id 5).segmentation[0]",
        "annotations[0] (id 5).bbox",
        "annotations[1] (id 6).bbox",
        "images[2] (id 30).file_name",
    ]


# --- one picture ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"width": 0}, "height, width: is not a size; found height 20, width 0; expected positive whole numbers"),
        ({"height": None}, "height, width: is not a size; found height None, width 30"),
        ({"height": 20.5}, "height, width: is not a size"),
        ({"file_name": ""}, "file_name: is not a file name; found ''"),
        ({"file_name": 3}, "file_name: is not a file name; found 3"),
        ({"file_name": "gone.png"}, "file_name: picture is missing; found gone.png; expected a file in "),
        ({"height": 30, "width": 20}, "height, width: differs from the picture's; found (30, 20); expected (20, 30), "),
    ],
)
def test_bad_image_record(document: dict[str, Any], write: Write, change: dict[str, Any], line: str) -> None:
    file = write(document)
    document["images"][0] |= change
    document["annotations"] = [document["annotations"][1]]  # an RLE of another size would be a problem of its own
    file.write_text(json.dumps(document))
    (found,) = problems(file)
    assert found.startswith(f"images[0] (id 10).{line}")
    dataset = load_coco(file, skip_bad=True)
    assert dataset.image_ids == (20, 30) and len(dataset.skipped) == 1


def test_annotations_of_a_bad_picture_go_with_it_silently(document: dict[str, Any], write: Write) -> None:
    file = write(document)
    document["images"][0]["width"] = -1
    file.write_text(json.dumps(document))
    assert len(problems(file)) == 1
    dataset = load_coco(file, skip_bad=True)
    assert [record["id"] for record in dataset.ground_truth()["annotations"]] == [6]


def test_unreadable_and_truncated_pictures(document: dict[str, Any], write: Write, tmp_path: Path) -> None:
    file = write(document)
    (tmp_path / "images/p1.png").write_text("no picture")
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "images/p2.png")
    whole = (tmp_path / "images/p2.png").read_bytes()
    (tmp_path / "images/p2.png").write_bytes(whole[:-200])
    first, second = problems(file)
    assert first == f"{tmp_path}/images/p1.png: is not a picture that can be read"
    assert second.startswith(f"{tmp_path}/images/p2.png: cannot be read, damaged or cut short")
    assert load_coco(file, skip_bad=True).image_ids == (30,)


def test_nothing_left(document: dict[str, Any], write: Write) -> None:
    with pytest.raises(InputError, match="there is no picture to use"):
        load_coco(write(document, pictures=False), skip_bad=True)


def test_annotations_drawn_before_the_exif_turn(document: dict[str, Any], write: Write, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = write(document)
    Image.new("RGB", (30, 20)).save(tmp_path / "images/p1.png", exif=exif)
    (line,) = problems(file)
    assert "differs from the picture's; found (20, 30); expected (30, 20)" in line and "EXIF" in line
