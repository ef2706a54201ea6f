"""A detector whose convolutions and large layers compute in int8, after it was shown some pictures (calibrated).

Everything from the first convolution to the last but one of each head is in codes 0..255; the numbers that detections
are made of (class and box, objectness, mask logits) leave their layers as float32.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from maskrcnn.engine.calibrate import Range, Ranges, calibrate
from maskrcnn.engine.choose import bf16_is_faster, faster, packing_works
from maskrcnn.engine.codes import Codes, Coding, coding_of
from maskrcnn.engine.conv import FusedConv
from maskrcnn.engine.fuse import fused
from maskrcnn.engine.heads import FusedBoxHead, FusedFPN, FusedMaskHead, FusedRPN
from maskrcnn.engine.int8_conv import QuantisedConv, QuantisedLinear
from maskrcnn.engine.int8_graph import Decode, is_quantised, quantise_graph_
from maskrcnn.engine.int8_stages import QuantisedFPN, QuantisedPooler
from maskrcnn.engine.linear import FusedLinear
from maskrcnn.engine.tune import cast_, pack_
from maskrcnn.model.mask_rcnn import MaskRCNN


def ranges_of(model: MaskRCNN, pictures: Iterable[Tensor]) -> dict[str, Range]:
    """What `quantised` needs to know of `model`, found on pictures (3, H, W) uint8 RGB like those to come.

    Errors: `InputError` where there is none.
    """
    return calibrate(fused(model), pictures)


def quantised(model: MaskRCNN, ranges: Ranges) -> MaskRCNN:
    """A detector with about the answers of `model` in int8, for the CPU; `model` stays as it is.

    What cannot be in int8 (norms that could not be folded, depthwise convolutions, predictors) is in bf16 where the CPU
    has it, else in float32.
    """
    network = fused(model)
    dtype = torch.bfloat16 if bf16_is_faster() else torch.float32
    with torch.no_grad():
        reads_pixels = _quantise_(network, ranges, dtype)
        if packing_works(dtype):
            pack_(network, dtype)
    if dtype != torch.float32:
        cast_(network, dtype)
        if reads_pixels:
            network.backbone._forward_pre_hooks.clear()  # pixels stay float32 until they are codes
    for graph in (network.backbone, network.roi_stage or nn.Identity()):
        for module in graph.modules():
            if isinstance(module, Decode | QuantisedConv):
                module.dtype = dtype
    return network


def _quantise_(network: MaskRCNN, ranges: Ranges, dtype: torch.dtype) -> bool:
    """Codes wherever layers can hand them on, in place. Returns whether pixels are read by such layers alone."""
    body, reads_pixels = network.backbone.body, False
    if isinstance(body, fx.GraphModule):
        reads_pixels = quantise_graph_(body, "backbone.body", ranges)
    codings = _codings_of(network.backbone(torch.zeros(1, 3, 64, 64)))
    features = None
    if network.fpn is None and len(codings) == 1 and all(codings.values()):
        (features,) = codings.values()
    elif isinstance(network.fpn, FusedFPN) and _all_quantised(network.fpn, "fpn", ranges):
        features = _quantise_fpn_(network.fpn, ranges, codings)
        network.fpn = QuantisedFPN(network.fpn)
    else:
        network.backbone.register_forward_hook(_DecodeAll(dtype))
    if isinstance(network.rpn, FusedRPN):
        hidden = _chain_(network.rpn.convs, "rpn.convs", ranges, features)
        network.rpn.both = _conv(network.rpn.both, "rpn.both", ranges, hidden, None, torch.float32)
    if network.roi_stage is not None and isinstance(network.roi_stage.blocks, fx.GraphModule):
        quantise_graph_(network.roi_stage.blocks, "roi_stage.blocks", ranges)
        network.roi_stage.register_forward_hook(_DecodeAll(dtype))
    _quantise_heads_(network, ranges, features, dtype)
    return reads_pixels


def _quantise_heads_(network: MaskRCNN, ranges: Ranges, features: Coding | None, dtype: torch.dtype) -> None:
    """Heads, and the poolers that feed them. features: the coding of the maps, None where they are numbers."""
    pooled = features if network.roi_stage is None else None
    heads = {"box_head": network.box_head, "mask_head": network.mask_head}
    for name, later in (("box_head", network.later_box_heads), ("mask_head", getattr(network, "later_mask_heads", []))):
        heads |= {f"later_{name}s.{i}": head for i, head in enumerate(later)}
    reads = {"box": True, "mask": True, "keypoint": False}  # whether all heads of a kind read codes
    for name, head in heads.items():
        kind = "mask" if "mask" in name else "box"
        if isinstance(head, FusedBoxHead) and _all_quantised(head, name, ranges):
            _quantise_box_head_(head, name, ranges, pooled, dtype)
        elif isinstance(head, FusedMaskHead) and _all_quantised(head, name, ranges):
            hidden = _chain_(head.convs, f"{name}.convs", ranges, pooled)
            head.deconv = _conv(head.deconv, f"{name}.deconv", ranges, hidden, None, dtype)
        else:
            reads[kind] = False
    if features is not None:
        for kind, reads_codes in reads.items():
            pooler = getattr(network, f"{kind}_pooler")
            if pooler is not None:
                coded = reads_codes and network.roi_stage is None
                setattr(network, f"{kind}_pooler", QuantisedPooler(pooler, None if coded else dtype))


def _quantise_box_head_(
    head: FusedBoxHead, name: str, ranges: Ranges, pooled: Coding | None, dtype: torch.dtype
) -> None:
    """All but the last layer, which gives the numbers of class and box."""
    last = None if head.fcs else dtype
    hidden = _chain_(head.convs, f"{name}.convs", ranges, pooled, last)
    for i, linear in enumerate(head.fcs):
        full_name, is_last = f"{name}.fcs.{i}", i == len(head.fcs) - 1
        made = None if is_last else coding_of(*ranges[f"{full_name}.made"])
        given = hidden or coding_of(*ranges[f"{full_name}.given"])
        head.fcs[i] = QuantisedLinear(cast("FusedLinear", linear), given, made, dtype=dtype)
        hidden = made


def _quantise_fpn_(fpn: FusedFPN, ranges: Ranges, codings: Mapping[str, Coding | None]) -> Coding:
    """Every convolution of the pyramid, and one coding for all its levels, which the same layers read."""
    ends = [ranges[f"fpn.output.{level}.made"] for level in fpn.output]
    features = coding_of(min(low for low, _ in ends), max(high for _, high in ends))
    above: Coding | None = None
    for level in reversed(list(fpn.lateral)):
        given, merged = codings[f"c{level[1:]}"], coding_of(*ranges[f"fpn.output.{level}.given"])
        fpn.lateral[level] = _conv(fpn.lateral[level], f"fpn.lateral.{level}", ranges, given, merged, added=above)
        fpn.output[level] = _conv(fpn.output[level], f"fpn.output.{level}", ranges, merged, features)
        above = merged
    return features


def _chain_(
    convs: nn.ModuleList, name: str, ranges: Ranges, given: Coding | None, last: torch.dtype | None = None
) -> Coding | None:
    """Convolutions in a row, in place. Returns the coding of what leaves them; none if that is numbers of `last`."""
    for i, conv in enumerate(convs):
        full_name = f"{name}.{i}"
        as_numbers = last is not None and i == len(convs) - 1
        made = None if as_numbers else coding_of(*ranges[f"{full_name}.made"])
        convs[i] = _conv(conv, full_name, ranges, given, made, last or torch.float32)
        given = made
    return given


def _conv(
    conv: nn.Module,
    name: str,
    ranges: Ranges,
    given: Coding | None,
    made: Coding | None,
    dtype: torch.dtype = torch.float32,
    added: Coding | None = None,
) -> QuantisedConv:
    assert isinstance(conv, FusedConv)
    given = given or coding_of(*ranges[f"{name}.given"])
    return QuantisedConv(conv, given, made, added=added, dtype=dtype, may_overwrite=True)


def _all_quantised(stage: nn.Module, name: str, ranges: Ranges) -> bool:
    """Whether every convolution of a stage, and there is a layer, can work on codes."""
    layers = [(f"{name}.{path}", layer) for path, layer in stage.named_modules() if not list(layer.children())]
    convs = [(path, layer) for path, layer in layers if isinstance(layer, FusedConv | nn.Conv2d)]
    fit = all(isinstance(conv, FusedConv) and is_quantised(conv, path, ranges) for path, conv in convs)
    relus = [path for path, layer in layers if isinstance(layer, FusedLinear) and layer.relu]
    return fit and bool(convs or relus) and all(f"{path}.given" in ranges for path in relus)


def _codings_of(maps: Mapping[str, Codes | Tensor]) -> dict[str, Coding | None]:
    return {name: level.coding if isinstance(level, Codes) else None for name, level in maps.items()}


class _DecodeAll:
    """A hook that hands on numbers where there are codes."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, module: nn.Module, args: object, made: object) -> object:
        if isinstance(made, Codes):
            return made.decoded(self.dtype)
        if isinstance(made, dict):
            return {name: self(module, args, level) for name, level in made.items()}
        return made


