from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskrcnn.errors import InputError
from maskrcnn.export.facts import Facts, facts_from_json
from maskrcnn.model.detection_config import DetectionConfig
from maskrcnn.model.keypoint_head import COCO_PERSON
from maskrcnn.model.preprocess_config import PreprocessConfig

FILE = Path("cells.onnx")


def facts() -> Facts:
    return Facts(
        target="onnx",
        class_names=("Zelle", "細胞"),
        category_ids=(4, 7),
        preprocess=PreprocessConfig(shortest=96, stretch=0.001),
        detection=DetectionConfig(max_detections=7, mask_nms_iou=0.5),
        outputs=("boxes", "scores", "labels", "valid", "heatmaps"),
        size=(96, 128),
        batch=None,
        keypoints=COCO_PERSON,
        licence="CC0",
        source="drawn",
        config={"anything": [1, 2]},
    )


def test_there_and_back() -> None:
    assert facts_from_json(facts().as_json(), FILE) == facts()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "was not exported by maskrcnn"),
        ("", "was not exported by maskrcnn"),
        ("{", "not JSON"),
        ("[1]", "format of another version"),
        (json.dumps({"format_version": 99}), "format_version: format of another version; found 99; expected 1"),
        (json.dumps({"format_version": 1, "colour": 3}), "unknown field; found colour"),
        (json.dumps({"format_version": 1}), "missing"),
    ],
)
def test_what_is_not_ours_is_one_line(text: str | None, said: str) -> None:
    with pytest.raises(InputError) as raised:
        facts_from_json(text, FILE)
    assert said in str(raised.value) and "cells.onnx" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_impossible_values_are_refused() -> None:
    with pytest.raises(InputError, match="category_ids"):
        facts_from_json(facts().as_json().replace("[4, 7]", "[4]"), FILE)


@pytest.mark.parametrize(
    ("sizes", "padded"), [([(1, 1)], (64, 64)), ([(64, 65)], (64, 96)), ([(10, 100), (97, 3)], (128, 128))]
)
def test_sides_are_multiples_of_the_step_and_never_below_the_least(
    sizes: list[tuple[int, int]], padded: tuple[int, int]
) -> None:
    made = Facts(
        target="onnx",
        class_names=("cat",),
        category_ids=(1,),
        preprocess=PreprocessConfig(),
        detection=DetectionConfig(),
        outputs=(),
        least=64,
    )
    assert made.padded_size(sizes) == padded
