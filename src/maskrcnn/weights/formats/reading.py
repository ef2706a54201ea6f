"""Any file of weights, read and not run: pickles, torch.save, safetensors and HDF5, told apart by their first bytes.

    .pkl            Detectron2's zoo and Detectron1: a pickle of numpy arrays
    .pth, .pt       torch.save, its zip archive (since torch 1.6) and its older row of pickles
    .safetensors    tensors of any names
    .h5             Keras: layers as groups, arrays as datasets

The name of a file tells nothing and is not looked at. Numbers stay as they are stored: float16, bfloat16, float64.
What a pickle may ask for stands in `weights/formats/admitted.py`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from maskrcnn.errors import InputError
from maskrcnn.weights.content import Content
from maskrcnn.weights.formats.hdf5 import HDF5_MAGIC, read_hdf5
from maskrcnn.weights.formats.leaves import printable, settle
from maskrcnn.weights.formats.mapped import map_file
from maskrcnn.weights.formats.torch_file import LEGACY_MAGIC, ZIP_MAGIC, read_legacy, read_zip
from maskrcnn.weights.formats.unpickle import parse

KINDS = ".safetensors, .pth or .pt of torch.save, .pkl, or .h5 of Keras"

# under which training scripts keep the tensors: most of them; PySlowFast; Detectron1
WRAPPERS = ("model", "state_dict", "model_state_dict", "model_state", "blobs")

_MAX_HEADER = 16 << 20  # bytes of JSON; a detector's has a tenth of a megabyte
# how pickles of protocols 0 and 1 begin: with a dict or list that is kept, or a name that is asked for
_OLD_PICKLE = re.compile(rb"\([dl]p\d+\n|[}\]]q.|[ci][\w.]+\n[\w.]+\n", re.DOTALL)
_DAMAGE = (
    safetensors.SafetensorError,
    struct.error,
    ValueError,
    LookupError,
    TypeError,
    ArithmeticError,
    RuntimeError,
    OSError,
)


def read_content(path: str | Path) -> Content:
    """Tensors and plain values of a file of weights, whoever wrote it; tensors lie in the mapped file where they can.

    Tensors are taken out of "model", "state_dict" and the like, and lose the `module.` that training on several devices
    puts before their names. What stands beside them, the optimiser's state included, is in `extras`.

    Errors: `InputError`, one line, for a file that is missing, damaged, of an unknown format, asks for anything but
    plain data, or holds no tensors by name.
    """
    path = Path(path)
    if not path.is_file():
        found = "a folder" if path.is_dir() else None
        raise InputError("no such checkpoint", file=path, found=found, expected=f"a file: {KINDS}")
    try:
        made, extras = _read(path)
    except InputError as error:
        raise InputError(f"not a readable checkpoint: {error}", file=path) from error
    except _DAMAGE as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError("not a readable checkpoint", file=path, found=reason, expected=f"a file: {KINDS}") from error
    tensors, others = _unwrapped(made, path)
    return Content(tensors, {**extras, **others}, path)


def _read(path: Path) -> tuple[Any, dict[str, Any]]:
    """What a file holds, still wrapped, and plain values that its format keeps apart."""
    data = map_file(path)
    begin = bytes(data[:100])
    if begin.startswith(ZIP_MAGIC):
        return read_zip(data), {}
    if begin.startswith(HDF5_MAGIC):
        return read_hdf5(data)
    if begin[8:9] == b"{" and int.from_bytes(begin[:8], "little") <= len(data) - 8:
        return _read_safetensors(path, int.from_bytes(begin[:8], "little"))
    if begin[:1] == b"\x80" or _OLD_PICKLE.match(begin):
        return _read_pickle(data), {}
    found = f"{len(data)} bytes that begin with {begin[:8]!r}" if begin else "an empty file"
    raise InputError("unknown format", found=found, expected=KINDS)


def _read_pickle(data: memoryview) -> Any:
    made, end = parse(data)
    return read_legacy(data, end) if type(made) is int and made == LEGACY_MAGIC else settle(made)


def _read_safetensors(path: Path, header: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if header > _MAX_HEADER:
        raise InputError("header of absurd size", found=f"{header} bytes", expected=f"at most {_MAX_HEADER}")
    with safetensors.safe_open(path, framework="pt") as stream:
        return {name: stream.get_tensor(name) for name in stream.keys()}, dict(stream.metadata() or {})


def _unwrapped(made: Any, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name, and everything else, of what a training script saved: bare, or under a key."""
    found = _find_state(made)
    if found is None:
        what = ", ".join(map(printable, list(made)[:5])) if isinstance(made, Mapping) else type(made).__name__
        raise InputError("holds no state_dict", file=path, found=what, expected="tensors by name")
    state, extras = found
    tensors = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            extras.setdefault(str(name), value)
            continue
        ours = str(name).removeprefix("module.")
        if not ours.isprintable():
            raise InputError("impossible name of a tensor", file=path, found=printable(ours))
        if ours in tensors:
            raise InputError("names a tensor twice, with and without module.", file=path, field=ours)
        tensors[ours] = value
    return tensors, extras


def _find_state(made: Any) -> tuple[Mapping[Any, Any], dict[str, Any]] | None:
    """The innermost dict of tensors, and what stood beside it on the way."""
    if not isinstance(made, Mapping):
        return None
    for key in WRAPPERS:
        if (found := _find_state(made.get(key))) is not None:
            state, extras = found
            return state, {str(name): value for name, value in made.items() if name != key} | extras
    return (made, {}) if any(isinstance(value, Tensor) for value in made.values()) else None
