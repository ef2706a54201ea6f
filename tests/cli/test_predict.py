"""Pictures in; overlays and COCO records out."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskrcnn.cli.main import main
from maskrcnn.cli.predict import overlay_names, record_file


def predict(*args: object) -> int:
    return main(["predict", *map(str, args), "--device", "cpu"])


def test_a_folder(weights: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert predict(pictures, "--weights", weights, "--out", out, "--score-threshold", 0.0) == 0
    assert sorted(os.listdir(out)) == ["0.png", "1.png", "2.png", "detections.json", "images.json"]
    images = json.loads((out / "images.json").read_text())
    assert [image["file_name"] for image in images] == [str(pictures / f"{i}.png") for i in range(3)]
    assert images[0] == {"id": 1, "file_name": str(pictures / "0.png"), "width": 56, "height": 40}
    records = json.loads((out / "detections.json").read_text())
    assert {record["image_id"] for record in records} == {1, 2, 3}
    assert records[0].keys() == {"image_id", "category_id", "bbox", "score", "segmentation"}
    assert records[0]["segmentation"]["size"] == [40, 56]
    assert f"3 pictures, {len(records)} detections" in capsys.readouterr().out
    with Image.open(out / "0.png") as overlay:
        assert overlay.size == (56, 40)


def test_records_are_what_the_python_face_gives(weights: Path, pictures: Path, tmp_path: Path) -> None:
    from maskrcnn import load

    assert predict(pictures / "1.png", "--weights", weights, "--out", tmp_path / "out", "--max-detections", 5) == 0
    records = json.loads((tmp_path / "out" / "detections.json").read_text())
    found = load(weights, device="cpu").predict(pictures / "1.png", max_detections=5)
    assert records == json.loads(json.dumps(found.coco(1)))


def test_the_draw_threshold_leaves_the_records_alone(weights: Path, pictures: Path, tmp_path: Path) -> None:
    common = (pictures / "0.png", "--weights", weights, "--score-threshold", 0.0)
    assert predict(*common, "--out", tmp_path / "none", "--draw-threshold", 1.0) == 0
    assert predict(*common, "--out", tmp_path / "all", "--draw-threshold", 0.0) == 0
    plain, drawn = (np.asarray(Image.open(tmp_path / name / "0.png")) for name in ("none", "all"))
    assert np.array_equal(plain, np.asarray(Image.open(pictures / "0.png")))
    assert not np.array_equal(plain, drawn)
    texts = [(tmp_path / name / "detections.json").read_text() for name in ("none", "all")]
    assert texts[0] == texts[1]


def test_nothing_found_is_an_empty_list(weights: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert predict(pictures, "--weights", weights, "--out", out, "--score-threshold", 1.0, "--no-overlays") == 0
    assert sorted(os.listdir(out)) == ["detections.json", "images.json"]
    assert json.loads((out / "detections.json").read_text()) == []
    assert len(json.loads((out / "images.json").read_text())) == 3


def test_it_goes_on_past_bad_files(
    weights: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "0a.png").write_bytes(b"no picture")
    (pictures / "1a.png").write_bytes((pictures / "1.png").read_bytes()[:200])
    out = tmp_path / "out"
    assert predict(pictures, "--weights", weights, "--out", out, "--batch-size", 2) == 1
    errors = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in errors] == ["error", "error"]
    assert "0a.png" in errors[0] and "1a.png" in errors[1]
    assert [image["id"] for image in json.loads((out / "images.json").read_text())] == [1, 3, 5]


def test_an_empty_folder(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert predict(tmp_path / "empty", "--weights", weights, "--out", tmp_path / "out") == 1
    assert "empty: holds no picture" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="file names are text there")
def test_a_file_name_that_is_no_text(weights: Path, pictures: Path, tmp_path: Path) -> None:
    odd = pictures / os.fsdecode(b"caf\xe9.png")  # latin-1, as old archives hold it
    (pictures / "0.png").rename(odd)
    assert predict(odd, "--weights", weights, "--out", tmp_path / "out") == 0
    (image,) = json.loads((tmp_path / "out" / "images.json").read_text(encoding="utf-8"))
    assert os.fsencode(image["file_name"]) == os.fsencode(odd)
    assert (tmp_path / "out" / odd.name).exists()


@pytest.mark.parametrize("place", ["a_file", "a_file/out"])
def test_a_place_that_is_no_folder(
    place: str, weights: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a_file").write_text("mine")
    assert predict(pictures, "--weights", weights, "--out", tmp_path / place) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / place}: --out: ")
    assert (tmp_path / "a_file").read_text() == "mine"


@pytest.mark.parametrize("threshold", ["nan", "-0.1", "1.1"])
def test_a_draw_threshold_out_of_range(
    threshold: str, weights: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = (pictures, "--weights", weights, "--out", tmp_path / "out", "--draw-threshold", threshold)
    assert predict(*given) == 2
    assert capsys.readouterr().err.startswith("error: --draw-threshold: impossible value; found ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--max-detections", 10**20),
        ("--proposals", 0),
        ("--batch-size", 10**20),
        ("--size", 10**9),
        ("--nms-iou", 2),
        ("--mask-nms-iou", "nan"),
        ("--score-threshold", -1),
    ],
)
def test_values_out_of_range_are_the_options(
    option: str, value: object, weights: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(pictures, "--weights", weights, "--out", tmp_path / "out", option, value) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {option}: impossible value; found ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--max-detections", "--proposals"])
def test_all_that_there_are_can_be_asked_for(option: str, weights: Path, pictures: Path, tmp_path: Path) -> None:
    """Far more than there could be take no memory."""
    assert predict(pictures / "0.png", "--weights", weights, "--out", tmp_path / "out", option, 10**9) == 0


@pytest.mark.parametrize("missing", ["pictures", "--weights", "--out"])
def test_what_must_be_given(missing: str, weights: Path, pictures: Path, tmp_path: Path) -> None:
    given = {"pictures": [pictures], "--weights": ["--weights", weights], "--out": ["--out", tmp_path / "out"]}
    assert predict(*(word for name, words in given.items() if name != missing for word in words)) == 2


def test_weights_that_are_none(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(pictures, "--weights", "nucleus", "--out", tmp_path / "out") == 1
    assert "error: weights: no such weights; found nucleus" in capsys.readouterr().err
    assert predict(pictures, "--weights", pictures / "0.png", "--out", tmp_path / "out") == 1
    assert "0.png: not a readable checkpoint: unknown format" in capsys.readouterr().err


def test_pictures_are_never_overwritten(
    weights: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (pictures / "0.png").read_bytes()
    assert predict(pictures, "--weights", weights, "--out", pictures) == 1
    assert "--out: is where the pictures are" in capsys.readouterr().err
    assert (pictures / "0.png").read_bytes() == before


def test_one_name_in_two_folders(weights: Path, pictures: Path, tmp_path: Path) -> None:
    other = shutil.copytree(pictures, tmp_path / "other")
    assert predict(pictures, other, pictures / "0.png", "--weights", weights, "--out", tmp_path / "out") == 0
    names = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert names == ["0-2.png", "0.png", "1-2.png", "1.png", "2-2.png", "2.png"]


def test_overlay_names() -> None:
    assert overlay_names([]) == {}
    paths = [Path("a/x.png"), Path("a/x.jpg"), Path("a/X-2.png"), Path("b/X.png")]
    assert list(overlay_names(paths).values()) == ["x.png", "x-2.png", "X-2-2.png", "X-3.png"]


def test_records_appear_when_all_are_written(tmp_path: Path) -> None:
    path = tmp_path / "detections.json"
    with record_file(path) as write:
        write([{"image_id": 1}])
        write([])
        write([{"image_id": 2}, {"image_id": 2}])
        assert not path.exists()
    assert json.loads(path.read_text()) == [{"image_id": 1}, {"image_id": 2}, {"image_id": 2}]
    with pytest.raises(KeyboardInterrupt), record_file(path) as write:
        write([{"image_id": 9}])
        raise KeyboardInterrupt
    assert len(json.loads(path.read_text())) == 3
    assert os.listdir(tmp_path) == [path.name]
