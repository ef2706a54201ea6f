"""`maskrcnn bench`: ours against torchvision on the same weights and pictures; time, differences, memory, the floor."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from maskrcnn.cli.options import CommandOptions, WrongUse, made_folder
from maskrcnn.cli.progress import named_bar

What = Literal["detect", "train", "evaluate", "loader", "nano", "start"]
Precision = Literal["float32", "bf16", "fp16", "int8"]
_TORCHVISIONS = "(default: torchvision's {}, or the checkpoint's)"


@dataclass(frozen=True, kw_only=True)
class Options(CommandOptions):
    """How fast is it? Ours and torchvision's detector take turns in one process, with the same weights and pictures.

    Prints a table for each piece of work: median, fastest and slowest round in seconds, how many times faster ours is
    by the medians (and in the lowest and highest round) and by the fastest rounds, the largest differences of what was
    found, the peak memory in MB, and how near the time comes to the floor of this machine. Best on a machine that does
    nothing else.
    """

    what: tuple[What, ...] = ("detect",)
    """detect: picture to RLE, stage by stage, memory, floor. train: a step of training. evaluate: COCO's AP against
    pycocotools. loader: pictures to batches. nano: the shipped weights, 512 px. start: import, and first detection."""

    weights: Annotated[str | None, arg(metavar="WEIGHTS", help_behavior_hint="(default: random, ResNet-50 FPN)")] = None
    """A name or a file. Of torchvision's Mask R-CNN: it is the peer. Of others: ours as PyTorch runs it plainly."""

    pictures: Annotated[
        tuple[str, ...], arg(metavar="PATH [PATH ...]", help_behavior_hint="(default: two bundled)")
    ] = ()
    """Files, folders or globs. The bundled ones are resized so that the network sees 800 x 1088 pixels."""

    precision: tuple[Precision, ...] = ("float32", "bf16")
    """Of ours, one or more: float32 is exact; bf16, fp16 and int8 are faster where the hardware has them."""

    calibration: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(needed for int8)")] = None
    """Pictures like those to come, from which int8 learns its ranges."""

    rounds: int = 3
    """How often each side takes its turn, besides one turn that does not count."""

    threads: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: all cores)")] = None
    """Of torch, on both sides."""

    device: str = "cpu"
    """cpu, cuda, cuda:1, mps."""

    shortest: Annotated[int | None, arg(metavar="PX", help_behavior_hint=_TORCHVISIONS.format(800))] = None
    """Shorter side that the network sees, in pixels."""

    proposals: Annotated[int | None, arg(metavar="INT", help_behavior_hint=_TORCHVISIONS.format(1000))] = None
    """Candidates per picture that the RPN hands on."""

    detections: Annotated[int | None, arg(metavar="INT", help_behavior_hint=_TORCHVISIONS.format(100))] = None
    """Objects per picture at most."""

    data: Annotated[str | None, arg(metavar="DATA", help_behavior_hint="(default: the bundled pictures)")] = None
    """For loader: a COCO file, or a folder that holds one."""

    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: only printed)")] = None
    """Folder to write bench.json and table.md to."""


def run(options: Options) -> int:
    """Measure, print the tables, write the files."""
    _check(options)
    threads = options.threads or os.cpu_count() or 1
    if options.out is not None:
        made_folder(options.out)
    from rich.console import Console

    from maskrcnn.bench.options import BenchOptions
    from maskrcnn.bench.run import bench
    from maskrcnn.bench.table import about_machine, notes, rich_tables, save

    asked = BenchOptions(
        weights=options.weights,
        pictures=options.pictures,
        precisions=options.precision,
        calibration=None if options.calibration is None else str(options.calibration),
        rounds=options.rounds,
        threads=threads,
        device=options.device,
        shortest=options.shortest,
        proposals=options.proposals,
        detections=options.detections,
        data=options.data,
    )
    with named_bar() as update:
        rows = bench(options.what, asked, update)
    about, console = about_machine(threads, options.device), Console()
    console.print(", ".join(f"{name} {value}" for name, value in about.items()), highlight=False)
    for table in rich_tables(rows):
        console.print()
        console.print(table)
    for note in notes(rows):
        console.print(f"\n{note}", highlight=False, markup=False)
    if options.out is not None:
        save(rows, about, options.out)
        print(f"{len(rows)} rows: {options.out}")
    return 0


def _check(options: Options) -> None:
    """Errors: `WrongUse` for what can be told before torch is loaded."""
    names = ("rounds", "threads", "shortest", "proposals", "detections")
    for name in names:
        count = getattr(options, name)
        if count is not None and count < 1:
            raise WrongUse("impossible value", field=f"--{name}", found=count, expected="a whole number above 0")
    for name in ("what", "precision"):
        values = getattr(options, name)
        if not values or len(set(values)) < len(values):
            found = " ".join(values) or "none"
            raise WrongUse("impossible choice", field=f"--{name}", found=found, expected="one or more, each once")
    if "int8" in options.precision and options.calibration is None and {"detect", "nano"} & set(options.what):
        expected = "--calibration FOLDER with pictures"
        raise WrongUse("int8 learns its ranges from pictures", field="--precision", found="int8", expected=expected)
    if options.data is not None and "loader" not in options.what:
        raise WrongUse("has a use for --what loader only", field="--data", found=options.data)
