"""Lines that can be read while a run goes on, and that agree with its state when it is resumed."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from maskrcnn.inspection.weight_histograms import weight_statistics
from maskrcnn.training.run_log import LOG_FILE, RunLog, progress_bar, read_log


def board(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), {"histograms": 0})  # 0: keep all, not the last alone
    return events.Reload()


def test_lines_are_there_at_once(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.write("start", 0, {"device": "cpu"})
        log.write("train", 1, {"total": 1.23456789, "seconds": 2.0})
        lines = (tmp_path / LOG_FILE).read_text().splitlines()
        assert lines == [
            '{"event": "start", "step": 0, "device": "cpu"}',
            '{"event": "train", "step": 1, "total": 1.23457, "seconds": 2.0}',
        ]
    assert read_log(tmp_path) == [json.loads(line) for line in lines]


def test_numbers_and_pictures_are_on_the_board(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        for step in (1, 2):
            log.write("train", step, {"total": 0.5 * step})
        log.write("validation", 2, {"mask_ap": 0.25, "best": True})
        log.write("note", 2, {"text": "a word"})
        log.picture("validation/0", 2, np.zeros((8, 16, 3), np.uint8))
    events = board(tmp_path)
    assert [(event.step, event.value) for event in events.Scalars("train/total")] == [(1, 0.5), (2, 1.0)]
    assert events.Scalars("validation/mask_ap")[0].value == 0.25
    assert [(i.width, i.height) for i in events.Images("validation/0")] == [(16, 8)]


def test_later_lines_are_dropped_on_resuming(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        for step in range(1, 6):
            log.write("train", step, {"total": float(step)})
    with (tmp_path / LOG_FILE).open("a") as stream:
        stream.write('{"event": "train", "st')  # cut off in mid-write
    with RunLog(tmp_path, 3) as log:
        log.write("train", 4, {"total": 40.0})
    assert [(line["step"], line["total"]) for line in read_log(tmp_path)] == [(1, 1), (2, 2), (3, 3), (4, 40)]
    steps = [event.step for event in board(tmp_path).Scalars("train/total")]
    assert sorted(set(steps)) == [1, 2, 3, 4]


def test_a_new_run_forgets_the_log_before(tmp_path: Path) -> None:
    (tmp_path / LOG_FILE).write_text('{"event": "train", "step": 7}\n')
    with RunLog(tmp_path):
        assert read_log(tmp_path) == []


def test_numbers_that_are_none(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.write("train", 1, {"total": float("nan"), "gradient_norm": float("inf")})
    assert read_log(tmp_path) == [{"event": "train", "step": 1, "total": None, "gradient_norm": None}]


def test_no_log(tmp_path: Path) -> None:
    assert read_log(tmp_path) == []


@pytest.mark.parametrize(("visible", "shown"), [(True, "a word of [it]\n"), (False, "")])
def test_notes_without_a_terminal(visible: bool, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(visible=visible) as bar:
        bar.show(0.5, "step 1")
        bar.say("a word of [it]")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", shown)


def test_histograms_of_weights_are_on_the_board(tmp_path: Path) -> None:
    """Bins, counts and sums as they are; a layer that holds no number is left out."""
    model = nn.Sequential(OrderedDict(fpn=nn.Sequential(OrderedDict(p2=nn.Linear(30, 20))), rpn=nn.Linear(2, 2)))
    with torch.no_grad():
        model.rpn.weight.fill_(torch.nan)
    layers = weight_statistics(model)
    with RunLog(tmp_path) as log:
        for step in (10, 20):
            log.weights(step, layers)
    events = board(tmp_path)
    assert sorted(events.Tags()["histograms"]) == ["weights.fpn/p2.bias", "weights.fpn/p2.weight", "weights.rpn/bias"]
    shown = events.Histograms("weights.fpn/p2.weight")
    assert [event.step for event in shown] == [10, 20]
    values, found = model.fpn.p2.weight.detach().numpy().astype(float).ravel(), shown[0].histogram_value
    counts, edges = np.histogram(values, 64)
    assert (found.min, found.max, found.num) == (values.min(), values.max(), 600)
    assert found.sum == pytest.approx(values.sum()) and found.sum_squares == pytest.approx((values**2).sum())
    assert found.bucket == counts.tolist() and found.bucket_limit == pytest.approx(edges[1:].tolist())
