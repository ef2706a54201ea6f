"""Detecting, ours against torchvision's: from JPEG to RLE, stage by stage, memory, and the floor of the machine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from maskrcnn.bench.comparing import compared
from maskrcnn.bench.floor import floor_seconds, measured_rates
from maskrcnn.bench.measure import Progress, Timing, interleaved, say_nothing
from maskrcnn.bench.memory import OneSide, peaks_of
from maskrcnn.bench.options import BenchOptions, opened, plain
from maskrcnn.bench.peer import Work, random_weights, torchvision_peer
from maskrcnn.bench.pictures import BenchPicture, bench_pictures
from maskrcnn.bench.rows import Row, timed_rows
from maskrcnn.bench.sides import Ours, Side, Theirs
from maskrcnn.bench.stages import STAGES, stage_flops, stage_seconds, stages_of
from maskrcnn.data.pictures import read_picture
from maskrcnn.predictor import Predictor

WHOLE, BY_STAGE, MEMORY, FLOOR = "picture to RLE", "stages", "peak memory of a picture", "floor of the machine"
TORCHVISION, PLAIN = "torchvision", "plain float32"


@dataclass(frozen=True)
class Sides:
    """All sides on one set of weights, the peer first. ours: the predictor behind each side that is ours."""

    by_name: Mapping[str, Side]
    ours: Mapping[str, Predictor]
    weights: str
    config: Mapping[str, Any]
    work: Work

    @property
    def peer(self) -> str:
        return next(iter(self.by_name))


def bench_detecting(options: BenchOptions, progress: Progress = say_nothing) -> list[Row]:
    """Rows of the works above. The sides take turns in this process; memory is measured in processes of their own."""
    pictures = bench_pictures(options.pictures)
    with _sides(options, pictures[0], progress) as sides:
        data = [picture.data for picture in pictures]
        rows = compared(WHOLE, sides.by_name, data, options.rounds, device=options.device, progress=progress)
        seconds = {row.side: row.timing.median for row in rows if row.timing is not None}
        flops = stage_flops(sides.ours[_first(sides.ours)].model, _pixels(pictures[0]))
        rows += _stage_rows(sides, pictures[0], options, flops, progress)
        rows += _memory_rows(sides, pictures[0], options, progress)
        rows += floor_rows(flops, seconds, options, progress)
    return rows


@contextmanager
def _sides(options: BenchOptions, picture: BenchPicture, progress: Progress) -> Iterator[Sides]:
    """The weights lie in a file while they are needed: other processes open them too."""
    asked = {name: getattr(options, name) for name in ("shortest", "proposals", "detections")}
    work = Work(**{name: value for name, value in asked.items() if value is not None})
    with tempfile.TemporaryDirectory() as folder:
        weights = options.weights
        if weights is None:
            progress("making weights", 0.0)
            weights = str(random_weights(Path(folder) / "model.pth", picture.data, work, options.body))
        yield _opened_sides(weights, work, options)


def _opened_sides(weights: str, work: Work, options: BenchOptions) -> Sides:
    first = opened(weights, {}, options.precisions[0], options)
    peer = torchvision_peer(weights, first.model.config, work)
    config = work.of_ours() if peer is not None else _asked_of_ours(options)
    ours = {f"ours {p}": opened(weights, config, p, options) for p in options.precisions}
    sides: dict[str, Side] = {}
    if peer is not None:
        sides[TORCHVISION] = Theirs(peer, ours[_first(ours)].device)
    else:
        sides[PLAIN] = Ours(plain(opened(weights, config, "float32", options)))
    sides |= {name: Ours(predictor) for name, predictor in ours.items()}
    return Sides(sides, ours, weights, config, work)


def _asked_of_ours(options: BenchOptions) -> dict[str, Any]:
    """Only what was asked for: a checkpoint of another kind keeps its own."""
    work: dict[str, Any] = {}
    if options.shortest is not None:
        work["preprocess"] = {"shortest": options.shortest, "scale": None}
    if options.proposals is not None:
        work["rpn"] = {"post_nms_top_n": options.proposals}
    if options.detections is not None:
        work["detection"] = {"max_detections": options.detections}
    return work


def _first(named: Mapping[str, Any]) -> str:
    return next(iter(named))


# --- stage by stage ---------------------------------------------------------------------------------------------------


def _stage_rows(
    sides: Sides,
    picture: BenchPicture,
    options: BenchOptions,
    flops: Mapping[str, float],
    progress: Progress,
) -> list[Row]:
    """Of one picture. Sides that show no stages are left out, stages that nobody has too."""
    spent: dict[str, list[dict[str, float]]] = {}
    works: dict[str, Any] = {}
    for name, side in sides.by_name.items():
        if stages_of(side) is not None:
            spent[name] = []
            works[name] = partial(_keep, stage_seconds(side, options.device), spent[name])
    if not works:
        return []
    interleaved(works, [picture.data], options.rounds, device=options.device, progress=_named(progress, "stages of "))
    rows: list[Row] = []
    for stage in STAGES:
        timings = {
            name: Timing(tuple(each.get(stage, 0.0) for each in rounds[-options.rounds :]))
            for name, rounds in spent.items()
        }
        if all(timing.slowest > 0 for timing in timings.values()):
            about = {name: {"GFLOP": flops.get(stage, 0.0) / 1e9} for name in spent}
            rows += timed_rows(BY_STAGE, timings, _first(timings), part=stage, facts=about)
    return rows


def _keep(run: Any, spent: list[dict[str, float]], data: bytes) -> None:
    spent.append(run(data))


def _named(progress: Progress, before: str) -> Progress:
    return lambda what, done: progress(before + what, done)


# --- memory, and the floor --------------------------------------------------------------------------------------------


def _memory_rows(sides: Sides, picture: BenchPicture, options: BenchOptions, progress: Progress) -> list[Row]:
    one = OneSide(
        weights=sides.weights, config=sides.config, work=sides.work, device=options.device, threads=options.threads
    )
    asked: dict[str, OneSide] = {}
    if sides.peer == TORCHVISION:
        asked[TORCHVISION] = replace(one, peer=True)
    for name, precision in zip(sides.ours, options.precisions, strict=True):
        calibration = options.calibration if precision == "int8" else None
        asked[name] = replace(one, precision=precision, calibration=calibration)
    rows = []
    for i, (name, side) in enumerate(asked.items()):
        progress(f"memory of {name}", i / len(asked))
        peaks = peaks_of(side, picture.data)
        rows.append(Row(work=MEMORY, side=name, memory_mb=peaks.later_mb, facts={"first_picture_mb": peaks.first_mb}))
    return rows


def floor_rows(
    flops: Mapping[str, float], seconds: Mapping[str, float], options: BenchOptions, progress: Progress = say_nothing
) -> list[Row]:
    """seconds: of whole pictures by side. share: of a side's time that its arithmetic would take at the best rate."""
    rows = []
    total = sum(flops.values())
    for precision, rates in measured_rates(options.precisions, options.device, progress).items():
        floor = floor_seconds(flops, rates)
        facts: dict[str, Any] = {
            "GFLOP": total / 1e9,
            "conv_GFLOP_per_s": rates.conv,
            "gemm_GFLOP_per_s": rates.gemm,
            "floor_s": floor,
        }
        ours = seconds.get(f"ours {precision}")
        if floor is not None and ours:
            facts["share_of_floor"] = floor / ours
        known = {name: value for name, value in facts.items() if value is not None}
        rows.append(Row(work=FLOOR, side=f"ours {precision}", facts=known))
    return rows


def _pixels(picture: BenchPicture) -> torch.Tensor:
    return torch.from_numpy(read_picture(picture.data).copy()).permute(2, 0, 1)
