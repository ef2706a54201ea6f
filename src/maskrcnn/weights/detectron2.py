"""Detectors of Detectron2 (facebookresearch/detectron2): Faster and Mask R-CNN with C4, DC5 or FPN, and their kin.

Its model zoo writes `.pkl` files, its training `.pth` files; both hold the tensors under "model". What the tensors do
not tell is asked of its `config.yaml` (`detectron2_config.py`).

Two orders differ from ours. Background is the last row of its class scores and the first of ours. The anchors of a cell
go size by size and within it ratio by ratio there, and ratio by ratio and within it size by size here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from maskrcnn.errors import InputError
from maskrcnn.model.anchors import AnchorConfig
from maskrcnn.weights.content import Content, Converted, Settings
from maskrcnn.weights.detectron2_config import config_of
from maskrcnn.weights.detectron2_layout import BOX_PREDICTOR, RPN_HEAD, layout_of
from maskrcnn.weights.detectron2_settings import Facts
from maskrcnn.weights.tensors import State

_SECTIONS = {"MODEL", "model", "INPUT", "TEST", "DATASETS", "dataloader"}  # every config of theirs has one of these
_NO_WEIGHTS = r"pixel_mean|pixel_std|proposal_generator\.anchor_generator\.cell_anchors\.\d+"  # settings of older files
_UNKNOWN = {  # parts that this package has not, by a piece of their names
    "_offset.": "deformable convolutions",
    "sem_seg_head.": "the semantic head of a panoptic network",
    "roi_heads.mask_coarse_head.": "PointRend",
}

# Theirs, ours. {before} is one below the number that they have there: res2 is layer1, mask_fcn1 is convs.0.
_BODY = r"backbone\.(?:bottom_up\.)?"
_PLACES = (
    (rf"{_BODY}stem\.conv1\.(?P<rest>\w+)", "backbone.body.conv1.{rest}"),
    (rf"{_BODY}stem\.conv1\.norm\.(?P<rest>\w+)", "backbone.body.bn1.{rest}"),
    (rf"{_BODY}res(?P<n>\d)\.(?P<block>.+)", "backbone.body.layer{before}.{block}"),
    (r"roi_heads\.res5\.(?P<block>.+)", "roi_stage.blocks.{block}"),
    (rf"{_BODY}(?P<block>(stem|s\d\.b\d+)\..+)", "backbone.body.{block}"),
    (r"backbone\.fpn_(?P<kind>lateral|output)(?P<n>\d)\.norm\.(?P<rest>\w+)", "fpn.{kind}.p{n}.norm.{rest}"),
    (r"backbone\.fpn_(?P<kind>lateral|output)(?P<n>\d)\.(?P<rest>\w+)", "fpn.{kind}.p{n}.conv.{rest}"),
    (r"proposal_generator\.rpn_head\.conv\.(?P<rest>weight|bias)", "rpn.convs.0.{rest}"),
    (r"proposal_generator\.rpn_head\.conv\.conv(?P<n>\d+)\.(?P<rest>\w+)", "rpn.convs.{n}.{rest}"),
    (r"proposal_generator\.rpn_head\.objectness_logits\.(?P<rest>\w+)", "rpn.objectness.{rest}"),
    (r"proposal_generator\.rpn_head\.anchor_deltas\.(?P<rest>\w+)", "rpn.deltas.{rest}"),
    (r"roi_heads\.box_head\.(?:(?P<stage>\d+)\.)?fc(?P<n>\d+)\.(?P<rest>\w+)", "{head}.fcs.{before}.{rest}"),
    (
        r"roi_heads\.box_head\.(?:(?P<stage>\d+)\.)?conv(?P<n>\d+)\.norm\.(?P<rest>\w+)",
        "{head}.convs.{before}.norm.{rest}",
    ),
    (r"roi_heads\.box_head\.(?:(?P<stage>\d+)\.)?conv(?P<n>\d+)\.(?P<rest>\w+)", "{head}.convs.{before}.conv.{rest}"),
    (r"roi_heads\.box_predictor\.(?:(?P<stage>\d+)\.)?cls_score\.(?P<rest>\w+)", "{head}.classes.{rest}"),
    (r"roi_heads\.box_predictor\.(?:(?P<stage>\d+)\.)?bbox_pred\.(?P<rest>\w+)", "{head}.deltas.{rest}"),
    (r"roi_heads\.mask_head\.mask_fcn(?P<n>\d+)\.norm\.(?P<rest>\w+)", "mask_head.convs.{before}.norm.{rest}"),
    (r"roi_heads\.mask_head\.mask_fcn(?P<n>\d+)\.(?P<rest>\w+)", "mask_head.convs.{before}.conv.{rest}"),
    (r"roi_heads\.mask_head\.deconv\.(?P<rest>\w+)", "mask_head.deconv.{rest}"),
    (r"roi_heads\.mask_head\.predictor\.(?P<rest>\w+)", "mask_head.masks.{rest}"),
    (r"roi_heads\.keypoint_head\.conv_fcn(?P<n>\d+)\.(?P<rest>\w+)", "keypoint_head.convs.{before}.conv.{rest}"),
    (r"roi_heads\.keypoint_head\.score_lowres\.(?P<rest>\w+)", "keypoint_head.deconv.{rest}"),
)
_IN_BLOCKS = (  # of a ResNet, then of a RegNet
    (r"conv(\d)\.norm\.", r"bn\1."),
    (r"shortcut\.norm\.", "downsample.1."),
    (r"shortcut\.", "downsample.0."),
    (r"^(s\d\.b\d+)\.bn\.", r"\1.downsample.bn."),
    (r"\.proj\.", ".downsample.conv."),
    (r"\.f\.se\.f_ex\.0\.", ".se.fc1."),
    (r"\.f\.se\.f_ex\.2\.", ".se.fc2."),
    *((rf"\.f\.{theirs}_bn\.", f".conv{ours}.bn.") for theirs, ours in zip("abc", "123", strict=True)),
    *((rf"\.f\.{theirs}\.", f".conv{ours}.conv.") for theirs, ours in zip("abc", "123", strict=True)),
)


def recognises(content: Content) -> bool:
    """Whether the tensors' names are those of a two-stage detector of Detectron2."""
    names = content.tensors
    scores = (f"{BOX_PREDICTOR}cls_score.weight", f"{BOX_PREDICTOR}0.cls_score.weight")
    return f"{RPN_HEAD}objectness_logits.weight" in names and any(name in names for name in scores)


