"""`maskrcnn lineage`: R-CNN, Fast, Faster and Mask R-CNN trained and scored alike, in a table, plots and a page."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from tyro.conf import arg

from maskrcnn.cli.options import CommandOptions, WrongUse, made_folder
from maskrcnn.cli.progress import named_bar
from maskrcnn.cli.train import one_of
from maskrcnn.errors import InputError

# as in lineage/systems.py and lineage/ablations.py, which are not imported, since they load torch; a test compares them
System = Literal[
    "hog-svm",
    "rcnn",
    "fast-rcnn",
    "faster-rcnn",
    "mask-rcnn",
    "fast-rcnn-rpn",
    "faster-rcnn-alternating",
    "mask-rcnn-stagewise",
    "mask-rcnn-alternating",
]
Ablation = Literal["mask-classes", "mask-head", "mask-agnostic", "pooling", "mask-branch", "depth"]
MAIN: tuple[System, ...] = ("hog-svm", "rcnn", "fast-rcnn", "faster-rcnn", "mask-rcnn")


@dataclass(frozen=True, kw_only=True)
class Options(CommandOptions):
    """The way to Mask R-CNN: each ancestor learns for the same time, and is scored and timed by the same code.

    Writes lineage.json (a row for each system), table.md, plots and lineage.html, a page with everything. Ctrl-C stops
    it; the same command goes on from there.
    """

    data: Annotated[str, arg(metavar="DATA")]
    """A COCO file, a folder that holds one (or one each for train and val), or shapes: the drawn data set."""

    out: Path
    """Folder to write to; with rows of an earlier call of the same settings it goes on from them."""

    budget: Annotated[float | None, arg(metavar="MINUTES", help_behavior_hint="(one of --budget and --steps)")] = None
    """Minutes of training for each system (and each seed); proposals, scoring and timing come on top."""

    steps: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(one of --budget and --steps)")] = None
    """Steps of training for each network of an --ablation, which then hangs on no clock."""

    systems: tuple[System, ...] = MAIN
    """What is compared. Besides the five of the story: Fast R-CNN on an RPN's proposals, and other ways of training."""

    ablation: Annotated[
        Ablation | None,
        one_of(*get_args(Ablation)),
        arg(metavar="{" + ",".join(get_args(Ablation)) + "}", help_behavior_hint="(default: none)"),
    ] = None
    """In place of the systems: Mask R-CNN with one thing changed, as in the papers' tables."""

    val: Annotated[str | None, arg(metavar="DATA", help_behavior_hint="(default: DATA's own, else a part of it)")] = (
        None
    )
    """Pictures to be judged by: as DATA."""

    val_fraction: float = 0.1
    """Share of the pictures to be judged by where DATA has to be split, 0 to 1; always the same ones."""

    images: Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="(default: found from DATA)")] = None
    """Folder of the pictures."""

    skip_bad: bool = False
    """Leave out pictures and annotations that are wrong, rather than refuse to start."""

    pictures: int = 500
    """At most so many to learn from, evenly spread: Selective Search looks at each of them first."""

    val_pictures: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: all)")] = None
    """At most so many to be judged by, evenly spread."""

    backbone: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: a small ResNet)")] = None
    """Body of all networks: any name that timm knows with feature maps at strides 4 to 32."""

    pretrained_backbone: bool = False
    """Start from a --backbone that has learned to classify; fetched by timm."""

    scale: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="(default: by the size of the objects)")] = (
        None
    )
    """How many times larger than the pictures the networks see them."""

    seeds: tuple[int, ...] = (0,)
    """Each is a whole run of every system; with several the table has mean and range."""

    device: str = "auto"
    """auto (CUDA, else MPS, else the CPU), cpu, cuda, cuda:1, mps."""

    quiet: bool = False
    """No progress, no tables: only errors and the name of the result."""


