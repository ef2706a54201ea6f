from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from maskrcnn.losses.reduce import shared_count

CPU = torch.device("cpu")


@pytest.mark.parametrize(("count", "expected"), [(0, 1), (1, 1), (7, 7), (torch.tensor(5), 5), (torch.tensor(0), 1)])
def test_alone_it_is_the_count(count: int | Tensor, expected: float) -> None:
    shared = shared_count(count, CPU)
    assert shared.item() == expected
    assert shared.dtype == torch.float32 and shared.shape == ()


@pytest.mark.parametrize(("mine", "others", "expected"), [(10, 2, 3.0), (0, 12, 3.0), (0, 0, 0.25), (12, 0, 3.0)])
def test_among_four_it_is_a_quarter_of_all(
    mine: int, others: int, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    monkeypatch.setattr(dist, "all_reduce", lambda total: total.add_(others))
    count = torch.tensor(float(mine))
    assert shared_count(count, CPU).item() == expected
    assert count.item() == mine  # what was handed in stays as it was
