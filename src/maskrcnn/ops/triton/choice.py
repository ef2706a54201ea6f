"""Which kernels a CUDA device runs: torchvision's, or ours, in which the host never waits for the device.

torchvision's NMS returns as many indices as boxes stay, and its RoIAlign takes one level at a time: both times the host
must learn a number from the device before it can go on. No CUDA graph can hold such a step, so ours are taken wherever
one is recorded. Elsewhere torchvision's stay, until `benchmarks/gpu.py` has shown on a card that ours are faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch

Name = Literal["nms", "roi_align"]

_asked: ContextVar[frozenset[Name]] = ContextVar("own_kernels", default=frozenset())


@contextmanager
def own_kernels(*names: Name) -> Iterator[None]:
    """While this lasts, the kernels of these names are ours on CUDA; without names, torchvision's."""
    token = _asked.set(frozenset(names))
    try:
        yield
    finally:
        _asked.reset(token)


def takes_own(name: Name, device: torch.device) -> bool:
    """Whether this call is for our kernel: on CUDA, where asked for or where a graph is recorded."""
    if device.type != "cuda" or not has_triton():
        return False
    return torch.compiler.is_compiling() or name in _asked.get()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def has_triton() -> bool:
    """Triton comes with torch's CUDA builds for Linux, and not with others."""
    return True if torch.compiler.is_compiling() else _has_triton()
