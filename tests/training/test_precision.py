"""The faster arithmetic is asked of the machine."""

from __future__ import annotations

import pytest
import torch

from maskrcnn.training import precision


@pytest.mark.parametrize(("bf16", "expected"), [(0.5, "bf16"), (0.9, "float32"), (20.0, "float32")])
def test_half_precision_has_to_be_clearly_faster(monkeypatch: pytest.MonkeyPatch, bf16: float, expected: str) -> None:
    monkeypatch.setattr(precision, "_seconds", lambda dtype: bf16 if dtype == torch.bfloat16 else 1.0)
    assert precision.fastest_precision(torch.device("cpu")) == expected


def test_the_question_takes_little_time() -> None:
    assert 0 < precision._seconds(torch.float32, runs=1) < 5
    assert precision.fastest_precision(torch.device("meta")) == "float32"
