"""Keypoints of COCO files: read, given back, refused where they are bad, and carried on to batches."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskrcnn.data.coco import load_coco
from maskrcnn.data.coco_keypoints import flip_pairs
from maskrcnn.data.dataset import AdaptedSequence, Sample
from maskrcnn.data.loader import TrainLoader
from maskrcnn.data.opening import open_dataset, open_train_val
from maskrcnn.errors import InputError, InputErrors
from maskrcnn.structures import GtKeypoints, KeypointScheme, Target

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")

Write = Callable[..., Path]
NAMES = ["nose", "left_ear", "right_ear"]
SCHEME = KeypointScheme(tuple(NAMES), ((1, 2),), ((0, 1), (0, 2)))
POINTS = [5, 6, 2, 7, 4, 1, 0, 0, 0]


@pytest.fixture
def document(document: dict[str, Any]) -> dict[str, Any]:
    """Cows (7) have keypoints, one of which is hidden and one not labelled; the crowd and the dog have none."""
    cow = next(category for category in document["categories"] if category["id"] == 7)
    cow |= {"keypoints": NAMES, "skeleton": [[1, 2], [1, 3]]}
    document["annotations"][0] |= {"keypoints": POINTS, "num_keypoints": 2}
    return document


def problems(file: Path) -> list[str]:
    with pytest.raises(InputErrors) as caught:
        load_coco(file)
    lines = [str(error) for error in caught.value.errors]
    assert all("\n" not in line for line in [*lines, str(caught.value)])
    return [line.removeprefix(f"{file}: ") for line in lines]


# --- reading ----------------------------------------------------------------------------------------------------------


def test_points_are_centres_of_pixels(document: dict[str, Any], write: Write) -> None:
    dataset = load_coco(write(document))
    assert dataset.keypoints == SCHEME
    target = dataset.target(0)  # a cow and a crowd
    assert target.gt_keypoints is not None and target.gt_keypoints.scheme == SCHEME
    points = target.gt_keypoints.points
    assert points.dtype == torch.float32 and points.shape == (2, 3, 3)
    assert points[0, :2].tolist() == [[5.5, 6.5, 2], [7.5, 4.5, 1]]
    assert points[0, 2, 2] == 0 and not points[1, :, 2].any()
    nothing = dataset.target(2).gt_keypoints
    assert nothing is not None and nothing.points.shape == (0, 3, 3)


def test_the_file_is_given_back(document: dict[str, Any], write: Write) -> None:
    truth = load_coco(write(document)).ground_truth()
    given = {record["id"]: record for record in truth["annotations"]}
    assert (given[5]["keypoints"], given[5]["num_keypoints"]) == (POINTS, 2)
    assert (given[6]["keypoints"], given[6]["num_keypoints"]) == ([0] * 9, 0)
    cow = next(category for category in truth["categories"] if category["id"] == 7)
    assert (cow["keypoints"], cow["skeleton"]) == (NAMES, [[1, 2], [1, 3]])
    again = load_coco(write(truth, "again.json"))
    assert again.keypoints == SCHEME and again.ground_truth() == truth


@pytest.mark.parametrize("empty", ["nowhere", "empty lists", "names only"])
def test_ordinary_files_have_none(document: dict[str, Any], write: Write, empty: str) -> None:
    for record in document["annotations"]:
        record.pop("keypoints", None)
        if empty == "empty lists":
            record["keypoints"] = []
    if empty != "names only":  # as in COCO's own instances, that are the same people
        document["categories"][2]["keypoints"] = []
    dataset = load_coco(write(document))
    assert dataset.keypoints is None and dataset.target(0).gt_keypoints is None
    truth = dataset.ground_truth()
    assert not any("keypoints" in record for record in truth["annotations"] + truth["categories"])


def test_several_categories_share_their_keypoints(document: dict[str, Any], write: Write) -> None:
    dog = next(category for category in document["categories"] if category["id"] == 3)
    dog["keypoints"] = NAMES
    document["annotations"][1]["keypoints"] = [1, 2, 2] * 3
    dataset = load_coco(write(document))
    points = dataset.target(1).gt_keypoints
    assert points is not None and points.points.tolist() == [[[1.5, 2.5, 2]] * 3]


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["nose", "left_eye", "right_eye", "right_ear", "left_ear"], ((1, 2), (3, 4))),
        (["L-eye", "R-eye", "tail"], ((0, 1),)),
        (["hindPawLeft", "hindPawRight", "frontPawLeft"], ((0, 1),)),
        (["Left eye", "Right eye"], ((0, 1),)),
        (["eye_l_1", "eye_l_2", "eye_r_2", "eye_r_1"], ((0, 3), (1, 2))),
        (["top", "bottom", "1", "2"], ()),
        (["left", "leftover"], ()),
    ],
)
def test_left_and_right_go_by_names(names: list[str], pairs: tuple[tuple[int, int], ...]) -> None:
    assert flip_pairs(names) == pairs


# --- what is bad ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ([1, 2, 2] * 2, "are too many or too few; found 6 numbers; expected x, y, v of 3 keypoints, 9 numbers"),
        ([1, 2, 2] * 4, "are too many or too few; found 12 numbers"),
        ([[1, 2, 2]] * 3, "are not keypoints"),
        ({"nose": [1, 2]}, "are not keypoints"),
        ("none", "are not keypoints; found none"),
        ([1, 2, "x"] * 3, "are not keypoints"),
        ([float("nan"), 2, 2] * 3, "hold numbers that are no coordinates"),
        ([1e12, 2, 2] * 3, "hold numbers that are no coordinates"),
        ([10**400, 2, 2] * 3, "are not keypoints"),
        ([1, 2, 2, 3, 4, 3, 5, 6, 1], "have an unknown visibility; found 3.0; expected 0, 1 or 2"),
        ([1, 2, 2, 3, 4, -1, 5, 6, 1], "have an unknown visibility; found -1.0"),
        ([1, 2, 0.5] * 3, "have an unknown visibility; found 0.5"),
    ],
)
def test_bad_points(document: dict[str, Any], write: Write, points: object, words: str) -> None:
    document["annotations"][0]["keypoints"] = points
    file = write(document)
    (line,) = problems(file)
    assert line.startswith(f"annotations[0] (id 5).keypoints: {words}"), line
    assert [len(load_coco(file, skip_bad=True).target(i)) for i in range(3)] == [1, 1, 0]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"keypoints": None}, "keypoints: are missing; found 1 annotations with keypoints; expected the names"),
        ({"keypoints": []}, "keypoints: are missing"),
        ({"keypoints": ["nose", "nose", "ear"]}, "keypoints: are not the names of keypoints"),
        ({"keypoints": ["nose", 2, ""]}, "keypoints: are not the names of keypoints"),
        ({"keypoints": "nose"}, "keypoints: are not the names of keypoints; found nose"),
        ({"skeleton": [[1, 4]]}, "skeleton: is not a skeleton; found [[1, 4]]; expected pairs of numbers from 1 to 3"),
        ({"skeleton": [[0, 1]]}, "skeleton: is not a skeleton"),
        ({"skeleton": [1, 2]}, "skeleton: is not a skeleton"),
    ],
)
def test_bad_categories(document: dict[str, Any], write: Write, change: dict[str, Any], line: str) -> None:
    document["categories"][2] |= change
    file = write(document)
    assert problems(file)[0].startswith(f"categories[2] (id 7).{line}")
    left = load_coco(file, skip_bad=True)
    assert len(left.target(0)) == 2
    assert left.keypoints == (replace(SCHEME, skeleton=()) if "skeleton" in change else None)


def test_categories_that_differ(document: dict[str, Any], write: Write) -> None:
    document["categories"][0]["keypoints"] = ["a", "b"]
    document["annotations"][2]["keypoints"] = [1, 2, 2] * 2
    file = write(document)
    (line,) = problems(file)
    assert line == "categories[2] (id 7).keypoints: differ from another category's; found " + (
        "['nose', 'left_ear', 'right_ear']; expected a, b"
    )
    assert load_coco(file, skip_bad=True).keypoints == KeypointScheme(("a", "b"))


def test_broken_links_beside_keypoints(document: dict[str, Any], write: Write) -> None:
    """Their own lines, and no traceback."""
    document["annotations"][0]["category_id"] = [7]
    document["annotations"].append(document["annotations"][0] | {"id": 9, "category_id": None})
    lines = problems(write(document))
    assert sum("is no category of this file" in line for line in lines) == 2


def test_training_and_validation_have_to_agree(document: dict[str, Any], write: Write) -> None:
    train = write(document, "train.json")
    assert open_train_val(train, write(document, "val.json"))[1].keypoints == SCHEME
    document["categories"][2]["keypoints"] = ["nose", "right_ear", "left_ear"]
    with pytest.raises(InputError, match="val.keypoints: differ from those to learn from; found nose, right_ear"):
        open_train_val(train, write(document, "val.json"))


# --- carried on -------------------------------------------------------------------------------------------------------


def test_parts_of_a_data_set(document: dict[str, Any], write: Write) -> None:
    part = load_coco(write(document))[1:]
    assert part.keypoints == SCHEME
    assert "keypoints" in part.ground_truth()["annotations"][0]


@pytest.mark.parametrize("workers", [0, 1])
def test_batches(document: dict[str, Any], write: Write, workers: int) -> None:
    dataset = load_coco(write(document))
    loader = TrainLoader(dataset, None, batch_size=3, seed=0, workers=workers)
    batch = next(iter(loader.batches()))
    for _, target in batch:
        expected = dataset.target(dataset.image_ids.index(target.image_id)).gt_keypoints
        assert target.gt_keypoints is not None and expected is not None
        assert target.gt_keypoints.scheme == SCHEME
        assert torch.equal(target.gt_keypoints.points, expected.points)


def sample(points: torch.Tensor | None, scheme: KeypointScheme = SCHEME) -> Sample:
    target = Target(
        torch.tensor([[1.0, 2.0, 9.0, 12.0]]),
        torch.tensor([1]),
        None,
        torch.tensor([False]),
        (20, 30),
        gt_keypoints=None if points is None else GtKeypoints(points, scheme),
    )
    return np.zeros((20, 30, 3), np.uint8), target


def test_any_sequence() -> None:
    points = torch.tensor([[[4.5, 5.5, 2.0], [6.0, 7.0, 0.0], [8.5, 9.0, 1.0]]])
    dataset = open_dataset([sample(points), sample(points)])
    assert dataset.keypoints == SCHEME
    record = dataset.ground_truth()["annotations"][0]
    assert record["keypoints"] == [4, 5, 2, 0, 0, 0, 8, 8.5, 1] and record["num_keypoints"] == 2
    assert json.dumps(record)


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (sample(None), r"data\[1\]: target.gt_keypoints: differ; found None; expected \('nose', 'left_ear', 'right"),
        (sample(torch.zeros(1, 2, 3), KeypointScheme(("a", "b"))), r"data\[1\]: target.gt_keypoints: differ"),
        (sample(torch.zeros(2, 3, 3)), r"gt_keypoints.points: do not fit; found \(2, 3, 3\); expected \(1, 3, 3\)"),
    ],
)
def test_sequences_that_do_not_agree(second: Sample, words: str) -> None:
    dataset = AdaptedSequence([sample(torch.zeros(1, 3, 3)), second])
    with pytest.raises(InputError, match=words):
        dataset.sample(1)
