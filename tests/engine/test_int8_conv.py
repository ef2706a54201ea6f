"""Layers of int8 against the same sums in whole numbers of 64 bits, equal in every code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from maskrcnn.engine.codes import Codes, Coding
from maskrcnn.engine.conv import FusedConv
from maskrcnn.engine.int8 import int8_works
from maskrcnn.engine.int8_conv import QuantisedConv, QuantisedLinear, weight_codes
from maskrcnn.engine.linear import FusedLinear

pytestmark = pytest.mark.skipif(not int8_works(), reason="this CPU or torch has no exact int8")

GEOMETRIES: dict[str, dict[str, Any]] = {
    "1x1": {"kernel": 1},
    "3x3": {"padding": (1, 1)},
    "strided": {"padding": (1, 1), "stride": (2, 2)},
    "dilated": {"padding": (2, 2), "dilation": (2, 2)},
    "uneven": {"padding": (0, 1), "stride": (1, 2)},
    "from three channels": {"padding": (1, 1), "channels": 3},
    "groups": {"padding": (1, 1), "groups": 4},
}


def draw_weights(o: int, *shape: int) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Weights that are whole steps of powers of two, their codes and their steps (O,): all sums of them are exact."""
    codes = np.random.randint(-127, 128, (o, *shape))
    codes.reshape(o, -1)[:, 0] = 127
    steps = 2.0 ** -np.random.randint(7, 11, o)
    weight = codes * steps.reshape(-1, *[1] * len(shape))
    return torch.from_numpy(weight).float(), codes, steps