def convert(content: Content, settings: Settings | None) -> Converted:
    """The detector in our terms.

    settings: Detectron2's config, whole or in part, as `detectron2_settings.read_config` reads it.

    Errors: `InputError` for tensors of parts that this package has not, and for settings that contradict the tensors.
    """
    if settings is not None and not _SECTIONS & set(settings.values):
        found, expected = ", ".join(map(str, list(settings.values)[:4])), "a config of Detectron2, with MODEL or model"
        raise InputError("does not fit Detectron2's weights", field=settings.origin, found=found, expected=expected)
    names = _our_names(content.tensors)
    facts = Facts(settings)
    config = config_of(content.tensors, layout_of(content.tensors), facts)
    assumed = facts.finish()
    state = {ours: content.tensors[theirs] for theirs, ours in names.items()}
    return Converted(config, _reordered(state, config.own_rpn.anchors), assumed, "Detectron2")


def _our_names(state: State) -> dict[str, str]:
    """Their names to ours, without what is no weight. Errors: `InputError` that names the first without a place."""
    for piece, part in _UNKNOWN.items():
        if found := [name for name in state if piece in name]:
            raise InputError(f"{part}: not known here", field="tensors", found=_first(found))
    names = {name: _our_name(name) for name in state if not re.fullmatch(_NO_WEIGHTS, name)}
    if strange := [name for name, ours in names.items() if ours is None]:
        expected = "a Faster or Mask R-CNN of Detectron2"
        raise InputError("holds tensors of another network", field="tensors", found=_first(strange), expected=expected)
    return {theirs: ours for theirs, ours in names.items() if ours is not None}


def _our_name(name: str) -> str | None:
    for pattern, ours in _PLACES:
        if match := re.fullmatch(pattern, name):
            parts = {key: value or "" for key, value in match.groupdict().items()}
            before = int(parts.get("n") or 1) - 1
            stage = int(parts.get("stage") or 0)
            head = f"later_box_heads.{stage - 1}" if stage else "box_head"
            parts["block"] = _our_block(parts.get("block", ""))
            return ours.format(before=before, head=head, **parts)
    return None


def _our_block(name: str) -> str:
    for pattern, ours in _IN_BLOCKS:
        name = re.sub(pattern, ours, name)
    return name


def _first(names: Sequence[str]) -> str:
    return f"{len(names)}: {', '.join(names[:3])}"


def _reordered(state: dict[str, Tensor], anchors: AnchorConfig) -> dict[str, Tensor]:
    """The rows of classes and anchors in our order."""
    order = torch.arange(anchors.per_cell).reshape(-1, len(anchors.ratios)).T.flatten()  # ours [r, s] is theirs [s, r]
    for name, tensor in state.items():
        part = name.rpartition(".")[0]
        if part.endswith("box_head.classes") or re.fullmatch(r"later_box_heads\.\d+\.classes", part):
            state[name] = tensor.roll(1, dims=0)
        elif part == "rpn.objectness":
            state[name] = tensor[order]
        elif part == "rpn.deltas":
            state[name] = tensor.reshape(len(order), 4, *tensor.shape[1:])[order].flatten(0, 1)
    return state
