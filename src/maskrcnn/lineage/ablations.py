"""The papers' ablations as data: what is asked, which networks answer it, and what the paper found.

Every network learns for as long as every other, by the clock. A cheaper one so takes more steps; the paper's took
equally many. Each row tells its steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from maskrcnn.data.dataset import Dataset
from maskrcnn.errors import InputError
from maskrcnn.lineage.system import System
from maskrcnn.lineage.variants import VARIANTS
from maskrcnn.model.backbone import BackboneConfig

MASK_RCNN = "He et al. 2017"
RESNET = "He et al. 2016"

Pair = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """One question of a paper.

    question: a plain sentence. source: paper and table. variants: what is compared; "mask-rcnn" is the table's, in all
    ablations that have it, whatever its name there. compared: columns of the rows that answer, the first of them the
    paper's. expected: what the paper found. order: keys (better, worse) by the first column, as the paper has them;
    what it found about equal is in no pair.
    least_classes: with fewer in the data, the variants are one and the same. own_body: the body is what is compared,
    which must be a ResNet of 18 layers that learns from nothing.
    """

    key: str
    question: str
    source: str
    variants: tuple[System, ...]
    compared: tuple[str, ...]
    expected: str
    order: tuple[Pair, ...]
    least_classes: int = 1
    own_body: bool = False


def _systems(source: str, **names: str) -> tuple[System, ...]:
    """Variants by key, "_" for "-", with their names."""
    keys = {key.replace("_", "-"): name for key, name in names.items()}
    return tuple(VARIANTS[key].system(name, source) for key, name in keys.items())


_ABLATIONS = (
    Ablation(
        key="mask-classes",
        question="Should classes compete for a pixel of a mask?",
        source=f"{MASK_RCNN}, Table 2b",
        variants=_systems(MASK_RCNN, mask_rcnn="sigmoid for each class", softmax="softmax over classes"),
        compared=("mask_ap", "mask_ap50", "mask_ap75", "box_ap"),
        expected="No: mask AP 30.3 with a sigmoid for each class, 24.8 with a softmax (ResNet-50-C4, COCO). The box "
        "head has chosen the class already, and the mask need not choose it again.",
        order=(("mask-rcnn", "softmax"),),
        least_classes=2,
    ),
    Ablation(
        key="mask-head",
        question="Convolutions or fully connected layers for masks?",
        source=f"{MASK_RCNN}, Table 2e",
        variants=_systems(MASK_RCNN, mask_rcnn="FCN", mlp="MLP"),
        compared=("mask_ap", "mask_ap50", "mask_ap75"),
        expected="Convolutions: mask AP 33.6 against 31.5 (ResNet-50-FPN, COCO). They keep where a pixel lies, which a "
        "fully connected layer must learn for every place anew.",
        order=(("mask-rcnn", "mlp"),),
    ),
    Ablation(
        key="mask-agnostic",
        question="Does each class need a mask of its own?",
        source=f"{MASK_RCNN}, 4.2, class-specific vs. class-agnostic masks",
        variants=_systems(MASK_RCNN, mask_rcnn="class-specific", agnostic="class-agnostic"),
        compared=("mask_ap", "mask_ap50", "mask_ap75"),
        expected="Hardly: mask AP 30.3 with a mask for each class, 29.7 with one for all (ResNet-50-C4, COCO).",
        order=(),
        least_classes=2,
    ),
    Ablation(
        key="pooling",
        question="What does rounding boxes to whole cells cost, on one map of stride 16 or 32?",
        source=f"{MASK_RCNN}, Tables 2c and 2d",
        variants=_systems(
            MASK_RCNN,
            align_16="RoIAlign, stride 16",
            warp_16="RoIWarp, stride 16",
            pool_16="RoIPool, stride 16",
            align_32="RoIAlign, stride 32",
            warp_32="RoIWarp, stride 32",
            pool_32="RoIPool, stride 32",
        ),
        compared=("mask_ap75", "mask_ap", "box_ap75", "box_ap"),
        expected="At stride 16 mask AP 30.3 with RoIAlign, 27.1 with RoIWarp, 26.9 with RoIPool; at stride 32 30.9 "
        "with RoIAlign, 23.6 with RoIPool. At IoU 0.75 the gap is wider: 31.5 to 26.4, and 32.1 to 21.6 "
        "(ResNet-50-C4 and -C5, COCO). RoIWarp, which rounds as RoIPool does, gains hardly anything by its "
        "bilinear sampling.",
        order=(("align-16", "warp-16"), ("align-16", "pool-16"), ("align-32", "warp-32"), ("align-32", "pool-32")),
    ),
    Ablation(
        key="mask-branch",
        question="Do boxes gain from learning masks beside them?",
        source=f"{MASK_RCNN}, Table 3",
        variants=_systems(MASK_RCNN, mask_rcnn="with masks", boxes_only="boxes only"),
        compared=("box_ap", "box_ap50", "box_ap75"),
        expected="A little: box AP 38.2 with the mask branch, 37.3 without (ResNet-101-FPN, COCO test-dev). At equal "
        "minutes, not steps, the masks' own cost works against it.",
        order=(("mask-rcnn", "boxes-only"),),
    ),
    Ablation(
        key="depth",
        question="Is a deeper body better, with shortcuts and without?",
        source=f"{RESNET}, Table 2",
        variants=_systems(
            RESNET,
            plain_18="plain, 18 layers",
            plain_34="plain, 34 layers",
            mask_rcnn="residual, 18 layers",
            residual_34="residual, 34 layers",
        ),
        compared=("box_ap", "mask_ap"),
        expected="With shortcuts it is, without it is worse: ImageNet top-1 error 27.88 % to 25.03 % for residual nets "
        "of 18 and 34 layers, 27.94 % to 28.54 % for plain ones. At equal minutes the deeper two take fewer steps: "
        "what tells most is plain against residual of the same depth.",
        order=(("plain-18", "plain-34"), ("residual-34", "mask-rcnn"), ("residual-34", "plain-34")),
        own_body=True,
    ),
)

ABLATIONS: dict[str, Ablation] = {ablation.key: ablation for ablation in _ABLATIONS}


def ablation_of(key: str) -> Ablation:
    """Errors: `InputError` that lists the keys."""
    if key not in ABLATIONS:
        raise InputError("no such ablation", field="ablation", found=key, expected=" or ".join(ABLATIONS))
    return ABLATIONS[key]


def require_fits(ablation: Ablation, pictures: Dataset, body: BackboneConfig, pretrained: bool) -> None:
    """Errors: `InputError` where the ablation means nothing: too few classes in the pictures, or another body."""
    count = len(pictures.classes)
    if count < ablation.least_classes:
        expected = f"data of {ablation.least_classes} or more classes, such as shapes: of {count} the variants are one"
        raise InputError(
            "means nothing here", field=f"ablation {ablation.key}", found=f"{count} class", expected=expected
        )
    if ablation.own_body and (body.name != "resnet18" or pretrained):
        found = body.name + (", pretrained" if pretrained else "")
        raise InputError(
            "compares bodies of its own", field=f"ablation {ablation.key}", found=found, expected="resnet18, untrained"
        )
