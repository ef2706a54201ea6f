"""A server of files on loopback that misbehaves as it is told."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@dataclass
class Page:
    """A file, and how it is served.

    etag, modified: headers, sent unless None. statuses: answers to the first requests, in place of the file.
    breaks: for the first requests after those, the number of bytes after which the connection is closed.
    ranges: whether Range is known; if_range: whether If-Range is. late: bytes by which a range begins later than asked.
    location: of a redirect, in place of the file.
    """

    body: bytes = b""
    etag: str | None = '"1"'
    modified: str | None = None
    statuses: list[int] = field(default_factory=list)
    breaks: list[int] = field(default_factory=list)
    ranges: bool = True
    if_range: bool = True
    late: int = 0
    location: str | None = None
    kind: str = "application/octet-stream"


class FileServer:
    """pages: by path. requests: headers of each request so far. url: of a path."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.requests: list[Message] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def url(self, path: str = "") -> str:
        return f"http://127.0.0.1:{self._server.server_port}{path}"

    @property
    def ranges(self) -> list[str | None]:
        """What each request asked for; None for all."""
        return [headers["Range"] for headers in self.requests]

    def stop(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        pages, requests = self.pages, self.requests

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                requests.append(self.headers)
                page = pages.get(self.path)
                if page is None:
                    self.send_error(404)
                elif page.statuses:
                    self.send_error(page.statuses.pop(0))
                elif page.location is not None:
                    self.send_response(302)
                    self.send_header("Location", page.location)
                    self.end_headers()
                else:
                    self._send(page)

            def _send(self, page: Page) -> None:
                wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
                is_same = self.headers["If-Range"] in (None, page.etag, page.modified) or not page.if_range
                start = int(wanted[1]) + page.late if wanted and page.ranges and is_same else 0
                if start >= len(page.body) > 0:
                    self.send_error(416)
                    return
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(page.body) - 1}/{len(page.body)}")
                self.send_header("Content-Length", str(len(page.body) - start))
                self.send_header("Content-Type", page.kind)
                for name, value in (("ETag", page.etag), ("Last-Modified", page.modified)):
                    if value is not None:
                        self.send_header(name, value)
                self.end_headers()
                end = start + page.breaks.pop(0) if page.breaks else len(page.body)
                self.wfile.write(page.body[start:end])

            def log_message(self, *args: object) -> None:
                """Says nothing."""

        return Handler


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A file server on loopback, asked without a proxy."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = FileServer()
    yield server
    server.stop()


@pytest.fixture
def page() -> type[Page]:
    """The class of what the server serves."""
    return Page
