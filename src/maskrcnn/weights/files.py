"""A checkpoint is one `.safetensors` file: tensors, and the whole config beside them as JSON. Nothing is unpickled.

The file's metadata holds one entry, `maskrcnn`, a JSON object:

    format_version   whole number; a reader refuses a newer one
    config           the detector's whole config, with `class_names` and `category_ids`
    licence, source  of the weights: what they may be used for and where they came from
    ...              whatever else the writer adds (scores, the run's settings)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from maskrcnn.errors import InputError, InputErrors
from maskrcnn.model.config import from_dict, to_dict
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.ops.files import whole_file as whole_file

FORMAT_VERSION = 1
METADATA_KEY = "maskrcnn"
BUNDLED = Path(__file__).parent / "bundled"

HalfPrecision = Literal["bfloat16", "float16"]


class Checkpoint(NamedTuple):
    """What a checkpoint file holds.

    config: of the detector. state: tensors by name, as stored. metadata: JSON values other than the config.
    """

    config: MaskRCNNConfig
    state: dict[str, Tensor]
    metadata: dict[str, Any]


def save_checkpoint(
    path: str | Path, model: MaskRCNN, *, metadata: Mapping[str, Any], dtype: HalfPrecision | None = None
) -> Path:
    """Write `model` to `path`, whole or not at all: a reader sees the file before or the file after, never a part.

    Args:
        metadata: JSON-ready values; `licence` and `source` are expected, any other may be added.
        dtype: stores weights of two or more dimensions in half the bytes. Biases, norms and their statistics,
            a thousandth of the bytes, stay float32: rounding those costs accuracy and saves nothing.
    """
    document = {
        "licence": "unknown",
        "source": "unknown",
        **metadata,
        "format_version": FORMAT_VERSION,
        "config": to_dict(model.config),
    }
    state = {name: _stored(tensor, dtype) for name, tensor in model.state_dict().items()}
    return write_tensors(path, state, {METADATA_KEY: json.dumps(document, ensure_ascii=False)})


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Write any tensors and texts as one `.safetensors` file, whole or not at all."""
    with whole_file(path) as unfinished:
        unfinished.write_bytes(safetensors.torch.save(dict(tensors), metadata=dict(metadata)))
    return Path(path)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Config, tensors and metadata of a checkpoint file; unpacks as `config, state, metadata`.

    Errors: `InputError` for a file that is missing, truncated, no safetensors file or not written by this package,
    and for a config with unknown, missing or impossible fields.
    """
    document, state = _read_file(Path(path))
    version = document.pop("format_version", None)
    if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise InputError(
            "format of another version", file=path, field="format_version", found=version, expected=f"{FORMAT_VERSION}"
        )
    try:
        config = from_dict(MaskRCNNConfig, document.pop("config", None), "config")
    except InputError as error:
        raise InputError(str(error), file=path) from error
    return Checkpoint(config, state, document)


def bundled(name: str) -> Path:
    """The file of a detector that ships with the package, by its name ("nuclei")."""
    names = bundled_names()
    if name not in names:
        expected = " or ".join(["a .safetensors file", *names])
        raise InputError("no such weights", field="weights", found=name, expected=expected)
    return BUNDLED / f"{name}.safetensors"


def bundled_names() -> list[str]:
    """Names of the detectors that ship with the package."""
    return sorted(path.stem for path in BUNDLED.glob("*.safetensors"))


def _stored(tensor: Tensor, dtype: HalfPrecision | None) -> Tensor:
    tensor = tensor.detach().cpu()
    if dtype is not None and tensor.is_floating_point() and tensor.ndim >= 2:
        tensor = tensor.to(torch.bfloat16 if dtype == "bfloat16" else torch.float16)
    return tensor.contiguous()


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON object under `METADATA_KEY` and all tensors."""
    if not path.is_file():
        found = "a folder" if path.is_dir() else None
        raise InputError("no such checkpoint", file=path, found=found, expected="a .safetensors file")
    try:
        with safetensors.safe_open(path, framework="pt") as stream:
            text = (stream.metadata() or {}).get(METADATA_KEY)
            document = None if text is None else json.loads(text)
            state = {name: stream.get_tensor(name) for name in stream.keys()}
    except (safetensors.SafetensorError, json.JSONDecodeError, RecursionError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(document, dict):
        expected = f"an entry {METADATA_KEY!r} with its config"
        raise InputError("holds tensors but no detector", file=path, field="metadata", expected=expected)
    return document, state


def _unreadable(path: Path, error: Exception) -> InputError:
    if isinstance(error, json.JSONDecodeError | RecursionError):
        return InputError("not JSON", file=path, field=f"metadata.{METADATA_KEY}", found=str(error))
    with path.open("rb") as stream:
        begins_well = stream.read(9)[8:] == b"{"  # eight bytes of length, then a JSON header
    if begins_well:
        return InputError("is truncated or damaged", file=path, found=f"{path.stat().st_size} bytes; {error}")
    return InputError("not a safetensors file", file=path, found=str(error), expected="one that maskrcnn wrote")


def require_fit(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise unless `state` has exactly the tensors of `wanted`, so that no model is ever half loaded."""
    problems = []
    for name in sorted(wanted.keys() - state.keys()):
        problems.append(InputError("is missing", file=path, field=name, expected=_kind(wanted[name])))
    for name in sorted(state.keys() - wanted.keys()):
        problems.append(InputError("has no place in this config", file=path, field=name, found=_kind(state[name])))
    for name in sorted(state.keys() & wanted.keys()):
        found, expected = _kind(state[name]), _kind(wanted[name])
        if found != expected:
            problems.append(InputError("does not fit", file=path, field=name, found=found, expected=expected))
    if problems:
        raise InputErrors("tensors do not fit the config", problems)


def require_finite(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise where a tensor holds NaN or infinity: a run that diverged, a damaged file (0.07 s for 44 million)."""
    bad = [name for name, tensor in state.items() if not _is_finite(tensor)]
    if bad:
        found = f"{len(bad)} of {len(state)} tensors hold NaN or infinity, the first is {bad[0]}"
        raise InputError("is not finite", file=path, field=bad[0], found=found, expected="finite numbers")


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return bool(torch.stack(tensor.aminmax()).isfinite().all())  # NaN is the least and the greatest; no copy is made


def _kind(tensor: Tensor) -> str:
    """Shape, and whether it holds numbers or counts: float (64, 3, 7, 7)."""
    shape = ", ".join(map(str, tensor.shape))
    return f"{'float' if tensor.is_floating_point() else str(tensor.dtype).removeprefix('torch.')} ({shape})"
