"""Activations of any layer: what a module gave for one picture, in numbers, with an alarm where it looks broken.

N items of a tensor (pictures, or RoIs)    C channels    H, W cells

The alarms, the first that holds:
    "NaN", "infinite"   a value is.
    "all zeros"         every value is.
    "constant"          no channel varies: the layer's input no longer reaches its output.
    "noise"             neighbouring cells are no more alike than cells far apart, as when a wrong reshape has mixed up
                        cells, or the picture itself is noise. Measured as the correlation of a cell with the next one,
                        the mean over channels that vary, along the rows or down the columns, whichever is larger. White
                        noise has 0; the sparsest map of the bundled detector on the demo pictures 0.12, most 0.3 to
                        0.9. It does not tell an untrained network: random weights keep the smoothness of the picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from glob import has_magic
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn.data.pictures import PictureLike, read_picture
from maskrcnn.errors import InputError
from maskrcnn.predictor import Predictor

Alarm = Literal["NaN", "infinite", "all zeros", "constant", "noise"]

SHOWN = 25  # channels kept for a picture
_LONGEST = 192  # cells a side of what is kept; longer maps are averaged down
NOISE = 0.05  # correlation of neighbours, below which a map is noise
_ENOUGH = 4096  # values; the correlation of fewer varies by more than a third of that by chance
_SAMPLES = 16  # values of a channel, from which it can be called dead


class Options(TypedDict, total=False):
    """Those of `Predictor.predict` that change what the network sees or keeps; explained there."""

    score_threshold: float | None
    nms_iou: float | None
    max_detections: int | None
    proposals: int | None
    size: int | Literal["native"] | None
    class_agnostic_nms: bool | None
    mask_nms_iou: float | None


@dataclass(frozen=True, eq=False)
class Activation:
    """A tensor that a layer gave, in numbers. Statistics are those of the finite values; NaN where there are none.

    name: of the layer; "fpn[p2]" where it gives several tensors, "rpn.objectness (2)" of its second call.
    shape: (N, C, H, W) of a map, whatever the layer's own order; else as it is, channels last.
    zeros, non_finite: shares of the values, 0..1. dead: channels of one value only, 0..C-1; empty where a channel has
    too few values to tell. smoothness: correlation of neighbouring cells, -1..1; None where that cannot be told.
    strongest: up to 25 channels, those that vary most in the first item, its outermost cells aside. maps: (25, h, w)
    float32 of these, first item, averaged down to at most 192 cells a side. A tensor without cells has one map: items
    down, channels across.
    """

    name: str
    shape: tuple[int, ...]
    mean: float
    std: float
    min: float
    max: float
    zeros: float
    non_finite: float
    dead: tuple[int, ...]
    smoothness: float | None
    strongest: tuple[int, ...]
    maps: np.ndarray
    alarm: Alarm | None

    @property
    def is_map(self) -> bool:
        """Whether it has cells, (N, C, H, W)."""
        return len(self.shape) == 4

    @property
    def channels(self) -> int:
        """C."""
        return self.shape[1] if self.is_map else self.shape[-1] if self.shape else 1


def activations(
    predictor: Predictor, picture: PictureLike, layers: Sequence[str] | None = None, **options: Unpack[Options]
) -> dict[str, Activation]:
    """What layers give while the detector looks at one picture, by name, in the order in which they are computed.

    layers: names as `predictor.model.named_modules()` has them, or patterns: "backbone.*.conv1", where * stands for
        dots too, so that "*" is every layer. None: the stages, from "preprocess" to the heads.
    options: as for `Predictor.predict`.

    Nothing stays with the model: its hooks are for this call. Statistics are taken at once, since layers that work in
    place change what the one before gave.

    Errors: `InputError` for a name that is no layer's or that gives no tensor; as `Predictor.predict`.
    """
    chosen = _chosen(predictor.model, layers)
    body = predictor.model.backbone.body
    rows_last = set(body.modules()) if getattr(body, "output_fmt", "NCHW") == "NHWC" else set()
    found: dict[str, Activation] = {}
    calls: dict[str, int] = {}

    def keep(name: str, module: nn.Module, output: Any) -> None:
        calls[name] = calls.get(name, 0) + 1
        number = f" ({calls[name]})" if calls[name] > 1 else ""
        turned = module in rows_last and not isinstance(module, nn.Conv2d)  # as within Swin and its kin
        for part, tensor in _tensors(output):
            values = tensor.permute(0, 3, 1, 2) if turned and tensor.ndim == 4 else tensor
            full = f"{name}[{part}]{number}" if part else f"{name}{number}"
            found[full] = activation(full, values)

    with ExitStack() as stack:
        for name, module in chosen.items():
            hook = module.register_forward_hook(lambda module, _, output, name=name: keep(name, module, output))
            stack.callback(hook.remove)
        predictor.untuned().predict(read_picture(picture), **options)
    for name in layers or ():
        if name not in calls and not has_magic(name):
            expected = f"those inside it, {name}.*" if any(chosen[name].children()) else "one that is called"
            raise InputError("gives nothing of its own", field="layers", found=name, expected=expected)
    return found


def activation(name: str, tensor: Tensor) -> Activation:
    """The numbers of one tensor: (N, C, H, W), or any other shape with channels last."""
    with torch.no_grad():
        values = tensor.detach().float()
        finite = values.isfinite()
        share = float(finite.float().mean()) if values.numel() else 1.0
        alarm: Alarm | None = None if share == 1 else "NaN" if bool(values.isnan().any()) else "infinite"
        some = values[finite] if share < 1 else values.flatten()
        clean = values.masked_fill(~finite, 0) if share < 1 else values
        rows = _by_channel(clean)  # (C, samples)
        spread = rows.amax(1) - rows.amin(1) if rows.numel() else rows.new_zeros(len(rows))
        smoothness = _smoothness(clean, spread > 0)
        if alarm is None and values.numel() > 1:
            alarm = _alarm(clean, spread, rows.shape[1], smoothness)
        low, high = map(float, some.aminmax()) if some.numel() else (float("nan"), float("nan"))
        std, mean = map(float, torch.std_mean(some, correction=0)) if some.numel() else (float("nan"), float("nan"))
        strongest, maps = _maps(clean)
        return Activation(
            name=name,
            shape=tuple(tensor.shape),
            mean=mean,
            std=std,
            min=low,
            max=high,
            zeros=float((values == 0).float().mean()) if values.numel() else 0.0,
            non_finite=1 - share,
            dead=tuple(torch.nonzero(spread == 0).flatten().tolist()) if rows.shape[1] >= _SAMPLES else (),
            smoothness=smoothness,
            strongest=strongest,
            maps=maps,
            alarm=alarm,
        )


def _alarm(values: Tensor, spread: Tensor, samples: int, smoothness: float | None) -> Alarm | None:
    """spread: (C,) largest less smallest value of each channel, of `samples` values."""
    if not bool(values.any()):
        return "all zeros"
    if values.numel() >= _SAMPLES and bool((values == values.flatten()[0]).all()):
        return "constant"
    if samples >= _SAMPLES and not bool(spread.any()):
        return "constant"
    return "noise" if smoothness is not None and smoothness < NOISE else None


def _smoothness(values: Tensor, varies: Tensor) -> float | None:
    """Correlation of a cell with its neighbour, mean of the channels that vary; None for what is no map, or too small.

    As Moran's I with the next cell of the row, or of the column, as the only neighbour (Moran 1950).
    """
    if values.ndim != 4 or min(values.shape[2:]) < 4:
        return None
    values = values[:, varies]
    if values.numel() < _ENOUGH:
        return None
    values = values - values.mean((0, 2, 3), keepdim=True)
    values = values / values.abs().amax((0, 2, 3), keepdim=True)  # so that no square overflows or vanishes
    variance = values.square().mean((0, 2, 3))
    across = (values[..., 1:] * values[..., :-1]).mean((0, 2, 3)) / variance
    down = (values[:, :, 1:] * values[:, :, :-1]).mean((0, 2, 3)) / variance
    return float(torch.maximum(across.mean(), down.mean()))


def _maps(values: Tensor) -> tuple[tuple[int, ...], np.ndarray]:
    """The strongest channels of the first item, and their maps."""
    if values.ndim != 4:
        matrix = values.reshape(-1, values.shape[-1]) if values.ndim else values.reshape(1, 1)
        return (), _small(matrix[None])
    if not len(values):
        return (), np.zeros((0, *values.shape[2:]), np.float32)
    inner = values[0, :, 1:-1, 1:-1] if min(values.shape[2:]) > 4 else values[0]  # zero padding shows along the border
    strength = inner.flatten(1).std(1, correction=0)
    chosen = strength.argsort(descending=True, stable=True)[:SHOWN]
    return tuple(chosen.tolist()), _small(values[0][chosen])


def _small(maps: Tensor) -> np.ndarray:
    """(n, h, w) averaged down to at most 192 cells a side."""
    size = [min(side, _LONGEST) for side in maps.shape[1:]]
    if maps.numel() and size != list(maps.shape[1:]):
        maps = F.interpolate(maps[None], size=size, mode="area")[0]
    small: np.ndarray = maps.cpu().numpy().copy()
    return small


def _by_channel(values: Tensor) -> Tensor:
    """(C, samples)."""
    if values.ndim == 4:
        return values.transpose(0, 1).flatten(1)
    return values.reshape(-1, values.shape[-1]).T if values.ndim else values.reshape(1, 1)


def _tensors(output: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of real numbers in what a module gave, with its place: "p2", "logits.0"; "" of a bare tensor."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield path, output
        return
    parts: list[tuple[Any, Any]] = []
    if isinstance(output, Mapping):
        parts = list(output.items())
    elif isinstance(output, list | tuple):
        parts = list(enumerate(output))
    elif is_dataclass(output):
        parts = [(field.name, getattr(output, field.name)) for field in fields(output)]
    for name, part in parts:
        yield from _tensors(part, f"{path}.{name}" if path else str(name))


def _chosen(model: nn.Module, layers: Sequence[str] | None) -> dict[str, nn.Module]:
    """The modules that names and patterns mean."""
    modules = {name: module for name, module in model.named_modules() if name}
    if layers is None:
        return dict(model.named_children())
    if isinstance(layers, str):
        raise InputError("is one name", field="layers", found=layers, expected="a list of names")
    chosen: set[str] = set()
    for pattern in layers:
        matching = {name for name in modules if fnmatchcase(name, pattern)}
        if not matching:
            near = get_close_matches(pattern, modules, n=3, cutoff=0.4) or list(dict(model.named_children()))
            raise InputError(
                "no such layer", field="layers", found=pattern, expected=f"a name such as {', '.join(near)}"
            )
        chosen |= matching
    return {name: module for name, module in modules.items() if name in chosen}
