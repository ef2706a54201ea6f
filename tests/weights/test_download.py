"""One file over HTTP, from a server on loopback that breaks off, forgets, changes its mind or is not there."""

from __future__ import annotations

import os
import socket
import urllib.request
from http.client import HTTPMessage
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import numpy as np
import pytest

from maskrcnn.errors import InputError
from maskrcnn.weights import download as module
from maskrcnn.weights.download import Patience, download

BODY = np.random.RandomState(0).bytes(700_000)  # more than two chunks
OTHER = np.random.RandomState(1).bytes(700_000)  # as long: no length gives away what was put together wrongly


class Sleeper:
    """Waits no time, notes how long it should have been, and does something meanwhile."""

    def __init__(self, meanwhile: Any = None) -> None:
        self.waits: list[float] = []
        self.meanwhile = meanwhile

    def __call__(self, seconds: float) -> None:
        self.waits.append(seconds)
        if self.meanwhile is not None:
            self.meanwhile()


def hasty(**changes: Any) -> Patience:
    return Patience(**{"sleep": Sleeper(), "timeout": 5.0, **changes})


def refused(url: str, path: Path, **changes: Any) -> str:
    """The message of the error that downloading ends with: one line."""
    with pytest.raises(InputError) as caught:
        download(url, path, patience=hasty(**changes))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "weights.bin"


def test_plain(server: Any, page: Any, target: Path) -> None:
    server.pages["/f"] = page(BODY)
    seen: list[tuple[int, int | None]] = []
    download(server.url("/f"), target, progress=lambda done, total: seen.append((done, total)))
    assert target.read_bytes() == BODY
    assert seen[0] == (0, len(BODY)) and seen[-1] == (len(BODY), len(BODY))
    assert seen == sorted(seen) and len(seen) > 3
    assert os.listdir(target.parent) == [target.name]
    assert server.requests[0]["User-Agent"].startswith("maskrcnn/")


def test_an_empty_file(server: Any, page: Any, target: Path) -> None:
    server.pages["/f"] = page(b"")
    download(server.url("/f"), target)
    assert target.read_bytes() == b""


def test_it_goes_on_where_the_connection_broke_off(server: Any, page: Any, target: Path) -> None:
    server.pages["/f"] = page(BODY, breaks=[300_001, 100_000])
    patience = hasty()
    download(server.url("/f"), target, patience=patience)
    assert target.read_bytes() == BODY
    assert server.ranges == [None, "bytes=300001-", "bytes=400001-"]
    assert [headers["If-Range"] for headers in server.requests] == [None, '"1"', '"1"']
    assert patience.sleep.waits == [1.0, 1.0]  # each try brought something


def test_a_later_call_goes_on_too(server: Any, page: Any, target: Path) -> None:
    server.pages["/f"] = page(BODY, breaks=[1000])
    assert "the connection broke off after 1000 of 700000 bytes" in refused(server.url("/f"), target, tries=1)
    assert not target.exists()
    download(server.url("/f"), target)
    assert target.read_bytes() == BODY
    assert server.ranges == [None, "bytes=1000-"]
    assert os.listdir(target.parent) == [target.name]


def test_a_server_that_knows_no_ranges_sends_all_again(server: Any, page: Any, target: Path) -> None:
    server.pages["/f"] = page(BODY, breaks=[1000, 500, 2000], ranges=False)
    download(server.url("/f"), target, patience=hasty())
    assert target.read_bytes() == BODY
    assert server.ranges == [None, "bytes=1000-", "bytes=500-", "bytes=2000-"]


def test_a_server_that_always_breaks_off_is_given_up(server: Any, page: Any, target: Path) -> None:
    server.pages["/f"] = page(BODY, breaks=[1000] * 50, ranges=False)
    patience = hasty(tries=3)
    with pytest.raises(InputError, match="broke off after 1000 of 700000 bytes"):
        download(server.url("/f"), target, patience=patience)
    assert patience.sleep.waits == [1.0, 2.0]


@pytest.mark.parametrize("if_range", [True, False])
def test_parts_of_two_versions_are_not_put_together(server: Any, page: Any, target: Path, if_range: bool) -> None:
    server.pages["/f"] = page(BODY, breaks=[1000])

    def change() -> None:
        server.pages["/f"] = page(OTHER, etag='"2"', if_range=if_range)

    download(server.url("/f"), target, patience=hasty(sleep=Sleeper(change)))
    assert target.read_bytes() == OTHER
    assert server.ranges[:2] == [None, "bytes=1000-"]


