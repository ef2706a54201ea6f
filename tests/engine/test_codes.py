"""Codes: what they stand for, and pooling that looks at them alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from maskrcnn.engine.codes import Codes, Coding, coding_of, max_pool


def test_there_and_back() -> None:
    coding = coding_of(-1.0, 4.1)
    x = torch.linspace(-1.0, 4.1, 400)
    back = Codes(coding.encode(x), coding).decoded(torch.float32)
    assert (back - x).abs().max() <= coding.scale * 0.5001
    assert coding.encode(torch.tensor([0.0])).item() == coding.zero == 50


@pytest.mark.parametrize(
    "low, high, zero", [(0.0, 255.0, 0), (1.0, 255.0, 0), (-255.0, 0.0, 255), (-255.0, -5.0, 255), (0.0, 0.0, 0)]
)
def test_zero_is_always_a_code(low: float, high: float, zero: int) -> None:
    coding = coding_of(low, high)
    assert coding.zero == zero and coding.scale > 0
    assert Codes(coding.encode(torch.zeros(3)), coding).decoded(torch.float32).tolist() == [0.0] * 3


def test_halves_go_to_even_codes_and_the_rest_is_cut() -> None:
    assert Coding(2.0, 3).encode(torch.tensor([-100.0, -1.0, 1.0, 3.0, 1e9])).tolist() == [0, 2, 4, 4, 255]


def test_steps_are_exact() -> None:
    codes = Codes(torch.arange(256, dtype=torch.uint8), Coding(0.1, 200))
    assert codes.steps.float().tolist() == [float(code - 200) for code in range(256)]


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("kernel, stride, padding", [(3, 2, 1), (2, 2, 0), (3, 1, 1), (3, 2, 0), (5, 3, 2), (1, 2, 0)])
@pytest.mark.parametrize("size", [(7, 12), (8, 9), (5, 5)])
def test_max_pool(size: tuple[int, int], kernel: int, stride: int, padding: int, ceil_mode: bool) -> None:
    values = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    expected = F.max_pool2d(values.float(), kernel, stride, padding, ceil_mode=ceil_mode)
    pooled = max_pool(Codes(values, Coding(1.0, 7)), kernel, stride, padding, ceil_mode)
    assert torch.equal(pooled.values.float(), expected) and pooled.coding == Coding(1.0, 7)
