"""Options that several commands share. Importing this loads no torch, so that `--help` is quick."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from maskrcnn.errors import InputError


def checkpoints_own(metavar: str) -> Any:
    """An option that is None where it is left out, and then the checkpoint's own."""
    return arg(metavar=metavar, help_behavior_hint="(default: the checkpoint's own)")


class WrongUse(InputError):
    """The command line itself is at fault: exit status 2."""


@dataclass(frozen=True, kw_only=True)
class CommandOptions:
    """Options of every command."""

    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions(CommandOptions):
    """Which detector, and where it runs."""

    weights: str
    """A name that ships with the package (nuclei) or that `maskrcnn weights list` shows, or a file: .safetensors, or a
    checkpoint of torchvision, Detectron2, MMDetection or Matterport."""

    config: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: what the weights say)")] = None
    """What the weights do not say: a .yaml or .json file with fields of maskrcnn's config, Detectron2's config.yaml, or
    MMDetection's .py, which is read and never run."""

    device: str = "auto"
    """auto (CUDA, else MPS, else the CPU), cpu, cuda, cuda:1, mps."""

    precision: Literal["float32", "bf16", "fp16", "int8"] = "float32"
    """Of the network's arithmetic: float32 is exact; bf16 faster where the hardware has it; fp16 for GPUs; int8 for
    CPUs, and for files that `maskrcnn weights quantise` wrote."""

    batch_size: int = 1
    """Pictures at work at once; memory grows with it."""

    size: Annotated[int | Literal["native"] | None, checkpoints_own("INT|native")] = None
    """Shorter side that the network sees, in pixels, or native: no resizing."""

    nms_iou: Annotated[float | None, checkpoints_own("FLOAT")] = None
    """Boxes of one class that overlap more than this are one object, 0 to 1."""

    mask_nms_iou: Annotated[float | None, checkpoints_own("FLOAT")] = None
    """Masks of one class that overlap more than this are one object, 0 to 1; for objects that touch."""

    class_agnostic_nms: bool = False
    """Let boxes of different classes suppress one another."""

    proposals: Annotated[int | None, checkpoints_own("INT")] = None
    """Candidates per picture that the RPN hands on: fewer are faster, more find more in a crowd."""


# What the library calls the values of options, and what stands before their names on the command line.
_OWNERS = {
    "Limits": "",
    "recipe": "",
    "Recipe": "",
    "Augmentation": "augmentation.",
    "LossConfig": "loss.",
    "RPNLossConfig": "loss.rpn.",
    "BoxLossConfig": "loss.box.",
    "CascadeLossConfig": "loss.cascade.",
    "MaskLossConfig": "loss.mask.",
    "KeypointLossConfig": "loss.keypoint.",
}


def as_wrong_use(error: Exception, options: CommandOptions) -> WrongUse | None:
    """The same said of the option whose value the error is about: `--loss.rpn.beta` for RPNLossConfig.beta.

    None where it is about anything else: a file, or a value that was not given on the command line.
    """
    if isinstance(error, WrongUse):
        return error
    if not isinstance(error, InputError) or error.field is None or error.file is not None:
        return None
    owner, _, name = error.field.partition("[")[0].partition(".")
    path = _OWNERS[owner] + name if owner in _OWNERS else error.field
    value: Any = options
    for part in path.split("."):
        value = getattr(value, part, None)
    if value is None or (owner not in _OWNERS and not isinstance(value, (int, float, tuple))):
        return None  # of text the content is meant: a file, a name of weights
    option = "--" + path.replace("_", "-")
    return WrongUse(error.problem, field=option, found=error.found, expected=error.expected)


def made_folder(out: Path) -> None:
    """Make the folder `out`, and find out before the work rather than after it whether it can be written to.

    Errors: `InputError` where it cannot.
    """
    if out.exists() and not out.is_dir():
        raise InputError("is not a folder", file=out, field="--out", expected="a folder, or a new name")
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        found = error.strerror or str(error)
        raise InputError("cannot be written to", file=out, field="--out", found=found) from error


def require_share(field: str, value: float) -> None:
    """Errors: `WrongUse` unless `value` lies in 0..1."""
    if not 0 <= value <= 1:  # nor does NaN
        raise WrongUse("impossible value", field=field, found=value, expected="a number from 0 to 1")
