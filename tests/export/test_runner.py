"""The runner on a network that is made up: options, streams, placing; and that none of it needs torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn.api import evaluate
from maskrcnn.errors import InputError
from maskrcnn.export.facts import Facts
from maskrcnn.export.opening import ExportedDetector
from maskrcnn.export.runner import Runner, open_file
from maskrcnn.inspection.why import Reasons
from maskrcnn.model.detection_config import DetectionConfig
from maskrcnn.model.preprocess_config import PreprocessConfig
from maskrcnn.structures import Target

FACTS = Facts(
    target="onnx",
    class_names=("cat", "dog"),
    category_ids=(3, 9),
    preprocess=PreprocessConfig(scale=2.0, shortest=None, longest=None),
    detection=DetectionConfig(score_threshold=0.1, max_detections=4),
    outputs=("boxes", "scores", "labels", "valid", "masks"),
    proposals=50,
    batch=None,
)


def session(pixels: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
    """Three of four rows are filled: a cat top left, a dog, and another cat that reaches beyond the picture."""
    count = len(pixels)
    boxes = np.array([[8, 8, 40, 28], [20, 10, 60, 50], [0, 0, 2000, 2000], [0, 0, 0, 0]], dtype=np.float32)
    masks = np.zeros((4, 28, 28), dtype=np.float32)
    masks[:, 7:21, 7:21] = 0.9
    scores = np.array([0.9, 0.6, 0.2, 0.0], dtype=np.float32)
    one = {
        "boxes": boxes,
        "scores": scores,
        "labels": np.array([1, 2, 1, 0]),
        "valid": np.array([True, True, True, False]),
        "masks": masks,
    }
    return {name: np.stack([values] * count) for name, values in one.items()}


@pytest.fixture
def runner() -> Runner:
    return Runner(session, FACTS, "made-up.onnx")


PICTURE = np.zeros((40, 50, 3), dtype=np.uint8)


def test_boxes_lie_in_the_picture_as_given(runner: Runner) -> None:
    found = runner.predict(PICTURE)
    assert found.boxes.tolist() == [[4, 4, 20, 14], [10, 5, 30, 25], [0, 0, 50, 40]]
    assert found.names == ("cat", "dog", "cat") and found.category_ids == (3, 9, 3)
    assert found.size == (40, 50) and found.labels.tolist() == [1, 2, 1]
    assert isinstance(found.boxes, np.ndarray) and isinstance(found.masks.bitmaps(), np.ndarray)


def test_masks_become_rles_bitmaps_and_polygons(runner: Runner) -> None:
    masks = runner.predict(PICTURE).masks
    bitmaps = masks.bitmaps()
    assert bitmaps.shape == (3, 40, 50)
    assert bitmaps[0].any() and not bitmaps[0][:, :4].any() and bitmaps[0][9, 12]
    assert [rle["size"] for rle in masks.rle()] == [[40, 50]] * 3
    assert [len(rings) for rings in masks.polygons()] == [1, 1, 1]


def test_files_are_saved(runner: Runner, tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    found = runner.predict(tmp_path / "a.png")
    assert found.source == str(tmp_path / "a.png")
    with Image.open(found.save(tmp_path / "out.png")) as drawn:
        assert drawn.size == (50, 40)
    assert '"category_name": "dog"' in found.save(tmp_path / "out.json").read_text()


def test_a_call_may_narrow_what_was_recorded(runner: Runner) -> None:
    assert len(runner.predict(PICTURE, score_threshold=0.5)) == 2
    assert len(runner.predict(PICTURE, max_detections=1)) == 1
    assert len(runner.predict(PICTURE, score_threshold=1.0)) == 0
    assert runner.predict(PICTURE, score_threshold=1.0).masks.rle() == []
    assert len(runner.predict(PICTURE, nms_iou=0.5, proposals=50, class_agnostic_nms=False)) == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"nms_iou": 0.4}, "nms_iou: is settled in the exported file; found 0.4; expected 0.5"),
        ({"proposals": 100}, "proposals: is settled in the exported file; found 100; expected 50"),
        ({"class_agnostic_nms": True}, "class_agnostic_nms: is settled"),
        ({"score_threshold": 0.05}, "score_threshold: is below the exported file's; found 0.05; expected at least 0.1"),
        ({"max_detections": 5}, "max_detections: is above the exported file's; found 5; expected at most 4"),
        ({"score_threshold": 7}, "score_threshold: impossible value"),
        ({"batch_size": 0}, "batch_size: impossible value"),
    ],
)
def test_what_the_file_has_settled_is_refused(runner: Runner, options: dict[str, float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        runner.predict(PICTURE, **options)


def test_masks_that_overlap_are_one_object_where_asked() -> None:
    def twice(pixels: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
        outputs = session(pixels, sizes)
        outputs["boxes"][:, 1] = outputs["boxes"][:, 0]
        outputs["labels"][:, 1] = 1
        return outputs

    found = Runner(twice, FACTS, "made-up.onnx").predict(PICTURE, mask_nms_iou=0.5)
    assert found.scores.tolist() == pytest.approx([0.9, 0.2])


def test_several_pictures_are_a_stream(runner: Runner, tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(PICTURE).save(tmp_path / name)
    (tmp_path / "d.png").write_bytes(b"no picture")
    errors: list[InputError] = []
    found = list(runner.predict(tmp_path, batch_size=2, on_error=errors.append))
    assert [Path(each.source).name for each in found] == ["a.png", "b.png", "c.png"]
    assert len(errors) == 1 and "d.png" in str(errors[0])
    assert len(list(runner([PICTURE, PICTURE]))) == 2


def test_a_loaded_file_gives_tensors() -> None:
    found = ExportedDetector(session, FACTS, "made-up.onnx").predict(torch.zeros(3, 40, 50, dtype=torch.uint8))
    assert isinstance(found.boxes, torch.Tensor) and found.boxes.dtype == torch.float32
    assert found.labels.dtype == torch.int64
    assert isinstance(found.masks.bitmaps(), torch.Tensor) and len(found.masks.rle()) == 3


def test_resampling_that_needs_torch_is_refused_at_once() -> None:
    strange = replace(FACTS, preprocess=PreprocessConfig(resampling="opencv"))
    with pytest.raises(InputError, match="resampling.*opencv"):
        Runner(session, strange, "made-up.onnx")


@pytest.mark.parametrize("name", ["cells.onnx", "cells.openvino"])
def test_files_that_are_none_are_one_line(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime" if name.endswith("onnx") else "openvino")
    with pytest.raises(InputError, match="no such file"):
        open_file(tmp_path / name)
    (tmp_path / name).write_bytes(b"PK\x03\x04 but damaged")
    with pytest.raises(InputError, match=f"{name}: is damaged") as raised:
        open_file(tmp_path / name)
    assert "\n" not in str(raised.value)


def test_another_suffix_is_no_exported_file(tmp_path: Path) -> None:
    (tmp_path / "a.tflite").write_bytes(b"")
    with pytest.raises(InputError, match="is no exported file; found .tflite"):
        open_file(tmp_path / "a.tflite")


def test_none_of_it_needs_torch(tmp_path: Path) -> None:
    """A process in which torch cannot be imported, from picture to files."""
    code = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "timm", "safetensors"):
            raise ImportError(f"{name} is not there")

sys.meta_path.insert(0, NoTorch())
sys.path.insert(0, sys.argv[1])
import numpy as np
from maskrcnn.export.runner import Runner, open_file
import maskrcnn.export.onnx_session, maskrcnn.export.openvino_session
from maskrcnn.export.facts import Facts
from maskrcnn.model.detection_config import DetectionConfig
from maskrcnn.model.preprocess_config import PreprocessConfig

def session(pixels, sizes):
    return {
        "boxes": np.array([[[8, 8, 40, 28.0]]], dtype=np.float32),
        "scores": np.array([[0.9]], dtype=np.float32),
        "labels": np.array([[1]]),
        "valid": np.array([[True]]),
        "masks": np.full((1, 1, 28, 28), 0.8, dtype=np.float32),
    }

facts = Facts(target="onnx", class_names=("cat",), category_ids=(3,), preprocess=PreprocessConfig(shortest=64),
    detection=DetectionConfig(), outputs=("boxes", "scores", "labels", "valid", "masks"))
found = Runner(session, facts, "x.onnx").predict(np.zeros((32, 48, 3), dtype=np.uint8), mask_nms_iou=0.5)
found.masks.rle(), found.masks.polygons(), found.masks.bitmaps(), found.coco()
found.save("out.png"), found.save("out.json")
assert "torch" not in sys.modules
print(found.names, found.boxes.tolist())
"""
    command = [sys.executable, "-c", code, "src"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "('cat',) [[4.0, 4.0, 20.0, 14.0]]"
    assert (tmp_path / "out.png").exists() and (tmp_path / "out.json").exists()


def test_an_exported_detector_is_evaluated_like_any_other() -> None:
    truth = Target(
        gt_boxes=torch.tensor([[4.0, 4, 20, 14], [30, 30, 40, 40]]),
        gt_labels=torch.tensor([1, 2]),
        gt_masks=None,
        is_crowd=torch.zeros(2, dtype=torch.bool),
        size=(40, 50),
    )
    model = ExportedDetector(session, replace(FACTS, category_ids=(1, 2), class_names=("1", "2")), "made-up.onnx")
    data = [(PICTURE, truth)]
    assert evaluate(model, data).box.ap == pytest.approx(0.5)
    only_best = evaluate(model, data, predict_options={"score_threshold": 0.95})
    assert only_best.box.ap == 0
    with pytest.raises(InputError, match="reasons: needs a Predictor"):
        evaluate(model, data, reasons=Reasons())