def run(options: Options) -> int:
    """Compare, then print the tables; 1 if it was stopped before its end."""
    _check(options)
    from maskrcnn.lineage.report import PAGE_FILE
    from maskrcnn.lineage.run import lineage

    made_folder(options.out)
    try:
        with named_bar(shown=not options.quiet) as update:
            rows = lineage(
                options.data,
                options.out,
                options.budget,
                steps=options.steps,
                systems=options.systems,
                ablation=options.ablation,
                val=options.val,
                images=options.images,
                val_fraction=options.val_fraction,
                skip_bad=options.skip_bad,
                pictures=options.pictures,
                val_pictures=options.val_pictures,
                backbone=options.backbone,
                pretrained_backbone=options.pretrained_backbone,
                scale=options.scale,
                seeds=options.seeds,
                device=options.device,
                progress=update,
            )
    except KeyboardInterrupt:
        print(f"stopped: what is done is kept in {options.out}, the same command goes on from there", file=sys.stderr)
        return 1
    except InputError as error:
        raise _as_wrong_use(error) from error
    if not options.quiet:
        _print_tables(rows, options.ablation)
    print(f"{len(rows)} rows: {options.out / PAGE_FILE}")
    return 0


def _check(options: Options) -> None:
    """Errors: `WrongUse` for what can be told before torch is loaded."""
    if options.steps is not None and options.ablation is None:
        raise WrongUse("has no use without --ablation", field="--steps", expected="--budget MINUTES")
    if (options.budget is None) == (options.steps is None):
        found, field = ("neither", "both")[options.budget is not None], "--budget and --steps"
        raise WrongUse("say how long each learns", field=field, found=found, expected="one of them")
    if options.budget is not None and not 0 < options.budget < float("inf"):  # nor is NaN
        raise WrongUse("impossible value", field="--budget", found=options.budget, expected="minutes above 0")
    counts = [("--pictures", options.pictures), ("--val-pictures", options.val_pictures), ("--steps", options.steps)]
    for name, count in counts:
        if count is not None and count < 1:
            raise WrongUse("impossible value", field=name, found=count, expected="a whole number above 0")
    if options.scale is not None and not 0 < options.scale < float("inf"):
        raise WrongUse("impossible value", field="--scale", found=options.scale, expected="a number above 0")
    if not 0 < options.val_fraction < 1:
        expected = "between 0 and 1"
        raise WrongUse("is not a share", field="--val-fraction", found=options.val_fraction, expected=expected)
    for option, values in (("--systems", options.systems), ("--seeds", options.seeds)):
        told = " ".join(map(str, values)) or "none"
        if not values or len(set(values)) < len(values):
            raise WrongUse("impossible choice", field=option, found=told, expected="one or more, each once")
    if not all(0 <= seed < 2**32 for seed in options.seeds):
        raise WrongUse("impossible value", field="--seeds", found=told, expected="whole numbers from 0 to 2**32 - 1")
    if options.ablation is not None and options.systems != MAIN:
        raise WrongUse("has no use with --ablation", field="--systems", expected="one of the two")
    if options.pretrained_backbone and options.backbone is None:
        raise WrongUse("has no use without --backbone", field="--pretrained-backbone", expected="both")


def _as_wrong_use(error: InputError) -> InputError:
    """The library's error about a word that was given as an option, said of the option."""
    field = error.field or ""
    if error.file is None and (field in ("backbone", "device", "systems") or field.startswith("ablation")):
        option = "--" + field
        return WrongUse(error.problem, field=option, found=error.found, expected=error.expected)
    return error


def _print_tables(rows: list[Any], ablation: str | None) -> None:
    from rich.console import Console

    from maskrcnn.lineage.ablations import ablation_of
    from maskrcnn.lineage.page import LINEAGE, sentences
    from maskrcnn.lineage.run import subject_of
    from maskrcnn.lineage.table import tables

    subject = LINEAGE if ablation is None else subject_of(ablation_of(ablation))
    console = Console()
    for table in tables(rows, subject.columns):
        console.print(table)
        console.print()
    for sentence in sentences(subject, rows):
        console.print(sentence, highlight=False, markup=False)
