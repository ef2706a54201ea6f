"""Picture to feature maps c2..c5 at strides 4, 8, 16, 32: any timm network that offers them.

ResNet (He et al. 2016) is the standard; timm's parameter names equal torchvision's.

A map may also be taken from inside a stage: "c5a" is one of stride 32 like c5, from an earlier block.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import timm
import torch
from timm.layers.norm_act import freeze_batch_norm_2d
from timm.models import create_feature_extractor
from torch import Tensor, nn

import maskrcnn.model.zf  # noqa: F401  (timm knows it from then on)
from maskrcnn.errors import InputError
from maskrcnn.model.config import require
from maskrcnn.model.plain import remove_shortcuts_

STRIDES = {"c2": 4, "c3": 8, "c4": 16, "c5": 32}


def stride_of(level: str) -> int:
    """Pixels per cell of a level, by its number: 32 for c5 and for c5a."""
    return STRIDES[level[:2]]


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The body of the detector."""

    name: str = "resnet50"  # any name of timm.list_models() with feature maps at strides 4 to 32
    options: Mapping[str, Any] = field(default_factory=dict)  # passed on to timm.create_model
    norm: Literal["frozen", "batch", "group"] = "frozen"  # frozen: statistics of pretraining, never updated
    norm_eps: float | None = None  # added to batch norm's variances; None: the network's own, 1e-5 in most
    levels: tuple[str, ...] = (
        "c2",
        "c3",
        "c4",
        "c5",
    )  # the maps that are handed on; what lies behind the last is not made
    taps: Mapping[str, str] = field(
        default_factory=dict
    )  # levels that are taken from inside a stage, and timm's name of the module: {"c5a": "blocks.5.0"}
    stride_in: Literal["3x3", "1x1"] = (
        "3x3"  # of a bottleneck that halves the map: which convolution; 1x1 in He et al. 2016
    )
    pool_padding: Literal["around", "end"] = (
        "around"  # of the stem's max pooling; end: right and below only, TensorFlow's "same"
    )
    shortcuts: bool = True  # False: basic blocks add nothing, a "plain" net (He et al. 2016, 3.3); see model/plain.py
    dilate_c5: bool = False  # c5 at stride 16 by dilated convolutions ("DC5"; Dai et al. 2017, 4)
    frozen_stages: int = 2  # 0: all learn; 1: the stem is fixed; 2: and c2; ... Lin et al. 2017 fix stem and c2

    def __post_init__(self) -> None:
        # timm takes "hf-hub:..." and "local-dir:..." too: a config read from a file must reach neither network nor disk
        is_plain = bool(self.name) and not set(self.name) & set(":/\\")
        require(is_plain, self, "name", "a name of timm.list_models()")
        require(self.norm_eps is None or self.norm_eps >= 0, self, "norm_eps", "0 or more, or none")
        require(0 <= self.frozen_stages <= 5, self, "frozen_stages", "0 to 5 (0: all learn, 5: none)")
        fits = all(re.fullmatch("c[2-5][a-z]", tap) and isinstance(module, str) for tap, module in self.taps.items())
        require(fits, self, "taps", "a module's name for each of c2a to c5z")
        possible = sorted([*STRIDES, *self.taps], key=lambda name: name.ljust(3, "~"))  # c2, ..., c5a, c5b, c5
        known = bool(self.levels) and list(self.levels) == [name for name in possible if name in self.levels]
        known = known and self.levels[-1] in STRIDES and set(self.taps) <= set(self.levels)
        require(known, self, "levels", f"some of {', '.join(possible)}, in this order, and all taps")
        # JSON gives tuples back as lists: tuples here, so that a config read from a file equals the one written
        object.__setattr__(self, "options", {name: _as_tuple(value) for name, value in self.options.items()})


