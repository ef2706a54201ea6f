"""The parts of Detectron2's detectors behind the pyramid, as our configs: proposals, heads, what becomes a detection.

Each function asks tensors first and settings next, and notes what neither told. The whole: `detectron2_config.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from maskrcnn.model.anchors import AnchorConfig
from maskrcnn.model.box_head import BoxHeadConfig, DetectionConfig
from maskrcnn.model.keypoint_head import COCO_PERSON, KeypointHeadConfig
from maskrcnn.model.mask_head import MaskHeadConfig
from maskrcnn.model.roi_pooler import RoIPoolerConfig
from maskrcnn.model.rpn import RPNConfig
from maskrcnn.structures import KeypointScheme
from maskrcnn.weights.detectron2_layout import BOX_HEAD, BOX_PREDICTOR, KEYPOINT_HEAD, MASK_HEAD, RPN_HEAD, Layout
from maskrcnn.weights.detectron2_settings import ZOO, Facts
from maskrcnn.weights.tensors import State, count, norm_after, shape

Four = tuple[float, float, float, float]
Sizes = tuple[tuple[float, ...], ...]

LVIS = {1203: "v1", 1230: "v0.5"}  # its versions, by their number of classes

_ANCHOR_SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)
_CASCADE: tuple[Four, ...] = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
_MORE_THAN_NOTHING = 1e-6  # px, which is all that Detectron2 asks of the sides of a proposal


def rpn_config(state: State, layout: Layout, facts: Facts) -> RPNConfig:
    hidden, inputs = _rpn_conv(state, layout)
    pre_nms = 1000 if layout.kind == "FPN" else 6000
    return RPNConfig(
        anchors=_anchors(state, layout, facts),
        conv_depth=layout.rpn_depth,
        channels=None if hidden == inputs else hidden,
        delta_weights=_four(facts, "MODEL.RPN.BBOX_REG_WEIGHTS", (1.0, 1.0, 1.0, 1.0), "rpn.delta_weights"),
        pre_nms_top_n=facts.ask("MODEL.RPN.PRE_NMS_TOPK_TEST", pre_nms, "rpn.pre_nms_top_n", ZOO),
        post_nms_top_n=facts.ask("MODEL.RPN.POST_NMS_TOPK_TEST", 1000, "rpn.post_nms_top_n"),
        nms_iou=facts.ask("MODEL.RPN.NMS_THRESH", 0.7, "rpn.nms_iou"),
        min_size=max(_MORE_THAN_NOTHING, facts.ask("MODEL.PROPOSAL_GENERATOR.MIN_SIZE", 0.0, "rpn.min_size")),
    )


def _rpn_conv(state: State, layout: Layout) -> tuple[int, int]:
    """Channels that leave and enter the RPN's first convolution; the latter are those of the maps."""
    first = f"{RPN_HEAD}conv.{'conv0.' if layout.rpn_depth > 1 else ''}weight"
    return shape(state, first)[0], shape(state, first)[1]


def _four(facts: Facts, key: str, default: Four, place: str) -> Four:
    first, second, third, fourth = facts.sized(key, facts.ask(key, default, place), default)
    return first, second, third, fourth


def _anchors(state: State, layout: Layout, facts: Facts) -> AnchorConfig:
    levels = 5 if layout.kind == "FPN" else 1
    buffers = _told_by_buffers(state) if facts.told("MODEL.ANCHOR_GENERATOR.SIZES") is None else None
    sizes, ratios = buffers or _told_by_settings(layout, facts, levels)
    centre = facts.ask("MODEL.ANCHOR_GENERATOR.OFFSET", 0.0, "rpn.anchors.centre")
    per_cell = shape(state, f"{RPN_HEAD}objectness_logits.weight")[0]
    if len(sizes) != levels or any(len(level) * len(ratios) != per_cell for level in sizes):
        found, expected = f"sizes {sizes}, ratios {ratios}", f"{per_cell} anchors a cell on {levels} level(s)"
        facts.problem("contradicts the weights", "MODEL.ANCHOR_GENERATOR", found, expected)
        sizes, ratios = ((1.0,),) * levels, (1.0,) * per_cell
    return AnchorConfig(sizes=sizes, ratios=ratios, centre=centre)


