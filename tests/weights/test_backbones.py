"""Weights of timm's networks through huggingface_hub, from a hub on loopback."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from maskrcnn.errors import InputError
from maskrcnn.weights import backbones

BODY = bytes(range(256)) * 4
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Has one file of one repository."""

    asked: list[tuple[str, str]] = []

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        self.asked.append((self.command, self.path))
        if self.path != "/timm/resnet50.a1_in1k/resolve/main/model.safetensors":
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        for name, value in (("ETag", '"abc"'), ("X-Repo-Commit", COMMIT), ("Content-Length", str(len(BODY)))):
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(BODY)

    def log_message(self, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    Hub.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_fetched_once(endpoint: str, tmp_path: Path) -> None:
    path = backbones.get("resnet50", endpoint=endpoint, cache=tmp_path)
    assert path.read_bytes() == BODY
    assert path.name == "model.safetensors"
    asked = len(Hub.asked)
    assert backbones.get("resnet50.a1_in1k", endpoint=endpoint, cache=tmp_path) == path
    assert len(Hub.asked) == asked


def test_offline_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError) as caught:
        backbones.get("resnet50", endpoint="http://127.0.0.1:9", cache=tmp_path)
    message = str(caught.value)
    assert message.startswith("timm:resnet50: cannot be downloaded; found http://127.0.0.1:9: ")
    assert message.endswith("; expected a network, or the weights in huggingface_hub's cache")
    assert capfd.readouterr() == ("", "")


def test_what_is_cached_needs_no_network(endpoint: str, tmp_path: Path) -> None:
    backbones.get("resnet50", endpoint=endpoint, cache=tmp_path)
    backbones.require_reachable("resnet50", endpoint="http://127.0.0.1:9", cache=tmp_path)
    with pytest.raises(InputError, match="timm:resnet18: cannot be downloaded"):
        backbones.require_reachable("resnet18", endpoint="http://127.0.0.1:9", cache=tmp_path)


def test_a_hub_without_the_file(endpoint: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="timm:resnet18: cannot be downloaded; found timm/resnet18.a1_in1k/model.safe"):
        backbones.get("resnet18", endpoint=endpoint, cache=tmp_path)


@pytest.mark.parametrize("name", ["nope", "resnet50.nope", "../resnet50"])
def test_no_such_backbone(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"weights: no such backbone; found timm:{name}"):
        backbones.get(name, endpoint="http://127.0.0.1:9", cache=tmp_path)


def test_weights_that_lie_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="timm:gcvit_tiny: has no weights on the hub"):
        backbones.get("gcvit_tiny", cache=tmp_path)
    backbones.require_reachable("gcvit_tiny", endpoint="http://127.0.0.1:9", cache=tmp_path)


def test_licences() -> None:
    assert backbones.licence("resnet50") == "apache-2.0"
    assert backbones.licence("resnet50.tv_in1k") == "bsd-3-clause"