class Backbone(nn.Module):
    """pixels (N, 3, H, W) -> {"c2": (N, C2, H/4, W/4), ..., "c5": (N, C5, H/32, W/32)}, or those of `config.levels`."""

    def __init__(self, config: BackboneConfig, *, pretrained: bool = False) -> None:
        super().__init__()
        self.config = config
        self.body = _create(config, pretrained)
        self._infos = self.body.feature_info.get_dicts()
        reductions = [int(info["reduction"]) for info in self._infos]
        ends = [name for name in config.levels if name not in config.taps]
        missing = [STRIDES[name] for name in ends if STRIDES[name] not in reductions]
        if missing:
            expected = f"strides {missing}"
            raise InputError("no such feature maps", field="backbone.name", found=config.name, expected=expected)
        # where a network has several maps of one stride, the last one has seen most layers
        last = len(reductions) - 1
        index = {name: last - reductions[::-1].index(STRIDES[name]) for name in ends}
        self.channels = {name: int(self._infos[i]["num_chs"]) for name, i in index.items()}
        self.strides = {name: stride_of(name) for name in config.levels}
        self._channels_last = getattr(self.body, "output_fmt", "NCHW") == "NHWC"  # as of Swin and its kin
        self._place: dict[str, Any] = index  # of each level in what the body gives: a list, or a dictionary
        if config.taps:
            modules = {**config.taps, **{name: str(self._infos[i]["module"]) for name, i in index.items()}}
            self._place = {name: name for name in config.levels}
            self.body = _tapped(self.body, {name: modules[name] for name in config.levels})
            self.channels = self._look()
        if config.dilate_c5:
            _dilate_(self.body, config)
            self.strides["c5"] = STRIDES["c4"]
        if config.pool_padding == "end":
            _pad_pool_at_end_(self.body, config)
        adapt_body_(self.body, config)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        maps = self.body(pixels)
        if self._channels_last:
            return {name: maps[place].permute(0, 3, 1, 2) for name, place in self._place.items()}
        return {name: maps[place] for name, place in self._place.items()}

    def _look(self) -> dict[str, int]:
        """Channels of each level, as a small picture shows them. Errors: `InputError` for a tap of another stride."""
        with torch.no_grad():
            maps = self.eval()(torch.zeros(1, 3, 64, 64))
        self.train()
        for name, tap in self.config.taps.items():
            side = maps[name].shape[-1] if maps[name].ndim == 4 else 0
            if side != 64 // self.strides[name]:
                found = f"{tap}, of shape {tuple(maps[name].shape)} for 64 x 64 px"
                expected = f"a map of stride {self.strides[name]}"
                raise InputError("not such a map", field=f"backbone.taps.{name}", found=found, expected=expected)
        return {name: int(level.shape[1]) for name, level in maps.items()}

    def freeze(self, stages: int | None = None) -> list[str]:
        """Stop the stem and the first stages from learning; returns the names of the weights that were fixed.

        stages: 1 fixes the stem, 2 the stem and what leads to c2, up to 5, all; None: as configured.
        """
        stages = self.config.frozen_stages if stages is None else stages
        fixed = []
        for module_name, module in self._first(stages):
            for name, parameter in module.named_parameters(module_name, recurse=False):
                parameter.requires_grad_(False)
                fixed.append(name)
        return fixed

    def _first(self, stages: int) -> list[tuple[str, nn.Module]]:
        """The modules that the first `stages` stages consist of, with their names."""
        if stages == 0:
            return []
        modules = list(self.body.named_modules())
        ends = [str(info["module"]) for info in self._infos if info["reduction"] <= 2**stages]
        if not ends:  # a stem of stride 4 has no map of its own: it is what comes before c2
            c2 = [str(self._infos[0]["module"])]
            return modules[: next(i for i, (name, _) in enumerate(modules) if _is_inside(name, c2))]
        return modules[: max((i for i, (name, _) in enumerate(modules) if _is_inside(name, ends)), default=-1) + 1]


def _is_inside(name: str, ends: list[str]) -> bool:
    """Whether module `name` is one of `ends` or below it; timm writes some paths with "_" for "."."""
    spellings = {spelling for end in ends for spelling in (end, end.replace(".", "_"))}
    return any(name == end or name.startswith(end + ".") for end in spellings)


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list | tuple) else value


def adapt_body_(body: nn.Module, config: BackboneConfig) -> None:
    """What timm has no option for, in place: shortcuts, the stride's place, batch norm's eps, and the kind of norm."""
    if not config.shortcuts:
        remove_shortcuts_(body, config.name)
    if config.stride_in == "1x1":
        _stride_in_1x1_(body, config)
    if config.norm_eps is not None:
        _set_eps_(body, config.norm_eps)
    if config.norm == "frozen":
        freeze_batch_norm_2d(body)  # type: ignore[no-untyped-call]
    elif config.norm == "group":
        _group_norm_(body)


