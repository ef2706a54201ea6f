"""`maskrcnn.evaluate`: any detector, any data, one call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import maskrcnn
from maskrcnn.errors import InputError
from maskrcnn.model.mask_rcnn import MaskRCNN
from maskrcnn.model.presets import preset
from maskrcnn.predictor import Predictor
from maskrcnn.structures import Detections, GtMasks, PolygonShape, Target

OUTLINE = np.array([[10.0, 8.0], [30.0, 8.0], [30.0, 28.0], [10.0, 28.0]])


class Squares:
    """Three dark pictures with one square each."""

    classes = ("square",)

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[np.ndarray, Target]:
        if not 0 <= index < 3:
            raise IndexError(index)
        picture = np.zeros((40, 56, 3), np.uint8)
        picture[8:28, 10:30] = 200
        target = Target(
            gt_boxes=torch.tensor([[10.0, 8.0, 30.0, 28.0]]),
            gt_labels=torch.tensor([1]),
            gt_masks=GtMasks((PolygonShape((OUTLINE,)),)),
            is_crowd=torch.tensor([False]),
            size=(40, 56),
        )
        return picture, target


def bright_box(pictures: Iterable[np.ndarray]) -> Iterator[Detections]:
    """A detector without weights: the box of what is bright."""
    for picture in pictures:
        y, x = np.nonzero(picture[:, :, 0])
        yield Detections(
            boxes=torch.tensor([[x.min(), y.min(), x.max() + 1, y.max() + 1]], dtype=torch.float32),
            scores=torch.tensor([0.9]),
            labels=torch.tensor([1]),
            names=("square",),
            category_ids=(1,),
            masks=None,
            size=(picture.shape[0], picture.shape[1]),
        )


def never(pictures: Iterable[np.ndarray]) -> Iterator[Detections]:
    raise AssertionError("the detector was asked")


def predictor(*names: str) -> Predictor:
    torch.manual_seed(0)
    return Predictor(MaskRCNN(preset("nano", names, tuple(range(1, len(names) + 1)))), "cpu")


def test_any_function_is_a_detector() -> None:
    calls: list[Any] = []
    scores = maskrcnn.evaluate(bright_box, Squares(), progress=lambda done, total: calls.append((done, total)))
    assert scores.box.ap == pytest.approx(1.0)
    assert scores.mask is None
    assert scores.counts.pictures == scores.counts.detections == 3
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_a_predictor_finds_enough_for_the_largest_count() -> None:
    seen: list[dict[str, Any]] = []
    model = predictor("square")
    real = model.predict

    def watched(pictures: Any, **options: Any) -> Any:
        seen.append(options)
        return real(pictures, **options)

    model.predict = watched  # type: ignore[method-assign]
    scores = maskrcnn.evaluate(model, Squares(), max_detections=(10, 250), predict_options={"size": "native"})
    assert seen == [{"max_detections": 250, "size": "native"}]
    assert scores.mask is not None
    maskrcnn.evaluate(model, Squares(), max_detections=(10,), predict_options={"max_detections": 7})
    assert seen[1] == {"max_detections": 7}


def test_classes_are_compared_before_the_first_picture() -> None:
    with pytest.raises(InputError, match="not one class of the detector is in the data set"):
        maskrcnn.evaluate(predictor("circle"), Squares())


@pytest.mark.parametrize("limits", [7, np.int64(7), [np.int32(7)], iter([7])])
def test_one_limit_or_several(limits: Any) -> None:
    assert maskrcnn.evaluate(bright_box, Squares(), max_detections=limits).box.max_detections == (7,)


def test_one_limit_for_a_predictor() -> None:
    assert maskrcnn.evaluate(predictor("square"), Squares(), max_detections=7).box.max_detections == (7,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_detections": ()}, r"max_detections: not a limit; found \(\); expected one or more whole numbers"),
        ({"max_detections": "abc"}, "max_detections: not a limit; found 'abc'"),
        ({"max_detections": (1.5,)}, "max_detections: not a limit"),
        ({"max_detections": 10**20}, "max_detections: not a limit"),
        ({"max_detections": None}, "max_detections: not a limit; found None"),
        ({"score_threshold": "a"}, "score_threshold: impossible value; found 'a'; expected a number from 0 to 1"),
        ({"score_threshold": float("nan")}, "score_threshold: impossible value; found nan"),
        ({"split": "zz"}, "split: no such split; found 'zz'; expected train or val"),
        ({"split": 3}, "split: no such split; found 3"),
    ],
)
@pytest.mark.parametrize("model", [never, predictor("square")])
def test_impossible_options_fail_before_the_first_picture(model: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        maskrcnn.evaluate(model, Squares(), **options)


def test_data_that_is_none() -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        maskrcnn.evaluate(bright_box, "nowhere/at/all.json")
    with pytest.raises(InputError, match="data: is not a data set"):
        maskrcnn.evaluate(bright_box, 3)  # type: ignore[arg-type]
