"""Opening ours for a comparison."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from maskrcnn.bench.options import BenchOptions, opened, plain
from maskrcnn.bench.peer import Work
from maskrcnn.bench.pictures import BenchPicture


def test_what_torchvisions_files_do_not_tell_is_no_news_here(
    small_weights: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = logging.getLogger("maskrcnn")

    def load(*args: object, **options: object) -> None:
        log.warning("%s: a detector of torchvision, whose file does not tell: thresholds", "model.pth")
        log.warning("precision bf16: float32 is used")

    monkeypatch.setattr("maskrcnn.bench.options.load", load)
    opened(str(small_weights), {}, "bf16", BenchOptions())
    assert caplog.messages == ["precision bf16: float32 is used"]
    assert not log.filters


def test_calibration_goes_with_int8_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []
    monkeypatch.setattr("maskrcnn.bench.options.load", lambda *args, **options: asked.append(options))
    for precision in ("float32", "int8"):
        opened("nuclei", {}, precision, BenchOptions(calibration="folder"))
    assert asked == [{}, {"calibration": "folder"}]


def test_plain_runs_the_model_that_can_be_looked_into(
    small_weights: Path, small_work: Work, picture: BenchPicture
) -> None:
    predictor = opened(str(small_weights), small_work.of_ours(), "float32", BenchOptions())
    own, calls = plain(predictor), []
    predictor.model.backbone.register_forward_hook(lambda *args: calls.append(1))
    assert own.model is predictor.model and predictor.network is not own.network
    found = own.predict(picture.data)
    assert len(calls) == 1
    assert torch.allclose(found.boxes, predictor.predict(picture.data).boxes, atol=0.02) and len(calls) == 1