@functools.cache
def int8_works() -> bool:
    """Whether the operations are there and exact: CPUs without VNNI add in 16 bits, too few for the largest codes."""
    try:
        weight = torch.ones(16, 32, 3, 3)
        conv = QuantisedConv(FusedConv(weight, torch.zeros(16), padding=(1, 1)), Coding(1.0, 0), None)
        got = conv(Codes(torch.full((1, 32, 8, 8), 255, dtype=torch.uint8), Coding(1.0, 0)))
        linear = QuantisedLinear(FusedLinear(torch.ones(16, 64), torch.zeros(16)), Coding(1.0, 0), None)
        rows = linear(Codes(torch.full((4, 64), 255, dtype=torch.uint8), Coding(1.0, 0)))
        want = F.conv2d(torch.full((1, 32, 8, 8), 255.0), weight, padding=1)
    except (RuntimeError, AttributeError, NotImplementedError):  # another build of torch
        return False
    assert isinstance(got, Tensor) and isinstance(rows, Tensor)
    return torch.allclose(got, want, rtol=1e-5) and bool((rows / (64 * 255) - 1).abs().max() < 1e-5)


@functools.cache
def int8_is_faster() -> bool:
    """Whether a convolution in int8 takes clearly less time than in float32 and, where the CPU has it, in bf16."""
    if not int8_works():
        return False
    weight = torch.zeros(128, 128, 3, 3).contiguous(memory_format=torch.channels_last)
    conv = QuantisedConv(FusedConv(weight, torch.zeros(128), padding=(1, 1)), Coding(1.0, 0), Coding(1.0, 0))
    codes = Codes(
        torch.zeros(1, 128, 48, 48, dtype=torch.uint8).contiguous(memory_format=torch.channels_last), conv.given
    )
    dtype = torch.bfloat16 if bf16_is_faster() else torch.float32
    x, weight = codes.values.to(dtype), weight.to(dtype)
    return faster(lambda: conv(codes), lambda: F.conv2d(x, weight, padding=1))
