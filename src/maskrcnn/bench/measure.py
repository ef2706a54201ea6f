"""Clocks: sides take turns and are compared by medians; the peak of this process's memory."""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Progress = Callable[[str, float], None]  # what is at work, done from 0 to 1
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # to clear_refs: VmHWM starts anew; proc(5)


def say_nothing(what: str, done: float) -> None: ...


@dataclass(frozen=True)
class Timing:
    """seconds: of each round, in the order of the rounds; at least one."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def fastest(self) -> float:
        return min(self.seconds)

    @property
    def slowest(self) -> float:
        return max(self.seconds)


@dataclass(frozen=True)
class Ratio:
    """How many times faster than the peer: by the medians; by each side's fastest round, which other work on the
    machine delayed least; and the lowest and highest of single rounds.
    """

    of_medians: float
    of_fastest: float
    lowest: float
    highest: float


def times_faster(ours: Timing, peer: Timing) -> Ratio:
    """Rounds are paired, since the two sides of one round met the same noise."""
    rounds = [theirs / mine for theirs, mine in zip(peer.seconds, ours.seconds, strict=True)]
    return Ratio(peer.median / ours.median, peer.fastest / ours.fastest, min(rounds), max(rounds))


def interleaved(
    sides: Mapping[str, Callable[[Any], Any]],
    items: Sequence[Any],
    rounds: int,
    *,
    warmup: int = 1,
    device: torch.device | str = "cpu",
    progress: Progress = say_nothing,
) -> dict[str, Timing]:
    """Seconds per item of each side: every side takes every item once a round, in the order A B, B A, A B, ...

    Sides stand next to each other item by item, so that what else the machine does slows all of them alike, and the
    order turns round so that none always comes after the same other. `warmup` rounds are not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(-warmup, rounds):
        spent = dict.fromkeys(sides, 0.0)
        gc.collect()  # rubbish of rounds before is nobody's work
        for position, item in enumerate(items):
            names = list(sides) if (number + position) % 2 == 0 else list(sides)[::-1]
            for name in names:
                done = (number + warmup + position / len(items)) / (rounds + warmup)
                progress(name, done)
                spent[name] += seconds_of(sides[name], item, device)
        if number >= 0:
            for name, total in spent.items():
                seconds[name].append(total / len(items))
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def seconds_of(work: Callable[[Any], Any], item: Any, device: torch.device | str = "cpu") -> float:
    """Of one call, with what the device still had to do."""
    wait(device)
    began = time.perf_counter()
    work(item)
    wait(device)
    return time.perf_counter() - began


def wait(device: torch.device | str) -> None:
    """Until the device has done what it was given."""
    place = torch.device(device)
    if place.type == "cuda":
        torch.cuda.synchronize(place)
    elif place.type == "mps":
        torch.mps.synchronize()


# --- memory -----------------------------------------------------------------------------------------------------------


def give_back_freed_memory() -> None:
    """What was freed goes back to the system, as far as the C library can (glibc)."""
    gc.collect()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def peak_mb(work: Callable[[], Any], device: torch.device | str = "cpu") -> float:
    """MB (of 2**20 bytes) that `work` took at its peak above what was in use before; NaN where nobody counts it.

    On Linux of this process's resident memory. On other systems the peak is that of the process's whole life, so only a
    call that goes beyond everything before is seen. On CUDA of the memory that torch holds there.
    """
    give_back_freed_memory()
    place = torch.device(device)
    if place.type == "cuda":
        wait(place)
        torch.cuda.reset_peak_memory_stats(place)
        before = torch.cuda.memory_allocated(place)
        work()
        wait(place)
        return (torch.cuda.max_memory_allocated(place) - before) / 2**20
    with suppress(OSError):
        _CLEAR.write_text(_RESET_PEAK)
    before_mb = _in_use_mb()
    work()
    return _peak_mb() - before_mb


def _in_use_mb() -> float:
    return _of_status("VmRSS") if _STATUS.exists() else _peak_mb()


def _peak_mb() -> float:
    if _STATUS.exists():
        return _of_status("VmHWM")
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, else kB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _of_status(field: str) -> float:
    lines: Iterable[str] = _STATUS.read_text().splitlines()
    line = next((line for line in lines if line.startswith(field + ":")), None)
    return float("nan") if line is None else int(line.split()[1]) / 1024  # the file counts in kB
