"""The networks that the ablations compare: each is the table's Mask R-CNN with one thing changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from maskrcnn.lineage.networks import train_at_once
from maskrcnn.lineage.small import mask_rcnn_config
from maskrcnn.lineage.system import Bench, System, Trained
from maskrcnn.model.mask_head import MaskHeadConfig
from maskrcnn.model.mask_rcnn import MaskRCNNConfig
from maskrcnn.model.roi_pooler import Method

Change = Callable[[MaskRCNNConfig], MaskRCNNConfig]

# layers -> basic blocks a stage; He et al. 2016, Table 1
LAYERS: dict[int, tuple[int, ...]] = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
LARGER = 2.4  # times the scale of the table: the median object, about 36 px there, then has 2.7 cells of stride 32
_ANCHORS = ((32.0, 64.0, 128.0, 256.0),)  # px, for the same objects
_CROP = 384  # px: all of a drawn picture of 128 px


@dataclass(frozen=True)
class Variant:
    """One network. key: of its folder, so that ablations which share a variant, and the table, train it once.

    change: makes its config of the table's. recipe: changes of the recipe that all share.
    """

    key: str
    change: Change
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def config(self, bench: Bench) -> MaskRCNNConfig:
        return self.change(mask_rcnn_config(bench, bench.train.classes))

    def system(self, name: str, source: str) -> System:
        """As the runner takes it, under the name that it has among those it is compared with."""
        return System(self.key, name, source, self.train)

    def train(self, bench: Bench) -> Trained:
        return train_at_once(bench, self.config(bench), **self.recipe)


def unchanged(config: MaskRCNNConfig) -> MaskRCNNConfig:
    """The table's own."""
    return config


def softmax(config: MaskRCNNConfig) -> MaskRCNNConfig:
    """Classes and background compete for each pixel of a mask."""
    return replace(config, mask_head=replace(_mask_head(config), classes="competing"))


def fully_connected(config: MaskRCNNConfig) -> MaskRCNNConfig:
    """Masks from two fully connected layers, each as wide as those of the box head, in place of all convolutions."""
    head = replace(_mask_head(config), num_convs=0, num_fcs=2, fc_channels=config.box_head.fc_channels)
    return replace(config, mask_head=head)


def class_agnostic(config: MaskRCNNConfig) -> MaskRCNNConfig:
    """One mask for each box, whatever its class."""
    return replace(config, mask_head=replace(_mask_head(config), class_agnostic=True))


def boxes_only(config: MaskRCNNConfig) -> MaskRCNNConfig:
    """No mask branch; RoIAlign stays."""
    return replace(config, mask_head=None)


def pooled(method: Method, level: Literal["c4", "c5"]) -> Change:
    """One map in place of the pyramid, of stride 16 or 32, from which every box is pooled by `method`.

    A cell of stride 32 must be coarse and yet not hopeless. So pictures are enlarged 2.4 times more than in the table:
    drawn ones threefold, to 384 px, which are 12 x 12 cells of stride 32, with objects of 30 to 240 px, that is of 1 to
    8 cells. To round a box to whole cells moves each side by up to half a cell: 16 px, a quarter of an object of 64 px,
    which RoIAlign leaves alone. Anchors of four sizes fit these objects at every cell. Both strides see the same
    pictures at the same size, with the same heads; but at stride 16 the body ends a stage earlier, so it is methods of
    one stride that are compared.
    """

    def change(config: MaskRCNNConfig) -> MaskRCNNConfig:
        scale, rpn = config.preprocess.scale, config.own_rpn
        assert scale is not None
        return replace(
            config,
            preprocess=replace(config.preprocess, scale=scale * LARGER),
            backbone=replace(config.backbone, levels=(level,)),
            fpn=None,
            rpn=replace(rpn, anchors=replace(rpn.anchors, sizes=_ANCHORS)),
            roi_pooler=replace(config.roi_pooler, method=method),
        )

    return change


def body(layers: int, *, shortcuts: bool) -> Change:
    """As many blocks a stage as the ResNet of 18 or 34 layers has, residual or plain."""

    def change(config: MaskRCNNConfig) -> MaskRCNNConfig:
        options = {**config.backbone.options, "layers": LAYERS[layers]}
        return replace(config, backbone=replace(config.backbone, options=options, shortcuts=shortcuts))

    return change


def _mask_head(config: MaskRCNNConfig) -> MaskHeadConfig:
    assert config.mask_head is not None
    return config.mask_head


# Two whole pictures in place of eight crops, with as many RoIs in all: a step takes as long, 0.3 s on one core.
_WHOLE_PICTURES: dict[str, Any] = {
    "augmentation": {"crop": _CROP},
    "batch_size": 2,
    "loss": {"box": {"rois_per_image": 128}, "mask": {"rois_per_image": 32}},
}
_METHODS: tuple[Method, ...] = ("align", "warp", "pool")
_POOLED = (
    *(Variant(f"{method}-16", pooled(method, "c4"), _WHOLE_PICTURES) for method in _METHODS),
    *(Variant(f"{method}-32", pooled(method, "c5"), _WHOLE_PICTURES) for method in _METHODS),
)

VARIANTS: dict[str, Variant] = {
    variant.key: variant
    for variant in (
        Variant("mask-rcnn", unchanged),
        Variant("softmax", softmax),
        Variant("mlp", fully_connected),
        Variant("agnostic", class_agnostic),
        Variant("boxes-only", boxes_only),
        *_POOLED,
        Variant("plain-18", body(18, shortcuts=False)),
        Variant("plain-34", body(34, shortcuts=False)),
        Variant("residual-34", body(34, shortcuts=True)),
    )
}
