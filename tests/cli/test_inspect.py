"""A picture in; figures, counts, a report and the fate of every object out."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import maskrcnn
from maskrcnn.cli.inspect import file_name, ground_truth
from maskrcnn.cli.main import main
from maskrcnn.data.classes import Classes
from maskrcnn.errors import InputError

PICTURES = Path(maskrcnn.__file__).parent / "demo_pictures"
CLASSES = Classes(("circle", "square", "triangle"), (1, 2, 3))


def inspect(*args: object) -> int:
    return main(["inspect", *map(str, args), "--device", "cpu"])


def test_the_shipped_detector_on_a_real_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, picture = tmp_path / "out", PICTURES / "touching.png"
    words = ("--weights", "nuclei", "--ground-truth", PICTURES / "instances.json", "--trace", "--max-detections", 25)
    assert inspect(picture, *words, "--out", out) == 0
    shown = capsys.readouterr().out

    document = json.loads((PICTURES / "instances.json").read_text())
    (image,) = [image for image in document["images"] if image["file_name"] == "touching.png"]
    objects = [record for record in document["annotations"] if record["image_id"] == image["id"]]
    trace = json.loads((out / "trace.json").read_text())
    assert [record["id"] for record in trace["objects"]] == list(range(len(objects)))
    lost = [record for record in trace["objects"] if not record["found"]]
    assert len(lost) >= len(objects) - 25 > 0  # no more can be found than there are detections
    assert f"{len(objects)} objects: {len(objects) - len(lost)} found, {len(lost)} lost (" in shown
    for record in lost:
        assert re.search(rf"^│ {record['id']} nucleus +│", shown, re.M)

    found = maskrcnn.load("nuclei", device="cpu").predict(picture, max_detections=25)
    stages = json.loads((out / "steps.json").read_text())["stages"]
    assert stages["result"]["detections"] == len(found) == 25
    assert all(isinstance(value, int | str) for counts in stages.values() for value in counts.values())

    report = (out / "report.html").read_text(encoding="utf-8")
    embedded = json.loads(re.search(r'<script type="application/json" id="trace">(.*?)</script>', report, re.S)[1])  # type: ignore[index]
    assert embedded["objects"] == trace["objects"]
    figures = {figure["name"] for figure in embedded["figures"]}
    assert {path.stem for path in out.glob("*.png")} == figures and len(figures) > 10
    assert sorted(os.listdir(out)) == sorted(
        [*(f"{name}.png" for name in figures), "report.html", "steps.json", "trace.json"]
    )
    with Image.open(out / "result.png") as result:
        assert result.mode == "RGB" and min(result.size) > 200


def test_no_trace_of_an_earlier_picture_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, picture = tmp_path / "truth.json", tmp_path / "small.png"
    Image.new("RGB", (40, 30)).save(picture)
    image = {"id": 1, "file_name": "small.png", "width": 40, "height": 30}
    categories = [{"id": 1, "name": "nucleus"}]
    truth.write_text(json.dumps({"images": [image], "annotations": [], "categories": categories}))
    assert inspect(picture, "--weights", "nuclei", "--ground-truth", truth, "--trace", "--out", tmp_path / "out") == 0
    assert (tmp_path / "out" / "trace.json").is_file()
    assert "┃" not in capsys.readouterr().out  # no table of nothing
    assert inspect(picture, "--weights", "nuclei", "--out", tmp_path / "out") == 0
    assert not (tmp_path / "out" / "trace.json").exists()


def test_layers_and_weights_are_drawn_where_asked_for(
    weights: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskrcnn.inspection.figures.figures", lambda steps, fates: [])  # the rest takes seconds
    out = tmp_path / "out"
    words = ("--weights", weights, "--out", out, "--layers", "fpn", "rpn.objectness", "--weight-histograms")
    assert inspect(pictures / "0.png", *words) == 0
    names = {path.stem for path in out.glob("*.png")}
    assert {"layer_fpn_p2", "layer_fpn_p5", "layer_rpn.objectness", "weights_overview"} <= names
    assert not (out / "trace.json").exists()


def test_a_layer_that_is_none_is_one_line(
    weights: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect(pictures / "0.png", "--weights", weights, "--out", tmp_path / "out", "--layers", "nose") == 2
    error = capsys.readouterr().err
    assert "nose" in error and error.count("\n") == 1
    assert not list((tmp_path / "out").glob("*"))  # nothing half written


@pytest.mark.parametrize(
    ("layer", "name"),
    [("fpn[p2]", "fpn_p2"), ("rpn.objectness (2)", "rpn.objectness_2"), ("a/../b", "a_.._b"), ("x:y*?", "x_y")],
)
def test_names_of_layers_become_names_of_files(layer: str, name: str) -> None:
    assert file_name(layer) == name


def test_a_trace_without_ground_truth_is_wrong_use(
    weights: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect(pictures / "0.png", "--weights", weights, "--out", tmp_path / "out", "--trace") == 2
    line = "--trace: cannot be traced without ground truth; expected --ground-truth JSON too"
    assert capsys.readouterr().err == f"error: {line}\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("picture", "words", "status", "line"),
    [
        ("none.png", (), 1, "none.png: no such file"),
        ("0.png", ("--ground-truth", "none.json"), 1, "none.json: no such file"),
        ("0.png", ("--score-threshold", "2"), 2, "--score-threshold: impossible value; found 2"),
        ("0.png", ("--size", "0"), 2, "--size: impossible value; found 0"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(
    picture: str,
    words: tuple[str, ...],
    status: int,
    line: str,
    weights: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert inspect(pictures / picture, "--weights", weights, "--out", tmp_path / "out", *words) == status
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1
    assert not list(tmp_path.glob("out/*"))


def changed(dataset: Path, change: Callable[[Any], None]) -> Path:
    document = json.loads(dataset.read_text())
    change(document)
    dataset.write_text(json.dumps(document))
    return dataset


def truth(dataset: Path, picture: Path, skip_bad: bool = False) -> Any:
    height, width = np.asarray(Image.open(picture)).shape[:2]
    return ground_truth(dataset, picture, (height, width), CLASSES, skip_bad)


def test_the_objects_are_those_of_the_picture(dataset: Path, pictures: Path) -> None:
    target = truth(dataset, pictures / "1.png")
    assert target.image_id == 2 and target.size == (48, 48)
    assert target.gt_boxes.tolist() == [[10, 10, 30, 25]] and target.gt_labels.tolist() == [2]


def test_labels_are_the_detectors_by_name(dataset: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def other(document: Any) -> None:
        document["categories"] = [{"id": 7, "name": "Triangle "}, {"id": 9, "name": "star"}]
        document["annotations"] = [
            {**document["annotations"][0], "id": i, "category_id": c} for i, c in enumerate((7, 9, 7), start=1)
        ]

    target = truth(changed(dataset, other), pictures / "0.png")
    assert target.gt_labels.tolist() == [3, 3] and len(target.gt_masks) == 2
    assert capsys.readouterr().err == "left out: 1 objects of classes that the detector does not have\n"


def test_a_detector_of_other_classes_is_refused(dataset: Path, pictures: Path) -> None:
    def other(document: Any) -> None:
        for category in document["categories"]:
            category["name"] += "s"

    with pytest.raises(InputError, match="not one class of the detector is in the data set"):
        truth(changed(dataset, other), pictures / "0.png")


def test_a_file_that_does_not_hold_the_picture(dataset: Path, pictures: Path) -> None:
    (pictures / "0.png").rename(pictures / "x.png")
    expected = f"{dataset}: images: does not hold the picture; found 3 others; expected a picture called x.png"
    with pytest.raises(InputError, match=f"^{re.escape(expected)}$"):
        truth(dataset, pictures / "x.png")


def test_a_picture_of_another_size(dataset: Path, pictures: Path) -> None:
    def other(document: Any) -> None:
        document["images"][0]["width"] = 57

    with pytest.raises(InputError) as caught:
        truth(changed(dataset, other), pictures / "0.png")
    place = f"{dataset}: images[0] (id 1).height, width"
    expected = f"(40, 56), the size of {pictures / '0.png'}"
    assert str(caught.value) == f"{place}: differs from the picture's; found (40, 57); expected {expected}"


def test_of_several_pictures_of_a_name_the_folder_decides(dataset: Path, pictures: Path) -> None:
    def other(document: Any) -> None:
        for image, name in zip(document["images"], ("a/0.png", "pictures/0.png", "b/pictures/0.png"), strict=True):
            image |= {"file_name": name, "height": 40, "width": 56}

    assert truth(changed(dataset, other), pictures / "0.png").image_id == 2


def test_several_pictures_that_could_be_meant(dataset: Path, pictures: Path) -> None:
    def other(document: Any) -> None:
        for image, name in zip(document["images"], ("a/0.png", "b/0.png", "1.png"), strict=True):
            image |= {"file_name": name}

    with pytest.raises(InputError, match=r"images: holds several pictures called 0.png; found images\[0\]"):
        truth(changed(dataset, other), pictures / "0.png")


def test_annotations_with_problems_are_refused_or_left_out(dataset: Path, pictures: Path) -> None:
    def other(document: Any) -> None:
        bad = {**document["annotations"][0], "id": 9, "bbox": [1, 1, -5, 5]}
        document["annotations"].append(bad)

    changed(dataset, other)
    with pytest.raises(InputError, match=r"annotations\[3\]"):
        truth(dataset, pictures / "0.png")
    assert len(truth(dataset, pictures / "0.png", skip_bad=True)) == 1


def test_a_picture_without_objects(dataset: Path, pictures: Path) -> None:
    def other(document: Any) -> None:
        document["annotations"] = document["annotations"][1:]

    assert len(truth(changed(dataset, other), pictures / "0.png")) == 0
