"""Any file of weights as a detector: recognised by what it holds, never by its name.

    name or file --resolve--> file --family--> Converted --every tensor checked--> MaskRCNN

Our own files hold their whole config. What the weights of another family do not tell (the order of colours, sizes,
thresholds) is taken from, in this order, the config that is handed in, one inside the file, a `config.yaml` beside it,
and last from what that family's zoo has for weights of that shape; the last are assumptions, and are told.

A family is a module that offers, and nobody else knows its names,

    recognises(content) -> bool                 whether the tensors' names are its
    convert(content, settings) -> Converted     `InputError` for weights or settings that are no such detector's
    rename(tensors) -> state                    where this needs no settings: for a whole `MaskRCNNConfig` handed in
    settings_inside(content) -> Settings | None where its files carry the config that they were made with
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from maskrcnn.errors import InputError
from maskrcnn.model.config import from_dict, to_dict
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.weights import hub
from maskrcnn.weights.content import Content, Converted, Settings
from maskrcnn.weights.files import METADATA_KEY, bundled, bundled_names, read_checkpoint, require_finite, require_fit


@dataclass(frozen=True)
class Overlay:
    """Some fields of our config, and the file that they were read from."""

    values: Mapping[str, Any]
    file: Path | None = None


ConfigLike = MaskRCNNConfig | Settings | Overlay | Mapping[str, Any] | str | Path
Given = MaskRCNNConfig | Settings | Overlay | None  # the same, read: all, another family's, or some

OURS = "maskrcnn"
FAMILIES = (  # modules beside this one, in the order of asking
    "torchvision",
    "detectron2",
    "detectron1",
    "maskrcnn_benchmark",
    "mmdetection",
    "matterport",
)
BESIDE = "config.yaml"

_FOREIGN_BEGINNINGS = (b"PK", b"\x80", b"\x89HDF")  # zip of torch.save, pickle, HDF5
_OUR_FIELDS = {field.name for field in fields(MaskRCNNConfig)}


@dataclass(frozen=True)
class Opened:
    """A detector and where it comes from.

    model: on the CPU, float32, ready to detect. family: "maskrcnn" for our own files, else whose it was.
    assumed: one line for each value that nothing told. metadata: JSON-ready, among it `licence` and `source`.
    """

    model: MaskRCNN
    family: str
    assumed: tuple[str, ...]
    metadata: dict[str, Any]


def load_model(weights: str | Path, config: ConfigLike | None = None) -> MaskRCNN:
    """The detector that `weights` means, on the CPU, float32, ready to detect. Arguments and errors: `open_weights`."""
    return open_weights(weights, config).model


def open_weights(weights: str | Path, config: ConfigLike | None = None) -> Opened:
    """Open a detector by name or file.

    Args:
        weights: the name of one that ships with the package or of the zoo (which is downloaded once), or a file: ours,
            or one of torchvision, Detectron2, MMDetection or Matterport.
        config: in place of what the file says. A whole `MaskRCNNConfig`, which every tensor has to fit; a mapping or
            a `.json` or `.yaml` file with some of its fields; or the foreign family's own config: Detectron2's
            `config.yaml`, MMDetection's `.py`, which is read and never run.

    Errors: `InputError` for a file that is missing, damaged or unknown, and `InputErrors` that name tensors which are
    missing, surplus or misshaped. A model is whole or it is not there.
    """
    path = resolve_weights(weights)
    given = _read_config(config)
    if _is_ours(path):
        own, state, metadata = read_checkpoint(path)
        if isinstance(given, Settings):
            expected = "fields of maskrcnn's own config: " + ", ".join(sorted(_OUR_FIELDS))
            found = next((str(name) for name in given.values if name not in _OUR_FIELDS), None)
            place = f"{path}: {given.origin}"
            raise InputError("does not fit maskrcnn's weights", file=place, found=found, expected=expected)
        return Opened(_built(_overlaid(own, given), state, path), OURS, (), metadata)
    from maskrcnn.weights.formats.reading import read_content

    return open_content(read_content(path), given)


def open_content(content: Content, config: ConfigLike | None = None) -> Opened:
    """The same for what was read already, or made in memory: `Content(model.state_dict())` of a torchvision model."""
    given, beside = _read_config(config), _config_beside(content.file)
    family = _family_of(content)
    inside = family.settings_inside(content) if hasattr(family, "settings_inside") else None
    settings = next((found for found in (given, inside, beside) if isinstance(found, Settings)), None)
    try:
        if isinstance(given, MaskRCNNConfig) and hasattr(family, "rename"):
            converted = Converted(given, family.rename(content.tensors), (), family.__name__.rpartition(".")[2])
        else:
            converted = family.convert(content, settings)
    except InputError as error:
        raise error if str(content.file) in str(error) else InputError(str(error), file=content.file) from error
    config_here = converted.config if isinstance(given, MaskRCNNConfig) else _overlaid(converted.config, beside)
    model = _built(_overlaid(config_here, given), converted.state, content.file)
    handed_in = _names_in(beside) + _names_in(given)
    assumed = tuple(line for line in converted.assumed if not line.startswith(handed_in))
    record = hub.record(content.file) or {}  # of a file that the hub downloaded
    metadata = {
        "licence": record.get("licence", "unknown"),
        "source": record.get("url", f"{converted.family}: {content.file.name}"),
        "settings": settings.origin if settings else "",
        "assumed": list(assumed),
    }
    return Opened(model, converted.family, assumed, metadata)


def resolve_weights(weights: str | Path) -> Path:
    """The file that `weights` means: a path, or the name of a detector that ships with the package or is in the zoo."""
    if not isinstance(weights, str | Path) or not str(weights):
        expected = f"a file, or a name, such as {bundled_names()[0]}"
        raise InputError("no such weights", field="weights", found=repr(weights), expected=expected)
    path = Path(weights)
    if not isinstance(weights, str) or path.name != weights or path.exists():
        return path
    if weights in bundled_names():
        return bundled(weights)
    if hub.is_known(weights):
        return hub.resolve(weights)
    if path.suffix:
        return path
    expected = f"a file, {', '.join(bundled_names())}, or a name that `maskrcnn weights list` shows"
    raise InputError("no such weights", field="weights", found=weights, expected=expected)


# --- whose file is it -------------------------------------------------------------------------------------------------


def _is_ours(path: Path) -> bool:
    """Whether `read_checkpoint` should read it: a file of ours, or one that was to be and is damaged."""
    if not path.is_file():
        return True  # it says so
    with path.open("rb") as stream:
        begin = stream.read(9)
    if begin[8:] != b"{":  # no safetensors file: those begin with eight bytes of length, then a JSON header
        return path.suffix == ".safetensors" and not begin.startswith(_FOREIGN_BEGINNINGS)
    try:
        with safetensors.safe_open(path, framework="pt") as stream:
            return METADATA_KEY in (stream.metadata() or {})
    except safetensors.SafetensorError:
        return True


def _family_of(content: Content) -> Any:
    for name in FAMILIES:
        family = importlib.import_module(f"maskrcnn.weights.{name}")
        if family.recognises(content):
            return family
    names = list(content.tensors)
    found = f"{len(names)} tensors: {', '.join(names[:4])}" if names else "no tensors"
    expected = "a Mask R-CNN or Faster R-CNN of torchvision, Detectron2, MMDetection or Matterport"
    raise InputError("not a detector that is known here", file=content.file, found=found, expected=expected)


# --- the config that is handed in, or found ---------------------------------------------------------------------------


def _read_config(config: ConfigLike | None) -> Given:
    """A whole config of ours, some of its fields, or another family's settings."""
    if config is None or isinstance(config, MaskRCNNConfig | Settings | Overlay):
        return config
    if isinstance(config, Mapping):
        return Overlay(config) if _OUR_FIELDS.issuperset(config) else Settings(config, "config")
    if not isinstance(config, str | Path):
        expected = "a MaskRCNNConfig, a mapping of some of its fields, or a file"
        raise InputError("is not a config", field="config", found=repr(config), expected=expected)
    return _read_config_file(Path(config), str(config))


