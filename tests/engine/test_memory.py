"""Freed memory is kept while the block lasts: measured by the pages that the system has to hand over anew."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import resource
import torch
from maskrcnn.engine.memory import freed_memory_kept, memory_for

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def held():  # MB in memory
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20

def work():
    before = faults()
    for _ in range(20):
        torch.ones(40 << 20, dtype=torch.uint8)  # more than glibc keeps by its own rule
    return faults() - before

def many():
    blocks = [torch.ones(20 << 20, dtype=torch.uint8) for _ in range(30)]
    del blocks
    return held()

base = held()
with memory_for(1 << 30):  # first: the holes that a heap has once been given are filled before the system is asked
    returned = many() - base
with freed_memory_kept():
    work()
    again = work()
    with memory_for(1 << 30):  # within another it does nothing
        kept = many() - base
left = held() - base
print(again, kept, left, returned)
"""


@pytest.fixture(scope="module")
def numbers() -> list[int]:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not Path("/proc/self/statm").exists(),
    reason="the allocator that is told is glibc's, and Linux tells what it holds",
)


def test_blocks_are_used_again(numbers: list[int]) -> None:
    again, kept, _, _ = numbers
    assert again < 100, "blocks of the second round were asked of the system again"
    assert kept > 550, "600 MB were given back while they should be kept"


def test_much_memory_is_given_back_at_the_end(numbers: list[int]) -> None:
    _, kept, left, _ = numbers
    assert left < 256 < kept


def test_large_pictures_give_back_at_once(numbers: list[int]) -> None:
    assert numbers[3] < 100
