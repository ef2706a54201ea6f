"""What is wrong with the command line is told before anything is loaded."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from maskrcnn.cli.main import main
from maskrcnn.serving.work import detector_names


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--port", "-1"], "--port: impossible value; found -1; expected 0 to 65535"),
        (["--port", "65536"], "--port: impossible value; found 65536; expected 0 to 65535"),
        (["--max-upload-mb", "0"], "--max-upload-mb: impossible value; found 0.0; expected a number above 0"),
        (["--max-upload-mb", "nan"], "--max-upload-mb: impossible value; found nan; expected a number above 0"),
        (["--max-megapixels", "-5"], "--max-megapixels: impossible value; found -5.0; expected a number above 0"),
    ],
)
def test_options_out_of_range(words: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *words]) == 2
    assert capsys.readouterr().err == f"error: {error}\n"


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn"])
def test_a_missing_extra_is_named(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["serve"]) == 1
    expected = f"error: maskrcnn serve: needs {missing}; expected pip install 'maskrcnn[serve]'\n"
    assert capsys.readouterr().err == expected


def test_a_port_that_is_taken_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: --host, --port: cannot listen on 127.0.0.1:{port}; found ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7", "a" * 300])
def test_an_address_that_is_not_ours_is_one_line(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--host", host, "--port", "0"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: --host, --port: cannot listen on {host}:0; found ") and error.count("\n") == 1


def test_weights_that_are_missing_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", "0", "--weights", str(tmp_path / "none.safetensors")]) == 1
    error = capsys.readouterr().err
    assert "none.safetensors" in error and error.count("\n") == 1


def test_clients_see_names_and_no_folders(weights: Path, tmp_path: Path) -> None:
    copies = [tmp_path / folder / "tiny.safetensors" for folder in "ab"]
    for copy in copies:
        copy.parent.mkdir()
        copy.write_bytes(b"")
    sources = [str(weights), *map(str, copies), "coco-r50-fpn", str(weights)]
    assert detector_names(sources) == {
        "tiny": str(weights),
        "tiny-2": str(copies[0]),
        "tiny-3": str(copies[1]),
        "coco-r50-fpn": "coco-r50-fpn",
        "nuclei": "nuclei",
    }
