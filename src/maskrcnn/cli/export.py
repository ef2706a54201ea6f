"""`maskrcnn export`: a detector as one file for ONNX Runtime, OpenVINO or torch, verified against the plain model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from maskrcnn.cli.options import CommandOptions, WrongUse, checkpoints_own, made_folder

if TYPE_CHECKING:
    from maskrcnn.export.facts import Facts

MEGABYTE = 10**6


@dataclass(frozen=True, kw_only=True)
class Options(CommandOptions):
    """Write a detector, masks and all, as one file that other runtimes open.

    onnx and openvino files are run without torch by maskrcnn.export.runner; maskrcnn.load opens all of them. At the end
    the same pictures go through the file and through the plain model: status 1, and no file, if they differ by more
    than rounding.
    """

    weights: Annotated[Positional[str], arg(metavar="W")]
    """A name that ships with the package (nuclei) or that `maskrcnn weights list` shows, or a file of weights."""

    to: Literal["onnx", "openvino", "torch-export", "aoti"]
    """onnx: for ONNX Runtime and others. openvino: Intel's runtime. torch-export: torch's own program. aoti: machine
    code for this kind of machine, which takes a C++ compiler to make."""

    out: Annotated[Path, arg(metavar="FILE")]
    """File to write: .onnx, .openvino or .pt2 (torch-export and aoti)."""

    config: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: what the weights say)")] = None
    """What the weights do not say: fields of maskrcnn's config, Detectron2's config.yaml, or MMDetection's .py."""

    size: Annotated[str | None, arg(metavar="HxW", help_behavior_hint="(default: any)")] = None
    """Fixed size that the network sees, in pixels, as 800x1088; sides are rounded up to the network's stride."""

    batch: Annotated[int | Literal["any"], arg(metavar="INT|any")] = 1
    """Pictures in a call."""

    score_threshold: Annotated[float | None, checkpoints_own("FLOAT")] = None
    """Lowest score of a detection, 0 to 1. A call may ask for a higher one."""

    nms_iou: Annotated[float | None, checkpoints_own("FLOAT")] = None
    """Boxes of one class that overlap more than this are one object, 0 to 1."""

    max_detections: Annotated[int | None, checkpoints_own("INT")] = None
    """Most detections per picture. A call may ask for fewer."""

    proposals: Annotated[int | None, checkpoints_own("INT")] = None
    """Candidates per picture that the RPN hands on: fewer are faster."""

    class_agnostic_nms: bool = False
    """Let boxes of different classes suppress one another."""

    pictures: Annotated[tuple[str, ...], arg(metavar="PICTURE...", help_behavior_hint="(default: some of ours)")] = ()
    """Pictures to verify with: files, folders, globs."""


def run(options: Options) -> int:
    """Write and verify; 1 where the file would not detect as the model does."""
    size = _size(options.size)
    from maskrcnn.data.pictures import picture_files
    from maskrcnn.export.core import Shape
    from maskrcnn.export.exporting import checked_out, export_detector
    from maskrcnn.model.limits import Limits
    from maskrcnn.weights.opening import open_weights

    out = checked_out(options.to, options.out)
    shape = Shape(size=size, batch=None if options.batch == "any" else int(options.batch))
    limits = Limits(
        score_threshold=options.score_threshold,
        nms_iou=options.nms_iou,
        max_detections=options.max_detections,
        proposals=options.proposals,
        class_agnostic_nms=options.class_agnostic_nms or None,
    )
    pictures = picture_files(options.pictures) if options.pictures else []
    opened = open_weights(options.weights, options.config)
    made_folder(out.parent)
    exported = export_detector(
        opened.model,
        options.to,
        out,
        shape=shape,
        limits=limits,
        licence=str(opened.metadata.get("licence", "unknown")),
        source=str(opened.metadata.get("source", "unknown")),
        pictures=pictures,
    )
    print(f"{out}: {out.stat().st_size / MEGABYTE:.1f} MB, {_summary(exported.facts)}")
    print(f"verified: {exported.differences.line()}")
    if not exported.differences.detections:
        print("nothing was found in these pictures: --pictures with objects in them would verify more")
    return 0


def _summary(facts: Facts) -> str:
    size = "any size" if facts.size is None else f"{facts.size[0]}x{facts.size[1]} px"
    batch = "any number of pictures" if facts.batch is None else f"{facts.batch} at a time"
    counts = f"{facts.proposals} proposals, {facts.detection.max_detections} detections"
    return f"{facts.target}, {size}, {batch}, {counts}, licence {facts.licence}"


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise WrongUse("is no size", field="--size", found=text, expected="height x width in pixels, as 800x1088")
    return int(height), int(width)
