"""The RoIAlign kernels of GPUs, checked without one: by Triton's interpreter, and by its compiler."""

from __future__ import annotations

from pathlib import Path

import pytest

from .interpreter import compile_kernel, run_interpreted


def test_in_the_interpreter() -> None:
    run_interpreted("interpreted_roi_align.py")


@pytest.mark.parametrize("ratio", [2, 0])
@pytest.mark.parametrize("held", ["fp32", "bf16", "fp16"])
def test_compiles(held: str, ratio: int, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    from maskrcnn.ops.triton import roi_align

    constants = {"RATIO": ratio, "SHIFT": 0.5, "LEAST": float("-inf"), "BLOCK": 256}
    places = {"boxes": "*fp32", "image_index": "*i64", "level_index": "*i64"}
    sizes = dict.fromkeys((*roi_align._COUNTS, "channels"), "i32")
    scales = {f"s{i}": "fp32" for i in range(4)}
    forward = {"pooled": f"*{held}"} | {f"f{i}": f"*{held}" for i in range(4)}
    backward = {"grad": f"*{held}"} | {f"g{i}": "*fp32" for i in range(4)}
    for kernel, maps in ((roi_align._forward_kernel, forward), (roi_align._backward_kernel, backward)):
        types = maps | places | sizes | scales
        assert "ld.global" in compile_kernel(kernel, types, constants, 90, tmp_path)