def sums(x: np.ndarray, weight: np.ndarray, where: dict[str, Any]) -> np.ndarray:
    """Convolution of whole numbers, tap by tap. x: (N, C, H, W), where 0 stands for 0.0."""
    pad, stride, dilation = (where.get(name, (d, d)) for name, d in (("padding", 0), ("stride", 1), ("dilation", 1)))
    groups, (o, c, kh, kw) = where.get("groups", 1), weight.shape
    x = np.pad(x.astype(np.int64), ((0, 0), (0, 0), (pad[0], pad[0]), (pad[1], pad[1])))
    high = (x.shape[2] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    wide = (x.shape[3] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    y = np.zeros((x.shape[0], o, high, wide), dtype=np.int64)
    for out in range(o):
        first = out // (o // groups) * c
        for channel in range(c):
            for i in range(kh):
                for j in range(kw):
                    top, left = i * dilation[0], j * dilation[1]
                    part = x[:, first + channel, top : top + (high - 1) * stride[0] + 1 : stride[0]]
                    part = part[:, :, left : left + (wide - 1) * stride[1] + 1 : stride[1]]
                    y[:, out] += part * int(weight[out, channel, i, j])
    return y


def as_codes(numbers: np.ndarray, coding: Coding, relu: bool) -> np.ndarray:
    """Rounded with halves to even codes (as `np.rint` does), cut to 0..255."""
    numbers = np.maximum(numbers, 0) if relu else numbers
    return np.clip(np.rint(numbers / coding.scale + coding.zero), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("zeros", [(0, 0, 0), (37, 128, 255), (255, 1, 90)], ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_convolution(geometry: str, zeros: tuple[int, int, int], relu: bool) -> None:
    where = dict(GEOMETRIES[geometry])
    channels, kernel = where.pop("channels", 16), where.pop("kernel", 3)
    given, added, made = (Coding(2.0**power, zero) for power, zero in zip((-4, -3, -2), zeros, strict=True))
    weight, weight_codes_, steps = draw_weights(24, channels // where.get("groups", 1), kernel, kernel)
    bias = np.random.randint(-64, 64, 24) / 8
    conv = FusedConv(weight, torch.from_numpy(bias).float(), relu=relu, **where)
    quantised = QuantisedConv(conv, given, made, added=added)
    as_numbers = QuantisedConv(conv, given, None)
    for shape in ((1, channels, 9, 7), (3, channels, 21, 18), (0, channels, 9, 7)):
        x = np.random.randint(0, 256, shape).astype(np.uint8)
        exact = sums(x.astype(np.int64) - given.zero, weight_codes_, where)
        exact = exact * (given.scale * steps)[:, None, None] + bias[:, None, None]
        add = np.random.randint(0, 256, exact.shape).astype(np.uint8)
        codes, residual = Codes(torch.from_numpy(x), given), Codes(torch.from_numpy(add.copy()), added)
        alone, summed, numbers = quantised(codes), quantised(codes, residual), as_numbers(codes)
        assert isinstance(alone, Codes) and isinstance(summed, Codes) and isinstance(numbers, Tensor)
        assert alone.coding == summed.coding == made
        np.testing.assert_array_equal(alone.values.numpy(), as_codes(exact, made, relu))
        total = exact + (add.astype(np.int64) - added.zero) * added.scale
        np.testing.assert_array_equal(summed.values.numpy(), as_codes(total, made, relu))
        np.testing.assert_array_equal(numbers.numpy(), (np.maximum(exact, 0) if relu else exact).astype(np.float32))
        np.testing.assert_array_equal(residual.values.numpy(), add), "what is added is changed"


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("zeros", [(0, 0), (37, 128)], ids=str)
def test_linear(zeros: tuple[int, int], relu: bool) -> None:
    given, made = Coding(2.0**-4, zeros[0]), Coding(2.0**-1, zeros[1])
    weight, codes, steps = draw_weights(24, 50)
    bias = np.random.randint(-64, 64, 24) / 8
    linear = FusedLinear(weight, torch.from_numpy(bias).float(), relu=relu)
    for rows in (1, 7, 0):
        x = np.random.randint(0, 256, (rows, 50)).astype(np.uint8)
        exact = ((x.astype(np.int64) - given.zero) @ codes.T) * (given.scale * steps) + bias
        given_codes = Codes(torch.from_numpy(x), given)
        found = QuantisedLinear(linear, given, made)(given_codes)
        numbers = QuantisedLinear(linear, given, None)(given_codes)
        assert isinstance(found, Codes) and isinstance(numbers, Tensor)
        np.testing.assert_array_equal(found.values.numpy(), as_codes(exact, made, relu))
        np.testing.assert_array_equal(numbers.numpy(), (np.maximum(exact, 0) if relu else exact).astype(np.float32))


def test_numbers_are_encoded_first() -> None:
    conv = FusedConv(torch.ones(1, 1, 1, 1), torch.zeros(1))
    made = QuantisedConv(conv, Coding(0.5, 10), Coding(0.5, 10))(
        torch.tensor([-9.0, 0.25, 0.75, 1.0, 999.0]).view(1, 1, 1, 5)
    )
    assert isinstance(made, Codes)
    assert made.values.flatten().tolist() == [0, 10, 12, 12, 255]  # halves to even; cut at both ends


def test_codes_of_another_coding_are_no_input() -> None:
    conv = QuantisedConv(FusedConv(torch.ones(1, 1, 1, 1), torch.zeros(1)), Coding(0.5, 10), None)
    with pytest.raises(AssertionError, match="something else"):
        conv(Codes(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), Coding(0.25, 10)))


def test_the_same_where_the_memory_of_what_is_added_may_be_used() -> None:
    conv = FusedConv(torch.randn(8, 8, 1, 1), torch.zeros(8))
    x, add = torch.randint(0, 256, (2, 1, 8, 4, 4), dtype=torch.uint8)
    made = []
    for may_overwrite in (False, True):
        quantised = QuantisedConv(
            conv, Coding(0.1, 9), Coding(0.3, 100), added=Coding(0.2, 50), may_overwrite=may_overwrite
        )
        made.append(quantised(Codes(x, Coding(0.1, 9)), Codes(add.clone(), Coding(0.2, 50))))
    first, second = made
    assert isinstance(first, Codes) and isinstance(second, Codes) and torch.equal(first.values, second.values)


def test_weights_of_a_channel_that_is_zero_throughout() -> None:
    codes, scales = weight_codes(torch.tensor([[0.0, 0.0], [-2.54, 1.0]]))
    assert codes.tolist() == [[0, 0], [-127, 50]] and bool((scales > 0).all())
