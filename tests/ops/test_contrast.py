from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from maskrcnn.ops import contrast
from maskrcnn.ops.contrast import stretch


def by_hand(picture: Tensor, fraction: float) -> np.ndarray:
    """In float64: the ends are the values with the share `fraction` of all values beyond them."""
    values = np.sort(picture.numpy().ravel()).astype(np.float64)
    cut = int(np.floor(fraction * len(values)))
    low, high = values[cut], values[len(values) - 1 - cut]
    spread = (picture.numpy().astype(np.float64) - low) * 255 / max(high - low, 1)
    return np.clip(np.round(spread), 0, 255).astype(np.uint8)


def test_an_empty_picture() -> None:
    assert stretch(torch.zeros(3, 0, 5, dtype=torch.uint8), 0.01).shape == (3, 0, 5)


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.01, 0.25, 0.49])
@pytest.mark.parametrize(("low", "high"), [(0, 256), (3, 40), (100, 102), (200, 256)])
def test_equals_the_definition(fraction: float, low: int, high: int) -> None:
    picture = torch.randint(low, high, (3, 31, 17), dtype=torch.uint8)
    stretched = stretch(picture, fraction)
    assert stretched.dtype == torch.uint8
    assert np.array_equal(stretched.numpy(), by_hand(picture, fraction))


def test_a_dark_picture_fills_the_range() -> None:
    picture = torch.randint(10, 40, (3, 50, 50), dtype=torch.uint8)
    stretched = stretch(picture, 0.0)
    assert (stretched.min(), stretched.max()) == (0, 255)
    order = picture.flatten().argsort()
    assert (stretched.flatten()[order].diff() >= 0).all()


def test_a_picture_that_fills_the_range_stays() -> None:
    picture = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).repeat(3, 1, 1)
    assert torch.equal(stretch(picture, 0.0), picture)


def test_one_value_everywhere_is_black() -> None:
    assert not stretch(torch.full((3, 4, 4), 77, dtype=torch.uint8), 0.001).any()


def test_a_few_hot_pixels_do_not_count() -> None:
    picture = torch.randint(10, 40, (3, 100, 100), dtype=torch.uint8)
    hot = picture.clone()
    hot[:, 0, 0] = 255
    assert torch.equal(stretch(hot, 0.001)[:, 1:], stretch(picture, 0.001)[:, 1:])


def test_channels_share_one_stretch() -> None:
    picture = torch.tensor([[[20, 30]], [[10, 15]], [[10, 60]]], dtype=torch.uint8)
    assert stretch(picture, 0.0).flatten().tolist() == [51, 102, 0, 26, 0, 255]


def test_a_huge_picture_is_never_held_in_wide_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = torch.randint(3, 40, (3, 100, 101), dtype=torch.uint8)
    whole = stretch(picture, 0.01)
    monkeypatch.setattr(contrast, "_AT_ONCE", 3000)
    with LargestWide() as seen:
        assert torch.equal(stretch(picture, 0.01), whole)
    assert seen.numel == 3000


class LargestWide(TorchDispatchMode):
    """The most int64 numbers that one operation puts out."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype == torch.int64:
            self.numel = max(self.numel, result.numel())
        return result
