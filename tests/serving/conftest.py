"""A tiny detector, pictures as bytes, a work that waits for a word, and a client in the process."""

from __future__ import annotations

import io
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from maskrcnn.data.pictures import read_picture
from maskrcnn.model.mask_rcnn import MaskRCNN
from maskrcnn.model.presets import nano
from maskrcnn.predictor import Predictor
from maskrcnn.serving.app import Accepted, make_app
from maskrcnn.serving.jobs import Keeping, Order, Product, Progress, Work

HOME = "http://127.0.0.1:8000"
PNG = {"content-type": "image/png"}


def png(height: int = 40, width: int = 56, seed: int = 0) -> bytes:
    array = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format="PNG")
    return stream.getvalue()


@pytest.fixture(scope="session")
def detector() -> Predictor:
    torch.manual_seed(0)
    return Predictor(MaskRCNN(nano(("circle", "square", "triangle"), (1, 2, 3))), "cpu")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place for temporary files during a test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


class Slow:
    """Work that begins at once and ends when `go` is set; the product's report is the picture that came in."""

    def __init__(self) -> None:
        self.began, self.go = threading.Event(), threading.Event()
        self.orders: list[str] = []
        self.at_work, self.most_at_work = 0, 0

    def __call__(self, order: Order, progress: Progress) -> Product:
        self.orders.append(order.name)
        self.at_work += 1
        self.most_at_work = max(self.at_work, self.most_at_work)
        try:
            progress("detecting", 1, 2)
            self.began.set()
            while not self.go.wait(0.01):
                progress("detecting", 1, 2)
        finally:
            self.at_work -= 1
        return Product(3, order.picture, b"png", b"{}", b"[]")


@pytest.fixture
def slow() -> Slow:
    return Slow()


def quick(order: Order, progress: Progress) -> Product:
    """What `produce` does, without detecting: a damaged picture fails as there."""
    read_picture(order.picture, name=order.name)
    return Product(0, b"", b"", b"", b"")


Serve = Callable[..., TestClient]


@pytest.fixture
def serve(detector: Predictor) -> Iterator[Serve]:
    """serve(accepted=..., keeping=..., work=..., host=...) -> a client; the application is closed after the test.

    work: None detects in earnest.
    """
    open_clients: list[TestClient] = []

    def start(
        accepted: Accepted | None = None,
        keeping: Keeping | None = None,
        work: Work | None = quick,
        host: str = "127.0.0.1",
    ) -> TestClient:
        app: FastAPI = make_app({"tiny": detector}, host=host, accepted=accepted, keeping=keeping, work=work)
        client = TestClient(app, base_url=HOME)
        client.__enter__()
        open_clients.append(client)
        return client

    yield start
    for client in open_clients:
        client.__exit__(None, None, None)
