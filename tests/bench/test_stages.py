"""Where a counter's gains go, hooks that leave nothing behind, and arithmetic counted exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import maskrcnn
from maskrcnn.bench.peer import Work, torchvision_peer
from maskrcnn.bench.pictures import BenchPicture
from maskrcnn.bench.sides import Ours, Side, Theirs
from maskrcnn.bench.stages import STAGES, Meter, stage_flops, stage_seconds, watched
from maskrcnn.data.pictures import read_picture
from maskrcnn.weights.opening import load_model


def test_gains_go_to_the_innermost_stage() -> None:
    counter = [0.0]
    meter = Meter(lambda: counter[0])
    counter[0] += 1
    with meter.stage("outer"):
        counter[0] += 10
        with meter.stage("inner"):
            counter[0] += 100
        counter[0] += 1000
        with meter.stage("inner"):
            counter[0] += 10000
    assert meter.spent == {"the rest": 1, "outer": 1010, "inner": 10100}
    meter.start()
    with meter.stage("outer"):
        counter[0] += 5
    assert meter.spent == {"the rest": 0, "outer": 5}


def test_modules_and_methods_are_watched_and_then_left_alone() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x))

        def last(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    net, ticks = Net(), iter(range(100))
    meter = Meter(lambda: float(next(ticks)))  # every look at the clock is a second
    with watched(meter, {"first": [net.first, None]}, [("last", net, "last")]):
        net(torch.zeros(1, 2))
    assert meter.spent == {"the rest": 2, "first": 1, "last": 1}
    net(torch.zeros(1, 2))
    assert meter.spent == {"the rest": 2, "first": 1, "last": 1}
    assert "last" not in vars(net) and not net.first._forward_hooks and not net.first._forward_pre_hooks


@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_both_sides_show_every_stage(whose: str, small_weights: Path, small_work: Work, picture: BenchPicture) -> None:
    predictor = maskrcnn.load(small_weights, small_work.of_ours(), device="cpu")
    side: Side = Ours(predictor)
    if whose == "theirs":
        side = Theirs(torchvision_peer(small_weights, predictor.model.config, small_work))
    spent = stage_seconds(side, "cpu")(picture.data)
    assert set(spent) == set(STAGES)
    assert min(spent.values()) > 0


def test_arithmetic_of_each_stage(small_weights: Path, small_work: Work, picture: BenchPicture) -> None:
    """Against sums by hand over the layers, for a picture that the network sees as 96 x 128."""
    model = load_model(small_weights, small_work.of_ours())
    pixels = torch.from_numpy(read_picture(picture.data).copy()).permute(2, 0, 1)
    flops = stage_flops(model, pixels)
    cells = {"p2": 24 * 32, "p3": 12 * 16, "p4": 6 * 8, "p5": 3 * 4, "p6": 2 * 2}
    lateral = sum(2 * c * 256 * cells[level] for level, c in (("p2", 64), ("p3", 128), ("p4", 256), ("p5", 512)))
    output = sum(2 * 256 * 256 * 9 * cells[level] for level in ("p2", "p3", "p4", "p5"))
    assert flops["FPN"] == lateral + output
    of_a_cell = 2 * 256 * 256 * 9 + 2 * 256 * 3 * (1 + 4)
    assert flops["RPN head"] == of_a_cell * sum(cells.values())
    of_a_box = 2 * (256 * 7 * 7 * 1024 + 1024 * 1024 + 1024 * 91 + 1024 * 90 * 4)
    assert flops["box head"] == of_a_box * small_work.proposals
    convs = 4 * 2 * 256 * 256 * 9 * 14 * 14
    deconv = 2 * 256 * 256 * 4 * 14 * 14
    assert (flops["mask head"] / small_work.detections - convs - deconv) >= 2 * 256 * 28 * 28  # one map or all 90
    assert set(flops) == {"backbone", "FPN", "RPN head", "box head", "mask head"}
