"""Curves, pictures and the page of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from maskrcnn.data.shapes import ShapesDataset
from maskrcnn.evaluation.evaluate import evaluate
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.predictor import Predictor
from maskrcnn.training.report import (
    _draw_smoothed,
    _parts,
    compare,
    draw_curves,
    draw_pictures,
    smoothed,
    write_page,
)


def log(folder: Path, lines: list[dict[str, Any]]) -> None:
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("steps", [0, 1, 200])
def test_curves_of_any_length(tmp_path: Path, steps: int) -> None:
    parts = dict.fromkeys(("rpn_objectness", "rpn_box", "box_class", "box_delta", "mask"), 0.5)
    lines: list[dict[str, Any]] = [{"event": "start", "step": 0}]
    for step in range(1, steps + 1):
        lines.append({"event": "train", "step": step, "total": 50 / step, "learning_rate": 0.1, **parts})
        if step % 50 == 0:
            scores = {"mask_ap": step / 400, "mask_ap50": step / 300, "box_ap": None, "loss_total": 1.0}
            lines.append({"event": "validation", "step": step, "best": step < 150, **scores})
    log(tmp_path, lines)
    path = draw_curves(tmp_path)
    with Image.open(path) as picture:
        assert picture.size[0] > 1000
        assert np.asarray(picture).std() > 5
    assert [file.name for file in tmp_path.iterdir() if file.suffix == ".png"] == ["curves.png"]


def test_every_loss_of_a_cascade_has_its_curve() -> None:
    line = {
        "event": "train",
        "step": 1,
        "total": 1.0,
        "rpn_box": 1.0,
        "box_class": 1.0,
        "box_class_2": 1.0,
        "mask": 1.0,
    }
    expected = [
        ("rpn_box", "RPN: anchor to box"),
        ("box_class", "box head: class"),
        ("box_class_2", "box head: class, stage 2"),
        ("mask", "mask head"),
    ]
    assert _parts([line, line]) == expected
    assert _parts([]) == []


def test_a_single_point_shows() -> None:
    axes = Figure().subplots()
    _draw_smoothed(axes, [{"step": 1, "total": 2.0}], "total", "training", "tab:blue")
    assert [line.get_marker() for line in axes.lines] == ["None", "o"]
    axes.clear()
    _draw_smoothed(axes, [{"step": 1, "total": 2.0}, {"step": 2, "total": 1.0}], "total", "training", "tab:blue")
    assert axes.lines[1].get_marker() == ""


def test_the_moving_average() -> None:
    assert smoothed([3.0] * 50) == pytest.approx([3.0] * 50)
    assert smoothed([1.0, 2.0]) == [1.0, 2.0]  # so few are shown as they are
    noise = np.random.default_rng(0).normal(5, 1, 400)
    assert np.std(smoothed(noise.tolist())[50:]) < 0.3
    assert smoothed([]) == []


@pytest.fixture
def predictor(tiny_config: MaskRCNNConfig) -> Predictor:
    """It finds something everywhere: scores are of no use yet."""
    torch.manual_seed(0)
    model = MaskRCNN(tiny_config)
    with torch.no_grad():
        assert model.box_head.classes.bias is not None
        model.box_head.classes.bias[2] = 3.0
    return Predictor(model, "cpu")


def test_truth_beside_detections(predictor: Predictor, shapes: Any) -> None:
    picture = compare(predictor, shapes[1], 0)
    assert picture.dtype == np.uint8
    height, width = picture.shape[:2]
    assert height > 400 and width > 2 * 400  # small pictures are enlarged
    left, right = picture[:, : width // 2], picture[:, -(width // 2) :]
    assert not np.array_equal(left[-400:, -400:], right[-400:, -400:])


def test_large_pictures_keep_their_size(predictor: Predictor) -> None:
    large = ShapesDataset(1, size=(420, 500))
    assert compare(predictor, large, 0).shape[1] in range(1000, 1020)


def test_pictures_are_spread_and_named(predictor: Predictor, tmp_path: Path) -> None:
    paths = draw_pictures(tmp_path, predictor, ShapesDataset(9, size=(32, 32)), count=3)
    names = ["1-shapes-0-00000.png", "2-shapes-0-00004.png", "3-shapes-0-00008.png"]
    assert [path.name for path in paths] == names
    assert sorted(path.name for path in (tmp_path).iterdir()) == names


def test_the_page_names_what_is_there(predictor: Predictor, shapes: Any, tmp_path: Path) -> None:
    scores = evaluate(predictor.predict, shapes[1], max_detections=(100, 300))
    for name in ("best.safetensors", "config.json", "epoch-0003.safetensors"):
        (tmp_path / name).touch()
    page = write_page(tmp_path, {"classes": "a, b"}, scores, [tmp_path / "validation" / "1-x.png"]).read_text()
    assert page.startswith(f"# Run {tmp_path.name}\n\n- **classes**: a, b\n")
    assert "| masks | 100 |" in page and "| boxes | 300 |" in page and "| circle |" in page
    assert "![1-x](validation/1-x.png)" in page
    assert "| `best.safetensors` |" in page and "| `epoch-*.safetensors` |" in page
    assert "last.safetensors" not in page
