"""The test of tests: a detector learns two drawn pictures by heart, and the evaluator says so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from maskrcnn.data.shapes import SHAPE_CLASSES, ShapesDataset
from maskrcnn.evaluation.evaluate import evaluate
from maskrcnn.losses.box_loss import BoxLossConfig
from maskrcnn.losses.mask_rcnn_loss import LossConfig, MaskRCNNLoss
from maskrcnn.losses.rpn_loss import RPNLossConfig
from maskrcnn.model.anchors import AnchorConfig
from maskrcnn.model.backbone import BackboneConfig
from maskrcnn.model.box_head import BoxHeadConfig
from maskrcnn.model.fpn import FPNConfig
from maskrcnn.model.mask_head import MaskHeadConfig
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.model.preprocess import PreprocessConfig
from maskrcnn.model.roi_pooler import RoIPoolerConfig
from maskrcnn.model.rpn import RPNConfig
from maskrcnn.structures import Detections

STEPS = 300
LOSSES = LossConfig(
    rpn=RPNLossConfig(anchors_per_image=64), box=BoxLossConfig(rois_per_image=48), pre_nms_top_n=100, post_nms_top_n=100
)


def small_detector() -> MaskRCNN:
    body = {"layers": (1, 1, 1, 1), "channels": (16, 24, 32, 48), "stem_type": "deep", "stem_width": 8}
    config = MaskRCNNConfig(
        class_names=SHAPE_CLASSES.names,
        category_ids=SHAPE_CLASSES.category_ids,
        preprocess=PreprocessConfig(shortest=None),
        backbone=BackboneConfig(name="resnet18", options=body, norm="group", frozen_stages=0),
        fpn=FPNConfig(channels=32, extra_level=False),
        rpn=RPNConfig(anchors=AnchorConfig(sizes=((8,), (16,), (32,), (64,)), ratios=(1.0,), centre=0.5)),
        roi_pooler=RoIPoolerConfig(canonical_size=56.0),
        box_head=BoxHeadConfig(fc_channels=64),
        mask_head=MaskHeadConfig(num_convs=2, channels=16),
    )
    return MaskRCNN(config)


def pixels(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1)


@pytest.mark.slow
def test_two_pictures_are_learned_by_heart() -> None:
    dataset = ShapesDataset(2, size=(64, 64), seed=5, max_objects=4)
    model = small_detector().train()
    loss, optimizer = MaskRCNNLoss(model, LOSSES), torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, STEPS)
    samples = [dataset[i] for i in range(2)]
    targets = [target for _, target in samples]
    batch = model.preprocess.batch([pixels(picture) for picture, _ in samples])
    for step in range(STEPS):
        losses = loss(batch, [replace(target, sampling_seed=step) for target in targets])
        optimizer.zero_grad()
        losses["total"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()

    def detect(pictures: Iterable[np.ndarray]) -> Iterator[Detections]:
        with torch.no_grad():
            for picture in pictures:
                yield model.eval()([pixels(picture)])[0]

    scores = evaluate(detect, dataset, max_detections=(100,))
    assert losses["total"] < 0.3
    assert scores.box.ap is not None and scores.box.ap > 0.9
    assert scores.mask is not None and scores.mask.ap is not None and scores.mask.ap > 0.9
