"""The comparison: each system learns for as long as the others, is scored by the same code, and timed stage by stage.

Every system and seed has a folder of its own below `systems/`, with its settings (written before anything else) and, at
the end, its row. A later call with the same settings takes the rows that are there and goes on with the rest.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import timm

from maskrcnn.data.dataset import Dataset
from maskrcnn.data.opening import DataLike
from maskrcnn.errors import InputError
from maskrcnn.evaluation.evaluate import Evaluation, evaluate
from maskrcnn.lineage.ablations import Ablation, ablation_of, require_fits
from maskrcnn.lineage.page import LINEAGE, Subject
from maskrcnn.lineage.report import write_report
from maskrcnn.lineage.rows import VERSION, Row, claim, read_row, require_mine, write_row
from maskrcnn.lineage.small import small_body, usual_scale
from maskrcnn.lineage.system import Bench, Stopwatch, System, Trained
from maskrcnn.lineage.systems import MAIN, systems_of
from maskrcnn.model.backbone import BackboneConfig
from maskrcnn.model.config import to_dict
from maskrcnn.structures import Detections
from maskrcnn.training.distributed import join_world
from maskrcnn.training.start import Pictures, open_pictures
from maskrcnn.training.validate import spread
from maskrcnn.weights.backbones import require_reachable

MAX_DETECTIONS = (100, 300)  # of a picture and class; APs of the table are at the larger

Progress = Callable[[str, float], None]  # (what is at work, the part of it that is done, 0 to 1)
OnRow = Callable[[Sequence[Row]], object]  # with all rows so far, after each that was made, and at the end


def lineage(
    data: DataLike,
    out: str | Path,
    minutes: float | None,
    *,
    steps: int | None = None,
    systems: Sequence[str] = tuple(MAIN),
    ablation: str | None = None,
    val: DataLike | None = None,
    images: str | Path | None = None,
    val_fraction: float = 0.1,
    skip_bad: bool = False,
    pictures: int | None = 500,
    val_pictures: int | None = None,
    backbone: str | None = None,
    pretrained_backbone: bool = False,
    scale: float | None = None,
    seeds: Sequence[int] = (0,),
    device: str = "auto",
    progress: Progress = lambda what, done: None,
) -> list[Row]:
    """Compare systems, or the variants of an ablation, and write the report to `out` after each.

    Args:
        data, val, images, val_fraction, skip_bad: as for `maskrcnn.train`; a split is the same for all seeds.
        minutes: of training for each system and seed. steps: of the optimizer, in place of minutes, for an ablation.
        systems: keys of `systems.MAIN` and `systems.OTHERS`. ablation: of `ablations.ABLATIONS`, in their place.
        pictures, val_pictures: at most so many to learn from and to be judged by, evenly spread; None: all.
        backbone: timm's name of the body that all share; None: a small ResNet.
        scale: how much larger than the pictures networks see them; None: so that the median object has 36 px.

    Raises:
        InputError: bad data or options, or `out` holds rows of other settings; before anything is trained.
    """
    chosen = None if ablation is None else ablation_of(ablation)
    if (minutes is None) == (steps is None):
        raise InputError("say how long each learns", field="minutes, steps", expected="one of them")
    if steps is not None and chosen is None:
        raise InputError("has no use here", field="steps", expected="minutes: not every system learns in steps")
    compared = systems_of(systems) if chosen is None else chosen.variants
    body = _body(backbone, pretrained_backbone)
    opened = open_pictures(data, val, val_fraction=val_fraction, seed=0, images=images, skip_bad=skip_bad)
    opened = fewer_pictures(opened, pictures, val_pictures)
    if chosen is not None:
        require_fits(chosen, opened.train, body, pretrained_backbone)
    plan = Plan(
        systems=compared,
        pictures=opened,
        out=Path(out),
        minutes=minutes,
        steps=steps,
        body=body,
        scale=usual_scale(opened.train) if scale is None else scale,
        pretrained=pretrained_backbone,
        seeds=tuple(seeds),
        device=device,
    )
    subject, settings = LINEAGE if chosen is None else subject_of(chosen, steps), plan.settings()
    return compare(plan, progress, lambda rows: write_report(plan.out, subject, rows, settings))


def subject_of(ablation: Ablation, steps: int | None = None) -> Subject:
    """An ablation as the report tells of it, after so many steps or the same time each."""
    length = "the same time" if steps is None else f"{steps} steps"
    return Subject(
        title=ablation.question,
        lead=f"An ablation of {ablation.source}, each network trained for {length}.",
        columns=(*ablation.compared, "seconds_per_picture", "training_seconds"),
        paper=ablation.expected,
        expected={ablation.compared[0]: ablation.order},
    )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is compared, on what, and how long each may learn.

    pictures: those to learn from and those to be judged by. out: folder of everything. minutes: of training for each
    system and seed. body, scale, pretrained, device: as in `Bench`. seeds: each a whole run of every system.
    """

    systems: tuple[System, ...]
    pictures: Pictures
    out: Path
    minutes: float | None
    body: BackboneConfig
    steps: int | None = None  # in place of minutes
    scale: float = 1.0
    pretrained: bool = False
    seeds: tuple[int, ...] = (0,)
    device: str = "auto"

    def folder(self, system: System, seed: int) -> Path:
        return self.out / "systems" / f"{system.key}-seed-{seed}"

    def settings(self) -> dict[str, Any]:
        """All that the rows hang on, but for system and seed."""
        return {
            "version": VERSION,
            "data": fingerprint(self.pictures),
            "minutes": None if self.minutes is None else float(self.minutes),
            "steps": self.steps,
            "body": to_dict(self.body),
            "pretrained": self.pretrained,
            "scale": float(self.scale),
            "device": _device_type(self.device),
            "max_detections": max(MAX_DETECTIONS),
        }