def _read_config_file(path: Path, origin: str) -> Overlay | Settings:
    """origin: what settings of another family are called in messages."""
    values = _config_values(path)
    return Overlay(values, path) if _OUR_FIELDS.issuperset(values) else Settings(values, origin)


def _config_values(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        expected = "a .yaml, .json or .py file"
        raise InputError("no such config", file=path, found="a folder" if path.is_dir() else None, expected=expected)
    if path.suffix == ".py":
        from maskrcnn.weights.formats.python_config import read_python_config

        return read_python_config(path)
    from maskrcnn.weights.detectron2_settings import read_config

    return read_config(path)


def _config_beside(file: Path) -> Overlay | Settings | None:
    """`config.yaml` in the folder of a file: another family's settings, or some of our fields."""
    beside = file.parent / BESIDE
    if not beside.is_file() or not file.is_file():
        return None
    return _read_config_file(beside, f"{BESIDE} beside the file")


def _overlaid(config: MaskRCNNConfig, given: Given) -> MaskRCNNConfig:
    """`config` with the fields of ours that were handed in."""
    if isinstance(given, MaskRCNNConfig):
        return given
    if given is None or isinstance(given, Settings):
        return config
    try:
        return from_dict(MaskRCNNConfig, _merged(to_dict(config), given.values), "config")
    except InputError as error:
        raise error if given.file is None else InputError(str(error), file=given.file) from error


def _names_in(given: object) -> tuple[str, ...]:
    """The fields of ours that a mapping tells, as lines about them begin: "detection.nms_iou "."""
    values = given.values if isinstance(given, Overlay) else given
    if not isinstance(values, Mapping):
        return ()
    nested = {name: _names_in(value) for name, value in values.items()}
    return tuple(name for head, tails in nested.items() for name in ([f"{head}.{t}" for t in tails] or [f"{head} "]))


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for name, change in changes.items():
        below = merged.get(name)
        both = isinstance(below, Mapping) and isinstance(change, Mapping)
        merged[name] = _merged(below, change) if both else change  # type: ignore[arg-type]
    return merged


# --- the model, whole or not at all -----------------------------------------------------------------------------------


def _built(config: MaskRCNNConfig, state: Mapping[str, Tensor], file: Path) -> MaskRCNN:
    try:
        model = MaskRCNN(config)
    except InputError as error:
        raise InputError(str(error), file=file) from error
    wanted = model.state_dict()
    counters = {name: value for name, value in wanted.items() if name.endswith(".num_batches_tracked")}
    state = {name: value for name, value in state.items() if not name.endswith(".num_batches_tracked")} | {
        name: state.get(name, torch.zeros_like(value)) for name, value in counters.items()
    }  # how many batches a norm has seen: some families leave it out, and no detection hangs on it
    require_fit(state, wanted, file)
    model.load_state_dict(state)
    require_finite(model.state_dict(), file)
    return model.eval()
