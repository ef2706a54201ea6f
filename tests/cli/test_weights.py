"""Public checkpoints listed and fetched; foreign ones converted; what a file holds."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import detection as tv
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from maskrcnn.cli.main import main
from maskrcnn.weights import backbones, hub, zoo
from maskrcnn.weights.files import read_checkpoint
from maskrcnn.weights.opening import load_model

SHA256 = hashlib.sha256(b"weights").hexdigest()
ZOO = [
    {
        "framework": "Elsewhere",
        "licence": "CC BY-SA 3.0",
        "page": "https://elsewhere.invalid/zoo",
        "base": "https://elsewhere.invalid/files/",
        "digest": {"algorithm": "sha256", "told_by": "its file name", "pattern": "-([0-9a-f]{8})\\.pth$"},
        "common": {},
        "settings": {},
        "entries": [
            {"name": "good", "published": "g", "kind": "mask", "data": "COCO", "path": f"good-{SHA256[:8]}.pth"},
            {"name": "bad", "published": "b", "kind": "mask", "data": "COCO", "path": "bad-00000000.pth"},
        ],
    }
]


def weights(*args: object) -> int:
    return main(["weights", *map(str, args)])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(hub.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


# --- list -------------------------------------------------------------------------------------------------------------


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert weights("list") == 0
    lines = capsys.readouterr().out.splitlines()
    heads = [line for line in lines if not line.startswith(" ")]
    assert heads == [
        "Detectron2 (licence: CC BY-SA 3.0)",
        "torchvision (licence: not stated for the weights; code: BSD-3-Clause)",
        "MMDetection (licence: not stated for the weights; code: Apache-2.0)",
        "Matterport (licence: not stated for the weights; code: MIT)",
    ]
    assert len(lines) == len(zoo.zoo()) + 2 * len(heads)
    assert ["coco-r50-fpn", "41.0", "37.2", "COCO"] in [line.split() for line in lines]
    assert max(map(len, lines)) <= 80


def test_list_of_what_has_these_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert weights("list", "torchvision", "keypoint") == 0
    assert capsys.readouterr().out == (
        "torchvision (licence: not stated for the weights; code: BSD-3-Clause)\n"
        "  name                                   box   mask  keyp.    MB  data\n"
        "  torchvision-keypoint-r50-fpn          54.6          65.0   237  COCO\n"
        "  torchvision-keypoint-r50-fpn-legacy   50.6          61.1   237  COCO\n"
    )


def test_list_as_json(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert weights("list", "matterport", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert [fact["name"] for fact in facts] == ["matterport-r101-fpn"]
    assert facts[0]["size"] == 257557808
    assert facts[0]["file"] == str(cache / "weights" / "matterport-r101-fpn" / "mask_rcnn_coco.h5")
    assert facts[0]["is_here"] is False


def test_list_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert weights("list", "no", "such") == 1
    assert capsys.readouterr().err == "error: WORD: nothing has all these words; found no such\n"


# --- get --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that has the files of a zoo of two, one of them not what was published."""
    path = tmp_path / "zoo.json"
    path.write_text(json.dumps(ZOO))
    monkeypatch.setattr(zoo, "ZOO", path)
    zoo.zoo.cache_clear()
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "served" / "files"
    folder.mkdir(parents=True)
    for name in (f"good-{SHA256[:8]}.pth", "bad-00000000.pth"):
        (folder / name).write_bytes(b"weights")
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *args: None)
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder.parent))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()
    zoo.zoo.cache_clear()


def test_get(mirror: str, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = cache / "weights" / "good" / f"good-{SHA256[:8]}.pth"
    said = (
        "good: licence CC BY-SA 3.0; see https://elsewhere.invalid/zoo\n"
        f"good: verified by sha256 {SHA256[:8]}... (its file name); sha256 {SHA256}\n"
    )
    for server in (mirror, "http://127.0.0.1:9"):  # a second time nobody is asked
        assert weights("get", "good", "--mirror", server) == 0
        assert capsys.readouterr() == (f"{path}\n", said)
    assert path.read_bytes() == b"weights"
    assert weights("list") == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown if line.endswith(", in the cache")] == ["good"]


def test_get_of_another_file_than_the_published(mirror: str, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert weights("get", "bad", "--mirror", mirror) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        f"error: {mirror}/files/bad-00000000.pth: sha256: not the published file; found {SHA256}; "
        "expected 00000000... (its file name)\n"
    )
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_get_of_an_unknown_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert weights("get", "coco-r50-ffn") == 1
    assert capsys.readouterr().err.startswith(
        "error: weights: no such name in the zoo; found coco-r50-ffn; expected coco-"
    )


