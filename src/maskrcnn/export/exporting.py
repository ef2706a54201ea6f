"""A detector to a file of another runtime, verified against the plain model before it gets its name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from torch.export import ExportedProgram

from maskrcnn.errors import InputError
from maskrcnn.export.core import DetectionCore, Shape, applied, facts_of, record
from maskrcnn.export.facts import Facts, Target
from maskrcnn.export.missing import missing
from maskrcnn.export.opening import open_any_session
from maskrcnn.export.verify import Differences, Tolerance, verify
from maskrcnn.model.limits import Limits
from maskrcnn.model.mask_rcnn import MaskRCNN

SUFFIX: dict[Target, str] = {"onnx": ".onnx", "openvino": ".openvino", "torch-export": ".pt2", "aoti": ".pt2"}
LIBRARIES: dict[Target, tuple[str, ...]] = {  # of the extra `export`, to write and to verify
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "torch-export": (),
    "aoti": (),
}
DEMO_PICTURES = Path(__file__).parents[1] / "demo_pictures"


@dataclass(frozen=True)
class Exported:
    """file: what was written. facts: what it says of itself. differences: from the plain model."""

    file: Path
    facts: Facts
    differences: Differences


def export_detector(
    model: MaskRCNN,
    to: Target,
    out: str | Path,
    *,
    shape: Shape | None = None,
    limits: Limits | None = None,
    licence: str = "unknown",
    source: str = "unknown",
    pictures: Sequence[str | Path | np.ndarray] = (),
    tolerance: Tolerance | None = None,
) -> Exported:
    """Write `model`, which is plain and on the CPU, to `out`.

    Args:
        shape: what is fixed in the file; by default any size, one picture at a time.
        limits: thresholds and numbers to record in place of the checkpoint's own; a call may only narrow them.
        licence, source: of the weights, for whoever gets the file.
        pictures: to verify with; by default some that ship with the package. One of noise is added.
        tolerance: beyond which there is an error, and no file.

    Errors: `InputError` for a wrong suffix, a part that cannot be exported, a library that is missing, and a result
    that differs from the model's by more than rounding.
    """
    out = checked_out(to, out)
    require_libraries(to)
    facts = facts_of(model, to, shape or Shape(), limits, licence=licence, source=source)
    config = applied(model, limits)
    program = record(model.eval(), config, facts)
    unverified = out.with_name(f".{out.stem}.unverified{out.suffix}")
    try:
        write(program, facts, unverified)
        session, _ = open_any_session(unverified)
        differences = verify(session, DetectionCore(model, config), facts, verifying_pictures(pictures))
        problem = (tolerance or Tolerance()).problem(differences)
        if problem is not None:
            raise InputError(f"differs from the plain model: {problem}", file=out, found=differences.line())
        del session  # some systems rename no file that is open
        os.replace(unverified, out)
    finally:
        with suppress(OSError):
            unverified.unlink()
    return Exported(out, facts, differences)


def checked_out(to: Target, out: str | Path) -> Path:
    """`out` as a path. Errors: `InputError` for another suffix than the target's, and for a folder."""
    out = Path(out)
    if to not in SUFFIX:
        raise InputError("no such target", field="--to", found=to, expected=" or ".join(SUFFIX))
    if out.suffix.lower() != SUFFIX[to]:
        raise InputError(f"does not fit --to {to}", file=out, field="--out", found=out.suffix, expected=SUFFIX[to])
    if out.is_dir():
        raise InputError("is a folder", file=out, field="--out", expected=f"a file name with {SUFFIX[to]}")
    return out


def require_libraries(to: Target) -> None:
    """Errors: `InputError` for what this target needs and is not installed, before the work rather than after it."""
    for library in LIBRARIES[to]:
        if find_spec(library) is None:
            raise missing(library)
    if to == "aoti":
        from maskrcnn.export.aoti import require_compiler

        require_compiler()


def write(program: ExportedProgram, facts: Facts, out: Path) -> None:
    """The recorded program as a file of its target."""
    if facts.target == "onnx":
        from maskrcnn.export.onnx import write_onnx

        write_onnx(program, facts, out)
    elif facts.target == "openvino":
        from maskrcnn.export.openvino import write_openvino

        write_openvino(program, facts, out)
    elif facts.target == "torch-export":
        from maskrcnn.export.torch_export import write_torch_export

        write_torch_export(program, facts, out)
    else:
        from maskrcnn.export.aoti import write_aoti

        write_aoti(program, facts, out)


def verifying_pictures(given: Sequence[str | Path | np.ndarray]) -> list[str | Path | np.ndarray]:
    """Those given, or two that ship with the package; and noise of another shape, in which there is nothing to find.

    Not an even area: there all anchors score alike, and which of them is first means nothing.
    """
    noise = np.random.default_rng(0).integers(96, 160, (96, 176, 3), dtype=np.uint8)
    return [*(given or (DEMO_PICTURES / "small.jpg", DEMO_PICTURES / "tissue.jpg")), noise]
