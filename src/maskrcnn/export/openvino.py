"""Writes the recorded core for OpenVINO: converted through ONNX, then graph, weights and facts in one zip."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

from torch.export import ExportedProgram

from maskrcnn.export.facts import Facts
from maskrcnn.export.missing import missing
from maskrcnn.export.onnx import onnx_model
from maskrcnn.export.openvino_session import FACTS, GRAPH, WEIGHTS
from maskrcnn.ops.files import whole_file


def write_openvino(program: ExportedProgram, facts: Facts, out: Path) -> None:
    """Write `out`, whole or not at all. Errors: `InputError` where openvino, onnx or onnxscript is missing."""
    try:
        import openvino
    except ImportError as error:
        raise missing("openvino") from error
    with tempfile.TemporaryDirectory() as folder:
        onnx_file = Path(folder) / "model.onnx"
        onnx_file.write_bytes(onnx_model(program, facts).SerializeToString())
        model = openvino.convert_model(str(onnx_file))
        openvino.save_model(model, str(Path(folder) / GRAPH), compress_to_fp16=False)
        zip_up(Path(folder), facts, out)


def zip_up(folder: Path, facts: Facts, out: Path) -> None:
    """One file of the graph and the weights in `folder` and of `facts`; nothing in it is compressed."""
    with whole_file(out) as unfinished, zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as parts:
        for name in (GRAPH, WEIGHTS):
            parts.write(folder / name, name)
        parts.writestr(FACTS, facts.as_json())