def fewer_pictures(pictures: Pictures, train: int | None, val: int | None) -> Pictures:
    """At most so many of each, evenly spread; None: all.

    Raises InputError where no object is left, to learn from or to be judged by.
    """
    fewer = replace(pictures, train=spread(pictures.train, train), val=spread(pictures.val, val))
    for name, part in (("pictures", fewer.train), ("val_pictures", fewer.val)):
        if not _objects(part):
            found = f"{len(part)} pictures"
            raise InputError("none of them holds an object", field=name, found=found, expected="more pictures")
    return fewer


def fingerprint(pictures: Pictures) -> dict[str, Any]:
    """Tells whether rows were made on the same pictures."""
    objects = {"training_objects": _objects(pictures.train), "validation_objects": _objects(pictures.val)}
    return pictures.fingerprint() | objects


def compare(plan: Plan, progress: Progress, on_row: OnRow) -> list[Row]:
    """A row for each seed and system, taken from the folder or made, in this order.

    An error ends it; the rows made by then stay. Raises InputError before anything is trained where a folder holds
    rows of other settings.
    """
    settings = plan.settings()
    pairs = [(seed, system) for seed in plan.seeds for system in plan.systems]
    for seed, system in pairs:
        require_mine(plan.folder(system, seed), _own(settings, system, seed))
    rows: list[Row] = []
    for number, (seed, system) in enumerate(pairs, start=1):
        title = f"{system.name} ({number} of {len(pairs)}), " + (f"seed {seed}, " if len(plan.seeds) > 1 else "")

        def told(what: str, done: float, title: str = title) -> None:
            progress(title + what, done)

        folder = plan.folder(system, seed)
        kept = read_row(folder)
        if kept is None:
            claim(folder, _own(settings, system, seed))
        row = kept or _made(plan, system, seed, told)
        if kept is None:
            write_row(folder, row)
        rows.append(replace(row, name=system.name))  # ablations call one variant by several names
        if kept is None or number == len(pairs):
            on_row(tuple(rows))
    return rows


def score(trained: Trained, dataset: Dataset, progress: Progress) -> tuple[Evaluation, float, dict[str, float]]:
    """(scores, seconds per picture, seconds per picture of each stage) of a system, one picture at a time.

    The first picture is detected once more beforehand, unwatched: what is loaded and compiled on first use is not the
    system's. Reading pictures and scoring are not timed.
    """
    watch = Stopwatch()
    spent = 0.0
    trained.detect(dataset[0][0], Stopwatch())

    def detect(pictures: Iterable[np.ndarray]) -> Iterator[Detections]:
        nonlocal spent
        for picture in pictures:
            began = time.perf_counter()
            found = trained.detect(picture, watch)
            spent += time.perf_counter() - began
            yield found

    scores = evaluate(
        detect,
        dataset,
        max_detections=MAX_DETECTIONS,
        progress=lambda done, total: progress("detecting", done / total),
    )
    count = len(dataset)
    return scores, spent / count, {stage: seconds / count for stage, seconds in watch.seconds.items()}


def _made(plan: Plan, system: System, seed: int, progress: Progress) -> Row:
    progress("starting", 0.0)
    trained = system.train(
        Bench(
            train=plan.pictures.train,
            val=plan.pictures.val,
            folder=plan.folder(system, seed),
            proposals=plan.out / "proposals",
            minutes=math.inf if plan.minutes is None else plan.minutes,
            steps=plan.steps,
            body=plan.body,
            scale=plan.scale,
            pretrained=plan.pretrained,
            seed=seed,
            device=plan.device,
            progress=progress,
        )
    )
    scores, seconds, stages = score(trained, plan.pictures.val, progress)
    box, mask = scores.box, scores.mask
    assert box.ap is not None and box.ap50 is not None and box.ap75 is not None  # there are objects
    return Row(
        name=system.name,
        key=system.key,
        seed=seed,
        pictures=len(plan.pictures.val),
        box_ap=box.ap,
        box_ap50=box.ap50,
        box_ap75=box.ap75,
        mask_ap=None if mask is None else mask.ap,
        mask_ap50=None if mask is None else mask.ap50,
        mask_ap75=None if mask is None else mask.ap75,
        seconds_per_picture=seconds,
        stages=stages,
        training=trained.training,
        facts=trained.facts,
    )


def _body(backbone: str | None, pretrained: bool) -> BackboneConfig:
    if backbone is None:
        if pretrained:
            raise InputError("needs weights", field="pretrained_backbone", expected="the name of a backbone beside it")
        return small_body()
    if not timm.is_model(backbone):
        raise InputError("no such network", field="backbone", found=backbone, expected="a name that timm knows")
    if pretrained:
        require_reachable(backbone)
    return BackboneConfig(name=backbone)


def _own(settings: Mapping[str, Any], system: System, seed: int) -> dict[str, Any]:
    return {"system": system.key, "seed": seed, **settings}


def _objects(dataset: Dataset) -> int:
    """That count: regions of a crowd do not."""
    return sum(int((~dataset.target(i).is_crowd).sum()) for i in range(len(dataset)))


def _device_type(device: str) -> str:
    """cpu, cuda or mps: seconds of one say nothing of another's."""
    with join_world(device) as world:
        return world.device.type