def _told_by_settings(layout: Layout, facts: Facts, levels: int) -> tuple[Sizes, tuple[float, ...]]:
    usual: Sizes = tuple((size,) for size in _ANCHOR_SIZES) if layout.kind == "FPN" else (_ANCHOR_SIZES,)
    sizes = facts.ask("MODEL.ANCHOR_GENERATOR.SIZES", usual, "rpn.anchors.sizes", ZOO, nest=True)
    ratios = facts.ask("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", ((0.5, 1.0, 2.0),), "rpn.anchors.ratios", nest=True)
    if len(set(ratios)) > 1:
        expected = "the same ratios on all levels"
        facts.problem("is not known here", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", ratios, expected)
    return sizes * levels if len(sizes) == 1 else sizes, ratios[0]  # one tuple is meant for all levels


def _told_by_buffers(state: State) -> tuple[Sizes, tuple[float, ...]] | None:
    """Sizes and ratios of the anchors that older files hold, (k, 4) boxes around (0, 0) for each level."""
    levels = [state[name].tolist() for name in sorted(state) if "anchor_generator.cell_anchors." in name]
    if not levels:
        return None
    sizes = tuple(_distinct([math.sqrt((x2 - x1) * (y2 - y1)) for x1, y1, x2, y2 in level]) for level in levels)
    return sizes, _distinct([(y2 - y1) / (x2 - x1) for x1, y1, x2, y2 in levels[0]])


def _distinct(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(dict.fromkeys(float(f"{value:.5g}") for value in values))


# --- heads ------------------------------------------------------------------------------------------------------------


def roi_pooler_config(layout: Layout, facts: Facts) -> RoIPoolerConfig:
    """Each head has settings of its own there; here all heads share one."""
    heads = {"BOX": True, "MASK": layout.has_masks and layout.kind != "C4", "KEYPOINT": layout.has_keypoints}
    types, ratios = set(), set()
    for head in (head for head, is_there in heads.items() if is_there):
        key, of_head = f"MODEL.ROI_{head}_HEAD.POOLER", f"of the {head.lower()} head"
        facts.only(f"{key}_TYPE", "ROIAlignV2", "ROIAlign")
        types.add(facts.ask(f"{key}_TYPE", "ROIAlignV2", f"roi_pooler.aligned {of_head}, by"))
        ratios.add(facts.ask(f"{key}_SAMPLING_RATIO", 0, f"roi_pooler.sampling_ratio {of_head}"))
    if len(types) > 1 or len(ratios) > 1:
        found = f"{', '.join(sorted(types))} with ratios {sorted(ratios)}"
        facts.problem("differs between heads", "MODEL.ROI_..._HEAD.POOLER", found, "the same for all")
    return RoIPoolerConfig(sampling_ratio=max(ratios), aligned=types == {"ROIAlignV2"})


def cascade_weights(layout: Layout, facts: Facts) -> tuple[Four, ...]:
    """Of every stage of a cascade; empty without one."""
    if layout.stages == 1:
        return ()
    key = "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS"
    usual = _CASCADE + (_CASCADE[-1],) * max(0, layout.stages - len(_CASCADE))
    weights = facts.ask(key, usual[: layout.stages], "box_head.delta_weights and cascade.delta_weights")
    if len(weights) != layout.stages or any(len(stage) != 4 for stage in weights):
        facts.problem("contradicts the weights", key, weights, f"four numbers for each of {layout.stages} stages")
        return usual[: layout.stages]
    return weights


def box_head_config(state: State, layout: Layout, facts: Facts, delta_weights: Four | None) -> BoxHeadConfig:
    stage = "0." if layout.stages > 1 else ""
    head, section = f"{BOX_HEAD}{stage}", "MODEL.ROI_BOX_HEAD"
    num_convs = count(state, rf"{re.escape(head)}conv(\d+)\.weight")
    num_fcs = count(state, rf"{re.escape(head)}fc(\d+)\.weight")
    facts.agree(f"{section}.NUM_CONV", num_convs)
    facts.agree(f"{section}.NUM_FC", num_fcs)
    # of one class, the one box and the box for each class are the same
    agnostic = layout.stages > 1 or shape(state, f"{BOX_PREDICTOR}{stage}bbox_pred.weight")[0] < 4 * layout.num_classes
    if layout.num_classes > 1:
        facts.agree(f"{section}.CLS_AGNOSTIC_BBOX_REG", agnostic)
    default = (10.0, 10.0, 5.0, 5.0)
    weights = delta_weights or _four(facts, f"{section}.BBOX_REG_WEIGHTS", default, "box_head.delta_weights")
    return BoxHeadConfig(
        side=_box_side(state, layout, facts, num_convs, head),
        num_convs=num_convs,
        conv_channels=shape(state, f"{head}conv1.weight")[0] if num_convs else 256,
        norm=norm_after(state, f"{head}conv1"),
        num_fcs=num_fcs,
        fc_channels=shape(state, f"{head}fc1.weight")[0] if num_fcs else 1024,
        class_agnostic=agnostic,
        delta_weights=weights,
    )


def _box_side(state: State, layout: Layout, facts: Facts, num_convs: int, head: str) -> int:
    """S, which a fully connected layer tells. Without one the settings do; C4's last stage halves it."""
    key = "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION"
    if f"{head}fc1.weight" not in state:
        return facts.ask(key, 14, "box_head.side, twice", ZOO) // 2
    channels = shape(state, f"{head}conv{num_convs}.weight")[0] if num_convs else _rpn_conv(state, layout)[1]
    side = math.isqrt(shape(state, f"{head}fc1.weight")[1] // channels)
    facts.agree(key, side)
    return side


def mask_head_config(state: State, layout: Layout, facts: Facts, box_side: int) -> MaskHeadConfig:
    """box_side: of the box head, which C4's masks share."""
    num_convs = count(state, re.escape(MASK_HEAD) + r"mask_fcn(\d+)\.weight")
    masks, channels = shape(state, f"{MASK_HEAD}predictor.weight")[:2]
    agnostic = masks < layout.num_classes
    facts.agree("MODEL.ROI_MASK_HEAD.NUM_CONV", num_convs)
    if layout.num_classes > 1:
        facts.agree("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", agnostic)
    if layout.kind == "C4":
        pooled = box_side
    else:
        pooled = facts.ask("MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 14, "mask_head.side, half")
    return MaskHeadConfig(
        side=2 * pooled,
        num_convs=num_convs,
        channels=channels,
        norm=norm_after(state, f"{MASK_HEAD}mask_fcn1"),
        class_agnostic=agnostic,
    )


def keypoint_head_config(state: State, facts: Facts) -> KeypointHeadConfig:
    channels, number = shape(state, f"{KEYPOINT_HEAD}score_lowres.weight")[:2]
    facts.agree("MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", number)
    if number == len(COCO_PERSON.names):
        scheme, names = COCO_PERSON, "COCO's of a person"
    else:
        scheme, names = KeypointScheme(tuple(str(j) for j in range(1, number + 1))), f"1 to {number}"
    if scheme is not COCO_PERSON or "keypoints_coco" not in str(facts.told("DATASETS.TEST")):
        facts.assumed.append(f"keypoint_head.scheme {names}: by their number, {number}")
    return KeypointHeadConfig(
        scheme=scheme,
        side=4 * facts.ask("MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION", 14, "keypoint_head.side, a quarter"),
        num_convs=count(state, re.escape(KEYPOINT_HEAD) + r"conv_fcn(\d+)\.weight"),
        channels=channels,
    )


def detection_config(layout: Layout, facts: Facts) -> DetectionConfig:
    threshold, most = (1e-4, 300) if layout.num_classes in LVIS else (0.05, 100)
    return DetectionConfig(
        score_threshold=facts.ask("MODEL.ROI_HEADS.SCORE_THRESH_TEST", threshold, "detection.score_threshold", ZOO),
        nms_iou=facts.ask("MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.5, "detection.nms_iou"),
        max_detections=facts.ask("TEST.DETECTIONS_PER_IMAGE", most, "detection.max_detections", ZOO),
        min_size=0.0,  # empty boxes take part until the end, and are dropped there
    )
