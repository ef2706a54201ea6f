"""Torchvision's detector with the weights of a file: the same that ours opens, or none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import maskrcnn
from maskrcnn.bench.differences import differences
from maskrcnn.bench.peer import Work, torchvision_peer
from maskrcnn.bench.pictures import BenchPicture
from maskrcnn.bench.sides import Ours, Theirs, whole
from maskrcnn.errors import InputError
from maskrcnn.model.mask_rcnn import MaskRCNN
from maskrcnn.model.presets import preset
from maskrcnn.weights.files import save_checkpoint
from maskrcnn.weights.opening import load_model


def test_both_sides_find_the_same(small_weights: Path, small_work: Work, picture: BenchPicture) -> None:
    predictor = maskrcnn.load(small_weights, small_work.of_ours(), device="cpu")
    peer = torchvision_peer(small_weights, predictor.model.config, small_work)
    found = whole(Theirs(peer), picture.data)
    apart = differences(whole(Ours(predictor), picture.data), found)
    assert len(found) == small_work.detections == apart.pairs and not apart.one_sided
    assert apart.boxes_px < 0.02 and apart.scores < 1e-4
    assert apart.area_pixels > 100 and apart.clear_pixels <= apart.mask_pixels < 0.001 * apart.area_pixels


def test_random_weights_are_the_same_each_time(
    small_weights: Path, small_work: Work, picture: BenchPicture, tmp_path: Path
) -> None:
    from maskrcnn.bench.peer import random_weights

    again = random_weights(tmp_path / "again.pth", picture.data, small_work, body="resnet18")
    first, second = (torch.load(file, weights_only=True) for file in (small_weights, again))
    assert list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def test_frozen_norms_and_what_they_add(small_weights: Path, small_work: Work, tmp_path: Path) -> None:
    state = torch.load(small_weights, weights_only=True)
    torch.save({n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}, tmp_path / "frozen.pth")
    config = load_model(tmp_path / "frozen.pth", {"backbone": {"norm_eps": 0.0}}).config
    peer = torchvision_peer(tmp_path / "frozen.pth", config, small_work)
    assert peer is not None and type(peer.backbone.body.bn1).__name__ == "FrozenBatchNorm2d"
    assert peer.backbone.body.bn1.eps == 0.0


def test_other_weights_have_no_such_peer(small_work: Work, tmp_path: Path) -> None:
    model = MaskRCNN(preset("nano", ("cell",), (1,)))
    ours = save_checkpoint(tmp_path / "ours.safetensors", model, metadata={})
    assert torchvision_peer(ours, model.config, small_work) is None


def test_a_file_that_torchvision_does_not_take(small_weights: Path, small_work: Work, tmp_path: Path) -> None:
    state = torch.load(small_weights, weights_only=True)
    config = load_model(small_weights).config
    torch.save(state | {"rpn.head.conv.0.0.extra": torch.zeros(1)}, tmp_path / "odd.pth")
    with pytest.raises(InputError, match="odd.pth: torchvision's own Mask R-CNN does not take these weights"):
        torchvision_peer(tmp_path / "odd.pth", config, small_work)


def test_work_is_the_same_for_both() -> None:
    work = Work(shortest=400, longest=700, proposals=2000, detections=50)
    ours, theirs = work.of_ours(), work.of_torchvision()
    assert ours["preprocess"] == {"shortest": theirs["min_size"], "longest": theirs["max_size"]}
    assert ours["rpn"]["pre_nms_top_n"] == theirs["rpn_pre_nms_top_n_test"] == 2000
    assert ours["rpn"]["post_nms_top_n"] == theirs["rpn_post_nms_top_n_test"] == 2000
    assert ours["detection"]["max_detections"] == theirs["box_detections_per_img"] == 50