def test_get_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert weights("get") == 2
    assert capsys.readouterr().err.startswith("error: NAME: no name given")


def test_get_a_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(backbones, "get", lambda name: tmp_path / name)
    assert weights("get", "timm:resnet50") == 0
    assert capsys.readouterr() == (f"{tmp_path / 'resnet50'}\n", "timm:resnet50: licence apache-2.0\n")


# --- convert and show -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Mask R-CNN of torchvision with random weights for four classes."""
    torch.manual_seed(0)
    body = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    path = tmp_path_factory.mktemp("foreign") / "theirs.pth"
    torch.save(tv.MaskRCNN(body, num_classes=5).state_dict(), path)
    return path


def test_convert(foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "ours.safetensors"
    assert weights("convert", foreign, out) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == str(out)
    assert "family: torchvision" in lines
    assert "classes (4): 1, 2, 3, 4" in lines
    assert "licence: unknown" in lines
    assumed = [line.removeprefix("assumed: ") for line in lines if line.startswith("assumed: ")]
    assert assumed
    config, state, metadata = read_checkpoint(out)
    assert metadata["family"] == "torchvision"
    assert metadata["assumed"] == assumed
    theirs = load_model(foreign)
    assert config == theirs.config
    assert all(torch.equal(tensor, state[name]) for name, tensor in theirs.state_dict().items())


def test_convert_to_half_the_bytes(foreign: Path, tmp_path: Path) -> None:
    out, small = tmp_path / "ours.safetensors", tmp_path / "small.safetensors"
    assert weights("convert", foreign, out) == 0
    assert weights("convert", out, small, "--dtype", "float16") == 0
    assert small.stat().st_size < 0.51 * out.stat().st_size
    assert read_checkpoint(small).config == read_checkpoint(out).config


def test_convert_with_a_config(foreign: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"detection": {"score_threshold": 0.25}}))
    out = tmp_path / "ours.safetensors"
    assert weights("convert", foreign, out, "--config", config) == 0
    assert read_checkpoint(out).config.detection.score_threshold == 0.25


def test_convert_does_not_overwrite(foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "ours.safetensors"
    out.write_bytes(b"precious")
    assert weights("convert", foreign, out) == 1
    assert capsys.readouterr().err == f"error: {out}: is there already; expected another name, or --force\n"
    assert out.read_bytes() == b"precious"
    assert weights("convert", foreign, out, "--force") == 0
    assert read_checkpoint(out).metadata["family"] == "torchvision"


def test_convert_leaves_nothing_of_a_bad_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.pth"
    torch.save({"backbone.body.conv1.weight": torch.zeros(2)}, bad)
    assert weights("convert", bad, tmp_path / "ours.safetensors") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {bad}: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.pth"]


def test_convert_to_another_kind_of_name(foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert weights("convert", foreign, tmp_path / "ours.pth") == 2
    assert "expected OUT.safetensors" in capsys.readouterr().err


def test_a_converted_file_of_the_zoo_keeps_its_licence(
    foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = zoo.find("torchvision-r50-fpn")
    path = tmp_path / "theirs.pth"
    path.write_bytes(foreign.read_bytes())
    path.with_name("theirs.pth.json").write_text(json.dumps({"licence": entry.licence, "url": entry.url}))
    assert weights("convert", path, tmp_path / "ours.safetensors") == 0
    metadata: dict[str, Any] = read_checkpoint(tmp_path / "ours.safetensors").metadata
    assert (metadata["licence"], metadata["source"]) == (entry.licence, entry.url)
    assert f"licence: {entry.licence}" in capsys.readouterr().out.splitlines()


def test_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert weights("show", "nuclei") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "family: maskrcnn",
        "backbone: resnet18; parts: preprocess, backbone, fpn, rpn, roi_pooler, box_head, mask_head, detection",
        "classes (1): nucleus",
        "licence: Apache-2.0",
    ]


def test_show_as_json(foreign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert weights("show", foreign, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["family"] == "torchvision"
    assert shown["config"]["class_names"] == ["1", "2", "3", "4"]
    assert shown["assumed"]


def test_show_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert weights("show", tmp_path / "nothing.pth") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'nothing.pth'}: ")
