"""Features on disk: made once, believed for their own network and boxes alone, whole where a run was stopped."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from maskrcnn.errors import InputError
from maskrcnn.lineage import feature_cache
from maskrcnn.lineage.feature_cache import FeatureCache, Features, fill

BOXES = torch.tensor([[0.0, 0.0, 9.0, 9.0], [2.0, 3.0, 7.0, 8.0]])


class _Network:
    """Gives the same features each time, and counts how often it was asked."""

    def __init__(self, values: Tensor) -> None:
        self.values, self.calls = values, 0

    def __call__(self) -> Tensor:
        self.calls += 1
        return self.values


def _never() -> Tensor:
    raise AssertionError("the network was asked again")


def test_made_once_and_the_same_when_read(tmp_path: Path) -> None:
    network = _Network(torch.rand(2, 50) * 8)
    made = FeatureCache(tmp_path, "model").features(7, BOXES, network)
    read = FeatureCache(tmp_path, "model").features(7, BOXES, _never)
    assert torch.equal(made.values, read.values) and made.values.dtype == torch.float32
    assert made.seconds == read.seconds
    torch.testing.assert_close(made.values, network.values, rtol=2**-11, atol=2**-24)  # half a unit of float16


def test_values_beyond_float16_stay_finite(tmp_path: Path) -> None:
    made = FeatureCache(tmp_path, "model").features(1, BOXES, lambda: torch.tensor([[1e6, 1.0], [-1e6, 0.0]]))
    assert made.values.tolist() == [[65504.0, 1.0], [-65504.0, 0.0]]


def test_another_network_or_other_boxes_are_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old, new = _Network(torch.zeros(2, 3)), _Network(torch.ones(2, 3))
    for image_id in (1, 2, 3):
        FeatureCache(tmp_path, "model").features(image_id, BOXES, old)
    cache = FeatureCache(tmp_path, "another model")
    with caplog.at_level(logging.WARNING, logger="maskrcnn"):
        found = [cache.features(image_id, BOXES, new).values for image_id in (1, 2, 3)]
    assert all(torch.equal(values, new.values) for values in found) and cache.made == 3
    assert len(caplog.records) == 1  # not one for each picture
    assert "1.safetensors: was made from something else; its features" in caplog.records[0].getMessage()
    assert torch.equal(FeatureCache(tmp_path, "another model").features(1, BOXES + 1, old).values, old.values)


def test_a_damaged_file_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    network = _Network(torch.rand(2, 300))
    path = FeatureCache(tmp_path, "model").path(1)
    FeatureCache(tmp_path, "model").features(1, BOXES, network)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-1] ^= 64
    for damaged in (whole[: len(whole) // 2], bytes(flipped), b""):
        path.write_bytes(damaged)
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="maskrcnn"):
            again = FeatureCache(tmp_path, "model").features(1, BOXES, network)
        assert "is damaged" in caplog.text
        assert torch.equal(again.values, network.values.half().float())
        FeatureCache(tmp_path, "model").features(1, BOXES, _never)


def test_a_full_disk_leaves_what_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = _Network(torch.rand(2, 20))
    cache = FeatureCache(tmp_path, "model")
    for image_id in (1, 2):
        cache.features(image_id, BOXES, network)

    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(InputError, match="3.safetensors: the disk is full") as caught:
            cache.features(3, BOXES, network)
    assert "\n" not in str(caught.value)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["1.safetensors", "2.safetensors"]
    later = FeatureCache(tmp_path, "model")
    for image_id in (1, 2):
        later.features(image_id, BOXES, _never)
    later.features(3, BOXES, network)  # there is room again
    assert later.made == 1


def test_stopped_half_way_goes_on_with_the_next(tmp_path: Path) -> None:
    class Killed(BaseException): ...

    asked: list[int] = []

    def network(image_id: int, last: int) -> Callable[[], Tensor]:
        def make() -> Tensor:
            if image_id > last:
                raise Killed
            asked.append(image_id)
            return torch.full((2, 3), float(image_id))

        return make

    def run(last: int) -> list[int]:
        cache = FeatureCache(tmp_path, "model")
        return fill([4, 2, 6, 1], lambda i: cache.features(i, BOXES, network(i, last)), seconds=1e9)[0]

    with pytest.raises(Killed):
        run(5)
    assert asked == [4, 2]
    (tmp_path / ".6.safetensors.1a2b3c4d.unfinished").write_bytes(b"half a fil")
    assert run(9) == [4, 2, 6, 1] and asked == [4, 2, 6, 1]
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"{i}.safetensors" for i in (1, 2, 4, 6)]


def test_seconds_of_earlier_calls_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds a picture and 25 to spend: three pictures, whether in one call or in two."""
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(feature_cache.time, "perf_counter", lambda: float(next(clock)))
    cache = FeatureCache(tmp_path, "model")
    cache.features(8, BOXES, _Network(torch.zeros(2, 3)))

    def features(i: int) -> Features:
        return cache.features(i, BOXES, _Network(torch.zeros(2, 3)))

    done: list[float] = []
    assert fill([8, 5, 9, 3, 1], features, 25.0, done.append) == ([8, 5, 9], 30.0)
    assert done == [0.4, 0.8, 1.0] and cache.made == 3
    assert fill([8, 5, 9, 3, 1], features, 25.0) == ([8, 5, 9], 30.0)
    assert fill([8, 5], features, 0.0) == ([8], 10.0)  # never none
    assert fill([], features, 25.0) == ([], 0.0)
