"""The zoo's facts, against what torchvision says of its own and against figures that were looked up one by one."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
import torchvision.models.detection as tv
import yaml

from maskrcnn.errors import InputError
from maskrcnn.weights import hub
from maskrcnn.weights.content import Content, Settings
from maskrcnn.weights.detectron2 import convert
from maskrcnn.weights.detectron2_settings import read_config
from maskrcnn.weights.zoo import Entry, find, search, zoo

from . import detectron2_fixture as fixtures

KINDS = {"mask", "cascade", "keypoint", "box"}


def test_every_entry_is_whole() -> None:
    for name, entry in zoo().items():
        assert name == entry.name and re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", name), name
        assert entry.kind in KINDS
        parts = urlsplit(entry.url)
        assert parts.scheme == "https" and parts.path.rpartition("/")[2] == entry.file
        assert entry.licence and entry.page.startswith("https://")
        assert entry.algorithm in ("md5", "sha256") and re.fullmatch("[0-9a-f]{6,64}", entry.digest or "")
        for ap in (entry.box_ap, entry.mask_ap, entry.keypoint_ap):
            assert ap is None or 20 < ap < 70
        assert entry.mask_ap is None or entry.kind in ("mask", "cascade")
        assert (entry.keypoint_ap is not None) == (entry.kind == "keypoint")
    assert len({entry.url for entry in zoo().values()}) == len(zoo())
    assert len({entry.published for entry in zoo().values()}) == len(zoo())


def test_a_hash_told_by_the_file_name_is_in_the_file_name() -> None:
    told = [entry for entry in zoo().values() if entry.told_by == "its file name"]
    assert len(told) == len(zoo()) - 1  # Matterport's has none
    for entry in told:
        assert re.search(rf"[_-]{entry.digest}\.(pkl|pth)$", entry.file)
        assert len(entry.digest or "") == {"md5": 6, "sha256": 8}[entry.algorithm]


@pytest.mark.parametrize(
    ("name", "published", "aps", "url_ends"),
    [
        ("coco-r50-fpn", "mask_rcnn_R_50_FPN_3x", (41.0, 37.2, None), "137849600/model_final_f10217.pkl"),
        ("coco-r50-c4-1x", "mask_rcnn_R_50_C4_1x", (36.8, 32.2, None), "137259246/model_final_9243eb.pkl"),
        ("coco-r101-dc5", "mask_rcnn_R_101_DC5_3x", (41.9, 37.3, None), "138363294/model_final_0464b7.pkl"),
        ("coco-x101-fpn", "mask_rcnn_X_101_32x8d_FPN_3x", (44.3, 39.5, None), "139653917/model_final_2d9806.pkl"),
        ("coco-keypoint-r101-fpn", "keypoint_rcnn_R_101_FPN_3x", (56.4, None, 66.1), "model_final_997cc7.pkl"),
        ("coco-r101-fpn-lsj", "mask_rcnn_R_101_FPN_400ep_LSJ", (48.9, 43.7, None), "model_final_f96b26.pkl"),
        ("cityscapes-r50-fpn", "Cityscapes/mask_rcnn_R_50_FPN", (None, 36.5, None), "model_final_af9cf5.pkl"),
        ("lvis05-r50-fpn", "mask_rcnn_R_50_FPN_1x", (23.6, 24.4, None), "144219072/model_final_571f7c.pkl"),
        ("mmdet-r50-fpn", "mask-rcnn_r50_fpn_ms-poly-3x_coco", (40.9, 37.1, None), "-21b550bb.pth"),
        ("mmdet-r50-caffe-fpn-1x", "mask-rcnn_r50-caffe_fpn_1x_coco", (38.0, 34.4, None), "-0ebd1859.pth"),
        ("mmdet-cascade-x101-64x4d-fpn", "cascade-mask-rcnn_x101-64x4d_fpn_ms-3x_coco", (46.6, 40.3, None), ".pth"),
        ("matterport-r101-fpn", "mask_rcnn_coco.h5 of release 2.0", (None, None, None), "v2.0/mask_rcnn_coco.h5"),
    ],
)
def test_facts(name: str, published: str, aps: tuple[float | None, ...], url_ends: str) -> None:
    entry = find(name)
    assert entry.published.endswith(published)
    assert (entry.box_ap, entry.mask_ap, entry.keypoint_ap) == aps
    assert entry.url.endswith(url_ends)


def test_torchvision_says_the_same_of_its_own() -> None:
    ours = [entry for entry in zoo().values() if entry.framework == "torchvision"]
    assert len(ours) == 8
    for entry in ours:
        enum, member = entry.published.split(".")
        weights = getattr(tv, enum)[member]
        scores = weights.meta["_metrics"]["COCO-val2017"]
        assert entry.url == weights.url
        assert entry.box_ap == scores["box_map"]
        assert entry.mask_ap == scores.get("mask_map")
        assert entry.keypoint_ap == scores.get("kp_map")
        assert entry.size is not None
        assert round(entry.size / 2**20, 3) == weights.meta["_file_size"]
        assert entry.size_slack == 525  # half a thousandth of a MiB


def test_licences() -> None:
    assert {entry.licence for entry in zoo().values() if entry.framework == "Detectron2"} == {"CC BY-SA 3.0"}
    for entry in zoo().values():
        assert entry.framework == "Detectron2" or entry.licence.startswith("not stated for the weights; code: ")


def test_settings_tell_apart_what_weights_do_not() -> None:
    """These two have tensors of the same names and shapes, and see other pixels and other strides."""
    tuned, scratch = (
        find("coco-r50-fpn-syncbn").settings["MODEL"],
        find("coco-r50-fpn-syncbn-scratch").settings["MODEL"],
    )
    assert (tuned["PIXEL_STD"], tuned["RESNETS"]["STRIDE_IN_1X1"]) == ([1.0, 1.0, 1.0], True)
    assert (scratch["PIXEL_STD"], scratch["RESNETS"]["STRIDE_IN_1X1"]) == ([57.375, 57.12, 58.395], False)
    old = find("coco-r50-fpn-d1").settings["MODEL"]
    assert (old["ROI_BOX_HEAD"]["POOLER_TYPE"], old["ROI_MASK_HEAD"]["POOLER_SAMPLING_RATIO"]) == ("ROIAlign", 2)
    lvis = find("lvis05-x101-fpn").settings
    assert (lvis["MODEL"]["ROI_HEADS"]["SCORE_THRESH_TEST"], lvis["TEST"]["DETECTIONS_PER_IMAGE"]) == (0.0001, 300)
    assert lvis["MODEL"]["RESNETS"] == {
        "STRIDE_IN_1X1": False,
        "OUT_FEATURES": ["res2", "res3", "res4", "res5"],
        "DEPTH": 101,
        "NUM_GROUPS": 32,
        "WIDTH_PER_GROUP": 8,
    }
    city = find("cityscapes-r50-fpn").settings
    assert (city["INPUT"]["MIN_SIZE_TEST"], city["INPUT"]["MAX_SIZE_TEST"]) == (1024, 2048)


@pytest.mark.parametrize(
    ("name", "fixture"),
    [
        ("coco-r50-fpn", "r50-fpn"),
        ("coco-faster-r50-fpn", "r50-fpn-box"),
        ("coco-r101-fpn", "r101-fpn"),
        ("coco-x101-fpn", "x101-fpn"),
        ("coco-r50-c4", "r50-c4"),
        ("coco-r50-dc5", "r50-dc5"),
        ("coco-r50-fpn-gn", "r50-fpn-gn"),
        ("coco-r50-fpn-syncbn", "r50-fpn-syncbn"),
        ("coco-r50-fpn-syncbn-scratch", "scratch-syncbn"),
        ("coco-r50-fpn-lsj", "lsj-r50"),
        ("coco-regnetx-4gf-fpn-lsj", "lsj-regnetx"),
        ("coco-cascade-r50-fpn", "cascade"),
        ("coco-keypoint-r50-fpn", "keypoints"),
        ("lvis05-r50-fpn", "lvis"),
        ("cityscapes-r50-fpn", "cityscapes"),
    ],
)
def test_settings_are_those_that_detectron2_wrote(name: str, fixture: str, tmp_path: Path) -> None:
    """The zoo's settings give the detector that Detectron2's own config gives, which was made for smaller pictures."""
    about = fixtures.read(fixture).about
    tensors = {
        tensor: torch.zeros(shape, device="cpu" if tensor.endswith("num_batches_tracked") else "meta")
        for tensor, shape in about["tensors"].items()
    }
    (tmp_path / "config.yaml").write_text(about["config"])
    theirs = convert(Content(dict(tensors)), Settings(read_config(tmp_path / "config.yaml"), "Detectron2"))
    ours = convert(Content(dict(tensors)), Settings(find(name).settings, "the zoo"))
    assert ours.assumed == ()
    small, config = theirs.config, ours.config
    assert config == replace(
        small,
        preprocess=replace(small.preprocess, shortest=config.preprocess.shortest, longest=config.preprocess.longest),
        rpn=replace(small.rpn, post_nms_top_n=1000),
        detection=replace(small.detection, max_detections=300 if fixture == "lvis" else 100),
    )
    assert (config.preprocess.shortest, config.preprocess.longest) == (
        (1024, 2048) if fixture == "cityscapes" else (800, 1333)
    )


def test_settings_survive_a_reader_of_yaml(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    for entry in zoo().values():
        hub._write_json(path, entry.settings)
        assert yaml.safe_load(path.read_text()) == entry.settings, entry.name


def test_no_such_name() -> None:
    with pytest.raises(InputError, match="no such name in the zoo; found coco-r50-fnp; expected coco-r50-fpn or "):
        find("coco-r50-fnp")
    with pytest.raises(InputError, match="found ///; expected a name that `maskrcnn weights list` shows"):
        find("///")


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["voc"], ["voc-faster-r50-c4"]),
        (["TorchVision", "keypoint"], ["torchvision-keypoint-r50-fpn", "torchvision-keypoint-r50-fpn-legacy"]),
        (["cascade", "detectron2"], ["coco-cascade-r50-fpn", "coco-cascade-r50-fpn-1x"]),
        (["no such thing"], []),
    ],
)
def test_search(words: list[str], names: list[str]) -> None:
    assert [entry.name for entry in search(words)] == names


def test_search_for_nothing_finds_all() -> None:
    found: list[Entry] = search([])
    assert found == list(zoo().values())
