"""Runs a file of checks on Triton's kernels in a process in which Triton interprets them, on a CPU.

Whether kernels are compiled or interpreted is settled when Triton is first imported, which other tests may have done.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def run_interpreted(name: str, *choice: str) -> None:
    """Every check of the file `name` beside this one, or those that pytest's arguments `choice` pick."""
    pytest.importorskip("triton")
    quiet = ["-q", "-p", "no:cacheprovider", "-W", "ignore:invalid value encountered in divide:RuntimeWarning"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *quiet, str(Path(__file__).with_name(name)), *choice],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def compile_kernel(kernel: Any, types: dict[str, str], constants: dict[str, Any], capability: int, folder: Path) -> str:
    """The kernel's code for GPUs of this capability (80: A100, 90: H100), as PTX; no GPU is needed for that.

    types: of the arguments that are no constants ("*fp32", "i32"). folder: where Triton keeps what it compiled.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(folder))
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        options = {"num_warps": 4, "enable_fp_fusion": False}
        built = compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert built.asm["cubin"]
    return str(built.asm["ptx"])
