"""Every endpoint, every way to misuse it, and after each the server still does a job and no file is left behind."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from maskrcnn.predictor import Predictor
from maskrcnn.serving.app import Accepted, plain_name
from maskrcnn.serving.jobs import Keeping

from .conftest import PNG, Serve, Slow, png
from .test_upload import bomb, eps


def begin(client: TestClient, data: bytes | None = None, headers: dict[str, str] = PNG, **asked: Any) -> Any:
    return client.post("/api/jobs", params=asked, content=png() if data is None else data, headers=headers)


def ended(client: TestClient, job_id: str, patience: float = 60.0) -> Any:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        job = client.get(f"/api/jobs/{job_id}").json()
        if job["state"] in ("done", "failed"):
            return job
        time.sleep(0.01)
    raise AssertionError(f"still {job}")


def assert_alive(client: TestClient, temporary: Path) -> None:
    """A job is still done, and nothing lies in the folder of temporary files."""
    answer = begin(client)
    assert answer.status_code == 202, answer.text
    job = ended(client, answer.json()["id"])
    assert job["state"] == "done", job
    assert os.listdir(temporary) == []


def test_a_picture_from_upload_to_files(serve: Serve, temporary: Path, detector: Predictor) -> None:
    client = serve(work=None)
    answer = begin(client, name="folder/my cells.png", weights="tiny", score_threshold=0.0, max_detections=7, size=64)
    assert answer.status_code == 202
    first = answer.json()
    home = f"/api/jobs/{first['id']}"
    assert answer.headers["location"] == home
    assert first["state"] in ("waiting", "running") and first["name"] == "my cells.png"
    job = ended(client, first["id"])
    assert job["state"] == "done" and job["found"] == 7 and job["seconds"] > 0 and job["error"] is None
    found = detector.predict(png(), score_threshold=0.0, max_detections=7, size=64)

    report = client.get(f"{home}/report")
    assert report.headers["content-type"] == "text/html; charset=utf-8" and 'id="trace"' in report.text
    assert "sandbox allow-scripts" in report.headers["content-security-policy"]
    overlay = client.get(f"{home}/result.png")
    assert overlay.headers["content-disposition"] == "attachment; filename*=UTF-8''my%20cells.png"
    with Image.open(io.BytesIO(overlay.content)) as image:
        assert image.size == (56, 40) and image.tobytes() == found.draw().tobytes()
    coco = client.get(f"{home}/coco.json").json()
    assert [record["bbox"] for record in coco["annotations"]] == [record["bbox"] for record in found.coco(1)]
    polygons = client.get(f"{home}/polygons.json")
    assert polygons.headers["content-disposition"].endswith("''my%20cells.polygons.json")
    assert [record["score"] for record in polygons.json()["objects"]] == [round(s, 6) for s in found.scores.tolist()]

    assert client.delete(home).status_code == 204
    for path in (home, f"{home}/report", f"{home}/coco.json"):
        assert client.get(path).status_code == 404
    assert client.delete(home).status_code == 404
    assert_alive(client, temporary)


def test_the_page_is_whole_and_reaches_nothing_else(serve: Serve) -> None:
    client = serve()
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html") and "http" not in page.text
    for path in ("/page.css", "/page.js", "/icon.svg"):
        assert path in page.text
        assert client.get(path).status_code == 200
    assert "http" not in client.get("/page.js").text.replace("XMLHttpRequest", "")
    for path in ("/docs", "/redoc", "/page/../app.py", "/%2e%2e/app.py", "/app.py"):
        answer = client.get(path)
        assert answer.status_code == 404 and answer.json() == {"error": "not found"}


def test_about(serve: Serve) -> None:
    about = serve(accepted=Accepted(upload_bytes=1000)).get("/api/about").json()
    assert about["max_upload_bytes"] == 1000
    assert [weights["name"] for weights in about["weights"]] == ["tiny"]
    assert about["weights"][0]["classes"] == ["circle", "square", "triangle"]
    assert about["weights"][0]["defaults"].keys() == {
        "score_threshold", "nms_iou", "max_detections", "proposals", "size"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "field", "line"),
    [
        (
            {"score_threshold": 2},
            "score_threshold",
            "score_threshold: impossible value; found 2; expected a number from",
        ),
        ({"score_threshold": "nan"}, "score_threshold", "score_threshold: impossible value; found nan"),
        ({"score_threshold": -0.1}, "score_threshold", "score_threshold: impossible value; found -0.1"),
        ({"nms_iou": "a"}, "nms_iou", "nms_iou: impossible value; found a; expected a number from 0 to 1"),
        ({"mask_nms_iou": 1.01}, "mask_nms_iou", "mask_nms_iou: impossible value; found 1.01"),
        ({"max_detections": 0}, "max_detections", "max_detections: impossible value; found 0; expected a whole number"),
        ({"max_detections": 1.5}, "max_detections", "max_detections: impossible value; found 1.5"),
        (
            {"proposals": 10**12},
            "proposals",
            "proposals: impossible value; found 1000000000000; expected a whole number",
        ),
        (
            {"size": "huge"},
            "size",
            "size: impossible value; found huge; expected a whole number from 1 to 10000, in px,",
        ),
        ({"size": 0}, "size", "size: impossible value; found 0"),
        ({"size": 9999}, "size", "size: is too large for this picture; found"),
        ({"class_agnostic_nms": "maybe"}, "class_agnostic_nms", "class_agnostic_nms: impossible value; found maybe"),
        ({"name": "x" * 1001}, "name", "name: impossible value; found xxxx"),
        ({"weights": "other"}, "weights", "weights: no such weights; found other; expected tiny"),
        ({"weights": "/etc/passwd"}, "weights", "weights: no such weights; found /etc/passwd; expected tiny"),
        ({"weights": "coco-r50-fpn"}, "weights", "weights: no such weights; found coco-r50-fpn; expected tiny"),
        ({"treshold": 1}, "treshold", "treshold: no such parameter; expected weights, name, score_threshold"),
    ],
)
def test_parameters_out_of_range(serve: Serve, temporary: Path, asked: Any, field: str, line: str) -> None:
    client = serve()
    answer = begin(client, **asked)
    assert answer.status_code == 422
    assert answer.json()["field"] == field and answer.json()["error"].startswith(line)
    assert "\n" not in answer.json()["error"]
    assert_alive(client, temporary)


@pytest.mark.parametrize("data", [b"", b"hello", b"%PDF-1.4", bytes(5000), png()[:25], eps()], ids=range(6))
def test_uploads_that_are_no_pictures(serve: Serve, temporary: Path, data: bytes) -> None:
    client = serve()
    answer = begin(client, data)
    assert answer.status_code == 415
    assert answer.json()["error"].startswith("the upload is ") and "expected PNG" in answer.json()["error"]
    assert_alive(client, temporary)


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"]
)
def test_bodies_of_another_kind(serve: Serve, temporary: Path, kind: str) -> None:
    client = serve()
    answer = begin(client, headers={"content-type": kind})
    assert answer.status_code == 415
    assert answer.json()["error"].startswith("Content-Type: is no picture's; found ")
    assert_alive(client, temporary)


def noise_cut_short() -> bytes:
    whole = png(100, 100)
    return whole[: len(whole) // 2]


def test_a_damaged_picture_fails_as_a_job(serve: Serve, temporary: Path) -> None:
    client = serve(work=None)
    job = ended(client, begin(client, noise_cut_short(), name="half.png").json()["id"])
    assert job["state"] == "failed" and job["error"].startswith("half.png: cannot be read, damaged or cut short")
    assert client.get(f"/api/jobs/{job['id']}/report").status_code == 409
    assert client.get(f"/api/jobs/{job['id']}/report").json()["error"] == job["error"]
    assert_alive(client, temporary)


def test_an_upload_larger_than_the_limit(serve: Serve, temporary: Path) -> None:
    client = serve(accepted=Accepted(upload_bytes=20_000))

    def unmeasured() -> Iterator[bytes]:  # sent in chunks, without a Content-Length
        for _ in range(50):
            yield bytes(1000)

    for answer in (begin(client, bytes(20_001)), client.post("/api/jobs", content=unmeasured(), headers=PNG)):
        assert answer.status_code == 413
        assert answer.json() == {"error": "the upload is too large; expected at most 0.0190735 MB"}
    assert_alive(client, temporary)


@pytest.mark.parametrize("size", [(60_000, 60_000), (12_001, 10_000)])
def test_decompression_bombs(serve: Serve, temporary: Path, size: tuple[int, int]) -> None:
    client = serve()
    answer = begin(client, bomb(*size))
    assert answer.status_code == 413 and "too large" in answer.json()["error"]
    assert_alive(client, temporary)


def test_two_at_once_are_done_one_after_the_other_while_the_server_answers(serve: Serve, slow: Slow) -> None:
    client = serve(work=slow)
    first, second = (begin(client, png(seed=i), name=f"{i}.png").json()["id"] for i in range(2))
    assert slow.began.wait(5)
    states = [client.get(f"/api/jobs/{job}").json() for job in (first, second)]
    assert [state["state"] for state in states] == ["running", "waiting"]
    assert [state["ahead"] for state in states] == [0, 1]
    assert states[0]["step"] == "detecting" and (states[0]["done"], states[0]["total"]) == (1, 2)
    assert client.get("/api/about").status_code == 200 and slow.at_work == 1  # answered in the middle of a job
    early = client.get(f"/api/jobs/{first}/report")
    assert early.status_code == 409 and early.json() == {"error": "the job is not done yet: detecting"}
    slow.go.set()
    assert [ended(client, job)["state"] for job in (first, second)] == ["done", "done"]
    assert slow.orders == ["0.png", "1.png"] and slow.most_at_work == 1
    for i, job in enumerate((first, second)):  # each has its own
        assert client.get(f"/api/jobs/{job}/report").content == png(seed=i)


def test_a_job_is_stopped_in_the_middle(serve: Serve, slow: Slow) -> None:
    client = serve(work=slow)
    job = begin(client).json()["id"]
    assert slow.began.wait(5)
    assert client.delete(f"/api/jobs/{job}").status_code == 204
    deadline = time.monotonic() + 5
    while slow.at_work and time.monotonic() < deadline:
        time.sleep(0.005)
    assert slow.at_work == 0
    slow.go.set()
    assert ended(client, begin(client).json()["id"])["state"] == "done"


def test_a_full_queue_says_come_again(serve: Serve, slow: Slow) -> None:
    client = serve(work=slow, keeping=Keeping(waiting=1))
    first = begin(client).json()["id"]
    assert slow.began.wait(5)
    second = begin(client)
    third = begin(client)
    assert (second.status_code, third.status_code) == (202, 503)
    assert third.headers["retry-after"] == "5" and third.json()["error"].startswith("too many pictures at once")
    slow.go.set()
    assert ended(client, second.json()["id"])["state"] == ended(client, first)["state"] == "done"
    assert begin(client).status_code == 202


def test_unknown_jobs(serve: Serve, temporary: Path) -> None:
    client = serve()
    for path in ("none", "none/report", "none/result.png", "none/coco.json", "none/polygons.json", "..%2f..%2fetc"):
        answer = client.get(f"/api/jobs/{path}")
        assert answer.status_code == 404, path
    assert client.get("/api/jobs/none").json()["error"].startswith("no such job; results are kept for 30 minutes")
    assert client.put("/api/jobs/none").status_code == 405
    assert_alive(client, temporary)


def test_other_pages_and_hosts(serve: Serve, temporary: Path) -> None:
    client = serve()
    for headers in ({"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}):
        assert begin(client, headers=PNG | headers).status_code == 403
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    assert begin(client, headers=PNG | {"origin": "http://127.0.0.1:8000"}).status_code == 202
    assert_alive(client, temporary)


def test_a_fault_of_ours_is_one_line(serve: Serve, monkeypatch: pytest.MonkeyPatch, temporary: Path) -> None:
    client = serve()
    with monkeypatch.context() as patch:
        patch.setattr("maskrcnn.serving.app.check_picture", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):  # the test client hands it on; a client sees status 500
            begin(client)
    assert_alive(client, temporary)


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ("a.png", "a.png"),
        ("../../etc/passwd", "passwd"),
        ("C:\\pictures\\a.png", "a.png"),
        ("a\r\nSet-Cookie: x=1.png", "aSet-Cookie: x=1.png"),
        ("\u202egnp.a", "gnp.a"),
        ("", "picture"),
        ("/", "picture"),
        ("Zellen Ä 細胞.png", "Zellen Ä 細胞.png"),
        ("x" * 500, "x" * 100),
    ],
)
def test_names_of_pictures(given: str, plain: str) -> None:
    assert plain_name(given) == plain


def test_a_name_that_is_no_text_or_html_does_no_harm(serve: Serve, temporary: Path) -> None:
    client = serve(work=None)
    name = '<img src=x onerror="alert(1)">\r\nX: y.png'
    job = begin(client, name=name).json()["id"]
    assert ended(client, job)["state"] == "done"
    assert "<img src=x" not in client.get(f"/api/jobs/{job}/report").text
    header = client.get(f"/api/jobs/{job}/result.png").headers["content-disposition"]
    assert header.isprintable() and "<" not in header
    assert json.loads(client.get(f"/api/jobs/{job}/coco.json").text)["images"][0]["file_name"] == plain_name(name)
    assert_alive(client, temporary)
