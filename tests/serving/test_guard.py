"""Requests of other pages and for other hosts are refused before anything is read; headers keep the page to itself."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from maskrcnn.serving.guard import Guard


async def inner(scope: Any, receive: Any, send: Any) -> None:
    headers = [(b"content-security-policy", b"its own")] if scope["path"] == "/own" else []
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


def ask(
    method: str = "GET", path: str = "/", bound: str = "127.0.0.1", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("the body was read")

    async def send(message: Any) -> None:
        sent.append(message)

    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": pairs}
    asyncio.run(Guard(inner, bound)(scope, receive, send))
    start, body = sent
    return start["status"], {k.decode(): v.decode() for k, v in start["headers"]}, body["body"]


@pytest.mark.parametrize(
    ("bound", "host", "status"),
    [
        ("127.0.0.1", "127.0.0.1:8000", 200),
        ("127.0.0.1", "localhost:8000", 200),
        ("127.0.0.1", "LOCALHOST", 200),
        ("127.0.0.1", "[::1]:8000", 200),
        ("127.0.0.1", "evil.example", 400),
        ("127.0.0.1", "127.0.0.1.evil.example:8000", 400),
        ("127.0.0.1", "192.168.1.5:8000", 400),
        ("192.168.1.5", "192.168.1.5:8000", 200),
        ("lab.example", "Lab.Example:8000", 200),
        ("lab.example", "other.example:8000", 400),
        ("0.0.0.0", "lab.example:8000", 200),
        ("::", "[fe80::1]:8000", 200),
        ("0.0.0.0", "", 400),
    ],
)
def test_host_names(bound: str, host: str, status: int) -> None:
    headers = {"host": host} if host else {}
    assert ask(bound=bound, **headers)[0] == status


@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),  # no browser
        ({"origin": "http://localhost:8000", "sec_fetch_site": "same-origin"}, 200),
        ({"origin": "http://localhost:8000"}, 200),
        ({"sec_fetch_site": "none"}, 200),  # typed by the user
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://localhost:9000"}, 403),
        ({"origin": "http://127.0.0.1:8000"}, 403),
        ({"origin": "null"}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "same-site"}, 403),
    ],
)
def test_other_pages_change_nothing(method: str, headers: dict[str, str], status: int) -> None:
    found, _, body = ask(method, host="localhost:8000", **headers)
    assert found == status
    if status == 403:
        assert json.loads(body) == {"error": "the request comes from another page; expected this server's own"}


def test_reading_is_open_to_links() -> None:
    assert ask(host="localhost:8000", sec_fetch_site="cross-site")[0] == 200


def test_headers_are_added_to_answers_and_refusals_and_leave_those_that_are_there() -> None:
    for headers in (ask(host="localhost")[1], ask(host="evil.example")[1]):
        assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert ask(path="/own", host="localhost")[1]["content-security-policy"] == "its own"


def test_web_sockets_are_closed() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Guard(inner, "127.0.0.1")({"type": "websocket", "headers": []}, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]
