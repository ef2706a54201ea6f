"""Which arithmetic is faster here? Asked of the machine, since names of processors do not tell."""

from __future__ import annotations

import time
from typing import Literal

import torch
import torch.nn.functional as F

_ROUNDS = 12


def fastest_precision(device: torch.device) -> Literal["float32", "bf16"]:
    """ "bf16" where a convolution, forward and backward, takes less than 0.8 of its time in float32; takes 0.2 s.

    Processors without instructions of their own emulate bf16, and are many times slower at it. Others on the machine
    only ever make a run slower, so each counts with its fastest of a few, taken in turns.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device.type != "cpu":
        return "float32"
    rounds = [(_seconds(torch.float32), _seconds(torch.bfloat16)) for _ in range(_ROUNDS)]
    exact, short = (min(seconds) for seconds in zip(*rounds, strict=True))
    return "bf16" if short < 0.8 * exact else "float32"


def _seconds(dtype: torch.dtype) -> float:
    x = torch.zeros(2, 64, 64, 64).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.zeros(64, 64, 3, 3, requires_grad=True)
    began = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = F.conv2d(x, weight, padding=1).float().sum()
    torch.autograd.backward(loss)
    return time.perf_counter() - began
