"""Compiles the recorded core ahead of time with AOTInductor: `.pt2`, machine code for this kind of machine.

It takes a C++ compiler to write; what opens it needs torch and torchvision, of the same versions, and no compiler.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from os import environ
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from maskrcnn.errors import InputError
from maskrcnn.export.facts import KEY, Facts
from maskrcnn.ops.files import whole_file


def compiler() -> str | None:
    """The C++ compiler that would be used, None where there is none."""
    return next(
        (found for name in (environ.get("CXX"), "g++", "clang++", "cl") if name and (found := shutil.which(name))), None
    )


def require_compiler() -> None:
    """Errors: `InputError` where there is none."""
    if compiler() is None:
        expected = "g++ or clang++, or the name of one in CXX"
        raise InputError("needs a C++ compiler", field="--to aoti", expected=expected)


def write_aoti(program: ExportedProgram, facts: Facts, out: Path) -> None:
    """Write `out`, whole or not at all. Errors: `InputError` where there is no compiler, or it does not succeed."""
    if compiler() is None:
        raise InputError(
            "needs a C++ compiler", field="--to aoti", expected="g++ or clang++, or the name of one in CXX"
        )
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's about its own parts
        package = Path(folder) / "model.pt2"
        try:
            torch._inductor.aoti_compile_and_package(program, package_path=str(package))
        except Exception as error:
            found = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError("cannot be compiled", field="--to aoti", found=found) from error
        with zipfile.ZipFile(package, "a", zipfile.ZIP_STORED) as parts:
            root = parts.namelist()[0].partition("/")[0]
            parts.writestr(f"{root}/extra/{KEY}", facts.as_json())
        with whole_file(out) as unfinished:
            shutil.copyfile(package, unfinished)


def load_aoti(path: Path) -> Callable[..., Any]:
    """The compiled network. Errors: `InputError` where it was compiled for another machine or another torch."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network: Callable[..., Any] = torch._inductor.aoti_load_package(str(path))
    except Exception as error:
        found = (str(error).splitlines() or [type(error).__name__])[0]
        expected = "a file that was compiled on this kind of machine with this torch"
        raise InputError("cannot be loaded", file=path, found=found, expected=expected) from error
    return network
