"""oneDNN's packed layers against the same sums in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from maskrcnn.engine.choose import packing_works
from maskrcnn.engine.conv import FusedConv
from maskrcnn.engine.linear import FusedLinear
from maskrcnn.engine.packed import PackedConv, PackedLinear

pytestmark = pytest.mark.skipif(not packing_works(torch.float32), reason="this torch has no packed layers")
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
dtypes = pytest.mark.parametrize("dtype", CLOSE, ids=str)

GEOMETRIES: dict[str, dict[str, Any]] = {
    "3x3": {"padding": (1, 1)},
    "strided": {"padding": (1, 1), "stride": (2, 2)},
    "dilated": {"padding": (2, 2), "dilation": (2, 2)},
    "groups": {"padding": (1, 1), "groups": 4},
    "depthwise": {"padding": (1, 1), "groups": 16},
    "uneven": {"padding": (0, 1), "stride": (1, 2)},
}


@dtypes
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_convolution(geometry: str, relu: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    where = GEOMETRIES[geometry]
    weight, bias = torch.randn(16, 16 // where.get("groups", 1), 3, 3) / 8, torch.randn(16)
    conv = FusedConv(weight, bias, relu=relu, **where)
    packed = PackedConv(conv, dtype)
    for shape in ((1, 16, 9, 7), (3, 16, 33, 20), (0, 16, 9, 7)):
        x = torch.randn(shape).to(dtype)
        rounded = (weight.to(dtype).double(), bias.to(dtype).double())
        expected = F.conv2d(x.double(), *rounded, **where)
        add = torch.randn(expected.shape).to(dtype)
        kept = add.clone()
        with torch.no_grad():
            alone, summed = packed(x), packed(x, add)
        for found, wanted in ((alone, expected), (summed, expected + add.double())):
            wanted = wanted.relu() if relu else wanted
            assert found.dtype == dtype
            torch.testing.assert_close(found.double(), wanted, atol=CLOSE[dtype], rtol=CLOSE[dtype])
        assert torch.equal(add, kept), "what is added is changed"
        over = PackedConv(FusedConv(weight, bias, relu=relu, overwrites=True, **where), dtype)
        given = add.to(memory_format=torch.channels_last)
        with torch.no_grad():
            torch.testing.assert_close(over(x, given), summed, atol=CLOSE[dtype], rtol=CLOSE[dtype])


@dtypes
@pytest.mark.parametrize("relu", [False, True])
def test_linear(relu: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    linear = FusedLinear(torch.randn(24, 50) / 7, torch.randn(24), relu=relu)
    packed = PackedLinear(linear, dtype)
    for rows in (0, 1, 7):
        x = torch.randn(rows, 50).to(dtype)
        expected = F.linear(x.double(), linear.weight.to(dtype).double(), linear.bias.to(dtype).double())
        found = packed(x)
        wanted = expected.relu() if relu else expected
        torch.testing.assert_close(found.double(), wanted, atol=CLOSE[dtype], rtol=CLOSE[dtype])


def test_packings_of_a_large_layer_are_not_piled_up() -> None:
    torch.manual_seed(0)
    conv = FusedConv(torch.randn(1024, 2048, 1, 1) / 45, torch.randn(1024))
    packed = PackedConv(conv, torch.float32)
    for side in (2, 3, 4, 5, 2):
        x = torch.randn(1, 2048, side, side)
        with torch.no_grad():
            torch.testing.assert_close(packed(x), conv(x), atol=1e-4, rtol=1e-4)
    assert list(packed._packed) == [(5, 5), (2, 2)]
