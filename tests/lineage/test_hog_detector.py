"""HOG + SVM at work: windows, NMS and classes, with weights that are known; and its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from maskrcnn.data.classes import Classes
from maskrcnn.errors import InputError
from maskrcnn.lineage.hog import Window, pyramid, warped
from maskrcnn.lineage.hog_detector import (
    LEAST_MARGIN,
    MAX_DETECTIONS,
    NMS_IOU,
    ClassDetector,
    HogSVM,
    load_detector,
    save_detector,
    sizes_of,
)
from maskrcnn.lineage.svm import NEVER
from maskrcnn.lineage.system import Stopwatch
from maskrcnn.ops.boxes import iou

WINDOW = Window(4, 4)
CLASSES = Classes(("bolt", "nut"), (7, 3))


@pytest.fixture
def picture() -> np.ndarray:
    """Two bright squares of 32 px."""
    picture = np.full((120, 150, 3), 70, dtype=np.uint8)
    picture[16:48, 24:56] = picture[64:96, 96:128] = 190
    return picture


def matcher(picture: np.ndarray, label: int, bias: float, first: int = -2, last: int = 2) -> ClassDetector:
    """Weights that answer to what looks like the first square."""
    features = warped(picture, np.array([24.0, 16, 56, 48]), WINDOW)[0]
    weights = (features - features.mean()) / np.square(features - features.mean()).sum() * 10
    return ClassDetector(label, WINDOW, weights.astype(np.float32), bias, first, last)


def slowly(detector: ClassDetector, picture: np.ndarray) -> list[tuple[float, list[float]]]:
    """Margins and boxes of one class after greedy suppression, window by window."""
    found = []
    for level in pyramid(picture, range(detector.first, detector.last + 1)):
        rows, columns = level.count(detector.window)
        for row in range(rows):
            for column in range(columns):
                place = np.array([row]), np.array([column])
                margin = float(level.cut(detector.window, *place)[0] @ detector.weights) + detector.bias
                if margin > LEAST_MARGIN:
                    box = np.clip(level.boxes(detector.window, *place)[0], 0, [*picture.shape[1::-1]] * 2)
                    found.append((margin, box.tolist()))
    kept: list[tuple[float, list[float]]] = []
    for margin, box in sorted(found, key=lambda pair: -pair[0]):
        if all(float(iou(torch.tensor([box]), torch.tensor([other]))) <= NMS_IOU for _, other in kept):
            kept.append((margin, box))
    return kept


def test_equals_a_slow_loop_over_windows(picture: np.ndarray) -> None:
    detector = matcher(picture, 2, bias=-3.0)
    found = HogSVM(CLASSES, (detector,)).detect(picture, Stopwatch())
    expected = slowly(detector, picture)
    assert len(found) == len(expected) >= 2
    assert np.abs(found.boxes.numpy() - [box for _, box in expected]).max() < 1e-3
    margins = torch.tensor([margin for margin, _ in expected])
    assert torch.allclose(found.scores, 1 / (1 + (-margins).exp()), atol=1e-4)


def test_finds_both_squares(picture: np.ndarray) -> None:
    found = HogSVM(CLASSES, (matcher(picture, 2, bias=-7.0),)).detect(picture, Stopwatch())
    squares = torch.tensor([[24.0, 16, 56, 48], [96, 64, 128, 96]])
    assert iou(squares, found.boxes[:2]).max(dim=1).values.min() > 0.8
    assert found.names[0] == "nut" and found.category_ids[0] == 3 and found.labels[0] == 2
    assert found.masks is None and found.size == (120, 150)
    assert found.boxes.dtype == found.scores.dtype == torch.float32 and found.labels.dtype == torch.int64


def test_classes_do_not_suppress_one_another(picture: np.ndarray) -> None:
    first, second = matcher(picture, 1, bias=-7.0, last=0), matcher(picture, 2, bias=-7.0, last=0)
    one = HogSVM(CLASSES, (first,)).detect(picture, Stopwatch())
    both = HogSVM(CLASSES, (first, second)).detect(picture, Stopwatch())
    assert len(both) == 2 * len(one)
    for label in (1, 2):
        assert torch.equal(both.chosen(both.labels == label).boxes, one.boxes)


def test_each_class_searches_its_own_sizes(picture: np.ndarray) -> None:
    small, large = matcher(picture, 1, 0.0, first=2, last=3), matcher(picture, 2, 0.0, first=-2, last=-1)
    assert sizes_of((small, large)) == range(-2, 4)
    found = HogSVM(CLASSES, (small, large)).detect(picture, Stopwatch())
    widths = found.boxes[:, 2] - found.boxes[:, 0]
    assert widths[found.labels == 1].max() < 32 / 1.2**1.9 < 32 * 1.2**0.9 < widths[found.labels == 2].median()


def test_best_first_and_no_more_than_enough(picture: np.ndarray) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3)).astype(np.uint8)
    found = HogSVM(CLASSES, (matcher(picture, 1, bias=50.0), matcher(picture, 2, bias=50.0))).detect(noise, Stopwatch())
    assert len(found) == MAX_DETECTIONS
    assert (found.scores.diff() <= 0).all()
    assert (found.boxes >= 0).all() and (found.boxes <= 200).all()


def test_time_goes_to_the_stages(picture: np.ndarray) -> None:
    watch = Stopwatch()
    HogSVM(CLASSES, (matcher(picture, 2, bias=-7.0),)).detect(picture, watch)
    assert list(watch.seconds) == ["features", "SVM", "NMS"]


def test_nothing_to_find(picture: np.ndarray) -> None:
    for detector in (HogSVM(CLASSES, ()), HogSVM(CLASSES, (matcher(picture, 1, bias=NEVER),))):
        for seen in (picture, picture[:1, :1], picture[:5]):
            found = detector.detect(seen, Stopwatch())
            assert found.boxes.shape == (0, 4) and found.scores.shape == (0,) and found.names == ()


def test_written_and_read(picture: np.ndarray, tmp_path: Path) -> None:
    detector = HogSVM(CLASSES, (matcher(picture, 2, bias=-7.25),))
    read, facts = load_detector(save_detector(tmp_path / "d.safetensors", detector, {"seconds": 3.5}))
    assert read.classes == CLASSES and facts == {"seconds": 3.5}
    before, after = detector.detect(picture, Stopwatch()), read.detect(picture, Stopwatch())
    assert torch.equal(before.boxes, after.boxes) and torch.equal(before.scores, after.scores)
    assert load_detector(save_detector(tmp_path / "e.safetensors", HogSVM(CLASSES, ()), {}))[0].detectors == ()


def test_files_that_are_none(picture: np.ndarray, tmp_path: Path) -> None:
    path = save_detector(tmp_path / "d.safetensors", HogSVM(CLASSES, (matcher(picture, 2, bias=0.0),)), {})
    whole = path.read_bytes()
    for content in (
        whole[:-5],
        b"",
        whole.replace(b"maskrcnn_hog_svm", b"maskrcnn_hog_SVM"),
        whole.replace(b'window\\": [4', b'window\\": [5'),
        whole.replace(b"weights.2", b"weights.1"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match="d.safetensors: is damaged or of another kind"):
            load_detector(path)
    with pytest.raises(InputError, match="no such file"):
        load_detector(tmp_path / "none.safetensors")
