"""Writes the recorded core as torch's own program, `.pt2`, and opens one: for processes that have torch.

Such a file is a program: whoever opens it runs what its maker recorded. Open those of people that you trust.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision  # noqa: F401  the graph calls its operations by name
from torch import Tensor
from torch.export import ExportedProgram

from maskrcnn.errors import InputError
from maskrcnn.export.facts import KEY, Facts, facts_from_json
from maskrcnn.ops.files import whole_file


def write_torch_export(program: ExportedProgram, facts: Facts, out: Path) -> None:
    """Write `out`, whole or not at all."""
    with whole_file(out) as unfinished, unfinished.open("wb") as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's about its own parts
        torch.export.save(program, stream, extra_files={KEY: facts.as_json()})


class TorchSession:
    """(N, 3, H, W) and (N, 2) to the outputs by name, on the CPU."""

    def __init__(self, network: Callable[[Tensor, Tensor], Any], facts: Facts) -> None:
        self.network, self.names = network, facts.outputs

    def __call__(self, pixels: np.ndarray, sizes: np.ndarray) -> Mapping[str, np.ndarray]:
        with torch.no_grad():
            found = self.network(torch.from_numpy(pixels), torch.from_numpy(sizes))
        return {name: values.numpy() for name, values in zip(self.names, found, strict=True)}


def open_pt2(path: Path) -> tuple[TorchSession, Facts]:
    """The program in a `.pt2` file, of torch.export or of AOTInductor, ready to run.

    Errors: `InputError` for a file that is missing, damaged, or not exported by maskrcnn.
    """
    facts = read_facts(path)
    if facts.target == "aoti":
        from maskrcnn.export.aoti import load_aoti

        return TorchSession(load_aoti(path), facts), facts
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(path)
    except Exception as error:  # a zip that is whole may hold anything
        raise InputError("is no program of torch", file=path, found=_first_line(error)) from error
    return TorchSession(program.module(), facts), facts


def read_facts(path: Path) -> Facts:
    """What a `.pt2` file says of itself, without opening the program in it. Errors: as `open_pt2`."""
    if not path.is_file():
        raise InputError("no such file", file=path, found="a folder" if path.is_dir() else None)
    try:
        with zipfile.ZipFile(path) as parts:
            damaged = parts.testzip()
            places = [name for name in parts.namelist() if name.endswith(f"extra/{KEY}")]
            text = parts.read(places[0]).decode("utf-8") if places else None
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
        raise InputError("is damaged, or no .pt2 file", file=path, found=str(error)) from error
    if damaged is not None:
        raise InputError("is damaged", file=path, field=damaged)
    return facts_from_json(text, path)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
