"""Detectors of torchvision: Mask, Faster and Keypoint R-CNN with FPN, both versions, on ResNets and MobileNetV3 large.

Names and shapes of the tensors tell what the network is made of. What they do not tell is taken from torchvision's
builders: sizes and ratios of anchors, resize, thresholds. A detector trained with others wants a config of its own.

Labels 1..K are torchvision's. Its background has rows in the last layers of boxes and masks that nothing reads: they
are left out. Row 0 of the class scores is background on both sides.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from maskrcnn.data.classes import Classes
from maskrcnn.errors import InputError
from maskrcnn.model.anchors import AnchorConfig
from maskrcnn.model.backbone import STRIDES, BackboneConfig
from maskrcnn.model.box_head import BoxHeadConfig, DetectionConfig
from maskrcnn.model.fpn import FPNConfig
from maskrcnn.model.keypoint_head import COCO_PERSON, KeypointHeadConfig
from maskrcnn.model.mask_head import MaskHeadConfig
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.model.preprocess import PreprocessConfig
from maskrcnn.model.roi_pooler import RoIPoolerConfig
from maskrcnn.model.rpn import RPNConfig
from maskrcnn.structures import KeypointScheme
from maskrcnn.weights import torchvision_mobilenet as mobilenet
from maskrcnn.weights.content import Content, Converted, Settings
from maskrcnn.weights.files import require_fit
from maskrcnn.weights.tensors import count, norm_after, shape
from maskrcnn.weights.zoo import zoo

State = Mapping[str, Tensor]

_MARKS = {"rpn.head.cls_logits.weight", "roi_heads.box_predictor.cls_score.weight"}
_RESNET, _MOBILENET = "backbone.body.conv1.weight", "backbone.body.0.0.weight"
_BACKBONES: dict[
    tuple[tuple[int, ...], bool], str
] = {  # blocks of the four stages, and whether a block has three convolutions
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
_COCO_CLASSES = 90
_EPS_REASONS = {  # YAML reads 1e-5 as a word, 1.0e-5 as a number
    ("batch", 1e-5): "torch's default",
    ("frozen", 0.0): "as the published COCO_V1 run; others run with 1e-5: "
    '--config with {"backbone": {"norm_eps": 1.0e-5}}',
    ("frozen", 1e-5): "torchvision's default; weights fine-tuned from COCO_V1 in one process ran with 0 there: "
    '--config with {"backbone": {"norm_eps": 0.0}}',
}
_OF_320 = '{"preprocess": {"shortest": 320, "longest": 640}, "rpn": {"pre_nms_top_n": 150, "post_nms_top_n": 150}}'

# Theirs, ours. {level} is what a level is called, 2 to 5 in a ResNet, where theirs counts from 0. What is optional is
# missing in files of before 2022, such as the published weights of the first versions.
_PLACES = (
    (r"(?P<all>backbone\.body\..+)", "{all}"),
    (r"backbone\.fpn\.inner_blocks\.(?P<n>\d)(\.0)?\.(?P<kind>weight|bias)", "fpn.lateral.p{level}.conv.{kind}"),
    (r"backbone\.fpn\.inner_blocks\.(?P<n>\d)\.1\.(?P<kind>\w+)", "fpn.lateral.p{level}.norm.{kind}"),
    (r"backbone\.fpn\.layer_blocks\.(?P<n>\d)(\.0)?\.(?P<kind>weight|bias)", "fpn.output.p{level}.conv.{kind}"),
    (r"backbone\.fpn\.layer_blocks\.(?P<n>\d)\.1\.(?P<kind>\w+)", "fpn.output.p{level}.norm.{kind}"),
    (r"rpn\.head\.conv\.(?P<kind>weight|bias)", "rpn.convs.0.{kind}"),
    (r"rpn\.head\.conv\.(?P<n>\d+)\.0\.(?P<kind>\w+)", "rpn.convs.{n}.{kind}"),
    (r"rpn\.head\.cls_logits\.(?P<kind>\w+)", "rpn.objectness.{kind}"),
    (r"rpn\.head\.bbox_pred\.(?P<kind>\w+)", "rpn.deltas.{kind}"),
    (r"roi_heads\.box_head\.(?P<n>\d+)\.0\.(?P<kind>\w+)", "box_head.convs.{n}.conv.{kind}"),
    (r"roi_heads\.box_head\.(?P<n>\d+)\.1\.(?P<kind>\w+)", "box_head.convs.{n}.norm.{kind}"),
    (r"roi_heads\.box_head\.(fc)?(?P<fc>\d+)\.(?P<kind>\w+)", "box_head.fcs.{position}.{kind}"),
    (r"roi_heads\.box_predictor\.cls_score\.(?P<kind>\w+)", "box_head.classes.{kind}"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(?P<kind>\w+)", "box_head.deltas.{kind}"),
    (r"roi_heads\.mask_head\.mask_fcn(?P<n>\d+)\.(?P<kind>\w+)", "mask_head.convs.{before}.conv.{kind}"),
    (r"roi_heads\.mask_head\.(?P<n>\d+)\.0\.(?P<kind>\w+)", "mask_head.convs.{n}.conv.{kind}"),
    (r"roi_heads\.mask_head\.(?P<n>\d+)\.1\.(?P<kind>\w+)", "mask_head.convs.{n}.norm.{kind}"),
    (r"roi_heads\.mask_predictor\.conv5_mask\.(?P<kind>\w+)", "mask_head.deconv.{kind}"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.(?P<kind>\w+)", "mask_head.masks.{kind}"),
    (r"roi_heads\.keypoint_head\.(?P<n>\d+)\.(?P<kind>\w+)", "keypoint_head.convs.{half}.conv.{kind}"),
    (r"roi_heads\.keypoint_predictor\.kps_score_lowres\.(?P<kind>\w+)", "keypoint_head.deconv.{kind}"),
)
_FULLY_CONNECTED = r"roi_heads\.box_head\.(?:fc)?(\d+)\.weight"
_BACKGROUND_ROWS = {"box_head.deltas": 4, "mask_head.masks": 1}  # at the front, in theirs only


def looks_like(names: Iterable[str]) -> bool:
    """Whether these names of tensors are those of a two-stage detector of torchvision on a ResNet or MobileNet."""
    found = set(names)
    return found >= _MARKS and not found.isdisjoint((_RESNET, _MOBILENET))


def recognises(content: Content) -> bool:
    return looks_like(content.tensors)


def convert(content: Content, settings: Settings | None) -> Converted:
    """The detector of a file. torchvision has no config files: `settings` of another framework are refused.

    What frozen norms add to variances is known of the files that torchvision published, by their hash.
    """
    if settings is not None:
        expected = "fields of maskrcnn's own config, since torchvision has no config files"
        raise InputError("does not fit torchvision's weights", field=settings.origin, expected=expected)
    config, ours = convert_state(content.tensors)
    may_be_published = config.backbone.norm == "frozen" and _has_classes_of_coco(ours)
    told = _published(content.file) if may_be_published else {}
    for part, values in told.items():
        config = replace(config, **{part: replace(getattr(config, part), **values)})
    known = {f"{part}.{name}" for part, values in told.items() for name in values}
    assumed = tuple(line for line in _assumed(config) if line.split(" ")[0] not in known)
    return Converted(config, ours, assumed, "torchvision")


def load_torchvision(
    state: Mapping[str, Any],
    config: MaskRCNNConfig | None = None,
    *,
    class_names: Sequence[str] | None = None,
    category_ids: Sequence[int] | None = None,
    norm_eps: float | None = None,
) -> MaskRCNN:
    """What `state_dict()` of a detector of torchvision gave, as ours, on the CPU, float32, ready to detect.

    Args:
        config: in place of the one that `convert_state` reads off the tensors. The others are as there.

    Errors: `InputErrors` that name tensors which do not fit.
    """
    if config is None:
        config, ours = convert_state(state, class_names=class_names, category_ids=category_ids, norm_eps=norm_eps)
    else:
        ours = rename(state)
    model = MaskRCNN(config)
    require_fit(ours, model.state_dict(), "torchvision state")
    model.load_state_dict(ours)
    return model.eval()


def convert_state(
    state: State,
    *,
    class_names: Sequence[str] | None = None,
    category_ids: Sequence[int] | None = None,
    norm_eps: float | None = None,
) -> tuple[MaskRCNNConfig, dict[str, Tensor]]:
    """The config that torchvision's tensors imply, with its conventions, and the tensors under our names.

    Args:
        state: what `state_dict()` of the detector gave.
        class_names: K names of labels 1..K. None: COCO's for K = 90, person for one class with 17 keypoints, else
            numbers.
        category_ids: K ids. None: 1..K.
        norm_eps: what the backbone's batch norm adds to variances. Tensors do not say it. None: 0 where it is frozen
            on a ResNet and the classes are COCO's, as torchvision's builders set it for the COCO_V1 weights of the
            first versions (`overwrite_eps`), and 1e-5 elsewhere.

    Errors: `InputError` that names the first tensors which are no such detector's.
    """
    ours = rename(state)
    num_classes = _rows(ours, "box_head.classes.weight") - 1
    names = tuple(class_names) if class_names is not None else _default_names(ours, num_classes)
    ids = tuple(category_ids) if category_ids is not None else tuple(range(1, num_classes + 1))
    if len(names) != num_classes:
        found, expected = f"{len(names)} names", f"{num_classes}, as the weights have"
        raise InputError("does not fit the weights", field="class_names", found=found, expected=expected)
    return _config(ours, names, ids, norm_eps), ours


def rename(state: State) -> dict[str, Tensor]:
    """Torchvision's tensors, weights or their gradients, under our names, without the rows of background.

    Errors: `InputError` that names the first tensors which have no place.
    """
    if not looks_like(state):
        raise _unknown("no detector of torchvision", list(state))
    body = mobilenet.timm_names(state) if _MOBILENET in state else {}
    levels = mobilenet.LEVELS if body else tuple(STRIDES)
    fcs = [match[1] for name in state if (match := re.fullmatch(_FULLY_CONNECTED, name))]
    positions = {number: i for i, number in enumerate(sorted(fcs, key=int))}  # of 6 and 7, or of 5 after convolutions
    placed = {name: body.get(name) or _our_name(name, levels, positions) for name in state}
    if strange := [name for name, ours in placed.items() if ours is None]:
        raise _unknown("holds tensors that Mask R-CNN has not", strange)
    renamed = {}
    for name, ours in placed.items():
        assert ours is not None
        skipped = _BACKGROUND_ROWS.get(ours.rpartition(".")[0], 0)
        renamed[ours] = state[name][skipped:] if skipped else state[name]
    return renamed


def _unknown(problem: str, names: Sequence[str]) -> InputError:
    found = f"{len(names)}: {', '.join(names[:4])}"
    return InputError(problem, field="tensors", found=found, expected="maskrcnn_ or fasterrcnn_..._fpn, or _v2")


def _our_name(name: str, levels: Sequence[str], positions: Mapping[str, int]) -> str | None:
    for pattern, ours in _PLACES:
        if match := re.fullmatch(pattern, name):
            parts: dict[str, Any] = match.groupdict()
            number = int(parts.get("n") or 0)
            position = positions.get(parts.get("fc") or "")
            level = levels[number][1:] if number < len(levels) else number + 2
            return ours.format(level=level, before=number - 1, half=number // 2, position=position, **parts)
    return None


def _published(file: Path) -> Mapping[str, Any]:
    """What the zoo knows of a file that torchvision published and its weights do not tell, in fields of our config."""
    if not file.is_file():
        return {}
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    for entry in zoo().values():
        if entry.framework == "torchvision" and entry.settings and digest.startswith(entry.digest or " "):
            return entry.settings
    return {}


def _assumed(config: MaskRCNNConfig) -> tuple[str, ...]:
    """What torchvision's builders have and its files do not say."""
    shortest, longest = config.preprocess.shortest, config.preprocess.longest
    lines = [f"preprocess.shortest {shortest}, longest {longest}: torchvision's default"]
    norm, eps = config.backbone.norm, config.backbone.norm_eps
    is_mobile = config.backbone.name == mobilenet.NAME
    if is_mobile:
        lines[0] += f" without 320 in its name; fasterrcnn_mobilenet_v3_large_320_fpn: --config with {_OF_320}"
    if eps is not None:
        reason = "torchvision's default" if is_mobile else _EPS_REASONS[norm, eps]
        lines.append(f"backbone.norm_eps {eps:g}: {reason}")
    lines.append("rpn.anchors of 32 to 512 px, ratios 0.5, 1, 2: torchvision's default")
    lines.append("thresholds (rpn, detection): torchvision's defaults")
    if config.class_names[0] == "1":
        lines.append("class_names 1, 2, ...: the file has none")
    if config.keypoint_head is not None:
        names = config.keypoint_head.scheme.names
        kind = "those of COCO's person" if names == COCO_PERSON.names else f"1 to {len(names)}"
        lines.append(f"keypoint_head.scheme {kind}: by their number, {len(names)}")
    return tuple(lines)


