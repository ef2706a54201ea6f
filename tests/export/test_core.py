from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from maskrcnn.errors import InputError
from maskrcnn.export.core import DetectionCore, Shape, facts_of, output_names, record
from maskrcnn.export.facts import Facts
from maskrcnn.model.limits import Limits
from maskrcnn.model.mask_rcnn import MaskRCNN

from .detectors import config, detector


def facts(model: MaskRCNN, shape: Shape | None = None, limits: Limits | None = None) -> Facts:
    return facts_of(model, "torch-export", shape or Shape(), limits, licence="none", source="drawn")


def test_the_core_is_the_detector() -> None:
    model = detector()
    pixels, sizes = torch.randn(2, 3, 128, 96), torch.tensor([[120.0, 90.0], [128.0, 64.0]])
    with torch.no_grad():
        outputs = dict(zip(output_names(model.config), DetectionCore(model, model.config)(pixels, sizes), strict=True))
        found = model.detect(pixels, sizes)
    assert torch.equal(outputs["boxes"], found.boxes) and torch.equal(outputs["valid"], found.valid)
    assert found.mask_logits is not None and torch.equal(outputs["masks"], found.mask_logits.sigmoid())


def test_outputs_go_by_heads() -> None:
    assert output_names(config("faster")) == ("boxes", "scores", "labels", "valid")
    assert output_names(config("keypoints")) == ("boxes", "scores", "labels", "valid", "heatmaps")


def test_what_is_recorded_is_told() -> None:
    told = facts(
        detector(), Shape(size=(100, 250), batch=4), Limits(max_detections=7, score_threshold=0.3, proposals=20)
    )
    assert (told.size, told.step, told.batch, told.proposals) == ((128, 256), 32, 4, 20)
    assert (told.detection.max_detections, told.detection.score_threshold) == (7, 0.3)
    assert told.config["rpn"]["post_nms_top_n"] == 20
    assert facts(detector()).least == 64
    assert facts(detector("c4")).step == 32  # what the config pads to; the map's own stride is 16


def test_parts_that_cannot_be_exported_are_named() -> None:
    plain = config()
    given = MaskRCNN(replace(plain, rpn=None))
    with pytest.raises(InputError, match="rpn: cannot be exported: proposals come with each picture"):
        facts(given)
    pooled = MaskRCNN(replace(plain, roi_pooler=replace(plain.roi_pooler, method="pool")))
    with pytest.raises(InputError, match="roi_pooler.method: cannot be exported; found pool; expected align"):
        facts(pooled)
    opencv = MaskRCNN(replace(plain, preprocess=replace(plain.preprocess, resampling="opencv")))
    with pytest.raises(InputError, match="preprocess.resampling: cannot be exported; found opencv"):
        facts(opencv)


def test_the_whole_core_is_recorded_once_for_any_size() -> None:
    model = detector()
    graph = record(model, model.config, facts(model)).module()
    for high, wide in ((64, 224), (192, 96)):
        pixels, sizes = torch.randn(1, 3, high, wide), torch.tensor([[high - 9.0, wide - 20.0]])
        with torch.no_grad():
            plain, recorded = DetectionCore(model, model.config)(pixels, sizes), graph(pixels, sizes)
        assert plain[3].sum() > 3
        for ours, theirs in zip(plain, recorded, strict=True):
            torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(0, 10), (10,), (10, 1 << 20)])
def test_impossible_shapes(size: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="is no size"):
        Shape(size=size)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="is no number of pictures"):
        Shape(batch=0)


def test_what_torch_cannot_record_is_one_line() -> None:
    class Strange(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("a step that knows no graph\nand more lines")

    model = detector()
    told = facts(model)
    model.backbone = Strange()  # type: ignore[assignment]
    with pytest.raises(InputError, match="cannot be recorded; found a step that knows no graph$"):
        record(model, model.config, told)
