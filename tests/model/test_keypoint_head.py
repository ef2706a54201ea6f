"""The keypoint head: torchvision's with the same weights, its place in the figure, what it says of a point."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor

from maskrcnn.errors import InputError
from maskrcnn.model.config import from_dict, to_dict
from maskrcnn.model.keypoint_head import COCO_PERSON, KeypointHead, KeypointHeadConfig, place_keypoints
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig, original_frame
from maskrcnn.structures import KeypointScheme

SMALL = KeypointHeadConfig(scheme=KeypointScheme(("tip", "left", "right"), ((1, 2),)), num_convs=2, channels=12)


def test_the_paper_is_the_default() -> None:
    with torch.device("meta"):
        head = KeypointHead(KeypointHeadConfig(), 256)
        maps = head(torch.empty(3, 256, 14, 14))
    assert maps.shape == (3, 17, 56, 56)
    assert [tuple(block.conv.weight.shape[:2]) for block in head.convs] == [(512, 256)] + [(512, 512)] * 7
    assert tuple(head.deconv.weight.shape) == (512, 17, 4, 4)


def test_the_same_maps_as_torchvision() -> None:
    head = KeypointHead(SMALL, 6).eval()
    body, last = KeypointRCNNHeads(6, (12, 12)), KeypointRCNNPredictor(12, 3)
    torch.nn.init.normal_(head.deconv.bias)
    for ours, theirs in zip(head.convs, (body[0], body[2]), strict=True):
        theirs.load_state_dict(ours.conv.state_dict())
    last.kps_score_lowres.load_state_dict(head.deconv.state_dict())
    pooled = torch.randn(4, 6, 14, 14)
    with torch.no_grad():
        assert torch.allclose(head(pooled), last(body(pooled)), atol=1e-5)
        assert head(pooled[:0]).shape == (0, 3, 56, 56)


def test_scores() -> None:
    """A share of its map that does not hang on its height; or the height."""
    maps = torch.full((1, 2, 56, 56), -3.0)
    maps[0, 0, 20:24, 30:34] = 9.0  # flat, so that its highest place is as high as its cells
    maps[0, 1] = 1.5  # nothing stands out
    box = torch.tensor([[10.0, 10.0, 66.0, 66.0]])
    shares, heights = (place_keypoints(maps, box, replace(SMALL, score=kind))[0, :, 2] for kind in ("share", "logit"))
    shifted = place_keypoints(maps + 5, box, SMALL)[0, :, 2]
    assert shares.tolist() == pytest.approx([1 / (16 + 3120 * torch.tensor(-12.0).exp().item()), 1 / 3136], rel=1e-4)
    assert heights.tolist() == pytest.approx([9.0, 1.5], rel=1e-5)
    assert torch.allclose(shifted, shares, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "field"),
    [({"side": 30}, "side"), ({"side": 0}, "side"), ({"num_convs": -1}, "num_convs"), ({"channels": 0}, "channels")],
)
def test_impossible_values(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError, match=f"KeypointHeadConfig.{field}"):
        KeypointHeadConfig(**change)


def test_a_checkpoint_tells_the_keypoints(tiny_config: MaskRCNNConfig) -> None:
    config = replace(tiny_config, keypoint_head=replace(SMALL, scheme=replace(COCO_PERSON, pixel_centre=0.0)))
    again = from_dict(MaskRCNNConfig, to_dict(config))
    assert again == config and hash(again.keypoint_head) == hash(config.keypoint_head)
    with pytest.raises(InputError, match=r"KeypointScheme.skeleton.*found \(0, 9\)"):
        scheme = to_dict(config)["keypoint_head"]["scheme"] | {"names": ["a"], "flip_pairs": [], "skeleton": [[0, 9]]}
        from_dict(KeypointScheme, scheme)


# --- in the figure ----------------------------------------------------------------------------------------------------


def with_keypoints(config: MaskRCNNConfig, **changes: Any) -> MaskRCNN:
    """Last layers drawn wide, so that detections and points differ."""
    model = MaskRCNN(replace(config, keypoint_head=SMALL, **changes)).eval()
    for layer in (model.rpn.objectness, model.rpn.deltas, model.box_head.classes, model.box_head.deltas):
        torch.nn.init.normal_(layer.weight, std=0.3)
    return model


def pictures(*sizes: tuple[int, int]) -> list[Tensor]:
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes]


@pytest.mark.parametrize("masks", [True, False])
@torch.no_grad()
def test_masks_and_keypoints_together_or_alone(tiny_config: MaskRCNNConfig, masks: bool) -> None:
    model = with_keypoints(tiny_config, **({} if masks else {"mask_head": None}))
    found = model(pictures((60, 80), (90, 64)))
    for one, size in zip(found, ((60, 80), (90, 64)), strict=True):
        assert one.keypoints is not None and one.keypoint_scheme == SMALL.scheme
        assert (one.masks is not None) == masks
        assert one.size == size and one.keypoints.shape == (len(one), 3, 3) and len(one) > 3
        low, high = one.boxes[:, None, :2], one.boxes[:, None, 2:]
        assert ((one.keypoints[..., :2] >= low) & (one.keypoints[..., :2] <= high)).all()
        assert (one.keypoints[..., 2] > 0).all()
        keep = one.scores > one.scores.median()
        chosen = one.chosen(keep).keypoints
        assert chosen is not None and torch.equal(chosen, one.keypoints[keep])


@torch.no_grad()
def test_dropping_empty_rows_changes_no_point(tiny_config: MaskRCNNConfig) -> None:
    detection = replace(tiny_config.detection, score_threshold=0.3, max_detections=80)
    model = with_keypoints(replace(tiny_config, detection=detection))
    batch = model.preprocess(pictures((60, 80), (64, 64)))
    whole = model.detect(batch.pixels, batch.image_sizes)
    spared = model.detect(batch.pixels, batch.image_sizes, drop_empty=True)
    assert whole.keypoint_logits is not None and spared.keypoint_logits is not None
    assert whole.keypoint_logits.shape == (2, 80, 3, 56, 56)
    assert 0 < whole.valid.sum() < whole.valid.numel()
    assert torch.allclose(whole.keypoint_logits[whole.valid], spared.keypoint_logits[whole.valid], atol=1e-5)
    assert not spared.keypoint_logits[~whole.valid].any()


@torch.no_grad()
def test_points_are_moved_to_the_original_frame(tiny_config: MaskRCNNConfig) -> None:
    """The heat maps read in the resized frame, and the points then moved as the boxes' corners are."""
    model = with_keypoints(tiny_config)
    batch = model.preprocess(pictures((32, 45)))  # resized to 64 x 90
    found = model.detect(batch.pixels, batch.image_sizes)
    assert found.keypoint_logits is not None
    points = place_keypoints(found.keypoint_logits[0], found.boxes[0], SMALL)[found.valid[0]]
    height, width = batch.image_sizes[0].tolist()
    expected = points * torch.tensor([45 / width, 32 / height, 1])
    (one,) = original_frame(found, batch, model.config)
    assert one.keypoints is not None and torch.allclose(one.keypoints, expected, atol=1e-5)


