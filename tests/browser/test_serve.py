"""The served page in a real browser: drop, wait, walk through every stage, follow one object, take the result away."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import maskrcnn
from maskrcnn.inspection.figure import STAGES

Open = Callable[..., Any]
PICTURE = Path(maskrcnn.__file__).parent / "demo_pictures" / "touching.png"
PATIENCE = 240_000  # ms; every figure is drawn, on one thread

DROP = """([data, name]) => {
    const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name));
    for (const kind of ["dragenter", "dragover", "drop"])
        document.querySelector("footer").dispatchEvent(
            new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
}"""


@pytest.fixture(scope="module")
def address(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server with the shipped detector. Asks for `browser` so that without one nothing is started."""
    temporary = tmp_path_factory.mktemp("temporary")
    command = [sys.executable, "-m", "maskrcnn", "serve", "--port", "0", "--device", "cpu", "--max-upload-mb", "1"]
    own = {"TMPDIR": str(temporary), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path_factory.mktemp("torch's own"))}
    environment = {**os.environ, **own}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    line = process.stdout.readline()
    yield line.split()[0]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (0, "", "stopped\n")
    assert os.listdir(temporary) == []


def assert_nothing_wrong(seen: Any, address: str, *expected: str) -> None:
    """expected: beginnings of what the console may say."""
    assert [problem for problem in seen.problems if not problem.startswith(expected or ("nothing",))] == []
    assert all(request.startswith((address, f"blob:{address}")) for request in seen.requests)
    assert seen.overflow() == 0


def test_drop_walk_follow_take_away(opened: Open, address: str) -> None:
    seen = opened(address, accept_downloads=True)
    page = seen.page
    assert page.get_by_role("button", name="Find objects").is_disabled()
    page.get_by_text("Thresholds", exact=True).click()
    page.get_by_label("Lowest score").fill("0.5")
    page.get_by_label("Most detections").fill("30")
    page.evaluate(DROP, [base64.b64encode(PICTURE.read_bytes()).decode(), "my cells.png"])
    assert page.get_by_role("progressbar").is_visible() and page.get_by_role("button", name="Stop").is_visible()
    result = page.get_by_role("region", name=re.compile("objects in my cells.png"))
    result.wait_for(timeout=PATIENCE)
    found = maskrcnn.load("nuclei", device="cpu").predict(PICTURE, score_threshold=0.5, max_detections=30)
    assert result.get_by_role("heading").inner_text() == f"{len(found)} objects in my cells.png"
    assert f": {len(found)} objects" in page.get_by_role("status").inner_text()
    assert page.get_by_role("progressbar").count() == 0

    report = page.frame_locator("iframe[title='Every step from picture to mask']")
    tabs = report.get_by_role("tab")
    tabs.first.wait_for()
    assert tabs.count() == len(STAGES)
    for i in range(len(STAGES)):
        tabs.nth(i).click()
        assert tabs.nth(i).get_attribute("aria-selected") == "true"
        figure = report.get_by_role("tabpanel").get_by_role("img").first
        assert figure.evaluate("p => p.decode().then(() => p.naturalWidth)") > 100
    report.locator(".objects button").nth(2).click()
    assert report.locator("#followed-title").inner_text() == "Detection 2: nucleus"

    for link, name in (("COCO JSON", "my cells.coco.json"), ("Polygons (JSON)", "my cells.polygons.json")):
        with page.expect_download() as download:
            result.get_by_role("link", name=link).click()
        assert download.value.suggested_filename == name
        document = json.loads(Path(download.value.path()).read_text())
        assert len(document["annotations" if "COCO" in link else "objects"]) == len(found)
    with page.expect_download() as download:
        result.get_by_role("link", name="Picture (PNG)").click()
    assert download.value.suggested_filename == "my cells.png"
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")

    with page.context.expect_page() as other:
        result.get_by_role("link", name="All steps in a tab of their own").click()
    other.value.get_by_role("tab").first.wait_for()
    assert other.value.get_by_role("heading", level=1).inner_text() == "my cells.png"
    assert_nothing_wrong(seen, address)


def test_on_a_phone_by_keyboard_and_stopped_in_the_middle(opened: Open, address: str) -> None:
    seen = opened(address, width=360, height=740)
    page = seen.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    page.locator("#file").set_input_files(str(PICTURE))
    stop = page.get_by_role("button", name="Stop")
    stop.wait_for()
    page.locator("#status", has_text=re.compile("starting|reading|detecting|drawing")).wait_for()
    with page.expect_request(lambda request: request.method == "DELETE"):
        stop.focus()
        page.keyboard.press("Enter")
    assert page.get_by_role("status").inner_text() == "stopped"
    assert not page.locator("#result").is_visible() and not stop.is_visible()
    assert page.evaluate("document.activeElement.id") == "start"
    assert_nothing_wrong(seen, address)


@pytest.mark.parametrize("width", [360, 1280])
def test_what_the_server_refuses_is_said_beside_the_field(opened: Open, address: str, width: int) -> None:
    seen = opened(address, width=width)
    page, alert = seen.page, seen.page.get_by_role("alert")
    page.locator("#file").set_input_files({"name": "notes.txt", "mimeType": "text/plain", "buffer": b"hello"})
    page.locator("#error:not(:empty)").wait_for()
    assert alert.inner_text().startswith("the upload is no picture that can be read; expected PNG")
    page.locator("#file").set_input_files({"name": "large.png", "mimeType": "image/png", "buffer": bytes(1_100_000)})
    assert alert.inner_text() == "large.png is too large: 1.0 MB; at most 1.0 MB"
    page.get_by_text("Thresholds", exact=True).click()
    page.get_by_label("NMS").fill("7")
    page.get_by_text("Thresholds", exact=True).click()  # closed again
    page.locator("#file").set_input_files(str(PICTURE))
    page.locator("#nms_iou[aria-invalid=true]").wait_for()
    assert alert.inner_text() == "nms_iou: impossible value; found 7; expected a number from 0 to 1"
    assert page.evaluate("document.activeElement.id") == "nms_iou" and page.get_by_label("NMS").is_visible()
    assert not page.get_by_role("button", name="Stop").is_visible()
    page.get_by_role("button", name="Back to the detector's own").click()
    assert alert.inner_text() == "" and page.get_by_label("NMS").input_value() == ""
    page.evaluate("document.dispatchEvent(new DragEvent('drop', {dataTransfer: new DataTransfer(), cancelable: true}))")
    assert alert.inner_text() == "what was dropped is no file; expected a picture"
    assert_nothing_wrong(seen, address, "Failed to load resource: the server responded with a status of 4")
