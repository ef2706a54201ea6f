"""Products that are learned through, against the same products in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from maskrcnn.ops import products


@pytest.fixture
def no_size_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_LARGE", 0)


@pytest.mark.usefixtures("no_size_is_small")
@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("in_order", [True, False])
def test_linear_and_its_gradients(rows: int, in_order: bool) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(rows, 12), torch.randn(7, 12), torch.randn(7)
    x = x if in_order else x.t().contiguous().t()
    towards = torch.randn(rows, 7)
    exact = [tensor.double().requires_grad_() for tensor in (x, weight, bias)]
    mine = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
    wanted = F.linear(*exact)
    found = products.linear(*mine)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(found, mine, towards)
    for gradient, expected in zip(gradients, torch.autograd.grad(wanted, exact, towards.double()), strict=True):
        torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-5)


def test_only_large_products_in_float32_are_made_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(products, "_product", lambda a, b, bias=None: made.append(1) or F.linear(a, b, bias))
    x, weight, bias = torch.zeros(64, 2048), torch.zeros(512, 2048, requires_grad=True), torch.zeros(512)
    products.linear(x, weight, bias)
    assert len(made) == 1
    products.linear(x[:63], weight, bias)
    products.linear(x.double(), weight.double(), bias.double())
    with torch.autocast("cpu", torch.bfloat16):
        products.linear(x, weight, bias)
    with torch.no_grad():
        products.linear(x, weight, bias)
    assert len(made) == 1


@pytest.mark.parametrize(("rows", "pixels"), [(0, 9), (1, 1), (3, 49)])
def test_weighted_channels_and_their_gradients(rows: int, pixels: int) -> None:
    torch.manual_seed(0)
    hidden, weights, towards = torch.randn(rows, pixels, 5), torch.randn(rows, 5), torch.randn(rows, pixels)
    exact = [tensor.double().requires_grad_() for tensor in (hidden, weights)]
    mine = [tensor.clone().requires_grad_() for tensor in (hidden, weights)]
    wanted, found = (exact[0] * exact[1][:, None]).sum(2), products.weighted_channels(*mine)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(found, mine, towards)
    for gradient, expected in zip(gradients, torch.autograd.grad(wanted, exact, towards.double()), strict=True):
        torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(products.weighted_channels(hidden, weights).double(), wanted, rtol=1e-5, atol=1e-5)
