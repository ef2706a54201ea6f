"""Writes the recorded core as an ONNX model: opset 18, with the facts in its metadata."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from maskrcnn.export.facts import KEY, Facts
from maskrcnn.export.missing import missing
from maskrcnn.ops.files import whole_file

OPSET = 18
_NO_BOX = -3.0e38  # a score below which there is none; -inf itself is not above it


def write_onnx(program: ExportedProgram, facts: Facts, out: Path) -> None:
    """Write `out`, whole or not at all. Errors: `InputError` where onnx or onnxscript is missing."""
    model = onnx_model(program, facts)
    with whole_file(out) as unfinished:
        unfinished.write_bytes(model.SerializeToString())


def onnx_model(program: ExportedProgram, facts: Facts) -> Any:
    """The `onnx.ModelProto` of a program that was recorded for ONNX."""
    try:
        import onnx
        import onnxscript  # noqa: F401  torch's translator is made of it
    except ImportError as error:
        raise missing("onnx and onnxscript") from error
    table: dict[Callable[..., Any], Callable[..., Any]] = {torch.ops.maskrcnn.nms_rows.default: _nms_rows_translation()}
    with _silence():
        translated = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            custom_translation_table=table,
            input_names=["pixels", "sizes"],
            output_names=list(facts.outputs),
        )
    assert translated is not None
    model: onnx.ModelProto = translated.model_proto
    model.producer_name = "maskrcnn"
    for name, value in ((KEY, facts.as_json()), ("licence", facts.licence), ("source", facts.source)):
        model.metadata_props.add(key=name, value=value)
    return model


def _nms_rows_translation() -> Callable[..., Any]:
    """`maskrcnn::nms_rows` as ONNX has it: rows are its batches, each of one class."""
    import onnxscript

    op: Any = onnxscript.opset18  # its own types know no tensor that is yet to come

    def nms_rows(boxes: Any, scores: Any, iou: float) -> Any:
        most = op.Shape(scores, start=1, end=2)
        picked = op.NonMaxSuppression(
            boxes,
            op.Unsqueeze(scores, op.Constant(value_ints=[1])),
            most,
            op.Constant(value_floats=[iou]),
            op.Constant(value_floats=[_NO_BOX]),
        )  # (picked, 3): row, class, box
        places = op.Gather(picked, op.Constant(value_ints=[0, 2]), axis=1)
        none = op.Expand(op.Constant(value_ints=[0]), op.Shape(scores))
        ones = op.Expand(op.Constant(value_ints=[1]), op.Shape(picked, start=0, end=1))
        return op.Cast(op.ScatterND(none, places, ones), to=9)  # bool

    return nms_rows


@contextlib.contextmanager
def _silence() -> Any:
    """Without the exporter's own prints, warnings and logs of what it does."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
