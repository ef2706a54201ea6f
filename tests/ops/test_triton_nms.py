"""The NMS kernel of GPUs, checked without one: by Triton's interpreter, and by its compiler."""

from __future__ import annotations

from pathlib import Path

import pytest

from .interpreter import compile_kernel, run_interpreted


def test_in_the_interpreter() -> None:
    run_interpreted("interpreted_nms.py")


@pytest.mark.parametrize("capability", [80, 90])
def test_compiles_and_rounds_each_step(capability: int, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    from maskrcnn.ops.triton.nms import _sweep_kernel

    pointers = {name: "*fp32" for name in ("boxes", "kept_boxes")} | {"counts": "*i32", "keep": "*i8"}
    ptx = compile_kernel(
        _sweep_kernel, pointers | {"limit": "fp32", "length": "i32"}, {"BLOCK": 64}, capability, tmp_path
    )
    assert "div.rn.f32" in ptx and "fma.rn.f32" not in ptx  # as on a CPU, so that ties fall the same way
    assert "bar.sync" in ptx
