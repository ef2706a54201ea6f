"""Torchvision's Mask R-CNN with the same weights as ours: random ones that behave, or those of a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn.bench.random_weights import randomise
from maskrcnn.data.pictures import read_picture
from maskrcnn.errors import InputError
from maskrcnn.model.mask_rcnn import MaskRCNNConfig
from maskrcnn.weights.opening import resolve_weights
from maskrcnn.weights.torchvision import looks_like

SCORE_SPREAD = 2.0  # of random weights: enough for 100 detections
_NORM_EPS = 1e-5  # torch's default
_CLASSES = 91  # torchvision's count, background included


@dataclass(frozen=True, kw_only=True)
class Work:
    """How much both sides have to do on a picture. shortest, longest: px, sides that the network sees."""

    shortest: int = 800
    longest: int = 1333
    proposals: int = 1000
    detections: int = 100

    def of_ours(self) -> dict[str, Any]:
        """Fields of our config."""
        return {
            "preprocess": {"shortest": self.shortest, "longest": self.longest},
            "rpn": {"pre_nms_top_n": max(1000, self.proposals), "post_nms_top_n": self.proposals},
            "detection": {"max_detections": self.detections},
        }

    def of_torchvision(self) -> dict[str, Any]:
        """Arguments of torchvision's builders."""
        return {
            "min_size": self.shortest,
            "max_size": self.longest,
            "rpn_pre_nms_top_n_test": max(1000, self.proposals),
            "rpn_post_nms_top_n_test": self.proposals,
            "box_detections_per_img": self.detections,
        }


def random_weights(file: Path, picture: bytes, work: Work, body: str = "resnet50", seed: int = 0) -> Path:
    """Write `maskrcnn_resnet50_fpn(weights=None)`, given random weights that behave on `picture`, to `file` (.pth).

    body: another of torchvision's ResNets in its place.
    """
    torch.manual_seed(seed)
    model = _built(body, _CLASSES, nn.BatchNorm2d, work)
    image = torch.from_numpy(read_picture(picture).copy()).permute(2, 0, 1) / 255
    randomise(model, image, SCORE_SPREAD)
    torch.save(model.state_dict(), file)
    return file


def torchvision_peer(weights: str | Path, config: MaskRCNNConfig, work: Work) -> Any | None:
    """Torchvision's own detector with the weights of a file; None where that is none of its Mask R-CNN on a ResNet.

    config: of ours with these weights, which tells the body and what its norms add to variances.
    """
    file = resolve_weights(weights)
    state = _state(file)
    if state is None or not looks_like(state) or not _is_mask_rcnn_on_resnet(state):
        return None
    eps = config.backbone.norm_eps
    model = _peer_for(state, config.backbone.name, _NORM_EPS if eps is None else eps, work)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        found = str(error).partition("\n")[2].strip()[:120]
        raise InputError("torchvision's own Mask R-CNN does not take these weights", file=file, found=found) from error
    return model.eval()


def _peer_for(state: Mapping[str, Tensor], body: str, norm_eps: float, work: Work) -> Any:
    from torchvision.models import detection
    from torchvision.ops.misc import FrozenBatchNorm2d

    classes = state["roi_heads.box_predictor.cls_score.weight"].shape[0]
    if "roi_heads.box_head.0.0.weight" in state:  # convolutions in the box head: the second version
        options = work.of_torchvision()
        return detection.maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=classes, **options)
    counts_batches = any(name.endswith("num_batches_tracked") for name in state)
    norm = nn.BatchNorm2d if counts_batches else FrozenBatchNorm2d
    return _built(body, classes, partial(norm, eps=norm_eps), work)


def _built(body: str, classes: int, norm: Any, work: Work) -> Any:
    """As `maskrcnn_resnet50_fpn` builds it, with another body where asked."""
    from torchvision.models import detection
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    backbone = resnet_fpn_backbone(backbone_name=body, weights=None, norm_layer=norm)
    return detection.MaskRCNN(backbone, num_classes=classes, **work.of_torchvision())


def _state(file: Path) -> dict[str, Tensor] | None:
    """The tensors of a file that torch wrote; None for any other file."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # of another kind: it is opened, or refused, where ours is made
        return None
    if isinstance(state, Mapping) and isinstance(
        state.get("model"), Mapping
    ):  # as torchvision's reference scripts save
        state = state["model"]
    is_state = isinstance(state, Mapping) and all(isinstance(value, Tensor) for value in state.values())
    return dict(state) if is_state else None


def _is_mask_rcnn_on_resnet(state: Mapping[str, Tensor]) -> bool:
    return "backbone.body.conv1.weight" in state and "roi_heads.mask_predictor.conv5_mask.weight" in state
