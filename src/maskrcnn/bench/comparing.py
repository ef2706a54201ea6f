"""Sides that find objects in the same pictures: in turns, and how far apart their answers are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch

from maskrcnn.bench.differences import EXACT_IOU, REDUCED_IOU, Differences, differences
from maskrcnn.bench.measure import Progress, interleaved, say_nothing
from maskrcnn.bench.rows import Row, Value, timed_rows
from maskrcnn.bench.sides import Found, Side, Theirs, whole

EXACT = "float32"  # sides of other precisions may be further from the peer


def compared(
    work: str,
    sides: Mapping[str, Side],
    pictures: Sequence[bytes],
    rounds: int,
    *,
    unit: str = "picture",
    device: torch.device | str = "cpu",
    progress: Progress = say_nothing,
) -> list[Row]:
    """From JPEG to RLE. A row for each side, of which the first is the peer, with the differences from it."""
    peer = next(iter(sides))
    kept: dict[str, dict[bytes, Found]] = {name: {} for name in sides}

    def run(name: str, data: bytes) -> None:
        kept[name][data] = whole(sides[name], data)

    works = {name: partial(run, name) for name in sides}
    timings = interleaved(works, pictures, rounds, device=device, progress=progress)
    facts: dict[str, dict[str, Value]] = {
        name: {"pictures_per_second": 1 / timing.median} for name, timing in timings.items()
    }
    facts[peer] |= {"detections": sum(len(found) for found in kept[peer].values())}
    if isinstance(side := sides[peer], Theirs):
        facts[peer] |= {"rle_by": side.encoder}
    for name in list(sides)[1:]:
        same_iou = EXACT_IOU if name.endswith(EXACT) else REDUCED_IOU
        apart = [differences(kept[name][each], kept[peer][each], same_iou) for each in kept[peer]]
        facts[name] |= sum(apart, Differences()).as_facts()
    return timed_rows(work, timings, peer, unit=unit, facts=facts)
