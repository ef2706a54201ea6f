"""What a fresh process tells of its imports."""

from __future__ import annotations

import pytest

from maskrcnn.bench import start
from maskrcnn.bench.options import BenchOptions
from maskrcnn.bench.start import bench_start, packages
from maskrcnn.errors import InputError

TOLD = """import time: self [us] | cumulative | imported package
import time:       100 |        100 |     torch._C
import time:       400 |    1500000 |   torch
import time:        20 |         20 | zipimport
A line of something else | 12 | torch
import time:       400 |     250000 | timm
"""


def test_packages_with_what_they_import() -> None:
    assert packages(TOLD) == {"torch": 1.5, "zipimport": 2e-5, "timm": 0.25}


def test_from_a_cold_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "_SIDE", 64)
    imported, first = bench_start(BenchOptions(rounds=1))
    assert imported.facts["other_packages_loaded"] == "none"  # not even torch
    assert imported.timing is not None and first.timing is not None
    parts = [first.facts[name] for name in ("import_s", "load_s", "detect_s")]
    assert 0 < sum(map(float, parts)) < first.timing.median  # Python itself starts before
    assert "torch " in str(first.facts["heaviest_imports"])


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(InputError, match="start: a process of its own failed: .*no-such-weights"):
        bench_start(BenchOptions(rounds=1), weights="no-such-weights")