@torch.no_grad()
def test_c5_on_every_roi(tiny_config: MaskRCNNConfig) -> None:
    """Twice the pooled side goes in, since the stage halves it."""
    body = replace(tiny_config.backbone, levels=("c4",))
    anchors = replace(tiny_config.rpn.anchors, sizes=((8, 16, 32),))
    model = with_keypoints(
        tiny_config, backbone=body, fpn=None, roi_stage=True, rpn=replace(tiny_config.rpn, anchors=anchors)
    )
    (found,) = model(pictures((64, 64)))
    assert found.keypoints is not None and found.keypoints.shape == (len(found), 3, 3)


@torch.no_grad()
def test_no_objects(tiny_config: MaskRCNNConfig) -> None:
    model = with_keypoints(replace(tiny_config, detection=replace(tiny_config.detection, score_threshold=1.0)))
    (found,) = model(pictures((64, 64)))
    assert found.keypoints is not None and found.keypoints.shape == (0, 3, 3)
    assert found.coco() == []


def test_without_the_head_there_is_nothing(tiny_model: MaskRCNN) -> None:
    with torch.no_grad():
        (found,) = tiny_model(pictures((64, 64)))
    assert found.keypoints is None and found.keypoint_scheme is None
    assert not any("keypoint" in name for name in tiny_model.state_dict())
    assert "keypoints" not in found.coco()[0]
