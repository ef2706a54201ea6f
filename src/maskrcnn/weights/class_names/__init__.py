"""Class names of public data sets, for checkpoints that hold only their number."""

from __future__ import annotations

from pathlib import Path

from maskrcnn.data.classes import Classes

CITYSCAPES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
VOC = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


def coco() -> Classes:
    """COCO's 80 classes in the order of their ids, which are 1 to 90 with ten holes."""
    from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

    names = list(MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"])  # of ids 0 (background) to 90
    used = [(i, name) for i, name in enumerate(names) if i and name != "N/A"]
    return Classes(tuple(name for _, name in used), tuple(i for i, _ in used))


def lvis(version: str) -> Classes:
    """LVIS "v0.5" (1230 classes) or "v1" (1203), in the order of their ids 1..K."""
    lines = (Path(__file__).parent / f"lvis_{version}.txt").read_text(encoding="utf-8").splitlines()
    return Classes.named(line for line in lines if not line.startswith("#"))
