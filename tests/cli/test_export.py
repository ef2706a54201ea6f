"""`maskrcnn export`: what it prints, and wrong use in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskrcnn.cli.main import main
from maskrcnn.export import exporting
from maskrcnn.export.core import Shape, facts_of
from maskrcnn.export.verify import Differences
from maskrcnn.model.limits import Limits
from maskrcnn.weights.files import bundled, read_checkpoint


def test_says_what_was_written_and_how_far_it_is_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {}

    def exported(model, to, out, *, shape, limits, licence, source, pictures):  # type: ignore[no-untyped-def]
        asked.update(to=to, shape=shape, limits=limits, licence=licence)
        out.write_bytes(bytes(2_500_000))
        facts = facts_of(model, to, shape, limits, licence=licence, source=source)
        return exporting.Exported(out, facts, Differences(pictures=3, detections=40, boxes=2e-5))

    monkeypatch.setattr(exporting, "export_detector", exported)
    out = tmp_path / "new" / "cells.onnx"
    options = ["--size", "500x512", "--batch", "any", "--max-detections", "50"]
    assert main(["export", "nuclei", "--to", "onnx", "--out", str(out), *options]) == 0
    printed = capsys.readouterr().out
    assert f"{out}: 2.5 MB, onnx, 512x512 px, any number of pictures, " in printed and " 50 detections" in printed
    assert "verified: 3 pictures, 40 detections, largest difference: boxes 2.0e-05 px" in printed
    assert asked["shape"] == Shape(size=(500, 512), batch=None) and asked["limits"] == Limits(max_detections=50)
    assert asked["licence"] == read_checkpoint(bundled("nuclei")).metadata["licence"]


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--to", "onnx", "--out", "a.pt2"], 1, "a.pt2: --out: does not fit --to onnx; found .pt2; expected .onnx"),
        (["--to", "onnx", "--out", "a.onnx", "--size", "800"], 2, "--size: is no size; found 800"),
        (["--to", "onnx", "--out", "a.onnx", "--size", "0x5"], 2, "--size: is no size; found 0x5"),
        (["--to", "onnx", "--out", "a.onnx", "--batch", "0"], 2, "--batch: is no number of pictures; found 0"),
        (["--to", "onnx", "--out", "a.onnx", "--nms-iou", "3"], 2, "--nms-iou: impossible value; found 3"),
        (["--to", "tflite", "--out", "a.onnx"], 2, "tflite"),
        (["--to", "onnx", "--out", "a.onnx", "--pictures", "none.png"], 1, "none.png: no such file"),
    ],
)
def test_wrong_use_is_one_line(
    options: list[str],
    status: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", "nuclei", *options]) == status
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_unknown_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "nothing-like-it", "--to", "onnx", "--out", str(tmp_path / "a.onnx")]) == 1
    assert "no such weights" in capsys.readouterr().err