@pytest.mark.parametrize(
    ("headers", "validator"),
    [
        ({"etag": None}, None),
        ({"etag": 'W/"1"'}, None),
        ({"etag": 'W/"1"', "modified": "Tue, 01 Oct 2019 10:00:00 GMT"}, "Tue, 01 Oct 2019 10:00:00 GMT"),
    ],
)
def test_nothing_is_put_together_on_trust(
    server: Any, page: Any, target: Path, headers: dict[str, Any], validator: str | None
) -> None:
    server.pages["/f"] = page(BODY, breaks=[1000], **headers)
    download(server.url("/f"), target, patience=hasty())
    assert target.read_bytes() == BODY
    assert server.requests[1]["If-Range"] == validator
    assert server.ranges[1] == (None if validator is None else "bytes=1000-")


def test_a_server_that_sends_another_range(server: Any, page: Any, target: Path) -> None:
    server.pages["/f"] = page(BODY, breaks=[1000], late=5)
    download(server.url("/f"), target, patience=hasty())
    assert target.read_bytes() == BODY
    assert server.ranges == [None, "bytes=1000-", None]


def test_another_url_does_not_go_on_with_the_part_of_the_first(server: Any, page: Any, target: Path) -> None:
    server.pages["/f"] = page(BODY, breaks=[1000])
    server.pages["/g"] = page(OTHER)
    refused(server.url("/f"), target, tries=1)
    download(server.url("/g"), target)
    assert target.read_bytes() == OTHER
    assert server.ranges == [None, None]


def test_a_part_that_is_longer_than_the_file(server: Any, page: Any, target: Path) -> None:
    server.pages["/f"] = page(BODY, breaks=[1000])
    refused(server.url("/f"), target, tries=1)
    with module.partial_path(target).open("ab") as stream:
        stream.write(bytes(len(BODY)))
    download(server.url("/f"), target)
    assert target.read_bytes() == BODY
    assert server.ranges == [None, "bytes=701000-", None]


