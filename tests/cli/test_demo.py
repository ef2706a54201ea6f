"""`maskrcnn demo`, and the weights that ship with the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import maskrcnn
from maskrcnn.cli.main import main
from maskrcnn.weights.files import bundled, read_checkpoint


def summary_of(out: Path) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads((out / "summary.json").read_text())
    return found


def test_the_shipped_weights_say_what_they_are() -> None:
    path = bundled("nuclei")
    assert path.stat().st_size <= 12e6
    checkpoint = read_checkpoint(path)
    assert checkpoint.config.class_names == ("nucleus",)
    detection = checkpoint.config.detection
    assert (detection.max_detections, detection.score_threshold) == (400, 0.05)
    assert checkpoint.metadata["licence"] == "Apache-2.0" and "BBBC038" in checkpoint.metadata["source"]


def test_nuclei_of_real_pictures_are_found(tmp_path: Path) -> None:
    assert main(["demo", "--out", str(tmp_path), "--minutes", "0", "--device", "cpu"]) == 0
    summary = summary_of(tmp_path)
    assert summary["nuclei"]["mask_ap"] >= 0.5 and summary["mask_ap"] == {"nuclei": summary["nuclei"]["mask_ap"]}
    pictures = [tmp_path / name for name in summary["pictures"]]
    assert len(pictures) == 8 and all(path.is_file() for path in pictures)


def test_what_an_earlier_demo_left_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "nuclei").mkdir()
    (tmp_path / "nuclei" / "old.png").write_text("old")
    (tmp_path / "mine.txt").write_text("mine")
    for minutes in ("-1", "nan", "inf"):
        assert main(["demo", "--out", str(tmp_path), "--minutes", minutes]) == 2
    assert (tmp_path / "nuclei" / "old.png").exists()
    assert main(["demo", "--out", str(tmp_path), "--minutes", "0", "--device", "cpu"]) == 0
    assert not (tmp_path / "nuclei" / "old.png").exists() and (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.slow
def test_the_demo_learns_drawn_shapes(tmp_path: Path) -> None:
    assert main(["demo", "--out", str(tmp_path), "--minutes", "0.5", "--device", "cpu"]) == 0
    summary = summary_of(tmp_path)
    assert summary["mask_ap"].keys() == {"nuclei", "shapes"} and summary["shapes"]["mask_ap50"] > 0
    assert len(summary["pictures"]) >= 14
    run = tmp_path / "shapes"
    assert maskrcnn.load(run / "best.safetensors").class_names == ("circle", "square", "triangle")
    assert (run / "README.md").is_file() and (run / "curves.png").is_file()
