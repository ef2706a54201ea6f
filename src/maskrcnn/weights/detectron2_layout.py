"""What the names and shapes of Detectron2's tensors tell of a network."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from maskrcnn.weights.tensors import State, count, shape

BodyNorm = Literal["frozen", "batch", "group"]

RPN_HEAD = "proposal_generator.rpn_head."
BOX_HEAD = "roi_heads.box_head."
BOX_PREDICTOR = "roi_heads.box_predictor."
MASK_HEAD = "roi_heads.mask_head."
KEYPOINT_HEAD = "roi_heads.keypoint_head."
ROI_STAGE = "roi_heads.res5."


@dataclass(frozen=True)
class Layout:
    """A network in a few facts.

    kind: "FPN", "C4" (the body's last stage runs on each RoI) or "C5" (the heads read the last map).
    body: prefix of the backbone's own tensors. is_regnet: a RegNet; else a ResNet or ResNeXt.
    blocks: of its four stages, the one that runs on RoIs included. has_bottlenecks: three convolutions a block.
    groups, width: of the 3x3 convolutions, and channels of each group in the first stage; 1 and 64 for a ResNet.
    norm: of the body. stem_learns: the stem's norm is a batch norm that learned.
    rpn_depth: 3x3 convolutions of the RPN. stages: box heads, one, or three of Cascade R-CNN.
    num_classes: K, without background.
    """

    kind: Literal["FPN", "C4", "C5"]
    body: str
    is_regnet: bool
    blocks: tuple[int, ...]
    has_bottlenecks: bool
    groups: int
    width: int
    norm: BodyNorm
    stem_learns: bool
    rpn_depth: int
    stages: int
    num_classes: int
    has_masks: bool
    has_keypoints: bool


def layout_of(state: State) -> Layout:
    """Errors: `InputError` that names the first tensor that is missing."""
    is_fpn = has(state, "backbone.fpn_")
    body = "backbone.bottom_up." if is_fpn else "backbone."
    is_regnet = f"{body}stem.conv.weight" in state
    norm, stem_learns = _body_norm(state, body, "stem.bn" if is_regnet else "stem.conv1.norm")
    groups, width = 1, 64
    if not is_regnet and f"{body}res2.0.conv3.weight" in state:
        out_channels, width = shape(state, f"{body}res2.0.conv2.weight")[:2]
        groups = out_channels // width
    cascade = count(state, r"roi_heads\.box_predictor\.(\d+)\.cls_score\.weight")
    return Layout(
        kind="FPN" if is_fpn else "C4" if has(state, ROI_STAGE) else "C5",
        body=body,
        is_regnet=is_regnet,
        blocks=_blocks(state, body, is_regnet),
        has_bottlenecks=is_regnet or f"{body}res2.0.conv3.weight" in state,
        groups=groups,
        width=width,
        norm=norm,
        stem_learns=stem_learns,
        rpn_depth=max(1, count(state, r"proposal_generator\.rpn_head\.conv\.conv(\d+)\.weight")),
        stages=cascade or 1,
        num_classes=shape(state, f"{BOX_PREDICTOR}{'0.' if cascade else ''}cls_score.weight")[0] - 1,
        has_masks=has(state, MASK_HEAD),
        has_keypoints=has(state, KEYPOINT_HEAD),
    )


def _blocks(state: State, body: str, is_regnet: bool) -> tuple[int, ...]:
    if is_regnet:
        return tuple(count(state, rf"{re.escape(body)}s{i}\.b(\d+)\.f\.a\.weight") for i in (1, 2, 3, 4))
    prefix = rf"({re.escape(body)}|roi_heads\.)"
    return tuple(count(state, rf"{prefix}res{i}\.(\d+)\.conv1\.weight") for i in (2, 3, 4, 5))


def _body_norm(state: State, body: str, stem_norm: str) -> tuple[BodyNorm, bool]:
    """The kind of norm, and whether the stem's learned too.

    Only batch norms count batches. Those that training kept fixed have no counter, or one that stands still while
    others went on; there were versions that did not count at all.
    """
    counters = {name: int(state[name]) for name in state if re.fullmatch(rf"{body}.*num_batches_tracked", name)}
    if not counters:
        return "frozen" if f"{body}{stem_norm}.running_mean" in state else "group", False
    stem = counters.get(f"{body}{stem_norm}.num_batches_tracked")
    return "batch", stem is not None and (stem > 0 or not any(counters.values()))


def has(state: State, prefix: str) -> bool:
    """Whether any tensor's name begins so."""
    return any(name.startswith(prefix) for name in state)