def test_stopped_between_the_last_byte_and_the_check(server: Any, page: Any, target: Path) -> None:
    server.pages["/f"] = page(BODY)

    def stop(path: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(server.url("/f"), target, check=stop)
    assert not target.exists()
    download(server.url("/f"), target)
    assert target.read_bytes() == BODY
    assert len(server.requests) == 1


def test_a_file_that_is_refused_leaves_nothing_and_harms_nothing(server: Any, page: Any, target: Path) -> None:
    server.pages["/f"] = page(BODY)
    target.write_bytes(b"what was there before")

    def refuse(path: Path) -> None:
        assert path.read_bytes() == BODY
        raise InputError("is bad")

    with pytest.raises(InputError, match="is bad"):
        download(server.url("/f"), target, check=refuse)
    assert target.read_bytes() == b"what was there before"
    assert os.listdir(target.parent) == [target.name]
    assert len(server.requests) == 1


def test_what_is_refused_after_going_on_gets_a_second_chance(server: Any, page: Any, target: Path) -> None:
    server.pages["/f"] = page(BODY, breaks=[1000])
    refused(server.url("/f"), target, tries=1)
    module.partial_path(target).write_bytes(bytes(1000))  # not what the server sent

    def check(path: Path) -> None:
        if path.read_bytes() != BODY:
            raise InputError("is bad")

    download(server.url("/f"), target, check=check)
    assert target.read_bytes() == BODY
    assert server.ranges == [None, "bytes=1000-", None]


@pytest.mark.parametrize("status", [403, 404, 410])
def test_what_is_not_there_is_asked_for_once(server: Any, page: Any, target: Path, status: int) -> None:
    server.pages["/f"] = page(statuses=[status] * 9)
    message = refused(server.url("/f"), target)
    assert message.startswith(f"{server.url('/f')}: cannot be downloaded; found {status} ")
    assert message.endswith(f"can be put at {target}")
    assert len(server.requests) == 1
    assert os.listdir(target.parent) == []


def test_a_server_that_fails_at_first(server: Any, page: Any, target: Path) -> None:
    server.pages["/f"] = page(BODY, statuses=[500, 503, 429])
    patience = hasty(wait=0.5)
    download(server.url("/f"), target, patience=patience)
    assert target.read_bytes() == BODY
    assert patience.sleep.waits == [0.5, 1.0, 2.0]


def test_a_server_that_fails_for_good(server: Any, page: Any, target: Path) -> None:
    server.pages["/f"] = page(BODY, statuses=[500] * 9)
    assert "found 500 Internal Server Error" in refused(server.url("/f"), target, tries=4)
    assert len(server.requests) == 4


def test_a_redirect(server: Any, page: Any, target: Path) -> None:
    server.pages["/f"] = page(location="/g")
    server.pages["/g"] = page(BODY, breaks=[1000])
    download(server.url("/f"), target, patience=hasty())
    assert target.read_bytes() == BODY
    assert server.ranges == [None, None, "bytes=1000-", "bytes=1000-"]  # asked of both servers


@pytest.mark.parametrize("location", ["file:///etc/hostname", "ftp://127.0.0.1/f", "data:text/plain,x"])
def test_a_redirect_to_something_else(server: Any, page: Any, target: Path, location: str) -> None:
    server.pages["/f"] = page(location=location)
    message = refused(server.url("/f"), target)
    assert "found 302" in message and location.split(":")[0] in message
    assert os.listdir(target.parent) == []


def test_a_redirect_in_a_circle(server: Any, page: Any, target: Path) -> None:
    server.pages["/f"] = page(location="/f")
    assert "found 302" in refused(server.url("/f"), target)


def test_no_redirect_from_https_to_http() -> None:
    handler = module._Redirects()
    request = urllib.request.Request("https://host/f")
    with pytest.raises(HTTPError, match="a redirect to http://host/f"):
        handler.redirect_request(request, _Nothing(), 302, "Found", HTTPMessage(), "http://host/f")
    assert handler.redirect_request(request, _Nothing(), 302, "Found", HTTPMessage(), "https://host/g") is not None


def test_another_kind_of_address(tmp_path: Path, target: Path) -> None:
    (tmp_path / "there").write_bytes(BODY)
    message = refused((tmp_path / "there").as_uri(), target)
    assert "an address of another kind than http and https" in message


def test_a_web_page_is_no_file(server: Any, page: Any, target: Path) -> None:
    server.pages["/f"] = page(b"<html>please log in</html>", kind="text/html; charset=utf-8")
    assert "found a web page in its place" in refused(server.url("/f"), target)
    assert len(server.requests) == 1
    assert os.listdir(target.parent) == []


def test_no_server(server: Any, target: Path) -> None:
    server.stop()
    sleeper = Sleeper()
    message = refused(server.url("/f"), target, sleep=sleeper)
    assert message.startswith(f"{server.url('/f')}: cannot be downloaded; found ")
    assert "refused" in message and str(target) in message
    assert sleeper.waits == [1.0, 2.0, 4.0, 8.0]


def test_no_network_is_seen_at_once(server: Any, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", no_name)
    sleeper = Sleeper()
    message = refused("http://example.org/f", target, sleep=sleeper)
    assert message == (
        "http://example.org/f: cannot be downloaded; found Name or service not known: no network?; "
        f"expected the file; one fetched by other means can be put at {target}"
    )
    assert sleeper.waits == []


def test_a_network_that_goes_away_meanwhile_is_waited_for(
    server: Any, page: Any, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.pages["/f"] = page(BODY, breaks=[1000])
    answers = [socket.getaddrinfo, no_name, no_name]  # there is a network, then none for two tries
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: (answers.pop(0) if answers else real)(*args))
    download(server.url("/f"), target, patience=hasty())
    assert target.read_bytes() == BODY
    assert answers == []


def test_no_room(server: Any, page: Any, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.pages["/f"] = page(BODY)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 699_999})())
    with pytest.raises(InputError, match="no room for the file; found 699999 bytes; expected 700000 bytes"):
        download(server.url("/f"), target)
    assert not target.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_a_disk_that_fills_up_is_not_taken_for_a_broken_connection(server: Any, page: Any, target: Path) -> None:
    server.pages["/f"] = page(BODY)
    module.partial_path(target).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        download(server.url("/f"), target)
    assert len(server.requests) == 1
    assert not target.exists()


class _Nothing:
    """A body that holds nothing."""

    def close(self) -> None: ...


def no_name(*args: object, **kwargs: object) -> Any:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