# --- what the tensors tell of the config ------------------------------------------------------------------------------


def _config(state: State, names: tuple[str, ...], ids: tuple[int, ...], norm_eps: float | None) -> MaskRCNNConfig:
    channels = _rows(state, "fpn.output.p5.conv.weight")
    backbone = _backbone(state, norm_eps)
    num_levels = count(state, r"fpn\.lateral\.\w+\.conv\.weight")
    if num_levels != len(backbone.levels):
        found, expected = f"{num_levels} levels", f"{len(backbone.levels)}, or a config"
        raise InputError("not the usual pyramid", field="backbone.fpn", found=found, expected=expected)
    is_mobile = backbone.name == mobilenet.NAME
    anchors = AnchorConfig(rounding=True, strides="grid")
    if is_mobile:
        anchors = replace(anchors, sizes=(tuple(size for (size,) in anchors.sizes),) * 3)  # all on each level
    if _rows(state, "rpn.objectness.weight") != anchors.per_cell:
        found = f"{_rows(state, 'rpn.objectness.weight')} anchors per cell"
        raise InputError("not the usual anchors", field="rpn", found=found, expected=f"{anchors.per_cell}, or a config")
    return MaskRCNNConfig(
        class_names=names,
        category_ids=ids,
        preprocess=PreprocessConfig(shortest=800, longest=1333, antialias=False, rounding="floor"),
        backbone=backbone,
        fpn=FPNConfig(channels=channels, norm=norm_after(state, "fpn.output.p5")),
        rpn=RPNConfig(
            anchors=anchors,
            conv_depth=count(state, r"rpn\.convs\.(\d+)\.weight"),
            score_threshold=0.05 if is_mobile else 0.0,
        ),
        roi_pooler=RoIPoolerConfig(sampling_ratio=2, aligned=False),
        box_head=_box_head(state, channels),
        mask_head=_mask_head(state),
        keypoint_head=_keypoint_head(state),
        detection=DetectionConfig(score_threshold=0.05, nms_iou=0.5, max_detections=100, min_size=1e-2),
    )


