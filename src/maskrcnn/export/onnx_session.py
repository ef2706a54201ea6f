"""An exported `.onnx` file in ONNX Runtime. No torch here."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from maskrcnn.errors import InputError
from maskrcnn.export.facts import KEY, Facts, facts_from_json
from maskrcnn.export.missing import missing

Outputs = dict[str, np.ndarray]


def open_onnx(path: Path, threads: int | None = None) -> tuple[OnnxSession, Facts]:
    """Errors: `InputError` for a damaged file, one that maskrcnn did not write, and where there is no ONNX Runtime."""
    try:
        import onnxruntime
    except ImportError as error:
        raise missing("onnxruntime", path) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # of its own remarks on a graph, errors alone
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=_providers(onnxruntime.get_available_providers())
        )
    except Exception as error:  # its exceptions have no common base
        raise InputError("is damaged, or no ONNX model", file=path, found=_first_line(error)) from error
    facts = facts_from_json(session.get_modelmeta().custom_metadata_map.get(KEY), path)
    return OnnxSession(session, facts), facts


class OnnxSession:
    """(N, 3, H, W) and (N, 2) to the outputs by name."""

    def __init__(self, session: object, facts: Facts) -> None:
        self.session, self.names = session, list(facts.outputs)

    def __call__(self, pixels: np.ndarray, sizes: np.ndarray) -> Outputs:
        values = self.session.run(self.names, {"pixels": pixels, "sizes": sizes})  # type: ignore[attr-defined]
        return dict(zip(self.names, values, strict=True))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _providers(available: list[str]) -> list[str]:
    """CUDA where this build of the runtime has it, else the CPU."""
    return [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
