"""Several processes, one batch: set up from what torchrun puts into the environment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from maskrcnn.errors import InputError

_PATIENCE = timedelta(hours=6)  # how long the others wait while rank 0 scores the validation pictures


@dataclass(frozen=True)
class World:
    """This process among all: rank 0 writes files, scores and talks."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_main(self) -> bool:
        return self.rank == 0


@contextmanager
def join_world(device: str = "auto") -> Iterator[World]:
    """Join the processes that torchrun started (NCCL on CUDA, gloo on CPU), or be the only one.

    device: auto (CUDA, else MPS, else the CPU) or a name that torch knows; "cuda" is the one of the process's own rank.

    Errors: `InputError` for a device that is not there.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    place = _device(device, several=size > 1)
    if size == 1:
        yield World(device=place)
        return
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield World(rank, size, place)
    finally:
        dist.destroy_process_group()


def everyone_here(world: World) -> None:
    """Wait until all processes have come so far."""
    any_rank(False, world)


def any_rank(flag: bool, world: World) -> bool:
    """Whether `flag` is true on any process: all leave a loop together."""
    if world.size == 1:
        return flag
    value = torch.tensor(float(flag), device=world.device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())


def from_main(value: float, world: World) -> float:
    """Rank 0's `value`, on every process: clocks and scores are rank 0's."""
    if world.size == 1:
        return value
    shared = torch.tensor(value, dtype=torch.float64, device=world.device)
    dist.broadcast(shared, 0)
    return float(shared.item())


def _device(device: str, *, several: bool) -> torch.device:
    if device == "auto":
        is_mps = torch.backends.mps.is_available() and not several
        device = "cuda" if torch.cuda.is_available() else "mps" if is_mps else "cpu"
    try:
        place = torch.device(device)
        if place.type == "cuda" and place.index is None:
            place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:  # no such name; no such hardware
        expected = "auto, cpu, cuda or mps, where the machine has it"
        raise InputError("no such device", field="device", found=device, expected=expected) from error
    if place.type == "meta":
        raise InputError("computes nothing", field="device", found=device, expected="auto, cpu, cuda or mps")
    if place.type == "cuda":
        torch.cuda.set_device(place)
    return place
