"""An exported `.openvino` file in OpenVINO: a zip of the graph, the weights and the facts. No torch here."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn.errors import InputError
from maskrcnn.export.facts import Facts, facts_from_json
from maskrcnn.export.missing import missing

GRAPH, WEIGHTS, FACTS = "model.xml", "model.bin", "maskrcnn.json"  # in the zip, not compressed


def open_openvino(path: Path, threads: int | None = None) -> tuple[OpenVINOSession, Facts]:
    """Errors: `InputError` for a damaged file, one that maskrcnn did not write, and where there is no OpenVINO."""
    try:
        import openvino
    except ImportError as error:
        raise missing("openvino", path) from error
    try:
        with zipfile.ZipFile(path) as parts:  # which checks what it reads
            graph, weights, text = (parts.read(name) for name in (GRAPH, WEIGHTS, FACTS))
    except (zipfile.BadZipFile, KeyError, OSError, EOFError) as error:
        expected = f"a zip of {GRAPH}, {WEIGHTS} and {FACTS}"
        raise InputError("is damaged, or no such file", file=path, found=str(error), expected=expected) from error
    facts = facts_from_json(text.decode("utf-8"), path)
    core = openvino.Core()
    properties: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        properties["INFERENCE_NUM_THREADS"] = threads
    try:
        held = np.frombuffer(weights, dtype=np.uint8)
        model = core.read_model(model=graph, weights=openvino.Tensor(held))
        compiled = core.compile_model(model, "CPU", properties)
    except RuntimeError as error:
        found = (str(error).splitlines() or [""])[0]
        raise InputError("cannot be compiled by OpenVINO", file=path, found=found) from error
    return OpenVINOSession(compiled, facts), facts


class OpenVINOSession:
    """(N, 3, H, W) and (N, 2) to the outputs by name."""

    def __init__(self, compiled: Any, facts: Facts) -> None:
        self.compiled, self.names = compiled, facts.outputs

    def __call__(self, pixels: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
        found = self.compiled([pixels, sizes])
        return {name: np.array(found[i]) for i, name in enumerate(self.names)}  # its own memory is used again
