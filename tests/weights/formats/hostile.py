"""Pickles that would do harm if they were run, pickles put together by hand, and the memory of the process."""

from __future__ import annotations

import importlib
import io
import os
import pickle
import pickletools
import struct
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

# --- harm: each of these leaves a file behind if it is run ------------------------------------------------------------


class Calls:
    """What is pickled as a call of `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __call__(self) -> None:
        """pickle writes calls of what can be called only."""

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def _shell(mark: Path) -> Calls:
    return Calls(os.system, f'echo > "{mark}"')


def _python(mark: Path) -> str:
    return f"open({str(mark)!r}, 'w').close()"


def _bytes_of_torch(mark: Path) -> Calls:
    """What pickle makes of a tensor: bytes that torch unpickles in its turn, here with something in them."""
    inner = io.BytesIO()
    torch.save(_shell(mark), inner, _use_new_zipfile_serialization=False)
    return Calls(torch.storage._load_from_bytes, inner.getvalue())


# name of what is asked for, which the refusal has to tell, and what asks for it
HARM: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "system": (f"{os.system.__module__}.system", _shell),
    "eval": ("builtins.eval", lambda mark: Calls(eval, _python(mark))),
    "exec": ("builtins.exec", lambda mark: Calls(exec, _python(mark))),
    "open": (f"{open.__module__}.open", lambda mark: Calls(open, str(mark), "w")),
    "subprocess": (
        "subprocess.check_call",
        lambda mark: Calls(subprocess.check_call, [sys.executable, "-c", _python(mark)]),
    ),
    "attributes": (
        "builtins.getattr",
        lambda mark: Calls(Calls(getattr, Calls(importlib.import_module, "os"), "system"), f'echo > "{mark}"'),
    ),
    "import": ("importlib.import_module", lambda mark: [Calls(importlib.import_module, "os"), _shell(mark)]),
    "torch": ("torch.storage._load_from_bytes", _bytes_of_torch),
    "deep": (f"{os.system.__module__}.system", lambda mark: {"a": [({"b": OrderedDict(c=(1, [_shell(mark)]))},)]}),
}


# --- pickles by hand --------------------------------------------------------------------------------------------------


def asks(name: str) -> bytes:
    """The instruction that asks for a name."""
    module, _, attribute = name.rpartition(".")
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


def value(plain: Any) -> bytes:
    """The instructions that make a plain value; it keeps nothing."""
    return pickletools.optimize(pickle.dumps(plain, 3))[2:-1]


def called(name: str, *arguments: bytes) -> bytes:
    """The instructions that call a name with what other instructions make."""
    return asks(name) + b"(" + b"".join(arguments) + b"tR"


def program(*instructions: bytes) -> memoryview:
    return memoryview(b"\x80\x02" + b"".join(instructions) + b".")


def text(content: str) -> bytes:
    return b"X" + struct.pack("<I", len(content.encode())) + content.encode()


# --- memory -----------------------------------------------------------------------------------------------------------


def peak_memory(work: Callable[[], object]) -> int:
    """Bytes by which the process grew at most while at work; 0 where the system does not tell."""
    clear = Path("/proc/self/clear_refs")
    try:
        clear.write_text("5")  # Linux: begin to measure the peak anew
    except OSError:
        work()
        return 0
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0
