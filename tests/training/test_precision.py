"""The faster arithmetic is asked of the machine."""

from __future__ import annotations

import pytest
import torch

from maskrcnn.training import precision


@pytest.mark.parametrize(("bf16", "expected"), [(0.5, "bf16"), (0.9, "float32"), (20.0, "float32")])
def test_half_precision_has_to_be_clearly_faster(monkeypatch: pytest.MonkeyPatch, bf16: float, expected: str) -> None:
    monkeypatch.setattr(precision, "_seconds", lambda dtype: bf16 if dtype == torch.bfloat16 else 1.0)
    assert precision.fastest_precision(torch.device("cpu")) == expected


def test_one_slow_run_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = iter([1.0, 0.5, 1.0, 30.0, 40.0, 0.5] + [1.0, 0.6] * precision._ROUNDS)
    monkeypatch.setattr(precision, "_seconds", lambda dtype: next(runs))
    assert precision.fastest_precision(torch.device("cpu")) == "bf16"


def test_both_are_really_run() -> None:
    assert precision._seconds(torch.float32) > 0 and precision._seconds(torch.bfloat16) > 0
    assert precision.fastest_precision(torch.device("meta")) == "float32"
