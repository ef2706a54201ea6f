"""The command itself in a process of its own, over real sockets: what clients do wrong, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

import maskrcnn

from .conftest import PNG, png

PICTURES = Path(maskrcnn.__file__).parent / "demo_pictures"
LIMIT = 2 * 2**20  # bytes of an upload


@dataclass
class Running:
    process: subprocess.Popen[str]
    url: str
    temporary: Path

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        return httpx.request(method, self.url + path, timeout=60, trust_env=False, **options)

    def done(self, job_id: str) -> Any:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            job = self.ask("GET", f"/api/jobs/{job_id}").json()
            if job["state"] in ("done", "failed"):
                return job
            time.sleep(0.05)
        raise AssertionError(f"still {job}")

    def memory(self) -> int:
        """Bytes of the process that are in memory."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", text)[1]) * 1024  # type: ignore[index]

    def assert_alive(self) -> None:
        assert self.process.poll() is None
        assert self.ask("GET", "/api/about").status_code == 200
        assert os.listdir(self.temporary) == []

    def assert_takes_a_picture(self) -> None:
        """There is room for an upload; the job is not waited for."""
        answer = post(self, png())
        assert answer.status_code == 202, answer.text
        assert self.ask("DELETE", answer.headers["location"]).status_code == 204


def start(temporary: Path, *words: str) -> Running:
    temporary.mkdir()
    own = {"TMPDIR": str(temporary), "TORCHINDUCTOR_CACHE_DIR": str(temporary.with_name("torch's own"))}
    environment = {**os.environ, **own, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "maskrcnn", "serve", "--port", "0", "--device", "cpu", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    line = process.stdout.readline()
    url = re.match(r"(http://\S+)  detectors: .*nuclei  \(Ctrl-C ends it\)$", line)
    assert url, line + process.communicate()[1]
    return Running(process, url[1], temporary)


def stop(server: Running, signal_number: int = signal.SIGINT) -> tuple[int, str, str]:
    server.process.send_signal(signal_number)
    out, err = server.process.communicate(timeout=120)
    return server.process.returncode, out, err


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    server = start(tmp_path_factory.mktemp("server") / "temporary", "--max-upload-mb", "2")
    yield server
    status, out, err = stop(server)
    assert (status, out, err) == (0, "", "stopped\n")  # no traceback of anything that the tests did
    assert os.listdir(server.temporary) == []


def post(server: Running, data: bytes, **asked: Any) -> httpx.Response:
    return server.ask("POST", "/api/jobs", content=data, headers=PNG, params=asked)


def raw(server: Running, head: str, *parts: bytes, finish: bool = True) -> bytes:
    """The answer to a request that is sent as it stands; `finish`: wait for it."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode())
        answer = b""
        try:
            for part in parts:
                connection.sendall(part)
            while finish and (received := connection.recv(65536)):
                answer += received
                if b"}" in answer:
                    break
        except (ConnectionError, BrokenPipeError):
            pass
        return answer


HEAD = "POST /api/jobs HTTP/1.1\nHost: 127.0.0.1\nContent-Type: image/png\n"


def test_two_uploads_at_once_and_answers_in_the_meantime(server: Running) -> None:
    with ThreadPoolExecutor(2) as pool:
        jobs = list(pool.map(lambda seed: post(server, png(300, 400, seed)).json()["id"], range(2)))
    states = set()
    for _ in range(30):
        assert server.ask("GET", "/api/about").status_code == 200
        states.add(tuple(sorted(server.ask("GET", f"/api/jobs/{job}").json()["state"] for job in jobs)))
    assert ("running", "waiting") in states and ("running", "running") not in states
    for job in jobs:
        assert server.ask("DELETE", f"/api/jobs/{job}").status_code == 204
    server.assert_alive()


def test_an_upload_that_says_it_is_too_large_is_not_read(server: Running) -> None:
    answer = raw(server, HEAD + f"Content-Length: {LIMIT + 1}\n\n")
    assert answer.startswith(b"HTTP/1.1 413 ") and b"expected at most 2 MB" in answer
    server.assert_alive()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc to see the memory of another process")
def test_an_upload_without_length_and_end_is_refused_at_the_limit(server: Running) -> None:
    before = server.memory()
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    answer = raw(server, HEAD + "Transfer-Encoding: chunked\n\n", *[chunk] * 1600)  # 100 MB, of which 2 are taken
    assert answer == b"" or answer.startswith(b"HTTP/1.1 413 ")  # a reset may overtake the answer
    assert server.memory() - before < 30 * 2**20
    server.assert_alive()


def test_a_body_longer_than_told_is_cut_there(server: Running) -> None:
    answer = raw(server, HEAD + "Content-Length: 4\nConnection: close\n\n", png())
    assert answer.startswith(b"HTTP/1.1 415 ")
    server.assert_alive()


@pytest.mark.parametrize("sent", [0, 1000, 500_000])
def test_a_client_that_goes_away_in_the_middle_of_its_upload(server: Running, sent: int) -> None:
    before = server.memory() if Path("/proc").is_dir() else 0
    for _ in range(10):  # more than may upload at once: the places are free again
        raw(server, HEAD + "Content-Length: 1000000\n\n", bytes(sent), finish=False)
    time.sleep(0.3)
    server.assert_takes_a_picture()
    if before:
        assert server.memory() - before < 100 * 2**20
    server.assert_alive()


def test_a_client_that_resets_the_connection(server: Running) -> None:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.sendall((HEAD + "Content-Length: 1000000\n\n").replace("\n", "\r\n").encode() + bytes(1000))
    connection.close()
    server.assert_alive()


def test_a_client_that_goes_away_before_the_answer(server: Running) -> None:
    data = png()
    raw(server, HEAD + f"Content-Length: {len(data)}\n\n", data, finish=False)
    server.assert_takes_a_picture()
    server.assert_alive()


@pytest.mark.parametrize(
    "text", ["", "\n\n", "GET\n\n", "POST /api/jobs HTTP/1.1\n\n", "\x16\x03\x01\x02", "G" * 100_000]
)
def test_what_is_no_request(server: Running, text: str) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(text.replace("\n", "\r\n").encode())
        connection.shutdown(socket.SHUT_WR)
        threading.Event().wait(0.05)
    server.assert_alive()


def test_another_host_name(server: Running) -> None:
    assert server.ask("GET", "/", headers={"host": "evil.example"}).status_code == 400
    assert server.ask("GET", "/", headers={"host": f"localhost:{server.port}"}).status_code == 200


def test_after_all_this_a_real_picture_from_upload_to_report(server: Running) -> None:
    picture = PICTURES / "touching.png"
    job = server.done(post(server, picture.read_bytes(), name=picture.name, score_threshold=0.5).json()["id"])
    assert job["state"] == "done", job
    found = maskrcnn.load("nuclei", device="cpu").predict(picture, score_threshold=0.5)
    assert job["found"] == len(found) > 10
    home = f"/api/jobs/{job['id']}"
    records = server.ask("GET", f"{home}/coco.json").json()["annotations"]
    assert [record["segmentation"] for record in records] == [record["segmentation"] for record in found.coco()]
    report = server.ask("GET", f"{home}/report").text
    trace = json.loads(re.search(r'<script type="application/json" id="trace">(.*?)</script>', report, re.S)[1])  # type: ignore[index]
    assert len(trace["objects"]) == len(found)
    server.assert_alive()


@pytest.mark.slow
def test_ctrl_c_ends_it_in_the_middle_of_a_job(tmp_path: Path) -> None:
    server = start(tmp_path / "temporary")
    post(server, png(900, 900))
    assert stop(server) == (0, "", "stopped\n")
    assert os.listdir(server.temporary) == []


def test_a_port_that_is_taken_is_one_line(server: Running) -> None:
    command = [sys.executable, "-m", "maskrcnn", "serve", "--port", str(server.port)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(
        f"error: --host, --port: cannot listen on 127.0.0.1:{server.port}; found Address already"
    )
    assert done.stderr.count("\n") == 1
