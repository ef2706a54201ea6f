"""`maskrcnn demo`: nuclei with the shipped weights, then a detector that learns drawn shapes from nothing."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskrcnn.cli.options import CommandOptions, WrongUse, made_folder

if TYPE_CHECKING:
    from rich.console import Console

PICTURES = Path(__file__).parent.parent / "demo_pictures"


@dataclass(frozen=True, kw_only=True)
class Options(CommandOptions):
    """Show what the package does, in about five minutes on two CPU cores and without a network.

    Segments the microscopy pictures that ship with the package, trains on drawn shapes from nothing, scores both, and
    writes overlays and summary.json.
    """

    out: Path = Path("demo")
    """Folder to write to; what an earlier demo left there is replaced."""

    minutes: float = 3.0
    """Of training on drawn shapes; 0 leaves that part out."""

    device: str = "auto"
    """auto (CUDA, else MPS, else the CPU), cpu, cuda, mps."""


def run(options: Options) -> int:
    """Both parts, then the summary."""
    from rich.console import Console

    from maskrcnn.training.report import write_json

    if not 0 <= options.minutes < math.inf:
        raise WrongUse("impossible value", field="--minutes", found=options.minutes, expected="a number, 0 or more")
    made_folder(options.out)
    began = time.monotonic()
    console = Console(soft_wrap=True)
    _clear(options.out)
    summary: dict[str, Any] = {"nuclei": _nuclei(options, console)}
    if options.minutes:
        summary["shapes"] = _shapes(options, console)
    pngs = sorted(str(path.relative_to(options.out)) for path in options.out.rglob("*.png"))
    summary |= {
        "pictures": pngs,
        "mask_ap": {name: summary[name]["mask_ap"] for name in ("nuclei", "shapes") if name in summary},
        "seconds": round(time.monotonic() - began, 1),
    }
    write_json(options.out / "summary.json", summary)
    console.print(
        f"\n{len(pngs)} pictures and summary.json are in {options.out.resolve()}, after {summary['seconds']:.0f} s"
    )
    return 0


def _nuclei(options: Options, console: Console) -> dict[str, Any]:
    """Segment and score the shipped pictures; one PNG each, ground truth beside detections."""
    from maskrcnn.cli.progress import progress_bar
    from maskrcnn.data.opening import open_dataset
    from maskrcnn.evaluation.evaluate import evaluate
    from maskrcnn.predictor import load
    from maskrcnn.training.report import draw_pictures

    console.rule("1. nuclei: real microscopy pictures, shipped weights")
    began = time.monotonic()
    predictor, dataset = load("nuclei", device=options.device), open_dataset(PICTURES / "instances.json")
    with progress_bar("segmenting", len(dataset)) as update:
        scores = evaluate(predictor.predict, dataset, max_detections=(100, 300), progress=update)
    draw_pictures(options.out / "nuclei", predictor, dataset, len(dataset))
    console.print(*scores.table())
    return _facts(scores, len(dataset), began, limit=300)


def _shapes(options: Options, console: Console) -> dict[str, Any]:
    """Train on drawn shapes and score; the run's folder holds curves and pictures."""
    from maskrcnn.model.presets import drawings
    from maskrcnn.training.recipe import small_drawings
    from maskrcnn.training.train import train

    console.rule(f"2. drawn shapes: learning from nothing, {options.minutes:g} minutes")
    began = time.monotonic()
    run = train(
        "shapes",
        out=options.out / "shapes",
        preset=drawings,
        recipe=small_drawings(options.minutes),
        device=options.device,
        licence="Apache-2.0",
    )
    if run.scores is None:
        raise KeyboardInterrupt
    console.print(*run.scores.table())
    return _facts(run.scores, 200, began, limit=100)


def _facts(scores: Any, pictures: int, began: float, limit: int) -> dict[str, Any]:
    mask = scores.mask.at(limit)
    return {
        "pictures": pictures,
        "mask_ap": round(mask.ap or 0.0, 4),
        "mask_ap50": round(mask.ap50 or 0.0, 4),
        "box_ap": round(scores.box.at(limit).ap or 0.0, 4),
        "max_detections": limit,
        "seconds": round(time.monotonic() - began, 1),
    }


def _clear(out: Path) -> None:
    """Remove what an earlier demo left, and nothing else."""
    import shutil

    for name in ("nuclei", "shapes"):
        shutil.rmtree(out / name, ignore_errors=True)
    (out / "summary.json").unlink(missing_ok=True)
