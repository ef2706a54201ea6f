"""`benchmarks/gpu.py` runs whole on a CPU, in small, so that its first use on a GPU is not its first use at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def smoke(tmp_path: Path, *sections: str) -> list[dict[str, object]]:
    if not SCRIPT.exists():
        pytest.skip("the benchmarks are not installed")
    written = tmp_path / "gpu.json"
    command = [sys.executable, str(SCRIPT), "--smoke", "--json", str(written), "--only", *sections]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    lines: list[dict[str, object]] = json.loads(written.read_text(encoding="utf-8"))
    assert {line["section"] for line in lines} == set(sections)
    assert "failed" not in {line["unit"] for line in lines}
    return lines


def test_rates_and_kernels(tmp_path: Path) -> None:
    lines = smoke(tmp_path, "machine", "kernels")
    assert all(float(str(line["value"])) > 0 for line in lines)
    assert sum("differs from the CPU in 0 boxes" in str(line["note"]) for line in lines) == 2


@pytest.mark.slow
@pytest.mark.parametrize("section", ["detecting", "dense", "training", "compiling"])
def test_the_other_sections(tmp_path: Path, section: str) -> None:
    assert len(smoke(tmp_path, section)) > 2


def test_without_a_device_it_says_so_in_one_line() -> None:
    command = [sys.executable, str(SCRIPT)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 1
    assert done.stderr == "error: no CUDA device here; --smoke runs every line in small on a CPU\n"
