"""Entries of the zoo fetched into a cache: verified, recorded, once, and never a bad file under a good name."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskrcnn.errors import InputError
from maskrcnn.weights import hub
from maskrcnn.weights.download import Patience
from maskrcnn.weights.zoo import Entry, find

BODY = np.random.RandomState(0).bytes(300_000)
SHA256, MD5 = hashlib.sha256(BODY).hexdigest(), hashlib.md5(BODY).hexdigest()
HASTY = Patience(tries=2, sleep=lambda seconds: None)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv(hub.CACHE_VARIABLE, str(folder))
    return folder


@pytest.fixture
def entry(server: Any, page: Any) -> Entry:
    """An entry with settings that the server on loopback has."""
    server.pages["/zoo/model.pkl"] = page(BODY)
    known = find("coco-r50-fpn")
    return replace(known, url=server.url("/zoo/model.pkl"), algorithm="sha256", digest=SHA256, size=len(BODY))


def leftovers(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if path.is_file())


def test_it_lands_in_the_cache_with_record_and_settings(entry: Entry, cache: Path, server: Any) -> None:
    seen: list[tuple[int, int | None]] = []
    path = hub.get(entry, progress=lambda done, total: seen.append((done, total)))
    assert path == cache / "weights" / "coco-r50-fpn" / "model.pkl" == hub.place(entry)
    assert path.read_bytes() == BODY
    assert seen[-1] == (len(BODY), len(BODY))
    assert leftovers(cache) == ["config.yaml", "model.pkl", "model.pkl.json"]
    assert json.loads((path.parent / "model.pkl.json").read_text()) == {
        "name": "coco-r50-fpn",
        "url": server.url("/zoo/model.pkl"),
        "licence": "CC BY-SA 3.0",
        "source": "https://github.com/facebookresearch/detectron2/blob/main/MODEL_ZOO.md",
        "bytes": len(BODY),
        "sha256": SHA256,
        "verified_by": ["size 300000 bytes", f"sha256 {SHA256} (its file name)"],
    }
    assert json.loads((path.parent / "config.yaml").read_text()) == entry.settings


def test_a_second_time_nobody_is_asked(entry: Entry, cache: Path, server: Any) -> None:
    assert not hub.is_here(entry)
    first = hub.get(entry)
    server.stop()
    assert hub.get(entry) == first
    assert hub.is_here(entry)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("facts", "verified_by"),
    [
        ({"algorithm": "md5", "digest": MD5[:6]}, ["size 300000 bytes", f"md5 {MD5[:6]}... (its file name)"]),
        ({"digest": SHA256[:8], "size": None}, [f"sha256 {SHA256[:8]}... (its file name)"]),
        ({"digest": None, "size": len(BODY) + 400, "size_slack": 525}, ["size 0.286 MiB"]),
        ({"digest": None, "size": None}, []),
    ],
)
def test_it_is_verified_by_what_is_known(entry: Entry, cache: Path, facts: Any, verified_by: list[str]) -> None:
    noted = hub.record(hub.get(replace(entry, **facts)))
    assert (noted["verified_by"], noted["sha256"]) == (verified_by, SHA256)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (
            {"digest": "0" * 64},
            f"sha256: not the published file; found {SHA256}; expected {'0' * 64}... (its file name)",
        ),
        (
            {"algorithm": "md5", "digest": "abcdef"},
            f"md5: not the published file; found {MD5}; expected abcdef... (its",
        ),
        ({"size": 299_999}, "bytes: not of the published size; found 300000; expected 299999"),
        ({"size": 299_000, "size_slack": 999}, "found 300000; expected 299000 give or take 999"),
    ],
)
def test_another_file_than_the_published_one(
    entry: Entry, cache: Path, server: Any, facts: dict[str, Any], message: str
) -> None:
    wrong = replace(entry, **facts)
    with pytest.raises(InputError) as caught:
        hub.get(wrong)
    assert str(caught.value).startswith(server.url("/zoo/model.pkl: "))
    assert message in str(caught.value)
    assert leftovers(cache) == []
    assert hub.get(entry).read_bytes() == BODY  # nothing of it stands in the way


def test_a_broken_download_is_gone_on_with_by_the_next_call(entry: Entry, cache: Path, server: Any, page: Any) -> None:
    server.pages["/zoo/model.pkl"] = page(BODY, breaks=[1000])
    with pytest.raises(InputError, match="broke off after 1000 of 300000 bytes"):
        hub.get(entry, patience=Patience(tries=1))
    assert not hub.is_here(entry)
    assert hub.get(entry).read_bytes() == BODY
    assert server.ranges == [None, "bytes=1000-"]
    assert leftovers(cache) == ["config.yaml", "model.pkl", "model.pkl.json"]


def test_a_file_put_there_by_hand(entry: Entry, cache: Path, server: Any) -> None:
    path = hub.place(entry)
    path.parent.mkdir(parents=True)
    path.write_bytes(BODY)
    assert hub.get(entry) == path
    assert hub.record(path)["sha256"] == SHA256
    assert server.requests == []


@pytest.mark.parametrize("was_recorded", [True, False])
def test_a_wrong_file_in_the_cache_is_told_of_and_left_alone(
    entry: Entry, cache: Path, server: Any, was_recorded: bool
) -> None:
    path = hub.place(entry)
    if was_recorded:
        hub.get(entry)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(BODY[:1000])
    asked = len(server.requests)
    with pytest.raises(InputError) as caught:
        hub.get(entry)
    assert str(caught.value) == f"{path}: bytes: not of the published size; found 1000; expected 300000"
    assert path.read_bytes() == BODY[:1000]
    assert len(server.requests) == asked


def test_a_record_that_was_damaged(entry: Entry, cache: Path, server: Any) -> None:
    path = hub.get(entry)
    for text in ("{", "[]", ""):
        (path.parent / "model.pkl.json").write_text(text)
        assert hub.get(entry) == path
        assert hub.record(path)["sha256"] == SHA256
    assert len(server.requests) == 1


def test_threads_download_once(entry: Entry, cache: Path, server: Any) -> None:
    got: list[Path] = []
    threads = [threading.Thread(target=lambda: got.append(hub.get(entry))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [hub.place(entry)] * 4
    assert len(server.requests) == 1


def test_processes_download_once(entry: Entry, cache: Path, server: Any) -> None:
    code = (
        "import sys; from dataclasses import replace; from maskrcnn.weights import hub; "
        "entry = replace(hub.find('coco-r50-fpn'), url=sys.argv[1], algorithm='sha256', digest=sys.argv[2]); "
        "print(hub.get(entry))"
    )
    command = [sys.executable, "-c", code, entry.url, SHA256]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [process.communicate()[0] for process in processes]
    assert outputs == [f"{hub.place(entry)}\n"] * 3
    assert len(server.requests) == 1
    assert leftovers(cache) == ["config.yaml", "model.pkl", "model.pkl.json"]


def test_one_that_waits_sees_how_far_the_other_is(entry: Entry, cache: Path) -> None:
    part = hub.partial_path(hub.place(entry))
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(1234))
    seen: list[tuple[int, int | None]] = []
    hub._watch(hub.place(entry), lambda done, total: seen.append((done, total)))()
    assert seen == [(1234, None)]


def test_a_mirror(entry: Entry, cache: Path, server: Any, page: Any) -> None:
    server.pages["/mirrored/detectron2/model.pkl"] = page(BODY)
    known = replace(entry, url="https://publisher.invalid/detectron2/model.pkl")
    path = hub.get(known, mirror=server.url("/mirrored/"))
    assert hub.record(path)["url"] == server.url("/mirrored/detectron2/model.pkl")


def test_names(cache: Path, server: Any, page: Any) -> None:
    """By name the published hash holds: what a mirror has in its place does not get through."""
    assert hub.is_known("coco-r50-fpn") and not hub.is_known("coco-r50-fpn.pkl")
    server.pages["/matterport/Mask_RCNN/releases/download/v2.0/mask_rcnn_coco.h5"] = page(BODY)
    with pytest.raises(InputError, match="not of the published size; found 300000; expected 257557808"):
        hub.get("matterport-r101-fpn", mirror=server.url())
    with pytest.raises(InputError, match="no such name in the zoo; found nothing-such"):
        hub.get("nothing-such")
    assert leftovers(cache) == []


def test_offline_is_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_name(*args: object, **kwargs: object) -> Any:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", no_name)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    with pytest.raises(InputError) as caught:
        hub.get("torchvision-r50-fpn")
    file = "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"
    place = cache / "weights" / "torchvision-r50-fpn" / file
    assert str(caught.value) == (
        f"https://download.pytorch.org/models/{file}: cannot be downloaded; "
        "found Temporary failure in name resolution: no network?; "
        f"expected the file; one fetched by other means can be put at {place}"
    )


def test_resolve_says_that_it_downloads(
    entry: Entry, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub, "find", lambda name: entry)
    path = hub.resolve("coco-r50-fpn")
    assert path.read_bytes() == BODY
    said = f"downloading coco-r50-fpn (Detectron2; licence: CC BY-SA 3.0) to {path}\n"
    assert capsys.readouterr() == ("", said)
    assert hub.resolve("coco-r50-fpn") == path
    assert capsys.readouterr() == ("", "")


def test_resolve_shows_people_how_far_it_is(
    entry: Entry, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub, "find", lambda name: entry)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    hub.resolve("coco-r50-fpn")
    assert capsys.readouterr().err.endswith("\r0 of 0 MB\n")  # it is small


# --- the cache folder -------------------------------------------------------------------------------------------------


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (hub.CACHE_VARIABLE, "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(sys, "platform", "linux")
    assert hub.cache_folder() == tmp_path / ".cache" / "maskrcnn"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert hub.cache_folder() == tmp_path / ".cache" / "maskrcnn"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert hub.cache_folder() == tmp_path / "xdg" / "maskrcnn"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert hub.cache_folder() == tmp_path / "Library" / "Caches" / "maskrcnn"
    monkeypatch.setattr(sys, "platform", "win32")
    assert hub.cache_folder() == tmp_path / "AppData" / "Local" / "maskrcnn" / "Cache"
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert hub.cache_folder() == tmp_path / "local" / "maskrcnn" / "Cache"
    monkeypatch.setenv(hub.CACHE_VARIABLE, str(tmp_path / "own"))
    assert hub.cache_folder() == tmp_path / "own"
    monkeypatch.setenv(hub.CACHE_VARIABLE, "here")
    assert hub.cache_folder() == Path.cwd() / "here"
    monkeypatch.setenv(hub.CACHE_VARIABLE, "")
    assert hub.cache_folder() == tmp_path / "local" / "maskrcnn" / "Cache"


def test_a_file_stands_where_the_cache_should_be(entry: Entry, cache: Path, server: Any) -> None:
    cache.write_text("not a folder")
    with pytest.raises(InputError, match="cannot be written; found .*; expected a folder .*; MASKRCNN_CACHE names"):
        hub.get(entry)
    assert server.requests == []


@pytest.mark.skipif(sys.platform == "win32", reason="folders have no write bit there")
def test_a_cache_that_may_only_be_read(entry: Entry, server: Any) -> None:
    with tempfile.TemporaryDirectory() as folder, _nobody_in_particular(Path(folder)):
        shared = Path(folder)
        path = hub.get(entry, cache=shared)
        for place in (path.parent, path.parent.parent, shared):
            place.chmod(0o555)
        assert hub.get(entry, cache=shared) == path
        other = replace(entry, name="other")
        with pytest.raises(InputError) as caught:
            hub.get(other, cache=shared)
        for place in (shared, path.parent.parent, path.parent):
            place.chmod(0o755)
    assert str(caught.value) == (
        f"{hub.place(other, shared).parent}: cannot be written; found Permission denied; "
        "expected a folder that can be written to; MASKRCNN_CACHE names another"
    )
    assert len(server.requests) == 1


@contextmanager
def _nobody_in_particular(folder: Path) -> Iterator[None]:
    """Root may write anywhere: it works as somebody else, who owns the folder, meanwhile."""
    if os.geteuid() != 0:
        yield
        return
    os.chown(folder, 65534, 65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
