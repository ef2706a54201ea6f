"""Labelled pictures in; scores and curves out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskrcnn.cli.main import main


def evaluate(*args: object) -> int:
    return main(["evaluate", *map(str, args), "--device", "cpu"])


def test_scores_of_a_file(
    weights: Path, dataset: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert evaluate(dataset, "--weights", weights, "--images", pictures, "--out", out, "--max-detections", 10, 200) == 0
    scores = json.loads((out / "scores.json").read_text())
    records = json.loads((out / "detections.json").read_text())
    assert {record["image_id"] for record in records} <= {1, 2, 3}
    assert list(out.glob("*.png"))
    shown = capsys.readouterr().out
    assert "square" in shown
    assert "3 pictures" in shown
    assert scores == json.loads(json.dumps(scores, allow_nan=False))


def test_a_detector_of_other_classes(
    weights: Path, dataset: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads(dataset.read_text())
    for category in document["categories"]:
        category["name"] += " of another kind"
    dataset.write_text(json.dumps(document))
    assert evaluate(dataset, "--weights", weights, "--images", pictures, "--out", tmp_path / "out") == 1
    assert "not one class of the detector is in the data set" in capsys.readouterr().err


def test_data_with_problems_is_refused_or_skipped(
    weights: Path, dataset: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "1.png").unlink()
    common = (dataset, "--weights", weights, "--images", pictures, "--out", tmp_path / "out")
    assert evaluate(*common) == 1
    error = capsys.readouterr().err
    lines = error.splitlines()  # one for each problem, then their number
    assert lines[0].startswith("error: ") and "1.png" in lines[0]
    assert lines[1:] == ["error: the data set has problems: 1"]
    assert evaluate(*common, "--skip-bad") == 0
    told = capsys.readouterr()
    assert "2 pictures" in told.out and "left out: " in told.err and "1.png" in told.err


@pytest.mark.parametrize("content", ["{", "[]", '{"images": 3}'])
def test_data_that_is_no_data_set(
    content: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "odd.json"
    path.write_text(content)
    assert evaluate(path, "--weights", weights, "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "odd.json" in error and error.count("\n") == 1


def test_data_that_is_missing(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(tmp_path / "none", "--weights", weights, "--out", tmp_path / "out") == 1
    assert "none: no such file" in capsys.readouterr().err
    assert evaluate("--weights", weights, "--out", tmp_path / "out") == 2


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--score-threshold", "nan"], "--score-threshold: impossible value; found nan; expected a number from 0 to 1"),
        (["--score-threshold", "1.5"], "--score-threshold: impossible value; found 1.5; expected a number from 0 to 1"),
        (["--max-detections"], "--max-detections: impossible value; found none; expected one or more whole numbers"),
        (["--max-detections", "100", "0"], "--max-detections: impossible value; found 100 0; expected one or more"),
    ],
)
def test_options_out_of_range(
    words: list[str], error: str, weights: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(dataset, "--weights", weights, "--out", tmp_path / "out", *words) == 2
    assert capsys.readouterr().err.startswith(f"error: {error}")
    assert not (tmp_path / "out").exists()


def test_a_place_that_is_no_folder_is_found_before_the_work(
    weights: Path,
    dataset: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("maskrcnn.api.evaluate", lambda *args, **options: pytest.fail("the work was done"))
    (tmp_path / "out").write_text("mine")
    assert evaluate(dataset, "--images", pictures, "--weights", weights, "--out", tmp_path / "out") == 1
    assert capsys.readouterr().err == (
        f"error: {tmp_path / 'out'}: --out: is not a folder; expected a folder, or a new name\n"
    )


def test_tables_fit_80_columns(
    weights: Path,
    dataset: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert evaluate(dataset, "--images", pictures, "--weights", weights, "--out", tmp_path / "out") == 0
    shown = capsys.readouterr().out
    assert "overlap" in shown and "precision" in shown and "…" not in shown


def test_why(weights: Path, dataset: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = (dataset, "--weights", weights, "--images", pictures, "--max-detections", 200)
    assert evaluate(*common, "--out", tmp_path / "plain") == 0
    assert "what may help" not in capsys.readouterr().out
    assert not (tmp_path / "plain" / "why.json").exists()
    assert evaluate(*common, "--out", tmp_path / "told", "--why") == 0
    shown = capsys.readouterr().out
    assert "what may help" in shown and "detection_nms" in shown
    why = json.loads((tmp_path / "told" / "why.json").read_text())
    scores = json.loads((tmp_path / "told" / "scores.json").read_text())
    assert why["objects"] == scores["objects"] == why["found"] + sum(why["lost"].values())
    assert why["detections"] == scores["detections"] == why["found"] + sum(why["false_positives"].values())
    same = [(tmp_path / name / "detections.json").read_text() for name in ("plain", "told")]
    assert same[0] == same[1]
