"""The figure of the paper: picture -> backbone -> FPN -> RPN -> RoIAlign -> heads (He et al. 2017, Fig. 1 and 4).

N images    H, W padded size    R proposals    D detections    K classes    M mask side    J keypoints
boxes: (x1, y1, x2, y2), float pixels, padded frame until `original_frame`; sizes: (height, width)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from maskrcnn.errors import InputError
from maskrcnn.model.backbone import Backbone, BackboneConfig
from maskrcnn.model.box_head import BoxHead, BoxHeadConfig, BoxOutputs, DetectionConfig, select_detections
from maskrcnn.model.cascade import CascadeConfig, average_logits, refine
from maskrcnn.model.config import require
from maskrcnn.model.fpn import FPN, FPNConfig
from maskrcnn.model.frames import Corners, on_edges, to_original, windows_of
from maskrcnn.model.given import given_proposals
from maskrcnn.model.keypoint_head import KeypointHead, KeypointHeadConfig, place_keypoints
from maskrcnn.model.limits import Limits as Limits
from maskrcnn.model.mask_head import MaskHead, MaskHeadConfig
from maskrcnn.model.mask_mlp import MaskMLP, make_mask_head
from maskrcnn.model.preprocess import Preprocess, PreprocessConfig
from maskrcnn.model.roi_pooler import RoIPooler, RoIPoolerConfig
from maskrcnn.model.roi_stage import RoIStage
from maskrcnn.model.rpn import RPN, RPNConfig, propose
from maskrcnn.ops.boxes import clip, is_large_enough
from maskrcnn.ops.masks import mask_iou
from maskrcnn.ops.nms import mask_nms_keep
from maskrcnn.structures import DetectionBatch, Detections, ImageBatch, Masks, Proposals, Size

ROIS_AT_ONCE = 200  # in a head that widens them, so that memory does not grow with the objects: 1000 masks take 0.8 GB


@dataclass(frozen=True, kw_only=True)
class MaskRCNNConfig:
    """The tree of all parts. Without `mask_head` it is Faster R-CNN (Ren et al. 2015), and without `rpn` too Fast R-CNN
    (Girshick 2015), whose proposals come with the picture. All may have a `keypoint_head` (He et al. 2017, 5).

    fpn None: the heads read the backbone's one map as it is. With `roi_stage`, c4 and the body's last stage on every
    RoI ("C4"; He et al. 2017, Fig. 4 left).
    """

    class_names: tuple[str, ...]  # K names; label k is class_names[k - 1]
    category_ids: tuple[int, ...]  # how the data set counts the same classes
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    fpn: FPNConfig | None = field(default_factory=FPNConfig)
    rpn: RPNConfig | None = field(default_factory=RPNConfig)  # none: proposals are given with each picture
    roi_pooler: RoIPoolerConfig = field(default_factory=RoIPoolerConfig)
    roi_stage: bool = False
    box_head: BoxHeadConfig = field(default_factory=BoxHeadConfig)
    cascade: CascadeConfig | None = None
    mask_head: MaskHeadConfig | None = field(default_factory=MaskHeadConfig)
    keypoint_head: KeypointHeadConfig | None = None
    detection: DetectionConfig = field(default_factory=DetectionConfig)

    def __post_init__(self) -> None:
        require(len(self.class_names) >= 1, self, "class_names", "at least one class")
        fits = len(self.category_ids) == len(self.class_names)
        require(fits, self, "category_ids", f"{len(self.class_names)} ids, one for each class")
        for name in ("class_names", "category_ids"):
            require(len(set(getattr(self, name))) == self.num_classes, self, name, "each only once")
        levels = self.backbone.levels
        if self.fpn is None:
            require(len(levels) == 1, self.backbone, "levels", "one level, where there is no pyramid")
        else:
            fits = len(levels) > 1 and levels[-1] == "c5"
            require(fits, self.backbone, "levels", "several up to c5, of which the pyramid is made")
            require(not self.backbone.dilate_c5, self.backbone, "dilate_c5", "false, where there is a pyramid")
        one_map = not self.roi_stage or levels == ("c4",)
        require(one_map, self, "roi_stage", "false, unless the backbone hands on c4 alone")
        agnostic = self.cascade is None or self.box_head.class_agnostic
        require(agnostic, self.box_head, "class_agnostic", "true in a cascade, whose boxes are refined in turn")

    @property
    def num_classes(self) -> int:
        """K, without background."""
        return len(self.class_names)

    @property
    def corners(self) -> Corners:
        """Of all boxes until the original frame: they come of anchors."""
        return "edges" if self.rpn is None else self.rpn.anchors.corners

    @property
    def own_rpn(self) -> RPNConfig:
        """`rpn`, where there must be one. Errors: `InputError` where there is none."""
        if self.rpn is None:
            raise InputError("the detector has none", field="rpn", expected="a detector that makes its own proposals")
        return self.rpn

    def windows(self, image_sizes: Tensor, padded_size: Size) -> Tensor:
        """(N, 4): where pictures of `image_sizes` (N, 2) lie in the padded frame."""
        return windows_of(image_sizes, padded_size, self.preprocess.place, self.corners)

    def proposal_windows(self, image_sizes: Tensor, padded_size: Size) -> Tensor:
        """(N, 4): what proposals are cut to."""
        if self.rpn is not None and self.rpn.cut_to == "padded":
            image_sizes = torch.stack([torch.zeros_like(image_sizes[:, 0]) + side for side in padded_size], dim=1)
        return self.windows(image_sizes, padded_size)


class MaskRCNN(nn.Module):
    """Every object of a picture with its box, class and mask."""

    def __init__(self, config: MaskRCNNConfig, *, pretrained_backbone: bool = False) -> None:
        super().__init__()
        self.config = config
        self.preprocess = Preprocess(config.preprocess)
        self.backbone = Backbone(config.backbone, pretrained=pretrained_backbone)
        self.fpn: FPN | None = None
        if config.fpn is not None:
            self.fpn = FPN(config.fpn, self.backbone.channels)
            channels, strides = config.fpn.channels, self.fpn.strides
        else:
            (channels,), strides = self.backbone.channels.values(), self.backbone.strides
        self.rpn = None if config.rpn is None else RPN(config.rpn, channels, strides)
        self.roi_stage: RoIStage | None = None
        shrink = 1
        if config.roi_stage:
            self.roi_stage = RoIStage(config.backbone, pretrained=pretrained_backbone)
            channels, shrink = self.roi_stage.channels, self.roi_stage.stride
        self.box_pooler = RoIPooler(config.roi_pooler, config.box_head.side * shrink, strides, config.corners)
        self.box_head = BoxHead(config.box_head, channels, config.num_classes)
        later = config.cascade.delta_weights if config.cascade is not None else ()
        later_configs = [replace(config.box_head, delta_weights=weights) for weights in later]
        self.later_box_heads = nn.ModuleList(BoxHead(c, channels, config.num_classes) for c in later_configs)
        self.mask_pooler: RoIPooler | None = None
        self.mask_head: MaskHead | MaskMLP | None = None
        if config.mask_head is not None:
            self.mask_pooler = RoIPooler(
                config.roi_pooler, config.mask_head.pooled_side * shrink, strides, config.corners
            )
            self.mask_head = make_mask_head(config.mask_head, channels, config.num_classes)
            extra = len(later) if config.cascade is not None and config.cascade.mask_heads else 0
            heads = [make_mask_head(config.mask_head, channels, config.num_classes) for _ in range(extra)]
            self.later_mask_heads = nn.ModuleList(heads)
        self.keypoint_pooler: RoIPooler | None = None
        self.keypoint_head: KeypointHead | None = None
        if config.keypoint_head is not None:
            side = config.keypoint_head.pooled_side * shrink
            self.keypoint_pooler = RoIPooler(config.roi_pooler, side, strides, config.corners)
            self.keypoint_head = KeypointHead(config.keypoint_head, channels)

    @property
    def box_heads(self) -> list[BoxHead]:
        """One, or one for each stage of a cascade."""
        return [self.box_head, *self.later_box_heads]

    @property
    def mask_heads(self) -> list[MaskHead | MaskMLP]:
        """None, one, or one for each stage of a cascade."""
        return [] if self.mask_head is None else [self.mask_head, *self.later_mask_heads]

    @property
    def own_rpn(self) -> RPN:
        """`rpn`, where there must be one. Errors: `InputError` where there is none."""
        if self.rpn is None:
            raise InputError("has none", field="rpn", expected="proposals with each picture, or another detector")
        return self.rpn

    def forward(
        self, images: Sequence[Tensor], limits: Limits | None = None, proposals: Sequence[Tensor] | None = None
    ) -> list[Detections]:
        """Detect. images: N tensors (3, H_i, W_i) uint8, or float in 0..1, RGB. Returns boxes in the original frame.

        proposals: N tensors (P_i, 4), each in its picture as given, to take in place of the RPN's.
        Errors: `InputError` where there is no RPN and none are given.
        """
        limits = limits or Limits()
        config = limits.applied(self.config)
        batch = self.preprocess(images, limits.size)
        found = self.detect(
            batch.pixels,
            batch.image_sizes,
            config,
            drop_empty=True,
            proposals=None if proposals is None else self.given(proposals, batch),
        )
        return original_frame(found, batch, config)

    def given(self, proposals: Sequence[Tensor], batch: ImageBatch) -> Proposals:
        """N tensors (P_i, 4), each in its picture as given, as the RPN would hand them on."""
        windows = self.config.windows(batch.image_sizes, _padded_size(batch.pixels))
        return given_proposals(proposals, batch.original_sizes, windows, self.config.corners)

    def detect(
        self,
        pixels: Tensor,
        image_sizes: Tensor,
        config: MaskRCNNConfig | None = None,
        *,
        drop_empty: bool = False,
        proposals: Proposals | None = None,
    ) -> DetectionBatch:
        """The core, of fixed shapes: what is compiled, captured and exported.

        pixels: (N, 3, H, W) float32 normalised. image_sizes: (N, 2) float32, (height, width) before padding.
        drop_empty: spare the heads the padding rows; shapes inside then depend on the picture.
        proposals: (N, R, 4), padded frame, in place of the RPN's.
        """
        config = config or self.config
        windows = config.windows(image_sizes, _padded_size(pixels))
        features = self.features(pixels)  # {"p2": (N, C, H/4, W/4), ...}
        if proposals is None:
            proposals = self.propose(features, image_sizes, _padded_size(pixels), config)  # (N, R, 4)
        found = self.find(features, proposals, windows, config, drop_empty)  # (N, D)
        masks = self.read_masks(features, found, drop_empty)  # (N, D, M, M)
        return replace(found, mask_logits=masks, keypoint_logits=self.read_keypoints(features, found, drop_empty))

    def features(self, pixels: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) to the maps that RPN and heads read, by level."""
        maps: dict[str, Tensor] = self.backbone(pixels)
        return maps if self.fpn is None else self.fpn(maps)  # which may take the body's maps out, to free them

    def propose(
        self, features: Mapping[str, Tensor], image_sizes: Tensor, padded_size: Size, config: MaskRCNNConfig
    ) -> Proposals:
        """(N, R, 4): where the RPN sees an object."""
        cuts = config.proposal_windows(image_sizes, padded_size)
        return propose(self.own_rpn(features, padded_size), cuts, config.own_rpn)

    def pooled_for_boxes(self, features: Mapping[str, Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        """(R, C, S, S): what the box heads read of boxes (R, 4)."""
        pooled: Tensor = self.box_pooler(features, boxes, image_index)
        return pooled if self.roi_stage is None else self.roi_stage(pooled)

    def pooled_for_masks(self, features: Mapping[str, Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        """(R, C, S, S): what the mask heads read of boxes (R, 4)."""
        assert self.mask_pooler is not None
        pooled: Tensor = self.mask_pooler(features, boxes, image_index)
        return pooled if self.roi_stage is None else self.roi_stage(pooled)

    def pooled_for_keypoints(self, features: Mapping[str, Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        """(R, C, S, S): what the keypoint head reads of boxes (R, 4)."""
        assert self.keypoint_pooler is not None
        pooled: Tensor = self.keypoint_pooler(features, boxes, image_index)
        return pooled if self.roi_stage is None else self.roi_stage(pooled)

    def find(
        self,
        features: Mapping[str, Tensor],
        proposals: Proposals,
        windows: Tensor,
        config: MaskRCNNConfig,
        drop_empty: bool = False,
    ) -> DetectionBatch:
        """(N, D): the detections among the proposals (N, R), without masks."""
        outputs, rois = self.read_boxes(features, proposals, windows, drop_empty)  # (N * R, K + 1), (N * R, K, 4)
        return select_detections(outputs, rois, windows, self.box_heads[-1].coder, config.detection)

    def read_boxes(
        self, features: Mapping[str, Tensor], proposals: Proposals, windows: Tensor, drop_empty: bool = False
    ) -> tuple[BoxOutputs, Proposals]:
        """The box heads' outputs for (N, R) proposals as N * R rows; rows without a proposal are zero if dropped.

        Returned with the RoIs that the deltas start from: the proposals, or in a cascade what the stage before made.
        """
        rows = _Rows(proposals.valid, drop_empty)
        boxes, windows = rows.of(proposals.boxes), windows[rows.image_index]
        outputs = self._box_outputs(self.box_head, features, boxes, rows)
        logits = [outputs.class_logits]
        for before, head in pairwise(self.box_heads):
            boxes = refine(outputs, boxes, before.coder, windows)
            outputs = self._box_outputs(head, features, boxes, rows)
            logits.append(outputs.class_logits)
        if self.config.cascade is not None:
            outputs = replace(outputs, class_logits=average_logits(logits, self.config.cascade.average))
            proposals = replace(proposals, boxes=rows.back(boxes).view_as(proposals.boxes))
        return BoxOutputs(rows.back(outputs.class_logits), rows.back(outputs.deltas)), proposals

    def _box_outputs(self, head: BoxHead, features: Mapping[str, Tensor], boxes: Tensor, rows: _Rows) -> BoxOutputs:
        parts = _in_parts(rows.index is not None and self.roi_stage is not None, boxes, rows.image_index)
        outputs = [head(self.pooled_for_boxes(features, box, image)) for box, image in parts]
        return BoxOutputs(torch.cat([o.class_logits for o in outputs]), torch.cat([o.deltas for o in outputs]))

    def read_masks(
        self, features: Mapping[str, Tensor], found: DetectionBatch, drop_empty: bool = False
    ) -> Tensor | None:
        """(N, D, M, M) mask logits of the detections, each of its own class; None without a mask head."""
        if not self.mask_heads:
            return None
        rows = _Rows(found.valid, drop_empty)
        boxes, labels = rows.of(found.boxes), rows.of(found.labels)
        parts = _in_parts(drop_empty, boxes, rows.image_index, labels)
        masks = [self._mask_logits(self.pooled_for_masks(features, box, image), label) for box, image, label in parts]
        logits = rows.back(torch.cat(masks))  # (N * D, M, M)
        return logits.reshape(*found.valid.shape, *logits.shape[1:])

    def _mask_logits(self, pooled: Tensor, labels: Tensor) -> Tensor:
        """(R, M, M): of one head, or the logit of the mean probability of several."""
        logits: list[Tensor] = [head(pooled, labels) for head in self.mask_heads]
        return logits[0] if len(logits) == 1 else torch.stack(logits).sigmoid().mean(dim=0).logit(eps=1e-7)

    def read_keypoints(
        self, features: Mapping[str, Tensor], found: DetectionBatch, drop_empty: bool = False
    ) -> Tensor | None:
        """(N, D, J, M, M) heat maps of the detections, 0.2 MB each for 17 keypoints; None without a keypoint head."""
        if self.keypoint_head is None:
            return None
        rows = _Rows(found.valid, drop_empty)
        boxes = rows.of(found.boxes)
        parts = _in_parts(drop_empty, boxes, rows.image_index)
        maps = [self.keypoint_head(self.pooled_for_keypoints(features, box, image)) for box, image in parts]
        logits = rows.back(torch.cat(maps))  # (N * D, J, M, M)
        return logits.reshape(*found.valid.shape, *logits.shape[1:])


class _Rows:
    """The rows of a padded batch that the heads look at: all of them, or only the valid ones.

    This is the one place where work on empty rows is dropped. Flat rows: image by image, N * R.
    """

    def __init__(self, valid: Tensor, drop_empty: bool) -> None:
        n, r = valid.shape
        images = torch.arange(n, device=valid.device)[:, None].expand(n, r)
        self.total = n * r
        self.index = valid.flatten().nonzero().squeeze(1) if drop_empty else None
        self.image_index = self.of(images)

    def of(self, padded: Tensor) -> Tensor:
        """(N, R, ...) -> the chosen rows (V, ...)."""
        flat = padded.flatten(0, 1)
        return flat if self.index is None else flat[self.index]

    def back(self, values: Tensor) -> Tensor:
        """(V, ...) -> (N * R, ...), zeros where a row was dropped."""
        if self.index is None:
            return values
        return values.new_zeros(self.total, *values.shape[1:]).index_copy_(0, self.index, values)


def _in_parts(spare: bool, *rows: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Tensors (R, ...) side by side, `ROIS_AT_ONCE` rows at a time to spare memory, or whole, as fixed shapes are."""
    if not spare:
        return [rows]
    return zip(*(torch.split(values, ROIS_AT_ONCE) for values in rows), strict=True)


def original_frame(found: DetectionBatch, batch: ImageBatch, config: MaskRCNNConfig) -> list[Detections]:
    """Cut the padding rows, map boxes back to the pictures as they were given, name the classes."""
    placed = [place(found, i, batch, config) for i in range(len(batch))]
    kept = [keep_placed(detections, config.detection) for detections in placed]
    return [each if keep is None else each.chosen(keep) for each, keep in zip(placed, kept, strict=True)]


def place(found: DetectionBatch, i: int, batch: ImageBatch, config: MaskRCNNConfig) -> Detections:
    """Every valid row of picture i, in the picture as it was given."""
    keep, size = found.valid[i], batch.original_sizes[i]
    window = config.windows(batch.image_sizes, _padded_size(batch.pixels))[i]
    # scaling may round a corner on the border to just outside
    boxes = clip(to_original(found.boxes[i][keep], window, size, config.corners), *size)
    boxes = boxes.round() if config.detection.whole_pixels else boxes
    labels = found.labels[i][keep]
    masks = None
    if found.mask_logits is not None:
        masks = Masks(found.mask_logits[i][keep].sigmoid(), boxes, size, config.detection.mask_threshold)
    positions = [label - 1 for label in labels.tolist()]
    return Detections(
        boxes=boxes,
        scores=found.scores[i][keep],
        labels=labels,
        names=tuple(config.class_names[p] for p in positions),
        category_ids=tuple(config.category_ids[p] for p in positions),
        masks=masks,
        size=size,
        keypoints=_keypoints(found, i, window, size, config),
        keypoint_scheme=None if config.keypoint_head is None else config.keypoint_head.scheme,
    )


def _keypoints(found: DetectionBatch, i: int, window: Tensor, size: Size, config: MaskRCNNConfig) -> Tensor | None:
    """(D_i, J, 3) x, y, score in picture i as it was given, of `size`."""
    if found.keypoint_logits is None or config.keypoint_head is None:
        return None
    keep = found.valid[i]
    boxes, window = (on_edges(box, config.corners) for box in (found.boxes[i][keep], window[None]))
    points = place_keypoints(found.keypoint_logits[i][keep], boxes, config.keypoint_head)
    corners = points[..., [0, 1, 0, 1]].flatten(0, 1)  # each point as a box without area
    places = to_original(corners, window[0], size, "edges")[:, :2].reshape_as(points[..., :2])
    return torch.cat([places, points[..., 2:]], dim=2)


def keep_placed(found: Detections, config: DetectionConfig) -> Tensor | None:
    """(D,) bool, the detections that stay once they are placed; None for all.

    Rounding leaves some without area. NMS by the IoU of masks, where configured, is for touching objects, whose boxes
    overlap but whose pixels do not.
    """
    keep = None
    if config.whole_pixels or config.min_size == 0:  # else no box is empty
        smallest = 1.0 if config.whole_pixels else torch.finfo(found.boxes.dtype).tiny
        keep = is_large_enough(found.boxes, smallest)
    if config.mask_nms_iou is None or found.masks is None or len(found) < 2:
        return keep
    masks = found.masks
    iou = mask_iou(masks.probabilities, masks.boxes, masks.size, masks.threshold)  # 0 for those without area
    if not config.class_agnostic_nms:
        iou = iou * (found.labels[:, None] == found.labels)
    apart = mask_nms_keep(iou, found.scores, config.mask_nms_iou)
    return apart if keep is None else keep & apart


def _padded_size(pixels: Tensor) -> tuple[int, int]:
    return pixels.shape[2], pixels.shape[3]
