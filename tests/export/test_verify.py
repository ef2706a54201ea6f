from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from maskrcnn.errors import InputError
from maskrcnn.export import exporting, host
from maskrcnn.export.core import DetectionCore, Shape, facts_of
from maskrcnn.export.facts import Facts
from maskrcnn.export.verify import Differences, Tolerance, compare, verify

from .detectors import detector, picture


def outputs(*rows: tuple[list[float], float, int]) -> dict[str, np.ndarray]:
    """Three rows, as many filled as are given."""
    made = {
        "boxes": np.zeros((3, 4), dtype=np.float32),
        "scores": np.zeros(3, dtype=np.float32),
        "labels": np.zeros(3, dtype=np.int64),
        "valid": np.zeros(3, dtype=bool),
        "masks": np.zeros((3, 4, 4), dtype=np.float32),
    }
    for i, (box, score, label) in enumerate(rows):
        made["boxes"][i], made["scores"][i], made["labels"][i], made["valid"][i] = box, score, label, True
    return made


A, B, C = ([0, 0, 9, 9], 0.9, 1), ([20, 0, 30, 9], 0.8, 1), ([0, 0, 9, 9], 0.7, 2)


def test_equal_sides_do_not_differ_whatever_their_order() -> None:
    assert compare(outputs(A, B, C), outputs(B, C, A)) == Differences(pictures=1, detections=3)
    assert compare(outputs(), outputs()) == Differences(pictures=1)


def test_the_largest_difference_of_each_kind_is_told() -> None:
    moved = outputs(([0, 0.25, 9, 9], 0.9, 1), B)
    moved["scores"][1] = 0.55
    moved["masks"][0, 2, 3] = 0.125
    found = compare(outputs(A, B), moved)
    assert (found.boxes, found.masks) == (0.25, 0.125)
    assert found.scores == pytest.approx(0.25)
    assert (found.only_plain, found.only_exported) == (0, 0)


def test_what_one_side_alone_has_is_counted() -> None:
    found = compare(outputs(A, B), outputs(A, C, ([60, 0, 80, 9], 0.3, 1)))
    assert (found.detections, found.only_plain, found.only_exported) == (2, 1, 2)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (Differences(detections=9, boxes=0.01, scores=1e-5, masks=1e-4), None),
        (Differences(detections=9, boxes=0.2), "boxes differ by 0.2, expected at most 0.05"),
        (Differences(detections=9, scores=float("nan")), "scores differ by nan"),
        (Differences(detections=9, only_plain=1), "1 detections are found by one side only, expected at most 0"),
        (Differences(detections=250, only_plain=1, only_exported=1), None),
    ],
)
def test_beyond_the_tolerance(found: Differences, said: str | None) -> None:
    problem = Tolerance().problem(found)
    assert problem == said if said is None else problem is not None and problem.startswith(said)


def test_the_model_against_itself_and_against_one_that_is_off() -> None:
    model = detector()
    facts = facts_of(model, "onnx", Shape(), licence="none", source="drawn")
    core = DetectionCore(model, model.config)

    def itself(pixels: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
        with torch.no_grad():
            found = core(torch.from_numpy(pixels), torch.from_numpy(sizes))
        return {name: values.numpy() for name, values in zip(facts.outputs, found, strict=True)}

    def off(pixels: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
        return {**itself(pixels, sizes), "scores": itself(pixels, sizes)["scores"] + np.float32(0.01)}

    pictures = [picture(100, 140), picture(200, 90, 1)]
    same = verify(itself, core, facts, pictures)
    assert same == Differences(pictures=2, detections=24)
    assert verify(off, core, facts, pictures).scores == pytest.approx(0.01, abs=1e-6)
    with pytest.raises(InputError, match="no masks"):
        verify(lambda p, s: {k: v for k, v in itself(p, s).items() if k != "masks"}, core, facts, pictures)


def test_a_file_that_differs_is_refused_and_what_stood_there_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "cells.onnx"
    out.write_bytes(b"an older one")

    def written(program: object, facts: Facts, file: Path) -> None:
        file.write_bytes(b"new")

    def opened(path: Path) -> tuple[object, None]:
        def nothing(pixels: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
            return {name: values[None] for name, values in outputs().items()}

        return nothing, None

    monkeypatch.setattr(exporting, "record", lambda model, config, facts: None)
    monkeypatch.setattr(exporting, "write", written)
    monkeypatch.setattr(exporting, "open_any_session", opened)
    with pytest.raises(InputError, match="differs from the plain model: .* found by one side only"):
        exporting.export_detector(detector(), "onnx", out, pictures=[picture(100, 140)])
    assert out.read_bytes() == b"an older one"
    assert [path.name for path in tmp_path.iterdir()] == ["cells.onnx"]


def test_a_picture_that_is_larger_than_the_fixed_size_is_verified_too() -> None:
    model = detector()
    facts = facts_of(model, "onnx", Shape(size=(100, 150)), licence="none", source="drawn")
    assert facts.size == (128, 160)
    assert host.padded([host.ready(picture(400, 300), facts)], facts)[0].shape == (1, 3, 128, 160)
