"""`maskrcnn weights quantise`: a checkpoint that needs no calibration for int8, and what int8 costs in AP."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from maskrcnn.cli.options import WrongUse
from maskrcnn.cli.progress import progress_bar
from maskrcnn.errors import InputError

if TYPE_CHECKING:
    from maskrcnn.evaluation.evaluate import Evaluation


@dataclass(frozen=True, kw_only=True)
class Quantise:
    """Show a detector pictures like those to come, score it in float32 and in int8, and write what int8 needs to know.

    The file holds the weights as they were, and the range of every layer's numbers. Opened with --precision int8 (or
    maskrcnn.load(FILE, precision="int8")) it needs no pictures any more. For CPUs.
    """

    file: Annotated[Positional[str], arg(metavar="W")]
    """A name that ships with the package or that `maskrcnn weights list` shows, or a file."""

    out: Annotated[Positional[Path], arg(metavar="OUT.safetensors")]
    """File to write."""

    calibration: Path
    """Folder of pictures like those to come, other than DATA's; up to 64 of them are looked at."""

    data: Annotated[str | None, arg(metavar="DATA", help_behavior_hint="(default: AP is not measured)")] = None
    """Labelled pictures to score on: a COCO file, a folder that holds one, or shapes."""

    images: Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="(default: found from DATA)")] = None
    """Folder of DATA's pictures."""

    split: Literal["train", "val"] = "val"
    """Which of a folder's annotation files."""

    force: bool = False
    """Write over a file that is there."""


def run(options: Quantise) -> int:
    """Calibrate, score before and after where DATA is given, write the file."""
    if options.out.suffix != ".safetensors":
        raise WrongUse("not a name for a checkpoint", field="OUT", found=str(options.out), expected="OUT.safetensors")
    if options.out.exists() and not options.force:
        raise InputError("is there already", file=options.out, expected="another name, or --force")
    from maskrcnn.data.opening import open_dataset
    from maskrcnn.engine.calibration import calibration_pictures, ranges_as_metadata
    from maskrcnn.engine.int8 import int8_works, quantised, ranges_of
    from maskrcnn.predictor import Predictor
    from maskrcnn.weights.files import save_checkpoint
    from maskrcnn.weights.opening import open_weights

    if not int8_works():
        raise InputError("int8 is not to be had", found="a CPU or torch without it", expected="VNNI, and torch for x86")
    dataset = None if options.data is None else open_dataset(options.data, images=options.images, split=options.split)
    opened = open_weights(options.file)
    pictures = list(calibration_pictures(options.calibration))
    with progress_bar("calibrating", len(pictures)) as update:
        ranges = ranges_of(opened.model, _counted(pictures, update))
    facts: dict[str, Any] = {"pictures": len(pictures)}
    print(f"calibrated with {len(pictures)} pictures of {options.calibration}")
    if dataset is not None:
        predictor = Predictor(opened.model, "cpu")
        facts["ap_before"] = _scored("float32", predictor, dataset)
        predictor.network = quantised(opened.model, ranges)
        facts["ap_after"] = _scored("int8", predictor, dataset)
        for kind, before in facts["ap_before"].items():
            print(f"{kind} AP: {100 * (facts['ap_after'][kind] - before):+.2f} points")
    metadata = {**opened.metadata, **ranges_as_metadata(ranges, **facts)}
    save_checkpoint(options.out, opened.model, metadata=metadata)
    print(options.out)
    return 0


def _counted(pictures: list[Any], update: Any) -> Any:
    for done, picture in enumerate(pictures):
        update(done, len(pictures))
        yield picture


def _scored(name: str, predictor: Any, dataset: Any) -> dict[str, float]:
    """AP of boxes, masks and keypoints where there are such, printed."""
    from maskrcnn.api import evaluate

    with progress_bar(f"evaluating {name}", len(dataset)) as update:
        evaluation: Evaluation = evaluate(predictor, dataset, progress=update)
    kinds = {kind: getattr(evaluation, kind, None) for kind in ("mask", "box", "keypoint")}
    found = {kind: float(scores.ap) for kind, scores in kinds.items() if scores is not None and scores.ap is not None}
    shown = "  ".join(f"{kind} AP {ap:.4f}" for kind, ap in found.items())
    print(f"{name:8} {shown}  {evaluation.seconds / max(1, len(dataset)):.3f} s a picture", flush=True)
    return found
