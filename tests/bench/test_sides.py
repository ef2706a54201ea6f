"""Each side gives what its users get."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import maskrcnn
from maskrcnn.bench.peer import Work, torchvision_peer
from maskrcnn.bench.pictures import BenchPicture
from maskrcnn.bench.sides import Ours, Theirs, encoded, whole
from maskrcnn.data.pictures import read_picture
from maskrcnn.ops import rle
from maskrcnn.weights.opening import load_model


def test_ours_is_what_a_user_calls(small_weights: Path, small_work: Work, picture: BenchPicture) -> None:
    predictor = maskrcnn.load(small_weights, small_work.of_ours(), device="cpu")
    expected = predictor.predict(picture.data)
    found = whole(Ours(predictor), picture.data)
    assert torch.equal(found.boxes, expected.boxes) and found.rles == expected.masks.rle()
    assert found.size == expected.size == picture.size


def test_theirs_is_what_its_users_get(small_weights: Path, small_work: Work, picture: BenchPicture) -> None:
    peer = torchvision_peer(small_weights, load_model(small_weights).config, small_work)
    side = Theirs(peer)
    found = whole(side, picture.data)
    with torch.no_grad():
        (expected,) = peer([torch.from_numpy(read_picture(picture.data).copy()).permute(2, 0, 1) / 255])
    assert torch.equal(found.boxes, expected["boxes"]) and torch.equal(found.labels, expected["labels"])
    bitmaps = (expected["masks"][:, 0] > 0.5).numpy()
    assert all(np.array_equal(rle.decode(mask), bitmap) for mask, bitmap in zip(found.rles, bitmaps, strict=True))
    assert found.probabilities is not None and found.probabilities.shape == (len(found), 28, 28)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of numpy, about pycocotools
def test_rle_with_and_without_pycocotools(monkeypatch: pytest.MonkeyPatch) -> None:
    bitmaps = np.random.default_rng(0).random((3, 20, 30)) > 0.5
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    ours = encoded(bitmaps)
    assert all(np.array_equal(rle.decode(mask), bitmap) for mask, bitmap in zip(ours, bitmaps, strict=True))
    monkeypatch.undo()
    mask = pytest.importorskip("pycocotools.mask")
    theirs = encoded(bitmaps)
    assert [each["counts"].decode() for each in theirs] == [each["counts"] for each in ours]
    assert np.array_equal(mask.decode(theirs[0]), bitmaps[0])
