"""Freed memory is kept while the block lasts: measured by the pages that the system has to hand over anew."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
from contextlib import nullcontext
import torch
from maskrcnn.engine.memory import freed_memory_kept

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work():
    before = faults()
    for _ in range(20):
        torch.ones(40 << 20, dtype=torch.uint8)  # more than glibc keeps by its own rule
    return faults() - before

with freed_memory_kept():
    work()
    kept = work()
print(kept, work())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator that is told is glibc's")
def test_blocks_are_used_again() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    kept, after = map(int, done.stdout.split())
    assert kept < 100, "blocks of the second round were asked of the system again"
    assert after > 10 * max(kept, 10), "the usual rule did not come back"