def create_timm(config: BackboneConfig, pretrained: bool, **how: Any) -> Any:
    """`timm.create_model` with the config's options. Errors: `InputError` for a name or options that timm lacks."""
    try:
        return timm.create_model(config.name, pretrained=pretrained, **config.options, **how)
    except (RuntimeError, TypeError, AttributeError) as error:  # unknown name; unknown option; no feature maps
        if pretrained and "Unknown model" not in str(error):
            raise
        problem, expected = f"timm cannot make it ({error})", "a name of timm.list_models()"
        raise InputError(problem, field="backbone.name", found=config.name, expected=expected) from error


def _create(config: BackboneConfig, pretrained: bool) -> Any:
    """The network down to the last of `config.levels`."""
    if config.levels[-1] == "c5":
        return create_timm(config, pretrained, features_only=True)
    with torch.device("meta"):  # only to see where its maps lie
        reductions = create_timm(config, False, features_only=True).feature_info.reduction()
    wanted = STRIDES[config.levels[-1]]
    indices = tuple(i for i, reduction in enumerate(reductions) if reduction <= wanted)
    return create_timm(config, pretrained, features_only=True, out_indices=indices)


def _tapped(body: nn.Module, modules: Mapping[str, str]) -> nn.Module:
    """`body`, giving what leaves these modules, by level: its calls are written down, and end with the last of them.

    Weights and their names stay. Errors: `InputError` for modules that it has not.
    """
    spelled = {
        name.replace(".", "_"): name for name, _ in body.named_modules()
    }  # timm writes "_" for "." in some paths
    nodes = {spelled.get(module.replace(".", "_"), ""): level for level, module in modules.items()}
    if "" in nodes or len(nodes) < len(modules):
        found, expected = ", ".join(modules.values()), "different modules of the network"
        raise InputError("no such modules", field="backbone.taps", found=found, expected=expected)
    tapped: nn.Module = create_feature_extractor(body, nodes)
    return tapped


def _dilate_(body: nn.Module, config: BackboneConfig) -> None:
    """c5 at the stride of c4: no stride in it, and a hole between the taps of every 3x3 convolution."""
    stage = getattr(body, "layer4", None)
    if stage is None:
        raise _needs_bottlenecks(config, "dilate_c5")
    for module in stage.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
            if module.kernel_size == (3, 3):
                module.dilation, module.padding = (2, 2), (2, 2)


def _stride_in_1x1_(body: nn.Module, config: BackboneConfig) -> None:
    """Move the stride of each bottleneck that has one from its 3x3 convolution to the 1x1 before it."""
    moved = 0
    for block in body.modules():
        conv1, conv2 = getattr(block, "conv1", None), getattr(block, "conv2", None)
        if not isinstance(conv1, nn.Conv2d) or not isinstance(conv2, nn.Conv2d) or conv1.kernel_size != (1, 1):
            continue
        moved += conv2.stride != (1, 1)
        conv1.stride, conv2.stride = conv2.stride, (1, 1)
    if not moved:
        raise _needs_bottlenecks(config, "stride_in")


def _pad_pool_at_end_(body: nn.Module, config: BackboneConfig) -> None:
    """Windows of the stem's max pooling begin at its first row and column; what the last one lacks is left out."""
    pool = getattr(body, "maxpool", None)
    if not isinstance(pool, nn.MaxPool2d):
        raise _needs_bottlenecks(config, "pool_padding")
    pool.padding, pool.ceil_mode = 0, True


def _needs_bottlenecks(config: BackboneConfig, field: str) -> InputError:
    expected = "a ResNet of bottlenecks, such as resnet50"
    return InputError("does not fit this network", field=f"backbone.{field}", found=config.name, expected=expected)


def _set_eps_(module: nn.Module, eps: float) -> None:
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.eps = eps


def _group_norm_(module: nn.Module) -> None:
    """Replace every batch norm by a group norm of up to 32 groups, in place (Wu and He 2018)."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            norm = nn.GroupNorm(math.gcd(32, child.num_features), child.num_features)
            act = getattr(child, "act", None)  # timm folds the activation into some of its norms
            setattr(module, name, norm if act is None else nn.Sequential(norm, act))
        else:
            _group_norm_(child)
