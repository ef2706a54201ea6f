"""The arithmetic of the floor, and rates of what a machine can."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from maskrcnn.bench import floor
from maskrcnn.bench.floor import Rates, conv_flops, floor_seconds, measured_rates
from maskrcnn.bench.measure import Timing


def test_operations_of_a_convolution() -> None:
    """2 x 3 x 4 x 9 operations for each of 5 x 6 places, as PyTorch counts them too."""
    assert conv_flops(3, 4, 3, 5, 6) == 2 * 3 * 4 * 9 * 5 * 6 == 6480
    with FlopCounterMode(display=False) as counter:
        nn.Conv2d(3, 4, 3, padding=1)(torch.zeros(1, 3, 5, 6))
    assert counter.get_total_flops() == 6480


def test_floor_is_at_the_better_rate() -> None:
    flops = {"backbone": 300e9, "FPN": 100e9}
    assert floor_seconds(flops, Rates("float32", conv=200.0, gemm=100.0)) == 2.0
    assert floor_seconds(flops, Rates("float32", conv=None, gemm=100.0)) == 4.0
    assert floor_seconds(flops, Rates("int8", conv=None, gemm=None)) is None


def test_rates_are_of_the_fastest_round(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_CHANNELS", 4), ("_HEIGHT", 5), ("_WIDTH", 6), ("_SIDE", 16)):
        monkeypatch.setattr(floor, name, value)
    seconds = Timing((4e-6, 2e-6, 3e-6))
    monkeypatch.setattr(floor, "interleaved", lambda works, *args, **options: dict.fromkeys(works, seconds))
    rates = measured_rates(["float32"])["float32"]
    assert rates.conv == pytest.approx(2 * 4 * 4 * 9 * 30 / 2e-6 / 1e9)
    assert rates.gemm == pytest.approx(2 * 16**3 / 2e-6 / 1e9)
    assert rates.best == rates.conv > rates.gemm


def test_what_a_machine_cannot_has_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(precision: str, device: str) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(floor, "_conv", refused)
    monkeypatch.setattr(floor, "_SIDE", 16)
    rates = measured_rates(["bf16"])["bf16"]
    assert rates.conv is None and rates.gemm is not None
