"""An RPN's proposals in the picture as given, made once and read from a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from maskrcnn.data.shapes import SHAPE_CLASSES
from maskrcnn.errors import InputError
from maskrcnn.lineage.rpn_proposals import proposals_of_rpn, propose_in
from maskrcnn.lineage.small import fast_rcnn_config, faster_rcnn_config
from maskrcnn.lineage.system import Bench
from maskrcnn.model.mask_rcnn import MaskRCNN


@pytest.fixture
def model(bench: Bench) -> MaskRCNN:
    """One that sees pictures at 1.5 times their size."""
    torch.manual_seed(0)
    model = MaskRCNN(faster_rcnn_config(replace(bench, scale=1.5), SHAPE_CLASSES)).eval()
    torch.nn.init.normal_(model.own_rpn.objectness.weight, std=1.0)
    return model


@torch.no_grad()
def test_boxes_are_those_that_the_heads_would_get(bench: Bench, model: MaskRCNN) -> None:
    picture = np.ascontiguousarray(bench.train.sample(0)[0][:50])  # 50 x 64 px: 75 x 96 as the network sees it
    batch = model.preprocess([torch.from_numpy(picture).permute(2, 0, 1)])
    size = (batch.pixels.shape[2], batch.pixels.shape[3])
    inside = model.propose(model.features(batch.pixels), batch.image_sizes, size, model.config)
    boxes = propose_in(model, picture)
    assert boxes.dtype == torch.float32 and len(boxes) == int(inside.valid.sum()) > 50
    torch.testing.assert_close(boxes, inside.boxes[0][inside.valid[0]] / 1.5)
    assert boxes.min() >= 0 and boxes[:, 2].max() <= 64 and boxes[:, 3].max() <= 50
    few = propose_in(model, picture, replace(model.config.own_rpn, post_nms_top_n=7))
    assert torch.equal(few, boxes[:7])


@torch.no_grad()
def test_given_back_they_are_the_same_detections(bench: Bench, model: MaskRCNN) -> None:
    picture = bench.train.sample(1)[0]
    image = torch.from_numpy(picture).permute(2, 0, 1)
    (own,), (given,) = model([image]), model([image], proposals=[propose_in(model, picture)])
    assert len(own) > 0 and own.labels.tolist() == given.labels.tolist()
    torch.testing.assert_close(own.boxes, given.boxes, rtol=0, atol=1e-3)


def test_made_once_and_read_again(bench: Bench, model: MaskRCNN, tmp_path: Path) -> None:
    rpn, told = model.config.own_rpn, list[float]()
    first = proposals_of_rpn(model, bench.train, tmp_path / "new", rpn, told.append)
    assert told == [pytest.approx((i + 1) / 6) for i in range(6)]
    for i, boxes in enumerate(first):
        assert torch.equal(boxes, propose_in(model, bench.train.sample(i)[0]))
    again = proposals_of_rpn(model, bench.train, tmp_path / "new", rpn, told.append)
    assert len(told) == 6 and all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_made_anew_where_file_model_or_limits_are_others(bench: Bench, model: MaskRCNN, tmp_path: Path) -> None:
    rpn, told = model.config.own_rpn, list[float]()
    first = proposals_of_rpn(model, bench.train, tmp_path, rpn, told.append)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    again = proposals_of_rpn(model, bench.train, tmp_path, rpn, told.append)
    assert len(told) == 12 and all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    few = proposals_of_rpn(model, bench.train, tmp_path, replace(rpn, post_nms_top_n=3), told.append)
    assert len(told) == 18 and {len(boxes) for boxes in few} == {3}
    torch.nn.init.normal_(model.own_rpn.deltas.bias)
    other = proposals_of_rpn(model, bench.train, tmp_path, rpn, told.append)
    assert len(told) == 24 and not torch.equal(other[0][:3], first[0][:3])


def test_a_detector_without_rpn_is_refused(bench: Bench) -> None:
    model = MaskRCNN(fast_rcnn_config(bench, SHAPE_CLASSES)).eval()
    with pytest.raises(InputError, match="rpn: the detector has none"):
        propose_in(model, bench.train.sample(0)[0])