def _backbone(state: State, norm_eps: float | None) -> BackboneConfig:
    learns = "backbone.body.bn1.num_batches_tracked" in state  # torchvision's frozen batch norm does not count batches
    if "backbone.body.conv_stem.weight" in state:
        network = BackboneConfig(name=mobilenet.NAME, levels=mobilenet.LEVELS, taps=mobilenet.TAPS, norm_eps=1e-5)
    else:
        is_published = not learns and _has_classes_of_coco(state)
        network = BackboneConfig(name=_resnet(state), norm_eps=0.0 if is_published else 1e-5)
    eps = network.norm_eps if norm_eps is None else norm_eps
    return replace(network, norm="batch" if learns else "frozen", norm_eps=eps)


def _resnet(state: State) -> str:
    blocks = tuple(count(state, rf"backbone\.body\.layer{stage}\.(\d+)\.conv1\.weight") for stage in (1, 2, 3, 4))
    name = _BACKBONES.get((blocks, "backbone.body.layer1.0.conv3.weight" in state))
    if name is None:
        found, expected = f"stages of {blocks} blocks", ", ".join(_BACKBONES.values())
        raise InputError("unknown network", field="backbone.body", found=found, expected=expected)
    return name


def _box_head(state: State, channels: int) -> BoxHeadConfig:
    num_convs = count(state, r"box_head\.convs\.(\d+)\.conv\.weight")
    conv_channels = _rows(state, "box_head.convs.0.conv.weight") if num_convs else 256
    fc_channels, inputs = shape(state, "box_head.fcs.0.weight")
    return BoxHeadConfig(
        side=math.isqrt(inputs // (conv_channels if num_convs else channels)),
        num_convs=num_convs,
        conv_channels=conv_channels,
        norm=norm_after(state, "box_head.convs.0"),
        num_fcs=count(state, r"box_head\.fcs\.(\d+)\.weight"),
        fc_channels=fc_channels,
    )


def _mask_head(state: State) -> MaskHeadConfig | None:
    if not any(name.startswith("mask_head.") for name in state):
        return None
    num_convs = count(state, r"mask_head\.convs\.(\d+)\.conv\.weight")
    norm = norm_after(state, "mask_head.convs.0")
    return MaskHeadConfig(side=28, num_convs=num_convs, channels=_rows(state, "mask_head.masks.weight", 1), norm=norm)


def _keypoint_head(state: State) -> KeypointHeadConfig | None:
    joints = _num_keypoints(state)
    if joints == 0:
        return None
    scheme = COCO_PERSON if joints == len(COCO_PERSON) else KeypointScheme(tuple(str(j + 1) for j in range(joints)))
    return KeypointHeadConfig(
        scheme=replace(scheme, pixel_centre=0.0),  # torchvision's training takes the files' numbers as they are
        num_convs=count(state, r"keypoint_head\.convs\.(\d+)\.conv\.weight"),
        channels=_rows(state, "keypoint_head.deconv.weight"),
        score="logit",
    )


def _num_keypoints(state: State) -> int:
    has_head = any(name.startswith("keypoint_head.") for name in state)
    return _rows(state, "keypoint_head.deconv.weight", 1) if has_head else 0


def _has_classes_of_coco(state: State) -> bool:
    """Whether there are as many classes as in torchvision's weights for COCO, or for its keypoints."""
    num_classes = _rows(state, "box_head.classes.weight") - 1
    return num_classes == _COCO_CLASSES or (num_classes == 1 and _num_keypoints(state) == len(COCO_PERSON))


def _rows(state: State, name: str, dimension: int = 0) -> int:
    return shape(state, name)[dimension]


def _default_names(state: State, num_classes: int) -> tuple[str, ...]:
    if num_classes == 1 and _num_keypoints(state) == len(COCO_PERSON):
        return ("person",)
    if num_classes != _COCO_CLASSES:
        return Classes.numbered(num_classes).names
    from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

    names: list[str] = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"][1:]
    # COCO's ids have holes; a name of its own for each keeps classes apart that are looked up by name
    return tuple(f"unused {label}" if name == "N/A" else name for label, name in enumerate(names, start=1))
